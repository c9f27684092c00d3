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
from torch.nn import functional as F

from ..device import Precision, autocast, where_all_works
from ..diffusion.noise_level import noise_ratio
from ..diffusion.prior import Prior
from ..files.photos import to_signed
from ..metrics.measures import psnr, sharpness
from ..restorers import Restorer
from ..settings import check_settings, setting

NUM_STEPS, NOISE_INDEX = 250, 2  # the level of noise that clean faces must stay below
MOST_EXAMPLES = 64


@dataclass(frozen=True)
class AlbumConfig:
    """Whether good faces are used, and what they must be like."""

    find: bool = setting(
        False, "Whether the folder's own good faces serve as examples of what is wanted, instead of being adapted to."
    )
    good: str = setting(
        "", "A folder of good photos of the same people, whose faces serve as examples, whatever they are like."
    )
    real: str = setting(
        "",
        "A folder of good photos of anybody, whose faces the discriminator alone takes for real. "
        "Without one it takes the pseudo targets for real.",
        label="Folder of good faces of anybody",
    )
    least_sharpness: float = setting(
        0.9,
        "A face of the folder is taken for good only if it is at least this sharp; 1 is an average clean face.",
        low=0,
    )
    most_noise: float = setting(
        0.6,
        "A face of the folder is taken for good only if the prior takes no more noise off it than this, as a share of "
        "the weakest noise that it is asked for.",
        low=0,
    )
    least_kept: float = setting(
        35.0,
        "A face of the folder is taken for good only if it agrees at least this well with what the base restorer makes "
        "of it.",
        unit="dB PSNR",
        low=0,
    )

    def __post_init__(self) -> None:
        check_settings(self, "album")


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
    image = to_signed(faces)
    if image.shape[-1] != prior.size:
        size = (prior.size, prior.size)
        image = F.interpolate(where_all_works(image), size, mode="bicubic", antialias=True, align_corners=False)
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
