"""After an error, ranks go on together or not at all. No Ray and no second process here."""

import os
import threading
from typing import Any, cast
from unittest.mock import MagicMock

import numpy as np
import pytest
import ray

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.approximations import EXACTLY
from cosmos3_models.errors import Stopped
from cosmos3_models.text.prompt import PromptIds
from serve.graph import denoiser_ranks
from serve.graph.denoiser_ranks import Rank, Ranks
from serve.graph.worker import EXIT_STATUS

IDS, PARAMS = PromptIds(np.arange(3), None), GenerationParams(prompt="x")
WRONG = InvalidInput("fp8_linears", True, "false", "there is no GPU")


class Fake:
    """A denoiser that fails as told."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.warmed_up = 0

    def arrays(self, *_: Any, **__: Any) -> list[Any]:
        if self.error:
            raise self.error
        return []

    __call__ = arrays

    def warm_up(self, _: object) -> None:
        self.warmed_up += 1


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Statuses with which the process would have ended."""
    found: list[int] = []
    monkeypatch.setattr(os, "_exit", found.append)
    return found


def ranks_of(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """Rank 0 of two, the other one without a process."""
    monkeypatch.setattr(denoiser_ranks, "_start", lambda *_: MagicMock())
    monkeypatch.setattr(denoiser_ranks, "_join", lambda denoiser, *_: denoiser)
    monkeypatch.setattr(ray, "get", lambda *_, **__: None)
    return Ranks(lambda: cast(Any, fake), 2)


def run(ranks: Ranks) -> None:
    ranks.arrays(IDS, PARAMS, on_step=lambda *_: None, should_stop=lambda: False, show=lambda *_: None)


@pytest.mark.parametrize(("error", "ends"), [(RuntimeError("out of memory"), True), (Stopped(), False), (WRONG, False)])
def test_a_rank_ends_after_an_error_that_only_it_may_have_met(exits: list[int], error: Exception, ends: bool) -> None:
    fake = Fake(error)
    Rank(lambda: cast(Any, fake)).denoise(IDS, PARAMS, None)
    assert exits == [EXIT_STATUS] * ends


def test_ranks_that_an_error_put_out_of_step_do_not_work_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(RuntimeError("out of memory"))
    ranks = ranks_of(fake, monkeypatch)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(ranks)
    with pytest.raises(RuntimeError, match="no longer at the same step"):
        ranks.warm_up(EXACTLY)
    assert not fake.warmed_up


def test_rank_0_does_not_wait_forever_for_the_others_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser_ranks, "WAIT_S", 0.1)
    joined = threading.Event()
    monkeypatch.setattr(denoiser_ranks, "_start", lambda *_: MagicMock())
    monkeypatch.setattr(denoiser_ranks, "_join", lambda *_: joined.wait())
    monkeypatch.setattr(ray, "get", lambda *_, **__: None)
    with pytest.raises(TimeoutError):
        Ranks(lambda: cast(Any, Fake(None)), 2)
    joined.set()


@pytest.mark.parametrize("error", [Stopped(), WRONG])
def test_ranks_stay_in_step_after_an_error_that_all_of_them_met(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fake = Fake(error)
    ranks = ranks_of(fake, monkeypatch)
    with pytest.raises(type(error)):
        run(ranks)
    ranks.warm_up(EXACTLY)
    assert fake.warmed_up == 1
