"""What is done to pictures everywhere: their luma, another size, a blur, whole numbers for a file."""

from __future__ import annotations

from torch import Tensor


def luma(image: Tensor) -> Tensor:
    """Luma of (..., 3, H, W) RGB -> (..., 1, H, W), of the same range. Source: ITU-R BT.601."""
    return (image * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True)


def as_bytes(image: Tensor) -> Tensor:
    """`image`, of any shape and in [0, 1], as whole numbers from 0 to 255: uint8 of the same shape, on its device."""
    return image.detach().float().clamp(0, 1).mul(255).round().byte()
