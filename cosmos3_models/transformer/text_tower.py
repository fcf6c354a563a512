"""The causal text tower: token ids to keys and values for every layer of the generation tower."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.kernels.token_ops import KeyValue, Rotary, rotate
from cosmos3_models.transformer.joined_linear import JoinedLinear
from cosmos3_models.transformer.layers import Block
from cosmos3_models.transformer.offload import HostLayers, move_to_host
from cosmos3_models.transformer.precision import EXACT, Precision
from cosmos3_models.transformer.rms_norm import RMSNorm


class LastTextLayer(nn.Module):
    """The text tower ends at its last keys and values: nothing reads the hidden state above them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width = config.num_key_value_heads * config.head_dim
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.to_kv = JoinedLinear(config.hidden_size, {"to_k": width, "to_v": width})
        self.norm_k = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, positions: Rotary) -> KeyValue:
        """Keys and values (b, n, kv_heads, head_dim) of hidden states (b, n, d)."""
        joined = self.to_kv(self.norm(x))
        key, value = rearrange(joined, "b n (two heads dim) -> two b n heads dim", two=2, dim=self.head_dim)
        return KeyValue(rotate(self.norm_k(key), positions), value)


class TextTower(nn.Module):
    """Runs once per request."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        # Without nn.Embedding's random start, which on the meta device imports PyTorch's compiler: two seconds.
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers - 1))
        self.last = LastTextLayer(config)
        self._host_layers: HostLayers | None = None

    @property
    def offloaded(self) -> bool:
        """Whether ``offload`` was called."""
        return self._host_layers is not None

    @property
    def offloadable(self) -> list[Tensor]:
        """The weights that ``offload`` keeps in host memory: all but those of the last layer, which is small."""
        return [self.embed_tokens.weight, *self.layers.parameters()]

    def offload(self, device: torch.device, dtype: torch.dtype) -> None:
        """Keep the ``offloadable`` weights in host memory from now on.

        Values move there. A tower on the meta device has none, so that loading can fill host memory directly. Each call
        brings the layers to ``device``, two at a time. The results are the same.

        Args:
            device: computes.
            dtype: of the weights.
        """
        move_to_host(self.embed_tokens, {"weight": torch.empty(self.embed_tokens.weight.shape, dtype=dtype)})
        self._host_layers = HostLayers(list(self.layers), device, dtype)

    def forward(
        self, prompts: Sequence[Tensor], positions: Sequence[Rotary], precision: Precision = EXACT
    ) -> list[list[KeyValue]]:
        """Encode prompts; each layer serves all of them before the next layer begins.

        Args:
            prompts: int64 (b, n) token ids of each.
            positions: of each prompt's tokens.

        Returns:
            Keys and values by prompt, then layer.
        """
        xs = [self._embedded(ids, of_prompt) for ids, of_prompt in zip(prompts, positions, strict=True)]
        text: list[list[KeyValue]] = [[] for _ in prompts]
        for layer in self._host_layers or self.layers:
            for i, of_prompt in enumerate(positions):
                xs[i], own = layer(xs[i], of_prompt, None, precision)
                text[i].append(own)
        return [[*own, self.last(x, of_prompt)] for own, x, of_prompt in zip(text, xs, positions, strict=True)]

    def _embedded(self, ids: Tensor, positions: Rotary) -> Tensor:
        return self.embed_tokens(ids.to(self.embed_tokens.weight.device)).to(positions.cos.device)
