"""The synthetic sets of arXiv:2410.04618: a face far from a phone's camera, at a high ISO, enlarged afterwards.

The steps, in their order: display values to light (power 2.2), inverse colour matrix, white balance undone, shrinking
by area means in linear raw, GRBG mosaic, noise, demosaicing, white balance, colour matrix, power 1/2.2, bilinear
enlargement, 8 bits. The sensor counts from 64 (black) to 1023 (white); signals here are scaled to [0, 1] above black,
so neither number appears.

The paper's own demosaicing is a learned network that is not published with a free licence; `demosaic` stands in for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PUBLISHED_SIZE = 512  # pixels a side of the published sets, for which their shrinking is meant
GAMMA = 2.2

# What of the published sets is kept where a face is not 512 pixels wide (see `shrink_factor`), and its name in tables.
READINGS = {"ratio": "same ratio", "pixels": "same face pixels"}


class SensorNoise(NamedTuple):
    """Noise of one ISO, for red, green, blue: a signal s in [0, 1] has the variance shot * s + read^2."""

    shot: tuple[float, float, float]
    read: tuple[float, float, float]


SENSOR_NOISE = {
    1500: SensorNoise((0.00661, 0.00558, 0.00665), (0.01212, 0.01026, 0.01157)),
    3000: SensorNoise((0.01361, 0.01153, 0.01333), (0.02105, 0.02052, 0.02091)),
}
CAMERA_TO_SRGB = ((1.6458, -0.5938, -0.0547), (-0.2344, 1.3854, -0.1510), (0.0417, -0.9323, 1.8880))
# The sensor's response to white in red and blue, as shares of green: drawn from a normal distribution, and drawn again
# if it is outside the limits.
ILLUMINANT_MEAN = (0.6168, 0.4750)
ILLUMINANT_COVARIANCE = ((0.02102, -0.01029), (-0.01029, 0.00765))
ILLUMINANT_LIMITS = ((0.422, 1.022), (0.300, 0.651))
COLOUR_SIGMA = 1.0  # pixels over which the demosaicing spreads the difference of a colour from green


def published_camera(
    image: Tensor, generator: torch.Generator, strength: float, shrink: int, iso: int, reading: str = "ratio"
) -> tuple[Tensor, dict[str, float]]:
    """`image` (3, H, W) damaged as in the published set of this `shrink` (4 or 8) and `iso`, and the parameters drawn.

    Both images are RGB in [0, 1]. iso: one of `SENSOR_NOISE`. strength: 1 is the published set; noise grows with it,
    shrinking only up to 1. reading: one of `READINGS`, which all agree at 512 pixels.
    """
    height, width = image.shape[-2:]
    factor = 1 + (shrink_factor(shrink, math.sqrt(height * width), reading) - 1) * min(1.0, strength)
    small = (max(4, round(height / factor)), max(4, round(width / factor)))
    red, blue = draw_illuminant(generator)
    seen = torch.tensor([red, 1.0, blue])[:, None, None]

    raw = unprocessed(image, seen)
    raw = F.interpolate(raw[None], small, mode="area")[0]
    noise = SENSOR_NOISE[iso]
    noisy = with_noise((raw * grbg(raw)).sum(0), noise, generator, strength)
    lq = processed(noisy, seen)
    lq = F.interpolate(lq[None], (height, width), mode="bilinear", align_corners=False)[0]
    drawn = {"iso": float(iso), "red_gain": 1 / red, "blue_gain": 1 / blue, "factor": factor}
    return lq.mul(255).round() / 255, drawn


def published_kind(shrink: int, iso: int, reading: str) -> str:
    """The name of a published set among the kinds of damage: `camera_x4_iso1500`, or `camera_x4_iso1500_pixels`."""
    return f"camera_x{shrink}_iso{iso}" + ("" if reading == "ratio" else f"_{reading}")


def shrink_factor(shrink: int, size: float, reading: str) -> float:
    """By what a face `size` pixels wide is shrunk, for a published set that shrinks 512 pixels by `shrink`.

    "ratio": by `shrink` itself, so that a face of 128 pixels keeps 32 where `shrink` is 4. "pixels": by what leaves as
    many pixels of the face as the published set leaves, 512 / `shrink`; a smaller face is not shrunk. Raises ValueError
    for another reading.
    """
    if reading not in READINGS:
        raise ValueError(f"reading is {reading!r}; it must be one of {', '.join(READINGS)}")
    return float(shrink) if reading == "ratio" else max(1.0, shrink * size / PUBLISHED_SIZE)


def draw_illuminant(generator: torch.Generator) -> tuple[float, float]:
    """The sensor's response to white in red and in blue, as shares of green; the gains of the white balance undo it."""
    root = torch.linalg.cholesky(torch.tensor(ILLUMINANT_COVARIANCE))
    while True:
        red, blue = (torch.tensor(ILLUMINANT_MEAN) + root @ torch.randn(2, generator=generator)).tolist()
        if all(low <= value <= high for value, (low, high) in zip((red, blue), ILLUMINANT_LIMITS, strict=True)):
            return red, blue


