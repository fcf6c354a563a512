"""From token ids to clean latents: noise, guidance and the sampling loop."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmos3_models.approximations import EXACTLY, Approximation
from cosmos3_models.checkpoint.configs import SchedulerConfig, SoundDecoderConfig, require_sound
from cosmos3_models.errors import InvalidInput, Stopped
from cosmos3_models.parallel.split import WHOLE, Split
from cosmos3_models.parallel.world import World
from cosmos3_models.params import GenerationParams
from cosmos3_models.sampling.clean_frames import CleanFrames
from cosmos3_models.sampling.guided_velocity import GuidedVelocity
from cosmos3_models.sampling.plan import passes_by_step
from cosmos3_models.sampling.previews import NO_PREVIEWS, Previews, clean_estimate, preview_steps, snippets
from cosmos3_models.sampling.schedules import Schedule, make_schedule
from cosmos3_models.sampling.solver import UniPC
from cosmos3_models.shapes import PIXELS_PER_LATENT, LatentGrid, sound_latent_frames
from cosmos3_models.text.prompt import PromptIds
from cosmos3_models.transformer.generation_tower import Condition, Streams
from cosmos3_models.transformer.model import Transformer

OnStep = Callable[[int, int], None]
"""Called after each sampler step with the number of steps done and of all steps."""

ShouldStop = Callable[[], bool]
"""Called before each sampler step; True ends the run with ``Stopped``."""

Velocity = Callable[[Streams, int, int], list[Streams]]
"""The model's velocities at noisy latents and a timestep, for each of the first prompts; the number says how many."""

WARM_UP_TOKENS = 16


class VideoDenoiser:
    """Denoises requests: prompts' token ids and parameters in, clean latents out.

    Args:
        sound: the config of the checkpoint's sound decoder; None if it cannot make sound.
        world: the processes that make each video together; each calls its own denoiser with the same arguments, gets
            the same latents, and stops when rank 0 does.
    """

    def __init__(
        self,
        transformer: Transformer,
        scheduler: SchedulerConfig,
        sound: SoundDecoderConfig | None,
        world: World | None = None,
    ) -> None:
        self.transformer = transformer
        self._scheduler = scheduler
        self._sound = sound
        self._world = world or World()

    def within(self, world: World) -> "VideoDenoiser":
        """This denoiser as one rank of several."""
        return VideoDenoiser(self.transformer, self._scheduler, self._sound, world)

    def __call__(
        self,
        ids: PromptIds,
        params: GenerationParams,
        *,
        clean: CleanFrames | None = None,
        noise: Streams | None = None,
        on_step: OnStep = lambda _done, _steps: None,
        should_stop: ShouldStop = lambda: False,
        show: Callable[[int, Tensor], None] = lambda _step, _snippets: None,
    ) -> Streams:
        """Make the latents of one video.

        Args:
            show: as ``Previews`` has it, of the request's previews.
            clean: latent frames of a picture or clip that the video begins with or passes through.
            noise: initial latents of ``latent_shapes``; by default ``draw_noise`` of ``params.seed``.

        Returns:
            fp32 streams of ``latent_shapes`` on the model's device. The clean frames are those given, bit for bit.

        Raises:
            InvalidInput: sound from a checkpoint without sound, noise or clean frames of the wrong shape, or an
                approximation that this device or model cannot compute.
            Stopped: ``should_stop`` returned True.
        """
        shapes = self.latent_shapes(params)
        noise = draw_noise(shapes, params.seed) if noise is None else _checked(noise, shapes)
        prompts = [torch.tensor(text)[None] for text in (ids.positive, ids.negative) if text is not None]
        schedule = make_schedule(params.sigma_schedule, params.num_inference_steps, params.flow_shift, self._scheduler)
        noise = Streams(*(stream.to(self.transformer.device, torch.float32) for stream in noise.present))
        start = noise if clean is None else clean.put_into(noise)
        plan = passes_by_step(schedule.steps, len(prompts), params.velocity_reuse, params.guidance_reuse)
        velocity = self._velocity(prompts, shapes, params, plan)
        guided = GuidedVelocity(params.guidance_scale, plan)
        previews = Previews(preview_steps(params.previews, schedule.steps), show)
        return denoise(velocity, start, schedule, guided, on_step, self._world.agreed(should_stop), previews)

    def arrays(
        self,
        ids: PromptIds,
        params: GenerationParams,
        *,
        clean: CleanFrames | None = None,
        on_step: OnStep,
        should_stop: ShouldStop,
        show: Callable[[int, NDArray[np.float32]], None],
    ) -> list[NDArray[np.float32]]:
        """Make the latents as the call does, as contiguous fp32 arrays in host memory: video, then sound if any."""

        def copied(step: int, snippets: Tensor) -> None:
            show(step, to_numpy(snippets))

        latents = self(ids, params, clean=clean, on_step=on_step, should_stop=should_stop, show=copied)
        return [to_numpy(stream) for stream in latents.present]

    def warm_up(self, approximation: Approximation = EXACTLY) -> None:
        """Compile and load what requests with this approximation need, by running the smallest one.

        Raises:
            InvalidInput: this device or model cannot compute it.
        """
        ids = np.zeros(WARM_UP_TOKENS, dtype=np.int64)
        side = 2 * PIXELS_PER_LATENT
        small = GenerationParams(prompt="x", num_frames=5, height=side, width=side, num_inference_steps=2)
        self(PromptIds(ids, ids), small.model_copy(update=approximation.model_dump()))

    def latent_shapes(self, params: GenerationParams) -> list[tuple[int, ...]]:
        """The shapes of a request's latents: (1, c, t, h, w) of the video and, with sound, (1, d, t) of the sound.

        Raises:
            InvalidInput: sound from a checkpoint without sound.
        """
        config = self.transformer.config
        grid = params.grid
        video = (1, config.latent_channel, grid.frames, grid.height, grid.width)
        if not params.generate_sound:
            return [video]
        sound = require_sound(self._sound)
        frames = sound_latent_frames(params.num_frames, params.fps, sound.sample_rate, sound.hop)
        return [video, (1, sound.latent_dim, frames)]

    def _velocity(
        self,
        prompts: Sequence[Tensor],
        shapes: Sequence[tuple[int, ...]],
        params: GenerationParams,
        plan: Sequence[int],
    ) -> Velocity:
        """The model, bound to one request.

        Several ranks share a pass of the prompt alone in another way than passes of both prompts.

        Args:
            shapes: of the latents.
            plan: the passes of each step.
        """
        grid, sound_frames = LatentGrid(*shapes[0][2:]), shapes[1][2] if len(shapes) > 1 else None

        def bound(split: Split, passes: int) -> Velocity:
            own = split.branches.share(prompts[:passes])
            conditions = self.transformer.conditions(own, grid, params.fps, sound_frames, split.context)
            return velocity_function(self.transformer, conditions, params, split)

        most = {self._world.split(passes): passes for passes in sorted({*plan}) if passes}
        by_split = {split: bound(split, passes) for split, passes in most.items()}

        def velocity(streams: Streams, timestep: int, passes: int) -> list[Streams]:
            return by_split[self._world.split(passes)](streams, timestep, passes) if passes else []

        return velocity


