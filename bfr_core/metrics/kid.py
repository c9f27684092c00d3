"""The kernel distance of two sets of faces (KID), and the untrained features that it compares."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_size
from .intervals import Interval, bootstrap

KID_MIN_SIDE = 32  # pixels a side
AT_ONCE = 16  # faces that go through the network together


def kid_features(images: Tensor) -> Tensor:
    """Features for `kid`, (B, 1792) float32, from a fixed network of three convolutions with random weights (seed 0).

    Nothing was trained, so no training can have fitted them: filters have zero mean and unit norm, each layer is
    followed by its absolute value and halved, and mean and spread of every channel over the four quarters of the image
    are kept (square roots, scaled to about unit size). Sensitive to texture (blur, noise, screens, over-smoothing),
    hardly to identity. Compare only images of one size. Raises ValueError below 32 x 32 pixels.
    """
    check_size(images, KID_MIN_SIDE, "KID")
    if len(images) > AT_ONCE:  # 75 faces of 256 pixels took gigabytes
        return torch.cat([kid_features(some) for some in images.split(AT_ONCE)])
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

    A face is never compared with itself, in either set or between them (in resamples, with no copy of itself), so equal
    sets give exactly 0 and the estimate stays unbiased. Arguments and errors as `kid` and `bootstrap_interval`.
    Source: Gretton et al., "A kernel two-sample test", 2012 (the one-sample U-statistic).
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

    return bootstrap(estimate, len(terms), seed, samples, level)


def _check_features(features_a: Tensor, features_b: Tensor) -> None:
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        shapes = f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        raise ValueError(f"features of shapes {shapes}; (N, D) and (M, D) are needed")
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError(f"sets of {len(features_a)} and {len(features_b)} faces; KID needs at least 2 in each")


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """The kernel (x.y / D + 1)^3 between two sets of features: (N, M) float64 on the CPU."""
    a, b = a.cpu().double(), b.cpu().double()
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))
