"""The tensors of a checkpoint become modules. Strict: every surprise is an error that names file and tensor."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from cosmos3_models.autoencoders.sound_decoder import SoundDecoder
from cosmos3_models.autoencoders.video_decoder import VideoDecoder
from cosmos3_models.checkpoint.configs import SoundDecoderConfig
from cosmos3_models.checkpoint.folder import CardUse, Checkpoint, Offload
from cosmos3_models.checkpoint.tensor_files import FoldedWeightNorm, TensorFiles, TensorSource
from cosmos3_models.checkpoint.tensor_names import (
    SOUND_SKIPPED,
    VIDEO_VAE_SKIPPED,
    transformer_name,
    transformer_skipped,
)
from cosmos3_models.checkpoint.upload import Transfer
from cosmos3_models.errors import CheckpointError
from cosmos3_models.params import APPROXIMATIONS
from cosmos3_models.resources.footprint import Footprint
from cosmos3_models.transformer.model import OFFLOADED, Transformer

# The time embedding runs in fp32 whatever the model's dtype.
KEPT_IN_FP32 = "generation.time_embedder."

PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
"""What safetensors calls numbers that mean what they say. Integers and 8-bit floats need scales to be weights."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def resolve_device(
    device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> tuple[torch.device, torch.dtype]:
    """Fill in ``"auto"`` (a GPU if there is one) and None (bf16 on a GPU, fp32 on the CPU)."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)


def load_transformer(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    offload_text: Offload = "auto",
    use: CardUse | None = None,
) -> Transformer:
    """Load both towers, the text tower without a stay on the device where it is offloaded.

    Args:
        use: what ``"auto"`` makes room for; by default what the checkpoint's default video needs in one process.
    """
    offload = Footprint(checkpoint, dtype, use or one_process(checkpoint)).offloads(offload_text, device)
    transformer = _transformer(checkpoint).load(device, dtype, OFFLOADED if offload else ())
    if offload:
        transformer.offload_text()
    transformer.join_weights()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # half of the weights lay elsewhere before; other processes share the card
    return transformer


def one_process(checkpoint: Checkpoint) -> CardUse:
    """The checkpoint's default video, with whatever a request may give up for speed."""
    return CardUse(checkpoint.defaults.params(prompt="-").pixel_frames, "same process", APPROXIMATIONS)


def load_video_decoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> VideoDecoder:
    return _video_decoder(checkpoint).load(device, dtype)


def load_sound_decoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> SoundDecoder:
    if checkpoint.sound is None:
        raise CheckpointError(checkpoint.folder / "sound_tokenizer", "no such folder, so there is no sound decoder")
    return _sound_decoder(checkpoint, checkpoint.sound).load(device, dtype)


def check_weights(checkpoint: Checkpoint) -> None:
    """Refuse what loading refuses, without reading a tensor.

    Raises:
        CheckpointError: a file is missing or broken, or holds a tensor of another name, type or shape.
    """
    for component in _components(checkpoint):
        component.checked_names()


@dataclass(frozen=True)
class _Component(Generic[AnyModule]):
    """A module without values, and the files that fill it.

    Attributes:
        checkpoint_name: gives the checkpoint's name of a parameter for ours.
        skipped: patterns of the names that the files may hold besides.
    """

    module: AnyModule
    source: TensorSource
    checkpoint_name: Callable[[str], str]
    skipped: tuple[str, ...]

    def checked_names(self) -> dict[str, str]:
        """The checkpoint's name of every parameter, once the files hold exactly these and skipped ones."""
        names = {ours: self.checkpoint_name(ours) for ours, _ in self.module.named_parameters()}
        for theirs in sorted(set(names.values()).intersection(self.source)):
            _check_type(theirs, self.source)  # before the names: scales of quantised weights are unexpected tensors
        _check_names(set(names.values()), self.source, self.skipped)
        for ours, parameter in self.module.named_parameters():
            _check_shape(names[ours], parameter.shape, self.source)
        return names

    def load(self, device: torch.device, dtype: torch.dtype, in_host_memory: tuple[str, ...] = ()) -> AnyModule:
        """Fill every parameter.

        Those whose names begin like one of ``in_host_memory`` stay there, the others go to the device.
        """
        names = self.checked_names()
        staying = [ours for ours in names if ours.startswith(in_host_memory)]
        moving = [ours for ours in names if not ours.startswith(in_host_memory)]
        state = {}
        for some, target in ((staying, torch.device("cpu")), (moving, device)):
            tensors = Transfer(target).all(partial(self.source.read, names[ours]) for ours in some)
            for ours, tensor in zip(some, tensors, strict=True):
                state[ours] = tensor.to(torch.float32 if ours.startswith(KEPT_IN_FP32) else dtype)
        self.module.load_state_dict(state, strict=True, assign=True)
        return self.module.eval().requires_grad_(False)


def _components(checkpoint: Checkpoint) -> Iterator[_Component[Any]]:
    yield _transformer(checkpoint)
    yield _video_decoder(checkpoint)
    if checkpoint.sound is not None:
        yield _sound_decoder(checkpoint, checkpoint.sound)


def _transformer(checkpoint: Checkpoint) -> _Component[Transformer]:
    layers = checkpoint.transformer.num_hidden_layers
    source = TensorFiles(checkpoint.folder / "transformer")
    empty = _empty(lambda: Transformer(checkpoint.transformer))
    return _Component(empty, source, partial(transformer_name, layers=layers), transformer_skipped(layers))


def _video_decoder(checkpoint: Checkpoint) -> _Component[VideoDecoder]:
    source = TensorFiles(checkpoint.folder / "vae")
    return _Component(_empty(lambda: VideoDecoder(checkpoint.video_vae)), source, str, VIDEO_VAE_SKIPPED)


def _sound_decoder(checkpoint: Checkpoint, config: SoundDecoderConfig) -> _Component[SoundDecoder]:
    source = FoldedWeightNorm(TensorFiles(checkpoint.folder / "sound_tokenizer"))
    return _Component(_empty(lambda: SoundDecoder(config)), source, str, SOUND_SKIPPED)


def _empty(build: Callable[[], AnyModule]) -> AnyModule:
    with torch.device("meta"):
        return build()


def _check_names(expected: set[str], source: TensorSource, skipped: tuple[str, ...]) -> None:
    if missing := sorted(expected.difference(source)):
        raise CheckpointError(source.folder, f"missing tensor {missing[0]} ({len(missing)} missing in all)")
    unexpected = [name for name in source if name not in expected and not re.match("|".join(skipped), name)]
    if unexpected:
        raise CheckpointError(source.file(unexpected[0]), f"unexpected tensor {unexpected[0]}")


def _check_type(name: str, source: TensorSource) -> None:
    if other := source.types(name).difference(PLAIN_TYPES):
        problem = f"tensor {name}: got numbers of type {min(other)}, expected {', '.join(PLAIN_TYPES)}"
        raise CheckpointError(source.file(name), f"{problem}, because scales of quantised weights are not read")


def _check_shape(name: str, expected: torch.Size, source: TensorSource) -> None:
    if (shape := source.shape(name)) != tuple(expected):
        raise CheckpointError(source.file(name), f"tensor {name}: got shape {list(shape)}, expected {list(expected)}")
