"""The target stage: settings left to the faces are resolved, targets are drawn or matched, refused ones drawn again."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.prior import Prior
from ..files.ownership import made_by_hand, sha256_of
from ..files.photos import list_images, printable, read_image
from ..files.records import fingerprint, read_table, write_json
from ..files.shards import WHOLE, Shard
from ..files.stages import open_stage, remove
from ..pixels import as_bytes
from ..restorers import Restorer
from ..spread import evenly
from .cleaning import level_by_known_answers
from .config import AdaptConfig
from .faces import FaceSet, StageCallback, content_hash, old_crops, put_aside, resize_square, write_or_keep
from .folder_damage import folder_damage
from .old_runs import list_old_redrawn
from .run import Run
from .target_checks import Redraw, TargetCheckConfig, accepted_targets, checked_targets
from .targets import TargetConfig, draw_in_batches, make_pseudo_targets, resolved_settings, suited_to

log = logging.getLogger(__name__)

EXAMINED_FACES = 16  # faces of a folder from which the settings that are left to them are resolved
RESOLVED = ("t_start", "t_constrain_end", "factor", "calls")  # settings of the sampler
REDRAWN_SEED = 7919  # between the seeds of two tries, so that none has the random numbers of a neighbouring seed


def resolved_target_config(
    run: Run,
    faces: FaceSet,
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: StageCallback | None = None,
) -> TargetConfig:
    """`config` with what is left to the faces resolved from a sample of them; found once, and kept in settled.json.

    It holds as long as half of the sample is unchanged and the number of faces has not more than doubled.
    """
    config = suited_to(config, prior)
    if config.is_resolved:
        return config
    fingerprint_value = fingerprint(restorer.sha256, prior.identity, asdict(config))
    found = read_table(run.resolved_settings)
    if found.get("made_with") != fingerprint_value or not _still_typical(found, faces):

        def step(call: int, calls: int) -> None:
            if callback:
                callback("examine", call, calls, None)

        names = examined(faces)
        lq = faces.read(names)
        clear = resolved_settings(config, lq, restorer, prior, step)
        found = {"made_with": fingerprint_value, "t_clean": clear.t_clean, "detail": clear.detail, "faces": len(lq)}
        found |= {name: getattr(clear.sampler, name) for name in RESOLVED}
        found |= {"of": len(faces), "examined": {n: sha256_of(faces.crop(n)) for n in names}}
        write_json(run.resolved_settings, found)
        log.info(
            "resolved from the faces: %s",
            ", ".join(f"{name} {found[name]}" for name in ("t_clean", "detail", *RESOLVED)),
        )
    sampler = replace(config.sampler, **{name: found[name] for name in RESOLVED})
    return replace(config, sampler=sampler, t_clean=found["t_clean"], detail=found["detail"], search=())


def settled_target_config(
    run: Run,
    faces: FaceSet,
    restorer: Restorer,
    prior: Prior,
    config: AdaptConfig,
    callback: StageCallback | None = None,
) -> TargetConfig:
    """`config.targets` with all that is left to the faces. Where the tuning needs the folder's damage this is estimated
    first, and a `t_clean` that is left to the faces is chosen by it, see `cleaning`; that is kept in settled.json, and
    holds as long as what `resolved_target_config` found: another estimate alone would have all targets drawn anew.
    """
    clear = resolved_target_config(run, faces, restorer, prior, config.targets, callback)
    if not config.finetune.sharp:
        return clear
    damage = folder_damage(run, faces, restorer, prior, clear, callback)
    if config.targets.t_clean != "auto":
        return clear
    found = read_table(run.resolved_settings)
    chosen_with = fingerprint(restorer.sha256, prior.identity, asdict(clear))
    if found.get("chosen_with") != chosen_with:

        def step(done: int, total: int) -> None:
            if callback:
                callback("examine", done, total, None)

        level = level_by_known_answers(damage, faces.read(examined(faces)), restorer, prior, clear, step)
        found |= {"chosen_with": chosen_with, "chosen_t_clean": level}
        write_json(run.resolved_settings, found)
        log.info("t_clean by known answers: %d (by the noise: %s)", level, clear.t_clean)
    return replace(clear, t_clean=found["chosen_t_clean"])


def examined(faces: FaceSet) -> list[str]:
    """Names of the faces, evenly over all, from which settings are resolved."""
    return [faces.names[i] for i in evenly(len(faces), EXAMINED_FACES)]


def _still_typical(found: dict[str, Any], faces: FaceSet) -> bool:
    """Whether what was resolved from a sample of the faces still holds for all of them."""
    examined, names = found.get("examined", {}), set(faces.names)
    there = [n for n, sha256 in examined.items() if n in names and content_hash(faces.crop(n)) == sha256]
    return 2 * len(there) >= len(examined) > 0 and len(faces) <= 2 * found["of"]


def target_key(crop: Path, name: str, restorer: Restorer, prior: Prior, config: TargetConfig) -> str:
    """Fingerprint of everything that a face's target depends on, which the number of faces in a batch is not."""
    settings = asdict(config) | {"batch_size": 0}
    return fingerprint(sha256_of(crop), name, restorer.sha256, prior.identity, settings)


