"""The whole model in one process: prompt, perhaps a picture or clip, in; frames and waveform out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmos3_models.autoencoders.sound_decoder import OobleckSoundDecoder
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.checkpoint.folder import Checkpoint, Offload
from cosmos3_models.checkpoint.loading import (
    load_sound_decoder,
    load_transformer,
    load_video_decoder,
    load_video_encoder,
    one_process,
    resolve_device,
)
from cosmos3_models.errors import InvalidInput
from cosmos3_models.media.limits import PARAM
from cosmos3_models.media.resize import cover
from cosmos3_models.media.sources import Clip, Picture, Source, source_of
from cosmos3_models.params import GenerationParams
from cosmos3_models.references import NAMES, check_reference, clean_frames, reference_frames
from cosmos3_models.resources.footprint import Footprint
from cosmos3_models.sampling.clean_frames import CleanFrames
from cosmos3_models.sampling.denoise import OnStep, VideoDenoiser
from cosmos3_models.text.prompt import PromptEncoder
from cosmos3_models.transformer.generation_tower import Streams

OnPreview = Callable[[int, NDArray[np.uint8]], None]
"""Called with the steps done and a few moments of the video, uint8 RGB (n, height, width, 3)."""


@dataclass(frozen=True)
class GenerationResult:
    """The result of one call.

    Attributes:
        video_latents: fp32 (1, c, t, h, w).
        sound_latents: fp32 (1, d, t) or None.
        frames: uint8 RGB (frames, height, width, 3); one frame is an image.
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
    """Text, pictures and clips to videos with sound and to images, without Ray. One call at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompt_encoder: PromptEncoder,
        video_encoder: WanVideoEncoder | None,
        denoiser: VideoDenoiser,
        video_decoder: WanVideoDecoder,
        sound_decoder: OobleckSoundDecoder | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.prompt_encoder = prompt_encoder
        self.video_encoder = video_encoder
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
        """Load every part of a checkpoint folder, of a model on the Hugging Face Hub, or the demo for ``"demo"``.

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
            load_video_encoder(checkpoint, device, dtype) if checkpoint.has_video_encoder else None,
            VideoDenoiser(transformer, checkpoint.scheduler, checkpoint.sound),
            load_video_decoder(checkpoint, device, dtype),
            load_sound_decoder(checkpoint, device, dtype) if checkpoint.sound else None,
        )

    @torch.inference_mode()
    def __call__(
        self,
        params: GenerationParams,
        image: Picture | None = None,
        video: Clip | None = None,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
        *,
        latents: Tensor | None = None,
        sound_latents: Tensor | None = None,
    ) -> GenerationResult:
        """Make one video or, of one frame, an image.

        Args:
            image: what the video begins with: a file, a picture of Pillow or uint8 RGB (h, w, 3) of any size. It is
                scaled to cover the video's size, and its centre is used.
            video: a clip that the video continues, in place of ``image``: a file, or uint8 RGB (frames, h, w, 3).
                ``params`` say which of its frames; if it has too few, the last one is repeated. Its frame rate is not
                looked at.
            on_step: called with (steps done, steps) after every sampler step.
            on_preview: called ``params.previews`` times with the steps done and what the video will look like: a few of
                its moments, uint8 RGB (n, height, width, 3).
            latents: initial video noise (1, c, t, h, w) in place of the seed's.
            sound_latents: initial sound noise (1, d, t), given with ``latents`` when sound is made.

        Raises:
            InvalidInput: this checkpoint or device cannot make the request, or picture or clip cannot be used.
            OSError: there is no such file, or it may not be read.
        """
        if params.prompt_upsampling:
            why = "only a server has a prompt upsampler; the prompt of this call may be a caption itself"
            raise InvalidInput("prompt_upsampling", params.prompt_upsampling, "false", why)
        timings: dict[str, float] = {}
        if self._budget is not None:
            self._budget.check(params)
        source = source_of(image, video)
        check_reference(params, None if source is None else source.kind)
        with self._timed("preprocess", timings):
            ids = self.prompt_encoder.encode(params)
        with self._timed("video_encode", timings):
            clean = None if source is None else self._encoded(source, params)
        with self._timed("denoise", timings):
            noise = None if latents is None else Streams(latents, sound_latents)
            on_step = on_step or (lambda _done, _steps: None)
            show = partial(self._show, on_preview)
            made = self.denoiser(ids, params, clean=clean, noise=noise, on_step=on_step, show=show)
        with self._timed("video_decode", timings):
            frames = np.concatenate(list(self.video_decoder.frames(made.video)))
        with self._timed("sound_decode", timings):
            sound_decoder = None if made.sound is None else self.sound_decoder
            waveform = None if sound_decoder is None else sound_decoder(made.sound)
        with self._timed("to_cpu", timings):
            video_made, *sound_made = (stream.cpu() for stream in made.present)
            waveform = None if waveform is None else waveform.cpu().numpy()
        rate = None if sound_decoder is None else sound_decoder.config.sample_rate
        sound = sound_made[0] if sound_made else None
        return GenerationResult(video_made, sound, frames, waveform, rate, params.fps, timings)

    def _show(self, on_preview: OnPreview | None, step: int, snippets: Tensor) -> None:
        if on_preview is not None:
            moments = (list(self.video_decoder.frames(latents[None]))[-1][-1] for latents in snippets)
            on_preview(step, np.stack(list(moments)))

    def _encoded(self, source: Source, params: GenerationParams) -> CleanFrames:
        """Encode the frames of a picture or clip that clean latent frames depend on, and no others."""
        if self.video_encoder is None:
            why = "the checkpoint has no video encoder"
            raise InvalidInput(PARAM, NAMES[source.kind], "no picture and no clip", why)
        indexes = clean_frames(params, source.kind)
        frames = source.frames(reference_frames(params, source.kind), params.condition_video_keep)
        return CleanFrames(self.video_encoder(cover(some, params.height, params.width) for some in frames), indexes)

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.denoiser.transformer.device.type == "cuda":
            torch.cuda.synchronize()
        timings[stage] = time.perf_counter() - start
