"""What the demo is: the public configs of every component, read from one file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos3_models.checkpoint.configs import SoundDecoderConfig, TransformerConfig, VideoVAEConfig, read_json
from cosmos3_models.params import GenerationDefaults, GenerationParams
from cosmos3_models.shapes import LatentGrid, sound_latent_frames

DEFAULT = Path(__file__).parent / "recipe.json"


@dataclass(frozen=True)
class Shares:
    """Which of the transformer's micro-batches are not of clips made from text alone; of all, 0 to 1.

    Attributes:
        picture: clips whose first latent frame is clean.
        clip: clips whose first two latent frames are clean.
        image: single frames.
    """

    picture: float
    clip: float
    image: float


@dataclass(frozen=True)
class Recipe:
    """The configs as they go into the checkpoint, and as the models read them."""

    data: dict[str, Any]  # by component
    transformer: TransformerConfig
    video_vae: VideoVAEConfig
    sound: SoundDecoderConfig
    generation: GenerationParams  # the demo's defaults
    shares: Shares

    @classmethod
    def read(cls, path: Path = DEFAULT) -> "Recipe":
        """Read a recipe file."""
        return cls.of(read_json(path))

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Recipe":
        """A recipe from its components; the video latents' statistics may still be missing."""
        z_dim = data["vae"]["z_dim"]
        data = data | {
            "vae": {"latents_mean": [0.0] * z_dim, "latents_std": [1.0] * z_dim} | data["vae"],
            "scheduler": data["scheduler"] | {"flow_shift": data["generation"]["flow_shift"]},
        }
        return cls(
            data=data,
            transformer=TransformerConfig.model_validate(data["transformer"]),
            video_vae=VideoVAEConfig.model_validate(data["vae"]),
            sound=SoundDecoderConfig.model_validate(data["sound_tokenizer"]),
            generation=GenerationDefaults(**data["generation"]).params(prompt="-"),
            shares=Shares(**data["shares"]),
        )

    def with_statistics(self, mean: list[float], std: list[float]) -> "Recipe":
        """The recipe with the mean and spread of the video latents' channels."""
        return self.of(self.data | {"vae": self.data["vae"] | {"latents_mean": mean, "latents_std": std}})

    @property
    def side(self) -> int:
        """Pixels of the square picture's side."""
        if self.generation.height != self.generation.width:
            raise ValueError(f"the world is square, got {self.generation.width}x{self.generation.height}")
        return self.generation.height

    @property
    def num_frames(self) -> int:
        return self.generation.num_frames

    @property
    def fps(self) -> float:
        return self.generation.fps

    @property
    def grid(self) -> LatentGrid:
        """Latent frames, rows and columns of a clip."""
        return LatentGrid.of_video(self.num_frames, self.side, self.side)

    @property
    def sound_frames(self) -> int:
        """Latent frames of a clip's sound."""
        return sound_latent_frames(self.num_frames, self.fps, self.sound.sample_rate, self.sound.hop)

    def dump(self) -> str:
        """The recipe as a file's text."""
        return json.dumps(self.data, indent=2) + "\n"
