"""Layers whose weights stay in host memory and are copied to the device one layer at a time."""

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
    """Layers of one shape and dtype whose weights are in host memory, page-locked for a GPU.

    An iteration copies them to the device, the next layer's while a layer computes, so that two are there at a time.
    """

    def __init__(self, layers: Sequence[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
        """Move the weights of each layer to host memory, where those of one layer are neighbours.

        Args:
            layers: on any device, also on the meta device, whose values are then still to be filled in.
            device: computes.
            dtype: of the weights in host memory.
        """
        self._layers = layers
        self._device = device
        self._shapes = {name: weight.shape for name, weight in layers[0].named_parameters()}
        # One block for all: PyTorch rounds each block of page-locked memory up to a power of two.
        self._memory = torch.empty(
            (len(layers), sum(map(math.prod, self._shapes.values()))), dtype=dtype, pin_memory=device.type == "cuda"
        )
        with ThreadPoolExecutor(max_workers=READERS) as readers:
            list(readers.map(move_to_host, layers, map(self._weights, self._memory)))

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        """Yield each layer as a function on the device. Call it before the next one is fetched over its weights."""
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
            compute.wait_stream(copies)  # so that the slots' memory can be reused, even if a layer failed

    def _weights(self, memory: Tensor) -> dict[str, Tensor]:
        """The weights of the layer that lies in ``memory``, as views of it."""
        parts = memory.split([math.prod(shape) for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}


def move_to_host(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Make ``weights`` the parameters of ``module``, and copy its values there unless it is on the meta device."""
    for name, parameter in module.named_parameters():
        if not parameter.is_meta:
            weights[name].copy_(parameter.detach())
    module.load_state_dict(weights, assign=True)


def _call(layer: nn.Module, weights: dict[str, Tensor], *inputs: Any) -> Any:
    return functional_call(layer, weights, inputs)
