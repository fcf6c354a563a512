"""The memory of a GPU that a checkpoint and its requests take, from the configs alone.

Each sum names the tensors that are alive together at its peak. ``SLACK`` and ``PROCESS_BYTES`` cover what the configs
do not say; both were measured with one GPU. A test compares the sums with the peaks of one H100 at Cosmos3-Nano's size.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from cosmos3_models.autoencoders.sound_decoder import OobleckSoundDecoder
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.checkpoint.folder import CardUse, Checkpoint, Offload
from cosmos3_models.parallel.shares import shares
from cosmos3_models.params import MAX_FRAMES, GenerationParams
from cosmos3_models.resources.budget import (
    GIB,
    PROMPTS,
    Budget,
    denoised_bytes,
    request_sound_bytes,
    sounded_bytes,
    together,
)
from cosmos3_models.shapes import nearest_frame_counts
from cosmos3_models.text.prompt import MAX_PROMPT_TOKENS
from cosmos3_models.transformer.attention import HOPPER
from cosmos3_models.transformer.model import Transformer

PROCESS_BYTES = int(1.35 * GIB)  # besides its tensors: CUDA's context, compiled kernels, leftovers of the warm-up
EXCHANGE_BYTES = GIB  # of several ranks, on each GPU: NCCL's buffers. Not measured
SLACK = 1.2  # of a request's tensors: cuDNN's scratch, and memory that PyTorch keeps between its blocks


class StageBytes(NamedTuple):
    """Bytes of GPU memory of one stage: its weights, and the tensors of a request."""

    weights: int
    request: int


class Footprint:
    """Bytes that one checkpoint takes on the GPU of its denoiser.

    Args:
        dtype: of the weights.
        use: what else the GPU is for.

    Attributes:
        transformer: bytes of both towers' weights.
        text: those of them that can stay in host memory.
        video_encoder, video_decoder, sound_decoder: bytes of their weights; 0 for one that the checkpoint lacks.
        fp8: bytes of the generation tower's copy in fp8.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, use: CardUse) -> None:
        self._checkpoint, self._use, self._itemsize = checkpoint, use, dtype.itemsize
        with torch.device("meta"):
            transformer = Transformer(checkpoint.transformer)
            self._video = WanVideoDecoder(checkpoint.video_vae).to(dtype)
            self._encoder = WanVideoEncoder(checkpoint.video_vae).to(dtype) if checkpoint.has_video_encoder else None
            sound = nn.Identity() if checkpoint.sound is None else OobleckSoundDecoder(checkpoint.sound)
        self.transformer = self._bytes(transformer.parameters())
        self.text = self._bytes(transformer.text.offloadable)
        self.video_encoder = self._bytes((self._encoder or nn.Identity()).parameters())
        self.video_decoder, self.sound_decoder = self._bytes(self._video.parameters()), self._bytes(sound.parameters())
        self.fp8 = sum(linear.weight.numel() for linear in transformer.generation.linears)  # a byte each

    def offloads(self, choice: Offload, device: torch.device) -> bool:
        """Whether the text tower stays in host memory: as chosen or, with ``"auto"``, if the longest video would not
        fit the GPU otherwise.
        """
        if choice != "auto":
            return choice
        if device.type != "cuda":
            return False
        card_bytes = torch.cuda.get_device_properties(device).total_memory
        return self.most(card_bytes, fp8=torch.cuda.get_device_capability(device) >= HOPPER) > card_bytes

    def most(self, card_bytes: int, *, fp8: bool) -> int:
        """Bytes in use at the peak of the longest accepted video of the default size, the text tower on the GPU.

        Args:
            card_bytes: memory of the GPU; the decoder takes larger chunks if there is more.
            fp8: whether the GPU can compute in fp8.
        """
        denoiser, *others = self.stages(card_bytes, fp8=fp8).values()
        encode, *decodes = (stage.request for stage in others)
        peak = together(self._use.decoders, denoiser.weights, self.autoencoders, denoiser.request, sum(decodes), encode)
        return peak + self.processes * PROCESS_BYTES + EXCHANGE_BYTES * (self._use.ranks > 1)

    def stages(self, card_bytes: int, *, fp8: bool) -> dict[str, StageBytes]:
        """What ``most`` adds up, by stage."""
        params = self.largest()
        grid = params.grid
        sound = request_sound_bytes(self._checkpoint.sound, params, self._itemsize)
        weights = self.transformer + self.fp8 * (fp8 and "fp8_linears" in self._use.approximations)
        denoise = self.denoised(grid.cells, PROMPTS * MAX_PROMPT_TOKENS)
        return {
            "Denoiser": StageBytes(weights, int(SLACK * denoise)),
            "VideoEncoder": StageBytes(self.video_encoder, int(SLACK * self.encoded(grid.height, grid.width))),
            "VideoDecoder": StageBytes(
                self.video_decoder, int(SLACK * self.decoded(grid.height, grid.width, card_bytes))
            ),
            "SoundDecoder": StageBytes(self.sound_decoder, int(SLACK * sound)),
        }

    @property
    def autoencoders(self) -> int:
        """Bytes of the weights of both decoders and of the video encoder."""
        return self.video_encoder + self.video_decoder + self.sound_decoder

    @property
    def processes(self) -> int:
        """Processes with a CUDA context on the denoiser's GPU."""
        return 3 + (self._encoder is not None) if self._use.decoders == "same GPU" else 1

    def budget(self, device: torch.device, *, offloaded: bool) -> Budget | None:
        """The budget that requests are checked against; None on the CPU, whose memory other processes use as well.

        Args:
            offloaded: whether the text tower stays in host memory.
        """
        if device.type != "cuda":
            return None
        return Budget(
            card_bytes=torch.cuda.get_device_properties(device).total_memory,
            weights=self.transformer - self.text * offloaded,
            fp8_weights=self.fp8,
            autoencoder_weights=self.autoencoders,
            decode_bytes=(self._video.peak_bytes(0, 1, 1), self._video.peak_bytes(1, 1, 1)),
            itemsize=self._itemsize,
            decoders=self._use.decoders,
            transformer=self._checkpoint.transformer,
            sound=self._checkpoint.sound,
            ranks=self._use.ranks,
        )

    def denoised(self, cells: int, text_tokens: int) -> int:
        """``denoised_bytes`` of this checkpoint with guidance, which leaves most tokens to a GPU."""
        context = shares(self._use.ranks, PROMPTS).context
        return denoised_bytes(self._checkpoint.transformer, cells, text_tokens, self._itemsize, context)

    def decoded(self, height: int, width: int, card_bytes: int) -> int:
        """Bytes of a video decode, besides the weights, on a GPU with ``card_bytes`` of memory.

        Args:
            height, width: latent rows and columns.
        """
        return self._video.peak_bytes(self._video.chunk_on_card(height, width, card_bytes), height, width)

    def encoded(self, height: int, width: int) -> int:
        """Bytes that encoding pictures takes, besides the weights, on a GPU; 0 without the encoder.

        Args:
            height, width: latent rows and columns.
        """
        if self._encoder is None:
            return 0
        return self._encoder.peak_bytes(self._encoder.chunk_on_card(height, width), height, width)

    def sounded(self, latent_frames: int) -> int:
        """``sounded_bytes`` of this checkpoint."""
        return sounded_bytes(self._checkpoint.sound, latent_frames, self._itemsize)

    def largest(self) -> GenerationParams:
        """The longest accepted video of the default size, with sound if the checkpoint can make it."""
        defaults = self._checkpoint.defaults.params(prompt="-")
        frames = min(MAX_FRAMES, max(1, self._use.pixel_frames // (defaults.height * defaults.width)))
        longest = {"num_frames": nearest_frame_counts(frames)[0], "generate_sound": self._checkpoint.sound is not None}
        return defaults.model_copy(update=longest)

    def _bytes(self, weights: Iterable[torch.Tensor]) -> int:
        return sum(weight.numel() for weight in weights) * self._itemsize
