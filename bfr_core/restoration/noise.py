"""How strong noise, JPEG blocks and regular patterns around a face are, read off the photo itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..pixels import gaussian_blur, luma
from .blocks import read_blocks
from .pyramid import padded, split

MAX_PIXELS = 1024  # a side of the part that is measured
SMOOTHEST = 0.2  # share of the places of one tone that its noise is read off
MEDIAN_SQUARE = 0.4549  # of a standard normal number: the median of its square
TONES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of luma: film is noisiest in its mid-tones, a sensor in its lights
UNLIKE = 3.0  # the noise of one tone over that of the second smoothest: more is structure, such as dark hair
DARK, LIGHT = 0.04, 0.97  # beyond them noise is cut off at black or white
MIN_COEFFICIENTS = 64  # coefficients; from fewer no noise is read
NO_BLOCKS, ALL_BLOCKS = 0.5, 1.1  # strength of blocks up to which they do not count, and from which on they are all
NO_PATTERN, ALL_PATTERN = 0.2, 0.32  # the same of what repeats itself
FINE = 4.0  # pixels of the blur that leaves the structure which may repeat itself
MAX_DISTANCE = 20  # pixels between its repetitions, at most
SECOND_FROM = 100.0  # pixels of a face's width: narrower, its structure is as fine as the second band; the next, twice
TILE = 6  # coefficients of a band: a side of the places whose energies are compared
MIN_TILES = 64
SMOOTH_TILES = (0.05, 0.1)  # shares of the tiles that are the smoothest
STRUCTURE = 0.9  # of the next coarser band's energy: what the structure of smooth places has at most
TONE_WINDOW = 9  # pixels of a band, over which the tone is a mean: noise must not choose its own


class Noise(NamedTuple):
    """Noise of a photo around one face.

    covariances: (bands, tones, 3, 3), of red, green and blue in each band of `pyramid.split`, the finest first, at each
    of `TONES`. blocks: how much stronger steps are across the block edges of a JPEG than elsewhere, in mean steps
    between neighbours: up to about 0.2 where no blocks are seen, 0.5 at quality 75, 1 and more from quality 30 on.
    pattern: how much the fine structure repeats itself at a distance, 0 to 1: up to 0.2 in photographs and in grain,
    0.3 and more in halftones. coarse: of the second band and coarser ones, see `read_coarse_grain`; empty where it was
    not read.
    """

    covariances: Tensor
    blocks: float
    pattern: float
    coarse: tuple[float, ...] = ()

    def deviation(self, band: int) -> float:
        """Standard deviation in one band, 0 to 1 as pixels are: the median over the tones."""
        return float(self.variances(band).median().sqrt())

    def variances(self, band: int) -> Tensor:
        """Mean variance of the channels at each tone: (tones,)."""
        return self.covariances[band].diagonal(dim1=-2, dim2=-1).mean(-1)


def read_noise(photo: Tensor, levels: int, width: float = 0.0) -> Noise:
    """The noise of `photo`, (3, H, W) RGB in [0, 1] on the CPU: the part of it around a face, in its own pixels.

    width: of the face, in pixels; without it coarse grain is not looked for.

    In each band and at each tone, the coefficients are taken where the next coarser band is weakest, so that it is not
    the noise itself that chooses its places; there the median of the squares says the variance, which structure hardly
    moves. A tone that the photo has not takes the noise of the nearest one. Of large parts only the middle is read.
    """
    photo = _middle(photo, MAX_PIXELS)
    whole = padded(photo, levels + 1)
    bands, tones = split(whole, levels + 1), tone_maps(whole, levels)
    covariances = []
    for band, coarser, tone in zip(bands[:-1], bands[1:], tones, strict=True):
        structure = F.avg_pool2d(coarser.square().sum(0, keepdim=True)[None], 5, 1, 2)
        structure = F.interpolate(structure, band.shape[-2:], mode="nearest")[0, 0]
        covariances.append(_by_tone(band, structure, tone[0]))
    return Noise(torch.stack(covariances), read_blocks(photo), read_pattern(photo), read_coarse_grain(photo, width))


def read_coarse_grain(photo: Tensor, width: float) -> tuple[float, ...]:
    """By how much the smoothest places have more energy than structure has: deviations, 0 to 1 as pixels are.

    photo: (3, H, W) around a face `width` pixels wide. The structure of photographs is the weaker the finer it is, in
    smooth places above all; grain is so only where it is finer than itself. What a band's smoothest tiles have beyond
    nearly all of the energy of the next coarser band's smoothest tiles is therefore grain, if it is found among few of
    them and among more. From the second band on there is one number for each that is finer than the structure of a
    face as wide as that: two for 200 pixels, three for 400.
    """
    bands = range(1, 1 + max(0, math.floor(math.log2(width / SECOND_FROM)) + 1)) if width else ()
    if not bands:
        return ()
    photo = _middle(photo, MAX_PIXELS)
    levels = bands[-1] + 2
    whole = padded(photo, levels)
    energies = [band.square().mean(0, keepdim=True)[None] for band in split(whole, levels)]
    tones = tone_maps(whole, levels)
    return tuple(_excess(energies[k], energies[k + 1], tones[k]) for k in bands)


def _excess(energy: Tensor, coarser: Tensor, tone: Tensor) -> float:
    """A deviation, see `read_coarse_grain`. energy: (1, 1, h, w); coarser: half as large; tone: (1, h, w)."""
    if min(energy.shape[-2:]) < TILE:
        return 0.0
    lit = ((tone > DARK) & (tone < LIGHT)).to(energy)[None]
    maps = (energy, F.interpolate(coarser, energy.shape[-2:], mode="nearest"), lit)
    own, next_one, whole = (F.avg_pool2d(one, TILE, TILE // 2).flatten() for one in maps)
    usable = whole > 0.99
    if int(usable.sum()) < MIN_TILES:
        return 0.0
    smooth = own.new_tensor(SMOOTH_TILES)
    beyond = torch.quantile(own[usable], smooth) - STRUCTURE * torch.quantile(next_one[usable], smooth)
    return float(beyond.min().clamp_min(0).sqrt())


def tone_maps(photo: Tensor, levels: int) -> list[Tensor]:
    """The mean luma around each coefficient of each band: (1, h, w) in [0, 1]."""
    tone, maps = luma(photo)[None], []
    for _ in range(levels):
        maps.append(F.avg_pool2d(tone, TONE_WINDOW, 1, TONE_WINDOW // 2, count_include_pad=False)[0])
        tone = F.avg_pool2d(tone, 2)
    return maps


def tone_shares(tone: Tensor) -> Tensor:
    """How near a tone is to each of `TONES`, for mixing what is known at these: (1, h, w) -> (tones, h, w), sum 1."""
    step = TONES[1] - TONES[0]
    place = ((tone - TONES[0]) / step).clamp(0, len(TONES) - 1)
    return (1 - (place - torch.arange(len(TONES)).to(tone).view(-1, 1, 1)).abs()).clamp_min(0)


def _by_tone(band: Tensor, structure: Tensor, tone: Tensor) -> Tensor:
    """(C, h, w) band, (h, w) structure and tone -> (tones, 3, 3)."""
    half = (TONES[1] - TONES[0]) / 2
    found: dict[int, Tensor] = {}
    for i, middle in enumerate(TONES):
        here = (tone >= max(middle - half, DARK)) & (tone < min(middle + half, LIGHT))
        count = int(SMOOTHEST * int(here.sum()))
        if count >= MIN_COEFFICIENTS:
            limit = structure[here].kthvalue(count).values
            found[i] = _covariance(band[:, here & (structure <= limit)])
    if not found:
        return torch.zeros(len(TONES), 3, 3)
    variances = {i: float(covariance.diagonal().mean()) for i, covariance in found.items()}
    most = UNLIKE**2 * sorted(variances.values())[min(1, len(found) - 1)]
    limited = {i: covariance * min(1.0, most / max(variances[i], 1e-12)) for i, covariance in found.items()}
    return torch.stack([limited[min(limited, key=lambda known: abs(known - i))] for i in range(len(TONES))])


def _covariance(values: Tensor) -> Tensor:
    """(3, N) -> (3, 3), by medians: cov(a, b) is a quarter of var(a + b) - var(a - b). No eigenvalue is below 0."""

    def variance(of: Tensor) -> Tensor:
        return of.square().median() / MEDIAN_SQUARE

    found = torch.stack([torch.stack([(variance(a + b) - variance(a - b)) / 4 for b in values]) for a in values])
    eigenvalues, vectors = torch.linalg.eigh(found.double())
    return ((vectors * eigenvalues.clamp_min(0)) @ vectors.T).to(values)


def read_pattern(photo: Tensor) -> float:
    """See `Noise.pattern`; 0 for what is smaller than three times the distance that is looked at.

    The highest autocorrelation of the fine structure beyond the distance at which its mean over all directions has
    died away. Strong edges are cut off, so that they do not decide.
    """
    grey = luma(_middle(photo, MAX_PIXELS // 2))[None]
    if min(grey.shape[-2:]) < 3 * MAX_DISTANCE:
        return 0.0
    fine = (grey - gaussian_blur(grey, FINE))[0, 0]
    limit = float(fine.abs().median()) / MEDIAN_SQUARE**0.5
    fine = fine.clamp(-1.5 * limit, 1.5 * limit)
    correlation = torch.fft.irfft2(torch.fft.rfft2(fine - fine.mean()).abs().square(), s=fine.shape)
    correlation = correlation / correlation[0, 0].clamp_min(1e-12)
    near = correlation.roll((MAX_DISTANCE, MAX_DISTANCE), (0, 1))[: 2 * MAX_DISTANCE + 1, : 2 * MAX_DISTANCE + 1]
    line = torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1.0)
    distance = (line[:, None].square() + line.square()).sqrt().round()
    died = next((d for d in range(1, MAX_DISTANCE) if near[distance == d].mean() < 0.05), MAX_DISTANCE)
    beyond = near[(distance > died) & (distance <= MAX_DISTANCE)]
    return float(beyond.max().clamp(0, 1)) if len(beyond) else 0.0


def share_without_pattern(pattern: float) -> float:
    """1 for photos and grain, see `Noise.pattern`; less with halftones, down to 0."""
    return min(1.0, max(0.0, (ALL_PATTERN - pattern) / (ALL_PATTERN - NO_PATTERN)))


def share_without_blocks(blocks: float) -> float:
    """1 for photos without visible blocks, see `Noise.blocks`; less with them, down to 0."""
    return min(1.0, max(0.0, (ALL_BLOCKS - blocks) / (ALL_BLOCKS - NO_BLOCKS)))


def _middle(photo: Tensor, most: int) -> Tensor:
    height, width = photo.shape[-2:]
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    return photo[:, top : top + most, left : left + most]
