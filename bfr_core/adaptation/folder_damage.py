"""The damage of a run's folder: estimated once over its faces, kept in the run, read by every stage that needs it."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from ..damage.estimate import FolderDamage, InTurn, KnownDamage, estimate_damage
from ..damage.family import photographed
from ..damage.grey import grey_like
from ..damage.light import lit_like
from ..damage.search import closest_damage
from ..damage.statistics import Looks, statistics
from ..damage.synthetic import DESIGN_SIZE
from ..device import autocast, in_batches
from ..diffusion.prior import Prior
from ..diffusion.sampler import denoise_once
from ..faces.sharp_faces import SharpFaces
from ..files.photos import to_signed, to_unit
from ..files.records import fingerprint, read_table, write_json
from ..pixels import resized
from ..randomness import keyed_generator
from ..restorers import Restorer
from ..spread import donors_of, evenly
from ..training.batches import DamageModel
from .faces import FaceSet, StageCallback
from .run import Run
from .targets import TargetConfig

log = logging.getLogger(__name__)

ESTIMATED_FACES, SHARP_COMPARED = 64, 128  # of the folder, and of those that come with the program
COMPARED = 48  # sharp faces by which damages are compared, and of these in a trial of the search, 128 pixels wide:
AT_ONCE_SMALL, MIN_AT_ONCE = 25, 4
TRIALS = 2400
AT_ONCE = 8
CLEARLY_NEARER = 0.8  # of two models of a damage: the distance of the one is below this share of the other's


def folder_damage(
    run: Run,
    faces: FaceSet,
    base: Restorer,
    prior: Prior | None = None,
    config: TargetConfig | None = None,
    callback: StageCallback | None = None,
) -> FolderDamage:
    """The damage of the folder, see `damage.estimate`; read from the run if faces and networks are the same.

    prior, config: one call of the prior at the level config.t_clean takes the noise off the faces before the base sees
    them, so that noise which the base lets through is not taken for detail. Without them the run's own estimate for
    these faces is taken, however it was made, and where there is none the base sees the faces as they are. callback: of
    the stage "examine", the trials of the search; may raise to stop it.
    """
    made_from = fingerprint(faces.fingerprint, base.sha256, SharpFaces(base.size).fingerprint)
    cleaned_by = None
    if prior and config and config.t_clean:
        cleaned_by = [prior.identity, config.t_clean, config.sampler.num_steps]
    found = read_table(run.damage, damage=dict)
    kept = read_damage(run) if found.get("made_from") == made_from else None
    if kept is not None and (config is None or found.get("cleaned_by") == cleaned_by):
        return kept
    lq = faces.read([faces.names[i] for i in evenly(len(faces), ESTIMATED_FACES)])
    restored = restored_for_estimate(lq, base, prior, config)
    damage = estimated(lq, restored, base.size, callback)
    write_json(run.damage, {"made_from": made_from, "cleaned_by": cleaned_by, "damage": damage.as_json()})
    log.info("damage of the folder: %s", described(damage))
    return FolderDamage.from_json(damage.as_json())  # rounded as it is kept, so that a resumed run has the same


def estimated(lq: Tensor, restored: Tensor, size: int, callback: StageCallback | None = None) -> FolderDamage:
    """The damage of the faces `lq` (N, 3, S, S), S = size: its filter and noise, see `damage.estimate`, and the most
    like it in a family, see `damage.search`, if that is the better model, see `likest`. restored: what the base makes
    of the faces."""
    sharp = SharpFaces(size)
    damage = estimate_damage(lq, restored, grey_like(sharp.stacked(SHARP_COMPARED), lq))

    def step(done: int, total: int) -> None:
        if callback:
            callback("examine", done, total, None)

    found = closest_damage(lq, lit_like(sharp.stacked(COMPARED), lq), TRIALS, faces_of_a_trial(size), callback=step)
    log.info("the nearest damage of a camera is at the distance %.2f: %s", found.distance, found.how)
    return likest(replace(damage, photographed=found.how), lq, restored)


def faces_of_a_trial(size: int) -> int:
    """On how many sharp faces, `size` pixels wide, one damage of the search is tried; of larger faces on fewer."""
    return max(MIN_AT_ONCE, round(AT_ONCE_SMALL * min(1.0, (DESIGN_SIZE / size) ** 2)))


def likest(damage: FolderDamage, lq: Tensor, restored: Tensor) -> FolderDamage:
    """`damage` with that of its two models which makes sharp faces look most like the folder's faces `lq`.

    lq, restored: (N, 3, S, S), damaged faces and what the base makes of them. Where the filter with the rests of the
    faces is clearly nearer, `photographed` is None in the result; where neither is, `in_turn` is True.
    """
    if not damage.photographed:
        return damage
    sharp = lit_like(SharpFaces(damage.size).stacked(COMPARED), lq)
    looks = Looks(statistics(lq))
    model = KnownDamage.of(damage, lq, restored)
    donors = donors_of(len(sharp), len(lq))
    rests = [
        model.put_on(face, lq[i], restored[i], key) for key, (face, i) in enumerate(zip(sharp, donors, strict=True))
    ]
    by_filter = looks.distance(statistics(torch.stack(rests)))
    by_camera = looks.distance(statistics(photographed(sharp, damage.photographed, keyed_generator("as the folder's"))))
    log.info("sharp faces with the filter and rests are at a distance of %.3f, by a camera %.3f", by_filter, by_camera)
    if by_filter < CLEARLY_NEARER * by_camera:
        return replace(damage, photographed=None)
    return replace(damage, in_turn=by_camera >= CLEARLY_NEARER * by_filter)


def model_of(damage: FolderDamage, lq: Tensor, restored: Tensor) -> DamageModel:
    """What puts the folder's damage on a sharp face. lq, restored: (N, 3, S, S), donors of the rest, see
    `KnownDamage.of`."""
    if damage.photographed and not damage.in_turn:
        return damage.photographed
    known = KnownDamage.of(damage, lq, restored)
    return InTurn(known, damage.photographed) if damage.photographed else known


@torch.no_grad()
def restored_for_estimate(
    lq: Tensor, base: Restorer, prior: Prior | None = None, config: TargetConfig | None = None
) -> Tensor:
    """What the base makes of the faces `lq` (N, 3, S, S), cleaned by the prior as `config` says; on the CPU."""

    def of(part: slice) -> Tensor:
        some = lq[part]
        if prior is not None and config is not None and isinstance(config.t_clean, int) and config.t_clean:
            with autocast(prior.device, config.precision):
                image = resized(to_signed(some.to(prior.device)), prior.size)
                image = denoise_once(prior, image, config.sampler.num_steps, config.t_clean)
            some = to_unit(resized(image.float(), lq.shape[-1])).cpu()
        return base.restore(some).cpu()

    return torch.cat(list(in_batches(of, len(lq), config.batch_size if config else AT_ONCE)))


def read_damage(run: Run) -> FolderDamage | None:
    """The estimate that the run holds, or None."""
    found = read_table(run.damage, damage=dict)
    try:
        return FolderDamage.from_json(found["damage"]) if "damage" in found else None
    except ValueError:
        log.warning("damage.json: holds no estimate of a folder's damage, and is not used")
        return None


def described(damage: FolderDamage) -> str:
    """In a line: how fine the detail is of which half is left, the noise, and what else is known."""
    kept, noise = damage.kept_to(), f"noise of {255 * damage.noise_level:.1f} of 255"
    if damage.photographed:
        noise += f"; like {damage.photographed.in_words(damage.size)}"
    if kept >= 0.5:
        return f"no detail is lost; {noise}"
    return f"half of the detail is left at {0.5 / kept:.1f} pixels of the {damage.size}-pixel face; {noise}"
