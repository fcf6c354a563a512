"""The demo's videos on several GPUs of one host are those of one. Skipped where there is one GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from cosmos3_models import Cosmos3Pipeline, GenerationParams
from cosmos3_models.parallel.world import SeveralRanks, open_store
from cosmos3_models.sampling.clean_frames import CleanFrames
from cosmos3_models.sampling.denoise import VideoDenoiser
from cosmos3_models.text.prompt import PromptIds
from cosmos3_models.transformer.attention import HOPPER

GPUS = torch.cuda.device_count()
SIZES = [size for size in (2, 4) if size <= GPUS]  # of which each divides the demo's heads
WAIT_S = 120.0
LARGEST = 0.03  # relative distance from one GPU, where a product of fewer rows runs in another kernel

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not SIZES, reason="fewer than two GPUs")]

CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "sound": {"generate_sound": True},
    "picture": {"generate_sound": True},
    "no guidance": {"guidance_scale": 1.0},
    "fast": {"profile": "fast", "num_inference_steps": 9},
    "fp8": {"fp8_linears": True, "fp8_attention": True},
}


def video(denoise: VideoDenoiser, case: str) -> list[Tensor]:
    fields = {"prompt": "x", "height": 192, "width": 192, "num_frames": 33, "num_inference_steps": 4} | CASES[case]
    params = GenerationParams(**fields)
    draw, vocabulary = np.random.default_rng(0), denoise.transformer.config.vocab_size
    positive, negative = draw.integers(0, vocabulary, 40), draw.integers(0, vocabulary, 12)
    ids = PromptIds(positive, None if params.guidance_scale == 1 else negative)
    frame = torch.randn(denoise.latent_shapes(params)[0], generator=torch.Generator().manual_seed(0))[:, :, :1]
    clean = CleanFrames(frame, (0,)) if case == "picture" else None
    return [stream.cpu() for stream in denoise(ids, params, clean=clean).present]


def make_all(rank: int, size: int, port: int, device: str, out: Path) -> None:
    """What each process does: every case it can, alone and twice with the others."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    alone = Cosmos3Pipeline.from_pretrained("demo", device).denoiser
    fp8 = device == "cuda" and torch.cuda.get_device_capability() >= HOPPER
    cases = [case for case in CASES if fp8 or "fp8" not in case]
    world = SeveralRanks(rank, size, open_store(size, WAIT_S, port), WAIT_S, device)
    together = alone.within(world)
    made = {case: [video(denoise, case) for denoise in (alone, together, together)] for case in cases}
    torch.save(made, out / str(rank))
    world.leave()


@pytest.mark.parametrize("size", SIZES)
def test_several_gpus_make_what_one_makes_and_all_the_same(size: int, tmp_path: Path, record_property: Any) -> None:
    check(size, "cuda", tmp_path, record_property)


def check(size: int, device: str, folder: Path, record_property: Any) -> None:
    store = open_store(size, WAIT_S)
    spawn(make_all, (size, store.port, device, folder), nprocs=size)
    first, *others = (torch.load(folder / str(rank)) for rank in range(size))
    for case, (alone, together, again) in first.items():
        for stream, (one, several) in enumerate(zip(alone, together, strict=True)):
            same = (again, *(made for other in others for made in other[case][1:]))
            assert all(torch.equal(several, made[stream]) for made in same), case
            off = float((several - one).norm() / one.norm())
            record_property(f"{size} GPUs, {case}", {f"stream {stream}": f"{off:.1e} off" if off else "the same bytes"})
            assert off <= LARGEST, case
