"""The damage of a run's folder: estimated once over its faces, kept in the run, read by every stage that needs it."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..damage.estimate import FolderDamage, estimate_damage
from ..device import Precision, autocast
from ..diffusion.prior import Prior
from ..diffusion.sampler import denoise_once
from ..faces.sharp_faces import SharpFaces
from ..files.records import fingerprint, read_table, write_json
from ..files.photos import to_signed, to_unit
from ..pixels import resized
from ..restorers import Restorer
from .faces import FaceSet
from .run import Run

log = logging.getLogger(__name__)

ESTIMATED_FACES, SHARP_COMPARED = 64, 128  # of the folder, and of those that come with the program
AT_ONCE = 8


def folder_damage(
    run: Run,
    faces: FaceSet,
    base: Restorer,
    prior: Prior | None = None,
    noise_level: int = 0,
    precision: Precision = "auto",
) -> FolderDamage:
    """The damage of the folder, see `damage.estimate`; found again in run.damage if faces and networks are the same.

    prior, noise_level: one call of the prior at this level (of 250) takes the noise off the faces before the base sees
    them, so that noise which the base lets through is not taken for detail. 0 or no prior: the base sees them as they
    are. Where none is given and the run holds an estimate for these faces, that is taken.
    """
    made_from = fingerprint(faces.fingerprint, base.sha256, SharpFaces(base.size).fingerprint)
    cleaned_by = [prior.sha256, noise_level] if prior and noise_level else None
    found = read_table(run.damage)
    if found.get("made_from") == made_from and (found.get("cleaned_by") == cleaned_by or not cleaned_by):
        try:
            return FolderDamage.from_json(found["damage"])
        except (KeyError, TypeError, ValueError):
            log.warning("damage.json: holds no estimate of the damage; it is made again")
    count = min(ESTIMATED_FACES, len(faces))
    lq = faces.read([faces.names[i * len(faces) // count] for i in range(count)])
    restored = restored_for_estimate(lq, base, prior, noise_level, precision)
    damage = estimate_damage(lq, restored, SharpFaces(base.size).stacked(SHARP_COMPARED))
    write_json(run.damage, {"made_from": made_from, "cleaned_by": cleaned_by, "damage": damage.as_json()})
    return damage


@torch.no_grad()
def restored_for_estimate(
    lq: Tensor, base: Restorer, prior: Prior | None, noise_level: int, precision: Precision = "auto", steps: int = 250
) -> Tensor:
    """What the base makes of the faces `lq` (N, 3, S, S), cleaned by the prior where a level is given; on the CPU."""
    found = []
    for some in lq.split(AT_ONCE):
        if prior is not None and noise_level:
            with autocast(prior.device, precision):
                image = denoise_once(prior, resized(to_signed(some.to(prior.device)), prior.size), steps, noise_level)
            some = to_unit(resized(image.float(), lq.shape[-1])).cpu()
        found.append(base.restore(some).cpu())
    return torch.cat(found)