def targets_fingerprint(faces: FaceSet, files: dict[str, Path]) -> str:
    """Fingerprint of faces and of what their targets hold."""
    return fingerprint(faces.fingerprint, [(name, sha256_of(files[name])) for name in faces.names if name in files])


def draw_targets(
    run: Run,
    faces: FaceSet,
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: StageCallback | None = None,
) -> str:
    """Write restored faces and pseudo targets of every face to run.restored and run.targets, one batch at a time.

    Only those are drawn that are missing, or whose face, networks or settings changed; one that was changed by hand is
    kept, used and named. A batch counts as drawn once all of it is on disk, so that a stage that was interrupted draws
    the same batches and the same targets. Returns the fingerprint of all targets.
    """
    computed = {"computed_in": restorer.at_precision(config.precision).precision}
    run.record("targets", asdict(config) | computed | {"restorer": restorer.name, "prior": prior.name})
    _draw(run, faces, restorer, prior, config, callback)
    fingerprint_value = targets_fingerprint(faces, {name: run.targets / f"{name}.png" for name in faces.names})
    marker = run.targets / "stage.json"
    write_json(marker, read_table(marker) | {"fingerprint": fingerprint_value})
    remove(path for path in _markers(run) if path.name != "stage.json")  # of shards, whose lines stage.json has now
    return fingerprint_value


def draw_shard(
    run: Run,
    faces: FaceSet,
    restorer: Restorer,
    prior: Prior,
    config: AdaptConfig,
    shard: Shard,
    callback: StageCallback | None = None,
) -> int:
    """The part of `make_targets` that other processes need not wait for: the targets of a part of the faces.

    The parts are cut at whole batches, so that together they draw what one process would draw. Once all parts are
    there, `make_targets` finds nothing left to draw, and checks them. Returns the number of this part's targets.
    """
    clear = settled_target_config(run, faces, restorer, prior, config, callback)
    return len(_draw(run, faces, restorer, prior, clear, callback, shard))


