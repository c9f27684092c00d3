"""What JPEG has put on a photo is read off its pixels and taken out, so that its detail may be kept.

In the 8 x 8 blocks of a JPEG, every cosine coefficient is a multiple of its step in the quantisation table. The table
whose multiples the coefficients lie at is the one that the file was stored with. Stored once more with it in blocks
that lie elsewhere, the photo changes by about as much as it did the first time; the mean over several such places has
fewer blocks and less error than the photo (A. Nosratinia, "Enhancement of JPEG-compressed images by re-application of
JPEG", 2001).

What a photo was before it was stored lies within half a step of each coefficient, mostly much nearer. Where a network
changes a coefficient by more than a quarter of its step, it is brought back to that (the narrow quantization constraint
set of S.-H. Park and D.-S. Kim, "Theory of projection onto the narrow quantization constraint set and its application",
IEEE Transactions on Image Processing 8, 1999), if JPEG is nearly all that the network has changed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..damage.jpeg import LUMA_TABLE, block_cosines, from_block_cosines, scaled_table
from ..damage.synthetic import stored_as_jpeg
from ..pixels import luma

BLOCK = 8  # pixels of a JPEG block, along each axis
MAX_PIXELS = 256  # a side of the part whose coefficients are read
LOW = 4  # cosines along each axis, of the lowest frequencies, that are read
QUALITIES = range(5, 96)  # as libjpeg counts them
AWAY_FROM_ZERO = 0.6  # steps: smaller coefficients say nothing
MIN_COEFFICIENTS = 64  # coefficients that say something
FITS = 0.6  # mean cosine of a coefficient's distance to a multiple of its step: 1 is on it, 0 is anywhere
NEARLY_AS_GOOD = 0.9  # of the best fit: of tables that fit as well, the coarsest is the file's
NARROW = 0.25  # steps that a coefficient is changed by, at most
OTHER = 1 / 6  # of a change's energy beyond half a step: up to 0.15 where JPEG is alone, 0.18 and more elsewhere
STRIP = 512  # rows, a multiple of `BLOCK`, that are worked on at once
SHIFTS = ((4, 4), (0, 4), (4, 0), (2, 6), (6, 2))  # rows and columns that the blocks are moved by


class Jpeg(NamedTuple):
    """quality: of the file that a photo was stored in. top, left: row and column of a first corner, 0 to 7.

    turned: whether the file held the photo lying on its side, as cameras store what is taken upright: its steps, which
    are not the same for rows and columns, lie the other way then.
    """

    quality: int
    top: int
    left: int
    turned: bool = False

    @property
    def steps(self) -> Tensor:
        """The step of each coefficient of luma, (8, 8), for values from 0 to 255."""
        return _steps(self.quality, self.turned)


def read_blocks(photo: Tensor) -> float:
    """How much stronger steps are across the block edges of a JPEG than elsewhere, see `noise.Noise.blocks`.

    photo: (3, H, W) RGB in [0, 1]. The stronger of the two directions; 0 for what is smaller than four blocks.
    """
    grey = 255 * luma(photo)[0]
    if min(grey.shape) < 4 * BLOCK:
        return 0.0
    return max(_steps_on_a_grid(part)[0] for part in (grey, grey.T))


def read_jpeg(photo: Tensor) -> Jpeg | None:
    """The JPEG that `photo`, (3, H, W) RGB in [0, 1] on the CPU, comes from, read off the middle of its pixels.

    None if there is none to be seen, as in a photo that was made larger or smaller since, or if it has a table that is
    not libjpeg's.
    """
    height, width = photo.shape[-2:]
    if min(height, width) < 4 * BLOCK:
        return None
    grey = 255 * luma(photo)[0]
    top, left = _steps_on_a_grid(grey.T)[1], _steps_on_a_grid(grey)[1]
    first_row, first_column = (
        corner + max(0, (side - MAX_PIXELS) // 2) // BLOCK * BLOCK for corner, side in ((top, height), (left, width))
    )
    part = grey[first_row:, first_column:][:MAX_PIXELS, :MAX_PIXELS]
    rows, columns = (side // BLOCK * BLOCK for side in part.shape)
    coefficients = block_cosines(part[:rows, :columns])[..., :LOW, :LOW].flatten(0, 1)
    (quality, fit), (quality_turned, fit_turned) = (_quality_of(coefficients, turned) for turned in (False, True))
    turned = fit_turned > fit
    quality = quality_turned if turned else quality
    return Jpeg(quality, top, left, turned) if quality else None


def unblocked(photo: Tensor, jpeg: Jpeg) -> Tensor:
    """`photo`, (3, H, W) RGB in [0, 1] on the CPU, without most of the blocks of the JPEG that it comes from."""
    total = photo.clone()  # one at a time: a photo may be large
    for shift in SHIFTS:
        total += _stored_elsewhere(photo, jpeg, *shift)
    return total / (1 + len(SHIFTS))


def within_steps(photo: Tensor, new: Tensor, jpeg: Jpeg, mask: Tensor | None = None) -> Tensor:
    """`new` with the coefficients of its luma at most `NARROW` steps from those of the JPEG that it was made from.

    photo, new: (3, H, W) RGB in [0, 1] on the CPU, in the same pixels. Returns `new` as it is if more than `OTHER` of
    the energy of what it changes is beyond half a step: then the photo has other damage, too. mask: (1, H, W), how much
    of `new` will be shown; that alone is judged.
    """
    steps = jpeg.steps / 255
    top, left = jpeg.top, jpeg.left
    height, width = ((side - first) // BLOCK * BLOCK for side, first in zip(photo.shape[-2:], (top, left), strict=True))
    result, changed, beyond = new.clone(), 0.0, 0.0
    for row in range(top, top + height, STRIP):  # a photo may be large
        strip = (..., slice(row, min(row + STRIP, top + height)), slice(left, left + width))
        pixels = luma(new[strip])[0] - luma(photo[strip])[0]
        change = block_cosines(pixels)
        shown = change if mask is None else block_cosines(pixels * mask[strip][0])
        changed += float(shown.square().sum())
        beyond += float((shown.abs() - steps / 2).clamp_min(0).square().sum())
        kept = torch.minimum(torch.maximum(change, -NARROW * steps), NARROW * steps)
        result[strip] += from_block_cosines(kept - change)
    return result.clamp(0, 1) if beyond <= OTHER * changed else new


def _steps(quality: int, turned: bool) -> Tensor:
    table = scaled_table(LUMA_TABLE, quality)
    return table.T if turned else table


def _quality_of(coefficients: Tensor, turned: bool) -> tuple[int, float]:
    """The quality of the table at whose multiples the coefficients (N, LOW, LOW) lie, 0 if at none's; and the fit."""
    fits = {}
    for quality in QUALITIES:
        step = _steps(quality, turned)[:LOW, :LOW].expand_as(coefficients)
        steps = coefficients / step
        says = steps.abs() > AWAY_FROM_ZERO
        says[:, 0, 0] = False  # the mean, which fits anything if it is cut off at black or white
        count = int(says.sum())
        fits[quality] = float(torch.cos(2 * math.pi * steps[says]).mean()) if count >= MIN_COEFFICIENTS else 0.0
    best = max(fits.values())
    return min(quality for quality, fit in fits.items() if fit >= NEARLY_AS_GOOD * best) if best >= FITS else 0, best


