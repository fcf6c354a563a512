"""Which implementation of attention a device gets. What they compute, the GPU lane and the parity tests compare."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from cosmos3_models.transformer.attention import CUDNN, FLASH_3, FLASH_4, PLAIN, backend

Machine = Callable[..., None]
GPU = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Pretends that the GPU has a compute capability and that packages are installed."""

    def pretend(capability: tuple[int, int], *packages: str) -> None:
        found = {name: ModuleSpec(name, None) for name in packages}
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(importlib.util, "find_spec", found.get)

    backend.cache_clear()
    yield pretend
    backend.cache_clear()


@pytest.fixture
def flash_attn_4(monkeypatch: pytest.MonkeyPatch) -> None:
    package, cute = ModuleType("flash_attn"), ModuleType("flash_attn.cute")
    cute.flash_attn_func = package.cute = cute  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)


@pytest.mark.usefixtures("flash_attn_4")
@pytest.mark.parametrize(
    ("capability", "packages", "bf16", "fp16"),
    [
        ((8, 0), ["fa3_fwd_interface", "flash_attn"], CUDNN, CUDNN),
        ((9, 0), [], CUDNN, CUDNN),
        ((9, 0), ["fa3_fwd_interface"], FLASH_3, CUDNN),
        ((9, 0), ["flash_attn"], FLASH_4, FLASH_4),
        ((9, 0), ["fa3_fwd_interface", "flash_attn"], FLASH_3, FLASH_4),
        ((10, 0), ["fa3_fwd_interface"], CUDNN, CUDNN),
        ((10, 0), ["fa3_fwd_interface", "flash_attn"], FLASH_4, FLASH_4),
    ],
)
def test_the_fastest_that_is_installed(
    machine: Machine, capability: tuple[int, int], packages: list[str], bf16: str, fp16: str
) -> None:
    machine(capability, *packages)
    assert [backend(GPU, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)] == [bf16, fp16, PLAIN]


def test_an_older_flash_attention_is_not_the_fourth(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    machine((9, 0), "flash_attn")
    assert backend(GPU) == CUDNN


def test_a_cpu_has_pytorchs() -> None:
    assert backend(torch.device("cpu")) == PLAIN
