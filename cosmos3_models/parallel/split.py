"""How several processes share the work of one video: the prompts of guidance, and the media tokens of each prompt.

The context is split as in DeepSpeed-Ulysses (Jacobs et al., 2023): outside of attention a rank has some tokens with all
heads, within attention all tokens with some heads, and an all-to-all leads from one to the other. So no sum is ever
divided among ranks, and a rank adds in the order in which one process would.

b  batch       n  all media tokens       m  those of one rank       w  numbers of a token
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cosmos3_models.kernels.token_ops import KeyValue

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Ranks that divide something among them, as one of them sees it. A group of one changes nothing and waits for
    nobody.

    Attributes:
        rank: of this process within the group.
        size: ranks of the group.
        processes: carries the data; None in a group of one.
    """

    rank: int = 0
    size: int = 1
    processes: dist.ProcessGroup | None = None

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's items, of a number that ``size`` divides."""
        count = len(items) // self.size
        return items[self.rank * count : (self.rank + 1) * count]

    def gather(self, items: Sequence[Tensor]) -> list[Tensor]:
        """The items of all ranks, by rank; each rank has as many, all of one shape."""
        if self.size == 1:
            return list(items)
        own = torch.stack(list(items))
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self.processes)
        return [item for of_rank in found for item in of_rank]

    def part(self, x: Tensor) -> Tensor:
        """This rank's tokens (b, m, w) of all (b, n, w). All ranks have as many: zeros stand in for missing ones."""
        if self.size == 1:
            return x
        length = -(-x.shape[1] // self.size)
        own = x[:, self.rank * length : (self.rank + 1) * length]
        return _filled(own, length)

    def whole(self, part: Tensor, tokens: int) -> Tensor:
        """All tokens (b, n, w) from each rank's ``part`` (b, m, w)."""
        return part if self.size == 1 else torch.cat(self.gather([part]), dim=1)[:, :tokens]

    def own_heads(self, text: KeyValue) -> KeyValue:
        """This rank's heads of keys and values that every rank has."""
        if self.size == 1:
            return text
        return KeyValue(*(x.chunk(self.size, dim=2)[self.rank].contiguous() for x in text))

    def to_heads(self, x: Tensor, widths: Sequence[int], tokens: int) -> Tensor:
        """Exchange this rank's tokens with all heads for all tokens with this rank's heads.

        Args:
            x: (b, m, sum of widths): several kinds of heads, such as queries, keys and values.
            widths: of each kind, all heads together.
            tokens: without those that stand in for missing ones.

        Returns:
            (b, tokens, sum of widths / size), the same kinds in the same order.
        """
        if self.size == 1:
            return x
        kinds = [rearrange(kind, "b m (p w) -> p b m w", p=self.size) for kind in x.split(list(widths), dim=2)]
        received = self._exchange(torch.cat(kinds, dim=3))
        return rearrange(received, "p b m w -> b (p m) w")[:, :tokens]

    def to_tokens(self, x: Tensor, tokens: int) -> Tensor:
        """Undo ``to_heads`` for one kind of heads: (b, n, w) to (b, tokens, w * size), tokens being those of a rank."""
        if self.size == 1:
            return x
        whole = _filled(x, tokens * self.size)
        received = self._exchange(rearrange(whole, "b (p m) w -> p b m w", p=self.size).contiguous())
        return rearrange(received, "p b m w -> b m (p w)")

    def _exchange(self, x: Tensor) -> Tensor:
        """Send x[i] to rank i; the result holds what rank i sent at i."""
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x, group=self.processes)
        return received


def _filled(x: Tensor, length: int) -> Tensor:
    """x (b, n, w) with zeros behind it up to ``length`` tokens; x itself, not a copy, if it has as many."""
    return x if x.shape[1] == length else F.pad(x, (0, 0, 0, length - x.shape[1]))


ALONE = Group()


@dataclass(frozen=True)
class Split:
    """A rank's place in branches x context.

    Attributes:
        branches: ranks with the same tokens of different prompts.
        context: ranks with different tokens of the same prompts.
    """

    branches: Group = ALONE
    context: Group = ALONE


WHOLE = Split()
