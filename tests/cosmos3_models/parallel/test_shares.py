"""The prediction for several GPUs agrees with what was measured on two, and with what the documents say."""

import re
from pathlib import Path

import pytest

from benchmarks import nano
from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.folder import DEMO, Checkpoint
from cosmos3_models.parallel.shares import Shares, relative_step_s, shares
from cosmos3_models.resources.cost import pass_flops
from serve.estimates.cost import cost_of

NANO = nano.transformer_config(36)
TOKENS = {"720p": 48 * 23 * 40, "480p": 48 * 15 * 26}
ONE_GPU_S = {"720p": 5.286, "480p": 1.442}
DOCUMENT = Path(__file__).parents[3] / "docs" / "weights.md"


def step_s(size: str, ranks: int, passes: int = 2, prompts: int = 2) -> float:
    """Seconds of the passes of both prompts, in steps of ``prompts``."""
    tokens = TOKENS[size]
    flops = sum(pass_flops(NANO, tokens, 0, text) for text in (nano.PROMPT_TOKENS, nano.NEGATIVE_TOKENS))
    part = prompts / passes
    return ONE_GPU_S[size] * relative_step_s(NANO, tokens, flops * part, prompts, ranks)


@pytest.mark.parametrize(
    ("ranks", "prompts", "expected"),
    [
        (1, 2, Shares(1, 1)),
        (2, 2, Shares(2, 1)),
        (8, 2, Shares(2, 4)),
        (3, 2, Shares(1, 3)),
        (4, 1, Shares(1, 4)),
    ],
)
def test_ranks_are_divided_by_prompt_first(ranks: int, prompts: int, expected: Shares) -> None:
    assert shares(ranks, prompts) == expected


@pytest.mark.parametrize(
    ("size", "prompts", "measured_s"),
    [("720p", 2, 2.700), ("480p", 2, 0.749), ("720p", 1, 2.845), ("480p", 1, 0.803)],
)
def test_the_prediction_for_two_gpus_is_near_what_was_measured(size: str, prompts: int, measured_s: float) -> None:
    """Guidance split with two prompts; context split, for each prompt by itself, with one."""
    assert step_s(size, 2, prompts=prompts) == pytest.approx(measured_s, rel=0.03)


def test_the_document_says_what_is_predicted() -> None:
    rows = re.findall(r"^\| (\d+) +\| ([\d.]+) s\D+([\d.]+) s", DOCUMENT.read_text(), re.MULTILINE)
    assert [int(ranks) for ranks, *_ in rows] == [1, 2, 4, 8]
    for ranks, *seconds in rows:
        for size, said in zip(("720p", "480p"), seconds, strict=True):
            assert float(said) == pytest.approx(step_s(size, int(ranks)), abs=0.006)


def test_a_small_model_is_never_predicted_to_be_slower_on_several_gpus() -> None:
    demo = Checkpoint.open(DEMO)
    assert relative_step_s(demo.transformer, 100, 1e6, 2, 4) == 1


def test_estimates_count_the_gpus_but_not_processes_on_a_cpu() -> None:
    demo, params = Checkpoint.open(DEMO), GenerationParams(prompt="x", height=720, width=1280, num_frames=189)
    alone, on_cpu, on_gpus = (
        cost_of(demo, device, params, (50, 14), ranks=ranks) for device, ranks in (("cpu", 1), ("cpu", 2), ("cuda", 2))
    )
    assert on_cpu == alone
    assert on_gpus.step == pytest.approx(0.515 * alone.step, rel=0.001)
    assert on_gpus.decode == alone.decode
