"""Detail finer than a Gaussian blur: how much there is, whether it is the right detail, and how sharp a face is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..device import where_all_works
from ..pixels import gaussian_blur
from .checks import checked_pair

DETAIL_SIGMA = 1.5  # pixels
# Of clean faces at 128 x 128: the median of `sharpness` before division, and the noise that 95 % of them stay below.
TYPICAL_SHARPNESS, TYPICAL_NOISE = 1.2, 0.0075
SHARPER_AT_256 = 1.67


def high_band(image: Tensor, sigma: float = DETAIL_SIGMA) -> Tensor:
    """`image` minus its Gaussian blur of `sigma` pixels: the detail, about zero on average.

    image: (B, C, H, W) float, any range; same shape and dtype back. The edge pixel is repeated outside the image.
    Raises ValueError unless sigma is above 0.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}; it must be above 0 pixels")
    return image - gaussian_blur(image, sigma, math.ceil(4 * sigma), "replicate")


def high_band_energy_ratio(restored: Tensor, hq: Tensor, sigma: float = DETAIL_SIGMA) -> Tensor:
    """Sum of squares of the high band of `restored` over that of `hq`. Best at 1; below: blurred, above: noisy.

    NaN where `hq` has no detail at all.
    """
    restored, hq = checked_pair(restored, hq)
    energy_r = high_band(restored, sigma).square().sum((1, 2, 3))
    energy_h = high_band(hq, sigma).square().sum((1, 2, 3))
    return torch.where(_is_flat(energy_h, hq), torch.nan, energy_r / energy_h)


def high_band_correlation(restored: Tensor, hq: Tensor, sigma: float = DETAIL_SIGMA) -> Tensor:
    """Pearson correlation of the two high bands over pixels and channels, in [-1, 1]. Higher is better.

    Neither blurring nor adding noise raises it by itself. 0 if `restored` has no detail, NaN if `hq` has none.
    """
    restored, hq = checked_pair(restored, hq)
    bands = [high_band(image, sigma).flatten(1) for image in (restored, hq)]
    band_r, band_h = (band - band.mean(1, keepdim=True) for band in bands)
    energy_r, energy_h = band_r.square().sum(1), band_h.square().sum(1)
    correlation = (band_r * band_h).sum(1) / (energy_r * energy_h).sqrt()
    correlation = torch.where(_is_flat(energy_r, restored), 0.0, correlation)
    return torch.where(_is_flat(energy_h, hq), torch.nan, correlation)


def sharpness_of_clean(size: int) -> float:
    """`sharpness` of clean faces in crops of `size` pixels, over that at 128: larger ones show finer detail.

    On 32 training portraits at 256, 84 % of the clean faces and their JPEGs pass the limits of an album with it, and
    0.4 % of the damaged ones. Photographs that have more pixels are hardly sharper at 512 than at 256.
    """
    return 1 + (SHARPER_AT_256 - 1) * min(1.0, max(0.0, math.log2(max(1, size)) - 7))


def sharpness(image: Tensor) -> Tensor:
    """How fine and clean the detail is: about `sharpness_of_clean` in a clean face crop, less where it is blurred or
    noisy; (B,) float64.

    NaN of a picture that is one pixel wide or high.

    image: (B, 3, S, S) RGB in [0, 1]. It is the energy of the high band over that of the next coarser band, both less
    what white noise of the picture's own level has there, and it is divided down where that level exceeds a clean
    face's. The noise level is estimated on the smooth parts, which are most of a face, as the median of the finest
    diagonal differences (D. L. Donoho and I. M. Johnstone, 1994).
    """
    grey = where_all_works(image).double().clamp(0, 1).mean(1, keepdim=True)
    if min(grey.shape[-2:]) < 2:
        return torch.full((len(grey),), torch.nan, dtype=torch.float64, device=grey.device)
    top, bottom = grey[..., :-1:2, :], grey[..., 1::2, :]
    diagonal = (top[..., :-1:2] - top[..., 1::2] - bottom[..., :-1:2] + bottom[..., 1::2]) / 2
    noise = diagonal.abs().flatten(1).median(1).values / 0.6745
    sigma = DETAIL_SIGMA * image.shape[-1] / 128

    def bands(picture: Tensor) -> tuple[Tensor, Tensor]:
        fine = high_band(picture, sigma)
        return fine, high_band(picture, 2 * sigma) - fine

    pixel = torch.zeros_like(grey[:1])  # a band's share of white noise is the energy of its response to one pixel
    pixel[..., pixel.shape[-2] // 2, pixel.shape[-1] // 2] = 1
    fine, coarser = (
        band.square().mean((1, 2, 3)) - noise.square() * share.square().sum()
        for band, share in zip(bands(grey), bands(pixel), strict=True)
    )
    ratio = fine.clamp_min(0) / coarser.clamp_min(1e-9) / TYPICAL_SHARPNESS
    return ratio / (noise / TYPICAL_NOISE).clamp_min(1).square()


def _is_flat(energy: Tensor, image: Tensor) -> Tensor:
    """(B,) bool: no more detail than float64 rounding leaves on a flat image."""
    return energy <= 1e-20 * image[0].numel()
