"""What becomes of a request's prompt, over a stage that follows a script."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakes import FakeCall, FakeHandle, FakeMethod
from ray.exceptions import RayActorError, RayTaskError

from cosmos3_models import GenerationParams
from serve.errors import InputLost, InvalidRequest, PromptUpsamplingFailed
from serve.graph import revision
from serve.graph.graph import Reference
from serve.graph.revision import Reviser, Revision, Upsampler, wants_revision
from serve.upsampler.answer import Upsampled

ASKS = GenerationParams(prompt="a ball", num_frames=5, height=16, width=16, prompt_upsampling=True)
REQUIRES = ASKS.model_copy(update={"prompt_upsampling": "required"})
CAPTION = '{"subjects": []}'
GOOD = Upsampled(CAPTION)

Check = Callable[[GenerationParams], Awaitable[object]]


async def short(_: GenerationParams) -> None:
    return None


async def too_long(params: GenerationParams) -> None:
    raise InvalidRequest(f"prompt: got {len(params.prompt)} tokens", "prompt")


async def read() -> bytes:
    return b"picture"


async def lost() -> bytes:
    raise InputLost("the picture is gone")


def revised(
    *results: Any, params: GenerationParams = ASKS, check: Check = short, sees: bool = False, reference: Any = None
) -> tuple[Revision, list[FakeCall]]:
    """The revision, but for its time, and the calls of the stage."""
    method = FakeMethod(*results)
    handle: Any = FakeHandle(upsample=method)
    reviser = Reviser(Upsampler(handle, 60, sees) if results else None, check)
    made = asyncio.run(reviser.revise(params, reference))
    assert made.seconds is not None
    return made._replace(seconds=None), method.calls if results else []


@pytest.mark.parametrize(
    ("prompt", "choice", "wanted"),
    [
        ("x", False, False),
        ("x", True, True),
        ("x", "required", True),
        (CAPTION, "required", False),
        ("[1]", True, True),
    ],
)
def test_a_prompt_is_rewritten_if_the_request_asks_and_it_is_no_caption(prompt: str, choice: Any, wanted: bool) -> None:
    params = ASKS.model_copy(update={"prompt": prompt, "prompt_upsampling": choice})
    assert wants_revision(params) is wanted


def test_a_caption_takes_the_place_of_the_prompt_for_the_stages_alone() -> None:
    made, (call,) = revised(GOOD)
    assert made == Revision(CAPTION)
    assert call.args == (ASKS,)
    assert made.of(ASKS) == ASKS.model_copy(update={"prompt": CAPTION})
    assert Revision().of(ASKS) is ASKS
    record = {"stage_durations": {"denoiser": 1.0}}
    assert made._replace(seconds=2.0).added_to(record) == {
        "revised_prompt": CAPTION,
        "prompt_upsampling_error": None,
        "stage_durations": {"prompt_upsampler": 2.0, "denoiser": 1.0},
    }
    assert Revision().added_to(record)["stage_durations"] == {"denoiser": 1.0}


@pytest.mark.parametrize("sees", [True, False])
def test_the_stage_gets_the_picture_if_its_model_sees(sees: bool) -> None:
    _, (call,) = revised(GOOD, sees=sees, reference=Reference("image", read))
    assert call.args[1:] == ((b"picture", "image") if sees else ())


BROKEN: Exception = RayTaskError("upsample", "a trace with /paths", RuntimeError("secret")).as_instanceof_cause()


@pytest.mark.parametrize(
    ("results", "check", "error"),
    [
        ((Upsampled(error="its server answered 500"),), short, "its server answered 500"),
        ((GOOD,), too_long, f"its caption is refused: prompt: got {len(CAPTION)} tokens"),
        ((BROKEN,), short, "the stage failed; the server's log has the details"),
        ((RayActorError(),) * 3, short, "the stage failed; the server's log has the details"),
        ((), short, "this server has no prompt upsampler"),
    ],
    ids=["answer", "too long", "broken", "dies", "gone"],
)
def test_a_failure_leaves_the_prompt_unless_the_caption_is_required(
    results: tuple[Any, ...], check: Check, error: str
) -> None:
    told = f"the prompt upsampler failed: {error}"
    made, _ = revised(*results, check=check)
    assert made == Revision(error=told)
    assert made.of(ASKS) is ASKS
    with pytest.raises(PromptUpsamplingFailed, match=error) as failed:
        revised(*results, check=check, params=REQUIRES)
    assert failed.value.body["error"] == {
        "message": told,
        "type": "server_error",
        "param": "prompt_upsampling",
        "code": "prompt_upsampling_failed",
    }
    assert failed.value.status == 502


def test_another_replica_is_asked_if_one_dies() -> None:
    made, calls = revised(RayActorError(), RayActorError(), GOOD)
    assert made.prompt == CAPTION
    assert len(calls) == 3


def test_a_stage_that_does_not_answer_is_left_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "EXTRA_S", -59.9)

    async def never() -> None:
        await asyncio.Event().wait()

    made, (call,) = revised(never)
    assert made.error == "the prompt upsampler failed: the stage did not answer in time"
    assert call.cancelled


def test_a_lost_picture_is_an_error_of_the_request() -> None:
    with pytest.raises(InputLost):
        revised(GOOD, sees=True, reference=Reference("image", lost))