def unprocessed(image: Tensor, seen: Tensor) -> Tensor:
    """Display values (3, H, W) as linear raw light of a camera that sees white as `seen` (3, 1, 1)."""
    return torch.einsum("ij,jhw->ihw", torch.linalg.inv(colour_matrix()), image**GAMMA) * seen


def processed(mosaic: Tensor, seen: Tensor) -> Tensor:
    """Display values (3, H, W) in [0, 1] of a GRBG mosaic (H, W) of raw light; the inverse of `unprocessed`."""
    balanced = (mosaic * (grbg(mosaic.expand(3, -1, -1)) / seen)).sum(0)
    light = torch.einsum("ij,jhw->ihw", colour_matrix(), demosaic(balanced).clamp(0, 1))
    return light.clamp(0, 1) ** (1 / GAMMA)


def colour_matrix() -> Tensor:
    """Raw to sRGB, (3, 3); its rows sum to one, so that white stays white."""
    matrix = torch.tensor(CAMERA_TO_SRGB)
    return matrix / matrix.sum(1, keepdim=True)


def with_noise(mosaic: Tensor, noise: SensorNoise, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """`mosaic` (H, W) with the noise of its sensor, `strength` times as strong, clipped to [0, 1]."""
    shot, read = (torch.tensor(values)[:, None, None] for values in noise)
    variance = (grbg(mosaic.expand(3, -1, -1)) * (shot * mosaic.clamp(0, 1) + read.square())).sum(0)
    return (mosaic + strength * variance.sqrt() * torch.randn(mosaic.shape, generator=generator)).clamp(0, 1)


def grbg(image: Tensor) -> Tensor:
    """(3, H, W) ones where a GRBG sensor sees red, green, blue."""
    masks = image.new_zeros(3, *image.shape[-2:])
    masks[1, 0::2, 0::2] = 1
    masks[0, 0::2, 1::2] = 1
    masks[2, 1::2, 0::2] = 1
    masks[1, 1::2, 1::2] = 1
    return masks


def demosaic(mosaic: Tensor) -> Tensor:
    """Colours (3, H, W) of a white-balanced GRBG mosaic (H, W).

    Missing green comes from the horizontal and the vertical neighbours, corrected by half the second difference of the
    colour that was measured; the direction in which less changes weighs more (Hamilton and Adams, US patent 5,629,734,
    expired). The differences of red and blue from green vary slowly and are interpolated from where they were measured.
    """
    masks = grbg(mosaic)
    across, down = _directed(mosaic), _directed(mosaic.T)
    weights = [1 / (change**2 + 1e-6) for change in (across.change, down.change.T)]
    green = (weights[0] * across.green + weights[1] * down.green.T) / (weights[0] + weights[1])
    green = torch.where(masks[1] > 0, mosaic, green)
    return torch.stack([green + _spread(mosaic - green, masks[0]), green, green + _spread(mosaic - green, masks[2])])


class _Directed(NamedTuple):
    green: Tensor
    change: Tensor


def _directed(mosaic: Tensor) -> _Directed:
    """Green (H, W) where another colour was measured, from the pixels left and right, and how much changes there."""
    padded = F.pad(mosaic[None, None], (2, 2, 0, 0), mode="reflect")[0, 0]
    far_left, left, here, right, far_right = padded.unfold(1, 5, 1).unbind(2)
    second = (2 * here - far_left - far_right) / 2
    return _Directed((left + right + second) / 2, (left - right).abs() + second.abs())


def _spread(difference: Tensor, seen: Tensor) -> Tensor:
    """`difference` (H, W), known where `seen` is one, at every pixel: a Gaussian mean of what is known around it."""
    radius = math.ceil(3 * COLOUR_SIGMA)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1.0) / COLOUR_SIGMA) ** 2)
    known = F.pad(torch.stack([difference * seen, seen])[:, None], (radius,) * 4)
    total, weight = F.conv2d(F.conv2d(known, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))[:, 0]
    return total / weight
