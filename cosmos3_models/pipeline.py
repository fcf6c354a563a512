"""The whole model in one process: prompt in, frames and waveform out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmos3_models.autoencoders.sound_decoder import OobleckSoundDecoder
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.checkpoint.folder import Checkpoint, Offload
from cosmos3_models.checkpoint.loading import (
    load_sound_decoder,
    load_transformer,
    load_video_decoder,
    one_process,
    resolve_device,
)
from cosmos3_models.params import GenerationParams
from cosmos3_models.resources.footprint import Footprint
from cosmos3_models.sampling.denoise import OnStep, VideoDenoiser
from cosmos3_models.text.prompt import PromptEncoder
from cosmos3_models.transformer.generation_tower import Streams


@dataclass(frozen=True)
class GenerationResult:
    """The result of one call.

    Attributes:
        video_latents: fp32 (1, c, t, h, w).
        sound_latents: fp32 (1, d, t) or None.
        frames: uint8 RGB (frames, height, width, 3).
        waveform: fp32 (channels, samples) in [-1, 1] or None.
        sample_rate: samples per second of ``waveform``, or None.
        fps: frames per second of ``frames``.
        timings: seconds by stage.
    """

    video_latents: Tensor
    sound_latents: Tensor | None
    frames: NDArray[np.uint8]
    waveform: NDArray[np.float32] | None
    sample_rate: int | None
    fps: float
    timings: dict[str, float]


class Cosmos3Pipeline:
    """Text to video with sound, without Ray. One call at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompt_encoder: PromptEncoder,
        denoiser: VideoDenoiser,
        video_decoder: WanVideoDecoder,
        sound_decoder: OobleckSoundDecoder | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.prompt_encoder = prompt_encoder
        self.denoiser = denoiser
        self.video_decoder = video_decoder
        self.sound_decoder = sound_decoder
        transformer = denoiser.transformer
        footprint = Footprint(checkpoint, transformer.dtype, one_process(checkpoint))
        self._budget = footprint.budget(transformer.device, offloaded=transformer.text.offloaded)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        offload_text: Offload = "auto",
    ) -> "Cosmos3Pipeline":
        """Load every part of a checkpoint folder, or the demo for ``"demo"``.

        Args:
            device: a torch device, or ``"auto"`` for the GPU where there is one.
            dtype: of the weights; None is bf16 on a GPU and fp32 on the CPU.
            offload_text: keep the text tower in host memory; ``"auto"`` if the checkpoint's default video would not fit
                the GPU otherwise.

        Raises:
            CheckpointError: naming the file and the tensor at fault.
        """
        device, dtype = resolve_device(device, dtype)
        checkpoint = Checkpoint.open(path)
        transformer = load_transformer(checkpoint, device, dtype, offload_text)
        return cls(
            checkpoint,
            PromptEncoder.from_checkpoint(checkpoint.folder),
            VideoDenoiser(transformer, checkpoint.scheduler, checkpoint.sound),
            load_video_decoder(checkpoint, device, dtype),
            load_sound_decoder(checkpoint, device, dtype) if checkpoint.sound else None,
        )

    @torch.inference_mode()
    def __call__(
        self,
        params: GenerationParams,
        on_step: OnStep | None = None,
        *,
        latents: Tensor | None = None,
        sound_latents: Tensor | None = None,
    ) -> GenerationResult:
        """Make one video.

        Args:
            on_step: called with (steps done, steps) after every sampler step.
            latents: initial video noise (1, c, t, h, w) in place of the seed's.
            sound_latents: initial sound noise (1, d, t), given with ``latents`` when sound is made.

        Raises:
            InvalidInput: this checkpoint or device cannot make the request.
        """
        timings: dict[str, float] = {}
        if self._budget is not None:
            self._budget.check(params)
        with self._timed("preprocess", timings):
            ids = self.prompt_encoder.encode(params)
        with self._timed("denoise", timings):
            noise = None if latents is None else Streams(latents, sound_latents)
            made = self.denoiser(ids, params, noise=noise, on_step=on_step or (lambda _done, _steps: None))
        with self._timed("video_decode", timings):
            frames = np.concatenate(list(self.video_decoder.frames(made.video)))
        with self._timed("sound_decode", timings):
            sound_decoder = None if made.sound is None else self.sound_decoder
            waveform = None if sound_decoder is None else sound_decoder(made.sound)
        with self._timed("to_cpu", timings):
            video, sound = made.video.cpu(), None if made.sound is None else made.sound.cpu()
            waveform = None if waveform is None else waveform.cpu().numpy()
        rate = None if sound_decoder is None else sound_decoder.config.sample_rate
        return GenerationResult(video, sound, frames, waveform, rate, params.fps, timings)

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.denoiser.transformer.device.type == "cuda":
            torch.cuda.synchronize()
        timings[stage] = time.perf_counter() - start