def _draw(
    run: Run,
    faces: FaceSet,
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: StageCallback | None,
    shard: Shard = WHOLE,
) -> dict[str, str]:
    """Draw the missing targets of a part; returns the key of each that is there, by face name, see `target_key`."""
    for folder in (run.restored, run.targets):
        open_stage(folder, old_crops(run))
    list_old_redrawn(run)
    marker = run.targets / f"stage{shard.suffix}.json"
    made, crops, _ = _drawn_by_now(run)
    own = shard.of(faces.names, config.batch_size)
    keys = {n: target_key(faces.crop(n), n, restorer, prior, config) for n in own}
    files = {n: run.targets / f"{n}.png" for n in own}
    by_hand = made_by_hand({n: path for n, path in files.items() if path.exists()})
    for name in (former := _of_former_crops(faces, crops, by_hand, by_hand)):
        put_aside(files[name], "its face has changed since")
    by_hand = [name for name in by_hand if name not in former]
    for name in by_hand:
        log.warning("targets/%s.png: was changed by hand; it is kept and used", printable(name))
    missing = [n for n in own if n not in by_hand and not (made.get(n) == keys[n] and files[n].exists())]
    if changed_ := sum(n in made and files[n].exists() for n in missing):
        log.info("targets/: %d are drawn anew, because faces, networks or settings changed", changed_)
    made = _without_strays(run, made, faces) if shard.is_whole else {n: made[n] for n in own if n in made}
    undrawn = set(missing)  # what lies there for these was drawn from what they were before, or with other settings
    crops |= {n: crop_mark(faces, n) for n in own if n not in undrawn}

    def mark() -> None:
        drawn_from = {n: crops.get(n, "") for n in (*made, *by_hand)}
        waiting = [n for n in missing if n in undrawn]
        write_json(marker, {"made": made, "crops": drawn_from, "waiting": waiting, "prior": origin_of(prior)})

    mark()
    calls = config.sampler.network_calls
    total, there = len(own) * calls, len(own) - len(missing)

    def step(call: int, calls: int, preview: Tensor) -> None:
        if callback:
            callback("targets", there * calls + call, total, preview)

    done, batches = there, faces.batches(config.batch_size, missing)
    for names, drawn in draw_in_batches(batches, restorer, prior, config, step):
        if not made.keys().isdisjoint(names):  # cut off while they are written, they are neither these nor those
            made = {n: key for n, key in made.items() if n not in names}
            mark()
        for name, restored, target in zip(names, *drawn, strict=True):
            write_or_keep(run.restored / f"{name}.png", restored)
            write_or_keep(files[name], target)
        made |= {n: keys[n] for n in names}
        crops |= {n: crop_mark(faces, n) for n in names}
        undrawn -= set(names)
        mark()
        done += len(names)
        if callback:
            callback("targets", done * calls, total, None)
    if callback and not missing:
        callback("targets", total, total, None)
    return made


def _of_former_crops(
    faces: FaceSet, crops: Mapping[str, str], names: Iterable[str], by_hand: Container[str]
) -> list[str]:
    """Those of the names whose target is of what the face's crop was before.

    crops: `crop_mark` of what each target is of. by_hand: names of targets that were changed by hand; these stay where
    the crop was changed by hand, too.
    """
    former = [n for n in names if crops.get(n) and crops[n] != crop_mark(faces, n)]
    together = made_by_hand({n: faces.crop(n) for n in former if n in by_hand})
    return [n for n in former if n not in together]


def crop_mark(faces: FaceSet, name: str) -> str:
    """What the crop of a face holds, in few letters: they are written for every face after every batch."""
    return content_hash(faces.crop(name))[:16]


def origin_of(prior: Prior) -> dict[str, str]:
    """What a restorer's metadata say of the prior whose targets it learned from."""
    return {"prior": prior.name, "prior_sha256": prior.sha256, "prior_licence": prior.licence}


def drawn_by(run: Run) -> dict[str, str]:
    """`origin_of` the prior that drew the run's targets; {} where that is not known, as in runs of before."""
    return read_table(run.targets / "stage.json", prior=dict).get("prior", {})


def _drawn_by_now(run: Run) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """Of the targets that the run and its shards drew: their `target_key` and `crop_mark`, by face name; and the faces
    whose target was still to be drawn with the last settings."""
    made: dict[str, str] = {}
    crops: dict[str, str] = {}
    waiting: set[str] = set()
    for path in _markers(run):
        found = read_table(path, made=dict, crops=dict, waiting=list)
        made |= found.get("made", {})
        crops |= found.get("crops", {})
        waiting |= set(found.get("waiting", []))
    return made, crops, waiting


def _markers(run: Run) -> list[Path]:
    """The files that say from what each target was drawn, of the run and of shards, the one written last at the end."""
    found = [path for pattern in ("stage.json", "stage-*-of-*.json") for path in run.targets.glob(pattern)]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def _without_strays(run: Run, made: dict[str, str], faces: FaceSet) -> dict[str, str]:
    """`made` less the targets of faces that are no longer in the photos, which are deleted; those left out stay, and
    those whose crop is kept because their photo cannot be read now."""
    found = read_table(run.faces / "faces.json", faces=list).get("faces", [])
    known = {face["name"] for face in found} | set(faces.names) | {n for n in made if faces.crop(n).is_file()}
    strays = [name for name in made if name not in known]
    folders = (run.restored, run.targets, run.redrawn)
    for name in made_by_hand({n: path for n in strays if (path := run.targets / f"{n}.png").exists()}):
        put_aside(run.targets / f"{name}.png", "its face is gone")
    remove(folder / f"{name}.png" for name in strays for folder in folders)
    return {name: key for name, key in made.items() if name in known}


