"""Did tuning help? Evidence from damaged faces alone, no clean copies: cues per face, for the base and the tuned one.

Every cue looks at faces of the folder that neither restorer was tuned on. None is proof by itself: a blur agrees with
its damaged face, noise looks detailed, and the teacher may be wrong; so they are weighed together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoints import load_tensors
from .faces.landmarks import LandmarkNet, landmark_distance, read_aligned
from .gate import at_checked_size
from .lowpass import low_pass
from .metrics import high_band, high_band_correlation, kid_features, psnr
from .transplant import transplanted

CONSISTENT_AT = 8  # shrinking by this leaves of a 128-pixel face what survives most damage
USUAL_FILE = Path(__file__).parent / "embedded" / "usual.safetensors"
Restore = Callable[[Tensor], Tensor]


class Usual(NamedTuple):
    """What clean faces of `gate.CHECKED_SIZE` look like, in features that took no part in any training.

    mean, spread: of `metrics.kid_features`, (D,). energy: of the high band, log10, mean over faces.
    """

    mean: Tensor
    spread: Tensor
    energy: Tensor


class Appearance(NamedTuple):
    """What can be said of faces next to their damaged copies; each (B,), better when higher except `energy`.

    consistency: how well the low band agrees with the damaged face, in dB. landmarks: minus the distance from the
    damaged face's landmarks, in eye distances. realism: minus the distance from clean faces in random-convolution
    features. kept: correlation of the detail with the damaged face's. energy: log10 of the detail's energy, over clean
    faces'.
    """

    consistency: Tensor
    landmarks: Tensor
    realism: Tensor
    kept: Tensor
    energy: Tensor


class Agreement(NamedTuple):
    """How near restored faces come to what is wanted; each (B,). fidelity: PSNR in dB. detail: correlation."""

    fidelity: Tensor
    detail: Tensor


class Cues(NamedTuple):
    """Of one restorer on the judged faces. teacher: agreement with their pseudo targets. transfer: with the targets of
    other faces, which were given these faces' damage, so that the answer is known."""

    looks: Appearance
    teacher: Agreement
    transfer: Agreement


def usual_of(faces: Tensor) -> Usual:
    """The statistics of clean faces (N, 3, S, S); hundreds make sense."""
    parts = [(kid_features(some), _energy(some)) for some in at_checked_size(faces).split(64)]
    features = torch.cat([part[0] for part in parts])
    return Usual(features.mean(0), features.std(0).clamp_min(1e-6), torch.cat([part[1] for part in parts]).mean())


def load_usual() -> Usual:
    """The statistics of the faces that the embedded models were trained on."""
    tensors, _ = load_tensors(USUAL_FILE)
    return Usual(**{name: tensors[name].float() for name in Usual._fields})


@torch.no_grad()
def gather(restore: Restore, lq: Tensor, targets: Tensor, usual: Usual, net: LandmarkNet) -> Cues:
    """Cues for `restore` on damaged faces `lq` with their pseudo targets, (B, 3, S, S) RGB in [0, 1] both, B >= 2."""
    restored = restore(lq)
    others = targets.roll(1, 0)
    again = restore(torch.stack([transplanted(*faces) for faces in zip(others, lq, targets, strict=True)]))
    return Cues(look_at(restored, lq, usual, net), agreement(restored, targets), agreement(again, others))


@torch.no_grad()
def look_at(faces: Tensor, lq: Tensor, usual: Usual, net: LandmarkNet) -> Appearance:
    """Looks of `faces`, restored or pseudo targets, next to their damaged copies `lq`: (B, 3, S, S) in [0, 1]."""
    faces, lq = at_checked_size(faces), at_checked_size(lq)
    error = (low_pass(faces, CONSISTENT_AT) - low_pass(lq, CONSISTENT_AT)).square().mean((1, 2, 3))
    return Appearance(
        consistency=-10 * error.clamp_min(1e-8).log10(),
        landmarks=-landmark_distance(read_aligned(net, faces).points, read_aligned(net, lq).points),
        realism=-((kid_features(faces) - usual.mean) / usual.spread).square().mean(1).sqrt(),
        kept=high_band_correlation(faces, lq),
        energy=_energy(faces) - usual.energy,
    )


def agreement(restored: Tensor, wanted: Tensor) -> Agreement:
    """(B, 3, S, S) RGB in [0, 1] both."""
    restored, wanted = at_checked_size(restored), at_checked_size(wanted)
    return Agreement(psnr(restored, wanted), high_band_correlation(restored, wanted))


def _energy(faces: Tensor) -> Tensor:
    return high_band(faces).square().mean((1, 2, 3)).clamp_min(1e-12).log10()