def _stored_elsewhere(photo: Tensor, jpeg: Jpeg, rows: int, columns: int) -> Tensor:
    """`photo` stored once more, in blocks that lie so many rows and columns from those that it has.

    In full colour resolution, whatever the file had: halved, the error of colours grows by up to a third.
    """
    top, left = -(jpeg.top + rows) % BLOCK, -(jpeg.left + columns) % BLOCK
    larger = F.pad(photo[None], (left, 0, top, 0), mode="replicate")[0]
    if jpeg.turned:
        return stored_as_jpeg(larger.mT, jpeg.quality, full_colour=True).mT[:, top:, left:]
    return stored_as_jpeg(larger, jpeg.quality, full_colour=True)[:, top:, left:]


def _steps_on_a_grid(grey: Tensor) -> tuple[float, int]:
    """How much steps from column to column stand out at every eighth, and the first column after such a step."""
    step = (grey[:, 1:] - grey[:, :-1]).abs().clamp(max=BLOCK)
    excess = step[:, 1:-1] - (step[:, :-2] + step[:, 2:]) / 2
    by_phase = torch.stack([excess[:, phase::BLOCK].mean() for phase in range(BLOCK)])
    strength = by_phase.max() - by_phase.sort().values[:-1].median()
    return float(strength / step.mean().clamp_min(0.05)), (int(by_phase.argmax()) + 2) % BLOCK
