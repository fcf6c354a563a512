"""The stage that rewrites prompts, with chat servers of every kind: good, slow, broken, lying and old ones."""

import asyncio
import base64
import io
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scripted_guard
from fake_chat import (
    Behaviour,
    answering,
    caption,
    chatting,
    completion,
    hanging_up,
    knowing_only,
    saying,
    silent,
    well,
)
from PIL import Image

from cosmos3_models import GenerationParams
from cosmos3_models.media.mp4 import encode_video
from cosmos3_models.media.pictures import encode_picture
from cosmos3_models.references import ReferenceKind
from cosmos3_models.text.upsampling import caption_schema, prompt_of
from serve.guards.guard import GuardSettings
from serve.upsampler import chat_server, stage
from serve.upsampler.answer import Upsampled
from serve.upsampler.settings import SAMPLING, UpsamplerSettings
from serve.upsampler.stage import MAX_USELESS, PromptUpsampler

PARAMS = GenerationParams(prompt="a ball", num_frames=9, height=64, width=96)
GOOD = json.dumps(caption("upsampled a ball"))
EXPECTED = Upsampled(prompt_of(GOOD, PARAMS))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "WAITS_S", (0.0, 0.01))


@asynccontextmanager
async def opened(
    url: str, guard: GuardSettings | None = None, **settings: Any
) -> AsyncGenerator[PromptUpsampler, None]:
    upsampler = PromptUpsampler(UpsamplerSettings(**{"base_url": url, "model": "m"} | settings), guard)
    yield upsampler
    await upsampler.close()


def upsampled(url: str, *reference: Any, params: GenerationParams = PARAMS, times: int = 1, **settings: Any) -> Any:
    """What the stage gives; of several requests one after the other, a list."""

    async def scene() -> list[Upsampled]:
        async with opened(url, **settings) as upsampler:
            return [await upsampler.upsample(params, *reference) for _ in range(times)]

    results = asyncio.run(scene())
    return results[0] if times == 1 else results


def test_a_good_server_is_asked_once_with_the_settings_of_the_reference() -> None:
    with chatting() as chat:
        assert upsampled(chat.url) == EXPECTED
    (request,) = chat.requests
    assert {name: request[name] for name in SAMPLING} == SAMPLING
    assert (request["model"], request["max_tokens"], request["seed"]) == ("m", 20_000, 3407)
    assert request["response_format"]["json_schema"]["schema"] == caption_schema(PARAMS)
    assert request["response_format"]["json_schema"]["strict"] is True
    assert chat.keys == [None]


def test_the_operators_sampling_is_over_that_of_the_reference() -> None:
    with chatting() as chat:
        upsampled(chat.url, sampling={"max_tokens": None, "max_completion_tokens": 4000, "temperature": 0})
    (request,) = chat.requests
    assert (request["max_completion_tokens"], request["temperature"]) == (4000, 0)
    assert "max_tokens" not in request


def test_the_key_is_read_for_every_prompt_and_nothing_is_sent_without_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first\n")
    with chatting() as chat:

        async def scene() -> list[Upsampled]:
            results = []
            async with opened(chat.url, api_key_file=str(file)) as upsampler:
                for key in ("first", "second", None):
                    file.write_text(key) if key else file.unlink()
                    results.append(await upsampler.upsample(PARAMS))
            return results

        *good, lost = asyncio.run(scene())
    assert good == [EXPECTED] * 2
    assert lost == Upsampled(error="its key cannot be read")
    assert chat.keys == ["Bearer first", "Bearer second"]


OPENAI = ("model", "messages", "max_tokens", "temperature", "top_p", "presence_penalty", "seed", "response_format")


@pytest.mark.parametrize(
    ("known", "asked"), [(OPENAI, 2), (OPENAI[:-1], 3)], ids=["unlike vLLM", "without response_format"]
)
def test_a_server_that_refuses_unknown_fields_gets_none_and_this_is_remembered(
    known: tuple[str, ...], asked: int
) -> None:
    with chatting(knowing_only(*known)) as chat:
        assert upsampled(chat.url, times=3) == [EXPECTED] * 3
    assert len(chat.requests) == asked + 2
    assert set(chat.requests[-1]) == set(known)


@pytest.mark.parametrize(
    "script",
    [
        (hanging_up, well),
        (answering(500), answering(503), well),
        (answering(429), well),
        (answering(200, b"not JSON"), well),
        (answering(200, {"choices": []}), well),
        (answering(200, [1]), well),
        (saying(None), well),
        (saying("Sure! A red ball."), well),
        (saying(GOOD[:-9]), saying(json.dumps({"prompt": "a ball"})), well),
    ],
    ids=["hangs up", "5xx", "429", "garbage", "no choice", "a list", "no text", "prose", "lies twice"],
)
def test_what_may_pass_is_tried_again(script: tuple[Behaviour, ...]) -> None:
    with chatting(*script) as chat:
        assert upsampled(chat.url) == EXPECTED
    assert len(chat.requests) == len(script)


def test_an_answer_of_no_use_is_not_asked_for_again_with_its_seed() -> None:
    with chatting(saying("no"), hanging_up, saying("no"), well) as chat:
        upsampled(chat.url)
    assert [request["seed"] for request in chat.requests] == [3407, 3408, 3408, 3409]


