"""The target checks: which pseudo targets are fit to learn from, judged without clean copies as outliers of the folder.

A target that agrees less with its damaged face than the folder's others do, whose features have moved, or that looks
unlike the other targets, or that became another person is drawn again from other noise, and left out if that does not
help.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..diffusion.low_pass import low_pass
from ..faces.landmarks import LandmarkNet, landmark_distance, load_landmark_net, read_aligned
from ..faces.likeness import OTHER
from ..files.ownership import made_by_hand, sha256_of
from ..files.photos import printable, read_image
from ..files.records import fingerprint, read_table, write_json
from ..metrics.detail import high_band
from ..metrics.kid import kid_features
from ..pixels import resized
from ..restoration.same_person import LikenessMeter
from ..settings import check_settings, setting
from .faces import FaceSet, StageCallback, content_hash, resize_square, write_or_keep
from .run import Run

log = logging.getLogger(__name__)


CHECKED_SIZE = 128  # faces are checked at this size, whatever the restorer's
FINE_SIGMA = 0.7  # pixels; what is finer is noise or the finest detail
MIN_FACES = 8  # the fewest faces from which a folder says what is typical of it
BATCH = 16

Redraw = Callable[[Tensor, list[str], int], Tensor]  # damaged faces, their names, number of the try -> other targets


@dataclass(frozen=True)
class TargetCheckConfig:
    """When a target is refused."""

    tries: int = setting(
        2, "How often a refused target is drawn again, from other noise, before its face is left out.", low=0
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

    likeness: bool = setting(
        True,
        "Whether a target is refused that no longer looks like the person in the photo, where that can be told.",
        label="Refuse targets that became another person",
    )

    def __post_init__(self) -> None:
        check_settings(self, "gate")


class TargetChecks(NamedTuple):
    """Numbers of faces, (B,), of which higher is worse, and whether each can be read.

    low_band: root mean square difference from the damaged face in the low band. moved: landmarks, in eye distances.
    faceless: 1 - score of the face. unlike: distance from the folder's other targets in random-convolution features.
    noisy: log10 of the fine detail where there is least, in the flat parts. stranger: distance to the damaged face,
    like with like, over the distance beyond which it is another person's; 0 where nobody can tell.
    readable: whether the damaged face is plainly a face, bool.
    """

    low_band: Tensor
    moved: Tensor
    faceless: Tensor
    unlike: Tensor
    noisy: Tensor
    stranger: Tensor
    readable: Tensor


REASONS = {
    "low_band": "does not agree with the damaged face in its low band",
    "moved": "has eyes, nose or mouth in another place than the damaged face",
    "faceless": "looks less like a face than it should",
    "unlike": "looks unlike the folder's other targets",
    "noisy": "has noise left in it",
    "stranger": OTHER,
}
RELATIVE = tuple(name for name in REASONS if name != "stranger")  # judged by the folder's others


# Deviations count as at least this, so that a trifle does not stand out among faces that are all alike.
MIN_DEVIATION = {
    "low_band": 0.003,
    "moved": 0.01,
    "faceless": 0.06,
    "unlike": 0.2,
    "noisy": 0.15,
}


class TargetMeasurements(NamedTuple):
    """What `check_targets` needs of a pair: kept instead of the pictures, so that a folder of any size fits."""

    low_band: Tensor
    moved: Tensor
    faceless: Tensor
    features: Tensor
    noisy: Tensor
    stranger: Tensor
    readable: Tensor  # bool: the damaged face is plainly a face to the embedded network


@torch.no_grad()
def measurements_of(
    lq: Tensor, targets: Tensor, net: LandmarkNet, meter: LikenessMeter | None = None
) -> TargetMeasurements:
    """What the checks need to know of each pair of a damaged face and its target.

    lq, targets: (B, 3, S, S) RGB in [0, 1]. meter: measures likeness; without it no target counts as a stranger's.
    """
    stranger = torch.zeros(len(lq))
    for i, one in enumerate(meter.judge(lq, targets)[0] if meter else ()):
        stranger[i] = one.distance / one.other if one.distance is not None and one.other else 0.0
    lq, targets = (at_checked_size(x) for x in (lq, targets))
    error = (low_pass(targets, 8) - low_pass(lq, 8)).square().mean((1, 2, 3)).sqrt()
    own, damaged = read_aligned(net, targets), read_aligned(net, lq)
    moved = landmark_distance(own.points, damaged.points)
    readable = damaged.score > 0.5
    moved = torch.where(readable, moved, torch.zeros_like(moved))  # else its landmarks mean nothing
    return TargetMeasurements(
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


def check_targets(measured: TargetMeasurements, of: TargetMeasurements | None = None) -> TargetChecks:
    """The checks of targets. of: measurements of the whole folder, which say what is typical; by default `measured`."""
    whole = (of or measured).features
    middle, spread = whole.median(0).values, whole.std(0, correction=0).clamp_min(1e-6)
    unlike = ((measured.features - middle) / spread).square().mean(1).sqrt()
    return TargetChecks(
        measured.low_band,
        measured.moved,
        measured.faceless,
        unlike,
        measured.noisy,
        measured.stranger,
        measured.readable,
    )


def refusals(checks: TargetChecks, config: TargetCheckConfig, of: TargetChecks | None = None) -> list[str]:
    """Why each target is refused, or "" if it is not. of: checks of the whole folder; by default `checks`."""
    of = of or checks
    reasons = [""] * len(checks.low_band)
    if not config.limit:
        return reasons
    worst = [config.limit] * len(reasons)
    for name in RELATIVE:
        values, whole = getattr(checks, name), getattr(of, name)
        if name == "moved":
            whole = whole[of.readable]  # the others count as not moved, which says nothing of these
        if len(whole) < MIN_FACES:  # of two faces, one always stands out
            continue
        middle = whole.median()
        # Half of them lie within one median deviation; 1.48 of it is a standard deviation of a normal distribution.
        deviation = (1.4826 * (whole - middle).abs().median()).clamp_min(MIN_DEVIATION[name])
        for i, value in enumerate(((values - middle) / deviation).tolist()):
            if value > worst[i]:
                worst[i] = value
                reasons[i] = f"{REASONS[name]} ({value:.0f} deviations from the folder's median)"
    for i, reason in enumerate(reasons):
        if checks.readable[i] and not reason:
            if checks.faceless[i] > 1 - config.least_score:
                reasons[i] = REASONS["faceless"]
            elif checks.moved[i] > config.most_moved:
                reasons[i] = REASONS["moved"]
        if config.likeness and checks.stranger[i] > 1 and not reasons[i]:
            reasons[i] = REASONS["stranger"]
    return reasons


def joined(parts: list[TargetMeasurements]) -> TargetMeasurements:
    """The measurements of several batches as one."""
    return TargetMeasurements(*(torch.cat(values) for values in zip(*parts, strict=True)))


def as_record(checks: TargetChecks, index: int) -> Mapping[str, float]:
    """The figures of one face, ready for JSON."""
    return {name: round(float(getattr(checks, name)[index]), 5) for name in REASONS}


def at_checked_size(image: Tensor) -> Tensor:
    """`image` (B, 3, S, S) resized to `CHECKED_SIZE`, where faces of all restorers are compared."""
    return resized(image, CHECKED_SIZE, "bilinear")


def checked_targets(
    run: Run,
    faces: FaceSet,
    files: dict[str, Path],
    made_from: str,
    config: TargetCheckConfig,
    redraw: Redraw | None = None,
    callback: StageCallback | None = None,
    record: Path | None = None,
) -> dict[str, Path]:
    """The targets, by face name, that pass the checks; those refused are drawn again where `redraw` is given.

    files: targets by face name. made_from: their fingerprint. Those that were changed by hand always pass. The findings
    of every face are kept in `record`, or else in gate.json, and taken from there when nothing changed. Raises
    ValueError if none passes.
    """
    record = record or run.target_checks
    by_hand = made_by_hand(files)
    fingerprint_value = fingerprint(made_from, sorted(files), asdict(config), redraw is not None, *by_hand)
    found = read_table(record, seen=dict, refused=dict, redrawn=list)
    missing = [name for name in found.get("redrawn", ()) if not (run.redrawn / f"{name}.png").exists()]
    if found.get("fingerprint") != fingerprint_value or missing:
        found = _checked(run, faces, files, by_hand, config, redraw, callback)
        seen = {name: sha256_of(path) for name, path in files.items()}
        places = {name: _place_in(run, files[name]) for name in found["refused"]}  # for the report
        about = {"fingerprint": fingerprint_value, "made_from": made_from, "seen": seen, "places": places}
        write_json(record, about | found)
    accepted = accepted_targets(run, files, made_from, record)
    if len(accepted) < len(files):
        log.warning("%d of %d targets are left out; the report says why", len(files) - len(accepted), len(files))
    if not accepted:
        raise ValueError(
            f"{printable(run.folder)}: none of the {len(files)} targets is fit to learn from: see {record.name}"
        )
    return accepted


def accepted_targets(run: Run, files: dict[str, Path], made_from: str, first: Path | None = None) -> dict[str, Path]:
    """Those of `files` that the checks did not refuse; a file that has changed since they saw it passes.

    first: the record that counts before the other.
    """
    places = sorted((run.target_checks, run.given_checks), key=lambda place: place != first)
    tables = [read_table(place, seen=dict, refused=dict, redrawn=list) for place in places]
    tables.sort(key=lambda found: found.get("made_from") != made_from)  # what was found of these files counts first
    accepted = {}
    for name, path in files.items():
        found = next((found for found in tables if _has_seen(found, name, path, made_from)), {})
        if name not in found.get("refused", {}):
            accepted[name] = run.redrawn / f"{name}.png" if name in found.get("redrawn", ()) else path
    return accepted


def _place_in(run: Run, file: Path) -> str:
    """Where `file` is from the run's folder, which may be moved; the whole path if it is not in it."""
    return file.relative_to(run.folder).as_posix() if file.is_relative_to(run.folder) else str(file.absolute())


