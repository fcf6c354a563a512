"""A folder of Cosmos3-Nano's layout: its tensors' names and shapes in real headers, and holes in place of numbers."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT

from benchmarks import nano
from cosmos3_models.checkpoint.folder import DEMO_FOLDER

TENSORS = ROOT / "tests/data/nano_tensors.txt"  # of diffusers' modules
SHARDS = 4
BF16_BYTES = 2

Shapes = dict[str, list[int]]


def write_sparse_nano(folder: Path) -> Path:
    """Write the folder: 33 GB of files that take next to nothing on the disk."""
    configs = {
        "transformer/config.json": nano.TRANSFORMER,
        "vae/config.json": nano.VIDEO_VAE,
        "sound_tokenizer/config.json": nano.SOUND,
        "scheduler/scheduler_config.json": nano.SCHEDULER,
    }
    for name, config in configs.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(config))
    shutil.copytree(DEMO_FOLDER / "text_tokenizer", folder / "text_tokenizer")
    tensors = nano_tensors()
    write_shards(folder / "transformer", tensors["transformer"])
    write_sparse(folder / "vae" / "diffusion_pytorch_model.safetensors", tensors["vae"])
    write_sparse(folder / "sound_tokenizer" / "diffusion_pytorch_model.safetensors", tensors["sound"])
    return folder


def nano_tensors() -> dict[str, Shapes]:
    """Name and shape of every tensor, by component."""
    components: dict[str, Shapes] = {}
    for line in TENSORS.read_text().splitlines():
        if heading := re.match(r"## (\w+)", line):
            shapes = components[heading[1]] = {}
        elif "\t" in line:
            shapes |= _expanded(*line.split("\t"))
    return components


def write_shards(folder: Path, shapes: Shapes) -> None:
    """Write ``SHARDS`` sparse files and their index."""
    names = [f"diffusion_pytorch_model-{number + 1:05}-of-{SHARDS:05}.safetensors" for number in range(SHARDS)]
    parts = [dict(list(shapes.items())[number::SHARDS]) for number in range(SHARDS)]
    for name, part in zip(names, parts, strict=True):
        write_sparse(folder / name, part)
    index = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def write_sparse(file: Path, shapes: Shapes, dtype: str = "BF16", itemsize: int = BF16_BYTES) -> None:
    """Write a safetensors file whose numbers are a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)


def _expanded(name: str, shape: str, count: str) -> Iterator[tuple[str, list[int]]]:
    for layer in range(int(count.removeprefix("x"))):
        yield name.replace("{i}", str(layer)), json.loads(shape)