def make_targets(
    run: Run,
    faces: FaceSet,
    restorer: Restorer,
    prior: Prior,
    config: AdaptConfig,
    callback: StageCallback | None = None,
) -> tuple[dict[str, Path], str]:
    """The whole stage: settings left to the faces are resolved, targets drawn, checked, and if refused drawn again.

    Returns the targets that passed, by face name, and the fingerprint of them all.
    """
    record_asked(run, config)
    clear = settled_target_config(run, faces, restorer, prior, config, callback)
    made_from = draw_targets(run, faces, restorer, prior, clear, callback)
    redraw = keep_redraws(run, faces, restorer, prior, clear, redraw_with(restorer, prior, clear, callback))
    return checked_targets(run, faces, targets_of(run, faces), made_from, config.gate, redraw, callback), made_from


def record_asked(run: Run, config: AdaptConfig) -> None:
    """Keep in the run what was asked for, beside what its stages record of what is resolved of it."""
    run.record("recipe", {"name": config.recipe, "real": config.album.real})
    run.record("asked", {name: asdict(getattr(config, name)) for name in ("targets", "gate", "album", "people")})


def redraw_with(
    restorer: Restorer, prior: Prior, config: TargetConfig, callback: StageCallback | None = None
) -> Redraw:
    """(damaged faces, their names, number of the try) -> targets from other noise than `config.seed` gives."""

    def step(call: int, calls: int, preview: Tensor) -> None:
        if callback:
            callback("redraw", call, calls, preview)

    def redraw(lq: Tensor, names: list[str], attempt: int) -> Tensor:
        other = replace(config, seed=config.seed + REDRAWN_SEED * attempt)
        return make_pseudo_targets(lq, names, restorer, prior, other, step).pseudo_target

    return redraw


def keep_redraws(
    run: Run, faces: FaceSet, restorer: Restorer, prior: Prior, config: TargetConfig, redraw: Redraw
) -> Redraw:
    """`redraw`, whose targets are kept in tries/ of run.redrawn and not drawn again."""
    folder = run.redrawn / "tries"
    drawn: dict[str, str] = read_table(folder / "tries.json")

    def kept(lq: Tensor, names: list[str], attempt: int) -> Tensor:
        for face, name in zip(lq, names, strict=True):
            path = folder / f"{name}_{attempt}.png"
            key = target_key(faces.crop(name), name, restorer, prior, config)
            if drawn.get(path.stem) != key or not path.exists():
                if drawn.pop(path.stem, None):
                    write_json(folder / "tries.json", drawn)
                write_or_keep(path, redraw(face[None], [name], attempt)[0])
                drawn[path.stem] = key
                write_json(folder / "tries.json", drawn)
        return torch.stack([read_image(folder / f"{name}_{attempt}.png") for name in names])

    return kept


def check_given(
    run: Run,
    faces: FaceSet,
    files: dict[str, Path],
    config: TargetCheckConfig,
    callback: StageCallback | None = None,
) -> tuple[dict[str, Path], str]:
    """The stage for targets that were made elsewhere, which cannot be drawn again: those that pass the checks.

    files: targets by face name. Returns what `make_targets` does. Raises ValueError if none passes.
    """
    made_from = targets_fingerprint(faces, files)
    return checked_targets(run, faces, files, made_from, config, None, callback, run.given_checks), made_from


def made_targets(run: Run, faces: FaceSet) -> tuple[dict[str, Path], str]:
    """What `make_targets` returned when it filled the run, less the targets of faces that have changed since.

    Faces without a target are named. Raises ValueError if the run holds no target of its faces.
    """
    drawn = targets_of(run, faces)
    _, crops, waiting = _drawn_by_now(run)
    by_hand = made_by_hand(drawn)
    if behind := [n for n in drawn if n in waiting and n not in by_hand]:
        log.warning("the drawing of targets was stopped: those of %d faces are of other settings", len(behind))
        drawn = {n: path for n, path in drawn.items() if n not in behind}
    former = _of_former_crops(faces, crops, drawn, by_hand)
    for name in former:
        log.warning("%s: has changed since its target was drawn; it is left out", printable(faces.label(name)))
        del drawn[name]
    if missing := [faces.label(n) for n in faces.names if n not in drawn and n not in former]:
        some = ", ".join(map(printable, missing[:3])) + (", ..." if len(missing) > 3 else "")
        log.warning("%d of %d faces have no target and are left out (%s)", len(missing), len(faces), some)
    if former or missing:
        log.warning(
            "making the run's targets again draws those that are missing (on a command line: bfr targets --run %s)",
            printable(run.folder),
        )
    if not drawn:
        raise ValueError(
            f"{printable(run.folder)}: holds no targets of its faces; make them first (on a command line: bfr "
            "targets --run ...)"
        )
    made_from = targets_fingerprint(faces, drawn)
    return accepted_targets(run, drawn, made_from), made_from


