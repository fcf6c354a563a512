"""All that is wrong with a folder is found at once, in lines that stay few, from configs and headers alone."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sparse_nano import nano_tensors, write_shards, write_sparse, write_sparse_nano

from cosmos3_models.checkpoint.comparison import LISTED, differences, pattern_of
from cosmos3_models.checkpoint.folder import DEMO_FOLDER, Checkpoint
from cosmos3_models.checkpoint.inspection import checkpoint_problems, contents
from cosmos3_models.checkpoint.tensor_files import TensorFiles

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHARD = "diffusion_pytorch_model-00002-of-00004.safetensors"
TENSORS = nano_tensors()
UP = "layers.{0-35}.mlp_moe_gen.up_proj.weight"
MORE_SOUND = {f"block.{i}.weight_{part}": [1] for i in range(9) for part in "gv"}


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return write_sparse_nano(tmp_path / "Cosmos3-Nano")


def told(folder: Path) -> list[str]:
    return [str(error).removeprefix(f"{folder}/") for error in checkpoint_problems(folder)]


def test_the_demo_has_no_problem() -> None:
    assert checkpoint_problems(DEMO_FOLDER) == []


def test_a_folder_of_nanos_tensors_has_no_problem_takes_no_disk_and_little_time(nano: Path) -> None:
    started = time.process_time()
    assert told(nano) == []
    assert time.process_time() - started < 20
    assert sum(file.stat().st_blocks * 512 for file in nano.rglob("*") if file.is_file()) < 50e6
    found = contents(Checkpoint.open(nano))
    assert [(name, holds.tensors) for name, holds in found.items()] == [
        ("transformer", 814),
        ("vae", 196),
        ("sound_tokenizer", 249),
    ]
    assert found["transformer"].types == {"BF16": 814}
    assert found["transformer"].file_bytes == pytest.approx(2 * 15173669120, rel=1e-3)


def without(part: str) -> dict[str, list[int]]:
    return {name: shape for name, shape in TENSORS["transformer"].items() if part not in name}


def wider(shapes: dict[str, list[int]], part: str) -> dict[str, list[int]]:
    return {name: [*shape[:-1], shape[-1] + 1] if part in name else shape for name, shape in shapes.items()}


def truncate(file: Path) -> None:
    with file.open("rb+") as opened:
        opened.truncate(file.stat().st_size - 1)


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        pytest.param(lambda f: shutil.rmtree(f), ["no such folder"], id="no folder"),
        pytest.param(
            lambda f: (f / "vae/config.json").unlink(), ["vae/config.json: the file is missing"], id="no config"
        ),
        pytest.param(
            lambda f: ((f / "vae/config.json").write_text("{"), (f / "transformer" / SHARD).unlink()),
            ["vae/config.json: not readable as JSON", f"transformer/{SHARD}: the file is missing"],
            id="broken config and no shard",
        ),
        pytest.param(
            lambda f: (f / "transformer" / SHARD).unlink(),
            [f"transformer/{SHARD}: the file is missing"],
            id="index names a missing shard",
        ),
        pytest.param(
            lambda f: [shard.unlink() for shard in (f / "transformer").glob("*-0000[2-4]-of-*")],
            [f"transformer/{SHARD}: the file is missing, and 2 more of the 4 that the index lists"],
            id="index names missing shards",
        ),
        pytest.param(
            lambda f: (truncate(f / "transformer" / SHARD), truncate(f / "vae" / WEIGHTS)),
            [f"transformer/{SHARD}: not a whole safetensors", f"vae/{WEIGHTS}: not a whole safetensors"],
            id="truncated",
        ),
        pytest.param(
            lambda f: write_shards(f / "transformer", without("mlp_moe_gen.up")),
            [f"transformer: missing tensor {UP} (36 tensors)"],
            id="missing tensors",
        ),
        pytest.param(
            lambda f: write_shards(f / "transformer", TENSORS["transformer"] | {"reward.weight": [2]}),
            ["transformer/diffusion_pytorch_model-00003-of-00004.safetensors: unexpected tensor reward.weight"],
            id="extra tensor",
        ),
        pytest.param(
            lambda f: write_sparse(f / "vae" / WEIGHTS, TENSORS["vae"] | {"head.0.bias": [1], "head.1.bias": [1]}),
            [f"vae/{WEIGHTS}: unexpected tensor head.{{0-1}}.bias (2 tensors)"],
            id="extra tensors",
        ),
        pytest.param(
            lambda f: write_shards(f / "transformer", wider(TENSORS["transformer"], "mlp_moe_gen.up")),
            [f"transformer: tensor {UP} (36 tensors): got shape [12288, 4097], expected [12288, 4096]"],
            id="wrong shape",
        ),
        pytest.param(
            lambda f: shutil.rmtree(f / "text_tokenizer"),
            ["text_tokenizer/tokenizer_config.json: the file is missing"],
            id="no tokenizer",
        ),
        pytest.param(
            lambda f: (
                write_sparse(f / "sound_tokenizer" / WEIGHTS, TENSORS["sound"] | {"encoder.x": [1]} | MORE_SOUND),
                write_shards(f / "transformer", without("audio_proj_in.bias")),
            ),
            [
                "transformer: missing tensor audio_proj_in.bias",
                f"sound_tokenizer/{WEIGHTS}: unexpected tensor block.{{0-8}}.weight (9 tensors)",
            ],
            id="several components",
        ),
    ],
)
def test_each_kind_of_broken_folder_is_told(
    nano: Path, break_it: Callable[[Path], object], expected: list[str]
) -> None:
    break_it(nano)
    for line, start in zip(told(nano), expected, strict=True):
        assert start in line


@pytest.mark.parametrize(("dtype", "itemsize"), [("I8", 1), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F64", 8)])
@pytest.mark.parametrize("scales", [False, True])
def test_weights_of_another_type_are_refused_with_and_without_scales(
    nano: Path, dtype: str, itemsize: int, scales: bool
) -> None:
    added = {f"{name}_scale": [1] for name in TENSORS["vae"]} if scales else {}
    write_sparse(nano / "vae" / WEIGHTS, TENSORS["vae"] | added, dtype, itemsize)
    first, *_ = told(nano)
    assert f"got numbers of type {dtype}, expected F32, F16, BF16" in first
    assert first.endswith("BF16" if dtype == "F64" else ", because scales of quantised weights are not read")


def test_a_thousand_missing_tensors_stay_readable(nano: Path) -> None:
    write_shards(nano / "transformer", {f"model.{name}": shape for name, shape in TENSORS["transformer"].items()})
    lines = told(nano)
    assert len(lines) == 2 * (LISTED + 1)
    assert lines[LISTED].startswith("transformer: missing tensor: ") and "more, such as " in lines[LISTED]
    counted = [int(line.rpartition("(")[2].split()[0]) for line in lines if line.endswith(" tensors)")]
    assert max(counted) == 36 and max(map(len, lines)) < 200


def test_every_missing_tensor_is_counted(nano: Path) -> None:
    checkpoint = Checkpoint.open(nano)
    empty = {name: (1,) for name in ("a.1", "a.2", "a.4", "b")}
    write_sparse(nano / "vae" / WEIGHTS, {"c": [1]})
    lines = [error.problem for error in differences(empty, TensorFiles(checkpoint.folder / "vae"), ("d",))]
    assert lines == ["missing tensor a.{1-2,4} (3 tensors)", "missing tensor b", "unexpected tensor c"]


def test_names_that_differ_in_several_numbers_are_one_pattern() -> None:
    assert pattern_of(["x.0.y.1", "x.2.y.1", "x.3.y.5"]) == "x.{0,2-3}.y.{1,5}"
    assert pattern_of(["x.10"]) == "x.10"
