"""Grain for a pasted face: what the photo has around it and the restorer has taken off.

In a grainy photo a face without grain shows as a smooth patch. Let s_k^2 be the variance of the photo's noise in band
k, m how new a pixel is, and w_k the share of the photo's band that was kept (`finest_band`). Of the photo's noise the
part c_k = 1 - m (1 - w_k) is still there, so that

    grain_k = sqrt(1 - c_k^2) n_k,    n_k drawn with the covariance of the photo's noise in the band and at the tone

makes its variance s_k^2 again, in the face, around it and in the soft rim between. Where the restorer left the noise as
it is, 1 - c_k is no more than what the pasted face really differs by, in units of s_k. A photo without grain gets none,
and where the noise is so strong that it is the damage itself, it is not put back.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ..randomness import keyed_generator
from .finest_band import mean_square
from .noise import Noise, share_without_blocks, share_without_pattern, tone_shares
from .pyramid import joined, split

# Of the two finest bands: the deviation up to which there is no grain, and from which on all of it is put back.
# Skin, cloth and hair of clean photos stay below the first.
NO_GRAIN, ALL_GRAIN = (3 / 255, 6 / 255), (4.5 / 255, 9 / 255)
# The same of each of `Noise.coarse`. In clean portraits, blurred ones and JPEGs it mostly stays below the first.
NO_COARSE_GRAIN, ALL_COARSE_GRAIN = 1 / 255, 2 / 255
# The noise's deviation up to which it is grain, and from which on it is damage, which is not put back.
GRAIN, DAMAGE = 12 / 255, 24 / 255
GRAIN_BANDS = 3  # the finest, which hold nearly all of it; in coarser ones it cannot be told from skin and hair
FALL = 0.75  # of its deviation from band to band, at most, from the last of these on
UNCHANGED = 0.1  # of s_k: a restorer that changes a band less has left its noise as it is
ROWS = 64  # of grain that are drawn together
TRIALS = 12  # after which the factors of the bands hardly change
MAX_FACTOR = 3.0  # of what a band needs alone: a mixture that no picture can have is not pursued


def grain_strength(noise: Noise) -> float:
    """How much of the photo's noise is grain to be put back, 0 to 1.

    0 for clean or blocky photos, for halftones, and for noise so strong that restoring is there to take it off.
    """
    above = [
        (noise.deviation(band) - none) / (full - none)
        for band, (none, full) in enumerate(zip(NO_GRAIN, ALL_GRAIN, strict=True))
    ]
    in_reach = noise.coarse[: GRAIN_BANDS - 1]  # of the bands that are put back
    above += [(found - NO_COARSE_GRAIN) / (ALL_COARSE_GRAIN - NO_COARSE_GRAIN) for found in in_reach]
    random = share_without_blocks(noise.blocks) * share_without_pattern(noise.pattern)
    total = math.hypot(*map(noise.deviation, range(min(GRAIN_BANDS, len(noise.covariances)))))
    faint = min(1.0, max(0.0, (DAMAGE - total) / (DAMAGE - GRAIN)))
    return min(1.0, max(0.0, *above)) * random * faint


def grain_bands(
    lost: list[Tensor], newness: list[Tensor], white: list[Tensor], tones: list[Tensor], noise: Noise
) -> list[Tensor]:
    """The bands of the grain, (C, h, w) each, of one channel where the photo is grey.

    lost: bands of the photo less those of the face that is pasted, (C, h, w). newness: m (1 - w_k), (1, h, w) in
    [0, 1]. white: bands of `white_rows`, (3, h, w). tones: see `noise.tone_maps`.
    """
    noise = _without_structure(noise)
    strength, bands = grain_strength(noise), []
    factors = _factors(tuple(noise.deviation(k) for k in range(len(lost))))
    for k, (gone, new, drawn, tone) in enumerate(zip(lost, newness, white, tones, strict=True)):
        shares = tone_shares(tone)
        variance = (shares * noise.variances(k).to(gone).view(-1, 1, 1)).sum(0, keepdim=True)
        missing = torch.minimum(new, (mean_square(gone) / variance.clamp_min(1e-9)).sqrt()).clamp(0, 1)
        missing = ((missing - UNCHANGED) / (1 - UNCHANGED)).clamp_min(0)
        amplitude = strength * (1 - (1 - missing).square()).sqrt() * factors[k]
        roots = torch.stack([_root(covariance) for covariance in noise.covariances[k]]).to(gone)
        coloured = sum(
            share * torch.einsum("ij,jhw->ihw", root, drawn) for share, root in zip(shares, roots, strict=True)
        )
        bands.append(amplitude * coloured[: len(gone)])
    return bands


def _without_structure(noise: Noise) -> Noise:
    """`noise` with no more in its coarse bands than grain has there, see `FALL`."""
    limited = noise._replace(covariances=noise.covariances.clone())
    for finer, coarse in pairwise(range(GRAIN_BANDS - 1, len(limited.covariances))):
        own, most = (limited.variances(band).mean() for band in (coarse, finer))
        limited.covariances[coarse] *= (FALL**2 * most / own.clamp_min(1e-12)).clamp(max=1)
    return limited


def white_rows(top: int, bottom: int, width: int, *key: int | str) -> Tensor:
    """Rows `top` to `bottom` of white noise of variance 1: (3, bottom - top, width), the same whatever is asked for.

    key: what fixes the draws, of one face of one photo.
    """
    first = top // ROWS
    blocks = [
        torch.randn(3, ROWS, width, generator=keyed_generator("grain", *key, block))
        for block in range(first, -(-bottom // ROWS))
    ]
    return torch.cat(blocks, 1)[:, top - first * ROWS : bottom - first * ROWS]


@lru_cache(maxsize=8)  # a face is finished in strips, all beside the same noise
def _factors(deviations: tuple[float, ...]) -> tuple[float, ...]:
    """What the bands of white noise of variance 1 are multiplied by, beside these deviations of the photo's noise.

    The bands overlap: where each is brought to its deviation alone, they make a picture whose bands are weaker, unless
    its noise is white. So the factors are found by trial, for the bands of the picture that they make together.
    """
    white = _white_bands(len(deviations))
    alone = [1 / float(band.std()) for band in white]
    factors = list(alone)
    for _ in range(TRIALS):
        mixed = joined([d * f * band for d, f, band in zip(deviations, factors, white, strict=True)])
        made = [float(band.std()) for band in split(mixed, len(white))]
        factors = [
            min(MAX_FACTOR * a, f * d / m) if m > 0 and d > 0 else f
            for a, f, d, m in zip(alone, factors, deviations, made, strict=True)
        ]
    return tuple(factors)


@cache
def _white_bands(levels: int) -> list[Tensor]:
    side = 2 ** (levels + 4)
    return split(torch.randn(1, side, side, generator=keyed_generator("grain", "norms")), levels)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a (3, 3) covariance."""
    eigenvalues, vectors = torch.linalg.eigh(covariance.double())
    return ((vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.T).float()
