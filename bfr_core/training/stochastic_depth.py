"""Parts of a network left out at random while it is tuned. Source: arXiv:1603.09382.

A network that was first trained so has modules for it, which do nothing otherwise. What is left out is drawn anew for
each pass from a key, so that a tuning that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from ..randomness import keyed_generator

MODULES = ("DropPath", "StochasticDepth")  # as they are called in timm and spandrel, and in torchvision


class Settings(Protocol):
    """What is asked of the settings of a tuning."""

    @property
    def stochastic_depth(self) -> bool: ...

    @property
    def seed(self) -> int: ...


def switch_on(net: nn.Module) -> int:
    """Let the parts of `net` that may be left out be so, all else as it is; returns how many there are."""
    found = [module for module in net.modules() if type(module).__name__ in MODULES]
    for module in found:
        module.train()
    return len(found)


@contextlib.contextmanager
def drawing(config: Settings, device: torch.device, step: int, first: int) -> Iterator[None]:
    """While it lasts, torch's own random numbers are keyed by the seed, the step and the first face of the pass.

    Where nothing is left out nothing is done.
    """
    if not config.stochastic_depth:
        yield
        return
    seed = int(torch.randint(1 << 62, (), generator=keyed_generator(config.seed, "depth", step, first)))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
