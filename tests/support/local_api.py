"""The API in this process, over a real job table and a real store: for tests of HTTP, which need no Ray."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
from fakes import OF_A_VIDEO
from fastapi.testclient import TestClient
from sample_media import picture

from cosmos3_models.checkpoint.folder import DEMO
from serve.app import AppArgs
from serve.graph.artifacts import Artifact, ArtifactName, FinishedRequest
from serve.graph.graph import Stages
from serve.graph.revision import Revision
from serve.graph.stages import Tokenizer
from serve.http.access import OPEN, Access
from serve.http.routes import create_api
from serve.ingress.ingress import Ingress
from serve.jobs.job import StoredArtifact
from serve.schema import FinishedVideo, video_record

URL = "http://localhost"
MP4 = bytes(range(256)) * 10
DURATIONS = {"denoiser": 1.0}


class LocalHandle:
    """Calls a stage where Ray's handle would send the call to its replica."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage

    def options(self, **_: Any) -> "LocalHandle":
        return self

    def __getattr__(self, method: str) -> Any:
        async def remote(*args: Any) -> Any:
            result = getattr(self._stage, method)(*args)
            return await result if inspect.isawaitable(result) else result

        return SimpleNamespace(remote=remote)


class DeafRunner:
    """Leaves every job in the table."""

    def options(self, **_: Any) -> "DeafRunner":
        return self

    @property
    def work(self) -> Any:
        return SimpleNamespace(remote=lambda: None)


class LocalIngress(Ingress):
    """The real one, but that a video is a fixed file and nothing asks Serve for its state."""

    def __init__(self, args: AppArgs, access: Access = OPEN) -> None:
        nothing: Any = LocalHandle(None)
        tokenizer, runner = LocalHandle(Tokenizer(args.checkpoint)), DeafRunner()
        stages: Any = Stages(tokenizer, nothing, nothing, nothing, nothing)
        model = args.model_settings("cpu")
        super().__init__(stages, runner, model, args.job_settings(), args.media(), access, args.guard)
        self.unready: list[str] = []

    async def make(self, request: Any, arrays: bool = False) -> FinishedVideo:
        with self.uploads.receiving() as receiver:
            params, _ = await self._permitted(request, receiver)
        await self._graph.check(params)
        record = video_record(params, self._model.name, DURATIONS)
        assert not arrays
        still = params.num_frames == 1
        artifact = Artifact.of("image", picture(params.width, params.height)) if still else Artifact.of("video", MP4)
        return FinishedRequest((artifact,), record).for_handle_caller(Revision().added_to(record))

    async def unready_stages(self) -> list[str]:
        return self.unready

    async def finish(self, names: Sequence[ArtifactName] = OF_A_VIDEO, data: bytes | None = None) -> str:
        """Complete the oldest job with these artifacts; its id.

        Args:
            data: of the first one.
        """
        job = await self.videos.table.claim()
        assert job is not None
        assert job.owner is not None
        await self.videos.table.start(job.owner)
        main, *others = names
        artifacts = [Artifact.of(main, MP4 + main.encode() if data is None else data)]
        artifacts += [Artifact.of(name, MP4 + name.encode()) for name in others]
        stored = [StoredArtifact.of(artifact, job.owner) for artifact in artifacts]
        for artifact, entry in zip(artifacts, stored, strict=True):
            await self.videos._media.write(entry.file, artifact.data)
        assert await self.videos.table.complete(job, stored, DURATIONS)
        return job.id


class LocalClient(TestClient):
    """A client of the routes, and the service behind them."""

    def __init__(self, service: LocalIngress, access: Access = OPEN, base_url: str = URL) -> None:
        super().__init__(create_api(service, access), base_url=base_url, raise_server_exceptions=False)
        self.service = service

    def call(self, function: Any, *args: Any) -> Any:
        """The result of a coroutine function in the event loop of the routes."""
        assert self.portal is not None
        return self.portal.call(function, *args)

    def submit(self, **fields: Any) -> str:
        response = self.post("/v1/videos", json={"prompt": "x"} | fields)
        assert response.status_code == 200, response.text
        video_id: str = response.json()["id"]
        return video_id


@contextmanager
def local_client(folder: Path, access: Access = OPEN, base_url: str = URL, **args: Any) -> Iterator[LocalClient]:
    """A client of a server whose data lies in ``folder``."""
    given = AppArgs(checkpoint=DEMO, data_dir=str(folder / "data"), **args)
    with LocalClient(LocalIngress(given, access), access, base_url) as client:
        yield client
        client.call(client.service.videos.table.close)
    fsspec.filesystem("memory").store.clear()
