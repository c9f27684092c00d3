"""What a set of faces looks like in numbers that damage changes and people do not: for comparing two sets of different
people, one really damaged, the other given a damage that is to be like it.

The faces are taken apart into octaves of detail, in lightness and two chromas. Of each octave: how strong it is in
quiet and in busy places, how that goes with brightness, how its values are distributed, how they hang together from
pixel to pixel and between the channels, and how far the two halves of the face mirror each other. The last is what
tells detail from noise, since a face is nearly symmetrical and noise is not (`mirrored` gives its part in a spectrum).
Besides, how dark and how light the channels become, and what colour shadows and lights have: noise that is cut off at
black lifts the shadows, and the more in the channels in which it is stronger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .spectra import to_opponent

SMALLEST = 8  # pixels: faces are taken apart down to this size
CELLS = (8, 8, 4, 3)  # pixels on a side of the places whose strength is compared, by octave, the finest first
LAST_CELL = 2
PLACES = (0.1, 0.3, 0.5, 0.7, 0.9)  # quantiles of the strength over places
LEVELS = (0.01, 0.05, 0.2, 0.8, 0.95, 0.99)  # quantiles of a channel over a face
TONES = (0.0, 0.15, 0.3, 0.5, 0.7, 1.1)  # of brightness; where the shadows, the lights and those between end
SMALLEST_BY_TONE = 16  # pixels: down to this size tones are told apart
MIRROR_WEIGHT = 3
EMPTY, FEW_PIXELS = 1e-5, 20.0  # power that nobody sees (a level of 255 is 1.5e-5); places that count for nothing
SAME = 0.02  # differences below are not told apart, whatever the spread over faces
BETA = 0.5  # where the distance stops growing as a square
SPREAD_WEIGHT = 0.1


def statistics(faces: Tensor) -> Tensor:
    """(B, K) of `faces` (B, 3, S, S) in [0, 1], S at least 32; K depends on S alone. float32 on the CPU.

    The faces are taken as they are stored, in 8 bits: where a photo was enlarged, its finest octave holds little else
    than what is lost by rounding, and a damage that was not rounded would seem unlike it.
    """
    faces = faces.cpu().float().mul(255).round() / 255
    found: list[Tensor] = []
    for octave in range(int(math.log2(faces.shape[-1] / SMALLEST)) + 1):
        smooth = _smooth(faces)
        band, inside = _inner(faces - smooth), _inner(smooth)
        brightness = smooth.mean(1, keepdim=True)
        found += _of_tones(inside) if octave == 0 else []
        found += _of_octave(to_opponent(band, torch.float32), _inner(brightness), octave)
        found += _by_tone(band, _inner(_smooth(brightness))) if faces.shape[-1] >= SMALLEST_BY_TONE else []
        faces = _means(smooth, 2)
    return torch.cat([part.flatten(1) for part in found], 1)


class Looks:
    """The statistics of a set of faces (B, K), to which those of others are compared."""

    def __init__(self, of: Tensor) -> None:
        self.mean, self.spread = of.mean(0), of.std(0, correction=0) + SAME  # a single face has a spread, too: none

    def distance(self, of: Tensor) -> float:
        """How unlike the faces with the statistics `of` (B, K) are, in spreads over faces; 0 if they are alike."""
        apart = (of.mean(0) - self.mean) / self.spread
        wider = torch.log((of.std(0, correction=0) + SAME) / self.spread).abs().mean()
        return float(F.smooth_l1_loss(apart, torch.zeros_like(apart), beta=BETA) + SPREAD_WEIGHT * wider)


def _of_octave(band: Tensor, brightness: Tensor, octave: int) -> list[Tensor]:
    """band: (B, 3, H, W) of one octave. brightness: (B, 1, H, W)."""
    cell = CELLS[octave] if octave < len(CELLS) else LAST_CELL
    squares = band.square()
    strength = torch.log10(_means(squares, cell) + EMPTY)
    quantiles = _quantiles(strength, PLACES)
    bright = _means(brightness, cell)
    bright = bright - bright.mean((2, 3), keepdim=True)
    with_brightness = (strength * bright).mean((2, 3)) / (bright.square().mean((2, 3)) + 1e-3)
    power = squares.mean((2, 3)) + EMPTY
    kurtosis = 0.5 * torch.log10(squares.square().mean((2, 3)) / power.square() + 1e-3)
    mirrored = (band * band.flip(-1)).mean((2, 3)) / power
    neighbours = [(band[..., step:] * band[..., :-step]).mean((2, 3)) / power for step in (1, 2)]
    directed = _directed(band, power)
    pairs = ((0, 1), (0, 2), (1, 2))
    together = [(band[:, i] * band[:, j]).mean((1, 2)) / (power[:, i] * power[:, j]).sqrt() for i, j in pairs]
    mirror = [mirrored] * MIRROR_WEIGHT
    return [quantiles, with_brightness, kurtosis, *mirror, *neighbours, directed, torch.stack(together, 1)]


def _directed(band: Tensor, power: Tensor) -> Tensor:
    """(B, 3): how much more `band` (B, 3, H, W) hangs together along one direction than across it, whichever it is."""

    def together(one: Tensor, next_to_it: Tensor) -> Tensor:
        return (one * next_to_it).mean((2, 3))

    level = together(band[..., 1:], band[..., :-1]) - together(band[..., 1:, :], band[..., :-1, :])
    rising = together(band[..., 1:, 1:], band[..., :-1, :-1]) - together(band[..., 1:, :-1], band[..., :-1, 1:])
    return torch.hypot(level, rising) / power


def _of_tones(smooth: Tensor) -> list[Tensor]:
    """How dark and light the channels of `smooth` (B, 3, H, W) become, and what colour shadows and lights have."""
    brightness = smooth.mean(1, keepdim=True)
    colours, count = _over_tones(smooth - brightness, brightness)
    return [_quantiles(smooth, LEVELS), colours / (count + FEW_PIXELS)]


def _by_tone(band: Tensor, brightness: Tensor) -> list[Tensor]:
    """The strength and the skewness of `band` (B, 3, H, W) in the shadows, the lights and between, by colour."""
    squares = band.square()
    found, count = _over_tones(torch.cat([squares, squares * band], 1), brightness)
    squared, cubed = found.chunk(2, 2)
    count = count + FEW_PIXELS
    power = (squared + FEW_PIXELS * squares.mean((2, 3))[:, None]) / count + EMPTY
    return [torch.log10(power), cubed / count / power**1.5]


def _over_tones(values: Tensor, brightness: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of `values` (B, C, H, W) over the pixels of each tone (B, 5, C), and how many they are (B, 5, 1)."""
    numbers = brightness.new_empty(len(values), len(TONES), values[0, 0].numel())
    at_least = torch.ge(brightness.flatten(2), torch.tensor(TONES)[:, None], out=numbers)  # a float() takes far longer
    of_tone = at_least[:, :-1] - at_least[:, 1:]
    return of_tone @ values.flatten(2).mT, of_tone.sum(2, keepdim=True)


