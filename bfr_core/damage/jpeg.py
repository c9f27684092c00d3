"""What JPEG does to pixels, without a file: ITU-T T.81's transform and quantisation, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Annex K.1 and K.2 of ITU-T T.81, the tables that nearly every writer scales.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


def through_jpeg(image: Tensor, quality: int) -> Tensor:
    """`image` as it comes back from a JPEG of this quality, with colour stored at half the size.

    image: (B, 3, H, W) RGB in [0, 1], any size and device. quality: 1 ... 100, as libjpeg counts it. Returns the same
    shape, in [0, 1]. It differs from libjpeg's own decoder by rounding and by how colour is enlarged: for quality 30
    to 95 by a mean of less than 2 of 255.
    """
    height, width = image.shape[-2:]
    pad = (0, -width % 16, 0, -height % 16)
    padded = F.pad(image, pad, mode="replicate") * 255
    red, green, blue = padded.round().unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([0.564334 * (blue - luma), 0.713267 * (red - luma)], 1)
    luma = _quantised(luma[:, None] - 128, scaled_table(LUMA_TABLE, quality)) + 128
    chroma = _quantised(F.avg_pool2d(chroma, 2), scaled_table(CHROMA_TABLE, quality))
    cb, cr = F.interpolate(chroma, scale_factor=2, mode="bilinear").unbind(1)
    y = luma[:, 0]
    rgb = torch.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 1)
    return (rgb.round().clamp(0, 255) / 255)[..., :height, :width]


def scaled_table(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """libjpeg's scaling of a table (jpeg_quality_scaling): (8, 8) float32."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return torch.tensor(table, dtype=torch.float32).mul(scale).add(50).div(100).floor().clamp(1, 255)


def _quantised(plane: Tensor, table: Tensor) -> Tensor:
    """(B, C, H, W), H and W multiples of 8: each 8 x 8 block's cosine coefficients rounded to steps of `table`."""
    step = table.to(plane)
    return from_block_cosines((block_cosines(plane) / step).round() * step)


def block_cosines(plane: Tensor) -> Tensor:
    """The cosine coefficients of each 8 x 8 block: (..., 8 m, 8 n) -> (..., m, n, 8, 8), rows by frequency down."""
    from einops import rearrange

    dct = dct_matrix().to(plane)
    return dct @ rearrange(plane, "... (rows y) (columns x) -> ... rows columns y x", y=8, x=8) @ dct.T


def from_block_cosines(coefficients: Tensor) -> Tensor:
    """What `block_cosines` was given: (..., m, n, 8, 8) -> (..., 8 m, 8 n)."""
    from einops import rearrange

    dct = dct_matrix().to(coefficients)
    return rearrange(dct.T @ coefficients @ dct, "... rows columns y x -> ... (rows y) (columns x)")


def dct_matrix() -> Tensor:
    """The orthonormal (8, 8) cosine transform: row k is a cosine of k half periods."""
    k = torch.arange(8, dtype=torch.float32)
    matrix = torch.cos(math.pi / 8 * k[:, None] * (k[None] + 0.5)) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
