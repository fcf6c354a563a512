"""Every implementation of attention that this machine has, against fp64."""

from importlib.util import find_spec

import pytest
import torch

from cosmos3_models.transformer.attention import FLASH_3, HOPPER, IMPLEMENTATIONS, attention, backend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

ROUNDING = 4e-3  # of bf16 results, relative: half a step is 2e-3 to 4e-3 of a number
IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == HOPPER[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [32, 128])
@pytest.mark.parametrize(("length", "seen", "causal"), [(300, 700, False), (1, 65, False), (129, 129, True)])
def test_attention_is_exact_but_for_rounding(
    length: int, seen: int, causal: bool, dim: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(length + dim)
    query, key, value = (
        torch.randn(2, n, heads, dim, generator=generator).to("cuda", dtype)
        for n, heads in ((length, 8), (seen, 2), (seen, 2))
    )
    with torch.inference_mode():
        expected = attention(query.double(), key.double(), value.double(), causal=causal)
        got = attention(query, key, value, causal=causal)
        again = IMPLEMENTATIONS[backend(query.device, dtype)](query, key, value, causal)
    assert torch.equal(got, again)
    assert (got.double() - expected).norm() <= ROUNDING * expected.norm()


@pytest.mark.skipif(not IS_HOPPER or find_spec("fa3_fwd_interface") is None, reason="needs Hopper and fa3-fwd")
def test_hopper_uses_flash_attention_3_for_bf16() -> None:
    assert backend(torch.device("cuda", 0)) == FLASH_3
    assert backend(torch.device("cuda", 0), torch.float16) != FLASH_3, "the package has no kernels for fp16"
