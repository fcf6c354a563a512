"""What a request may give up for speed: nothing unless it says so, and only where the device can."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.checkpoint import Checkpoint
from cosmos3_models.denoise import VideoDenoiser
from cosmos3_models.params import Approximation
from cosmos3_models.prompt import PromptIds
from cosmos3_models.step_cache import StepCache
from cosmos3_models.weights import load_transformer

CPU = torch.device("cpu")
PARAMS = GenerationParams(prompt="x", height=32, width=48, num_frames=5, num_inference_steps=6)


@pytest.fixture(scope="module")
def denoiser(tiny_checkpoint: Path) -> VideoDenoiser:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    return VideoDenoiser(load_transformer(checkpoint, CPU, torch.float32), checkpoint.scheduler, checkpoint.sound)


def latents(denoiser: VideoDenoiser, **approximation: float) -> Tensor:
    ids = torch.arange(5, 15).numpy()
    return denoiser(PromptIds(ids, ids[:4]), PARAMS.model_copy(update=approximation)).video


def test_the_label_names_what_is_given_up() -> None:
    assert Approximation().label == "exact"
    everything = Approximation(fp8_linears=True, fp8_attention=True, step_cache=0.1)
    assert everything.label == "fp8 linears, fp8 attention, step cache 0.1"


@pytest.mark.parametrize("given", [{"step_cache": -0.1}, {"step_cache": 1.5}, {"step_cache": True}, {"int4": True}])
def test_what_there_is_not_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(given))):
        Approximation(**given)


@pytest.mark.parametrize("field", ["fp8_linears", "fp8_attention"])
def test_fp8_is_refused_where_there_are_no_fp8_tensor_cores(denoiser: VideoDenoiser, field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{field}: got True, expected false, or a GPU of compute capability 9\.0"):
        latents(denoiser, **{field: True})
    with pytest.raises(InvalidInput, match=field):
        denoiser.warm_up(Approximation(**{field: True}))


def test_a_cache_that_never_holds_changes_nothing(denoiser: VideoDenoiser) -> None:
    exact = latents(denoiser)
    assert torch.allclose(latents(denoiser, step_cache=1e-9), exact, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(latents(denoiser, step_cache=1.0), exact, rtol=1e-3)


def test_the_cache_reuses_the_other_layers_while_the_first_changes_little() -> None:
    calls = []

    def run(x: Tensor, layers: slice) -> Tensor:
        calls.append(layers)
        return x.mul_(2) if layers.start == 0 else x.add_(10)  # in place, as on a GPU

    cache = StepCache(threshold=0.1)
    assert cache.run(torch.ones(3), run).tolist() == [12, 12, 12]
    assert cache.run(torch.full((3,), 1.05), run).tolist() == pytest.approx([12.1] * 3)
    assert cache.reused == 1
    assert cache.run(torch.full((3,), 2.0), run).tolist() == [14, 14, 14]
    assert (cache.reused, len(calls)) == (1, 5)


def test_a_warm_up_leaves_no_trace(denoiser: VideoDenoiser) -> None:
    before = latents(denoiser)
    denoiser.warm_up()
    assert torch.equal(latents(denoiser), before)
