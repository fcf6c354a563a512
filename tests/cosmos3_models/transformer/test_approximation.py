"""What a request may give up for speed: nothing unless it says so, and only where the device can."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.approximations import APPROXIMATIONS, Approximation
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.checkpoint.loading import load_transformer
from cosmos3_models.kernels import fp8_ops
from cosmos3_models.params import ApproximationPolicy, GenerationDefaults
from cosmos3_models.sampling.denoise import VideoDenoiser
from cosmos3_models.shapes import LatentGrid
from cosmos3_models.text.prompt import PromptIds
from cosmos3_models.transformer import model as transformer
from cosmos3_models.transformer.generation_tower import Streams
from cosmos3_models.transformer.precision import EXACT, Fp8, Precision, quantized_weights

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
    everything = Approximation(fp8_linears=True, fp8_attention=True, velocity_reuse=3, guidance_reuse=2)
    assert everything.label == "fp8 linears, fp8 attention, velocity reuse 3, guidance reuse 2"
    assert (everything.arithmetic, Approximation(profile="fast").arithmetic) == ("fp8 linears, fp8 attention", "exact")


@pytest.mark.parametrize(
    "given",
    [{"velocity_reuse": 1}, {"velocity_reuse": 6}, {"guidance_reuse": True}, {"profile": ["fast"]}, {"int4": True}],
)
def test_what_there_is_not_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(given))):
        Approximation(**given)


@pytest.mark.parametrize("field", ["fp8_linears", "fp8_attention"])
def test_fp8_is_refused_where_there_are_no_fp8_tensor_cores(denoiser: VideoDenoiser, field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{field}: got True, expected false, or a GPU of compute capability 9\.0"):
        latents(denoiser, **{field: True})
    with pytest.raises(InvalidInput, match=field):
        denoiser.warm_up(Approximation(**{field: True}))


def test_the_fp8_weights_go_with_the_first_request_that_does_not_want_them(
    denoiser: VideoDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(transformer, "check_fp8", lambda *_: None)
    monkeypatch.setattr(transformer, "quantized_weights", lambda linears: made.append(len(linears)) or {})
    for fp8 in (True, True, False, False, True):
        precision = denoiser.transformer.precision(Approximation(fp8_linears=fp8))
        assert isinstance(precision.products, Fp8) is fp8
        assert (denoiser.transformer._fp8 is not None) is fp8
    assert len(made) == 2
    denoiser.transformer.precision(Approximation())


def test_fp8_as_its_definitions_compute_it_stays_near_bf16(tiny_checkpoint: Path) -> None:
    """On a CPU nothing is asked of it: this is what a GPU's kernels are compared with."""
    model = load_transformer(Checkpoint.open(tiny_checkpoint), CPU, torch.bfloat16)
    condition = model.condition(torch.arange(9)[None], LatentGrid(2, 4, 4), 24.0, None)
    noise = Streams(torch.randn(1, 8, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    products = Fp8(quantized_weights(model.generation.linears))
    exact = model(noise, 500, condition).video.float()
    for precision in (Precision(products, EXACT.attend), Precision(EXACT.products, fp8_ops.attention)):
        off = (model(noise, 500, condition, precision).video.float() - exact).norm() / exact.norm()
        assert 0.001 < off < 0.1


def test_a_checkpoints_own_defaults_hold_where_the_operator_says_nothing() -> None:
    own = GenerationDefaults(velocity_reuse=3, fp8_linears=True)
    assert ApproximationPolicy().over(own) == own
    assert ApproximationPolicy(velocity_reuse=0).over(own).velocity_reuse == 0
    assert ApproximationPolicy(velocity_reuse=2).over(own) == own.model_copy(update={"velocity_reuse": 2})
    assert ApproximationPolicy(velocity_reuse=2).over(own).approximation == Approximation(
        velocity_reuse=2, fp8_linears=True
    )


def test_what_is_not_allowed_is_off_whatever_the_checkpoint_says() -> None:
    policy = ApproximationPolicy(allowed=("fp8_attention",))
    own = GenerationDefaults(profile="fast", fp8_linears=True, fp8_attention=True)
    assert policy.over(own).approximation == Approximation(fp8_attention=True)
    policy.check(Approximation(fp8_attention=True))


@pytest.mark.parametrize(("field", "value", "off"), [("fp8_linears", True, "false"), ("velocity_reuse", 2, "0")])
def test_what_is_not_allowed_is_refused_of_requests_and_as_default(field: str, value: float, off: str) -> None:
    allowed = tuple(name for name in APPROXIMATIONS if name != field)
    told = f"{field}: got {value}, expected {off}, because this server's operator does not allow it"
    with pytest.raises(InvalidInput, match=told):
        ApproximationPolicy(allowed=allowed).check(Approximation(**{field: value}))
    with pytest.raises(InvalidInput, match=told):
        ApproximationPolicy(allowed=allowed, **{field: value})


def test_a_warm_up_leaves_no_trace(denoiser: VideoDenoiser) -> None:
    before = latents(denoiser)
    denoiser.warm_up()
    assert torch.equal(latents(denoiser), before)
