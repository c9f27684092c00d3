"""Random numbers that depend on what they are for, not on when they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose random numbers are fixed by `key`, such as (seed, "targets", face name)."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def keyed_noise(
    seed: int, stage: str, names: Sequence[str], device: torch.device | str
) -> Callable[[torch.Size], Tensor]:
    """Gaussian noise for a batch of faces in which each face's random numbers do not depend on the others in the batch.

    The function returned takes a shape (B, ...) with B = len(names).
    """
    generators = [keyed_generator(seed, stage, name) for name in names]

    def noise(shape: torch.Size) -> Tensor:
        return torch.stack([torch.randn(shape[1:], generator=g) for g in generators]).to(device)

    return noise
