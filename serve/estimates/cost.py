"""What a request costs, in floating-point operations, and which share of them is done."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.params import ReferenceKind
from cosmos3_models.resources.cost import reference_flops, request_flops

MOST_UNFINISHED_PERCENT = 99


class Cost(NamedTuple):
    """What a request costs.

    Attributes:
        model: the served model and its device.
        mode: label of the approximation.
        passes: forward passes of a step.
        text, step, decode: operations of the text tower, of one step and of both decoders.
        encode: operations of the video encoder; 0 for text alone.
    """

    model: str
    mode: str
    passes: int
    text: float
    step: float
    decode: float
    encode: float = 0


def cost_of(
    checkpoint: Checkpoint,
    device: str,
    params: GenerationParams,
    prompt_tokens: Sequence[int],
    kind: ReferenceKind | None = None,
) -> Cost:
    """Return what a request costs.

    Args:
        device: cpu or cuda, where it runs.
        prompt_tokens: length of each prompt that runs.
        kind: of the picture or clip that it begins with.
    """
    flops = request_flops(checkpoint, params, prompt_tokens)
    encode = 0 if kind is None else reference_flops(checkpoint, params, kind)
    return Cost(f"{checkpoint.name} on {device}", params.label, len(prompt_tokens), *flops, encode)


def stored_cost(fields: Any) -> Cost | None:
    """Return the cost that a job's row holds; None for a row of version 1."""
    return None if fields is None else Cost(**fields)


def operations(cost: Cost, steps: int) -> float:
    """Return the floating-point operations of a whole request."""
    return cost.encode + cost.text + steps * cost.step + cost.decode


def percent(cost: Cost | None, step: int, steps: int) -> int:
    """Return the progress of a job that has not completed, 0 to 99: the share of its operations that is done."""
    if cost is None:  # the row was written by an earlier release
        return min(MOST_UNFINISHED_PERCENT, 100 * step // steps)
    done = (cost.encode + cost.text if step else 0) + step * cost.step
    return min(MOST_UNFINISHED_PERCENT, int(100 * done / operations(cost, steps)))
