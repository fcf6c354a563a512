"""The real graph under Ray, started by ``serve run deploy.yaml``, over HTTP and over handles."""

import io
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from pictured import PICTURE, PICTURED, begun_with_a_picture
from PIL import Image
from running_server import Server
from sample_requests import ENDLESS, LONG, PREVIEW_STEPS, REQUEST, WATCHED

from cosmos3_models import Cosmos3Pipeline, GenerationParams
from cosmos3_models.media.mp4 import encode_video
from serve.graph.artifacts import FinishedRequest


@pytest.fixture(scope="module")
def expected(server: Server) -> bytes:
    """The bytes that every run of ``REQUEST`` must give."""
    return bytes(server.handle.generate.remote(REQUEST).result()["mp4"])


def post(server: Server, request: dict[str, Any], **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/videos/sync", json=request, timeout=120, **options)


def test_http_answers_with_a_playable_mp4(server: Server, expected: bytes) -> None:
    response = post(server, REQUEST, headers={"x-request-id": "abc"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "video/mp4"
    assert response.headers["x-request-id"] == "abc"
    assert response.headers["x-model"] == "tiny-cosmos3"
    durations = json.loads(response.headers["x-stage-durations"])
    assert list(durations) == ["tokenizer", "queue", "denoiser", "decoders", "mux"]
    with av.open(io.BytesIO(response.content)) as video:
        kinds = [(stream.type, stream.codec_context.name) for stream in video.streams]
        assert kinds == [("video", "h264"), ("audio", "aac")]
        assert len(list(video.decode(video=0))) == REQUEST["num_frames"]
    assert response.content == expected


def test_a_form_gives_the_same_video_as_json(server: Server, expected: bytes) -> None:
    form = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in REQUEST.items()}
    for encoding in ({"data": form}, {"files": {name: (None, value) for name, value in form.items()}}):
        response = httpx.post(f"{server.url}/v1/videos/sync", timeout=120, **encoding)
        assert response.status_code == 200, response.text
        assert response.content == expected


def test_the_frames_equal_those_of_one_process(server: Server, tiny_checkpoint: Path, expected: bytes) -> None:
    result = server.handle.generate.remote(REQUEST, arrays=True).result()
    fields = {name: value for name, value in REQUEST.items() if name != "size"}
    alone = Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu")(GenerationParams(**fields, width=96, height=64))
    assert np.array_equal(result["frames"], alone.frames)
    assert np.array_equal(result["waveform"], alone.waveform)
    assert expected == encode_video(alone.frames, alone.waveform, alone.fps, alone.sample_rate)


def test_one_frame_is_a_png_over_http_and_over_a_handle(server: Server) -> None:
    one = REQUEST | {"num_frames": 1, "generate_sound": False}
    result = server.handle.generate.remote(one, arrays=True).result()
    with Image.open(io.BytesIO(result["image"])) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), result["frames"][0])
    response = post(server, one)
    assert (response.headers["content-type"], response.content) == ("image/png", result["image"])


@pytest.mark.usefixtures("server")
def test_another_ray_job_makes_the_same_video_over_a_handle(cluster: str, expected: bytes) -> None:
    job = (
        "import json, sys, ray\nfrom ray import serve\n"
        f"ray.init(address={cluster!r}, log_to_driver=False)\n"
        "video = serve.get_app_handle('cosmos3').generate.remote(json.loads(sys.argv[1])).result()\n"
        "sys.stdout.buffer.write(video['mp4'])\n"
    )
    done = subprocess.run([sys.executable, "-c", job, json.dumps(REQUEST)], cwd="/", capture_output=True, timeout=120)
    assert done.stdout == expected, done.stderr.decode()[-2000:]


def test_a_stream_tells_every_step_and_ends_with_the_video(server: Server, expected: bytes) -> None:
    *progress, video = server.handle.options(stream=True).stream.remote(REQUEST)
    steps = [event["step"] for event in progress if event["stage"] == "denoiser"]
    assert steps == [0, 1, 2, 3, 4]
    assert progress[-1]["stage"] == "decoders"
    assert video["mp4"] == expected
    assert video["thumbnail"].startswith(b"\xff\xd8")
    assert video["record"]["status"] == "completed"
    assert video["record"]["size"] == REQUEST["size"]
    assert video["record"]["seed"] == 42


def test_another_seed_gives_another_video(server: Server, expected: bytes) -> None:
    assert post(server, REQUEST | {"seed": 43}).content != expected


@pytest.fixture(scope="module")
def pictured(server: Server) -> FinishedRequest:
    """What every run of ``PICTURED`` must give."""
    assert server
    return begun_with_a_picture("cosmos3")


def test_a_request_with_a_picture_passes_the_encoder_and_differs_from_one_without(
    server: Server, pictured: FinishedRequest
) -> None:
    durations = pictured.record["stage_durations"]
    assert list(durations) == ["tokenizer", "video_encoder", "queue", "denoiser", "decoders", "mux"]
    without = server.handle.generate.remote(PICTURED.model_dump(exclude_none=True), arrays=True).result()
    assert not np.array_equal(pictured.frames, without["frames"])


