"""Write a whole checkpoint folder of Cosmos3-Nano's size with random weights, on which the server can be started.

It holds what serving reads, and no generation_config.json: Nano's defaults are those of GenerationParams.

python -m benchmarks.nano_folder --folder /dev/shm/nano
"""

import argparse
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import nano
from cosmos3_models.autoencoders.sound_decoder import OobleckSoundDecoder
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.checkpoint.configs import SoundDecoderConfig, VideoVAEConfig
from cosmos3_models.checkpoint.folder import DEMO_FOLDER
from cosmos3_models.checkpoint.tensor_names import transformer_name
from cosmos3_models.transformer.joined_linear import separate_parameters
from cosmos3_models.transformer.model import Transformer

SHARD_BYTES = 2 * 10**9
WRITERS = 6  # threads, and shards that wait on the device at most

NamedTensors = Iterator[tuple[str, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="to write; must not exist; 30 GB")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with tokenizer.json and its config; the demo's if absent"
    )
    parser.add_argument("--layers", type=int, default=nano.TRANSFORMER["num_hidden_layers"], help="fewer for a trial")
    parser.add_argument("--device", default="cuda", help="where the weights are drawn (%(default)s)")
    args = parser.parse_args()
    start = time.perf_counter()
    write(args.folder, args.layers, args.device, args.tokenizer)
    gigabytes = sum(path.stat().st_size for path in args.folder.rglob("*.safetensors")) / 1e9
    print(f"{args.folder}: {gigabytes:.1f} GB in {time.perf_counter() - start:.1f} s", file=sys.stderr)


def write(folder: Path, layers: int, device: str, tokenizer: Path | None = None) -> None:
    """Write the folder; it appears once it is whole.

    Args:
        layers: of each tower; two at least.
        device: where the weights are drawn.
        tokenizer: folder of the text tokenizer, by default the demo's.

    Raises:
        FileExistsError: there is such a folder.
    """
    if folder.exists():
        raise FileExistsError(folder)
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    configs = {
        "transformer/config.json": nano.TRANSFORMER | {"num_hidden_layers": layers},
        "vae/config.json": nano.VIDEO_VAE,
        "sound_tokenizer/config.json": nano.SOUND,
        "scheduler/scheduler_config.json": nano.SCHEDULER,
    }
    for name, config in configs.items():
        (draft / name).parent.mkdir(parents=True)
        (draft / name).write_text(json.dumps(config, indent=2) + "\n")
    shutil.copytree(tokenizer or DEMO_FOLDER / "text_tokenizer", draft / "text_tokenizer")
    with _Shards() as shards:
        for component, tensors in _components(layers, device):
            shards.add(draft / component, tensors)
    draft.rename(folder)


def _components(layers: int, device: str) -> Iterator[tuple[str, NamedTensors]]:
    """Folder and drawn tensors of each component, in the checkpoint's names."""
    with torch.device("meta"):
        transformer = Transformer(nano.transformer_config(layers))
        video = VideoVAEConfig.model_validate(nano.VIDEO_VAE)
        autoencoder = nn.ModuleList([WanVideoEncoder(video), WanVideoDecoder(video)])
        sound = OobleckSoundDecoder(SoundDecoderConfig.model_validate(nano.SOUND))
    yield "transformer", _drawn(transformer, device, lambda name: transformer_name(name, layers))
    yield "vae", _drawn(autoencoder, device, lambda name: name.partition(".")[2])
    yield "sound_tokenizer", _weight_normed(_drawn(sound, device, str))


def _drawn(module: nn.Module, device: str, name_of: Callable[[str], str]) -> NamedTensors:
    for ours, parameter in separate_parameters(module).items():
        drawn = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
        nano.fill(name_of(ours), drawn)
        yield name_of(ours), drawn


def _weight_normed(tensors: NamedTensors) -> NamedTensors:
    """The weights of convolutions as length and direction, as the public sound decoder stores them."""
    for name, tensor in tensors:
        if name.endswith(".weight"):
            yield f"{name}_g", torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
            yield f"{name}_v", tensor
        else:
            yield name, tensor


class _Shards:
    """Files that are copied from the device and written by several threads while the next weights are drawn."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(WRITERS)
        self._pending: deque[Future[None]] = deque()

    def add(self, folder: Path, tensors: NamedTensors) -> None:
        """Cut the tensors into shards of about ``SHARD_BYTES``."""
        shard: dict[str, Tensor] = {}
        number = size = 0
        for name, tensor in tensors:
            shard[name] = tensor
            size += tensor.nbytes
            if size > SHARD_BYTES:
                self._save(shard, folder, number)
                shard, number, size = {}, number + 1, 0
        if shard:
            self._save(shard, folder, number)

    def _save(self, shard: dict[str, Tensor], folder: Path, number: int) -> None:
        if len(self._pending) == WRITERS:
            self._pending.popleft().result()
        file = folder / f"diffusion_pytorch_model-{number:05}.safetensors"
        self._pending.append(self._pool.submit(_save, shard, file))

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._pool:
            for pending in self._pending if kind is None else ():
                pending.result()


def _save(shard: dict[str, Tensor], file: Path) -> None:
    save_file({name: tensor.cpu() for name, tensor in shard.items()}, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
