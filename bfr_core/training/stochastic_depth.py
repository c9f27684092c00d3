"""Parts of a network left out at random while it is tuned. Source: arXiv:1603.09382.

A network that was trained with it has modules for it, which otherwise do nothing. What is left out is drawn for each
pass from a key, so that a tuning that was stopped goes on as if it had not been.
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
    """The settings of a tuning that are read here."""

    @property
    def stochastic_depth(self) -> bool: ...

    @property
    def seed(self) -> int: ...


def switch_on(net: nn.Module) -> int:
    """Switch stochastic depth on in the modules of `net` that have it, and nowhere else; returns how many have it."""
    found = [module for module in net.modules() if type(module).__name__ in MODULES]
    for module in found:
        module.train()
    return len(found)


@contextlib.contextmanager
def drawing(config: Settings, device: torch.device, step: int, first: int) -> Iterator[None]:
    """Within it, torch's own random numbers are keyed by the seed, the step and the first face of the pass.

    It does nothing unless `config.stochastic_depth` is set.
    """
    if not config.stochastic_depth:
        yield
        return
    seed = int(torch.randint(1 << 62, (), generator=keyed_generator(config.seed, "depth", step, first)))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
