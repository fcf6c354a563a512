"""The forward passes of a denoise: known from the request alone, and so is the time that they take."""

from collections.abc import Container
from functools import lru_cache
from itertools import accumulate, count, takewhile

FIRST_STEPS = 6
LAST_STEPS = 2
"""The steps at either end that are always computed: the picture's layout is decided at first, its details at last."""

LEAST_DISTANCE = 2  # in steps, between computed ones
SAME_DISTANCES = 2  # before the next one is larger by a step

FIRST_GUIDED = 2  # of the computed steps


@lru_cache(maxsize=1024)
def passes_by_step(steps: int, prompts: int, velocity_reuse: int = 0, guidance_reuse: int = 0) -> tuple[int, ...]:
    """How many of the prompts, the positive one first, each step runs the model for.

    A step with 0 extrapolates the velocity, and one with 1 of 2 reuses the last difference between the prompts.

    Args:
        steps: of the sampler, at least 1.
        prompts: 2 with guidance, else 1.
        velocity_reuse: the longest distance between computed steps; 0: all are computed.
        guidance_reuse: every ``guidance_reuse``-th computed step runs all prompts; 0: all do.
    """
    plan: list[int] = []
    computed = 0
    chosen = _computed_steps(steps, velocity_reuse)
    for step in range(steps):
        if step not in chosen:
            plan.append(0)
            continue
        guided = not guidance_reuse or computed < FIRST_GUIDED or computed % guidance_reuse == 0
        plan.append(prompts if guided else 1)
        computed += 1
    return tuple(plan)


def full_steps(plan: tuple[int, ...], prompts: int, done: float) -> float:
    """What the first ``done`` steps cost, as a number of steps that run every prompt.

    Args:
        plan: as ``passes_by_step`` makes it.
        done: may end within a step, and after the last one.
    """
    whole = int(done)
    return (sum(plan[:whole]) + (done - whole) * sum(plan[whole : whole + 1])) / prompts


def _computed_steps(steps: int, longest: int) -> Container[int]:
    """The first and the last steps, and between them some whose distance grows: what is left to decide falls."""
    if not longest:
        return range(steps)
    distances = (min(longest, LEAST_DISTANCE + index // SAME_DISTANCES) for index in count())
    between = takewhile(lambda step: step < steps - LAST_STEPS, accumulate(distances, initial=FIRST_STEPS - 1))
    return {*range(FIRST_STEPS), *between, *range(steps - LAST_STEPS, steps)}
