"""Operations on pictures that every room needs: luma, resizing, Gaussian blur, conversion to whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .device import where_all_works


def luma(image: Tensor) -> Tensor:
    """Luma of (..., 3, H, W) RGB -> (..., 1, H, W), of the same range. Source: ITU-R BT.601."""
    return (image * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True)


def as_bytes(image: Tensor) -> Tensor:
    """`image`, of any shape and in [0, 1], as whole numbers from 0 to 255: uint8 of the same shape, on its device."""
    return image.detach().float().clamp(0, 1).mul(255).round().byte()


def gaussian_blur(
    image: Tensor,
    sigma: float,
    radius: int | None = None,
    edges: Literal["reflect", "replicate", "constant", "none"] = "reflect",
) -> Tensor:
    """Gaussian blur of (B, C, H, W) by `sigma` pixels, in the number format of `image`.

    radius: of the window in pixels; three sigma unless it is given. edges: how the picture goes on outside itself, in
    the words of `torch.nn.functional.pad` ("constant": with zeros); "none" keeps whole windows only, so each side loses
    `radius` pixels.
    """
    radius = int(3 * sigma + 0.5) if radius is None else radius
    x = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    if edges != "none":
        image = F.pad(image, (radius,) * 4, mode=edges)
    groups, across = image.shape[1], kernel.expand(image.shape[1], 1, 1, -1)
    return F.conv2d(F.conv2d(image, across, groups=groups), across.mT, groups=groups)


def sampled_within(image: Tensor, grid: Tensor) -> Tensor:
    """`image` (B, C, H, W) at the places of `grid` (B, h, w, 2), as torch's grid_sample counts them with the corners of
    pixels at -1 and 1: bilinear, and beyond the edge what lies at the edge.

    PyTorch before 2.11 does not offer that on Apple's GPUs, where places beyond the edge are brought to it before.
    """
    if image.device.type != "mps":
        return F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    height, width = image.shape[-2:]
    edge = grid.new_tensor([1 - 1 / width, 1 - 1 / height])  # the middle of the last pixels
    return F.grid_sample(image, grid.clamp(-edge, edge), padding_mode="zeros", align_corners=False)


def resized(
    image: Tensor, size: int | Sequence[int], mode: Literal["bicubic", "bilinear", "area"] = "bicubic"
) -> Tensor:
    """`image` (B, C, H, W) resized to `size`, (height, width) or one number for both, anti-aliased where it shrinks.

    The result is on the device of `image`, and is `image` itself if that has the size. Bicubic results may overshoot
    its range. "area" takes the mean of what becomes one pixel.
    """
    size = (size, size) if isinstance(size, int) else (size[0], size[1])
    if tuple(image.shape[-2:]) == size:
        return image
    how = {} if mode == "area" else {"antialias": True, "align_corners": False}
    return F.interpolate(where_all_works(image), size, mode=mode, **how).to(image.device)
