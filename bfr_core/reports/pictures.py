"""Sheets of pictures: side by side and one below the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..pixels import resized


def side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Pictures (3, H, W) in [0, 1] in a row, all at the height of the tallest: (3, H, W1 + W2 + ...)."""
    height = max(image.shape[-2] for image in images)
    return torch.cat([_at_height(image.float().cpu(), height) for image in images], -1).clamp(0, 1)


def sheet(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of pictures, each as `side_by_side` gives it, one below the other; shorter rows are filled with white."""
    made = [side_by_side(row) for row in rows]
    width = max(row.shape[-1] for row in made)
    return torch.cat([F.pad(row, (0, width - row.shape[-1]), value=1.0) for row in made], -2)


def _at_height(image: Tensor, height: int) -> Tensor:
    if image.shape[-2] == height:
        return image
    width = max(1, round(image.shape[-1] * height / image.shape[-2]))
    return resized(image[None], (height, width))[0]