def match_targets(faces: FaceSet, folder: Path) -> dict[str, Path]:
    """Images of `folder` by the face they belong to: a target has the name of its crop, in any image format.

    In a run's folder of targets the one that was drawn again counts where the run learns from it. Raises ValueError if
    none matches; what does not match is logged.
    """
    found: dict[str, Path] = {}
    redrawn = folder / "redrawn" if (folder / "stage.json").is_file() else None
    checks = read_table(Run(folder.parent).target_checks, redrawn=list) if redrawn else {}
    files = [file for file in list_images(folder) if redrawn is None or redrawn / "tries" not in file.parents]
    for file in sorted(files, key=lambda file: file.parent != redrawn):
        if file.parent != redrawn or file.stem in checks.get("redrawn", [file.stem]):
            found.setdefault(file.stem, file)
    matched = {name: found[name] for name in faces.names if name in found}
    if not matched:
        example = printable(faces.names[0])
        raise ValueError(f"{printable(folder)}: no target has the name of a face; one would be {example}.png")
    if len(matched) < len(faces):
        log.warning("%d of %d faces have no target and are left out", len(faces) - len(matched), len(faces))
    return matched


def match_in_order(run: Run, faces: FaceSet, targets: Sequence[Tensor] | Tensor, first: int = 0) -> dict[str, Path]:
    """Pictures (3, N, N) RGB in [0, 1] of the faces from number `first` on, kept in run.given as their targets.

    Returns all that the run holds by now, by face name. Those given before stay, unless the crop of their face has
    changed since. Raises ValueError for more pictures than faces from there on, or for pictures that are not square.
    """
    if not 0 <= first <= len(faces) - len(targets):
        raise ValueError(
            f"{len(targets)} targets from face {first} on were given, but there are {len(faces)} faces; "
            "give one picture for each face, in their order"
        )
    forget_given(run, faces)
    for name, target in zip(faces.names[first:], targets, strict=False):
        path = run.given / f"{name}.png"
        pixels = resize_square(target, target.shape[-1], path)
        if not (path.exists() and torch.equal(read_image(path), as_bytes(pixels).float() / 255)):
            write_or_keep(path, pixels)  # a picture that is there already keeps its time, and a tuning on it goes on
    return {name: path for name in faces.names if (path := run.given / f"{name}.png").exists()}


def forget_given(run: Run, faces: FaceSet) -> None:
    """Open run.given, and delete the targets in it of those faces whose crop has changed since they were given."""
    open_stage(run.given, old_crops(run))
    marker = run.given / "stage.json"
    found = read_table(marker, crops=dict)
    now = {name: crop_mark(faces, name) for name in faces.names}
    unmarked = now if found.get("fingerprint") == faces.fingerprint else {}  # by a version that kept no marks
    crops = found.get("crops", unmarked)
    former = [name for name in faces.names if crops.get(name) != now[name] and (run.given / f"{name}.png").exists()]
    for name in former:
        log.warning("%s: has changed since its target was given; give its target again", printable(faces.label(name)))
    remove(run.given / f"{name}.png" for name in former)
    write_json(marker, {"crops": crops | now})


def targets_of(run: Run, faces: FaceSet) -> dict[str, Path]:
    """Pseudo targets drawn in this run, by face name. Raises ValueError if there are none."""
    found = {name: run.targets / f"{name}.png" for name in faces.names}
    found = {name: path for name, path in found.items() if path.exists()}
    if not found:
        raise ValueError(
            f"{printable(run.folder)}: holds no targets yet; make them first (on a command line: bfr targets --run ...)"
        )
    return found
