"""The mixture-of-transformers: a causal text tower and a generation tower that attends to it.

    b  batch (1)          n  tokens of the sequence at hand      c  latent channels
    d  hidden size        h  rows                                t  latent frames

The text tower runs once per request and leaves keys and values per layer. The generation tower runs once per
sampler step over video tokens (time-major), then sound tokens, and sees text and media without a mask.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.kernels import token_ops
from cosmos3_models.kernels.token_ops import KeyValue, Norms
from cosmos3_models.params import Approximation
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.transformer.joined_linear import JoinedLinear
from cosmos3_models.transformer.offload import HostLayers, move_to_host
from cosmos3_models.transformer.positions import (
    Rotary,
    rotary,
    rotate,
    sound_positions,
    text_positions,
    video_positions,
)
from cosmos3_models.transformer.precision import (
    EXACT,
    Arithmetic,
    Exact,
    Fp8Attention,
    Fp8Linears,
    check_fp8,
    quantized_weights,
)
from cosmos3_models.transformer.step_cache import StepCache

TIME_FREQUENCIES = 128
OFFLOADED = ("text.embed_tokens.", "text.layers.")
"""How the names of the parameters begin that ``TextTower.offload`` moves to host memory."""


class Streams(NamedTuple):
    """What is denoised together: latents, velocities or noise."""

    video: Tensor  # (b, c, t, h, w)
    sound: Tensor | None = None  # (b, sound channels, sound frames)

    @property
    def present(self) -> list[Tensor]:
        """Video, then sound if there is one."""
        return [self.video] if self.sound is None else [self.video, self.sound]


@dataclass(frozen=True)
class Condition:
    """One prompt as the generation tower sees it, for one size of video."""

    text: Sequence[KeyValue]  # one per layer
    positions: Rotary  # of the media tokens


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in fp32 with one cast at the end."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return token_ops.rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size
        self.gate_up = JoinedLinear(d, {"gate_proj": inner, "up_proj": inner})
        self.down_proj = nn.Linear(inner, d, bias=False)

    def added(self, x: Tensor, norm: RMSNorm, arithmetic: Arithmetic) -> Tensor:
        """x plus what the MLP makes of it, perhaps in place of x."""
        gate_up = arithmetic.project(arithmetic.norm(x, norm.weight, norm.eps), self.gate_up)
        return arithmetic.add(x, arithmetic.swiglu(gate_up), self.down_proj)


class KeyValueProjection(nn.Module):
    """Keys and values of each token, without queries."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width = config.num_key_value_heads * config.head_dim
        self.to_kv = JoinedLinear(config.hidden_size, {"to_k": width, "to_v": width})
        self.norm_k = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, positions: Rotary) -> KeyValue:
        key, value = rearrange(self.to_kv(x), "b n (two heads dim) -> two b n heads dim", two=2, dim=self.head_dim)
        return KeyValue(rotate(self.norm_k(key), positions), value)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.kv_heads = config.num_key_value_heads
        width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.to_qkv = JoinedLinear(config.hidden_size, {"to_q": width, "to_k": kv_width, "to_v": kv_width})
        self.norm_q = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.norm_k = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.to_out = nn.Linear(width, config.hidden_size, bias=False)

    def added(
        self, x: Tensor, norm: RMSNorm, positions: Rotary, text: KeyValue | None, arithmetic: Arithmetic
    ) -> tuple[Tensor, KeyValue]:
        """x plus its attention, perhaps in place of x, and the keys and values that were seen.

        It is causal among x itself or, with ``text``, to text and x without a mask.
        """
        projected = arithmetic.project(arithmetic.norm(x, norm.weight, norm.eps), self.to_qkv)
        norms = Norms(self.norm_q.weight, self.norm_k.weight, self.norm_k.eps)
        query, seen = token_ops.attention_inputs(projected, self.kv_heads, norms, positions, text)
        out = arithmetic.attend(query, seen.key, seen.value, causal=text is None)
        return arithmetic.add(x, rearrange(out, "b n heads dim -> b n (heads dim)"), self.to_out), seen


