"""A denoiser of several GPUs of one node: rank 0 is in the replica, every other rank in an actor that the replica owns.

The actors have their places in the replica's placement group. They end with the replica: Ray ends an actor with its
owner, and Serve removes the placement group. If one of them ends first, the replica does, too; see ``lost``.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cosmos3_models import GenerationParams, InvalidInput
from cosmos3_models.approximations import Approximation
from cosmos3_models.errors import Stopped
from cosmos3_models.text.prompt import PromptIds
from serve.graph.worker import EXIT_STATUS, use_all_cores

if TYPE_CHECKING:
    from cosmos3_models.sampling.clean_frames import CleanFrames
    from cosmos3_models.sampling.denoise import OnStep, ShouldStop, VideoDenoiser
    from cosmos3_models.transformer.model import Transformer

logger = logging.getLogger("ray.serve")

START_S = 60.0  # for the ranks to find each other, once each has its weights
WAIT_S = 120.0
"""How long a rank waits for another one in an exchange of data: far longer than two ranks can differ in a step."""

Load = Callable[[], "VideoDenoiser"]
"""Reads the weights on the device of the process that calls it."""


class Rank:
    """A rank other than 0, in an actor. It makes what rank 0 makes, and only rank 0 passes it on.

    Args:
        load: as that of rank 0.
    """

    def __init__(self, load: Load) -> None:
        self._denoiser = load()

    def loaded(self) -> None:
        """Return once the weights are there."""

    def join(self, rank: int, size: int, port: int) -> None:
        """Become one rank of several; see ``_join``."""
        self._denoiser = _join(self._denoiser, rank, size, port)

    def denoise(self, ids: PromptIds, params: GenerationParams, clean: "CleanFrames | None") -> None:
        """Take part in a request, until its end or until rank 0 stops it."""
        with _one_of_several():
            self._denoiser(ids, params, clean=clean)

    def warm_up(self, approximation: Approximation) -> None:
        """Take part in the smallest request."""
        with _one_of_several():
            self._denoiser.warm_up(approximation)

    def live(self) -> None:
        """Never return, so that the result says when this process has ended."""
        threading.Event().wait()


class Ranks:
    """Rank 0 and the handles of the others, used as a ``VideoDenoiser``.

    Args:
        load: for this rank and, in their own processes, for the others.
        size: number of ranks, and of bundles of the replica's placement group.
    """

    def __init__(self, load: Load, size: int) -> None:
        from cosmos3_models.parallel.world import open_store

        self._apart = False
        self._others = [_start(load, rank) for rank in range(1, size)]
        self._lives = [other.live.options(concurrency_group="life").remote() for other in self._others]
        alone = load()
        ray.get([other.loaded.remote() for other in self._others])  # or the error that one of them met
        self._store = open_store(size, START_S)
        port = self._store.port
        joining = [other.join.remote(rank, size, port) for rank, other in enumerate(self._others, start=1)]
        # In a thread, because NCCL itself waits for other ranks without limit when it connects to them.
        self._own = ThreadPoolExecutor(max_workers=1).submit(_join, alone, 0, size, port).result(timeout=WAIT_S)
        ray.get(joining, timeout=WAIT_S)

    @property
    def transformer(self) -> "Transformer":
        """That of rank 0."""
        return self._own.transformer

    def arrays(
        self,
        ids: PromptIds,
        params: GenerationParams,
        *,
        clean: "CleanFrames | None" = None,
        on_step: "OnStep",
        should_stop: "ShouldStop",
        show: "Callable[[int, NDArray[np.float32]], None]",
    ) -> list[NDArray[np.float32]]:
        """``VideoDenoiser.arrays``, with all ranks; rank 0 alone shows previews."""
        with self._in_step():
            others = [other.denoise.remote(ids, params, clean) for other in self._others]
            made = self._own.arrays(ids, params, clean=clean, on_step=on_step, should_stop=should_stop, show=show)
            ray.get(others, timeout=WAIT_S)
            return made

    def warm_up(self, approximation: Approximation) -> None:
        """``VideoDenoiser.warm_up``, with all ranks.

        Raises:
            RuntimeError: an earlier call failed. Then the others may still wait for it, and what they exchange next
                would be that of different requests.
        """
        if self._apart:
            raise RuntimeError("the ranks are no longer at the same step")
        with self._in_step():
            others = [other.warm_up.remote(approximation) for other in self._others]
            self._own.warm_up(approximation)
            ray.get(others, timeout=WAIT_S)

    def lost(self) -> str | None:
        """Name the ranks whose processes have ended; None if all live."""
        ended, _ = ray.wait(self._lives, num_returns=len(self._lives), timeout=0)
        names = [f"rank {self._lives.index(life) + 1}" for life in ended]
        return f"{', '.join(names)} ended" if names else None

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Note an error that not all ranks meet at the same step."""
        try:
            yield
        except (Stopped, InvalidInput):
            raise
        except Exception:
            self._apart = True
            raise


@contextmanager
def _one_of_several() -> Iterator[None]:
    """Compute as a rank other than 0: what all ranks raise, rank 0 reports. Any other error ends the process, or the
    others would wait for this rank in the next exchange.
    """
    use_all_cores()
    try:
        yield
    except (Stopped, InvalidInput):
        pass
    except Exception:
        logger.exception("This rank failed and exits.")
        os._exit(EXIT_STATUS)


def _start(load: Load, rank: int) -> Any:
    """Start a rank's actor in the bundle of its own that the replica's placement group has for it."""
    group = get_current_placement_group()
    bundle = group.bundle_specs[rank]
    options = {
        "num_cpus": bundle.get("CPU", 0),
        "num_gpus": bundle.get("GPU", 0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
    }
    return ray.remote(concurrency_groups={"life": 1})(Rank).options(**options).remote(load)


def _join(denoiser: "VideoDenoiser", rank: int, size: int, port: int) -> "VideoDenoiser":
    """Find the other ranks at the port of rank 0's store, and return the denoiser as one of them."""
    from cosmos3_models.parallel.world import SeveralRanks, open_store

    store, device = open_store(size, START_S, port), denoiser.transformer.device.type
    return denoiser.within(SeveralRanks(rank, size, store, WAIT_S, device))
