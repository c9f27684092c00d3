"""Structural similarity: as it is, and with matched colours."""

from __future__ import annotations

from torch import Tensor

from ..pixels import gaussian_blur
from .checks import check_size, checked_pair
from .colour import colour_matched


def ssim_matched(restored: Tensor, hq: Tensor) -> Tensor:
    """SSIM of `colour_matched`, as published; errors as `ssim`."""
    checked_pair(restored, hq)
    check_size(hq, 11, "SSIM")
    return _ssim(colour_matched(restored, hq), checked_pair(hq, hq)[0])


def ssim(restored: Tensor, hq: Tensor) -> Tensor:
    """Structural similarity, mean over pixels and the three channels, in [-1, 1]. Higher is better; 1 for equal images.

    Gaussian window of sigma 1.5 and 11 x 11 pixels, whole windows only; as scikit-image computes it with
    gaussian_weights=True, use_sample_covariance=False, channel_axis, and as piq, which few hosts have, computes it with
    downsample=False. Raises ValueError below 11 x 11 pixels.
    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    restored, hq = checked_pair(restored, hq)
    check_size(hq, 11, "SSIM")
    return _ssim(restored, hq)


def _ssim(restored: Tensor, hq: Tensor) -> Tensor:
    def mean(image: Tensor) -> Tensor:
        return gaussian_blur(image, sigma=1.5, radius=5, edges="none")

    mean_r, mean_h = mean(restored), mean(hq)
    var_r = mean(restored * restored) - mean_r * mean_r
    var_h = mean(hq * hq) - mean_h * mean_h
    covariance = mean(restored * hq) - mean_r * mean_h
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_r * mean_h + c1) / (mean_r * mean_r + mean_h * mean_h + c1)
    structure = (2 * covariance + c2) / (var_r + var_h + c2)
    return (luminance * structure).mean((1, 2, 3))
