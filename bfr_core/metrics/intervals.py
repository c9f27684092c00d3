"""The uncertainty of a figure: a mean over faces, or a share of them, with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval (NaN for a single value, which tells no interval)."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float] | np.ndarray | Tensor, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of `values`, one per face, with a percentile bootstrap interval over faces.

    Values that belong to the same face (several seeds) must be averaged before, because faces are what is resampled.
    Raises ValueError if there are none, if one is not finite, or for samples < 1 or a level outside (0, 1).
    """
    flat = np.asarray(values, np.float64)
    if flat.ndim != 1 or flat.size == 0:
        raise ValueError(f"values have shape {flat.shape}; one number per face is needed")
    if not np.isfinite(flat).all():
        raise ValueError(f"{(~np.isfinite(flat)).sum()} of {flat.size} values are not finite; leave those faces out")
    return bootstrap(lambda counts: counts @ flat / len(flat), len(flat), seed, samples, level)


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
    from scipy.stats import t as student

    half = float(student.ppf(0.975, freedom)) * float((a - b).std(ddof=1)) / math.sqrt(len(a))
    return Interval(mean, mean - half, mean + half)


def welch_difference(values_a: Sequence[float] | Tensor, values_b: Sequence[float] | Tensor) -> Interval:
    """Mean of values_a less that of values_b, of different faces each, with the 95 % interval of Welch's t test.

    Source: B. L. Welch, "The generalization of Student's problem", 1947. Raises ValueError unless there are at
    least two of both.
    """
    parts = [np.asarray(values, np.float64) for values in (values_a, values_b)]
    if any(part.ndim != 1 or part.size < 2 for part in parts):
        raise ValueError(
            f"values of shapes {parts[0].shape} and {parts[1].shape}; two numbers or more of each are needed"
        )
    from scipy.stats import t as student

    shares = [part.var(ddof=1) / part.size for part in parts]
    variance = sum(shares)
    mean = float(parts[0].mean() - parts[1].mean())
    if not variance:
        return Interval(mean, mean, mean)
    freedom = variance**2 / sum(share**2 / (part.size - 1) for share, part in zip(shares, parts, strict=True))
    half = float(student.ppf(0.975, freedom)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def wilson_interval(successes: int, total: int) -> Interval:
    """Share of `successes` among `total` and its 95 % interval. Source: E. B. Wilson, "Probable inference", 1927.

    Raises ValueError unless 0 <= successes <= total and total is above 0.
    """
    if not 0 <= successes <= total or not total:
        raise ValueError(f"{successes} of {total} is no share")
    from scipy.stats import binomtest

    ends = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    return Interval(successes / total, float(ends.low), float(ends.high))


def bootstrap(
    estimate: Callable[[np.ndarray], np.ndarray], faces: int, seed: int, samples: int, level: float
) -> Interval:
    """`estimate` with every face counted once, and its percentile interval over `samples` bootstrap resamples.

    Resamples are counts of each face, because `paired_kid` needs them; SciPy's bootstrap gives the faces themselves.
    estimate: how often each face is counted, (S, faces) float64 -> (S,). level: of the interval, such as 0.95.
    Raises ValueError for samples < 1 or a level outside (0, 1).
    """
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples is {samples} and level {level}; samples >= 1 and 0 < level < 1 are needed")
    mean = float(estimate(np.ones((1, faces)))[0])
    if faces == 1:
        return Interval(mean, math.nan, math.nan)
    counts = np.random.default_rng(seed).multinomial(faces, np.full(faces, 1 / faces), size=samples).astype(np.float64)
    low, high = np.quantile(estimate(counts), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))
