"""How close two sets of faces are: per-image measures, distances between sets, and bootstrap intervals.

Images are (B, 3, H, W) float RGB in [0, 1]; values outside are clamped first, as writing a file would do.
Per-image functions return (B,) float64. None of them uses a network that was trained on anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import where_all_works
from ..diffusion.low_pass import low_pass
from ..pixels import gaussian_blur

PSNR_CAP = 100.0
DETAIL_SIGMA = 1.5
# Of clean faces at 128 x 128: the median of `sharpness` before division, and the noise that 95 % of them stay below.
USUAL_SHARPNESS, USUAL_NOISE = 1.2, 0.0075
KID_LEAST = 32  # pixels a side
FID_LEAST = 2000  # faces; of fewer, FID says more about their number than about the faces


# ---------------------------------------------------------------- one image against another


def psnr(restored: Tensor, hq: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all channels, in dB. Higher is better; 100 (the cap) for equal images."""
    restored, hq = _pair(restored, hq)
    error = (restored - hq).square().mean((1, 2, 3))
    return (-10 * torch.log10(error)).clamp(max=PSNR_CAP)


def psnr_after_affine_fit(restored: Tensor, hq: Tensor) -> Tensor:
    """PSNR after each channel's gain and offset were fitted to `hq` by least squares, in dB; never below `psnr`'s.

    Tone and fading, which restoring leaves as they are, no longer count. 100 (the cap) for equal images.
    """
    restored, hq = _pair(restored, hq)
    centred_r = restored - restored.mean((2, 3), keepdim=True)
    mean_h = hq.mean((2, 3), keepdim=True)
    spread = centred_r.square().sum((2, 3), keepdim=True)
    gain = (centred_r * (hq - mean_h)).sum((2, 3), keepdim=True) / spread.clamp_min(1e-12)
    error = (gain * centred_r + mean_h - hq).square().mean((1, 2, 3))
    return (-10 * torch.log10(error)).clamp(max=PSNR_CAP)


def colour_matched(restored: Tensor, hq: Tensor) -> Tensor:
    """`restored` with the mean and the deviation of each channel set to those of `hq`; float64, not clamped.

    (B, 3, H, W) in [0, 1]. A channel without any variation is only moved. The figures that are published for blind face
    restoration are mostly taken after this: colours and contrast that are off as a whole do not count in them.
    """
    restored, hq = _pair(restored, hq)
    mean_r, mean_h = (image.mean((2, 3), keepdim=True) for image in (restored, hq))
    spread_r, spread_h = (image.std((2, 3), keepdim=True, correction=0) for image in (restored, hq))
    gain = torch.where(spread_r > 1e-8, spread_h / spread_r.clamp_min(1e-8), torch.ones_like(spread_r))
    return (restored - mean_r) * gain + mean_h


def psnr_matched(restored: Tensor, hq: Tensor) -> Tensor:
    """PSNR of `colour_matched`, in dB, as published; up to about 2 dB above `psnr`. 100 (the cap) for equal images."""
    error = (colour_matched(restored, hq) - _pair(hq, hq)[0]).square().mean((1, 2, 3))
    return (-10 * torch.log10(error)).clamp(max=PSNR_CAP)


def ssim_matched(restored: Tensor, hq: Tensor) -> Tensor:
    """SSIM of `colour_matched`, as published; errors as `ssim`."""
    _pair(restored, hq)
    _check_size(hq, 11, "SSIM")
    return _ssim(colour_matched(restored, hq), _pair(hq, hq)[0])


