"""Low-rank tuning (LoRA): few numbers move, and an adaptation is a file of a few MB. Source: arXiv:2106.09685.

Any weight matrix or convolution kernel W is tuned as W + U V, seen as a matrix of (outputs, the rest). The file holds
only U and V and names its base, so that an adaptation can be shared without sharing anybody's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..randomness import keyed_generator

KIND = "bfr_lowrank"  # value of the metadata entry "kind" of such a file


class LowRank(nn.Module):
    """W -> W + U V. U starts at zero, so that nothing changes at first.

    up: U, (rows, rank); down: V, (rank, columns), of W seen as (rows, columns).
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = matrix(weight).shape
        rank = min(rank, rows, columns)
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.down = nn.Parameter(down.to(weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).reshape(weight.shape)


def matrix(weight: Tensor) -> Tensor:
    """A weight as (outputs, everything else); leading axes of length 1 are dropped."""
    while weight.ndim > 2 and weight.shape[0] == 1:
        weight = weight[0]
    return weight.flatten(1)


def add_low_rank(module: nn.Module, names: Iterable[str], rank: int, seed: int) -> list[nn.Parameter]:
    """Give the named weights of `module` that have two axes or more a low-rank change; returns the factors to tune."""
    tuned: list[nn.Parameter] = []
    for name in names:
        path, _, own = name.rpartition(".")
        owner = module.get_submodule(path)
        weight = getattr(owner, own)
        if weight.ndim < 2 or min(matrix(weight).shape) < 2:
            continue
        change = LowRank(weight, rank, keyed_generator(seed, "low rank", name))
        parametrize.register_parametrization(owner, own, change)
        tuned += [change.up, change.down]
    return tuned


def merge_low_rank(module: nn.Module) -> nn.Module:
    """Turn every W + U V into a plain weight again, in place."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    return module


def factor_change(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The change from `base` to `tuned` as NAME.up and NAME.down of at most `rank`, and NAME.change of short tensors.

    It is exact where the change has that rank, as after low-rank tuning; else the nearest (Eckart and Young).
    """
    factors: dict[str, Tensor] = {}
    for name, weight in tuned.items():
        if not weight.is_floating_point() or torch.equal(weight, base[name]):
            continue
        change = (weight.float() - base[name].float()).cpu()
        if change.ndim < 2 or min(matrix(change).shape) <= rank:
            factors[f"{name}.change"] = change
            continue
        flat = matrix(change)
        # On the CPU and without random numbers: torch.svd_lowrank would draw from the process's own.
        u, s, vh = torch.linalg.svd(flat.cpu(), full_matrices=False)
        root = s[:rank].sqrt()
        factors[f"{name}.up"], factors[f"{name}.down"] = u[:, :rank] * root, root[:, None] * vh[:rank]
    return factors


def apply_change(state: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the change added. Raises ValueError if the change does not fit it."""
    changed = dict(state)
    for key, value in factors.items():
        name, _, kind = key.rpartition(".")
        if name not in state or kind not in ("change", "up", "down"):
            raise ValueError(f"it changes {name}, which its base does not have")
        if not state[name].is_floating_point():
            raise ValueError(f"it changes {name}, which holds no weights")
        if kind == "down":
            continue
        if kind == "up":
            down = factors.get(f"{name}.down")
            if down is None or value.ndim != 2 or down.ndim != 2 or value.shape[1] != down.shape[0]:
                raise ValueError(f"its change of {name} is not a product of two matrices")
            if len(value) * down.shape[1] != state[name].numel():  # before it is multiplied out, whatever its size
                raise ValueError(f"its change of {name} has another size than the base's")
            value = value.float() @ down.float()
        if value.numel() != state[name].numel():
            raise ValueError(f"its change of {name} has another size than the base's")
        changed[name] = state[name] + value.float().reshape(state[name].shape)
    return changed
