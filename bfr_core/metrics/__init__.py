"""How good faces are: measures of pairs, of sets, their intervals, and networks that are optional.

One file for each measure or small family. Images are (B, 3, H, W) float RGB in [0, 1]; values outside are clamped
first, as writing a file would do. Per-image functions return (B,) float64. What is named here uses no network that was
trained on anything; those are in `optional`.
"""

from .colour import colour_matched
from .detail import (
    DETAIL_SIGMA,
    high_band,
    high_band_correlation,
    high_band_energy_ratio,
    sharpness,
    sharpness_of_clean,
)
from .fid import FID_MIN_FACES, FeatureStatistics, fid, frechet_distance, statistics_of
from .gmsd import gmsd
from .intervals import (
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    student_difference,
    welch_difference,
    wilson_interval,
)
from .kid import KID_MIN_SIDE, kid, kid_features, paired_kid
from .low_band import low_band_consistency
from .psnr import PSNR_CAP, psnr, psnr_after_affine_fit, psnr_matched
from .ssim import ssim, ssim_matched
from .vif_fsim import fsim, vif

__all__ = [
    "DETAIL_SIGMA",
    "FID_MIN_FACES",
    "KID_MIN_SIDE",
    "PSNR_CAP",
    "FeatureStatistics",
    "Interval",
    "bootstrap_difference",
    "bootstrap_interval",
    "colour_matched",
    "fid",
    "frechet_distance",
    "fsim",
    "gmsd",
    "high_band",
    "high_band_correlation",
    "high_band_energy_ratio",
    "kid",
    "kid_features",
    "low_band_consistency",
    "paired_kid",
    "psnr",
    "psnr_after_affine_fit",
    "psnr_matched",
    "sharpness",
    "sharpness_of_clean",
    "ssim",
    "ssim_matched",
    "statistics_of",
    "student_difference",
    "vif",
    "welch_difference",
    "wilson_interval",
]
