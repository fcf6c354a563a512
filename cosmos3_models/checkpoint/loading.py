"""Load a checkpoint's tensors into modules. Anything unexpected is an error that names the file and the tensor."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from cosmos3_models.approximations import APPROXIMATIONS
from cosmos3_models.autoencoders.sound_decoder import OobleckSoundDecoder
from cosmos3_models.autoencoders.video_decoder import WanVideoDecoder
from cosmos3_models.autoencoders.video_encoder import WanVideoEncoder
from cosmos3_models.checkpoint.comparison import differences
from cosmos3_models.checkpoint.configs import SoundDecoderConfig
from cosmos3_models.checkpoint.folder import VIDEO_ENCODER, CardUse, Checkpoint, Offload
from cosmos3_models.checkpoint.tensor_files import FoldedWeightNorm, TensorFiles, TensorSource
from cosmos3_models.checkpoint.tensor_names import (
    SOUND_SKIPPED,
    VIDEO_DECODER_SKIPPED,
    VIDEO_ENCODER_SKIPPED,
    transformer_name,
    transformer_skipped,
)
from cosmos3_models.checkpoint.upload import Transfer
from cosmos3_models.errors import CheckpointError
from cosmos3_models.resources.footprint import Footprint
from cosmos3_models.transformer.joined_linear import separate_parameters
from cosmos3_models.transformer.model import Transformer

# The time embedding runs in fp32 whatever the model's dtype.
KEPT_IN_FP32 = "generation.time_embedder."

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def resolve_device(
    device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> tuple[torch.device, torch.dtype]:
    """Resolve ``"auto"`` to a GPU if there is one, and None to bf16 on a GPU and fp32 on the CPU."""
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
    """Load both towers. If the text tower is offloaded, it is read into host memory, past the device.

    Args:
        dtype: of the weights; those of ``KEPT_IN_FP32`` are fp32.
        offload_text: whether the text tower stays in host memory.
        use: what ``"auto"`` makes room for; by default what the checkpoint's default video needs in one process.

    Raises:
        CheckpointError: naming the file and the tensor at fault.
    """
    component = _transformer(checkpoint)
    component.check()
    if Footprint(checkpoint, dtype, use or one_process(checkpoint)).offloads(offload_text, device):
        component.module.text.offload(device, dtype)
    return component.load(device, dtype)


def one_process(checkpoint: Checkpoint) -> CardUse:
    """The use of a GPU by one process that makes the checkpoint's default video, with every approximation allowed."""
    return CardUse(checkpoint.defaults.params(prompt="-").pixel_frames, "same process", APPROXIMATIONS)


def load_video_decoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> WanVideoDecoder:
    """Load the decoder of ``vae/``, every weight in ``dtype``.

    Raises:
        CheckpointError: naming the file and the tensor at fault.
    """
    component = _video_decoder(checkpoint)
    component.check()
    return component.load(device, dtype)


def load_video_encoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> WanVideoEncoder:
    """Load the encoder of ``vae/``, every weight in ``dtype``.

    Raises:
        CheckpointError: the folder has none, or naming the file and the tensor at fault.
    """
    component = _video_encoder(checkpoint)
    if not any(name.startswith(VIDEO_ENCODER) for name in component.source):
        raise CheckpointError(checkpoint.folder / "vae", "no tensor of an encoder, so there is no video encoder")
    component.check()
    return component.load(device, dtype)


def load_sound_decoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> OobleckSoundDecoder:
    """Load the decoder of ``sound_tokenizer/``, every weight in ``dtype``, with its weight norms folded.

    Raises:
        CheckpointError: there is no such folder, or naming the file and the tensor at fault.
    """
    if checkpoint.sound is None:
        raise CheckpointError(checkpoint.folder / "sound_tokenizer", "no such folder, so there is no sound decoder")
    component = _sound_decoder(checkpoint, checkpoint.sound)
    component.check()
    return component.load(device, dtype)


def weight_problems(checkpoint: Checkpoint) -> Iterator[CheckpointError]:
    """Yield every error for which loading would refuse the files, once each, without reading a tensor."""
    told = set[str]()  # encoder and decoder share their files
    for build in _builders(checkpoint):
        for error in _problems(build):
            if str(error) not in told:
                told.add(str(error))
                yield error


