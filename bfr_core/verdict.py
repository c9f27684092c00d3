"""Did tuning help? Evidence from damaged faces alone, no clean copies: cues per face, for the base and the tuned one.

Every cue compares two restorers on the same held-out faces, which neither was tuned on. None is proof by itself: a
blur agrees with its damaged face, noise looks detailed, and the teacher may be wrong; so they are weighed together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .faces.landmarks import LandmarkNet, landmark_distance, read_aligned
from .lowpass import low_pass
from .metrics import high_band, high_band_correlation, kid_features, psnr

CONSISTENT_AT = 8  # shrinking by this leaves of a 128-pixel face what survives most damage
Restore = Callable[[Tensor], Tensor]


class Cues(NamedTuple):
    """What can be said of restored faces without clean copies; each (B,), most are better when higher.

    consistency: how well the low band agrees with the damaged face, in dB. landmarks: minus the distance from the
    damaged face's landmarks, in eye distances. teacher: PSNR (dB), and teacher_detail: detail correlation, with the
    face's pseudo target. transfer: PSNR (dB), and transfer_detail: detail correlation, with known clean faces that
    were given this face's damage. realism: minus the distance from clean faces in random-convolution features.
    kept: correlation of the detail with the damaged face's. energy: log10 of the detail's energy, over clean faces'.
    """

    consistency: Tensor
    landmarks: Tensor
    teacher: Tensor
    teacher_detail: Tensor
    transfer: Tensor
    transfer_detail: Tensor
    realism: Tensor
    kept: Tensor
    energy: Tensor


class Reference(NamedTuple):
    """Clean faces, (N, 3, S, S) RGB in [0, 1], that stand for what a face looks like; not those under judgement."""

    faces: Tensor
    mean: Tensor
    spread: Tensor
    energy: Tensor


def reference_of(faces: Tensor) -> Reference:
    """The statistics of clean faces (N, 3, S, S) that `gather` compares with; N of 16 or more make sense."""
    features = kid_features(faces)
    energy = high_band(faces).square().mean((1, 2, 3)).log10().mean()
    return Reference(faces, features.mean(0), features.std(0).clamp_min(1e-6), energy)


def transferred(lq: Tensor, targets: Tensor, clean: Tensor) -> Tensor:
    """`clean` faces with the damage of `lq`, as far as it is what `targets` lack: all (B, 3, S, S)."""
    return (clean + lq - targets).clamp(0, 1)


@torch.no_grad()
def gather(restore: Restore, lq: Tensor, targets: Tensor, reference: Reference, net: LandmarkNet) -> Cues:
    """Cues for `restore` on damaged faces `lq` with their pseudo targets, (B, 3, S, S) RGB in [0, 1] both."""
    restored = restore(lq)
    chosen = torch.arange(len(lq)) % len(reference.faces)
    clean = reference.faces[chosen]
    again = restore(transferred(lq, targets, clean))
    error = (low_pass(restored, CONSISTENT_AT) - low_pass(lq, CONSISTENT_AT)).square().mean((1, 2, 3))
    points, own = read_aligned(net, restored).points, read_aligned(net, lq).points
    distance = ((kid_features(restored) - reference.mean) / reference.spread).square().mean(1).sqrt()
    return Cues(
        consistency=-10 * error.clamp_min(1e-8).log10(),
        landmarks=-landmark_distance(points, own),
        teacher=psnr(restored, targets),
        teacher_detail=high_band_correlation(restored, targets),
        transfer=psnr(again, clean),
        transfer_detail=high_band_correlation(again, clean),
        realism=-distance,
        kept=high_band_correlation(restored, lq),
        energy=high_band(restored).square().mean((1, 2, 3)).clamp_min(1e-12).log10() - reference.energy,
    )