def ssim(restored: Tensor, hq: Tensor) -> Tensor:
    """Structural similarity, mean over pixels and the three channels, in [-1, 1]. Higher is better; 1 for equal images.

    Gaussian window of sigma 1.5 and 11 x 11 pixels, whole windows only; as scikit-image computes it with
    gaussian_weights=True, use_sample_covariance=False, channel_axis. Raises ValueError below 11 x 11 pixels.
    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    restored, hq = _pair(restored, hq)
    _check_size(hq, 11, "SSIM")
    return _ssim(restored, hq)


def _ssim(restored: Tensor, hq: Tensor) -> Tensor:
    window = partial(gaussian_blur, sigma=1.5, radius=5, edges="none")
    mean_r, mean_h = window(restored), window(hq)
    var_r = window(restored * restored) - mean_r * mean_r
    var_h = window(hq * hq) - mean_h * mean_h
    covariance = window(restored * hq) - mean_r * mean_h
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_r * mean_h + c1) / (mean_r * mean_r + mean_h * mean_h + c1)
    structure = (2 * covariance + c2) / (var_r + var_h + c2)
    return (luminance * structure).mean((1, 2, 3))


def gmsd(restored: Tensor, hq: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation of luma, >= 0. Lower is better; 0 for equal images.

    Raises ImportError if piq (`pip install piq`) is missing.
    Source: Xue et al., arXiv:1308.3052, as implemented in piq (Apache-2.0).
    """
    piq = _piq()
    return piq.gmsd(*_pair(restored, hq), data_range=1.0, reduction="none").flatten()


def vif(restored: Tensor, hq: Tensor) -> Tensor:
    """Visual information fidelity in the pixel domain, on luma: 0 nothing kept, 1 for equal images. Higher is better.

    Above 1 only where contrast was added. Raises ImportError if piq (`pip install piq`) is missing, ValueError below
    41 x 41 pixels.
    Source: Sheikh and Bovik, "Image information and visual quality", 2006, as implemented in piq (Apache-2.0).
    """
    piq = _piq()
    restored, hq = _pair(restored, hq)
    _check_size(hq, 41, "VIF")
    return piq.vif_p(restored, hq, data_range=1.0, reduction="none").flatten()


