"""The transformer's attention, with the fastest exact backend that the device has."""

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

HOPPER = (9, 0)
HALF = (torch.bfloat16, torch.float16)
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

Implementation = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Softmax attention with grouped heads (Vaswani et al., 2017; Ainslie et al., 2023).

    Args:
        query: (b, n, heads, d).
        key, value: (b, m, kv_heads, d) with heads a multiple of kv_heads; head h reads h // (heads / kv_heads).
        causal: query i sees keys up to i; needs n == m.

    Returns:
        (b, n, heads, d)
    """
    name = PLAIN if torch.is_grad_enabled() else backend(query.device, query.dtype)
    return IMPLEMENTATIONS[name](query, key, value, causal)


@cache
def backend(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str:
    """Name the implementation that ``attention`` uses on this device, for logs and the model card."""
    if device.type != "cuda" or dtype not in HALF:
        return PLAIN
    capability = torch.cuda.get_device_capability(device)
    if capability[0] == HOPPER[0] and dtype == torch.bfloat16 and importlib.util.find_spec("fa3_fwd_interface"):
        return FLASH_3
    return FLASH_4 if capability >= HOPPER and importlib.util.find_spec("flash_attn") and _has_cute() else CUDNN


def _has_cute() -> bool:
    """Whether the package is flash-attn-4: others of its name have no ``cute``. It reads its cache's folder here."""
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(caches / "cosmos3-serve" / "flash-attention"))
    try:
        from flash_attn import cute
    except ImportError:
        return False
    return hasattr(cute, "flash_attn_func")


def _flash_3(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    from fa3_fwd_interface import flash_attn_func

    out: Tensor = flash_attn_func(query, key, value, causal=causal)
    return out


def _flash_4(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    from flash_attn.cute import flash_attn_func

    out = flash_attn_func(query, key, value, causal=causal)
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first


def _sdpa(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


def _cudnn(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        return _sdpa(query, key, value, causal)


FLASH_3, FLASH_4, CUDNN, PLAIN = "flash-attention-3", "flash-attn-4", "cudnn-sdpa", "pytorch-sdpa"
IMPLEMENTATIONS: dict[str, Implementation] = {FLASH_3: _flash_3, FLASH_4: _flash_4, CUDNN: _cudnn, PLAIN: _sdpa}
