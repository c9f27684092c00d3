"""A picture as bands of detail, each half as fine as the one before (P. J. Burt and E. H. Adelson, 1983)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def split(image: Tensor, levels: int) -> list[Tensor]:
    """The `levels` finest bands of `image`, the finest first; what is coarser is left out.

    image: (C, H, W) float, H and W multiples of 2 ** levels. Band k is (C, H / 2 ** k, W / 2 ** k).
    """
    bands = []
    for _ in range(levels):
        coarse = _halved(image)
        bands.append(image - _doubled(coarse))
        image = coarse
    return bands


def joined(bands: list[Tensor]) -> Tensor:
    """The picture that consists of `bands` alone, as `split` orders them: (C, H, W) of the finest one."""
    image = bands[-1]
    for band in reversed(bands[:-1]):
        image = _doubled(image) + band
    return image


def padded(image: Tensor, levels: int) -> Tensor:
    """(C, H, W) with its last rows and columns repeated up to the next multiples of 2 ** levels."""
    step = 2**levels
    height, width = image.shape[-2:]
    return F.pad(image[None], (0, -width % step, 0, -height % step), mode="replicate")[0]


def _halved(image: Tensor) -> Tensor:
    """(C, H, W) at half the size, by binomial weights 1, 3, 3, 1."""
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=image.dtype, device=image.device) / 8
    planes = F.pad(image[:, None], (1, 1, 1, 1), mode="replicate")
    planes = F.conv2d(planes, weights.view(1, 1, -1, 1), stride=(2, 1))
    return F.conv2d(planes, weights.view(1, 1, 1, -1), stride=(1, 2))[:, 0]


def _doubled(image: Tensor) -> Tensor:
    """(C, H, W) at twice the size; each pixel spreads by the same weights."""
    return F.interpolate(image[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
