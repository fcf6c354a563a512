"""The stage that rewrites prompts: it computes nothing, and waits for a chat server."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.media import isolated
from cosmos3_models.media.pictures import jpeg, shrunk
from cosmos3_models.references import ReferenceKind, reference_frames
from cosmos3_models.text.upsampling import InvalidCaption, caption_schema, messages, prompt_of
from serve.errors import ContentRefused, GuardFailed
from serve.guards.guard import GuardSettings, PromptGuard
from serve.upsampler.answer import Upsampled
from serve.upsampler.chat_server import ChatFailed, ChatServer
from serve.upsampler.settings import UpsamplerSettings

logger = logging.getLogger("ray.serve")

MAX_USELESS = 3  # answers that are no caption, before the model is taken to be unable to write one
WAITS_S = (0.5, 1, 2, 4, 8)  # between attempts to reach the server; the last one repeats
PICTURE_SIDE = 1024  # pixels of the longer side of a picture that the model sees
PICTURE_READERS = 2  # processes that read pictures at a time


class PromptUpsampler:
    """Rewrites prompts, many at a time.

    Args:
        settings: of the chat server.
        guard: the operator's; a caption is a prompt that it has not seen.

    Raises:
        ValueError: the key for the server cannot be read, or the guard cannot be made.
    """

    def __init__(self, settings: UpsamplerSettings, guard: GuardSettings | None = None) -> None:
        settings.key()
        self._guard = PromptGuard(guard)
        self._settings = settings
        self._server = ChatServer(settings)
        self._readers = ThreadPoolExecutor(PICTURE_READERS, "pictures")

    async def close(self) -> None:
        """Close the connections to the chat server."""
        await self._server.close()

    async def upsample(
        self, params: GenerationParams, file: bytes | None = None, kind: ReferenceKind | None = None
    ) -> Upsampled:
        """Return the prompt of a request as a structured caption, or why that failed; takes ``timeout_s`` at most.

        Args:
            file: the picture or clip that the video begins with, for a model that sees pictures.
            kind: which of the two.
        """
        failures: list[str] = []
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                picture = None
                if file is not None and kind is not None:
                    loop = asyncio.get_running_loop()
                    picture = await loop.run_in_executor(self._readers, first_frame, file, params, kind)
                prompt = await self._caption(params, picture, failures)
                await self._guard.check(prompt)
                return Upsampled(prompt)
        except TimeoutError:
            reason = f"; before that, {failures[-1]}" if failures else ""
            return Upsampled(error=f"there was no caption within {self._settings.timeout_s:g} s{reason}")
        except (ChatFailed, InvalidCaption) as error:
            return Upsampled(error=str(error))
        except (ContentRefused, GuardFailed):
            return Upsampled(error="this server's guard does not permit its caption")
        except InvalidInput:
            return Upsampled(error="the picture or clip cannot be read")

    async def _caption(self, params: GenerationParams, picture: bytes | None, failures: list[str]) -> str:
        """Ask until there is a caption; note each failure."""
        chat, schema, useless = messages(params, picture), caption_schema(params), 0
        for attempt in count():
            try:
                return prompt_of(await self._server.answer(chat, schema, useless), params)
            except InvalidCaption as error:
                useless += 1
                failures.append(f"its model gave {error}")
                if useless == MAX_USELESS:
                    raise InvalidCaption(failures[-1]) from None
                logger.warning(f"The prompt upsampler's model gave {error}; asking again.")
            except ChatFailed as error:
                failures.append(str(error))
                if not error.again:
                    raise
                await self._wait(attempt, error)
        raise AssertionError("the count has no end")

    async def _wait(self, attempt: int, error: ChatFailed) -> None:
        """Wait before the next attempt; raise ``error`` if that would come too late."""
        wait_s = WAITS_S[min(attempt, len(WAITS_S) - 1)] if error.after_s is None else error.after_s
        if wait_s >= self._settings.timeout_s:
            raise error
        await asyncio.sleep(wait_s)


def first_frame(file: bytes, params: GenerationParams, kind: ReferenceKind) -> bytes:
    """Return the first frame of the video that begins with a picture or clip, as JPEG. It is read in a process apart.

    Raises:
        InvalidInput: the file cannot be read.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference"
        path.write_bytes(file)
        frames = isolated.frames(path, reference_frames(params, kind), params.condition_video_keep)
        with closing(frames):
            return jpeg(shrunk(next(frames)[0], PICTURE_SIDE))
