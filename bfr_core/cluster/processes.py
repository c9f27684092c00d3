"""The processes that `accelerate launch` started, as a team that tunes one restorer."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from ..device import is_out_of_memory
from ..errors import first_line
from ..training.team import ALONE, Team

LONGEST_WAIT = timedelta(hours=24)  # the others wait while the first process collects faces


@contextmanager
def with_the_others() -> Iterator[None]:
    """What all processes do at once. Raises ValueError, in one line, if one of them is not there any more."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):  # of this one
            raise
        ended = f"another process of this tuning has ended ({first_line(error)})"
        raise ValueError(f"{ended}; the same command goes on from the last checkpoint") from error


@dataclass(frozen=True)
class Launched(Team):
    """A member of a team of several processes. accelerator: an `accelerate.Accelerator`.

    Every method that asks the others raises ValueError, in one line, if one of them is not there any more.
    """

    accelerator: Any = None

    @property
    def device(self) -> torch.device:
        """Where this process computes: a graphics card of its own, if there are any."""
        return self.accelerator.device

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        if not self.is_first:
            self._wait()
        yield
        if self.is_first:
            self._wait()

    @with_the_others()
    def _wait(self) -> None:
        self.accelerator.wait_for_everyone()

    @with_the_others()
    def _of_all(self, value: Any) -> list[Any]:
        """The value of each process, in all of them."""
        from accelerate.utils import gather_object

        return gather_object([value])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        own = list(parameters)
        for parameter in own:
            if parameter.grad is None:  # this process had no faces in this step
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in own if parameter.grad is not None]
        own_total = torch.cat([grad.flatten() for grad in grads])
        with with_the_others():
            total = self.accelerator.reduce(own_total, "sum")
        for grad, part in zip(grads, total.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def sum_losses(self, losses: Mapping[str, float]) -> dict[str, float]:
        total: dict[str, float] = {}
        for of_one in self._of_all(dict(losses)):
            for name, value in of_one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def as_first(self, value: float) -> float:
        return self._of_all(value)[0]

    def any(self, value: bool) -> bool:
        return any(self._of_all(value))


def team_of_processes(cpu: bool = False) -> Team:
    """The team of the processes that were launched together; of this process alone if it was not launched so.

    cpu: whether they compute on the CPU even where there are graphics cards.
    Raises ValueError if accelerate is not installed.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError:
        raise ValueError("accelerate is not installed; install the packages of the extra 'cluster'") from None
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)])
    atexit.register(_leave)
    return Launched(accelerator.process_index, accelerator.num_processes, accelerator)


def _leave() -> None:
    """End the connections to the others; threads that still hold them may abort a process that ends."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
