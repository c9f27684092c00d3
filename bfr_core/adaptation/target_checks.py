"""The gate: which pseudo targets are fit to learn from. Judged without clean copies, by what stands out in the folder.

A target that agrees less with its damaged face than the folder's others do, whose features have moved, or that looks
unlike the other targets is drawn again from other noise, and left out if that does not help.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import where_all_works
from ..diffusion.low_pass import low_pass
from ..faces.arcface import Recognise, likeness
from ..faces.landmarks import LandmarkNet, landmark_distance, read_aligned
from ..metrics.measures import high_band, kid_features
from ..settings import check_settings, setting

CHECKED_SIZE = 128  # faces are checked at this size, whatever the restorer's
FINE_SIGMA = 0.7  # pixels; what is finer is noise or the finest detail
FEWEST = 8  # faces from which a folder says what is usual in it


@dataclass(frozen=True)
class GateConfig:
    """When a target is refused."""

    tries: int = setting(
        2, "How many further draws, from other noise, a refused target gets before its face is left out.", low=0
    )
    limit: float = setting(
        4.0,
        "A target is refused if it stands out from the folder's others by more than this: its face has moved, is no "
        "face, or does not agree with the damaged one. 0 refuses none.",
        unit="robust standard deviations",
        low=0,
        label="Strictness",
    )
    least_score: float = setting(
        0.1,
        "A target is refused if the embedded face network scores it lower than this, where the network plainly takes "
        "the damaged face for one.",
        low=0,
    )
    most_moved: float = setting(
        0.25,
        "A target is refused if its landmarks moved farther than this from those of the damaged face, where the "
        "network plainly takes that for a face.",
        unit="distances between the eyes",
        low=0,
    )

    def __post_init__(self) -> None:
        check_settings(self, "gate")


class Checks(NamedTuple):
    """One number a face, (B,), higher is worse.

    low_band: root mean square difference from the damaged face in the low band. moved: landmarks, in eye distances.
    faceless: 1 - score of the face. unlike: distance from the folder's other targets in random-convolution features.
    noisy: log10 of the fine detail where there is least, in the flat parts. stranger: 1 - likeness to the damaged face,
    0 where there is no face recogniser.
    """

    low_band: Tensor
    moved: Tensor
    faceless: Tensor
    unlike: Tensor
    noisy: Tensor
    stranger: Tensor
    readable: Tensor


SAID = {
    "low_band": "does not agree with the damaged face in its low band",
    "moved": "eyes, nose or mouth have moved",
    "faceless": "looks less like a face",
    "unlike": "looks unlike the folder's other targets",
    "noisy": "has noise left in it",
    "stranger": "is less like the same person",
}


# Deviations are taken for at least this: faces that are all alike must not make a trifle stand out.
LEAST_DEVIATION = {
    "low_band": 0.003,
    "moved": 0.01,
    "faceless": 0.06,
    "unlike": 0.2,
    "noisy": 0.15,
    "stranger": 0.05,
}


class Looks(NamedTuple):
    """What `checks_of` needs of a pair: kept instead of the pictures, so that a folder of any size fits."""

    low_band: Tensor
    moved: Tensor
    faceless: Tensor
    features: Tensor
    noisy: Tensor
    stranger: Tensor
    readable: Tensor  # bool: the damaged face is plainly a face to the embedded network


@torch.no_grad()
def look_at(lq: Tensor, targets: Tensor, net: LandmarkNet, recogniser: Recognise | None = None) -> Looks:
    """lq, targets: (B, 3, S, S) RGB in [0, 1] -> what the checks need of them."""
    stranger = 1 - likeness(recogniser(targets), recogniser(lq)) if recogniser else torch.zeros(len(lq))
    lq, targets = (at_checked_size(x) for x in (lq, targets))
    error = (low_pass(targets, 8) - low_pass(lq, 8)).square().mean((1, 2, 3)).sqrt()
    own, damaged = read_aligned(net, targets), read_aligned(net, lq)
    moved = landmark_distance(own.points, damaged.points)
    readable = damaged.score > 0.5
    moved = torch.where(readable, moved, torch.zeros_like(moved))  # else its landmarks mean nothing
    return Looks(
        error.cpu(),
        moved.cpu(),
        1 - own.score.cpu(),
        kid_features(targets).cpu(),
        flat_noise(targets).cpu(),
        stranger,
        readable.cpu(),
    )


def flat_noise(faces: Tensor) -> Tensor:
    """log10 of the absolute high band that a quarter of the pixels stay below: (B, 3, S, S) in [0, 1] -> (B,).

    Edges and hair lie above; skin and background without noise lie far below.
    """
    fine = high_band(faces.mean(1, keepdim=True), FINE_SIGMA).abs().flatten(1)
    return fine.quantile(0.25, dim=1).clamp_min(1e-5).log10()


def checks_of(looks: Looks, of: Looks | None = None) -> Checks:
    """Checks of `looks`; of: the folder's looks that say what is usual, these themselves if left out."""
    usual = (of or looks).features
    middle, spread = usual.median(0).values, usual.std(0, correction=0).clamp_min(1e-6)
    unlike = ((looks.features - middle) / spread).square().mean(1).sqrt()
    return Checks(looks.low_band, looks.moved, looks.faceless, unlike, looks.noisy, looks.stranger, looks.readable)


def refusals(checks: Checks, config: GateConfig, of: Checks | None = None) -> list[str]:
    """Why each target is refused, or "" if it is not. of: checks of the whole folder, these if left out."""
    of = of or checks
    reasons = [""] * len(checks.low_band)
    if not config.limit:
        return reasons
    worst = [config.limit] * len(reasons)
    usual_checks = SAID if len(of.low_band) >= FEWEST else {}  # of two faces, one always stands out
    for name, said in usual_checks.items():
        values, usual = getattr(checks, name), getattr(of, name)
        middle = usual.median()
        # Half of them lie within one median deviation; 1.48 of it is a standard deviation of a normal distribution.
        deviation = (1.4826 * (usual - middle).abs().median()).clamp_min(LEAST_DEVIATION[name])
        for i, value in enumerate(((values - middle) / deviation).tolist()):
            if value > worst[i]:
                worst[i] = value
                reasons[i] = f"{said} ({value:.0f} deviations from the folder's median)"
    for i, reason in enumerate(reasons):
        if checks.readable[i] and not reason:
            if checks.faceless[i] > 1 - config.least_score:
                reasons[i] = SAID["faceless"]
            elif checks.moved[i] > config.most_moved:
                reasons[i] = SAID["moved"]
    return reasons


def joined(parts: list[Looks]) -> Looks:
    """The looks of several batches as one."""
    return Looks(*(torch.cat(values) for values in zip(*parts, strict=True)))


def as_record(checks: Checks, index: int) -> Mapping[str, float]:
    """The figures of one face, ready for JSON."""
    return {name: round(float(getattr(checks, name)[index]), 5) for name in SAID}


def at_checked_size(image: Tensor) -> Tensor:
    """`image` (B, 3, S, S) resized to `CHECKED_SIZE`, where faces of all restorers are compared."""
    if image.shape[-1] == CHECKED_SIZE:
        return image
    size = (CHECKED_SIZE, CHECKED_SIZE)
    resized = F.interpolate(where_all_works(image), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.to(image.device)