class Block(nn.Module):
    """One layer of either tower."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self, x: Tensor, positions: Rotary, text: KeyValue | None, arithmetic: Arithmetic = EXACT
    ) -> tuple[Tensor, KeyValue]:
        """The layer's output, perhaps in place of x, and the keys and values that it saw."""
        x, seen = self.attention.added(x, self.attention_norm, positions, text, arithmetic)
        return self.mlp.added(x, self.mlp_norm, arithmetic), seen


class LastTextLayer(nn.Module):
    """The text tower ends at its last keys and values: nothing reads the hidden state above them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = KeyValueProjection(config)

    def forward(self, x: Tensor, positions: Rotary) -> KeyValue:
        return self.attention(self.attention_norm(x), positions)


class TextTower(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers - 1))
        self.last = LastTextLayer(config)
        self._host_layers: HostLayers | None = None

    @property
    def offloaded(self) -> bool:
        return self._host_layers is not None

    def offload(self, device: torch.device, dtype: torch.dtype) -> None:
        """Keep the embedding and all layers but the last, which is small, in host memory from now on.

        Values move there; of a tower on the meta device there are none, so that loading fills host memory at once.
        Each call brings the layers to ``device``, two at a time. The results are the same.

        Args:
            device: computes.
            dtype: of the weights.
        """
        move_to_host(self.embed_tokens, {"weight": torch.empty(self.embed_tokens.weight.shape, dtype=dtype)})
        self._host_layers = HostLayers(list(self.layers), device, dtype)

    def forward(self, prompts: Sequence[Tensor], positions: Sequence[Rotary]) -> list[list[KeyValue]]:
        """Keys and values by prompt, then layer. Each layer serves all prompts before the next one begins."""
        xs = [self._embedded(ids, of_prompt) for ids, of_prompt in zip(prompts, positions, strict=True)]
        text: list[list[KeyValue]] = [[] for _ in prompts]
        for layer in self._host_layers or self.layers:
            for i, of_prompt in enumerate(positions):
                xs[i], own = layer(xs[i], of_prompt, None)
                text[i].append(own)
        return [[*own, self.last(x, of_prompt)] for own, x, of_prompt in zip(text, xs, positions, strict=True)]

    def _embedded(self, ids: Tensor, positions: Rotary) -> Tensor:
        return self.embed_tokens(ids.to(self.embed_tokens.weight.device)).to(positions.cos.device)


class TimestepEmbedder(nn.Module):
    """Sinusoid and two-layer MLP, kept in fp32: the timestep is the one input that bf16 would round visibly."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * TIME_FREQUENCIES, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)
        self.scale = config.timestep_scale

    def forward(self, timestep: int | Tensor) -> Tensor:
        """(d,) for one timestep, (b, 1, d) for a column (b, 1, 1) of them."""
        device = self.linear_1.weight.device
        index = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=device)
        angle = timestep * self.scale * torch.exp(-math.log(10_000) / TIME_FREQUENCIES * index)
        return self.linear_2(F.silu(self.linear_1(torch.cat([angle.cos(), angle.sin()], dim=-1))))


