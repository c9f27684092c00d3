"""Put a restored crop back into its photo, so that nobody sees where it begins."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import where_all_works
from ..pixels import gaussian_blur, luma, resized
from .align import Face, invert, similarity, template, warp

MASK_OUTER, MASK_INNER = 0.97, 0.72  # of the crop's half side: nothing beyond the first, everything within the second
UNCHANGED = 1 / 255  # a restorer that changes less than this has left the place alone
STRIP_PIXELS = 2_000_000  # handled at a time, whatever the size of the face


@dataclass(frozen=True, eq=False)
class Patch:
    """New pixels (3, h, w) of a photo, their upper left corner, and how new they are: mask (1, h, w) in [0, 1]."""

    top: int
    left: int
    pixels: Tensor
    mask: Tensor

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """Index of the patch in a (C, H, W) photo."""
        height, width = self.pixels.shape[-2:]
        return slice(None), slice(self.top, self.top + height), slice(self.left, self.left + width)


def paste_face(
    photo: Tensor,
    crop: Tensor,
    face: Face,
    original_crop: Tensor,
    *,
    blend: float = 1.0,
    match_colour: bool = True,
    region: Tensor | None = None,
) -> Tensor:
    """A copy of `photo` (3, H, W) with the restored `crop` (3, S, S) in the place of `face`.

    original_crop: what was restored, as `crop_face` gave it; where the two agree the photo stays as it is, to the bit.
    blend: 0 keeps the photo, 1 the restored face. match_colour: take over slow changes of colour from the original, as
    found around the face. region: (1, S, S), the part of the crop that may be pasted; all of it if left out. All in
    [0, 1]; pixels outside the mask are untouched, and a grey photo stays grey.
    """
    result = photo.clone()
    for patch in face_patches(photo, crop, face, original_crop, blend=blend, match_colour=match_colour, region=region):
        result[patch.place] = patch.pixels
    return result


def face_patches(
    photo: Tensor,
    crop: Tensor,
    face: Face,
    original_crop: Tensor,
    *,
    blend: float = 1.0,
    match_colour: bool = True,
    region: Tensor | None = None,
) -> list[Patch]:
    """What `paste_face` changes: horizontal strips that do not overlap; none if the face lies outside the photo.

    The crop replaces the face. Detail too fine for the crop survives only where the restorer changed nothing: elsewhere
    it belongs to the damage.
    """
    size = crop.shape[-1]
    matrix = similarity(face.landmarks, template(size))
    inverse = invert(matrix)
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) - 0.5
    box = corners @ inverse[:, :2].T + inverse[:, 2]
    extent = np.array([photo.shape[-1], photo.shape[-2]])
    x0, y0 = np.clip(np.floor(box.min(0)), 0, extent).astype(int)
    x1, y1 = np.clip(np.ceil(box.max(0)) + 1, 0, extent).astype(int)
    if x1 <= x0 or y1 <= y0:
        return []

    crop, original_crop = crop.to(photo), original_crop.to(photo)
    around = photo[:, y0:y1, x0:x1]
    grey = bool((around[0] == around[1]).all() and (around[0] == around[2]).all())
    if grey:  # one channel throughout, so that rounding cannot tint it
        crop, original_crop = luma(crop), luma(original_crop)
    if match_colour:
        crop = crop + colour_gap(crop, original_crop)
    change = (crop - original_crop).abs().amax(0, keepdim=True)[None]
    reach = 2 * (size // 64) + 1
    kept = torch.exp(-F.avg_pool2d(change, reach, 1, reach // 2, count_include_pad=False)[0] / UNCHANGED)
    part = torch.ones_like(kept) if region is None else region.to(kept)
    layers = torch.cat([crop, original_crop, kept, part])[None]

    patches = []
    rows = max(1, STRIP_PIXELS // int(x1 - x0))
    for top in range(y0, y1, rows):
        bottom = min(top + rows, y1)
        local = inverse.copy()
        local[:, 2] -= (x0, top)
        height, width = bottom - top, int(x1 - x0)
        pieces = warp(layers, local, height, width, "border")[0].split((len(crop), len(crop), 1, 1))
        restored, original, keep, pasted = pieces
        strip = photo[: len(crop), top:bottom, x0:x1]
        mask = crop_mask(local, size, height, width).to(photo)
        if region is not None:
            mask = mask * pasted.clamp(0, 1)
        too_fine = strip - original
        changed = strip + blend * mask * (restored - original - (1 - keep) * too_fine)
        pixels = torch.where(mask > 0, changed.clamp(0, 1), strip).expand(3, -1, -1)
        patches.append(Patch(int(top), int(x0), pixels, blend * mask))
    return patches


def crop_mask(to_photo: np.ndarray, size: int, height: int, width: int) -> Tensor:
    """How much of each photo pixel the crop covers: a rounded square with a soft rim, (1, height, width) in [0, 1].

    to_photo: (2, 3) similarity from pixels of the crop, `size` a side, to pixels of the photo.
    """
    matrix = torch.from_numpy(invert(to_photo))
    ys, xs = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    points = torch.stack([xs, ys], -1) @ matrix[:, :2].T + matrix[:, 2]
    out = ((points + 0.5) * 2 / size - 1).abs()
    distance = out.pow(4).sum(-1).pow(0.25)
    ramp = ((MASK_OUTER - distance) / (MASK_OUTER - MASK_INNER)).clamp(0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).float()[None]


def colour_gap(crop: Tensor, original_crop: Tensor) -> Tensor:
    """What must be added to `crop` for its colours to meet the original's around the face: smooth, (C, S, S).

    The gap is measured in the rim of the mask and carried inwards; being smooth and only added, it leaves the face's
    contrast alone.
    """
    device, crop, original_crop = crop.device, where_all_works(crop), where_all_works(original_crop)
    size = crop.shape[-1]
    identity = np.array([[1.0, 0, 0], [0, 1, 0]])
    mask = crop_mask(identity, size, size, size).to(crop)
    rim = 4 * mask * (1 - mask) + 1e-4
    coarse = min(size, 32)
    gap = resized(torch.cat([(original_crop - crop) * rim, rim])[None], coarse, "area")
    sigma = coarse / 7
    gap = gaussian_blur(gap, sigma, math.ceil(3 * sigma), "constant")
    field = gap[:, :-1] / gap[:, -1:]
    return F.interpolate(field, (size, size), mode="bicubic", align_corners=False)[0].to(device)
