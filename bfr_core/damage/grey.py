"""Photographs without colour that are stored with a tint, such as old prints scanned as colour JPEG.

A restorer that was trained on colour photos colours such a face in part. So it is given grey, and the result gets the
print's own tint back. What a restorer learns from such photos, or is judged by, is grey likewise: a sharp face in
colours under the damage of a grey one would be a lesson in colouring.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..pixels import luma
from ..spread import donors_of

MAX_COLOUR = 10 / 255**2  # mean variance of the differences between channels up to which a face is nearly grey
# Of luma's variance: colour photographs have 0.0095 and more, and toned ones mostly less than 0.005.
MAX_BESIDE_TINT = 0.006


def is_nearly_grey(face: Tensor) -> bool:
    """Whether the channels of `face` (3, H, W) in [0, 1] hardly differ, but for a tint that goes with lightness.

    The limit on the variance of their differences is the one that published restorers use: 10, in squared steps of
    1 / 255. A stronger tint, as of a sepia print, is told by what is left of the differences when what is linear in
    luma is taken out of them; colours leave more.
    """
    differences = (face - face.roll(1, 0)).flatten(1)  # red - blue, green - red, blue - green
    if float(differences.var(1, correction=0).mean()) <= MAX_COLOUR:
        return True
    seen = luma(face).flatten()
    seen = seen - seen.mean()
    spread = seen.square().mean()
    centred = differences - differences.mean(1, keepdim=True)
    linear = (centred * seen).mean(1, keepdim=True) / spread.clamp_min(1e-12) * seen
    return float((centred - linear).square().mean()) <= MAX_BESIDE_TINT * float(spread)


def is_grey(face: Tensor) -> bool:
    """Whether the channels of `face`, or of a photo, (3, H, W), are equal."""
    return torch.equal(face[0], face[1]) and torch.equal(face[1], face[2])


def given_to_restorer(face: Tensor) -> Tensor:
    """What a restorer is given of `face` (3, H, W) in [0, 1]: without colour if it is nearly grey, else as it is."""
    return greyed(face) if is_nearly_grey(face) else face


def greyed(face: Tensor) -> Tensor:
    """The luma of `face` (3, H, W) in each channel; `face` itself where the channels are equal."""
    return face if is_grey(face) else luma(face).expand(3, -1, -1)


def grey_like(faces: Tensor, donors: Tensor) -> Tensor:
    """`faces` (M, 3, S, S), each without colour where its donor is nearly grey, see `donors_of`.

    donors: (N, 3, S', S'), damaged faces whose damage `faces` are to get.
    """
    grey = [is_nearly_grey(donor) for donor in donors]
    pairs = zip(faces, donors_of(len(faces), len(donors)), strict=True)
    return torch.stack([greyed(face) if grey[donor] else face for face, donor in pairs])


def tinted(restored: Tensor, damaged: Tensor) -> Tensor:
    """The luma of `restored` (3, H, W) with the tint of `damaged`, where each channel is a linear function of luma.

    damaged: (3, H, W) in [0, 1], nearly grey. Returns (3, H, W) in [0, 1], exactly grey where `damaged` is.
    """
    grey = luma(restored)
    if is_grey(damaged):
        return grey.expand(3, -1, -1)
    seen = luma(damaged)
    centred, mean = seen - seen.mean(), damaged.mean((1, 2), keepdim=True)
    spread = centred.square().sum()
    slope = (centred * (damaged - mean)).sum((1, 2), keepdim=True) / spread.clamp_min(1e-12)
    slope = torch.where(spread > 1e-6 * seen.numel(), slope, torch.ones_like(slope))  # a flat face tells no tint
    return (mean + slope * (grey - seen.mean())).clamp(0, 1)
