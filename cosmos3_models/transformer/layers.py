"""The layer of both towers: attention, then an MLP, each normed before it and added to what came in.

b  batch       n  tokens of the sequence at hand       d  hidden size
"""

from einops import rearrange
from torch import Tensor, nn

from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.kernels import token_ops
from cosmos3_models.kernels.token_ops import HeadNorms, KeyValue, Rotary
from cosmos3_models.parallel.split import ALONE, Group
from cosmos3_models.transformer.attention import attention
from cosmos3_models.transformer.joined_linear import JoinedLinear
from cosmos3_models.transformer.precision import EXACT, Precision
from cosmos3_models.transformer.rms_norm import RMSNorm


class Attention(nn.Module):
    """x + to_out(attention(to_qkv(norm(x)))) with grouped heads whose queries and keys are normed and rotated."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.kv_heads = config.num_key_value_heads
        width, kv_width = (heads * config.head_dim for heads in (config.num_attention_heads, self.kv_heads))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.to_qkv = JoinedLinear(config.hidden_size, {"to_q": width, "to_k": kv_width, "to_v": kv_width})
        self.norm_q = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.norm_k = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.to_out = nn.Linear(width, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, positions: Rotary, text: KeyValue | None, precision: Precision, context: Group = ALONE
    ) -> tuple[Tensor, KeyValue]:
        """Attend causally among x itself or, with ``text``, to x and the text without a mask.

        Args:
            x: (b, n, d); overwritten by the result unless the precision is ``DIFFERENTIABLE``.
            positions: of the n tokens; with a ``context``, of the tokens of all ranks.
            text: with a ``context``, this rank's heads.
            context: the ranks that share the tokens.

        Returns:
            (b, n, d), and the keys and values that were attended to.
        """
        qkv = precision.products.norm_linear(x, self.norm, self.to_qkv)  # (b, n, (heads + 2 kv_heads) * head_dim)
        qkv = context.to_heads(qkv, tuple(self.to_qkv.parts.values()), positions.cos.shape[0])
        norms = HeadNorms(self.norm_q.weight, self.norm_k.weight, self.norm_k.eps)
        kv_heads = self.kv_heads // context.size
        query, attended = token_ops.attention_inputs(qkv, kv_heads, norms, positions, text, context.size)
        out = attention(query, *attended, causal=True) if text is None else precision.attend(query, *attended)
        out = context.to_tokens(rearrange(out, "b n heads dim -> b n (heads dim)"), x.shape[1])
        return precision.products.add_linear(x, out, self.to_out), attended


class SwiGLU(nn.Module):
    """x + down_proj(silu(gate) * up) with gate and up of norm(x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size
        self.norm = RMSNorm(d, config.rms_norm_eps)
        self.gate_up = JoinedLinear(d, {"gate_proj": inner, "up_proj": inner})
        self.down_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor, precision: Precision) -> Tensor:
        """(b, n, d) to the same; x is overwritten unless the precision is ``DIFFERENTIABLE``."""
        gate_up = precision.products.norm_linear(x, self.norm, self.gate_up)  # (b, n, 2 inner)
        return precision.products.add_swiglu_linear(x, gate_up, self.down_proj)


class Block(nn.Module):
    """One layer of either tower."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        x: Tensor,
        positions: Rotary,
        text: KeyValue | None,
        precision: Precision = EXACT,
        context: Group = ALONE,
    ) -> tuple[Tensor, KeyValue]:
        """See ``Attention.forward``."""
        x, attended = self.attention(x, positions, text, precision, context)
        return self.mlp(x, precision), attended
