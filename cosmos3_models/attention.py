"""The one attention function of the transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Softmax attention with grouped heads.

    Args:
        query: (b, n, heads, d).
        key, value: (b, m, kv_heads, d) with heads a multiple of kv_heads; head h reads h // (heads / kv_heads).
        causal: query i sees keys up to i; needs n == m.

    Returns:
        (b, n, heads, d)
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


def backend(device: torch.device) -> str:
    """Which implementation ``attention`` reaches on this device, for logs and the model card."""
    return "pytorch-sdpa-cuda" if device.type == "cuda" else "pytorch-sdpa"
