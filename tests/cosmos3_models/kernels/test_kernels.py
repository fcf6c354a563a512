"""The Triton kernels against the PyTorch that defines them: on a GPU, or with TRITON_INTERPRET=1 on the CPU."""

import importlib
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cosmos3_models.kernels import pixel_ops, token_ops
from cosmos3_models.kernels.token_ops import KeyValue, Norms
from cosmos3_models.transformer.attention import attention
from cosmos3_models.transformer.positions import Rotary

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")
fp8_kernels = importlib.import_module("cosmos3_models.kernels.fp8_kernels")
pixel_kernels = importlib.import_module("cosmos3_models.kernels.pixel_kernels")
token_kernels = importlib.import_module("cosmos3_models.kernels.token_kernels")

DEVICE = "cpu" if INTERPRETED else "cuda"
EXACT = 2e-6  # fp32 sums in another order


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def pixels(*shape: int) -> Tensor:
    return random(*shape).contiguous(memory_format=torch.channels_last_3d)


def close(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).norm() <= EXACT * expected.norm())


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of the ``_ops`` modules run their PyTorch, on a GPU too."""
    for module in (token_ops, pixel_ops):
        monkeypatch.setattr(module, "fused", lambda _: False)


@pytest.mark.parametrize("size", [64, 96])
def test_rms_norm(size: int) -> None:
    x, weight = random(2, 5, size), random(size)
    assert close(token_kernels.rms_norm(x, weight, 1e-6), token_ops.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("inner", [32, 96])
def test_swiglu(inner: int) -> None:
    gate_up = random(1, 5, 2 * inner)
    assert close(token_kernels.swiglu(gate_up), token_ops.swiglu(gate_up))


@pytest.mark.parametrize("text_length", [0, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 3)])
def test_attention_inputs(heads: int, kv_heads: int, text_length: int) -> None:
    batch, length, dim = 2, 5, 16
    projected = random(batch, length, (heads + 2 * kv_heads) * dim)
    norms = Norms(random(dim), random(dim + 1)[1:].contiguous(), 1e-6)
    angles = random(length, dim // 2)
    positions = Rotary(angles.cos(), angles.sin())
    text = KeyValue(*(random(batch, text_length, kv_heads, dim) for _ in range(2))) if text_length else None
    query, seen = token_ops.attention_inputs(projected.clone(), kv_heads, norms, positions, text)
    got_query, got = token_kernels.attention_inputs(projected.clone(), kv_heads, norms, positions, text)
    assert close(got_query, query)
    assert close(got.key, seen.key)
    assert torch.equal(got.value, seen.value)


@pytest.mark.parametrize("channels", [16, 12])
@pytest.mark.parametrize("with_bias", [False, True])
def test_norm_silu_writes_its_frames_only(channels: int, with_bias: bool) -> None:
    x, bias, gain = pixels(1, channels, 3, 5, 7), random(channels), random(channels, 1, 1, 1)
    got, expected = (torch.zeros_like(pixels(1, channels, 5, 5, 7)) for _ in range(2))
    for norm_silu, out in ((pixel_kernels.norm_silu, got), (pixel_ops.norm_silu, expected)):
        norm_silu(x, bias if with_bias else None, gain, out[:, :, 2:])
    assert close(got, expected)
    assert not got[:, :, :2].any()


def test_add_bias() -> None:
    x, other, bias = pixels(1, 12, 3, 5, 7), pixels(1, 12, 3, 7, 5).transpose(3, 4), random(12)
    other = other.contiguous(memory_format=torch.channels_last_3d)
    assert close(pixel_kernels.add_bias(x.clone(), bias, other), pixel_ops.add_bias(x, bias, other))


@pytest.mark.parametrize("inputs", [12, 24])
@pytest.mark.parametrize(("time_factor", "first"), [(1, False), (1, True), (2, False), (2, True)])
def test_merge_phases(inputs: int, time_factor: int, first: bool) -> None:
    source = pixels(1, inputs, 1 if first else 2, 3, 5)
    frames = 1 if first else 2 * time_factor
    phases = random(frames, 48, 4, 6).contiguous(memory_format=torch.channels_last)
    bias = random(12)
    merged: list[Callable[..., Tensor]] = [pixel_kernels.merge_phases, pixel_ops.merge_phases]
    got, expected = (merge(phases, bias, source, time_factor, first) for merge in merged)
    assert got.shape == (1, 12, frames, 6, 10)
    assert close(got, expected)


def test_rows_in_fp8_are_as_near_as_three_bits_allow() -> None:
    x, weight = random(2, 5, 96), random(96)
    gate_up = random(1, 5, 192)
    for (values, scale), expected in (
        (fp8_kernels.quantized(x), x),
        (fp8_kernels.rms_norm(x, weight, 1e-6), token_ops.rms_norm(x, weight, 1e-6)),
        (fp8_kernels.swiglu(gate_up), token_ops.swiglu(gate_up)),
    ):
        assert values.dtype == torch.float8_e4m3fn
        error = (values.float() * scale.view(*expected.shape[:-1], 1) - expected).abs()
        largest = expected.abs().amax(-1, keepdim=True)
        steps = 8 if INTERPRETED else 16  # the interpreter rounds towards zero
        assert (error <= expected.abs() / steps + largest / 448 / 512).all()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not run loops of a length that the kernel computes")
@pytest.mark.parametrize("dim", fp8_kernels.HEAD_DIMS)
@pytest.mark.parametrize(("length", "seen"), [(100, 70), (64, 128), (65, 400)])
def test_fp8_attention(length: int, seen: int, dim: int) -> None:
    query, key, value = (random(1, n, heads, dim) for n, heads in ((length, 4), (seen, 2), (seen + 1, 2)))
    value = value[:, :seen] + 1
    key = key + 3 * random(dim)  # a common part, to which softmax is blind
    expected = attention(query.double(), key.double(), value.double())
    got = fp8_kernels.attention(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert (got.double() - expected).norm() <= 0.05 * expected.norm()
