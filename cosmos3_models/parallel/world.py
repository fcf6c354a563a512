"""The processes that make one video together, over ``torch.distributed``: NCCL between GPUs, gloo between CPUs."""

from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from cosmos3_models.checkpoint.configs import TransformerConfig
from cosmos3_models.errors import InvalidInput
from cosmos3_models.parallel.shares import shares
from cosmos3_models.parallel.split import WHOLE, Group, Split

HOST = "127.0.0.1"
"""All ranks are on one host: the exchanges within a layer need its links between GPUs."""


class World:
    """One process that makes videos without others. ``SeveralRanks`` has the same methods."""

    rank = 0
    size = 1

    def split(self, prompts: int) -> Split:
        """This rank's place in the work of a video with this many prompts: 2 with guidance, otherwise 1."""
        del prompts
        return WHOLE

    def agreed(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """Make rank 0 alone decide: on all other ranks the result returns what rank 0's returns."""
        return should_stop


class SeveralRanks(World):
    """One of several processes that make each video together. All make the same calls in the same order.
    ``shares`` divides the work among them.

    Args:
        rank: of this process; rank 0 is the one that made the store.
        size: number of processes.
        store: where the processes find each other; see ``open_store``.
        timeout_s: the time that a rank waits for another one, in each exchange of data, before it raises an error.
        device: cpu, or cuda: each rank's current GPU.
    """

    def __init__(self, rank: int, size: int, store: TCPStore, timeout_s: float, device: str = "cpu") -> None:
        self.rank, self.size = rank, size
        gpu = torch.device(device, torch.cuda.current_device()) if device == "cuda" else None
        self._device = gpu or torch.device("cpu")
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
            device_id=gpu,
        )
        self._everybody = Group(rank, size, dist.group.WORLD)
        self._splits = {share: self._split(*share) for share in sorted({shares(size, prompts) for prompts in (1, 2)})}

    def split(self, prompts: int) -> Split:
        return self._splits[shares(self.size, prompts)]

    def agreed(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        def decision() -> bool:
            flag = torch.tensor([should_stop()], dtype=torch.uint8, device=self._device)
            dist.broadcast(flag, src=0)
            return bool(flag.item())

        return decision

    def leave(self) -> None:
        """Close the connections."""
        dist.destroy_process_group()

    def _split(self, branches: int, context: int) -> Split:
        """Neighbours share the tokens of a branch."""
        if branches == 1:
            return Split(context=self._everybody)
        if context == 1:
            return Split(branches=self._everybody)
        tokens = self._group([range(i * context, (i + 1) * context) for i in range(branches)])
        return Split(self._group([range(i, self.size, context) for i in range(context)]), tokens)

    def _group(self, candidates: Sequence[Sequence[int]]) -> Group:
        """The group of this rank; every rank has to make all of them."""
        made = [(ranks, dist.new_group(list(ranks))) for ranks in candidates]
        (ranks, processes) = next((ranks, group) for ranks, group in made if self.rank in ranks)
        return Group(ranks.index(self.rank), len(ranks), processes)


def open_store(size: int, timeout_s: float, port: int = 0) -> TCPStore:
    """Open the store of ``SeveralRanks`` on this host.

    Args:
        size: number of processes.
        timeout_s: the time to wait for what another rank has to write.
        port: that of rank 0's store, in all other ranks; 0 makes rank 0's, on a free ``port``.
    """
    return TCPStore(HOST, port, size, port == 0, timedelta(seconds=timeout_s), wait_for_workers=False)


def check_world(size: int, config: TransformerConfig) -> None:
    """Raise ``InvalidInput`` if this many ranks cannot share a model's heads equally.

    A rank attends with whole groups of heads: those of the queries, with the key and value head that they read.
    """
    heads = config.num_key_value_heads
    if size < 1 or heads % size:
        expected = f"one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}"
        raise InvalidInput("gpus_per_denoiser", size, expected, f"they share the model's {heads} key and value heads")
