"""The world at the demo's size: labels in, clips with picture, sound and truth out."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmos3_models.autoencoders.frames import to_frames
from training.labels import Labels, Part, draw_hard_labels, draw_labels
from training.picture import draw_frames
from training.recipe import Recipe
from training.scene import Scene, draw_scene
from training.tone import draw_waveform


class Draw:
    """The random numbers of one step: the same for the same seed and step, whatever ran before."""

    def __init__(self, seed: int, step: int, device: torch.device) -> None:
        self.numpy = np.random.default_rng([seed, step])
        self.torch = torch.Generator(device).manual_seed(int(self.numpy.integers(2**62)))


@dataclass(frozen=True)
class World:
    """How large, how long and how finely sampled its clips are."""

    side: int
    num_frames: int
    fps: float
    sample_rate: int
    samples: int

    @classmethod
    def of(cls, recipe: Recipe) -> "World":
        """The world as the demo's defaults and its sound decoder see it."""
        return cls(
            side=recipe.side,
            num_frames=recipe.num_frames,
            fps=recipe.fps,
            sample_rate=recipe.sound.sample_rate,
            samples=recipe.sound_frames * recipe.sound.hop,
        )

    def scenes(self, draw: Draw, count: int, part: Part = "train") -> Scene:
        """Draw scenes of one part of the world; of the hardest there are more to train on."""
        train = part == "train"
        labels = draw_hard_labels(draw.numpy, count) if train else draw_labels(draw.numpy, count, part)
        return self.scenes_of(labels, draw)

    def scenes_of(self, labels: Labels, draw: Draw) -> Scene:
        """Draw what these labels leave open."""
        return draw_scene(labels, self.num_frames / self.fps, draw.torch)

    def later(self, scene: Scene, draw: Draw, share: float) -> tuple[Scene, Tensor]:
        """A ``share`` of the scenes at any time up to a clip's length later, and which of them (n,)."""
        uniform = torch.rand(2, len(scene), generator=draw.torch, device=scene.radius.device)
        chosen = uniform[0] < share
        return scene.later(torch.where(chosen, uniform[1] * scene.duration, 0.0)), chosen

    def frames(self, scene: Scene) -> Tensor:
        """fp32 (n, 3, num_frames, side, side) in [-1, 1]."""
        times = torch.arange(self.num_frames, device=scene.radius.device) / self.fps
        return draw_frames(scene, times, self.side)

    def pictures(self, scene: Scene) -> NDArray[np.uint8]:
        """The frames of one scene in 8 bits: (num_frames, side, side, 3)."""
        return np.asarray(to_frames((self.frames(scene) + 1) / 2).cpu().numpy())

    def windows(self, scene: Scene, draw: Draw, size: int, num_frames: int) -> Tensor:
        """Square windows of ``size`` pixels, most of them around a shape, for ``num_frames`` in sequence.

        Returns:
            fp32 (n, 3, num_frames, size, size) in [-1, 1]
        """
        device = scene.radius.device
        first = int(draw.numpy.integers(self.num_frames - num_frames + 1))
        times = (torch.arange(num_frames, device=device) + first) / self.fps
        x, y, _ = scene.track(times[num_frames // 2 :][:1])
        centre = torch.cat([x[:, 0], y[:, 0]], dim=1) * self.side
        shift = (torch.rand(len(scene), 2, generator=draw.torch, device=device) - 0.5) * size
        corner = (centre - size / 2 + shift).clamp(0, self.side - size).round()
        return draw_frames(scene, times, self.side, corner, size)

    def waveform(self, scene: Scene, start: int = 0, samples: int | None = None) -> Tensor:
        """fp32 (n, 2, samples), by default all of the clip."""
        return draw_waveform(scene, samples or self.samples, self.sample_rate, start)
