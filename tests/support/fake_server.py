"""A server without a model behind it, on a port of this machine."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI

from cosmos3_models import GenerationParams
from cosmos3_models.media.mp4 import encode_video
from cosmos3_models.media.pictures import encode_picture, thumbnail
from serve.http.content import Content
from serve.inputs.uploads import UploadFolder
from serve.jobs.media_store import MediaStore
from serve.schema import Video, VideoEstimate, VideoList, VideoRequest, described


class FakeVideos:
    """One video or image, finished unless it is said otherwise, without a model behind it."""

    def __init__(self, folder: Path) -> None:
        self._media = MediaStore(str(folder))
        frames = np.zeros((9, 32, 48, 3), np.uint8)
        self._files = {
            "video": ("video/mp4", encode_video(frames, None, 24, 48_000)),
            "image": ("image/png", encode_picture(frames[0], "png")),
            "thumbnail": ("image/jpeg", thumbnail(frames[0])),
        }
        for name, (_, data) in self._files.items():
            (folder / name).write_bytes(data)
        self.num_frames = 9
        self.of_prompt: dict[str, str | None] = {"revised_prompt": None, "prompt_upsampling_error": None}
        self.status: Any = "completed"
        self.lives = 0

    @property
    def video(self) -> Video:
        params = GenerationParams(prompt="kept", num_frames=self.num_frames, height=32, width=48)
        state = {"status": self.status, "progress": 100, "step": 35, "queue_position": 0, "attempts": 1}
        times = dict.fromkeys(("created_at", "started_at", "completed_at", "expires_at"), 0)
        unset = ("error", "stage", "eta_s", "stage_durations", "request_id", "remixed_from_video_id", "input_reference")
        nothing = dict.fromkeys(unset)
        return Video(id="video_1", model="fake", **described(params), **state, **times, **nothing, **self.of_prompt)

    async def list(self, *_: Any) -> VideoList:
        return VideoList(data=[self.video], first_id="video_1", last_id="video_1", has_more=False)

    async def retrieve(self, _: str) -> Video:
        return self.video

    async def events(self, _: str, last_event: int | None) -> AsyncIterator[Any]:
        """Step 1 and no more in the first life of the server; the rest behind it in the second."""
        if self.lives == 1:
            yield 1, {"type": "progress", "stage": "denoiser", "step": 1, "steps": 35, "progress": 2}
            await asyncio.sleep(3600)
        assert last_event == 1
        self.status = "completed"
        yield 2, {"type": "completed", "video": self.video.model_dump()}

    async def content(self, _: str, variant: str | None) -> Content:
        name = variant or ("image" if self.num_frames == 1 else "video")
        kind, data = self._files[name]
        return Content(len(data), kind, name, name, 0, partial(self._media.read, name))


class FakeService:
    def __init__(self, folder: Path) -> None:
        self.uploads = UploadFolder()
        self.videos: Any = FakeVideos(folder)
        self.eta_s: float | None = 3.0
        self.pictures = True
        self.prompt_upsampling = False

    async def estimated(self, _: VideoRequest) -> VideoEstimate:
        return VideoEstimate(eta_s=self.eta_s, queue_position=1, relative_work=1)

    async def store(self, *_: Any) -> Video:
        return self.videos.video

    def model_cards(self) -> Any:
        defaults = GenerationParams(prompt="-").model_dump(exclude={"prompt", "seed"})
        able = {"sound": False, "pictures": self.pictures, "prompt_upsampling": self.prompt_upsampling}
        return [{"id": "fake", "object": "model", "defaults": defaults, "guide": None} | able]


@contextmanager
def running(api: FastAPI, port: int) -> Iterator[str]:
    """The address of a server, which at the end breaks all connections off."""
    config = uvicorn.Config(api, port=port, log_level="critical", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