def fsim(restored: Tensor, hq: Tensor) -> Tensor:
    """Feature similarity with colour (FSIMc), in [0, 1]. Higher is better; 1 for equal images.

    Raises ImportError if piq (`pip install piq`) is missing, ValueError below 41 x 41 pixels.
    Source: Zhang et al., "FSIM: a feature similarity index for image quality assessment", 2011, as implemented in piq.
    """
    piq = _piq()
    restored, hq = _pair(restored, hq)
    _check_size(hq, 41, "FSIM")
    return piq.fsim(restored.float(), hq.float(), data_range=1.0, reduction="none").double().flatten()


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

    Not a number where `hq` has no detail at all.
    """
    restored, hq = _pair(restored, hq)
    energy_r = high_band(restored, sigma).square().sum((1, 2, 3))
    energy_h = high_band(hq, sigma).square().sum((1, 2, 3))
    return torch.where(_is_flat(energy_h, hq), torch.nan, energy_r / energy_h)


def high_band_correlation(restored: Tensor, hq: Tensor, sigma: float = DETAIL_SIGMA) -> Tensor:
    """Pearson correlation of the two high bands over pixels and channels, in [-1, 1]. Higher is better.

    Neither blurring nor adding noise raises it by itself. 0 if `restored` has no detail, not a number if `hq` has none.
    """
    restored, hq = _pair(restored, hq)
    bands = [high_band(image, sigma).flatten(1) for image in (restored, hq)]
    band_r, band_h = (band - band.mean(1, keepdim=True) for band in bands)
    energy_r, energy_h = band_r.square().sum(1), band_h.square().sum(1)
    correlation = (band_r * band_h).sum(1) / (energy_r * energy_h).sqrt()
    correlation = torch.where(_is_flat(energy_r, restored), 0.0, correlation)
    return torch.where(_is_flat(energy_h, hq), torch.nan, correlation)


def sharpness(image: Tensor) -> Tensor:
    """How fine and clean the detail is: about 1 in a clean face crop, less where it is blurred or noisy; (B,) float64.

    image: (B, 3, S, S) RGB in [0, 1]. The energy of the high band over that of the next coarser one, both less what
    independent noise of the picture's own strength has there; divided where that strength is more than a clean face's.
    It is read off the smooth parts, which are most of a face: the median of the finest diagonal differences
    (D. L. Donoho and I. M. Johnstone, 1994).
    """
    grey = where_all_works(image).double().clamp(0, 1).mean(1, keepdim=True)
    top, bottom = grey[..., :-1:2, :], grey[..., 1::2, :]
    diagonal = (top[..., :-1:2] - top[..., 1::2] - bottom[..., :-1:2] + bottom[..., 1::2]) / 2
    noise = diagonal.abs().flatten(1).median(1).values / 0.6745
    sigma = DETAIL_SIGMA * image.shape[-1] / 128

    def bands(picture: Tensor) -> tuple[Tensor, Tensor]:
        fine = high_band(picture, sigma)
        return fine, high_band(picture, 2 * sigma) - fine

    pixel = torch.zeros_like(grey[:1])  # what of white noise is in a band, a single pixel says
    pixel[..., pixel.shape[-2] // 2, pixel.shape[-1] // 2] = 1
    fine, coarser = (
        band.square().mean((1, 2, 3)) - noise.square() * share.square().sum()
        for band, share in zip(bands(grey), bands(pixel), strict=True)
    )
    ratio = fine.clamp_min(0) / coarser.clamp_min(1e-9) / USUAL_SHARPNESS
    return ratio / (noise / USUAL_NOISE).clamp_min(1).square()


def low_band_consistency(restored: Tensor, lq: Tensor, factor: int) -> Tensor:
    """Root mean square difference of the low bands (`low_pass`), in units of [0, 1]. Lower is better, 0 is exact.

    Says whether a result is still the same picture as the damaged one. Raises ValueError as `low_pass` does.
    """
    restored, lq = _pair(restored, lq)
    return (low_pass(restored, factor) - low_pass(lq, factor)).square().mean((1, 2, 3)).sqrt()


# ---------------------------------------------------------------- one set of images against another


def kid_features(images: Tensor) -> Tensor:
    """Features for `kid`, (B, 1792) float32, from a fixed network of three convolutions with random weights (seed 0).

    Nothing was trained, so no training can have fitted them: filters have zero mean and unit norm, each layer is
    followed by its absolute value and halved, and mean and spread of every channel over the four quarters of the image
    are kept (square roots, scaled to about unit size). Sensitive to texture (blur, noise, screens, over-smoothing),
    hardly to identity. Compare only images of one size. Raises ValueError below 32 x 32 pixels.
    """
    _check_size(images, KID_LEAST, "KID")
    # RandomState, whose stream is frozen: the numbers stay comparable from version to version.
    draw = np.random.RandomState(0).standard_normal
    x = images.float().clamp(0, 1) * 2 - 1
    pooled = []
    for channels, size in ((32, 5), (64, 3), (128, 3)):
        kernel = torch.from_numpy(draw((channels, x.shape[1], size, size))).to(x)
        kernel = kernel - kernel.mean((2, 3), keepdim=True)
        kernel = kernel / kernel.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        x = F.conv2d(x, kernel).abs()
        mean = F.adaptive_avg_pool2d(x, 2)
        spread = (F.adaptive_avg_pool2d(x.square(), 2) - mean.square()).clamp_min(0).sqrt()
        pooled += [mean.flatten(1), spread.flatten(1)]
        x = F.avg_pool2d(x, 2)
    return 6 * torch.cat(pooled, 1).sqrt()


def kid(features_a: Tensor, features_b: Tensor) -> float:
    """Kernel distance: unbiased squared MMD of two sets of features with the kernel (x.y / D + 1)^3. Lower is better.

    features_a: (N, D), features_b: (M, D), from different faces. About 0, and as often below as above, if both sets
    come from one source. Raises ValueError with fewer than 2 in a set.
    Source: Binkowski et al., arXiv:1801.01401 (KID); Gretton et al., "A kernel two-sample test", 2012.
    """
    _check_features(features_a, features_b)
    within_a, within_b = _kernel(features_a, features_a), _kernel(features_b, features_b)
    return float(
        _mean_off_diagonal(within_a) + _mean_off_diagonal(within_b) - 2 * _kernel(features_a, features_b).mean()
    )


def paired_kid(
    features_restored: Tensor, features_hq: Tensor, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> Interval:
    """`kid` of two sets of the *same* faces in the same order, with a bootstrap interval over faces.

    Like must not be compared with like: a face is left out of its own comparison in both sets and between them
    (in resamples every copy of it), so equal sets give exactly 0 and the estimate stays unbiased. Arguments as `kid`
    and `bootstrap_interval`. Source: Gretton et al., "A kernel two-sample test", 2012 (the one-sample U-statistic).
    """
    _check_features(features_restored, features_hq)
    if len(features_restored) != len(features_hq):
        raise ValueError(f"{len(features_restored)} restored faces and {len(features_hq)} clean ones do not pair up")
    between = _kernel(features_restored, features_hq)
    pairwise = _kernel(features_restored, features_restored) + _kernel(features_hq, features_hq) - between - between.T
    terms = pairwise.fill_diagonal_(0).numpy()

    def estimate(counts: np.ndarray) -> np.ndarray:
        pairs = counts.sum(1) ** 2 - (counts**2).sum(1)  # ordered pairs of different faces
        return np.einsum("si,ij,sj->s", counts, terms, counts, optimize=True) / np.maximum(pairs, 1)

    return _bootstrap(estimate, len(terms), seed, samples, level)


def fid(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of two sets of features, (N, D) and (M, D), taken for normal ones. Lower is better.

    Raises ValueError with fewer than `FID_LEAST` in a set: it is biased by their number.
    Source: arXiv:1706.08500, eq. 6.
    """
    if min(len(features_a), len(features_b)) < FID_LEAST:
        raise ValueError(f"sets of {len(features_a)} and {len(features_b)} faces; FID needs {FID_LEAST} in each")
    return frechet_distance(statistics_of(features_a), statistics_of(features_b))


class FeatureStatistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of a set's features, float64 on the CPU: all that FID needs of the set."""

    mean: Tensor
    covariance: Tensor


def statistics_of(features: Tensor) -> FeatureStatistics:
    """Statistics of features (N, D). Raises ValueError for fewer than 2, which have no covariance."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)}; (N, D) with N of 2 or more is needed")
    features = features.cpu().double()
    return FeatureStatistics(features.mean(0), torch.cov(features.T))


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Frechet distance of two normal distributions. Raises ValueError if they are of different features.

    Source: arXiv:1706.08500, eq. 6.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features are not of one network")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    between = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * between
    return float((a.mean - b.mean).square().sum() + spread)


# ---------------------------------------------------------------- how sure


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval (not a number where one cannot be told: a single value)."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float] | np.ndarray | Tensor, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of `values`, one per face, with a percentile bootstrap interval over faces.

    Values that belong to the same face (several seeds) must be averaged before: faces are what is drawn again.
    Raises ValueError if there are none, if one is not finite, or for samples < 1 or a level outside (0, 1).
    """
    flat = np.asarray(values, np.float64)
    if flat.ndim != 1 or flat.size == 0:
        raise ValueError(f"values have shape {flat.shape}; one number per face is needed")
    if not np.isfinite(flat).all():
        raise ValueError(f"{(~np.isfinite(flat)).sum()} of {flat.size} values are not finite; leave those faces out")
    return _bootstrap(lambda counts: counts @ flat / len(flat), len(flat), seed, samples, level)