def test_the_frames_of_a_request_with_a_picture_equal_those_of_one_process(
    tiny_checkpoint: Path, pictured: FinishedRequest
) -> None:
    alone = Cosmos3Pipeline.from_pretrained(tiny_checkpoint, "cpu")(PICTURED, image=PICTURE)
    assert pictured.frames is not None
    assert np.array_equal(pictured.frames, alone.frames)


@pytest.mark.faults
def test_a_request_survives_the_death_of_the_encoder_that_reads_its_picture(
    server: Server, pictured: FinishedRequest
) -> None:
    victim = server.process("VideoEncoder")
    victim.suspend()  # so that the request surely waits for this very replica
    with ThreadPoolExecutor(1) as aside:
        again = aside.submit(begun_with_a_picture, "cosmos3")
        time.sleep(2)
        victim.kill()
        assert again.result(timeout=120).artifacts == pictured.artifacts
    assert server.process("VideoEncoder").pid != victim.pid


@pytest.mark.parametrize("deployment", ["Tokenizer", "VideoDecoder", "SoundDecoder"])
def test_a_request_survives_the_death_of_a_stage_that_works_on_it(
    server: Server, expected: bytes, deployment: str
) -> None:
    victim = server.process(deployment)
    victim.suspend()  # so that the request surely waits for this very replica
    events = list_in_background(server, REQUEST)
    time.sleep(2)
    victim.kill()
    assert finished(events) == expected
    assert server.process(deployment).pid != victim.pid


def test_a_request_survives_the_death_of_the_denoiser_in_mid_step(server: Server, expected: bytes) -> None:
    undisturbed = server.handle.generate.remote(LONG).result()["mp4"]
    events = list_in_background(server, LONG)
    wait_for_step(events, 3)
    server.process("Denoiser").kill()
    assert finished(events) == undisturbed
    steps = [event["step"] for event in events if event.get("stage") == "denoiser"]
    assert steps.count(1) == 2, "it started over"
    durations = events[-1]["record"]["stage_durations"]
    assert durations["lost"] > durations["queue"], "the lost steps are not booked as waiting"
    assert bytes(server.handle.generate.remote(REQUEST).result()["mp4"]) == expected, "another replica, the same bytes"


def test_a_client_that_goes_away_stops_the_denoise_and_the_next_request_starts(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/videos/sync", json=ENDLESS, timeout=3)
    gone = time.monotonic()
    events = server.handle.options(stream=True).stream.remote(REQUEST)
    first = next(iter(events))
    assert (first["stage"], first["step"]) == ("denoiser", 0)
    assert time.monotonic() - gone < 30, "the 200 steps of the first request take minutes"
    assert list(events)[-1]["type"] == "video"


def test_a_cancelled_handle_call_stops_the_denoise(server: Server) -> None:
    abandoned = server.handle.options(stream=True).stream.remote(ENDLESS)
    for event in abandoned:
        if event["step"] == 2:
            break
    abandoned.cancel()
    cancelled = time.monotonic()
    assert next(iter(server.handle.options(stream=True).stream.remote(REQUEST)))["step"] == 0
    assert time.monotonic() - cancelled < 30, "200 steps take minutes"


def test_one_request_decodes_while_the_next_denoises(server: Server) -> None:
    runs = [list_in_background(server, LONG | {"seed": seed}) for seed in (1, 2)]
    for run in runs:
        finished(run)
    first, second = sorted(runs, key=lambda run: run[0]["at"])
    decode_from = next(event["at"] for event in first if event.get("stage") == "decoders")
    decode_to = next(event["at"] for event in first if event["type"] == "video")
    steps = [event["at"] for event in second if event.get("stage") == "denoiser" and event["step"] > 0]
    assert any(decode_from < at < decode_to for at in steps)


class Recorder(list[dict[str, Any]]):
    """The events of a request that runs in a thread, each with the time ``at`` which it came."""

    thread: threading.Thread


def list_in_background(server: Server, request: dict[str, Any]) -> Recorder:
    events = Recorder()

    def follow() -> None:
        for event in server.handle.options(stream=True).stream.remote(request):
            events.append(event | {"at": time.monotonic()})

    events.thread = threading.Thread(target=follow)
    events.thread.start()
    return events


def wait_for_step(events: Recorder, step: int) -> None:
    deadline = time.monotonic() + 60
    while not any(event.get("step") == step for event in events):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished(events: Recorder) -> bytes:
    events.thread.join(timeout=120)
    assert events[-1]["type"] == "video", events
    return bytes(events[-1]["mp4"])


def test_previews_come_over_handles_while_the_video_is_made_and_change_no_byte_of_it(
    server: Server, expected: bytes
) -> None:
    stream = server.handle.options(stream=True).stream
    events = list(stream.remote(REQUEST | {"previews": 2}))
    assert events[-1]["mp4"] == expected
    shown = [event for event in stream.remote(WATCHED) if event["type"] == "preview"]
    assert shown
    assert {event["step"] for event in shown} <= set(PREVIEW_STEPS)
    with Image.open(io.BytesIO(shown[0]["preview"])) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (4 * 192, 128)
