"""The Frechet distance of two sets of features (FID)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FID_MIN_FACES = 2000  # faces; with fewer, FID says more about their number than about the faces


def fid(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of two sets of features, (N, D) and (M, D), each taken as normally distributed. Lower is better.

    Raises ValueError with fewer than `FID_MIN_FACES` in a set, because it is biased by their number.
    Source: arXiv:1706.08500, eq. 6.
    """
    if min(len(features_a), len(features_b)) < FID_MIN_FACES:
        raise ValueError(f"sets of {len(features_a)} and {len(features_b)} faces; FID needs {FID_MIN_FACES} in each")
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
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features do not come from one network")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    between = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * between
    return float((a.mean - b.mean).square().sum() + spread)
