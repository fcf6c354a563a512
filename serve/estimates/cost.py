"""What a request costs, in floating-point operations, and which share of them is done."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cosmos3_models import GenerationParams
from cosmos3_models.checkpoint.folder import Checkpoint
from cosmos3_models.parallel.shares import relative_step_s
from cosmos3_models.references import ReferenceKind
from cosmos3_models.resources.cost import media_tokens, reference_flops, request_flops
from cosmos3_models.sampling.plan import full_steps, passes_by_step

MOST_UNFINISHED_PERCENT = 99


class Cost(NamedTuple):
    """What a request costs.

    Attributes:
        model: the served model and its device.
        mode: how a forward pass computes: ``exact``, or what is in fp8.
        passes: forward passes of a step that runs every prompt.
        text, step, decode: operations of the text tower, of such a step and of both decoders; of several GPUs, those
            that one would do in the time that the step is predicted to take.
        encode: operations of the video encoder; 0 for text alone.
        velocity_reuse, guidance_reuse: of the request; they tell which passes its steps do without.
    """

    model: str
    mode: str
    passes: int
    text: float
    step: float
    decode: float
    encode: float = 0
    velocity_reuse: int = 0
    guidance_reuse: int = 0

    def full_steps(self, done: float, steps: int) -> float:
        """What ``done`` of ``steps`` steps cost, as a number of steps that run every prompt."""
        plan = passes_by_step(steps, self.passes, self.velocity_reuse, self.guidance_reuse)
        return full_steps(plan, self.passes, done)


def cost_of(
    checkpoint: Checkpoint,
    device: str,
    params: GenerationParams,
    prompt_tokens: Sequence[int],
    kind: ReferenceKind | None = None,
    ranks: int = 1,
) -> Cost:
    """Return what a request costs.

    Args:
        device: cpu or cuda, where it runs.
        prompt_tokens: length of each prompt that runs.
        kind: of the picture or clip that it begins with.
        ranks: processes that make the video together. Without GPUs they share the cores, so they are no faster.
    """
    flops = request_flops(checkpoint, params, prompt_tokens)
    if device == "cuda" and ranks > 1:
        tokens, prompts = media_tokens(checkpoint, params), len(prompt_tokens)
        relative_s = relative_step_s(checkpoint.transformer, tokens, flops.step, prompts, ranks)
        flops = flops._replace(step=round(flops.step * relative_s))
    encode = 0 if kind is None else reference_flops(checkpoint, params, kind)
    model, reuse = f"{checkpoint.name} on {device}", (params.velocity_reuse, params.guidance_reuse)
    return Cost(model, params.arithmetic, len(prompt_tokens), *flops, encode, *reuse)


def stored_cost(fields: Any) -> Cost | None:
    """Return the cost that a job's row holds; None for a row of version 1."""
    return None if fields is None else Cost(**fields)


def operations(cost: Cost, steps: int) -> float:
    """Return the floating-point operations of a whole request."""
    return cost.encode + cost.text + cost.full_steps(steps, steps) * cost.step + cost.decode


def percent(cost: Cost | None, step: int, steps: int) -> int:
    """Return the progress of a job that has not completed, 0 to 99: the share of its operations that is done."""
    if cost is None:  # the row was written by an earlier release
        return min(MOST_UNFINISHED_PERCENT, 100 * step // steps)
    done = (cost.encode + cost.text if step else 0) + cost.full_steps(step, steps) * cost.step
    return min(MOST_UNFINISHED_PERCENT, int(100 * done / operations(cost, steps)))
