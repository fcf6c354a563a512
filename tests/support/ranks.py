"""What each of several processes does that make videos together. Nothing here imports pytest or diffusers."""

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos3_models import GenerationParams
from cosmos3_models.errors import Stopped
from cosmos3_models.parallel.world import SeveralRanks, World, open_store
from cosmos3_models.sampling.clean_frames import CleanFrames
from cosmos3_models.sampling.denoise import VideoDenoiser
from cosmos3_models.text.prompt import PromptIds
from cosmos3_models.transformer import model
from cosmos3_models.transformer.generation_tower import Streams

GUIDED = PromptIds(np.arange(5, 30), np.arange(5, 14))
UNGUIDED = PromptIds(np.arange(5, 30), None)
PATIENT_S, IMPATIENT_S = 240.0, 1.0

Build = Callable[[World | None], VideoDenoiser]
Case = Callable[[VideoDenoiser], Any]


def params(**fields: Any) -> GenerationParams:
    """A video of 27 tokens, or 37 with sound, so that parts must be filled up.

    The guidance is weak, because it enlarges differences in rounding.
    """
    size = {"height": 80, "width": 80, "num_frames": 9}
    small = {"prompt": "x", "num_inference_steps": 3, "guidance_scale": 2.0, **size}
    return GenerationParams(**small | fields)


def clean(*indexes: int) -> CleanFrames:
    """Latent frames of a picture or clip."""
    frames = torch.randn(1, 8, len(indexes), 5, 5, generator=torch.Generator().manual_seed(0))
    return CleanFrames(frames, indexes)


def offloaded(denoise: VideoDenoiser) -> VideoDenoiser:
    """The same with the text tower's weights in host memory, here a second copy of them."""
    other = copy.copy(denoise)
    other.transformer = copy.deepcopy(denoise.transformer)
    other.transformer.text.offload(other.transformer.device, torch.float32)
    return other


def in_bf16(denoise: VideoDenoiser) -> VideoDenoiser:
    other = copy.copy(denoise)
    other.transformer = copy.deepcopy(denoise.transformer).bfloat16()
    other.transformer.generation.time_embedder.float()
    return other


def in_fp8(denoise: VideoDenoiser, **fields: Any) -> Streams:
    """A video of 75 tokens: only equal sums give equal fp8, and a CPU sums few rows in another way."""
    return in_bf16(denoise)(GUIDED, params(height=160, width=160, **fields))


CASES: dict[str, Case] = {
    "text": lambda denoise: denoise(GUIDED, params()),
    "one frame": lambda denoise: denoise(GUIDED, params(num_frames=1)),
    "fewer tokens than ranks": lambda denoise: denoise(GUIDED, params(height=16, width=32, num_frames=5)),
    "sound": lambda denoise: denoise(GUIDED, params(generate_sound=True)),
    "picture and sound": lambda denoise: denoise(GUIDED, params(generate_sound=True), clean=clean(0)),
    "clip": lambda denoise: denoise(GUIDED, params(), clean=clean(0, 1)),
    "text tower in host memory": lambda denoise: offloaded(denoise)(GUIDED, params()),
    "no guidance": lambda denoise: denoise(UNGUIDED, params(guidance_scale=1.0, generate_sound=True)),
    "guidance reuse": lambda denoise: denoise(GUIDED, params(guidance_reuse=2, num_inference_steps=6)),
    "fast": lambda denoise: denoise(GUIDED, params(profile="fast", guidance_reuse=2, num_inference_steps=9)),
    "fp8 linears": lambda denoise: in_fp8(denoise, fp8_linears=True),
    "fp8 attention": lambda denoise: in_fp8(denoise, fp8_attention=True),
    "fp8 without guidance": lambda denoise: in_bf16(denoise)(
        UNGUIDED, params(guidance_scale=1.0, height=160, width=160, fp8_linears=True, fp8_attention=True)
    ),
}


def results(denoise: VideoDenoiser) -> dict[str, list[Tensor]]:
    return {name: case(denoise).present for name, case in CASES.items()}


def run_all(process: int, build: Build, ports: dict[int, int], impatient_port: int, out: Path) -> None:
    """Make every case alone and in every size of world to which this process belongs, then see a rank fall silent."""
    model.check_fp8 = lambda *_: None  # what its definitions in PyTorch compute, a CPU can, too
    torch.set_num_threads(1)  # as many as alone: sums are divided among threads
    if process == 0:
        torch.save(results(build(None)), out / "alone")
    for size, port in ports.items():
        if process < size:
            world = SeveralRanks(process, size, open_store(size, PATIENT_S, port), PATIENT_S)
            denoise = build(world)
            found = {"made": results(denoise), "again": results(denoise), "steps until stop": stopped(denoise, process)}
            torch.save(found, out / f"{process} of {size}")
            world.leave()
    if process < 2:
        torch.save(silence(process, build, impatient_port), out / f"silence {process}")
        os._exit(0)  # a clean end would wait for the other rank


def stopped(denoise: VideoDenoiser, rank: int) -> list[list[int]]:
    """The steps done before a stop that rank 0 asks for, then those that all other ranks ask for."""
    counts = []
    for stops in (rank == 0, rank != 0):
        steps: list[int] = []
        try:
            denoise(
                GUIDED,
                params(),
                on_step=lambda done, _, steps=steps: steps.append(done),
                should_stop=lambda steps=steps, stops=stops: stops and len(steps) == 2,
            )
        except Stopped:
            steps.append(-1)
        counts.append(steps)
    return counts


def silence(rank: int, build: Build, port: int) -> tuple[str, float]:
    """How rank 0 ends, and its seconds since its last step, while rank 1 does nothing after the first one."""
    world = SeveralRanks(rank, 2, open_store(2, PATIENT_S, port), IMPATIENT_S)
    denoise, start = build(world), time.monotonic()

    def on_step(done: int, _steps: int) -> None:
        nonlocal start
        start = time.monotonic()
        if rank == 1 and done == 1:
            time.sleep(10 * IMPATIENT_S)

    try:
        denoise(GUIDED, params(), on_step=on_step)
    except RuntimeError as error:
        return str(error), time.monotonic() - start
    return "no error", time.monotonic() - start