def velocity_function(
    transformer: Transformer,
    conditions: Sequence[Condition],
    approximation: Approximation = EXACTLY,
    split: Split = WHOLE,
) -> Velocity:
    """Bind the model to the conditions of one request: that of its prompt and, with guidance, of the negative one.

    Args:
        conditions: with a ``split``, those of this rank; the velocities are those of all prompts on every rank.

    Raises:
        InvalidInput: an approximation that this device or model cannot compute.
    """
    precision = transformer.precision(approximation)

    def velocity(streams: Streams, timestep: int, prompts: int) -> list[Streams]:
        own = [
            transformer(streams, timestep, condition, precision, split.context)
            for condition in conditions[: prompts // split.branches.size]
        ]
        by_stream = zip(*(branch.present for branch in own), strict=True)
        gathered = [split.branches.gather(stream) for stream in by_stream]
        return [Streams(*present) for present in zip(*gathered, strict=True)]

    return velocity


@torch.inference_mode()
def denoise(
    velocity: Velocity,
    start: Streams,
    schedule: Schedule,
    guided_velocity: GuidedVelocity,
    on_step: OnStep,
    should_stop: ShouldStop,
    previews: Previews = NO_PREVIEWS,
) -> Streams:
    """Follow the velocity from noise to data with one UniPC solver for each stream.

    Args:
        start: noise and clean frames, fp32 on the model's device; left as they are.
        guided_velocity: of this run alone.
        previews: of the video, with the clean frames of ``start``.

    Returns:
        Latents without noise, fp32, shaped like ``start``, with the clean frames of ``start``.

    Raises:
        Stopped: ``should_stop`` returned True.
    """
    solvers = [UniPC(schedule.sigmas, stream) for stream in start.present]
    streams = start
    steps = zip(schedule.timesteps, schedule.sigmas[:-1], guided_velocity.plan, strict=True)
    for done, (timestep, sigma, prompts) in enumerate(steps, start=1):
        if should_stop():
            raise Stopped
        branches = [branch.present for branch in velocity(streams, timestep, prompts)]
        guided = guided_velocity(float(sigma), branches)
        stepped = [solver.step(stream) for solver, stream in zip(solvers, guided, strict=True)]
        noisy, streams = streams, start.replaced(stepped)  # a velocity of 0 moves a clean frame by rounding alone
        _wait(start.video.device)
        on_step(done, schedule.steps)
        if done in previews.steps:
            estimate = clean_estimate(noisy.video, guided[0], float(sigma))
            previews.show(done, snippets(start.replaced([estimate]).video))
    return streams


def _wait(device: torch.device) -> None:
    """Wait until the device has finished the step. Otherwise progress would run ahead of it, and a stop come late."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def draw_noise(shapes: Sequence[tuple[int, ...]], seed: int) -> Streams:
    """Draw standard normal noise, fp32 in host memory.

    Every stream has a fresh numpy ``RandomState``, as in the official code.

    Args:
        shapes: of the video and, with sound, of the sound.
        seed: 0 to 2**32 - 1.
    """
    draws = (np.random.RandomState(seed).standard_normal(shape).astype(np.float32) for shape in shapes)
    return Streams(*(torch.from_numpy(draw) for draw in draws))


def _checked(noise: Streams, shapes: Sequence[tuple[int, ...]]) -> Streams:
    got = [tuple(stream.shape) for stream in noise.present]
    if got != list(shapes):
        raise InvalidInput("latents", got, f"{shapes}", "these are the latent shapes of the requested video")
    return noise


def to_numpy(latents: Tensor) -> NDArray[np.float32]:
    """Copy latents to a contiguous fp32 array in host memory."""
    return latents.detach().float().cpu().contiguous().numpy()
