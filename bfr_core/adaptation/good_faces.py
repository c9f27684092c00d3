"""Good faces in a folder of damaged ones: which they are, and what tuning does with them.

A face is taken for good if its crop was not enlarged, its detail is as fine and clean as in a clean face, the prior
finds no noise in it, and the base restorer, whose task is to undo ordinary damage, leaves it as it is. Of a clean face
all of these are true; each damage fails one of them. `benchmarks/album.py` says how often that is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..device import Precision, autocast
from ..diffusion.noise_level import noise_ratio
from ..diffusion.prior import Prior
from ..files.photos import to_signed
from ..metrics.detail import sharpness
from ..metrics.psnr import psnr
from ..pixels import resized
from ..restorers import Restorer

NUM_STEPS, NOISE_INDEX = 250, 2  # the level of noise that clean faces must stay below
MOST_EXAMPLES = 64


@dataclass(frozen=True)
class AlbumConfig:
    """Whether good faces are used, and what they must be like.

    find: take the folder's own good faces for examples instead of adapting to them. good: a folder of good photos, ""
    for none; their faces are examples, too, whatever they are like. real: a folder of good photos of anybody, "" for
    none; the discriminator takes their faces for real, and nothing else is done with them.
    least_sharpness: by `metrics.sharpness`, 1 for an average clean face. most_noise: what the prior takes off, over the
    weakest noise that it is asked for. least_kept: agreement of the face with what the base makes of it, PSNR in dB.
    """

    find: bool = False
    good: str = ""
    real: str = ""
    least_sharpness: float = 0.9
    most_noise: float = 0.6
    least_kept: float = 35.0

    def __post_init__(self) -> None:
        for name in ("least_sharpness", "most_noise", "least_kept"):
            if not getattr(self, name) >= 0:  # also where it is not a number
                raise ValueError(f"album {name} is {getattr(self, name)}; it must be 0 or more")


class Clarity(NamedTuple):
    """What says whether a face is good, see `AlbumConfig`; a number each."""

    sharpness: float
    noise: float
    kept: float


@dataclass(frozen=True)
class Examples:
    """Good faces. files: their crops. fingerprint: of what they were made from, "" if there are none.

    found: name -> what says so, of those that were found in the folder. real, real_fingerprint: the same of those for
    the discriminator alone.
    """

    files: tuple[Path, ...] = ()
    fingerprint: str = ""
    found: dict[str, Clarity] = field(default_factory=dict)
    real: tuple[Path, ...] = ()
    real_fingerprint: str = ""


@torch.no_grad()
def clarity(faces: Tensor, base: Restorer, prior: Prior, precision: Precision = "auto") -> list[Clarity]:
    """faces: (B, 3, S, S) RGB in [0, 1], S the restorer's size. precision: that the prior computes in."""
    restored = base.restore(faces).to(faces.device)
    image = resized(to_signed(faces), prior.size)
    with autocast(prior.device, precision):
        noise = noise_ratio(prior, image.to(prior.device), NUM_STEPS, NOISE_INDEX).float()
    columns = sharpness(faces), noise, psnr(restored, faces)
    return [Clarity(*(round(float(v), 4) for v in values)) for values in zip(*columns, strict=True)]


def is_good(found: Clarity, config: AlbumConfig) -> bool:
    return (
        found.sharpness >= config.least_sharpness
        and found.noise <= config.most_noise
        and found.kept >= config.least_kept
    )
