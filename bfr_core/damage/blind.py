"""Generic blind damage, drawn anew for each face: what published blind restorers are trained on.

Blur, shrinking, Gaussian noise and JPEG, with the ranges that GFPGAN (arXiv:2101.04061, section 4.1) and CodeFormer
(arXiv:2206.11253) use at 512 pixels; half of the faces get a second round as in Real-ESRGAN (arXiv:2107.10833,
section 3). It runs in batches on any device. Camera noise, halftones, film grain, motion blur, tape and print screens
are left out on purpose: the benchmarks use them as damage that no embedded model has seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..pixels import luma
from .jpeg import through_jpeg


@dataclass(frozen=True)
class BlindRange:
    """Ranges of the damage. Lengths are in pixels of a 512 x 512 face and shrink with the picture."""

    blur_sigma: tuple[float, float] = (0.1, 10.0)
    shrink: tuple[float, float] = (0.8, 8.0)
    noise: tuple[float, float] = (0.0, 20 / 255)  # standard deviation, of [0, 1]
    jpeg_quality: tuple[int, int] = (30, 100)
    second_round: float = 0.5  # share of the faces that are damaged twice; the second round is half as strong
    untouched: float = 0.04  # share of the faces that stay as they are
    grey: float = 0.2  # share of the faces that lose their colour, in the damaged face and in the clean one
    tinted: float = 0.1  # share of the faces that are tinted and faded, in the damaged face and in the clean one


def draw_tones(hq: Tensor, generator: torch.Generator, ranges: BlindRange = BlindRange()) -> Tensor:
    """`hq` with some faces turned grey and some tinted and faded, as in old photographs: the clean side of a pair.

    hq: (B, 3, H, W) RGB in [0, 1], on any device; generator: on the CPU. Returns the same shape, in [0, 1].
    """
    draw = torch.rand(len(hq), 6, generator=generator).to(hq.device)[:, :, None, None]
    grey = luma(hq)
    hq = torch.where(draw[:, :1] < ranges.grey, grey.expand_as(hq), hq)
    paper = torch.cat([0.85 + 0.15 * draw[:, 1:2], 0.78 + 0.17 * draw[:, 1:2], 0.62 + 0.33 * draw[:, 2:3]], 1)
    ink = torch.cat([0.25 * draw[:, 3:4], 0.2 * draw[:, 3:4], 0.18 * draw[:, 3:4]], 1)
    source = torch.where(draw[:, 4:5] < 0.7, grey.expand_as(hq), hq)
    return torch.where(draw[:, 5:6] < ranges.tinted, ink + (paper - ink) * source, hq)


def blind_damage(hq: Tensor, generator: torch.Generator, ranges: BlindRange = BlindRange()) -> Tensor:
    """Damaged copies of clean faces, each with random parameters of its own.

    hq: (B, 3, H, W) RGB in [0, 1], square, on any device. generator: on the CPU; the same seed draws the same
    parameters on every device (the noise is drawn on the CPU, too). Returns the same shape and device, in [0, 1].
    """
    chance = torch.rand(len(hq), 2, generator=generator)
    damaged = torch.nonzero(chance[:, 1] >= ranges.untouched).flatten()
    twice = torch.nonzero((chance[:, 1] >= ranges.untouched) & (chance[:, 0] < ranges.second_round)).flatten()
    lq = hq.clone()
    for chosen, strength in ((damaged, 1.0), (twice, 0.5)):
        if len(chosen):
            lq[chosen] = _round(lq[chosen], generator, ranges, strength)
    return lq.clamp(0, 1)


def _round(image: Tensor, generator: torch.Generator, ranges: BlindRange, strength: float) -> Tensor:
    """One round: blur, shrinking, noise, JPEG, enlarging: I_d = {[(I * k) shrunk by r + n] JPEG q} enlarged by r."""
    count, size = len(image), image.shape[-1]
    scale = size / 512
    draw = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    low, high = ranges.blur_sigma
    sigma = scale * (low + (high * strength - low) * draw[:, 0])
    covariance = _covariance(sigma, sigma * (0.3 + 0.7 * draw[:, 1]), math.pi * draw[:, 2])
    blurred = anisotropic_blur(image, covariance)
    low, high = ranges.shrink
    factors = (low * ((high * strength) / low) ** draw[:, 3]).tolist()
    deviation = strength * (ranges.noise[0] + (ranges.noise[1] - ranges.noise[0]) * draw[:, 4])
    lowest, highest = ranges.jpeg_quality
    quality = (lowest + (highest - lowest) * draw[:, 5]).round().long().tolist()
    small = [
        _resized(one, max(8, round(size / max(1.0, factor))), mode)
        for one, factor, mode in zip(blurred.split(1), factors, _modes(draw[:, 6]), strict=True)
    ]
    stored = []
    for one, std, q in zip(small, deviation.tolist(), quality, strict=True):
        noise = torch.randn(one.shape, generator=generator).to(one)
        stored.append(_resized(through_jpeg((one + std * noise).clamp(0, 1), q), size, "bicubic"))
    return torch.cat(stored).clamp(0, 1)


def _modes(draw: Tensor) -> Sequence[str]:
    return [("bilinear", "bicubic", "area")[int(3 * float(value))] for value in draw]


def _resized(image: Tensor, size: int, mode: str) -> Tensor:
    if size == image.shape[-1]:
        return image
    if mode == "area":
        return F.interpolate(image, (size, size), mode="area")
    return F.interpolate(image, (size, size), mode=mode, antialias=size < image.shape[-1])


def _covariance(sigma_x: Tensor, sigma_y: Tensor, angle: Tensor) -> Tensor:
    """(B, 2, 2) covariance, in square pixels, of Gaussians with these widths, turned by `angle`."""
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return turn @ torch.diag_embed(torch.stack([sigma_x, sigma_y], -1) ** 2) @ turn.mT


def anisotropic_blur(image: Tensor, covariance: Tensor) -> Tensor:
    """Each image convolved with a Gaussian of its own covariance, by its transfer function exp(-2 pi^2 f' C f).

    image: (B, C, H, W); the edges are mirrored. covariance: (B, 2, 2), x first, in square pixels.
    """
    margin = min(image.shape[-1] - 1, image.shape[-2] - 1, 4 * math.ceil(float(covariance.max()) ** 0.5) + 1)
    padded = F.pad(image, (margin,) * 4, mode="reflect")
    height, width = padded.shape[-2:]
    fy = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    fx = torch.fft.rfftfreq(width, dtype=torch.float64)[None]
    c = covariance[:, :, :, None, None]
    form = c[:, 0, 0] * fx**2 + (c[:, 0, 1] + c[:, 1, 0]) * fx * fy + c[:, 1, 1] * fy**2
    transfer = torch.exp(-2 * math.pi**2 * form).float().to(image.device)[:, None]
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * transfer, s=(height, width))
    return blurred[..., margin : height - margin, margin : width - margin]
