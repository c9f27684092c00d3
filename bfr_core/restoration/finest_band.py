"""Detail of the photo that its restored face has lost is put back, as far as it is no noise.

A restorer answers at its own size. Of a face that is larger it has never seen the finest bands, and what it smooths in
those that it has seen is lost as well. With y_k band k of the photo, p_k that of the photo with its restored face
pasted, <> the mean over the channels and a small window, and s_k^2 the variance of the photo's noise in the band and
at the tone of the place,

    missing_k = max(0, <y_k^2> - <p_k^2> - OVER s_k^2)            the energy that the restored face lacks
    w_k       = missing_k / (missing_k + OVER s_k^2)              Wiener's weight for it
    p_k      <- p_k + w_k (y_k - p_k)

Where the photo is blurred it has less energy than the restored face, where it is noisy the noise explains what it has,
and w_k is 0: there the face stays as the restorer made it. Blocks of JPEG are detail to this rule. Where the table of
the photo's JPEG is known (see `blocks`), y is the photo without them, and the variance of what that took out is added
to that of the noise; where it is not, all w_k fade with the blocks.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from .noise import Noise, share_without_blocks, tone_shares

OVER = 3.0  # what the noise's variance counts: over a small window the mean of its square varies by as much
WINDOW = 7  # pixels of the band
FLOOR = (0.5 / 255) ** 2  # a variance: rounding to 8 bits, and what is too faint to be seen
COARSER = 2  # bands below the restorer's finest


def levels_for(width: float, size: int) -> int:
    """How many bands of a face `width` pixels wide may hold what a restorer of `size` pixels has lost."""
    return COARSER + max(0, round(math.log2(width / size)))


def weights(
    photo: list[Tensor],
    pasted: list[Tensor],
    tones: list[Tensor],
    noise: Noise,
    error: list[Tensor] | None = None,
) -> list[Tensor]:
    """The w_k for bands as `pyramid.split` gives them, (C, h, w) each: (1, h, w) in [0, 1] each.

    tones: see `noise.tone_maps`. error: bands of what was taken out of a JPEG, if `photo` is
    without its blocks.
    """
    share = 1.0 if error else share_without_blocks(noise.blocks)
    found = []
    for k, (y, p, tone) in enumerate(zip(photo, pasted, tones, strict=True)):
        by_tone = noise.variances(k).to(y).view(-1, 1, 1)
        variance = OVER * (tone_shares(tone) * by_tone).sum(0, keepdim=True) + FLOOR
        if error:  # known place by place, so that it counts once
            variance = variance + mean_square(error[k])
        missing = (mean_square(y) - mean_square(p) - variance).clamp_min(0)
        found.append(share * missing / (missing + variance))
    return found


def mean_square(band: Tensor) -> Tensor:
    """Mean of the square over the channels and a window: (C, h, w) -> (1, h, w)."""
    energy = band.square().mean(0, keepdim=True)[None]
    return F.avg_pool2d(energy, WINDOW, 1, WINDOW // 2, count_include_pad=False)[0]
