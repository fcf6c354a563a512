"""Linears that read the same input, as one parameter."""

from collections.abc import Mapping

from torch import Tensor, nn


class JoinedLinear(nn.Linear):
    """Linears without bias that read the same input, as one matrix: one product makes all of their outputs.

    Args:
        inputs: width of the input.
        parts: the width of each linear's output, in their order, by the name that the linear has in a checkpoint.
    """

    def __init__(self, inputs: int, parts: Mapping[str, int]) -> None:
        super().__init__(inputs, sum(parts.values()), bias=False)
        self.parts = dict(parts)


def separate_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Name all parameters as if no linears were joined.

    A ``JoinedLinear`` called ``attention.to_qkv`` gives ``attention.to_q.weight`` and so on: views of its rows, so that
    writing into them fills it.
    """
    separate: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        path, _, _ = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(owner, JoinedLinear):
            above = path.rpartition(".")[0]
            names = [f"{above}.{part}.weight".removeprefix(".") for part in owner.parts]
            separate |= zip(names, parameter.split(list(owner.parts.values())), strict=True)
        else:
            separate[name] = parameter
    return separate
