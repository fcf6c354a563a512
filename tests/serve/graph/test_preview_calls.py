"""Previews of the graph over handles that follow a script: shown as they come, dropped where they would wait."""

import asyncio
import logging
from typing import Any

import numpy as np
import pytest
from fakes import FakeMethod
from test_graph_calls import BROKEN, PARAMS, FakeStages, events_of, stages

from serve.graph import graph as graph_module
from serve.graph import streaming_call
from serve.graph.artifacts import FinishedRequest
from serve.graph.messages import LATENTS_COMPLETE, LATENTS_FOLLOW, PREVIEW_FOLLOWS

SNIPPETS = np.zeros((4, 1, 2, 1, 1), np.float32)
WATCHED = PARAMS.model_copy(update={"generate_sound": False, "previews": 2})


async def second_step() -> int:
    await asyncio.sleep(0.05)
    return 2


def step_after(preview: FakeMethod) -> Any:
    """The second step, once the preview was asked for and all that follows from its answer has happened."""

    async def step() -> int:
        while not preview.calls or not preview.calls[0].cancelled:  # as every call of a preview is at its end
            await asyncio.sleep(0.001)
        return 2

    return step


def fakes(*items: Any, preview: FakeMethod) -> FakeStages:
    """Stages whose denoiser yields the items before the latents."""
    latents = [LATENTS_FOLLOW, np.zeros((1, 1, 1, 1, 1), np.float32), LATENTS_COMPLETE]
    return stages(denoise=FakeMethod([*items, *latents]))._replace(preview=preview)


def told(events: list[Any]) -> list[Any]:
    """The denoiser's steps, the previews, and the end."""
    assert isinstance(events.pop(), FinishedRequest)
    return [event.get("preview", event["step"]) for event in events if event.get("stage") != "decoders"]


def test_a_preview_is_shown_before_the_next_step_and_its_latents_are_never_loaded() -> None:
    preview_method = FakeMethod([b"jpeg"])
    made = fakes(0, 1, PREVIEW_FOLLOWS, SNIPPETS, step_after(preview_method), preview=preview_method)
    events = events_of(made, WATCHED)
    (preview,) = [event for event in events[:-1] if event["type"] == "preview"]
    assert (preview["step"], preview["steps"]) == (1, WATCHED.num_inference_steps)
    assert told(events) == [0, 1, b"jpeg", 2]
    (call,) = made.preview.calls
    (latents,) = call.args
    assert latents is made.denoise.calls[0].references[3]
    assert not latents.loaded


def test_a_preview_that_is_not_ready_at_the_end_or_at_the_next_one_is_dropped() -> None:
    slow = FakeMethod([asyncio.Event()])
    items = (0, PREVIEW_FOLLOWS, SNIPPETS, 1, PREVIEW_FOLLOWS, SNIPPETS, second_step)
    made = fakes(*items, preview=slow)
    assert told(events_of(made, WATCHED)) == [0, 1, 2]
    (call,) = slow.calls
    assert call.cancelled


def test_a_preview_that_meets_no_free_decoder_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "FREE_WITHIN_S", 0.01)
    monkeypatch.setattr(streaming_call, "START_S", 0.0)
    busy = FakeMethod(asyncio.Event().wait)
    made = fakes(0, PREVIEW_FOLLOWS, SNIPPETS, 1, second_step, PREVIEW_FOLLOWS, SNIPPETS, second_step, preview=busy)
    assert told(events_of(made, WATCHED)) == [0, 1, 2, 2]
    assert [call.cancelled for call in busy.calls] == [True, True], "the second did not wait for the first"


def test_a_preview_that_fails_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    broken = FakeMethod(BROKEN)
    made = fakes(0, 1, PREVIEW_FOLLOWS, SNIPPETS, step_after(broken), preview=broken)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        assert told(events_of(made, WATCHED)) == [0, 1, 2]
    (line,) = caplog.messages
    assert line.startswith("The preview after step 1 could not be made: ")
    assert "a trace" in caplog.text