@dataclass(frozen=True)
class _Component(Generic[AnyModule]):
    """A module without values, and the files that fill it.

    Attributes:
        checkpoint_name: gives the checkpoint's name of a tensor for ours, which is that of a parameter or of a part of
            one: the files hold separately what a ``JoinedLinear`` joins.
        skipped: regular expressions for the tensors that the files may hold besides.
    """

    module: AnyModule
    source: TensorSource
    checkpoint_name: Callable[[str], str]
    skipped: tuple[str, ...]

    def tensors(self) -> dict[str, Tensor]:
        """The target of each tensor of the files, by its name there: a parameter, or some rows of one."""
        return {self.checkpoint_name(ours): place for ours, place in separate_parameters(self.module).items()}

    def check(self) -> None:
        """Raise ``CheckpointError`` unless the files hold exactly these tensors and perhaps skipped ones."""
        for error in self.differences():
            raise error

    def differences(self) -> Iterator[CheckpointError]:
        """Yield what keeps the files from filling the module."""
        expected = {name: tuple(place.shape) for name, place in self.tensors().items()}
        return differences(expected, self.source, self.skipped)

    def load(self, device: torch.device, dtype: torch.dtype) -> AnyModule:
        """Fill every parameter: where its memory is, or on the device if it has none yet."""
        self.module.eval().requires_grad_(False)
        allocate(self.module, device, dtype)
        Transfer(device).fill((place, partial(self.source.read, name)) for name, place in self.tensors().items())
        return self.module


def allocate(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Allocate memory on a device for every parameter on the meta device, without values.

    Args:
        dtype: of the parameters, but for those of ``KEPT_IN_FP32``.
    """
    state = {
        name: torch.empty(meta.shape, dtype=torch.float32 if name.startswith(KEPT_IN_FP32) else dtype, device=device)
        for name, meta in module.named_parameters()
        if meta.is_meta
    }
    module.load_state_dict(state, strict=False, assign=True)


def _builders(checkpoint: Checkpoint) -> Iterator[Callable[[], _Component[Any]]]:
    yield partial(_transformer, checkpoint)
    yield partial(_video_decoder, checkpoint)
    if checkpoint.has_video_encoder:
        yield partial(_video_encoder, checkpoint)
    if checkpoint.sound is not None:
        yield partial(_sound_decoder, checkpoint, checkpoint.sound)


def _problems(build: Callable[[], _Component[Any]]) -> Iterator[CheckpointError]:
    try:
        yield from build().differences()
    except CheckpointError as error:  # a file cannot be read
        yield error


def _transformer(checkpoint: Checkpoint) -> _Component[Transformer]:
    layers = checkpoint.transformer.num_hidden_layers
    source = TensorFiles(checkpoint.folder / "transformer")
    empty = _empty(lambda: Transformer(checkpoint.transformer))
    return _Component(empty, source, partial(transformer_name, layers=layers), transformer_skipped(layers))


def _video_decoder(checkpoint: Checkpoint) -> _Component[WanVideoDecoder]:
    source = TensorFiles(checkpoint.folder / "vae")
    return _Component(_empty(lambda: WanVideoDecoder(checkpoint.video_vae)), source, str, VIDEO_DECODER_SKIPPED)


def _video_encoder(checkpoint: Checkpoint) -> _Component[WanVideoEncoder]:
    source = TensorFiles(checkpoint.folder / "vae")
    return _Component(_empty(lambda: WanVideoEncoder(checkpoint.video_vae)), source, str, VIDEO_ENCODER_SKIPPED)


def _sound_decoder(checkpoint: Checkpoint, config: SoundDecoderConfig) -> _Component[OobleckSoundDecoder]:
    source = FoldedWeightNorm(TensorFiles(checkpoint.folder / "sound_tokenizer"))
    return _Component(_empty(lambda: OobleckSoundDecoder(config)), source, str, SOUND_SKIPPED)


def _empty(build: Callable[[], AnyModule]) -> AnyModule:
    with torch.device("meta"):
        return build()
