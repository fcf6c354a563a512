"""The model stages between media and latents; ``stages`` has the others, and what is true of all of them."""

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.configs import require_sound
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.media import isolated
from cosmos3_models.media.limits import WALL_SECONDS
from cosmos3_models.media.mp4 import VideoWriter, encode_chunks, encode_sound
from cosmos3_models.media.pictures import encode_picture, side_by_side
from cosmos3_models.media.reading import Keep
from cosmos3_models.references import ReferenceKind, reference_frames
from cosmos3_models.resources.cost import reference_flops, sound_decode_flops, video_decode_flops
from cosmos3_models.shapes import LatentGrid
from serve.errors import ContentRefused
from serve.graph.messages import LATENTS_COMPLETE, DecodedSound, DecodedVideo
from serve.graph.worker import Patience, Turn, Worker, logged, seconds_at_most
from serve.guards.guard import FrameGuard, GuardSettings

SMALLEST = GenerationParams(prompt="x", num_frames=5, height=16, width=16)
"""The request with which a stage proves that it works."""


class VideoEncoder:
    """Turns a picture or the frames of a clip into clean latents. It loads nothing if the checkpoint has no encoder.

    Args:
        checkpoint: a folder, a model on the Hugging Face Hub, or ``demo``.
        device: cpu or cuda.
        patience: how long a caller or a step may be silent.
    """

    def __init__(self, checkpoint: str, device: str, patience: Patience) -> None:
        self._checkpoint = opened = Checkpoint.open(checkpoint, transformer=False)
        self._device = device
        self._worker = None
        if opened.has_video_encoder:
            from cosmos3_models.checkpoint import loading as weights

            with logged("Video encoder loaded and warmed up"):
                self._encoder = weights.load_video_encoder(opened, *weights.resolve_device(device))
                self._worker = Worker(self._warm_up, patience)

    async def encode(
        self, file: bytes, params: GenerationParams, kind: ReferenceKind
    ) -> AsyncGenerator[NDArray[np.float32] | str, None]:
        """Yield the latents that the clean frames of a video need, then ``LATENTS_COMPLETE``.

        The latents, fp32 (1, c, k, h, w) from the first latent frame to the last clean one, are an object of their own
        in Ray's store, so the graph passes them on without loading them.

        Args:
            file: a picture or clip in any format that ``cosmos3_models.media.reading`` accepts.
            params: the request, for size and clean frames.

        Raises:
            InvalidInput: the file cannot be read.
            RuntimeError: the checkpoint has no video encoder.
        """
        if self._worker is None:
            raise RuntimeError("a picture or clip reached a checkpoint without a video encoder")
        yield await self._worker.run(lambda turn: self._encode(file, params, kind, turn), WALL_SECONDS)
        yield LATENTS_COMPLETE

    async def check_health(self) -> None:
        """Raise ``Broken`` if the replica must be replaced; Serve calls this periodically."""
        if self._worker is not None:
            self._worker.check()

    def _warm_up(self) -> None:
        self._encoder.warm_up()
        black = np.zeros((SMALLEST.height, SMALLEST.width, 3), dtype=np.uint8)
        self._encode(encode_picture(black, "png"), SMALLEST, "image", Turn(0))

    def _encode(self, file: bytes, params: GenerationParams, kind: ReferenceKind, turn: Turn) -> NDArray[np.float32]:
        count, size = reference_frames(params, kind), (params.height, params.width)
        encode_s = seconds_at_most(reference_flops(self._checkpoint, params, kind), self._device)
        frames = _fitted_frames(file, count, params.condition_video_keep, size, turn, encode_s)
        with closing(frames):
            latents: NDArray[np.float32] = self._encoder(frames).cpu().numpy()
        return latents


