"""Tensors arrive whole, however the memory that they pass through divides them."""

import pytest
import torch

from cosmos3_models.checkpoint.upload import Transfer

CPU = torch.device("cpu")


@pytest.mark.parametrize("staging_bytes", [4, 7, 24, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_copy_in_parts_equals_the_original(staging_bytes: int, dtype: torch.dtype) -> None:
    source = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for tensor in (source, source.T):
        target = torch.empty(tensor.shape, dtype=dtype)
        Transfer(CPU, staging_bytes).staged(tensor, target)
        assert torch.equal(target, tensor.to(dtype))


def test_reads_fill_rows_of_one_tensor() -> None:
    parts = [torch.randn(n, 1000, generator=torch.Generator().manual_seed(n)) for n in range(1, 40)]
    whole = torch.empty(sum(map(len, parts)), 1000)
    rows = whole.split([len(part) for part in parts])
    Transfer(CPU).fill((row, lambda part=part: part) for row, part in zip(rows, parts, strict=True))
    assert torch.equal(whole, torch.cat(parts))