def _has_seen(found: dict[str, Any], name: str, path: Path, made_from: str) -> bool:
    """Whether findings are of this target of a face, as it is now."""
    seen = found.get("seen", {})
    return found.get("made_from") == made_from or (name in seen and bool(seen[name] == content_hash(path)))


def _checked(
    run: Run,
    faces: FaceSet,
    files: dict[str, Path],
    by_hand: list[str],
    config: TargetCheckConfig,
    redraw: Redraw | None,
    callback: StageCallback | None,
) -> dict[str, Any]:
    net, names, parts = load_landmark_net(), list(files), []
    meter = LikenessMeter(net.answer.weight.device) if config.limit and config.likeness else None
    done = 0
    for some, lq in faces.batches(BATCH, names):
        targets = torch.stack([resize_square(read_image(files[name]), lq.shape[-1], files[name]) for name in some])
        parts.append(measurements_of(lq, targets, net, meter))
        done += len(some)
        if callback:
            callback("gate", done, len(names), None)
    folder = joined(parts)
    checks = check_targets(folder)
    reasons = dict(zip(names, refusals(checks, config), strict=True)) | dict.fromkeys(by_hand, "")
    records = {name: as_record(checks, i) for i, name in enumerate(names)}
    redrawn = []
    for name in [name for name in names if reasons[name] and redraw]:
        lq = faces.read([name])
        for attempt in range(1, config.tries + 1):
            target = redraw(lq, [name], attempt) if redraw else lq
            again = check_targets(measurements_of(lq, target, net, meter), folder)
            if not refusals(again, config, checks)[0]:
                write_or_keep(run.redrawn / f"{name}.png", target[0])
                records[name], reasons[name] = as_record(again, 0), ""
                redrawn.append(name)
                break
    refused = {name: reason for name, reason in reasons.items() if reason}
    return {"refused": refused, "redrawn": redrawn, "checks": records}
