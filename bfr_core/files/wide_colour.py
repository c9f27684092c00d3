"""Colours that a HEIF file names by numbers (nclx), and not by a profile, brought into sRGB.

The numbers are those of ITU-T H.273. Such files hold Display P3 or BT.2020, which nothing in the result would say:
it would be taken for sRGB, and look dull.
"""

from __future__ import annotations

import torch
from torch import Tensor

SRGB_PRIMARIES = (1, 2)  # BT.709, and not said
HIGH_RANGE = (16, 18)  # transfer characteristics: PQ and HLG
# Linear RGB with these primaries to linear RGB with those of sRGB, both with the white of D65.
TO_SRGB = {
    9: (  # BT.2020
        (1.66049100, -0.58764114, -0.07284986),
        (-0.12455047, 1.13289990, -0.00834943),
        (-0.01815076, -0.10057890, 1.11872966),
    ),
    12: (  # Display P3
        (1.22494018, -0.22494018, 0.0),
        (-0.04205695, 1.04205695, 0.0),
        (-0.01963755, -0.07863605, 1.09827360),
    ),
}
ROWS = 512  # of a photo, which may be large, at once


def in_srgb(pixels: Tensor, primaries: int) -> Tensor:
    """`pixels` (3, H, W) with these primaries, in [0, 1], as sRGB in [0, 1]; what lies outside it is clipped.

    The curve of the values is taken for sRGB's, from which those of BT.709 and BT.2020 hardly differ as shown. Raises
    KeyError for primaries that are not among `TO_SRGB`.
    """
    matrix = torch.tensor(TO_SRGB[primaries], dtype=pixels.dtype, device=pixels.device)
    result = torch.empty_like(pixels)
    for first in range(0, pixels.shape[1], ROWS):
        part = pixels[:, first : first + ROWS]
        linear = torch.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        linear = torch.einsum("ij,jhw->ihw", matrix, linear).clamp(0, 1)
        shown = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        grey = (part == part[:1]).all(0)  # stays grey to the bit
        result[:, first : first + ROWS] = torch.where(grey, part, shown)
    return result
