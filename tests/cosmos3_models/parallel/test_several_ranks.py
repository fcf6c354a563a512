"""Videos that several processes make together are those of one process."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
import torch.multiprocessing as mp

from cosmos3_models import InvalidInput
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.parallel.world import check_world, open_store
from cosmos3_models.sampling.denoise import VideoDenoiser
from cosmos3_models.transformer.model import Transformer

SIZES = (2, 3, 4)
EVERY_RANK = [(size, rank) for size in SIZES for rank in range(size)]
TOLERANCE = 1e-6  # a CPU's matrix products of a few rows round in another way than those of many
FEW_TOLERANCE = 5e-6  # where a rank has no token at all, and one process two
FP8_TOLERANCE = 3e-4  # where that moves a value across a limit between two of e4m3 or of bf16

Found = dict[str, Any]


@pytest.fixture(scope="module")
def build(tiny_checkpoint: Path) -> ranks.Build:
    """Builds the same denoiser in every process; its 12 key and value heads suit every size of world."""
    opened = Checkpoint.open(tiny_checkpoint)
    config = opened.transformer.model_copy(update={"num_attention_heads": 24, "num_key_value_heads": 12})
    transformer = tiny.randomize(Transformer(config), 1).eval().requires_grad_(False)
    return partial(VideoDenoiser, transformer, opened.scheduler, opened.sound)


@pytest.fixture(scope="module")
def found(build: ranks.Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``ranks.run_all`` wrote, by the names of its files."""
    out = tmp_path_factory.mktemp("ranks")
    stores = {size: open_store(size, ranks.PATIENT_S) for size in SIZES}
    impatient = open_store(2, ranks.PATIENT_S)
    ports = {size: store.port for size, store in stores.items()}
    mp.spawn(ranks.run_all, (build, ports, impatient.port, out), nprocs=max(SIZES))
    return {file.name: torch.load(file) for file in out.iterdir()}


@pytest.mark.parametrize("case", ranks.CASES)
@pytest.mark.parametrize("size", SIZES)
def test_several_processes_make_what_one_makes(found: Found, size: int, case: str, record_property: Any) -> None:
    made = found[f"0 of {size}"]["made"][case]
    errors = [tiny.relative_error(got, expected) for got, expected in zip(made, found["alone"][case], strict=True)]
    record_property("relative errors", dict(zip(("video", "sound"), errors, strict=False)))
    assert max(errors) <= (FP8_TOLERANCE if "fp8" in case else FEW_TOLERANCE if "fewer" in case else TOLERANCE)


def test_the_cases_in_fp8_differ_from_each_other(found: Found) -> None:
    linears, attention = (found["alone"][case][0] for case in ("fp8 linears", "fp8 attention"))
    assert tiny.relative_error(linears, attention) > 10 * FP8_TOLERANCE


@pytest.mark.parametrize(("size", "rank"), EVERY_RANK)
def test_all_ranks_and_attempts_give_the_same_bytes(found: Found, size: int, rank: int) -> None:
    first, here = found[f"0 of {size}"]["made"], found[f"{rank} of {size}"]
    for case, streams in first.items():
        for one, other, again in zip(streams, here["made"][case], here["again"][case], strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, again)


@pytest.mark.parametrize(("size", "rank"), EVERY_RANK)
def test_rank_0_alone_decides_when_to_stop(found: Found, size: int, rank: int) -> None:
    assert found[f"{rank} of {size}"]["steps until stop"] == [[1, 2, -1], [1, 2, 3]]


def test_a_rank_waits_for_a_silent_one_only_as_long_as_it_was_told_to(found: Found) -> None:
    error, seconds = found["silence 0"]
    assert "imed out" in error
    assert seconds < 5 * ranks.IMPATIENT_S


@pytest.mark.parametrize("size", [0, 3, 4, 16])
def test_ranks_that_cannot_share_the_heads_equally_are_refused(tiny_checkpoint: Path, size: int) -> None:
    config = Checkpoint.open(tiny_checkpoint).transformer
    with pytest.raises(InvalidInput, match=rf"gpus_per_denoiser: got {size}, expected one of 1, 2, because"):
        check_world(size, config)
    check_world(2, config)
    check_world(1, config)