@pytest.mark.parametrize(
    ("behaviour", "asked", "error"),
    [
        (answering(400, {"error": {"message": "context too short"}}), 3, "its server answered 400"),
        (answering(401), 1, "its server answered 401"),
        (answering(404), 1, "its server answered 404"),
        (answering(307), 1, "its server answered 307"),
        (saying(None, refusal="I cannot"), 1, "its model refused the request"),
        (answering(200, b" " * (2 << 20)), 1, "its server's answer has more than 1048576 bytes"),
        (saying("{}"), MAX_USELESS, "its model gave a caption of another form: subjects: Field required"),
    ],
    ids=["bad request", "bad key", "unknown model", "redirect", "refusal", "huge", "always lies"],
)
def test_what_will_not_pass_is_given_up(behaviour: Behaviour, asked: int, error: str) -> None:
    with chatting(behaviour) as chat:
        chat.headers = {"Location": "http://127.0.0.1:1/v1/chat/completions"}
        assert upsampled(chat.url) == Upsampled(error=error)
    assert len(chat.requests) == asked


def test_the_time_is_bounded_as_a_whole() -> None:
    with chatting(answering(500), silent) as chat:
        start = time.monotonic()
        result = upsampled(chat.url, timeout_s=0.3)
        assert time.monotonic() - start < 30
    assert str(result.error).startswith("there was no caption within 0.3 s")


def test_a_wait_that_the_server_asks_for_is_granted_if_there_is_time() -> None:
    with chatting(answering(429), well) as chat:
        chat.headers = {"Retry-After": "0.01"}
        assert upsampled(chat.url) == EXPECTED
    with chatting(answering(429)) as chat:
        chat.headers = {"Retry-After": "3600"}
        assert upsampled(chat.url) == Upsampled(error="its server answered 429")
    assert len(chat.requests) == 1


def test_a_server_that_is_away_is_named_in_the_log_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "WAITS_S", (1000,))
    with chatting() as chat:
        url = chat.url
    with caplog.at_level(logging.WARNING, "ray.serve"):
        result = upsampled(url)
    assert url not in str(result.error)
    assert result.error == "its server cannot be reached, or broke the connection off"
    assert url in caplog.text


@pytest.mark.parametrize(("status", "logged"), [(404, True), (401, False)])
def test_the_log_has_the_servers_words_unless_they_may_hold_a_key(
    status: int, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with chatting(answering(status, b"sk-secret and so on")) as chat, caplog.at_level(logging.WARNING, "ray.serve"):
        upsampled(chat.url)
    assert f"answered {status}" in caplog.text
    assert ("sk-secret" in caplog.text) is logged


def test_many_prompts_are_rewritten_at_a_time() -> None:
    with chatting(silent) as chat:

        async def scene() -> None:
            async with opened(chat.url) as upsampler:
                asked = [asyncio.create_task(upsampler.upsample(PARAMS)) for _ in range(8)]
                deadline = time.monotonic() + 60
                while len(chat.requests) < 8 and time.monotonic() < deadline:
                    await asyncio.sleep(0.01)
                for one in asked:
                    one.cancel()
                await asyncio.wait(asked)

        asyncio.run(scene())
    assert len(chat.requests) == 8


RED, BLUE = np.full((64, 96, 3), (255, 0, 0), np.uint8), np.full((64, 96, 3), (0, 0, 255), np.uint8)
CLIP = encode_video(np.stack([RED] * 8 + [BLUE] * 5), None, 24, 48_000)


@pytest.mark.parametrize(
    ("file", "kind", "keep", "seen"),
    [
        (encode_picture(RED, "png"), "image", "first", (255, 0, 0)),
        (CLIP, "video", "first", (255, 0, 0)),
        (CLIP, "video", "last", (0, 0, 255)),
    ],
    ids=["a picture", "a clip", "the end of a clip"],
)
def test_a_model_that_sees_gets_the_first_frame_of_the_video(
    file: bytes, kind: ReferenceKind, keep: Any, seen: tuple[int, ...]
) -> None:
    params = PARAMS.model_copy(update={"condition_video_keep": keep})
    with chatting() as chat:
        assert upsampled(chat.url, file, kind, params=params) == EXPECTED
    url = chat.requests[0]["messages"][1]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(_decoded(url))) as picture:
        assert picture.size == (96, 64)
        colour: Any = picture.getpixel((48, 32))
    assert np.abs(np.array(colour, int) - seen).max() < 20


def _decoded(url: str) -> bytes:
    return base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))


def test_a_file_that_cannot_be_read_is_not_sent() -> None:
    with chatting() as chat:
        assert upsampled(chat.url, b"x", "image") == Upsampled(error="the picture or clip cannot be read")
    assert chat.requests == []


@pytest.mark.parametrize("word", ["weapon", "crash"])
def test_a_caption_that_the_guard_does_not_permit_is_a_failure(word: str) -> None:
    with chatting(saying(json.dumps(caption(f"a ball and a {word}")))) as chat:
        result = upsampled(chat.url, guard=scripted_guard.settings("OfWords"))
    assert result == Upsampled(error="this server's guard does not permit its caption")
    with chatting() as chat:
        assert upsampled(chat.url, guard=scripted_guard.settings("OfWords")) == EXPECTED


def test_a_stage_without_its_key_does_not_start(tmp_path: Path) -> None:
    settings = UpsamplerSettings(base_url="http://x/v1", model="m", api_key_file=str(tmp_path / "key"))
    with pytest.raises(
        ValueError, match=r"prompt_upsampler\.api_key_file: got .*key, expected a file that can be read"
    ):
        PromptUpsampler(settings)


def test_the_largest_answer_has_room_for_thoughts() -> None:
    thoughts = "<think>" + "x" * (chat_server.MAX_ANSWER_BYTES // 2) + "</think>"
    with chatting(answering(200, completion(thoughts + GOOD))) as chat:
        assert upsampled(chat.url) == EXPECTED
