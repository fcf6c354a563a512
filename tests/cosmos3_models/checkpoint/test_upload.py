"""Tensors arrive whole, however the memory that they pass through divides them."""

import pytest
import torch

from cosmos3_models.checkpoint.upload import Transfer

CPU = torch.device("cpu")


@pytest.mark.parametrize("staging_bytes", [1, 7, 24, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_copy_in_parts_equals_the_original(staging_bytes: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(Transfer(CPU, staging_bytes).one(tensor), tensor)
    assert torch.equal(Transfer(CPU, staging_bytes).one(tensor.T), tensor.T)


def test_results_keep_the_order_of_the_reads() -> None:
    reads = [lambda n=n: torch.tensor([n]) for n in range(20)]
    assert [int(tensor) for tensor in Transfer(CPU).all(reads)] == list(range(20))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_several_readers_fill_a_gpu() -> None:
    tensors = [torch.randn(n, 1000, generator=torch.Generator().manual_seed(n)) for n in range(1, 40)]
    arrived = Transfer(torch.device("cuda"), 4096).all(lambda tensor=tensor: tensor for tensor in tensors)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(arrived, tensors, strict=True))
