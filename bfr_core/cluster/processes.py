"""The processes that `accelerate launch` started, as a team that tunes one restorer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from ..training.team import ALONE, Team

LONGEST_WAIT = timedelta(hours=24)  # the others wait while the first process collects faces


@dataclass(frozen=True)
class Launched(Team):
    """A member of a team of several processes. accelerator: an `accelerate.Accelerator`."""

    accelerator: Any = None

    @property
    def device(self) -> torch.device:
        """Where this process computes: a graphics card of its own, if there are any."""
        return self.accelerator.device

    def first_goes_first(self) -> AbstractContextManager[None]:
        return self.accelerator.main_process_first()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        own = list(parameters)
        for parameter in own:
            if parameter.grad is None:  # this process had no faces in this step
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in own if parameter.grad is not None]
        total = self.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "sum")
        for grad, part in zip(grads, total.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def sum_losses(self, losses: Mapping[str, float]) -> dict[str, float]:
        from accelerate.utils import gather_object

        total: dict[str, float] = {}
        for of_one in gather_object([dict(losses)]):
            for name, value in of_one.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def as_first(self, value: float) -> float:
        from accelerate.utils import gather_object

        return gather_object([value])[0]


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
    return Launched(accelerator.process_index, accelerator.num_processes, accelerator)