class VideoDecoder:
    """Turns video latents into H.264, chunk by chunk, or those of one frame into an image.

    Args:
        checkpoint: a folder, a model on the Hugging Face Hub, or ``demo``.
        device: cpu or cuda.
        patience: how long a caller or a step may be silent.
        guard: what refuses frames; None: nothing does.
    """

    def __init__(self, checkpoint: str, device: str, patience: Patience, guard: GuardSettings | None = None) -> None:
        from cosmos3_models.checkpoint import loading as weights

        self._device = device
        self._guard = FrameGuard(guard)
        with logged("Video decoder loaded and warmed up"):
            opened = Checkpoint.open(checkpoint, transformer=False)
            self._decoder = weights.load_video_decoder(opened, *weights.resolve_device(device))
            self._worker = Worker(self._warm_up, patience)

    async def decode(
        self,
        latents: NDArray[np.float32],
        params: GenerationParams,
        arrays: bool = False,
        clip: bytes | None = None,
        clip_frames: int = 0,
    ) -> DecodedVideo:
        """Decode and encode a video, or an image if the request is for one frame.

        Args:
            latents: fp32 (1, c, t, h, w).
            params: their request, for size, length and frame rate.
            arrays: return the frames as well, but not those of ``clip``.
            clip: the file that the video continues; its frames come first, and those that both share once.
            clip_frames: of the file.

        Raises:
            ContentRefused: the guard refuses some of the frames, so none of them leave the stage.
        """
        if clip is None:
            longest_s = self._longest_s(latents)
            return await self._worker.run(lambda turn: self._decode(latents, params, arrays, turn), longest_s)
        return await self._worker.run(
            lambda turn: self._continued(latents, params, clip, clip_frames, turn), WALL_SECONDS
        )

    async def preview(self, snippets: NDArray[np.float32]) -> AsyncGenerator[bytes, None]:
        """Yield a JPEG of what a preview shows of an unfinished video: its moments side by side, small.

        Args:
            snippets: fp32 (n, c, k, h, w), as ``cosmos3_models.sampling.previews`` takes them.
        """
        longest_s = len(snippets) * self._longest_s(snippets)
        yield await self._worker.run(lambda turn: self._preview(snippets, turn), longest_s)

    def _preview(self, snippets: NDArray[np.float32], turn: Turn) -> bytes:
        moments = []
        for latents in snippets:
            *_, frames = self._frames(latents[None], turn)
            moments.append(frames[-1])
        return side_by_side(moments)

    def _continued(
        self, latents: NDArray[np.float32], params: GenerationParams, clip: bytes, clip_frames: int, turn: Turn
    ) -> DecodedVideo:
        """Encode all frames of a clip, then the new ones without those that they share with the clip."""
        shared = reference_frames(params, "video")

        def chunks() -> Iterator[NDArray[np.uint8]]:
            size = params.height, params.width
            longest_s = self._longest_s(latents)
            with closing(_fitted_frames(clip, clip_frames, "first", size, turn, longest_s)) as before:
                yield from self._permitted(before, turn, longest_s)
            skip = shared
            for frames in self._frames(latents, turn):
                if skip < len(frames):
                    yield frames[skip:]
                skip = max(0, skip - len(frames))

        total = clip_frames + params.num_frames - shared
        with VideoWriter(total, params.height, params.width, params.fps) as writer:
            return DecodedVideo.of(encode_chunks(writer, chunks()))

    async def check_health(self) -> None:
        """Raise ``Broken`` if the replica must be replaced; Serve calls this periodically."""
        self._worker.check()

    def _warm_up(self) -> None:
        self._decoder.warm_up()
        latents = np.zeros((1, self._decoder.config.z_dim, 2, 1, 1), dtype=np.float32)
        with suppress(ContentRefused):  # the guard works as well
            self._decode(latents, SMALLEST, False, Turn(0))

    def _longest_s(self, latents: NDArray[np.float32]) -> float:
        """Return the seconds of the whole video on the slowest device; its chunks differ too much to be compared."""
        return seconds_at_most(video_decode_flops(self._decoder.config, LatentGrid(*latents.shape[2:])), self._device)

    def _decode(self, latents: NDArray[np.float32], params: GenerationParams, arrays: bool, turn: Turn) -> DecodedVideo:
        collected = []

        def chunks() -> Iterator[NDArray[np.uint8]]:
            for frames in self._frames(latents, turn):
                if arrays:
                    collected.append(frames)
                yield frames

        if params.num_frames == 1:
            (frames,) = self._frames(latents, turn)
            return DecodedVideo.of_image(frames[0], frames if arrays else None)
        with VideoWriter(params.num_frames, params.height, params.width, params.fps) as writer:
            track = encode_chunks(writer, chunks())
        return DecodedVideo.of(track, np.concatenate(collected) if arrays else None)

    def _frames(self, latents: NDArray[np.float32], turn: Turn) -> Iterator[NDArray[np.uint8]]:
        """Decode chunk by chunk, each of them a step of the worker's turn, and its check another one."""
        longest_s = self._longest_s(latents)
        return self._permitted(_in_steps(self._decoder.frames(latents), turn, longest_s), turn, longest_s)

    def _permitted(
        self, chunks: Iterator[NDArray[np.uint8]], turn: Turn, longest_s: float
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield frames once the guard has permitted them: all frames that leave this stage come from here.

        Args:
            longest_s: the longest expected time until the next chunk.
        """
        for frames in chunks:
            turn.step(self._guard.timeout_s)
            self._guard.check(frames)
            turn.step(longest_s)
            yield frames


class SoundDecoder:
    """Turns sound latents into AAC. It loads nothing if the checkpoint has no sound.

    Args:
        checkpoint: a folder, a model on the Hugging Face Hub, or ``demo``.
        device: cpu or cuda.
        patience: how long a caller or a step may be silent.
    """

    def __init__(self, checkpoint: str, device: str, patience: Patience) -> None:
        from cosmos3_models.checkpoint import loading as weights

        opened = Checkpoint.open(checkpoint, transformer=False)
        self._config, self._device = opened.sound, device
        self._worker = None
        if opened.sound is not None:
            with logged("Sound decoder loaded and warmed up"):
                self._decoder = weights.load_sound_decoder(opened, *weights.resolve_device(device))
                self._worker = Worker(self._warm_up, patience)

    async def decode(self, latents: NDArray[np.float32], arrays: bool = False, silence_s: float = 0.0) -> DecodedSound:
        """Decode and encode a sound track.

        Args:
            latents: fp32 (1, d, t).
            arrays: return the waveform as well.
            silence_s: seconds of silence before it.

        Raises:
            RuntimeError: the checkpoint has no sound decoder.
        """
        if self._worker is None:
            raise RuntimeError("sound latents reached a checkpoint without a sound decoder")
        longest_s = seconds_at_most(sound_decode_flops(require_sound(self._config), latents.shape[2]), self._device)
        return await self._worker.run(lambda _: self._decode(latents, arrays, silence_s), longest_s)

    async def check_health(self) -> None:
        """Raise ``Broken`` if the replica must be replaced; Serve calls this periodically."""
        if self._worker is not None:
            self._worker.check()

    def _warm_up(self) -> None:
        self._decoder.warm_up()
        self._decode(np.zeros((1, self._decoder.config.latent_dim, 1), dtype=np.float32), False)

    def _decode(self, latents: NDArray[np.float32], arrays: bool, silence_s: float = 0.0) -> DecodedSound:
        waveform = self._decoder.waveform(latents)
        if silence := max(0, round(silence_s * self._decoder.config.sample_rate)):
            waveform = np.pad(waveform, ((0, 0), (silence, 0)))
        track = encode_sound(waveform, self._decoder.config.sample_rate)
        return DecodedSound(track, waveform if arrays else None)


def _fitted_frames(
    file: bytes, count: int, keep: Keep, size: tuple[int, int], turn: Turn, work_s: float
) -> Generator[NDArray[np.uint8], None, None]:
    """Yield frames of a picture or clip, read in a process of its own and fitted to a height and width.

    The wait for a frame and the work with it are steps of the turn. The first has a time limit of its own, so that only
    the second can hang.

    Args:
        count, keep: as ``isolated.frames`` takes them.
        work_s: seconds that the caller's work with a frame, or after the last one, can take at most.
    """
    from cosmos3_models.media.resize import cover

    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference"
        path.write_bytes(file)
        with closing(isolated.frames(path, count, keep)) as chunks:
            turn.step(WALL_SECONDS)
            for frames in _in_steps(chunks, turn, work_s):
                yield cover(frames, *size)
                turn.step(WALL_SECONDS)
            turn.step(work_s)


def _in_steps(chunks: Iterator[NDArray[np.uint8]], turn: Turn, longest_s: float) -> Iterator[NDArray[np.uint8]]:
    """Yield chunks as steps of a turn, between which it can be stopped."""
    for frames in chunks:
        turn.raise_if_stopped()
        turn.step(longest_s)
        yield frames
