"""The real graph, with stages that break, hang or fail on command."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray import cloudpickle

from serve import app
from serve.graph import media_stages, stages

DIE = "die in every step"


class Fault:
    """What shall happen in one process of a stage.

    Args:
        order: the file that a test writes. The first process to read it obeys for as long as it lives.
    """

    def __init__(self, order: str) -> None:
        self._order = Path(order)
        self._kind = ""

    def happen(self, in_a_step: bool = False) -> None:
        """Called where the model computes."""
        order = self._order.read_text() if not self._kind and self._order.exists() else ""
        if order == DIE:  # it stays for the next process
            if in_a_step:
                os._exit(1)
        elif order:
            taken = self._order.with_suffix(f".{os.getpid()}")
            self._order.rename(taken)
            self._kind = taken.read_text()
        if self._kind == "break":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self._kind == "hang":
            time.sleep(3600)
        if self._kind == "device assert":  # for a GPU: the error stays for as long as the process lives
            import torch

            torch.zeros(1, device="cuda")[torch.tensor([10], device="cuda")].cpu()
        if self._kind == "endless kernel":
            import torch

            torch.cuda._sleep(10**12)
        if self._kind == "fail once":
            self._kind = ""
            raise RuntimeError("this failure does not come again")


class Faulty:
    """A model, one of whose methods meets the fault whenever it is called or calls back."""

    def __init__(self, model: Any, fault: Fault) -> None:
        self._model, self._fault = model, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def warm_up(self, *args: Any) -> None:
        self._fault.happen()
        self._model.warm_up(*args)

    def arrays(self, ids: Any, params: Any, on_step: Callable[[int, int], None], **options: Any) -> Any:
        def step(done: int, steps: int) -> None:
            on_step(done, steps)
            self._fault.happen(in_a_step=True)

        return self._model.arrays(ids, params, on_step=step, **options)

    def frames(self, latents: Any) -> Iterator[Any]:
        for frames in self._model.frames(latents):
            self._fault.happen()
            yield frames

    def __call__(self, frames: Any) -> Any:
        return self._model(self._met(frames))

    def _met(self, frames: Iterator[Any]) -> Iterator[Any]:
        for some in frames:
            self._fault.happen()
            yield some

    def waveform(self, latents: Any) -> Any:
        self._fault.happen()
        return self._model.waveform(latents)


class Denoiser(stages.Denoiser):
    def __init__(self, order: str, *args: Any) -> None:
        super().__init__(*args)
        self._denoiser: Any = Faulty(self._denoiser, Fault(order))


class VideoEncoder(media_stages.VideoEncoder):
    def __init__(self, order: str, *args: Any) -> None:
        super().__init__(*args)
        self._encoder: Any = Faulty(self._encoder, Fault(order))


class VideoDecoder(media_stages.VideoDecoder):
    def __init__(self, order: str, *args: Any) -> None:
        super().__init__(*args)
        self._decoder: Any = Faulty(self._decoder, Fault(order))


class SoundDecoder(media_stages.SoundDecoder):
    def __init__(self, order: str, *args: Any) -> None:
        super().__init__(*args)
        self._decoder: Any = Faulty(self._decoder, Fault(order))


FAULTY = {stage.__name__: stage for stage in (Denoiser, VideoEncoder, VideoDecoder, SoundDecoder)}


@contextmanager
def faulty_graph(args: app.AppArgs, orders: Path, health_check_period_s: float) -> Iterator[Any]:
    """The application of ``build_app``. ``orders / stage name`` is where a test writes what shall happen."""
    real_deployment = app._deployment

    class Ordered:
        """Binds a deployment's arguments behind the path of its orders."""

        def __init__(self, deployment: Any, order: Path) -> None:
            self._deployment, self._order = deployment, str(order)

        def bind(self, *args: Any) -> Any:
            return self._deployment.bind(self._order, *args)

    def deployment(stage: type, *options: Any, **named: Any) -> Any:
        made = real_deployment(FAULTY.get(stage.__name__, stage), *options, **named)
        made = made.options(health_check_period_s=health_check_period_s)
        return Ordered(made, orders / stage.__name__) if stage.__name__ in FAULTY else made

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)  # replicas cannot import the tests
    with patch.object(app, "_deployment", deployment):
        yield app.build_app(args)
    cloudpickle.unregister_pickle_by_value(module)
