"""Processes that tune one restorer together: what the loop asks of them. Alone, it asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Team:
    """Process `number`, counted from 0, of `count`; this one, the only member, has nothing to do but the work itself.

    All members take the same steps with the same weights. Each computes the gradients of some of a step's passes, and
    only the first one writes. Every method must be called by all members.
    """

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.number == 0

    def first_goes_first(self) -> AbstractContextManager[None]:
        """A context that the others enter once the first process has left it."""
        return nullcontext()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter the sum of its gradients over all processes."""

    def sum_losses(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The sums over all processes, by name."""
        return dict(losses)

    def as_first(self, value: float) -> float:
        """The first process's value, in all of them."""
        return value

    def any(self, value: bool) -> bool:
        """Whether any of the processes says yes."""
        return value

    def passes(self, count: int, micro_batch: int, size: int) -> list[slice]:
        """Places of the faces of each pass of this process, of `count` faces in all.

        They are dealt out by micro-batches. size: how many faces a pass takes at most; it may differ between processes,
        if the memory of one is too small, because it changes nothing in who has which faces.
        """
        mine = range(0, count, micro_batch)[self.number :: self.count]
        ends = {start: min(start + micro_batch, count) for start in mine}
        return [slice(at, min(at + size, end)) for start, end in ends.items() for at in range(start, end, size)]


ALONE = Team()
