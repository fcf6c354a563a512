"""Seconds to load a transformer of Nano's size from files to a device. The folder is written first if it is absent.

The files are in the page cache when they were just written or read; see `vmtouch` or /proc/meminfo.

python -m benchmarks.checkpoint_load --folder /dev/shm/nano
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import nano
from benchmarks.measure import report, synchronize
from cosmos3_models.checkpoint import Checkpoint
from cosmos3_models.names import transformer_name
from cosmos3_models.transformer import Transformer

SHARD_BYTES = 4 * 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the checkpoint; 28 GB")
    parser.add_argument("--layers", type=int, default=nano.TRANSFORMER["num_hidden_layers"], help="fewer for a trial")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if not args.folder.is_dir():
        write(args.folder, args.layers, args.device)
    rows = []
    for run in range(args.repeats):
        start = time.perf_counter()
        model = Checkpoint.open(args.folder).load_transformer(torch.device(args.device), torch.bfloat16)
        synchronize()
        seconds = time.perf_counter() - start
        gigabytes = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
        rows.append({"run": run, "gb": gigabytes, "seconds": seconds, "gb_per_s": gigabytes / seconds})
        del model
    report(rows, args.device)


def write(folder: Path, layers: int, device: str) -> None:
    """A random transformer in shards, and the configs that a checkpoint must have."""
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    configs = {
        "transformer/config.json": nano.TRANSFORMER | {"num_hidden_layers": layers},
        "vae/config.json": nano.VIDEO_VAE,
        "scheduler/scheduler_config.json": nano.SCHEDULER,
    }
    for name, config in configs.items():
        (draft / name).parent.mkdir(parents=True)
        (draft / name).write_text(json.dumps(config))
    with torch.device("meta"):
        module = Transformer(nano.transformer_config(layers))
    shard: dict[str, Tensor] = {}
    for ours, parameter in module.named_parameters():
        name = transformer_name(ours, layers)
        drawn = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
        nano.fill(name, drawn)
        shard[name] = drawn.cpu()
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            _save(shard, draft)
    _save(shard, draft)
    draft.rename(folder)


def _save(shard: dict[str, Tensor], draft: Path) -> None:
    """Write the shard and empty it."""
    number = len(list((draft / "transformer").glob("*.safetensors")))
    save_file(shard, draft / "transformer" / f"diffusion_pytorch_model-{number:05}.safetensors")
    shard.clear()


if __name__ == "__main__":
    main()
