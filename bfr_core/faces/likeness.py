"""Whether a restored face is still the same person: like is compared with like, and judged by distances of strangers.

Blur alone moves a face's embedding by half the way to another person's, so the distance of a restored face to its
damaged photo says that doing nothing is best. Here the photo is compared with the restored face *with the damage put
on it again*, and how far is too far is read off known pairs under the same damage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..metrics.intervals import Interval, wilson_interval

SAME = "looks like the same person"
MAY_BE = "may be the same person"
OTHER = "no longer looks like the same person"
CANNOT_TELL = "cannot tell"

Distances = Sequence[float] | np.ndarray | Tensor
Embed = Callable[[Tensor], Tensor]  # standard crops (B, 3, S, S) RGB in [0, 1] -> (B, D)
# Faces (B, 3, S, S) RGB in [0, 1] -> the same with the folder's damage on them, drawn anew at every call.
Damage = Callable[[Tensor], Tensor]
SAMPLES = 4  # of the damage: one sample's noise moves an embedding too, the mean of four hardly


# ---------------------------------------------------------------- distances


def likeness_distance(embeddings: Tensor, others: Tensor) -> Tensor:
    """Euclidean distance of corresponding embeddings: (B, D) twice -> (B,), 0 for one picture. Smaller is more alike.

    Raises ValueError unless both have the same shape (B, D).
    """
    if embeddings.shape != others.shape or embeddings.ndim != 2:
        raise ValueError(f"embeddings are {tuple(embeddings.shape)} and {tuple(others.shape)}; both must be (B, D)")
    return (embeddings.float() - others.float()).norm(dim=1)


def distances_to_strangers(embeddings: Tensor, others: Tensor) -> Tensor:
    """Row i: the distances of face i to all of `others` but the i-th, which is the same person: -> (N, N - 1).

    embeddings, others: (N, D), the same N different people in the same order. Raises ValueError for other shapes.
    """
    if embeddings.shape != others.shape or embeddings.ndim != 2:
        raise ValueError(f"embeddings are {tuple(embeddings.shape)} and {tuple(others.shape)}; both must be (N, D)")
    exact = "donot_use_mm_for_euclid_dist"  # the faster way loses the digits of small distances
    every = torch.cdist(embeddings.float().cpu(), others.float().cpu(), compute_mode=exact)
    return every[~torch.eye(len(every), dtype=torch.bool)].view(len(every), -1)


def embedding_under(damage: Damage, faces: Tensor, embed: Embed, samples: int = SAMPLES) -> Tensor:
    """The embeddings of faces under a damage, the mean over some samples of it: (B, 3, S, S) in [0, 1] -> (B, D).

    Raises ValueError for less than one sample, or if `damage` returns another number of faces.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; the damage must be drawn at least once")
    found = []
    for _ in range(samples):
        lq = damage(faces)
        if len(lq) != len(faces):
            raise ValueError(f"of {len(faces)} faces {len(lq)} were damaged again; the numbers must be equal")
        found.append(embed(lq))
    return torch.stack(found).mean(0)


def like_with_like(lq: Tensor, restored: Tensor, damage: Damage, embed: Embed, samples: int = SAMPLES) -> Tensor:
    """Distance of each damaged face to its restored face under the same damage: -> (B,).

    lq, restored: (B, 3, S, S) RGB in [0, 1], standard crops cut by the same points; the sizes may differ, since `embed`
    looks at both in the same way. damage: puts the folder's damage on the restored faces once more. samples: see
    `embedding_under`. Raises ValueError if the numbers of faces differ.
    """
    if len(lq) != len(restored):
        raise ValueError(f"there are {len(lq)} damaged and {len(restored)} restored faces; the numbers must be equal")
    return likeness_distance(embed(lq), embedding_under(damage, restored, embed, samples))


# ---------------------------------------------------------------- how far is too far


@dataclass(frozen=True)
class LikenessConfig:
    """How sure a word about likeness must be.

    error_rate: the share of good restorations that may be called another person, and the share of strangers that may be
    called the same. most_missed: where more than this share of strangers lies within the distance at which good
    restorations are still left alone, the distances say nothing, and nothing is claimed.
    """

    error_rate: float = 0.02
    most_missed: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.error_rate < 0.5 and 0 < self.most_missed < 1):
            raise ValueError(
                f"likeness error_rate is {self.error_rate} and most_missed {self.most_missed}; the first must lie "
                "between 0 and 0.5, the second between 0 and 1"
            )


@dataclass(frozen=True)
class Calibration:
    """What distances mean under one damage.

    same: up to this distance a face "looks like the same person". other: beyond it a face "no longer looks like the
    same person". Both are nan where the known pairs are too few. Shares with their 95 % intervals, of the pairs that it
    was made from (pairs that have a face in common make them narrower than they should be): false_warnings (genuine
    pairs beyond `other`), missed (strangers not beyond it), comforted (genuine pairs within `same`), false_comfort
    (strangers within it). reason: why it cannot tell, "" where it can. config: what it was asked for.
    """

    same: float
    other: float
    false_warnings: Interval
    missed: Interval
    comforted: Interval
    false_comfort: Interval
    genuine: int
    strangers: int
    reason: str
    config: LikenessConfig

    @property
    def tells(self) -> bool:
        """Whether distances under this damage say anything at all."""
        return not self.reason


