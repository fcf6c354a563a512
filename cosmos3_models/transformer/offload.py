"""Layers whose weights wait in host memory and come to the device one at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cosmos3_models.checkpoint.upload import READERS


class HostLayers:
    """Layers of one shape and dtype whose weights lie in host memory, page-locked for a GPU.

    An iteration brings them to the device. The next layer's are copied while a layer computes: two are there at a time.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        weights: Callable[[nn.Module], Sequence[Tensor]],
        device: torch.device,
    ) -> None:
        """Move all ``weights`` of each layer, one behind the other in memory in that order."""
        first = weights(layers[0])
        self._layers = layers
        self._device = device
        # One block for all: PyTorch rounds each block of page-locked memory up to a power of two.
        self._memory = torch.empty(
            (len(layers), sum(weight.numel() for weight in first)),
            dtype=first[0].dtype,
            pin_memory=device.type == "cuda",
        )
        with ThreadPoolExecutor(max_workers=READERS) as readers:
            list(readers.map(_move, map(weights, layers), self._memory))
        self._places = {name: (weight.shape, weight.storage_offset()) for name, weight in layers[0].named_parameters()}

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        """Yield each layer as a function on the device. It must be called before the next one is asked for."""
        backend = torch.get_device_module(self._device)
        compute, copies = backend.current_stream(self._device), backend.Stream(self._device)
        slots = torch.empty((2, self._memory.shape[1]), dtype=self._memory.dtype, device=self._device)

        def fetch(index: int) -> None:
            copies.wait_stream(compute)  # which may still read the slot
            with backend.stream(copies):
                slots[index % 2].copy_(self._memory[index], non_blocking=True)

        try:
            fetch(0)
            for index, layer in enumerate(self._layers):
                compute.wait_stream(copies)
                if index + 1 < len(self._layers):
                    fetch(index + 1)
                yield partial(_call, layer, self._weights(slots[index % 2]))
        finally:
            compute.wait_stream(copies)  # then the slots may be given to others, even if a layer failed

    def _weights(self, slot: Tensor) -> dict[str, Tensor]:
        return {name: slot[at : at + math.prod(shape)].view(shape) for name, (shape, at) in self._places.items()}


def _move(weights: Sequence[Tensor], memory: Tensor) -> None:
    parts = memory.split([weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        part.copy_(weight.detach().flatten())
        weight.data = part.view(weight.shape)


def _call(layer: nn.Module, weights: dict[str, Tensor], *inputs: Any) -> Any:
    return functional_call(layer, weights, inputs)
