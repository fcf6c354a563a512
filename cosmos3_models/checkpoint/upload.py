"""From files to a GPU with several readers at once: each copies through page-locked memory of its own."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

READERS = 8  # copies of the page cache that together outrun the bus
STAGING_BYTES = 32 * 2**20  # of page-locked memory that a reader holds


class Transfer:
    """Moves tensors to a device."""

    def __init__(self, device: torch.device, staging_bytes: int = STAGING_BYTES) -> None:
        self._device = device
        self._staging_bytes = staging_bytes
        self._of_thread = threading.local()

    def all(self, reads: Iterable[Callable[[], Tensor]]) -> list[Tensor]:
        """The results of ``reads`` on the device, in their order, read side by side."""
        if self._device.type != "cuda":
            return [read().to(self._device) for read in reads]
        with ThreadPoolExecutor(max_workers=READERS) as readers:
            return list(readers.map(lambda read: self.one(read()), reads))

    def one(self, tensor: Tensor) -> Tensor:
        """A copy on the device."""
        out = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        source, target = (x.view(-1).view(torch.uint8) for x in (tensor.contiguous(), out))
        staging = self._staging()
        for part, place in zip(source.split(len(staging)), target.split(len(staging)), strict=True):
            staging[: len(part)].copy_(part)
            place.copy_(staging[: len(part)])  # waits, so that the staging memory is free again
        return out

    def _staging(self) -> Tensor:
        if not hasattr(self._of_thread, "buffer"):
            locked = self._device.type == "cuda"
            self._of_thread.buffer = torch.empty(self._staging_bytes, dtype=torch.uint8, pin_memory=locked)
        buffer: Tensor = self._of_thread.buffer
        return buffer
