"""What is wrong with a line, by the rules of the server: its schema, and the limits on its model's card."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.media import reading
from cosmos3_models.media.reading import MediaInfo
from cosmos3_models.params import ApproximationPolicy, GenerationDefaults, check_pixel_frames
from cosmos3_models.references import NAMES, check_reference
from serve.client.batch.lines import REFERENCE, Line
from serve.client.batch.wanted import REMEMBERED_FILES, Options, unreadable, wanted
from serve.inputs.uploads import MAX_UPLOAD_BYTES
from serve.schema import VideoRequest


class Checks:
    """Checks lines before anything is made of them.

    Args:
        cards: the server's model cards. What they do not say, such as the memory of its GPUs, the server itself
            checks later.
    """

    def __init__(self, cards: list[dict[str, Any]], options: Options) -> None:
        card = cards[0]
        given = {name: card["defaults"].get(name) for name in GenerationDefaults.model_fields}
        self._defaults = GenerationDefaults(**{name: value for name, value in given.items() if value is not None})
        self._names = [one["id"] for one in cards]
        self._card, self._options = card, options
        self._policy = ApproximationPolicy(allowed=tuple(card["allowed_approximations"]))

    def check(self, line: Line) -> None:
        """Raise ``InvalidInput`` for a request that the server would refuse."""
        if self._options.seeds and "seed" in line.fields:
            why = "the seeds of the batch are those of every line"
            raise InvalidInput("seed", line.fields["seed"], "no seed in a line", why)
        last = wanted(line, self._options, max(len(self._options.seeds), self._options.repeat) - 1)
        request = VideoRequest(**last.fields)
        media = None if line.reference is None else inspected(line.reference)
        params = request.params(self._defaults, media)
        self._check_model(request, params, media)
        if request.input_reference is None:  # what a video of the server is, only the server knows
            check_reference(params, None if media is None else media.kind)

    def _check_model(self, request: VideoRequest, params: GenerationParams, media: MediaInfo | None) -> None:
        if request.model not in (None, *self._names):
            names = " or ".join(map(repr, self._names))
            raise InvalidInput("model", request.model, f"{names} or no model", "this is the model that is served there")
        check_pixel_frames(params, self._card["max_pixel_frames"])
        self._policy.check(params)
        if params.generate_sound and not self._card["sound"]:
            raise InvalidInput("generate_sound", True, "false", "the served checkpoint has no sound decoder")
        if params.prompt_upsampling and not self._card["prompt_upsampling"]:
            why = "the server has no prompt upsampler"
            raise InvalidInput("prompt_upsampling", params.prompt_upsampling, "false", why)
        if media is not None and not self._card["pictures"]:
            why = "the served checkpoint has no video encoder"
            raise InvalidInput(REFERENCE, NAMES[media.kind], "no picture and no clip", why)


def inspected(path: Path) -> MediaInfo:
    """Return what the file of a line is.

    Raises:
        InvalidInput: it cannot be read, or a video cannot start from it.
    """
    try:
        state = path.stat()
        return _inspected(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise unreadable(path, error) from None


@lru_cache(REMEMBERED_FILES)
def _inspected(path: Path, changed_ns: int, size: int) -> MediaInfo:  # noqa: ARG001  # a changed file is another one
    if size > MAX_UPLOAD_BYTES:
        expected = f"at most {MAX_UPLOAD_BYTES >> 20} MiB"
        raise InvalidInput(REFERENCE, f"{path.name} of {size} bytes", expected, "the server takes no larger file")
    return reading.inspect(path)
