"""Pieces of the transformer against naive computation; the whole is compared with diffusers in test_parity."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_transformer
from cosmos3_models.kernels import dispatch, token_ops
from cosmos3_models.kernels.token_ops import HeadNorms, Rotary
from cosmos3_models.sampling.guided_velocity import guide
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.transformer.attention import attention
from cosmos3_models.transformer.generation_tower import Streams, patchify, unpatchify
from cosmos3_models.transformer.joined_linear import JoinedLinear, separate_parameters
from cosmos3_models.transformer.model import Transformer
from cosmos3_models.transformer.precision import DIFFERENTIABLE, EXACT, Precision
from cosmos3_models.transformer.rms_norm import RMSNorm

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transformer(tiny_checkpoint: Path) -> Transformer:
    return load_transformer(Checkpoint.open(tiny_checkpoint), CPU, torch.float32)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_unpatchify_undoes_patchify(size: tuple[int, int]) -> None:
    latents = random(1, 8, 3, *size)
    grid = LatentGrid(3, *size)
    tokens = patchify(latents, 2)
    assert tokens.shape == (1, grid.patches(2).cells, 32)
    assert torch.equal(unpatchify(tokens, grid, 2), latents)


def test_a_token_holds_its_patch_row_by_row_with_channels_fastest() -> None:
    latents = torch.arange(8.0).view(1, 2, 1, 2, 2)  # channel 0: 0 1 / 2 3, channel 1: 4 5 / 6 7
    assert patchify(latents, 2).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_an_odd_grid_is_padded_below_and_right_with_zeros() -> None:
    tokens = patchify(torch.ones(1, 1, 1, 1, 3), 2)
    assert tokens[0].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_a_naive_softmax(causal: bool, kv_heads: int) -> None:
    query, key, value = (random(1, 5, heads, 8, dtype=torch.float64) for heads in (4, kv_heads, kv_heads))
    got = attention(query, key, value, causal=causal)
    for head in range(4):
        k, v = (x[0, :, head // (4 // kv_heads)] for x in (key, value))
        scores = query[0, :, head] @ k.T / 8**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        assert torch.allclose(got[0, :, head], scores.softmax(-1) @ v, atol=1e-12)


def test_rms_norm_is_computed_in_fp32_and_rounded_once() -> None:
    norm = RMSNorm(64, 1e-6)
    x, weight = random(3, 64).bfloat16(), random(64).bfloat16()
    norm.weight = torch.nn.Parameter(weight)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert torch.equal(norm(x), exact.bfloat16())


def test_a_joined_linear_makes_the_outputs_of_its_parts_one_after_the_other() -> None:
    linears = [torch.nn.Linear(3, n, bias=False) for n in (2, 4)]
    joined = torch.nn.ModuleDict({"to_ab": JoinedLinear(3, {"to_a": 2, "to_b": 4})})
    separate = separate_parameters(joined)
    assert list(separate) == ["to_a.weight", "to_b.weight"]
    with torch.no_grad():
        for part, linear in zip(separate.values(), linears, strict=True):
            part.copy_(linear.weight)
    x = random(5, 3)
    assert torch.allclose(joined["to_ab"](x), torch.cat([linear(x) for linear in linears], -1))


def test_weights_of_one_input_are_one_parameter(transformer: Transformer) -> None:
    names = {name for name, _ in transformer.named_parameters()}
    for tower in ("text", "generation"):
        layer = f"{tower}.layers.0."
        assert {name.removeprefix(layer) for name in names if name.startswith(layer)} == {
            "attention.norm.weight",
            "attention.to_qkv.weight",
            "attention.norm_q.weight",
            "attention.norm_k.weight",
            "attention.to_out.weight",
            "mlp.norm.weight",
            "mlp.gate_up.weight",
            "mlp.down_proj.weight",
        }


@pytest.mark.parametrize(("precision", "in_place"), [(EXACT, True), (DIFFERENTIABLE, False)])
def test_a_layer_overwrites_its_input_unless_gradients_need_it(
    transformer: Transformer, precision: Precision, in_place: bool
) -> None:
    x, positions = random(1, 5, 64), Rotary(torch.ones(5, 8), torch.zeros(5, 8))
    before = x.clone()
    out, _ = transformer.generation.layers[0](x, positions, None, precision)
    assert (out.data_ptr() == x.data_ptr()) is in_place
    assert torch.equal(x, out if in_place else before)
    expected, _ = transformer.generation.layers[0](before, positions, None)
    assert torch.equal(out, expected)


def test_gradients_reach_every_weight_of_a_layer(transformer: Transformer) -> None:
    layer = copy.deepcopy(transformer.generation.layers[0]).requires_grad_()
    positions = Rotary(torch.ones(5, 8), torch.zeros(5, 8))
    layer(random(1, 5, 64), positions, None, DIFFERENTIABLE)[0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())


def test_text_sees_only_what_comes_before_it(transformer: Transformer) -> None:
    ids = torch.arange(10, 30)[None]
    changed = ids.clone()
    changed[0, -1] = 99
    grid = LatentGrid(1, 2, 2)
    one, other = (transformer.condition(text, grid, 24.0, None).text for text in (ids, changed))
    for before, after in zip(one, other, strict=True):
        assert torch.equal(before.key[:, :-1], after.key[:, :-1])
        assert torch.equal(before.value[:, :-1], after.value[:, :-1])
    assert not torch.equal(one[-1].key[:, -1], other[-1].key[:, -1])


def test_the_last_text_layer_holds_keys_and_values_only(transformer: Transformer) -> None:
    names = {name for name, _ in transformer.text.last.named_parameters()}
    assert names == {"norm.weight", "to_kv.weight", "norm_k.weight"}


def test_picture_and_sound_hear_of_each_other_and_of_the_text(transformer: Transformer) -> None:
    grid = LatentGrid(2, 2, 2)
    noise = Streams(random(1, 8, 2, 2, 2), random(1, 4, 5))
    condition, another = (transformer.condition(torch.tensor([[5, word, 7]]), grid, 24.0, 5) for word in (6, 9))
    video, sound = transformer(noise, 500, condition).present
    louder = transformer(Streams(noise.video, noise.sound + 1), 500, condition)
    brighter = transformer(Streams(noise.video + 1, noise.sound), 500, condition)
    assert not torch.allclose(louder.video, video)
    assert not torch.allclose(brighter.sound, sound)
    assert not torch.allclose(transformer(noise, 500, another).video, video)
    assert not torch.allclose(transformer(noise, 600, condition).video, video)


def test_bf16_stays_close_to_fp32_and_keeps_the_time_embedding_in_fp32(
    tiny_checkpoint: Path, transformer: Transformer
) -> None:
    low = load_transformer(Checkpoint.open(tiny_checkpoint), CPU, torch.bfloat16)
    kinds = {name: parameter.dtype for name, parameter in low.named_parameters()}
    for name, kind in kinds.items():
        assert kind == (torch.float32 if ".time_embedder." in name else torch.bfloat16)
    noise, grid, ids = Streams(random(1, 8, 2, 4, 4)), LatentGrid(2, 4, 4), torch.arange(9)[None]
    exact = transformer(noise, 500, transformer.condition(ids, grid, 24.0, None)).video
    rounded = low(noise, 500, low.condition(ids, grid, 24.0, None)).video.float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_guidance_moves_away_from_the_negative_prompt_in_fp32() -> None:
    positive, negative = torch.tensor([1.5]).bfloat16(), torch.tensor([1.0]).bfloat16()
    assert guide([positive, negative], 6.0).tolist() == [4.0]
    assert guide([positive], 6.0).tolist() == [1.5]
    assert guide([positive, negative], 1.0).dtype == torch.float32


@pytest.mark.parametrize(("head_dim", "fused"), [(64, True), (96, False), (80, False)])
def test_heads_that_triton_cannot_load_whole_take_the_plain_path(
    monkeypatch: pytest.MonkeyPatch, head_dim: int, fused: bool
) -> None:
    calls: list[int] = []
    nothing = torch.zeros(0)
    kernels = SimpleNamespace(
        attention_inputs=lambda *_: calls.append(1) or (nothing, nothing, nothing),
        rms_norm=lambda x, weight, eps: x * weight.to(x.dtype) + eps,
    )
    monkeypatch.setattr(dispatch, "fused", lambda _: True)
    monkeypatch.setattr(dispatch, "kernels", lambda _: kernels)
    gain = torch.ones(head_dim)
    positions = Rotary(torch.ones(5, head_dim // 2), torch.zeros(5, head_dim // 2))
    token_ops.attention_inputs(torch.ones(1, 5, 4 * head_dim), 1, HeadNorms(gain, gain, 0.0), positions, None)
    assert bool(calls) is fused
