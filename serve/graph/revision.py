"""A request's prompt before the tokenizer: rewritten if the request asks for it, or with the reason why it is not."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ray.exceptions import RayActorError
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter

from cosmos3_models import GenerationParams
from cosmos3_models.text.metadata import caption_in
from serve.errors import InvalidRequest, PromptUpsamplingFailed, ServingError
from serve.graph.stage_names import PROMPT_UPSAMPLER
from serve.schema import Progress
from serve.upsampler.answer import Upsampled

if TYPE_CHECKING:
    from serve.graph.graph import Reference

logger = logging.getLogger("ray.serve")

REPLICA_DIED = (RayActorError, ReplicaUnavailableError)
EXTRA_S = 5.0  # beyond the stage's own limit: the call's way there and back, and a replica that takes over
REPLICAS = 3  # that may die of one request

Check = Callable[[GenerationParams], Awaitable[object]]
"""Raises ``InvalidRequest`` if a prompt has too many tokens."""


UPSAMPLING: Progress = {"type": "progress", "stage": PROMPT_UPSAMPLER, "step": 0, "steps": 1, "elapsed_s": 0.0}
"""The first event of a request whose prompt is rewritten."""


class Upsampler(NamedTuple):
    """The stage that rewrites prompts.

    Attributes:
        timeout_s: what the stage takes at most.
        sees_pictures: whether it wants the picture or clip of a request.
    """

    handle: DeploymentHandle[Any]
    timeout_s: float
    sees_pictures: bool


class Revision(NamedTuple):
    """What became of a prompt.

    Attributes:
        prompt: in its place; None if it stays as it is.
        error: why it stays although the request asked for another one; None if it did not, or if there is one.
        seconds: that it took; None if nothing was asked.
    """

    prompt: str | None = None
    error: str | None = None
    seconds: float | None = None

    def added_to(self, record: dict[str, Any]) -> dict[str, Any]:
        """Its fields of the record of a request that was made without a job: also its time before the other stages."""
        durations = ({} if self.seconds is None else {PROMPT_UPSAMPLER: self.seconds}) | record["stage_durations"]
        revised = {"revised_prompt": self.prompt, "prompt_upsampling_error": self.error}
        return revised | {"stage_durations": durations}

    def of(self, params: GenerationParams) -> GenerationParams:
        """The request with the prompt in place, as the stages after it take it."""
        return params if self.prompt is None else params.model_copy(update={"prompt": self.prompt})


def wants_revision(params: GenerationParams) -> bool:
    """Whether a request's prompt is to be rewritten: it asks for that, and its prompt is not a caption already."""
    return bool(params.prompt_upsampling) and caption_in(params.prompt) is None


class Reviser:
    """Rewrites the prompts of requests that ask for it.

    Args:
        upsampler: None if this server has none.
        check: a caption must pass it, as every prompt must.
    """

    def __init__(self, upsampler: Upsampler | None, check: Check) -> None:
        self._upsampler = upsampler
        self._check = check
        self._outcomes = Counter("cosmos3_prompts_upsampled_total", "Prompts to rewrite, by outcome.", ("outcome",))

    async def revise(self, params: GenerationParams, reference: "Reference | None" = None) -> Revision:
        """Return what becomes of the prompt of a request for which ``wants_revision`` holds.

        Raises:
            PromptUpsamplingFailed: there is no caption, and the request requires one.
            ServingError: the picture or clip is gone.
        """
        start = time.perf_counter()
        prompt, error = await self._upsampled(params, reference)
        if prompt is not None:
            try:
                await self._check(params.model_copy(update={"prompt": prompt}))
            except InvalidRequest as refused:
                prompt, error = None, f"its caption is refused: {refused}"
        self._outcomes.inc(tags={"outcome": "failed" if prompt is None else "revised"})
        if prompt is None:
            error = f"the prompt upsampler failed: {error}"
            logger.warning(error)
            if params.prompt_upsampling == "required":
                raise PromptUpsamplingFailed(error, "prompt_upsampling")
        return Revision(prompt, error, round(time.perf_counter() - start, 3))

    async def _upsampled(self, params: GenerationParams, reference: "Reference | None") -> Upsampled:
        if self._upsampler is None:  # since the job was stored
            return Upsampled(error="this server has no prompt upsampler")
        try:
            async with asyncio.timeout(self._upsampler.timeout_s + EXTRA_S):
                seen: tuple[Any, ...] = ()
                if self._upsampler.sees_pictures and reference is not None:
                    seen = (await reference.read(), reference.kind)
                return await self._asked(self._upsampler.handle, params, *seen)
        except ServingError:
            raise
        except TimeoutError:
            return Upsampled(error="the stage did not answer in time")
        except Exception:
            logger.exception("The stage that rewrites prompts failed.")
            return Upsampled(error="the stage failed; the server's log has the details")

    async def _asked(self, handle: DeploymentHandle[Any], *request: Any) -> Upsampled:
        """Return the stage's answer, asked for again if its replica dies."""
        for attempt in range(1, REPLICAS + 1):
            response = handle.upsample.remote(*request)
            try:
                answer: Upsampled = await response
                return answer
            except REPLICA_DIED:
                if attempt == REPLICAS:
                    raise
            except BaseException:  # cancelled, or out of time
                response.cancel()
                raise
        raise AssertionError("the last attempt raises")
