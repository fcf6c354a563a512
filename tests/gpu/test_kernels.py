"""Each Triton kernel against the PyTorch that defines it: on a GPU, or with TRITON_INTERPRET=1 on the CPU.

The interpreter leaves out what it rounds otherwise or cannot run: all fp8.
"""

import importlib
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cosmos3_models.kernels import dispatch, fp8_ops, pixel_ops, token_ops
from cosmos3_models.kernels.token_ops import HeadNorms, KeyValue, Rotary
from cosmos3_models.transformer.attention import HOPPER, attention

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.gpu
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")
fp8_kernels = importlib.import_module("cosmos3_models.kernels.fp8_kernels")
pixel_kernels = importlib.import_module("cosmos3_models.kernels.pixel_kernels")
token_kernels = importlib.import_module("cosmos3_models.kernels.token_kernels")

DEVICE = "cpu" if INTERPRETED else "cuda"
EXACT = 2e-6  # fp32 sums in another order
FP8_STEP = 1 / 16  # half a step of e4m3, relative: three bits of mantissa
FP8_SUBNORMAL = 2.0**-10  # half a step of its smallest numbers
fp8 = pytest.mark.skipif(
    INTERPRETED or torch.cuda.get_device_capability() < HOPPER, reason="needs the fp8 tensor cores of a GPU"
)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def pixels(*shape: int) -> Tensor:
    return random(*shape).contiguous(memory_format=torch.channels_last_3d)


def close(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).norm() <= EXACT * expected.norm())


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of the ``_ops`` modules run their PyTorch, on a GPU too."""
    monkeypatch.setattr(dispatch, "fused", lambda _: False)


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
    norms = HeadNorms(random(dim), random(dim + 1)[1:].contiguous(), 1e-6)
    angles = random(length, dim // 2)
    positions = Rotary(angles.cos(), angles.sin())
    text = KeyValue(*(random(batch, text_length, kv_heads, dim) for _ in range(2))) if text_length else None
    before = projected.clone()
    query, attended = token_ops.attention_inputs(projected, kv_heads, norms, positions, text)
    got_query, got_key, got_value = token_kernels.attention_inputs(projected, kv_heads, norms, positions, text, 1)
    assert close(got_query, query)
    assert close(got_key, attended.key)
    assert torch.equal(got_value, attended.value)
    assert torch.equal(projected, before), "the projection is left as it was"


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_attention_inputs_of_some_heads_are_those_of_all(ranks: int) -> None:
    length, heads, kv_heads, dim = 50, 32, 8, 128
    kinds = [random(1, length, count, dim).bfloat16() for count in (heads, kv_heads, kv_heads)]
    norms = HeadNorms(random(dim).bfloat16(), random(dim).bfloat16(), 1e-6)
    angles = random(length, dim // 2)
    positions = Rotary(angles.cos(), angles.sin())

    def inputs(kinds: list[Tensor], ranks: int) -> tuple[Tensor, ...]:
        projected = torch.cat([kind.flatten(2) for kind in kinds], dim=2)
        made: tuple[Tensor, ...] = token_kernels.attention_inputs(
            projected, kinds[1].shape[2], norms, positions, None, ranks
        )
        return made

    of_all = inputs(kinds, 1)
    for rank in range(ranks):
        of_rank = inputs([kind.chunk(ranks, dim=2)[rank] for kind in kinds], ranks)
        assert all(torch.equal(some, each.chunk(ranks, 2)[rank]) for some, each in zip(of_rank, of_all, strict=True))


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
    for add_bias_ in (pixel_kernels.add_bias_, pixel_ops.add_bias_):
        place = x.clone()
        assert add_bias_(place, bias, other).data_ptr() == place.data_ptr()
        assert close(place, x + bias[:, None, None, None] + other)


@pytest.mark.parametrize("inputs", [12, 24])
@pytest.mark.parametrize(("time_factor", "first"), [(1, False), (1, True), (2, False), (2, True)])
def test_merge_phases(time_factor: int, first: bool, inputs: int) -> None:
    source = pixels(1, inputs, 1 if first else 2, 3, 5)
    frames = 1 if first else 2 * time_factor
    phases = random(frames, 48, 4, 6).contiguous(memory_format=torch.channels_last)
    bias = random(12)
    merged: list[Callable[..., Tensor]] = [pixel_kernels.merge_phases, pixel_ops.merge_phases]
    got, expected = (merge(phases, bias, source, time_factor, first) for merge in merged)
    assert got.shape == (1, 12, frames, 6, 10)
    assert close(got, expected)


@fp8
@pytest.mark.parametrize("operation", ["quantize", "rms_norm", "swiglu"])
def test_rows_in_fp8_are_as_near_as_three_bits_allow(operation: str) -> None:
    x, weight, gate_up = random(2, 5, 96), random(96), random(1, 5, 192)
    arguments, expected = {
        "quantize": ((x,), x),
        "rms_norm": ((x, weight, 1e-6), token_ops.rms_norm(x, weight, 1e-6)),
        "swiglu": ((gate_up,), token_ops.swiglu(gate_up)),
    }[operation]
    for module in (fp8_kernels, fp8_ops):
        values, scale = getattr(module, operation)(*arguments)
        assert values.dtype == torch.float8_e4m3fn
        error = (fp8_ops.dequantize(fp8_ops.Scaled(values, scale)) - expected).abs()
        unit = scale.view(*expected.shape[:-1], 1)
        assert (error <= expected.abs() * FP8_STEP + unit * FP8_SUBNORMAL + 1e-6).all()


@fp8
def test_a_product_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS keeps about 14 bits of a sum over fp8 products, and both round to bf16."""
    x, weight = fp8_ops.quantize(random(2, 5, 96)), fp8_ops.quantize(random(32, 96))
    expected = fp8_ops.linear(x, weight)
    monkeypatch.undo()
    with torch.inference_mode():
        got = fp8_ops.linear(x, weight)
    assert got.shape == (2, 5, 32) and got.dtype == torch.bfloat16
    assert (got.float() - expected.float()).norm() <= 5e-3 * expected.float().norm()


@fp8
@pytest.mark.parametrize("dim", fp8_ops.HEAD_DIMS)
@pytest.mark.parametrize(("length", "seen"), [(100, 70), (64, 128), (65, 400)])
def test_fp8_attention(length: int, seen: int, dim: int) -> None:
    query, key, value = (random(1, n, heads, dim) for n, heads in ((length, 4), (seen, 2), (seen + 1, 2)))
    value = value[:, :seen] + 1
    key = key + 3 * random(dim)  # a common part, to which softmax is blind
    expected = attention(query.double(), key.double(), value.double())
    for operation in (fp8_kernels.attention, fp8_ops.attention):
        got = operation(query.bfloat16(), key.bfloat16(), value.bfloat16())
        assert (got.double() - expected).norm() <= 0.05 * expected.norm()
