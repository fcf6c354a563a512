"""Known GPUs, and the seconds that a request's operations take on them."""

from typing import NamedTuple

from cosmos3_models.parallel.shares import FLOPS_PER_S
from cosmos3_models.resources.budget import GIB

DECODE_FLOPS_PER_S = 5.5e14  # of an H100: decode and H.264 of smooth pictures together


class Card(NamedTuple):
    """A GPU.

    Attributes:
        gib: memory as PyTorch reports it, in GiB.
        bf16_tflops: the vendor's peak of dense products in bf16.
        fp8: whether this project computes in fp8 on it.
    """

    gib: float
    bf16_tflops: float
    fp8: bool

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return int(self.gib * GIB)

    def seconds(self, model_flops: float, decode_flops: float) -> float:
        """Estimate the time of operations: an H100's, which was measured at Nano's size, scaled by the peak in bf16.

        Args:
            model_flops: of the transformer and the video encoder.
            decode_flops: of both decoders.
        """
        h100_s = model_flops / FLOPS_PER_S + decode_flops / DECODE_FLOPS_PER_S
        return h100_s * CARDS[MEASURED].bf16_tflops / self.bf16_tflops


MEASURED = "h100-80gb"
CARDS = {
    MEASURED: Card(79.1, 989, fp8=True),
    "h200-141gb": Card(139.8, 989, fp8=True),
    "b200-180gb": Card(178.3, 2250, fp8=True),
    "a100-80gb": Card(79.1, 312, fp8=False),
    "a100-40gb": Card(39.4, 312, fp8=False),
    "l40s-48gb": Card(44.4, 362, fp8=False),
    "rtx-5090-32gb": Card(31.3, 209, fp8=False),
    "rtx-4090-24gb": Card(23.6, 165, fp8=False),
}
