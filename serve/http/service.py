"""What the routes need of the service behind them."""

from collections.abc import Sequence
from typing import Protocol

from serve.inputs.uploads import Upload, UploadFolder
from serve.jobs.job import Caller
from serve.jobs.videos import Videos
from serve.schema import FinishedVideo, ModelCard, Video, VideoEstimate, VideoRequest


class VideoService(Protocol):
    """The service behind the routes."""

    videos: Videos
    uploads: UploadFolder

    async def make(self, request: VideoRequest) -> FinishedVideo: ...

    async def store(self, request: VideoRequest, caller: Caller) -> Video: ...

    async def remix(self, video_id: str, request: VideoRequest, caller: Caller) -> Video: ...

    async def extend(self, clip: Upload | str, request: VideoRequest, caller: Caller) -> Video: ...

    async def estimated(self, request: VideoRequest) -> VideoEstimate: ...

    def model_cards(self) -> Sequence[ModelCard]: ...

    async def unready_stages(self) -> Sequence[str]: ...
