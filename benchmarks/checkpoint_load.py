"""Seconds to load a transformer of Nano's size from files to a device. The folder is written first if it is absent.

The files are in the page cache when they were just written or read; see `vmtouch` or /proc/meminfo.

python -m benchmarks.checkpoint_load --folder /dev/shm/nano
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks import nano
from benchmarks.measure import report, synchronize
from benchmarks.nano_folder import write
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_transformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the checkpoint; 30 GB")
    parser.add_argument("--layers", type=int, default=nano.TRANSFORMER["num_hidden_layers"], help="fewer for a trial")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if not args.folder.is_dir():
        write(args.folder, args.layers, args.device)
    rows = []
    for run in range(args.repeats):
        start = time.perf_counter()
        model = load_transformer(Checkpoint.open(args.folder), torch.device(args.device), torch.bfloat16)
        synchronize()
        seconds = time.perf_counter() - start
        gigabytes = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
        rows.append({"run": run, "gb": gigabytes, "seconds": seconds, "gb_per_s": gigabytes / seconds})
        del model
    report(rows, args.device)


if __name__ == "__main__":
    main()