def _quantiles(values: Tensor, shares: Sequence[float]) -> Tensor:
    """(B, C, len(shares)) of `values` (B, C, H, W). NumPy sorts in a quarter of the time that torch.quantile takes."""
    ordered = torch.from_numpy(np.sort(values.flatten(2).numpy(), axis=2))
    at = torch.tensor(shares) * (ordered.shape[2] - 1)
    return torch.lerp(ordered[..., at.floor().long()], ordered[..., at.ceil().long()], at.frac())


def _means(image: Tensor, cell: int) -> Tensor:
    """`image` (B, C, H, W) over cells of so many pixels on a side, as sums of neighbours: far faster than a pooling."""
    rows, columns = (side // cell * cell for side in image.shape[-2:])
    image = sum((image[..., row:rows:cell, :columns] for row in range(1, cell)), image[..., :rows:cell, :columns])
    return sum((image[..., column::cell] for column in range(1, cell)), image[..., ::cell]) / cell**2


def _smooth(image: Tensor) -> Tensor:
    """Through the binomial window of five pixels, as sums of neighbours: a tenth of what a convolution takes here."""
    image = F.pad(image, (2, 2, 2, 2), mode="reflect")
    for _ in range(4):
        image = image[..., 1:] + image[..., :-1]
    for _ in range(4):
        image = image[..., 1:, :] + image[..., :-1, :]
    return image / 256


def _inner(image: Tensor) -> Tensor:
    """Without the outer eighth on each side, where the background is."""
    edge = image.shape[-1] // 8
    return image[..., edge : image.shape[-2] - edge, edge : image.shape[-1] - edge]
