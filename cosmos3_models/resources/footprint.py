"""The memory of a GPU that a checkpoint and its requests take, from the configs alone.

Each sum names the tensors that are alive together at its peak. ``SLACK`` and ``PROCESS_BYTES`` cover what the configs
do not say; both were measured. A test compares the sums with the peaks of one H100 at Cosmos3-Nano's size.
"""

from collections.abc import Iterable

import torch
from torch import nn

from cosmos3_models.autoencoders.sound_decoder import OobleckSoundDecoder
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.checkpoint.folder import CardUse, Checkpoint, Offload
from cosmos3_models.params import MAX_FRAMES, GenerationParams
from cosmos3_models.resources.budget import (
    GIB,
    PROMPTS,
    Budget,
    cached_bytes,
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
SLACK = 1.2  # of a request's tensors: cuDNN's scratch, and memory that PyTorch keeps between its blocks


class Footprint:
    """Bytes that one checkpoint takes on the GPU of its denoiser.

    Args:
        dtype: of the weights.
        use: what else the GPU is for.

    Attributes:
        transformer: bytes of both towers' weights.
        text: those of them that can stay in host memory.
        autoencoders: bytes of the weights of both decoders and, if the checkpoint has it, the video encoder.
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
        parts = (self._video, sound, self._encoder or nn.Identity())
        self.autoencoders = self._bytes(weight for part in parts for weight in part.parameters())
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
        params, allowed = self._largest(), self._use.approximations
        grid, cells = params.grid, params.grid.cells
        weights = self.transformer + self.fp8 * (fp8 and "fp8_linears" in allowed)
        denoise = self.denoised(cells, PROMPTS * MAX_PROMPT_TOKENS) + self.cached(cells) * ("step_cache" in allowed)
        decode = self.decoded(grid.height, grid.width, card_bytes) + request_sound_bytes(
            self._checkpoint.sound, params, self._itemsize
        )
        encode = self.encoded(grid.height, grid.width)
        processes = 3 + (self._encoder is not None) if self._use.decoders == "same GPU" else 1
        parts = (int(SLACK * part) for part in (denoise, decode, encode))
        peak = together(self._use.decoders, weights, self.autoencoders, *parts)
        return peak + processes * PROCESS_BYTES

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
        )

    def denoised(self, cells: int, text_tokens: int) -> int:
        """``denoised_bytes`` of this checkpoint."""
        return denoised_bytes(self._checkpoint.transformer, cells, text_tokens, self._itemsize)

    def cached(self, cells: int) -> int:
        """``cached_bytes`` of this checkpoint."""
        return cached_bytes(self._checkpoint.transformer, cells, self._itemsize)

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

    def _largest(self) -> GenerationParams:
        """The longest accepted video of the default size, with sound if the checkpoint can make it."""
        defaults = self._checkpoint.defaults.params(prompt="-", generate_sound=self._checkpoint.sound is not None)
        frames = min(MAX_FRAMES, max(1, self._use.pixel_frames // (defaults.height * defaults.width)))
        return defaults.model_copy(update={"num_frames": nearest_frame_counts(frames)[0]})

    def _bytes(self, weights: Iterable[torch.Tensor]) -> int:
        return sum(weight.numel() for weight in weights) * self._itemsize
