"""Colours matched before a measure is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import checked_pair


def colour_matched(restored: Tensor, hq: Tensor) -> Tensor:
    """`restored` with the mean and the deviation of each channel set to those of `hq`; float64, not clamped.

    (B, 3, H, W) in [0, 1]. A channel without any variation is only shifted. Published figures of blind face restoration
    are mostly measured after this, so that colours or contrast that are off as a whole do not count in them.
    """
    restored, hq = checked_pair(restored, hq)
    mean_r, mean_h = (image.mean((2, 3), keepdim=True) for image in (restored, hq))
    spread_r, spread_h = (image.std((2, 3), keepdim=True, correction=0) for image in (restored, hq))
    gain = torch.where(spread_r > 1e-8, spread_h / spread_r.clamp_min(1e-8), torch.ones_like(spread_r))
    return (restored - mean_r) * gain + mean_h
