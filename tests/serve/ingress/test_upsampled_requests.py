"""Requests whose prompts are rewritten, through the real routes and the real stage, with a chat server that is not."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_chat import Behaviour, FakeChat, answering, caption, chatting
from local_api import MP4, URL, LocalClient, LocalHandle, LocalIngress, local_client
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ray.serve.exceptions import RayServeException
from sample_media import clip, picture

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.folder import DEMO
from cosmos3_models.text.metadata import caption_in
from serve import tracing
from serve.app import AppArgs
from serve.graph.artifacts import Artifact, FinishedRequest
from serve.graph.revision import Reviser, Revision, Upsampler
from serve.ingress.ingress import Ingress
from serve.upsampler.stage import PromptUpsampler

REQUEST = {"prompt": "a red ball", "size": "96x64", "num_frames": 9}
ASKS = REQUEST | {"prompt_upsampling": True}
REQUIRES = REQUEST | {"prompt_upsampling": "required"}
ERROR = "the prompt upsampler failed: its server answered 404"


class WholeIngress(LocalIngress):
    """The real one, but for the stages after the tokenizer. It keeps the prompts that reach those."""

    make = Ingress.make  # type: ignore[assignment]

    def __init__(self, args: AppArgs) -> None:
        super().__init__(args)
        assert args.prompt_upsampler is not None
        self.stage = PromptUpsampler(args.prompt_upsampler)
        handle: Any = LocalHandle(self.stage)
        self._reviser = Reviser(Upsampler(handle, 60, args.prompt_upsampler.sees_pictures), self._graph.check)
        self._graph: Any = SimpleNamespace(run=self._run, check=self._graph.check)
        self.made: list[str] = []

    async def _run(self, params: GenerationParams, *_: Any) -> AsyncGenerator[Any, None]:
        self.made.append(params.prompt)
        yield {"type": "progress", "stage": "denoiser", "step": 0, "steps": 1, "elapsed_s": 0.0}
        still = params.num_frames == 1
        artifact = Artifact.of("image", picture(params.width, params.height)) if still else Artifact.of("video", MP4)
        record = {"model": "m", "prompt": params.prompt, "stage_durations": {"denoiser": 1.0}}
        yield FinishedRequest((artifact,), record)


@contextmanager
def serving(folder: Path, chat: FakeChat, **settings: Any) -> Iterator[tuple[LocalClient, WholeIngress]]:
    upsampler = {"base_url": chat.url, "model": "m"} | settings
    service = WholeIngress(AppArgs(checkpoint=DEMO, data_dir=str(folder), prompt_upsampler=upsampler))
    with LocalClient(service, base_url=URL) as client:
        yield client, service
        client.call(service.stage.close)
        client.call(service.videos.table.close)


def with_server(folder: Path, *script: Behaviour, **settings: Any) -> Any:
    @contextmanager
    def both() -> Iterator[tuple[LocalClient, WholeIngress, FakeChat]]:
        with chatting(*script) as chat, serving(folder, chat, **settings) as (client, service):
            yield client, service, chat

    return both()


def test_the_sync_route_makes_the_video_of_the_caption(tmp_path: Path) -> None:
    with with_server(tmp_path) as (client, service, chat):
        response = client.post("/v1/videos/sync", json=ASKS)
        assert response.status_code == 200, response.text
        assert response.headers["x-prompt-upsampling"] == "revised"
        assert list(json.loads(response.headers["x-stage-durations"])) == ["prompt_upsampler", "denoiser"]
        (prompt,) = service.made
        assert caption_in(prompt) is not None
        assert "upsampled a red ball" in prompt
        assert chat.prompts == ["a red ball"]
        plain = client.post("/v1/videos/sync", json=REQUEST)
        assert "x-prompt-upsampling" not in plain.headers
        assert service.made[1:] == ["a red ball"]
        assert len(chat.requests) == 1


def test_a_failure_is_told_and_the_video_made_unless_a_caption_is_required(tmp_path: Path) -> None:
    with with_server(tmp_path, answering(404)) as (client, service, _):
        response = client.post("/v1/videos/sync", json=ASKS)
        assert (response.status_code, response.headers["x-prompt-upsampling"]) == (200, "failed")
        assert service.made == ["a red ball"]
        response = client.post("/v1/videos/sync", json=REQUIRES)
        assert response.status_code == 502
        assert response.json() == {
            "error": {
                "message": ERROR,
                "type": "server_error",
                "param": "prompt_upsampling",
                "code": "prompt_upsampling_failed",
            }
        }
        assert service.made == ["a red ball"]


def test_a_handle_call_streams_the_stage_and_returns_both_prompts(tmp_path: Path) -> None:
    with with_server(tmp_path) as (client, service, _):

        async def streamed() -> list[Any]:
            return [event async for event in service.stream(ASKS)]

        first, *_, last = client.call(streamed)
        assert (first["type"], first["stage"]) == ("progress", "prompt_upsampler")
        record = last["record"]
        assert (record["prompt"], record["prompt_upsampling"]) == ("a red ball", True)
        assert record["revised_prompt"] == service.made[0]
        assert record["prompt_upsampling_error"] is None
        plain = client.call(service.generate, REQUEST)["record"]
        assert (plain["revised_prompt"], plain["prompt_upsampling_error"]) == (None, None)


def test_a_request_without_a_job_has_a_span_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    with with_server(tmp_path) as (client, service, _):
        client.call(service.generate, ASKS)
        client.call(service.generate, REQUEST)
    assert [span.name for span in exporter.get_finished_spans()] == ["prompt_upsampler"]


def test_a_handle_call_that_requires_a_caption_raises_its_code(tmp_path: Path) -> None:
    with with_server(tmp_path, answering(404)) as (client, service, _):
        with pytest.raises(RayServeException) as failed:
            client.call(service.generate, REQUIRES)
        assert vars(failed.value)["code"] == "prompt_upsampling_failed"


def test_every_image_has_its_caption(tmp_path: Path) -> None:
    body = {"prompt": "a red ball", "size": "64x64", "n": 2, "seed": 1, "prompt_upsampling": True}
    with with_server(tmp_path) as (client, service, _):
        response = client.post("/v1/images/generations", json=body)
        assert response.status_code == 200, response.text
        images = response.json()["data"]
        assert sorted(image["revised_prompt"] for image in images) == sorted(service.made)
        assert "comprehensive_t2i_caption" in images[0]["revised_prompt"]
        assert [image["seed"] for image in images] == [1, 2]
    with with_server(tmp_path, answering(404)) as (client, _, _):
        (image, _) = client.post("/v1/images/generations", json=body).json()["data"]
        assert (image["revised_prompt"], image["prompt_upsampling_error"]) == (None, ERROR)


def test_a_prompt_that_is_a_caption_is_not_sent(tmp_path: Path) -> None:
    prompt = json.dumps(caption())
    with with_server(tmp_path) as (client, service, chat):
        response = client.post("/v1/videos/sync", json=REQUIRES | {"prompt": prompt})
        assert response.status_code == 200
        assert "x-prompt-upsampling" not in response.headers
        assert service.made == [prompt]
        assert chat.requests == []


def test_a_caption_with_more_tokens_than_a_prompt_may_have_is_a_failure(tmp_path: Path) -> None:
    many = json.dumps(caption("z q " * 120))
    with with_server(tmp_path, lambda *_: (200, {"choices": [{"message": {"content": many}}]})) as (client, service, _):
        record = client.call(service.generate, ASKS)["record"]
        assert "its caption is refused: prompt: got" in record["prompt_upsampling_error"]
        assert service.made == ["a red ball"]


def test_the_model_sees_the_picture_of_a_request(tmp_path: Path) -> None:
    reference = {"image_url": f"data:image/png;base64,{base64.b64encode(picture(96, 64)).decode()}"}
    for sees in (True, False):
        with with_server(tmp_path, sees_pictures=sees) as (client, _, chat):
            assert client.post("/v1/videos/sync", json=ASKS | {"input_reference": reference}).status_code == 200
            (request,) = chat.requests
            assert isinstance(request["messages"][1]["content"], list) is sees


def test_the_job_waits_for_its_caption_and_the_post_does_not(tmp_path: Path) -> None:
    with with_server(tmp_path) as (client, service, chat):
        video = client.post("/v1/videos", data={k: str(v) for k, v in ASKS.items()}).json()
        assert (video["status"], video["prompt_upsampling"], video["revised_prompt"]) == ("queued", True, None)
        assert chat.requests == []
        job = client.call(service.videos.table.get, video["id"])
        assert job.upsampling_pending
        estimate = client.post("/v1/videos/estimate", json=ASKS)
        assert estimate.status_code == 200
        assert client.get("/v1/models").json()["data"][0]["prompt_upsampling"] is True


def test_the_events_of_a_queued_job_follow_its_stage(tmp_path: Path) -> None:
    with with_server(tmp_path) as (client, service, _):
        video_id = client.submit(**ASKS)

        async def stages() -> list[str | None]:
            async with asyncio.timeout(60), aclosing(service.videos.events(video_id, None)) as events:
                seen = [(await anext(events))[1]["stage"]]
                job = await service.videos.table.claim()
                assert job is not None
                assert job.owner is not None
                seen.append((await anext(events))[1]["stage"])
                assert await service.videos.table.revise(job.owner, Revision(json.dumps(caption()), None, 1.0))
                return [*seen, (await anext(events))[1]["stage"]]

        assert client.call(stages) == [None, "prompt_upsampler", None]


@pytest.mark.parametrize("choice", [True, "required", "true"])
@pytest.mark.parametrize("route", ["videos", "videos/sync", "videos/estimate", "images/generations"])
def test_a_server_without_one_says_so_before_anything_is_stored(tmp_path: Path, route: str, choice: Any) -> None:
    body = {"prompt": "x", "size": "32x32", "prompt_upsampling": choice}
    with local_client(tmp_path) as client:
        response = client.post(f"/v1/{route}", json=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "prompt_upsampling"
        assert error["message"].endswith(
            "expected false, because this server's operator has configured no prompt upsampler"
        )
        assert client.post(f"/v1/{route}", json=body | {"prompt_upsampling": False}).status_code == 200
        assert len(client.get("/v1/videos").json()["data"]) == (route == "videos")


@pytest.mark.parametrize("wrong", ["yes please", 2, {}, ""], ids=str)
def test_another_value_is_refused(tmp_path: Path, wrong: Any) -> None:
    with local_client(tmp_path) as client:
        response = client.post("/v1/videos", json={"prompt": "x", "prompt_upsampling": wrong})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt_upsampling")


@pytest.mark.parametrize(("again", "pending"), [({}, False), ({"prompt_upsampling": True}, True)])
def test_a_remix_and_an_extension_ask_for_themselves(tmp_path: Path, again: dict[str, Any], pending: bool) -> None:
    with with_server(tmp_path) as (client, service, _):
        source = client.submit(**ASKS)
        client.call(_revised, service)
        client.call(service.finish, ("video", "thumbnail"), clip())
        prompt = {"prompt": "a blue ball"} | again
        remix = client.post(f"/v1/videos/{source}/remix", json=prompt)
        extension = client.post("/v1/videos/extensions", json=prompt | {"video": {"id": source}, "seconds": "1"})
        for response in (remix, extension):
            assert response.status_code == 200, response.text
            job = client.call(service.videos.table.get, response.json()["id"])
            assert (job.params["prompt"], job.upsampling_pending, job.revised_prompt) == ("a blue ball", pending, None)


async def _revised(service: WholeIngress) -> None:
    """Let the oldest job be one whose prompt has been rewritten."""
    job = await service.videos.table.claim()
    assert job is not None
    assert job.owner is not None
    assert await service.videos.table.revise(job.owner, Revision(json.dumps(caption()), None, 1.0))
