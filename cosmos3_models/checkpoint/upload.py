"""From files to a device with several readers at once: each copies through page-locked memory of its own."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

READERS = 8  # copies of the page cache that together outrun the bus
STAGING_BYTES = 32 * 2**20  # of page-locked memory that a reader holds

Read = Callable[[], Tensor]


class Transfer:
    """Fills tensors on a device, or in host memory, from files.

    Args:
        device: where most of them are. For a GPU there are ``READERS`` threads, and staging memory is page-locked.
        staging_bytes: of memory that a thread copies through, at least the size of a number.
    """

    def __init__(self, device: torch.device, staging_bytes: int = STAGING_BYTES) -> None:
        self._device = device
        self._staging_bytes = staging_bytes
        self._of_thread = threading.local()

    def fill(self, targets: Iterable[tuple[Tensor, Read]]) -> None:
        """Copy what each read gives into its target, cast to the target's dtype.

        The targets are contiguous. Neither device nor host ever holds a second copy of one.
        """
        if self._device.type != "cuda":
            for target, read in targets:
                self._fill(target, read)
            return
        with ThreadPoolExecutor(max_workers=READERS) as readers:
            list(readers.map(lambda pair: self._fill(*pair), targets))

    def staged(self, source: Tensor, target: Tensor) -> None:
        """Copy a tensor in host memory into a contiguous one of any device and dtype, through the thread's staging."""
        staging = self._staging(target.dtype)
        pairs = (x.flatten().split(len(staging)) for x in (source, target.view(-1)))
        for part, place in zip(*pairs, strict=True):
            staging[: len(part)].copy_(part)
            place.copy_(staging[: len(part)])  # waits, so that the staging memory is free again

    def _fill(self, target: Tensor, read: Read) -> None:
        if target.is_cuda:
            self.staged(read(), target)
        else:
            target.copy_(read())

    def _staging(self, dtype: torch.dtype) -> Tensor:
        if not hasattr(self._of_thread, "buffer"):
            locked = self._device.type == "cuda"
            self._of_thread.buffer = torch.empty(self._staging_bytes, dtype=torch.uint8, pin_memory=locked)
        whole = self._staging_bytes // dtype.itemsize * dtype.itemsize
        staging: Tensor = self._of_thread.buffer[:whole].view(dtype)
        return staging