class GenerationTower(nn.Module):
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
        arithmetic: Arithmetic = EXACT,
        cache: StepCache | None = None,
    ) -> Streams:
        dtype = self.proj_in.weight.dtype
        grid = LatentGrid(*streams.video.shape[2:])
        tokens = [self.proj_in(patchify(streams.video.to(dtype), self.patch_size))]
        if streams.sound is not None:
            sound = rearrange(streams.sound.to(dtype), "b c n -> b n c")
            tokens.append(self.audio_proj_in(sound) + self.audio_modality_embed)
        x = torch.cat(tokens, dim=1) + self.time_embedder(timestep).to(dtype)  # (b, n, d)

        def run(x: Tensor, layers: slice) -> Tensor:
            for layer, text in zip(self.layers[layers], condition.text[layers], strict=True):
                x = layer(x, condition.positions, text, arithmetic)[0]
            return x

        x = run(x, slice(None)) if cache is None else cache.run(x, run)
        x = self.norm(x)
        split = tokens[0].shape[1]
        video = unpatchify(self.proj_out(x[:, :split]), grid, self.patch_size)
        if streams.sound is None:
            return Streams(video)
        return Streams(video, rearrange(self.audio_proj_out(x[:, split:]), "b n c -> b c n"))


class Transformer(nn.Module):
    """Both towers. ``conditions`` once per request, then the call once per step."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextTower(config)
        self.generation = GenerationTower(config)
        self._fp8_linears: Fp8Linears | None = None

    @property
    def device(self) -> torch.device:
        return self.generation.proj_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.generation.proj_in.weight.dtype

    def arithmetic(self, approximation: Approximation) -> Arithmetic:
        """How to compute as asked. The fp8 weights are kept for as long as every request asks for them.

        Raises:
            InvalidInput: this device or model cannot.
        """
        check_fp8(approximation, self.device, self.config)
        if approximation.fp8_linears and self._fp8_linears is None:
            self._fp8_linears = Fp8Linears(quantized_weights(self.generation.linears))
        elif not approximation.fp8_linears and self._fp8_linears is not None:
            self._fp8_linears = None
            torch.cuda.empty_cache()  # for the other processes of the card
        arithmetic: Exact = self._fp8_linears or EXACT
        return Fp8Attention(arithmetic) if approximation.fp8_attention else arithmetic

    def condition(self, ids: Tensor, grid: LatentGrid, fps: float, sound_frames: int | None) -> Condition:
        """``conditions`` of one prompt."""
        return self.conditions([ids], grid, fps, sound_frames)[0]

    @torch.inference_mode()
    def conditions(
        self, prompts: Sequence[Tensor], grid: LatentGrid, fps: float, sound_frames: int | None
    ) -> list[Condition]:
        """Run the text tower and lay out the positions of the media tokens behind each text.

        Args:
            prompts: int64 (1, n) token ids of each.
            grid: latent frames, rows and columns of the video.
            fps: frames per second of the video.
            sound_frames: latent frames of sound, or None without sound.
        """
        lengths = [ids.shape[1] for ids in prompts]
        texts = self.text(prompts, [self._rotary(text_positions(length)) for length in lengths])
        media = (self._media_positions(length, grid, fps, sound_frames) for length in lengths)
        return [Condition(text, self._rotary(positions)) for text, positions in zip(texts, media, strict=True)]

    def _media_positions(self, text_length: int, grid: LatentGrid, fps: float, sound_frames: int | None) -> Tensor:
        offset = text_length + self.config.media_position_offset
        media = [video_positions(grid.patches(self.config.latent_patch_size), offset, fps, self.config)]
        if sound_frames is not None:
            media.append(sound_positions(sound_frames, offset, self.config))
        return torch.cat(media, dim=1)

    def _rotary(self, positions: Tensor) -> Rotary:
        return rotary(positions, self.config, self.device, torch.float32)

    @torch.inference_mode()
    def forward(
        self,
        streams: Streams,
        timestep: int,
        condition: Condition,
        arithmetic: Arithmetic = EXACT,
        cache: StepCache | None = None,
    ) -> Streams:
        """The velocity (noise minus data) of each stream, in the model's dtype.

        Args:
            streams: noisy latents of any dtype.
            timestep: 0 to 999.
            condition: of the same grid and sound length.
            arithmetic: as ``arithmetic`` made it.
            cache: of this condition in this request, or None to compute every layer.
        """
        return self.generation(streams, timestep, condition, arithmetic, cache)


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
