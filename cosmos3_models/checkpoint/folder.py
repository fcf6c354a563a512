"""A checkpoint folder in the public layout: its configs. Strict: every surprise is an error.

Nothing here needs PyTorch; ``weights`` loads the tensors.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from safetensors import SafetensorError, safe_open

from cosmos3_models.approximations import ApproximationName
from cosmos3_models.checkpoint.configs import (
    PromptGuide,
    SchedulerConfig,
    SoundDecoderConfig,
    TransformerConfig,
    VideoVAEConfig,
    is_there,
    read_config,
    read_json,
)
from cosmos3_models.checkpoint.hub import HubName, pinned, snapshot
from cosmos3_models.errors import CheckpointError
from cosmos3_models.params import GenerationDefaults
from cosmos3_models.resources.budget import Decoders

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parents[1] / "demo"  # ships with the package
DEMO_NAME = "cosmos3-demo"
COMPONENTS = ("transformer", "vae", "sound_tokenizer")  # the folders with weights
VIDEO_ENCODER = "encoder."  # how the names of its tensors in vae/ begin
PROMPT_GUIDE = Path("assets", "prompt_guide.json")
OF_TRANSFORMERS = {"transformers_version", "eos_token_id"}  # in a generation_config.json that is about text

Offload = Literal["auto"] | bool
"""Whether weights wait in host memory; ``"auto"``: where the longest accepted video would not fit the GPU otherwise."""


class CardUse(NamedTuple):
    """What the denoiser's GPU must have room for.

    Attributes:
        pixel_frames: height x width x frames of the largest video.
        decoders: where both decoders compute.
        approximations: what requests may give up for speed, since some of it takes memory.
        ranks: GPUs like it that make each video together.
    """

    pixel_frames: int
    decoders: Decoders
    approximations: tuple[ApproximationName, ...]
    ranks: int = 1


@dataclass(frozen=True)
class Checkpoint:
    """The folder and its configs.

    Attributes:
        guide: what the model was trained to make, if the folder says so.
    """

    folder: Path
    transformer: TransformerConfig
    video_vae: VideoVAEConfig
    sound: SoundDecoderConfig | None  # None: no sound can be made
    scheduler: SchedulerConfig
    defaults: GenerationDefaults
    guide: PromptGuide | None = None

    @classmethod
    def open(cls, path: str | Path, *, transformer: bool = True) -> "Checkpoint":
        """Read the configs of a folder, of the demo for ``"demo"``, or of a model on the Hugging Face Hub.

        Args:
            transformer: whether a download brings the weights of the transformer.

        Raises:
            CheckpointError: a folder or file is missing, a config contradicts itself or another one, or a download
                failed.
        """
        folder = checkpoint_folder(path, transformer=transformer)
        if not folder.is_dir():
            raise CheckpointError(folder, "no such folder")
        sound_folder, guide = folder / "sound_tokenizer", folder / PROMPT_GUIDE
        checkpoint = cls(
            folder=folder,
            transformer=read_config(folder / "transformer" / "config.json", TransformerConfig),
            video_vae=read_config(folder / "vae" / "config.json", VideoVAEConfig),
            sound=read_config(sound_folder / "config.json", SoundDecoderConfig) if is_there(sound_folder) else None,
            scheduler=read_config(folder / "scheduler" / "scheduler_config.json", SchedulerConfig),
            defaults=_defaults(folder / "generation_config.json"),
            guide=read_config(guide, PromptGuide) if is_there(guide) else None,
        )
        checkpoint._check_agreement()
        return checkpoint

    @cached_property
    def name(self) -> str:
        """The model's name for users unless the server gives it another one."""
        return checkpoint_name(self.folder)

    @cached_property
    def has_video_encoder(self) -> bool:
        """Whether ``vae/`` holds the encoder besides the decoder, by the headers of its files.

        A file that cannot be read counts as empty: loading the decoder, which is always there, says what is wrong.
        """
        names = (name for path in (self.folder / "vae").glob("*.safetensors") for name in _tensor_names(path))
        return any(name.startswith(VIDEO_ENCODER) for name in names)

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


def _defaults(path: Path) -> GenerationDefaults:
    """Read a checkpoint's own defaults, if it has some.

    Transformers gives a file of this name another meaning: how the reasoner writes text. Such a file has no defaults.
    """
    if not is_there(path) or OF_TRANSFORMERS & set(read_json(path)):
        return GenerationDefaults()
    return read_config(path, GenerationDefaults)


def _tensor_names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError):
        return []


def hub_name(path: str | Path) -> HubName | None:
    """The model on the Hugging Face Hub that a path means; None for a folder and for the demo.

    ``owner/name`` means the Hub unless there is such a folder.
    """
    return None if Path(path).is_dir() else HubName.parse(str(path))


def checkpoint_folder(path: str | Path, *, transformer: bool = True) -> Path:
    """The absolute folder; ``~`` and paths relative to the working folder are understood, links stay as they are.

    A model on the Hugging Face Hub is in the Hub's cache, or is downloaded into it.

    Args:
        transformer: whether a download brings the weights of the transformer.

    Raises:
        CheckpointError: the download failed.
    """
    if str(path) == DEMO:
        return DEMO_FOLDER
    if name := hub_name(path):
        return snapshot(name, transformer=transformer)
    return Path(os.path.expanduser(path)).absolute()


def checkpoint_name(path: str | Path) -> str:
    """The name of the folder as it is given, ``owner/name`` of a model on the Hub or in its cache, or the demo's.

    Nothing is downloaded.
    """
    if name := hub_name(path):
        return name.repository
    folder = checkpoint_folder(path)
    if folder.resolve() == DEMO_FOLDER.resolve():
        return DEMO_NAME
    *_, repository, above, _ = ("", "", *Path(os.path.abspath(folder)).parts)
    if above == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return Path(os.path.abspath(folder)).name


def pinned_checkpoint(path: str) -> str:
    """The path or, for a model on the Hugging Face Hub, its name with a commit, so that all nodes serve the same one.

    Raises:
        CheckpointError: the Hub does not answer, or has no such model or revision.
    """
    name = hub_name(path)
    return path if name is None else str(pinned(name))
