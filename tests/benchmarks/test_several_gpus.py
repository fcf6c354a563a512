"""The arithmetic of the measurement with several GPUs."""

import pytest

from benchmarks.several_gpus import class_of, where


def test_a_rank_waits_for_as_long_as_its_exchange_lasts_beyond_the_shortest_one() -> None:
    late = [("nvjet_tst_256x128", 5.0), ("ncclDevKernel_SendRecv", 1.0), ("ncclDevKernel_AllGather", 1.5)]
    early = [("nvjet_tst_256x128", 4.0), ("ncclDevKernel_SendRecv", 2.0), ("ncclDevKernel_AllGather", 0.5)]
    rows = {row["what"]: row["seconds"] for row in where([late, early])}
    assert rows == {"exchanges": 1.5, "matrix products": 5.0, "waiting": 1.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ncclDevKernel_Broadcast_RING_LL", "exchanges"),
        ("void cutlass::device_kernel<flash::enable_sm90>", "attention"),
        ("Memcpy DtoD", "copies and the rest"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
    ],
)
def test_kernels_and_operations_have_a_class(name: str, expected: str) -> None:
    assert class_of(name) == expected
