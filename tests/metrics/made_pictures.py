"""Pictures that are made by a rule, and damages of them in known strengths."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bfr_core import metrics


def leaves(count: int, seed: int, size: int = 64) -> Tensor:
    """Pictures of overlapping shaded discs: edges, flat parts and texture of every scale, as photographs have."""
    draw = np.random.RandomState(seed)
    y, x = np.mgrid[:size, :size]
    pictures = []
    for _ in range(count):
        picture = np.full((3, size, size), 0.5)
        for _ in range(60):
            radius = 2 + 16 * draw.rand() ** 3
            inside = np.hypot(x - draw.rand() * size, y - draw.rand() * size) < radius
            shade = draw.rand(3, 1) + 0.1 * draw.randn() * np.sin(x[inside] * draw.rand() * 2)
            picture[:, inside] = shade
        pictures.append(picture)
    images = torch.from_numpy(np.stack(pictures)).float().clamp(0, 1)
    return blurred(images, 0.6)


def blurred(images: Tensor, sigma: float) -> Tensor:
    return images - metrics.high_band(images, sigma)


def over_smoothed(images: Tensor, share: float) -> Tensor:
    """A share of the high band taken away, as a network that was tuned on averages does."""
    return images - share * metrics.high_band(images)


def noisy(images: Tensor, sigma: float) -> Tensor:
    return (images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)


def screened(images: Tensor, share: float) -> Tensor:
    """A share of a 45 degree halftone screen."""
    y, x = torch.meshgrid(*(torch.arange(n) for n in images.shape[-2:]), indexing="ij")
    screen = (torch.cos(2 * math.pi * (x + y) / 6) + torch.cos(2 * math.pi * (x - y) / 6)) / 4 + 0.5
    return images + share * ((images > screen).float() - images)
