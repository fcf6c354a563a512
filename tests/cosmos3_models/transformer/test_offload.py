"""A text tower in host memory says exactly what one on the device says, and lets the device hold two layers at most."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosmos3_models import Cosmos3Pipeline, GenerationParams
from cosmos3_models.checkpoint.folder import CardUse, Checkpoint, Offload
from cosmos3_models.checkpoint.loading import load_transformer
from cosmos3_models.params import ApproximationPolicy
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.transformer.generation_tower import Condition
from cosmos3_models.transformer.model import Transformer
from cosmos3_models.transformer.offload import HostLayers
from serve.app import AppArgs
from serve.graph import stages, worker

CPU, META = torch.device("cpu"), torch.device("meta")
OFFLOADED = ("text.embed_tokens.", "text.layers.")  # how the names of offloaded parameters begin
LAYERS = 5
WIDTH = 3


def load(folder: Path, device: torch.device, offload_text: Offload) -> Transformer:
    return load_transformer(Checkpoint.open(folder), device, torch.float32, offload_text)


def conditions(transformer: Transformer) -> list[Condition]:
    return transformer.conditions([torch.arange(3, 40)[None], torch.arange(90, 99)[None]], LatentGrid(2, 4, 4), 24.0, 5)


def linears() -> list[nn.Module]:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH).requires_grad_(False) for _ in range(LAYERS)]
    for parameter in nn.ModuleList(layers).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layers


def parameters(layer: nn.Module) -> list[Tensor]:
    return list(layer.parameters())


def assert_same(got: list[Condition], expected: list[Condition]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.positions, other.positions, strict=True))
        for layer, (own, theirs) in enumerate(zip(one.text, other.text, strict=True)):
            assert torch.equal(own.key, theirs.key), layer
            assert torch.equal(own.value, theirs.value), layer


def test_every_layer_computes_with_its_own_weights_in_its_turn() -> None:
    layers, x = linears(), torch.ones(WIDTH)
    expected = [layer(x) for layer in layers]
    # Called as they come: a layer that was kept for later would find another's weights in its slot.
    got = [layer(x) for layer in HostLayers(layers, CPU, torch.float32)]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_device_holds_two_layers_at_most_and_not_the_copies_in_host_memory() -> None:
    layers = linears()
    seen = set()
    for layer in HostLayers(layers, CPU, torch.float32):
        weights: dict[str, Tensor] = layer.args[1]  # type: ignore[attr-defined]
        seen |= {weight.data_ptr() for weight in weights.values()}
    assert len(seen) == 2 * len(parameters(layers[0]))
    assert not seen & {weight.data_ptr() for layer in layers for weight in layer.parameters()}


def test_a_layer_that_fails_leaves_the_next_pass_whole() -> None:
    layers, x = linears(), torch.ones(WIDTH)
    host = HostLayers(layers, CPU, torch.float32)
    with pytest.raises(RuntimeError, match="shapes"):
        for layer in host:
            layer(torch.ones(WIDTH + 1))
    assert all(torch.equal(got(x), layer(x)) for got, layer in zip(host, layers, strict=True))


def test_an_offloaded_text_tower_gives_the_same_keys_and_values(tiny_checkpoint: Path) -> None:
    resident, offloaded = (load(tiny_checkpoint, CPU, choice) for choice in (False, True))
    assert offloaded.text.offloaded and not resident.text.offloaded
    expected = conditions(resident)
    assert_same(conditions(offloaded), expected)
    resident.text.offload(CPU, torch.float32)
    assert_same(conditions(resident), expected)


def test_prompts_encoded_together_are_as_if_each_were_alone(tiny_checkpoint: Path) -> None:
    transformer = load(tiny_checkpoint, CPU, True)
    alone = [
        transformer.condition(ids, LatentGrid(2, 4, 4), 24.0, 5)
        for ids in (torch.arange(3, 40)[None], torch.arange(90, 99)[None])
    ]
    assert_same(conditions(transformer), alone)


def test_only_the_text_towers_embedding_and_layers_stay_off_the_device(tiny_checkpoint: Path) -> None:
    """The meta device keeps no values: what stays off it stays whole, and what was there even for a while is lost."""
    transformer = load(tiny_checkpoint, META, True)
    for name, parameter in transformer.named_parameters():
        assert parameter.device == (CPU if name.startswith(OFFLOADED) else META), name
    expected = dict(load(tiny_checkpoint, CPU, False).named_parameters())
    staying = [name for name in expected if name.startswith(OFFLOADED)]
    assert len(staying) == 1 + 8 * len(transformer.text.layers)
    for name in staying:
        assert torch.equal(transformer.get_parameter(name), expected[name]), name
    resident = load(tiny_checkpoint, META, False)
    assert {parameter.device for parameter in resident.parameters()} == {META}


def test_host_memory_holds_each_weight_once(tiny_checkpoint: Path) -> None:
    transformer = load(tiny_checkpoint, CPU, True)
    host = transformer.text._host_layers
    assert host is not None
    memory = host._memory.untyped_storage().data_ptr()
    assert all(p.untyped_storage().data_ptr() == memory for p in transformer.text.layers.parameters()), "a second copy"
    assert sum(p.numel() for p in transformer.text.layers.parameters()) == host._memory.numel()


def test_a_video_is_the_same_with_the_text_tower_in_host_memory(tiny_checkpoint: Path) -> None:
    params = GenerationParams(prompt="x", height=32, width=32, num_frames=5, num_inference_steps=2)
    one, other = (
        Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu", offload_text=choice)(params) for choice in (False, True)
    )
    assert torch.equal(one.video_latents, other.video_latents)
    assert (one.frames == other.frames).all()


@pytest.mark.parametrize("offload_text", [True, False])
def test_the_denoisers_log_tells_where_the_text_tower_is(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, offload_text: bool
) -> None:
    told: list[str] = []
    monkeypatch.setattr(worker.logger, "info", told.append)
    use = CardUse(1, "same GPU", ())
    policy, patience = ApproximationPolicy(), AppArgs().patience()
    stages.Denoiser(str(tiny_checkpoint), "cpu", policy, offload_text, use, patience)
    assert any("text tower in host memory" in line for line in told) is offload_text
