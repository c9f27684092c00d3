"""The checks that measures of pictures make first."""

from __future__ import annotations

from torch import Tensor

from ..device import where_all_works


def checked_pair(restored: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both images clamped to [0, 1], in float64, because variances of flat patches need that precision.

    Raises ValueError unless they have the same shape (B, 3, H, W).
    """
    if restored.shape != other.shape or restored.ndim != 4 or restored.shape[1] != 3:
        shapes = f"{tuple(restored.shape)} and {tuple(other.shape)}"
        raise ValueError(f"images of shapes {shapes}; two equal shapes (B, 3, H, W) are needed")
    restored, other = where_all_works(restored), where_all_works(other)
    return restored.double().clamp(0, 1), other.double().clamp(0, 1)


def check_size(images: Tensor, least: int, measure: str) -> None:
    """Raise ValueError if a side of `images` (..., H, W) has fewer than `least` pixels."""
    if min(images.shape[-2:]) < least:
        height, width = images.shape[-2:]
        raise ValueError(
            f"images of {width} x {height} pixels are too small for {measure}; {least} x {least} are needed"
        )
