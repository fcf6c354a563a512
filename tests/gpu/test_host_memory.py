"""Files reach a GPU whole, with several readers at once, and host memory keeps up with layers that are fetched."""

import copy

import pytest
import torch
from torch import nn

from cosmos3_models.checkpoint.upload import Transfer
from cosmos3_models.transformer.offload import HostLayers

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
GPU = torch.device("cuda")


def test_several_readers_fill_rows_of_one_tensor() -> None:
    parts = [torch.randn(n, 1000, generator=torch.Generator().manual_seed(n)) for n in range(1, 40)]
    whole = torch.empty(sum(map(len, parts)), 1000, device=GPU, dtype=torch.bfloat16)
    rows = whole.split([len(part) for part in parts])
    targets = zip(rows, parts, strict=True)
    Transfer(GPU, 4096).fill((row, lambda part=part: part) for row, part in targets)
    assert torch.equal(whole.cpu(), torch.cat(parts).bfloat16())


def test_filling_takes_no_memory_of_the_gpu_besides_the_target() -> None:
    source, target = torch.randn(1000, 1000), torch.empty(1000, 1000, device=GPU)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    Transfer(GPU).fill([(target, lambda: source)])
    assert torch.cuda.max_memory_allocated() == before


@pytest.mark.parametrize("tokens", [1, 20_000])
def test_copies_wait_for_layers_and_layers_for_copies(tokens: int) -> None:
    """With few tokens the layers are faster than the copies of their weights, with many slower."""
    torch.manual_seed(0)
    layers = [nn.Linear(2048, 2048).requires_grad_(False) for _ in range(5)]
    resident = [copy.deepcopy(layer).to(GPU) for layer in layers]
    host = HostLayers(layers, GPU, torch.float32)
    assert all(weight.is_pinned() for layer in layers for weight in layer.parameters())
    start = torch.randn(tokens, 2048, device=GPU)
    for _ in range(10):
        x, expected = start, start
        for layer in host:
            x = torch.tanh(layer(x))
        for layer in resident:
            expected = torch.tanh(layer(expected))
        assert torch.equal(x, expected)
