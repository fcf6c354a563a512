"""The served model as a request meets it: which requests it accepts, what they cost, and its model card."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.approximations import check_device
from cosmos3_models.checkpoint.configs import require_sound
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.media.reading import MediaInfo
from cosmos3_models.params import ApproximationPolicy, check_pixel_frames
from cosmos3_models.references import NAMES, ReferenceKind, check_reference
from cosmos3_models.resources.budget import Budget
from serve.errors import invalid_input_refused
from serve.estimates.cost import Cost, cost_of, operations
from serve.schema import ModelCard, VideoRequest

NO_UPSAMPLER = "this server's operator has configured no prompt upsampler"
BUDGET_WAIT_S = 2.0  # an idle denoiser answers in milliseconds


class ModelSettings(NamedTuple):
    """What the operator chose of the model.

    Attributes:
        checkpoint: the folder that the stages serve.
        names: the names by which requests may call the model; records hold the first one.
        device: cpu or cuda, where the denoiser computes.
        approximation: the approximations that are on by default, and those that a request may ask for.
        max_pixel_frames: the largest accepted height x width x frames.
        ranks: the processes of a denoiser, each with a GPU if there are any.
        upsampler: whether there is a stage that rewrites prompts.
    """

    checkpoint: str
    names: tuple[str, ...]
    device: str
    approximation: ApproximationPolicy
    max_pixel_frames: int
    ranks: int = 1
    upsampler: bool = False


class ServedModel:
    """Checks requests against the model and this server's limits. Reads the checkpoint's configs, never its weights.

    Args:
        settings: what the operator chose.
        ask_budget: asks a denoiser how much its GPU can hold; None on a CPU.
    """

    def __init__(self, settings: ModelSettings, ask_budget: Callable[[], Coroutine[Any, Any, Budget | None]]) -> None:
        self._settings = settings
        self._checkpoint = Checkpoint.open(settings.checkpoint, transformer=False)
        self._defaults = settings.approximation.over(self._checkpoint.defaults)
        self._ask_budget = ask_budget
        self._budget: asyncio.Task[Budget | None] | None = None

    @property
    def name(self) -> str:
        """The name that records hold."""
        return self._settings.names[0]

    async def params(
        self, request: VideoRequest, media: MediaInfo | None = None, continues: bool = False
    ) -> GenerationParams:
        """The complete parameters of a request, over the defaults of the checkpoint and of this server.

        Args:
            media: what the picture or clip of the request is.
            continues: whether the clip is continued.

        Raises:
            InvalidRequest: the request names another model, or asks for something that the model, this server's
                limits or the denoisers' GPUs do not allow.
        """
        with invalid_input_refused():
            self._check_name(request.model)
            params = request.params(self._defaults, media, continues)
            check_pixel_frames(params, self._settings.max_pixel_frames)
            check_device(params, self._settings.device)
            self._settings.approximation.check(params)
            if params.generate_sound:
                require_sound(self._checkpoint.sound)
            self._check_upsampler(params)
            self._check_encoder(media)
            check_reference(params, None if media is None else media.kind)
            if self._settings.device == "cuda" and (budget := await self._known_budget()) is not None:
                budget.check(params)
        return params

    def cost(
        self,
        params: GenerationParams,
        prompt_tokens: Sequence[int] | None = None,
        kind: ReferenceKind | None = None,
    ) -> Cost:
        """The floating-point operations of a request.

        Args:
            prompt_tokens: the length of each prompt. None leaves the text out: only the tokenizer knows how long it
                is, and next to the video it is short.
            kind: of the picture or clip that the video begins with.
        """
        if prompt_tokens is None:
            prompt_tokens = (0,) * (1 if params.guidance_scale == 1 else 2)
        settings = self._settings
        return cost_of(self._checkpoint, settings.device, params, prompt_tokens, kind, settings.ranks)

    def relative_work(self, params: GenerationParams, kind: ReferenceKind | None = None) -> float:
        """The operations of a request as a multiple of those of a request with the default settings."""
        usual = self._defaults.params(prompt=params.prompt)
        usual_work = operations(self.cost(usual), usual.num_inference_steps)
        return operations(self.cost(params, kind=kind), params.num_inference_steps) / usual_work

    def cards(self) -> list[ModelCard]:
        """The model card, once under each name."""
        return [self._card(name) for name in self._settings.names]

    def _card(self, name: str) -> ModelCard:
        params, guide = self._defaults.params(prompt="-"), self._checkpoint.guide
        return {
            "id": name,
            "object": "model",
            "created": int(self._checkpoint.folder.stat().st_mtime),
            "owned_by": "cosmos3",
            "sound": self._checkpoint.sound is not None,
            "pictures": self._checkpoint.has_video_encoder,
            "prompt_upsampling": self._settings.upsampler,
            "defaults": params.model_dump(exclude={"prompt", "seed"}),
            "max_pixel_frames": self._settings.max_pixel_frames,
            "guide": None if guide is None else guide.model_dump(),
            "allowed_approximations": [*self._settings.approximation.allowed],
        }

    def _check_encoder(self, media: MediaInfo | None) -> None:
        if media is not None and not self._checkpoint.has_video_encoder:
            why = f"{self._checkpoint.name} has no video encoder, which turns them into latents"
            raise InvalidInput("input_reference", NAMES[media.kind], "no picture and no clip", why)

    def _check_upsampler(self, params: GenerationParams) -> None:
        if params.prompt_upsampling and not self._settings.upsampler:
            raise InvalidInput("prompt_upsampling", params.prompt_upsampling, "false", NO_UPSAMPLER)

    def _check_name(self, name: str | None) -> None:
        names = self._settings.names
        if name not in (None, *names):
            served = f"{' or '.join(map(repr, names))} or no model"
            raise InvalidInput("model", name, served, "this is the model that is served here")

    async def _known_budget(self) -> Budget | None:
        """A denoiser's answer about its GPU, asked for once.

        None while no denoiser answers because all are busy or absent: they check each request themselves as well.
        """
        if self._budget is None or (self._budget.done() and self._budget.exception()):
            # In a context of its own: the request that asks first may end before the answer comes.
            self._budget = asyncio.create_task(self._ask_budget(), context=contextvars.Context())
        await asyncio.wait({self._budget}, timeout=BUDGET_WAIT_S)
        return self._budget.result() if self._budget.done() and not self._budget.exception() else None