def calibrate(genuine: Distances, strangers: Distances, config: LikenessConfig | None = None) -> Calibration:
    """The limits that distances of known pairs give.

    genuine: distances of faces to good restorations of themselves; strangers: to those of other people; both under the
    damage of the faces that will be judged, both found by the same comparison. A further genuine pair lies beyond
    `other`, and a further stranger within `same`, with a chance of at most `config.error_rate` (order statistics as in
    conformal prediction, arXiv:2107.07511), if it is of the same kind as the known ones. That takes 49 pairs of each
    at 2 %; with fewer, or where the two overlap too much, the calibration says that it cannot tell.
    Raises ValueError if either is empty or not finite.
    """
    config = config or LikenessConfig()
    own, foreign = _sorted(genuine, "genuine pairs"), _sorted(strangers, "strangers")
    # A further value of the same kind lies beyond the k-th of n from either end with a chance of k / (n + 1).
    farthest, nearest = (_kth(values, config.error_rate) for values in (own[::-1], foreign))
    known = not (math.isnan(farthest) or math.isnan(nearest))
    same, other = (min(farthest, nearest), max(farthest, nearest)) if known else (math.nan, math.nan)
    missed = wilson_interval(int((foreign <= other).sum()), len(foreign))
    return Calibration(
        same=same,
        other=other,
        false_warnings=wilson_interval(int((own > other).sum()), len(own)),
        missed=missed,
        comforted=wilson_interval(int((own <= same).sum()), len(own)),
        false_comfort=wilson_interval(int((foreign <= same).sum()), len(foreign)),
        genuine=len(own),
        strangers=len(foreign),
        reason=_reason(len(own), len(foreign), known, missed, config),
        config=config,
    )


def _kth(values: np.ndarray, rate: float) -> float:
    """The value of an ordered row that a further one comes before with a chance of `rate` at most; nan if too few."""
    k = math.floor((len(values) + 1) * rate + 1e-9)
    return float(values[k - 1]) if k else math.nan


def _reason(genuine: int, strangers: int, known: bool, missed: Interval, config: LikenessConfig) -> str:
    if not known:
        least = math.ceil(1 / config.error_rate - 1e-9) - 1
        return (
            f"{genuine} genuine pairs and {strangers} strangers are too few for an error rate of "
            f"{config.error_rate:.0%}; {least} of each are needed"
        )
    if missed.mean > config.most_missed:
        return (
            f"under this damage {missed.mean:.0%} of strangers are as near as good restorations of the same person; "
            f"at most {config.most_missed:.0%} may be"
        )
    return ""


def _sorted(distances: Distances, what: str) -> np.ndarray:
    values = np.sort(np.asarray(distances, np.float64).ravel())
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"the distances of {what} must be finite numbers, at least one")
    return values


def judge(
    distances: Distances,
    calibration: Calibration,
    strangers: Tensor | None = None,
    readable: Sequence[bool] | Tensor | None = None,
) -> list[str]:
    """`SAME`, `MAY_BE`, `OTHER` or `CANNOT_TELL` for each face.

    Of a restored face, `SAME` says that it agrees with what the damaged photo still shows, and no more.
    distances: (B,), found by the comparison that `calibration` was made for; nan where there is none. strangers: (B, M)
    distances of the same damaged faces to M other people's restored faces under the same damage; a face to which
    more of them are near than the calibration's `most_missed` says nothing about who it is. readable: (B,) whether the
    damaged face is plainly a face. Whatever says nothing gives `CANNOT_TELL`, never a comfort.
    Raises ValueError if the numbers of faces differ.
    """
    values = np.asarray(distances, np.float64)
    speaks = np.isfinite(values) & calibration.tells
    if strangers is not None:
        if strangers.ndim != 2 or len(strangers) != len(values):
            raise ValueError(f"strangers are {tuple(strangers.shape)}; ({len(values)}, M) is needed")
        near = (np.asarray(strangers, np.float64) <= calibration.other).mean(1)
        speaks &= near <= calibration.config.most_missed
    if readable is not None:
        if len(readable) != len(values):
            raise ValueError(f"there are {len(values)} distances and {len(readable)} answers whether it is a face")
        speaks &= np.asarray(readable, bool)
    return [_word(value, calibration) if said else CANNOT_TELL for value, said in zip(values, speaks, strict=True)]


def _word(distance: float, calibration: Calibration) -> str:
    if distance <= calibration.same:
        return SAME
    return OTHER if distance > calibration.other else MAY_BE


# ---------------------------------------------------------------- how well two kinds of pairs are told apart


class Accepts(NamedTuple):
    """limit: the distance that a share of strangers fall under. share: of genuine pairs under it, with its interval."""

    limit: float
    share: Interval


def true_accepts(genuine: Distances, strangers: Distances, false_accepts: float = 0.01) -> Accepts:
    """The share of genuine pairs under the distance that `false_accepts` of the strangers fall under.

    Raises ValueError if either is empty or not finite, or `false_accepts` is not between 0 and 1.
    """
    if not 0 < false_accepts < 1:
        raise ValueError(f"false_accepts is {false_accepts}; it must lie between 0 and 1")
    own, foreign = _sorted(genuine, "genuine pairs"), _sorted(strangers, "strangers")
    limit = float(np.quantile(foreign, false_accepts))
    return Accepts(limit, wilson_interval(int((own < limit).sum()), len(own)))