def bootstrap_difference(
    values_a: Sequence[float] | np.ndarray | Tensor,
    values_b: Sequence[float] | np.ndarray | Tensor,
    seed: int = 0,
    samples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean of values_a - values_b over the same faces in the same order, with its interval; errors as above."""
    a, b = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"values of shapes {a.shape} and {b.shape} do not pair up, face by face")
    return bootstrap_interval(a - b, seed, samples, level)


# 97.5 % quantiles of Student's t for 1, 2, 3, ... degrees of freedom; of more than 30, nearly 1.96 + 2.4 / df.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def student_difference(values_a: Sequence[float] | Tensor, values_b: Sequence[float] | Tensor) -> Interval:
    """Mean of values_a - values_b, one of each per face, with Student's 95 % interval: wide enough for few faces.

    (A bootstrap over three faces can reach no further than from the lowest to the highest.) Raises ValueError unless
    there is the same number of both, and at least one.
    """
    a, b = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"values of shapes {a.shape} and {b.shape} do not pair up, face by face")
    mean, freedom = float((a - b).mean()), len(a) - 1
    if not freedom:
        return Interval(mean, math.nan, math.nan)
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else 1.96 + 2.4 / freedom
    half = quantile * float((a - b).std(ddof=1)) / math.sqrt(len(a))
    return Interval(mean, mean - half, mean + half)


def wilson_interval(successes: int, total: int) -> Interval:
    """Share of `successes` among `total` and its 95 % interval. Source: E. B. Wilson, "Probable inference", 1927.

    Raises ValueError unless 0 <= successes <= total and total is above 0.
    """
    if not 0 <= successes <= total or not total:
        raise ValueError(f"{successes} of {total} is no share")
    z, share = 1.959964, successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def _bootstrap(
    estimate: Callable[[np.ndarray], np.ndarray], faces: int, seed: int, samples: int, level: float
) -> Interval:
    """`estimate` of counts per face, (S, faces) -> (S,): once with every face, and its spread over resamples."""
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples is {samples} and level {level}; samples >= 1 and 0 < level < 1 are needed")
    mean = float(estimate(np.ones((1, faces)))[0])
    if faces == 1:
        return Interval(mean, math.nan, math.nan)
    counts = np.random.default_rng(seed).multinomial(faces, np.full(faces, 1 / faces), size=samples).astype(np.float64)
    low, high = np.quantile(estimate(counts), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


# ---------------------------------------------------------------- parts


def _pair(restored: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both, checked, clamped to [0, 1], in float64: variances of flat patches need the digits."""
    if restored.shape != other.shape or restored.ndim != 4 or restored.shape[1] != 3:
        shapes = f"{tuple(restored.shape)} and {tuple(other.shape)}"
        raise ValueError(f"images of shapes {shapes}; two equal shapes (B, 3, H, W) are needed")
    restored, other = where_all_works(restored), where_all_works(other)
    return restored.double().clamp(0, 1), other.double().clamp(0, 1)


def _check_size(images: Tensor, least: int, measure: str) -> None:
    if min(images.shape[-2:]) < least:
        height, width = images.shape[-2:]
        raise ValueError(
            f"images of {width} x {height} pixels are too small for {measure}; {least} x {least} are needed"
        )


def _check_features(features_a: Tensor, features_b: Tensor) -> None:
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        shapes = f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        raise ValueError(f"features of shapes {shapes}; (N, D) and (M, D) are needed")
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError(f"sets of {len(features_a)} and {len(features_b)} faces; KID needs at least 2 in each")


def _is_flat(energy: Tensor, image: Tensor) -> Tensor:
    """(B,) bool: no more detail than float64 rounding leaves on a flat image."""
    return energy <= 1e-20 * image[0].numel()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) float64 on the CPU."""
    a, b = a.cpu().double(), b.cpu().double()
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))


def _piq() -> ModuleType:
    try:
        import piq
    except ImportError as error:
        raise ImportError("GMSD, VIF and FSIM need the package piq: pip install piq") from error
    return piq
