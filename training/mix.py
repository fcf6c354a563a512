"""Write the checkpoint between two, one of which was trained on from the other.

python -m training.mix --of demo --and .gpu/cosmos3-next --share 0.5 --to .gpu/cosmos3-mixed

The mean of both weights keeps more of what the first one knew than the second one does, and has most of what that
learnt (Wortsman et al., Robust fine-tuning of zero-shot models, 2022).
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos3_models.checkpoint.folder import checkpoint_folder
from training.export import WEIGHTS

STATISTICS = ("latents_mean", "latents_std")


def mix(first: Path, second: Path, share: float, to: Path) -> None:
    """Write the first checkpoint with a mean of both transformers, and of the statistics of both's latents.

    Args:
        first, second: folders that ``training.export`` wrote, with the same autoencoders.
        share: of the second, 0 to 1.
        to: new folder.

    Raises:
        ValueError: the share is none, or the checkpoints have different tensors.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: got {share}, expected 0 to 1")
    mixed = _mean(load_file(first / "transformer" / WEIGHTS), load_file(second / "transformer" / WEIGHTS), share)
    config, other = (json.loads((folder / "vae" / "config.json").read_text()) for folder in (first, second))
    for name in STATISTICS:
        config[name] = torch.lerp(torch.tensor(config[name]), torch.tensor(other[name]), share).tolist()
    shutil.copytree(first, to)
    save_file(mixed, to / "transformer" / WEIGHTS, metadata={"format": "pt"})
    (to / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _mean(first: dict[str, Tensor], second: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    shapes = [{name: (x.shape, x.dtype) for name, x in weights.items()} for weights in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError("the checkpoints have different tensors")
    return {name: torch.lerp(x.float(), second[name].float(), share).to(x.dtype) for name, x in first.items()}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", default="demo", type=checkpoint_folder, help="folder, or demo (%(default)s)")
    parser.add_argument("--and", dest="other", required=True, type=checkpoint_folder, help="folder")
    parser.add_argument("--share", type=float, default=0.5, help="of the second, 0 to 1 (%(default)s)")
    parser.add_argument("--to", type=Path, required=True, help="new folder")
    args = parser.parse_args(arguments)
    mix(args.of, args.other, args.share, args.to)


if __name__ == "__main__":
    main()
