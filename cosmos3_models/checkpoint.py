"""A checkpoint folder in the public layout, and how its tensors become modules. Strict: every surprise is an error."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from cosmos3_models import demo
from cosmos3_models.config import (
    SchedulerConfig,
    SoundDecoderConfig,
    TransformerConfig,
    VideoVAEConfig,
    read_config,
)
from cosmos3_models.errors import CheckpointError
from cosmos3_models.names import SOUND_SKIPPED, VIDEO_VAE_SKIPPED, transformer_name, transformer_skipped
from cosmos3_models.offload import Offload, offloads
from cosmos3_models.params import GenerationDefaults
from cosmos3_models.sound_decoder import SoundDecoder
from cosmos3_models.tensor_files import FoldedWeightNorm, TensorFiles, TensorSource
from cosmos3_models.transfer import Transfer
from cosmos3_models.transformer import OFFLOADED, Transformer
from cosmos3_models.video_vae import VideoDecoder

DEMO = "demo"

# The time embedding runs in fp32 whatever the model's dtype.
KEPT_IN_FP32 = "generation.time_embedder."

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """The folder and its configs. Weights are opened by the ``load_`` method of the part that needs them."""

    folder: Path
    transformer: TransformerConfig
    video_vae: VideoVAEConfig
    sound: SoundDecoderConfig | None  # None: no sound can be made
    scheduler: SchedulerConfig
    defaults: GenerationDefaults

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Read the configs of a folder, or of the demo for ``"demo"``.

        Raises:
            CheckpointError: a folder or file is missing, or a config contradicts itself or another one.
        """
        folder = demo.folder() if str(path) == DEMO else Path(path)
        if not folder.is_dir():
            raise CheckpointError(folder, "no such folder")
        sound_folder, defaults = folder / "sound_tokenizer", folder / "generation_config.json"
        checkpoint = cls(
            folder=folder,
            transformer=read_config(folder / "transformer" / "config.json", TransformerConfig),
            video_vae=read_config(folder / "vae" / "config.json", VideoVAEConfig),
            sound=read_config(sound_folder / "config.json", SoundDecoderConfig) if sound_folder.is_dir() else None,
            scheduler=read_config(folder / "scheduler" / "scheduler_config.json", SchedulerConfig),
            defaults=read_config(defaults, GenerationDefaults) if defaults.is_file() else GenerationDefaults(),
        )
        checkpoint._check_agreement()
        return checkpoint

    @property
    def name(self) -> str:
        """The model's name for users: that of the folder."""
        return self.folder.resolve().name

    def load_transformer(self, device: torch.device, dtype: torch.dtype, offload_text: Offload = "auto") -> Transformer:
        """Load both towers, the text tower without a stay on the device where it is offloaded."""
        layers = self.transformer.num_hidden_layers
        source = TensorFiles(self.folder / "transformer")
        name, skipped = partial(transformer_name, layers=layers), transformer_skipped(layers)
        empty = _empty(lambda: Transformer(self.transformer))
        offload = offloads(offload_text, _bytes(empty, dtype), device)
        transformer = _load(empty, source, name, skipped, device, dtype, OFFLOADED if offload else ())
        if offload:
            transformer.offload_text()
        transformer.join_weights()
        return transformer

    def load_video_decoder(self, device: torch.device, dtype: torch.dtype) -> VideoDecoder:
        source = TensorFiles(self.folder / "vae")
        return _load(_empty(lambda: VideoDecoder(self.video_vae)), source, str, VIDEO_VAE_SKIPPED, device, dtype)

    def load_sound_decoder(self, device: torch.device, dtype: torch.dtype) -> SoundDecoder:
        sound = self.sound
        if sound is None:
            raise CheckpointError(self.folder / "sound_tokenizer", "no such folder, so there is no sound decoder")
        source = FoldedWeightNorm(TensorFiles(self.folder / "sound_tokenizer"))
        return _load(_empty(lambda: SoundDecoder(sound)), source, str, SOUND_SKIPPED, device, dtype)

    def _check_agreement(self) -> None:
        transformer, vae, sound = self.transformer, self.video_vae, self.sound
        self._agree("vae z_dim", vae.z_dim, "transformer latent_channel", transformer.latent_channel)
        if sound is not None:
            rate = sound.sample_rate / sound.hop
            self._agree("sound latents per second", rate, "transformer sound_latent_fps", transformer.sound_latent_fps)
            self._agree("sound vocoder_input_dim", sound.latent_dim, "transformer sound_dim", transformer.sound_dim)

    def _agree(self, one: str, got: float, other: str, expected: float | None) -> None:
        if got != expected:
            raise CheckpointError(self.folder, f"{one} is {got}, but {other} is {expected}")


def _empty(build: Callable[[], AnyModule]) -> AnyModule:
    with torch.device("meta"):
        return build()


def _bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """Of its weights in ``dtype``."""
    return sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize


def _load(
    module: AnyModule,
    source: TensorSource,
    checkpoint_name: Callable[[str], str],
    skipped: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    in_host_memory: tuple[str, ...] = (),
) -> AnyModule:
    """Fill every parameter of an empty module from ``source``, which holds these and skipped ones only.

    Parameters whose names begin like one of ``in_host_memory`` stay there, the others go to the device.
    """
    names = {ours: checkpoint_name(ours) for ours, _ in module.named_parameters()}
    _check_names(set(names.values()), source, skipped)
    for ours, parameter in module.named_parameters():
        _check_shape(names[ours], parameter.shape, source)
    staying = [ours for ours in names if ours.startswith(in_host_memory)]
    moving = [ours for ours in names if not ours.startswith(in_host_memory)]
    state = {}
    for some, target in ((staying, torch.device("cpu")), (moving, device)):
        tensors = Transfer(target).all(partial(source.read, names[ours]) for ours in some)
        for ours, tensor in zip(some, tensors, strict=True):
            state[ours] = tensor.to(torch.float32 if ours.startswith(KEPT_IN_FP32) else dtype)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _check_names(expected: set[str], source: TensorSource, skipped: tuple[str, ...]) -> None:
    if missing := sorted(expected.difference(source)):
        raise CheckpointError(source.folder, f"missing tensor {missing[0]} ({len(missing)} missing in all)")
    unexpected = [name for name in source if name not in expected and not re.match("|".join(skipped), name)]
    if unexpected:
        raise CheckpointError(source.file(unexpected[0]), f"unexpected tensor {unexpected[0]}")


def _check_shape(name: str, expected: torch.Size, source: TensorSource) -> None:
    if (shape := source.shape(name)) != tuple(expected):
        raise CheckpointError(source.file(name), f"tensor {name}: got shape {list(shape)}, expected {list(expected)}")
