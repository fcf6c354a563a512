"""Pictures of a video that is still being denoised: made beside the steps, never waited for."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from ray import ObjectRef

T = TypeVar("T")

logger = logging.getLogger("ray.serve")


class Picture(NamedTuple):
    """A preview: the steps done when it was estimated, and a JPEG."""

    step: int
    jpeg: bytes


class Pictures:
    """The previews of one request. One is decoded at a time; another that comes meanwhile is dropped.

    Args:
        decode: returns a JPEG of a preview's latents, or None if no decoder is free.
    """

    def __init__(self, decode: Callable[[ObjectRef], Awaitable[bytes | None]]) -> None:
        self._decode = decode
        self._decoding: asyncio.Task[Picture | None] | None = None

    def start(self, step: int, latents: ObjectRef) -> None:
        """Decode the preview after a step, unless another one is not finished yet."""
        if self._decoding is None:
            self._decoding = asyncio.create_task(self._picture(step, latents))

    async def among(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T | Picture, None]:
        """Yield the items and, as soon as each is there, the pictures. Those that come after the last item are lost."""
        upcoming = asyncio.ensure_future(anext(items, None))
        try:
            while True:
                await asyncio.wait(self._with(upcoming), return_when=asyncio.FIRST_COMPLETED)
                if picture := self._finished():
                    yield picture
                if upcoming.done():
                    if (item := upcoming.result()) is None:
                        return
                    yield item
                    upcoming = asyncio.ensure_future(anext(items, None))
        finally:
            for task in (left := self._with(upcoming)):
                task.cancel()
            await asyncio.wait(left)

    def _with(self, upcoming: asyncio.Future[T | None]) -> list[asyncio.Future[Any]]:
        """What is under way."""
        return [upcoming] if self._decoding is None else [upcoming, self._decoding]

    def _finished(self) -> Picture | None:
        if self._decoding is None or not self._decoding.done():
            return None
        picture, self._decoding = self._decoding.result(), None
        return picture

    async def _picture(self, step: int, latents: ObjectRef) -> Picture | None:
        try:
            data = await self._decode(latents)
        except Exception as error:
            logger.warning(f"The preview after step {step} could not be made: {type(error).__name__}.", exc_info=error)
            return None
        return None if data is None else Picture(step, data)
