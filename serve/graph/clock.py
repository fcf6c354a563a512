"""The time of one request in each stage, for its record, its events and its trace."""

import math
import time

from serve import tracing
from serve.graph.previews import Picture
from serve.graph.stage_names import DENOISER
from serve.schema import Preview, Progress

STEP_RANGES = 8  # spans of a denoise, which has up to 200 steps


class Clock:
    """Seconds by stage of one request.

    Attributes:
        laps: seconds by stage.
    """

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = self._last = time.perf_counter()
        self._range_start, self._range_first = self._start, 0

    def lap(self, stage: str) -> None:
        """Add the time since the previous lap to the stage."""
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self._last
        tracing.past(stage, now - self._last)
        self._last = now

    def progress(self, stage: str, step: int, steps: int) -> Progress:
        """A progress event at this moment."""
        if stage == DENOISER:
            self._mark(step, steps)
        return {"type": "progress", "stage": stage, "step": step, "steps": steps, "elapsed_s": self._elapsed_s}

    def preview(self, picture: Picture, steps: int) -> Preview:
        """The event of a preview at this moment."""
        return {
            "type": "preview",
            "step": picture.step,
            "steps": steps,
            "elapsed_s": self._elapsed_s,
            "preview": picture.jpeg,
        }

    def _mark(self, step: int, steps: int) -> None:
        """Make a span of each range of steps."""
        now = time.perf_counter()
        if step and step < steps and step - self._range_first < math.ceil(steps / STEP_RANGES):
            return
        if step:
            name = f"steps {self._range_first + 1} to {step}"
            tracing.past(name, now - self._range_start, first_step=self._range_first + 1, last_step=step)
        self._range_start, self._range_first = now, step

    @property
    def _elapsed_s(self) -> float:
        return round(time.perf_counter() - self._start, 3)
