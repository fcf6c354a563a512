"""The generation tower: noisy latents to velocities, attending to the text.

b  batch           n  media tokens: video, time-major, then sound       c  latent channels
d  hidden size     h, w  latent rows and columns                        t  latent frames
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.kernels.token_ops import KeyValue, Rotary
from cosmos3_models.parallel.split import ALONE, Group
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.transformer.layers import Block
from cosmos3_models.transformer.precision import EXACT, Precision
from cosmos3_models.transformer.rms_norm import RMSNorm

TIME_FREQUENCIES = 128


class Streams(NamedTuple):
    """What is denoised together: latents, velocities or noise.

    A clean latent frame is given, not made: it has no noise, takes part in attention like every other one, and stays as
    it is.
    """

    video: Tensor  # (b, c, t, h, w)
    sound: Tensor | None = None  # (b, sound channels, sound frames)
    clean: Tensor | None = None  # bool (t,), or (b, t): the clean frames of the video; None if there are none

    @property
    def present(self) -> list[Tensor]:
        """Video, then sound if there is one."""
        return [self.video] if self.sound is None else [self.video, self.sound]

    @property
    def clean_latents(self) -> Tensor | None:
        """``clean`` in a form that broadcasts over the video, (1 or b, 1, t, 1, 1)."""
        return None if self.clean is None else self.clean.view(-1, 1, self.video.shape[2], 1, 1)

    def replaced(self, latents: Sequence[Tensor]) -> "Streams":
        """These streams with other latents, video first; clean frames keep their own."""
        video, *sound = latents
        clean = self.clean_latents
        kept = video if clean is None else torch.where(clean, self.video, video)
        return Streams(kept, sound[0] if sound else None, self.clean)


@dataclass(frozen=True)
class Condition:
    """One prompt as the generation tower sees it, for one size of video."""

    text: Sequence[KeyValue]  # one per layer; of the heads with which this rank attends
    positions: Rotary  # of all media tokens


class TimestepEmbedder(nn.Module):
    """Sinusoid and two-layer MLP, kept in fp32: the timestep is the one input that bf16 would round visibly."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * TIME_FREQUENCIES, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)
        self.scale = config.timestep_scale

    def forward(self, timestep: int | Tensor) -> Tensor:
        """(d,) for one timestep of 0 to 1000, (b, 1, d) for a column (b, 1, 1) of them."""
        device = self.linear_1.weight.device
        index = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=device)
        angle = timestep * self.scale * torch.exp(-math.log(10_000) / TIME_FREQUENCIES * index)
        return self.linear_2(F.silu(self.linear_1(torch.cat([angle.cos(), angle.sin()], dim=-1))))


class GenerationTower(nn.Module):
    """Runs once per sampler step and prompt. Media tokens attend to the text and to each other without a mask.

    Noisy and clean tokens differ in one thing: a clean one gets no time embedding.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, patch = config.hidden_size, config.patch_latent_dim
        self.patch_size = config.latent_patch_size
        self.proj_in = nn.Linear(patch, d)
        self.proj_out = nn.Linear(d, patch)
        self.time_embedder = TimestepEmbedder(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(d, config.rms_norm_eps)
        if config.sound_gen and config.sound_dim:
            self.audio_proj_in = nn.Linear(config.sound_dim, d)
            self.audio_proj_out = nn.Linear(d, config.sound_dim)
            self.audio_modality_embed = nn.Parameter(torch.empty(d))

    @property
    def linears(self) -> list[nn.Linear]:
        """The linears of all layers."""
        return [module for module in self.layers.modules() if isinstance(module, nn.Linear)]

    def forward(
        self,
        streams: Streams,
        timestep: int | Tensor,
        condition: Condition,
        precision: Precision = EXACT,
        context: Group = ALONE,
    ) -> Streams:
        """Predict the velocity, noise less data, of noisy latents.

        Args:
            streams: noisy and clean latents of any float dtype; left as they are.
            timestep: the noise level of noisy latents, 0 to 1000; one for all, or a column (b, 1, 1).
            condition: keys and values of the text, and the positions of these streams' tokens.
            context: the ranks that share the tokens; the condition was made for it.

        Returns:
            Velocities in the model's dtype, shaped like ``streams``; 0 of clean frames.
        """
        x = self._tokens(streams)
        time, noisy = self.time_embedder(timestep).to(x.dtype), self._noisy(streams, x)
        x = x + time if noisy is None else torch.addcmul(x, time, noisy)
        own = context.part(x)
        for layer, text in zip(self.layers, condition.text, strict=True):
            own = layer(own, condition.positions, text, precision, context)[0]
        return self._velocities(self.norm(context.whole(own, x.shape[1])), streams)

    def _tokens(self, streams: Streams) -> Tensor:
        """(b, n, d)"""
        dtype = self.proj_in.weight.dtype
        tokens = [self.proj_in(patchify(streams.video.to(dtype), self.patch_size))]
        if streams.sound is not None:
            sound = rearrange(streams.sound.to(dtype), "b c n -> b n c")
            tokens.append(self.audio_proj_in(sound) + self.audio_modality_embed)
        return torch.cat(tokens, dim=1)

    def _noisy(self, streams: Streams, x: Tensor) -> Tensor | None:
        """1 for every noisy token of x (b, n, d) and 0 for every clean one, (1 or b, n, 1); None if all are noisy."""
        if streams.clean is None:
            return None
        patches = LatentGrid(*streams.video.shape[2:]).patches(self.patch_size)
        frames = streams.clean.view(-1, patches.frames).logical_not().to(x.dtype)
        video = repeat(frames, "b t -> b (t cells) 1", cells=patches.height * patches.width)
        return F.pad(video, (0, 0, 0, x.shape[1] - patches.cells), value=1)  # sound

    def _velocities(self, x: Tensor, streams: Streams) -> Streams:
        """(b, n, d) to a velocity for each stream."""
        grid = LatentGrid(*streams.video.shape[2:])
        split = grid.patches(self.patch_size).cells
        video = unpatchify(self.proj_out(x[:, :split]), grid, self.patch_size)
        if (clean := streams.clean_latents) is not None:
            video = video.masked_fill(clean, 0)
        if streams.sound is None:
            return Streams(video)
        return Streams(video, rearrange(self.audio_proj_out(x[:, split:]), "b n c -> b c n"))


def patchify(latents: Tensor, size: int) -> Tensor:
    """(b, c, t, h, w) to tokens (b, n, size * size * c), channels fastest; odd edges get zeros below and right."""
    height, width = latents.shape[-2:]
    latents = F.pad(latents, (0, -width % size, 0, -height % size))
    return rearrange(latents, "b c t (h p) (w q) -> b (t h w) (p q c)", p=size, q=size)


def unpatchify(tokens: Tensor, grid: LatentGrid, size: int) -> Tensor:
    """The inverse of ``patchify``, with the padded edges cut off."""
    patches = grid.patches(size)
    latents = rearrange(
        tokens,
        "b (t h w) (p q c) -> b c t (h p) (w q)",
        t=patches.frames,
        h=patches.height,
        p=size,
        q=size,
    )
    return latents[..., : grid.height, : grid.width]
