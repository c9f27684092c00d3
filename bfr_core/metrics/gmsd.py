"""Gradient magnitude similarity deviation (GMSD): by how much edges differ, and how unevenly over the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_size, checked_pair

LUMA = (0.299, 0.587, 0.114)
SLOPE = (-1 / 3, 0.0, 1 / 3)  # Prewitt's operator is this along one side and (1, 1, 1) along the other
STEADY = 170 / 255**2  # the constant of the similarity that keeps flat places from counting


def gmsd(restored: Tensor, hq: Tensor) -> Tensor:
    """GMSD of luma at half the size, >= 0. Lower is better; 0 for equal images.

    restored, hq: (B, 3, H, W) RGB in [0, 1], at least 6 x 6; (B,) float64 back. Raises ValueError if they are smaller
    or of different shapes. The deviation is over the pixels: damage that is the same everywhere counts less than a face
    with a ruined eye. Source: Xue et al., arXiv:1308.3052, eqs. 1 to 6.
    """
    restored, hq = checked_pair(restored, hq)
    check_size(hq, 6, "GMSD")
    first, second = (_gradient_magnitude(image) for image in (restored, hq))
    similarity = (2 * first * second + STEADY) / (first.square() + second.square() + STEADY)
    return similarity.flatten(1).std(1, correction=0)


def _gradient_magnitude(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, ceil(H / 2), ceil(W / 2)): of luma averaged over 2 x 2 pixels, zero outside."""
    luma = (image * image.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    odd = max(image.shape[-2] % 2, image.shape[-1] % 2)
    half = F.avg_pool2d(F.pad(luma, (0, odd, 0, odd)), 2)
    across = torch.outer(torch.ones(3), torch.tensor(SLOPE)).to(half)
    slopes = F.conv2d(half, torch.stack([across, across.T])[:, None], padding=1)
    return slopes.square().sum(1, keepdim=True).sqrt()
