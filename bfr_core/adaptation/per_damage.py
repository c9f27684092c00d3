"""Adapt to a folder whose photos do not share one damage: groups are found, and each gets an adaptation of its own."""

from __future__ import annotations

import glob
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..damage.grey import given_to_restorer
from ..damage.groups import KNOWN_FACES, DamageGroups, describe, known_descriptions, one_damage, units_of
from ..diffusion.prior import Prior, load_prior
from ..files.ownership import delete, is_own, sha256_of
from ..files.photos import replace_atomically
from ..files.records import fingerprint
from ..files.stages import open_stage, remove, say_kept
from ..files.tensors import load_tensors, save_tensors
from ..reports.html import VERDICTS, Gallery, ReportData, Table, Verdict, write_report
from ..restoration.same_person import FaceLikeness
from ..restorers import Restorer, load_restorer, save_restorer
from ..restorers.load import metadata_in
from ..restorers.routed import keep_members, read_groups, save_groups, tensors_of
from ..spread import evenly
from ..training.batches import split
from ..training.checkpoint import TuningProgress
from .adapt import Adapted, Before, adapt
from .config import AdaptConfig
from .faces import FaceSet, StageCallback, collect_faces
from .good_faces import Examples, take_good_faces
from .people import find_people_if_few, known_people, people_lines
from .report import account_notes, likeness_tables
from .run import Run
from .same_person import NOT_MEASURED, FolderLikeness
from .target_stage import record_asked
from .tuning import learned_from
from .verdict import Judgement

log = logging.getLogger(__name__)

BATCH = 16
ROWS = 6  # faces of a group that the report shows
ORIGIN = tuple(f"{what}{end}" for what in ("base", "prior") for end in ("", "_sha256", "_licence"))
ONE_DAMAGE = "Only one kind of damage was found: one adaptation serves all faces."
VERSION = 2  # of the descriptions; another one makes groups that were kept be found anew


@dataclass(frozen=True)
class Group:
    """Faces that share a damage, and their adaptation. shown: its gallery in the report, of the faces shown_names.

    likeness: by the base and by the restorer of this group, whether it is adopted or not.
    """

    run: Run
    names: list[str]
    judgement: Judgement
    progress: TuningProgress
    shown: Gallery = field(default_factory=lambda: Gallery("", "", [], []))
    shown_names: list[str] = field(default_factory=list)
    likeness: FolderLikeness = field(default_factory=FolderLikeness)

    @property
    def adopted(self) -> bool:
        """Whether its own restorer serves it: where that is to be adopted, or where nothing was to judge it."""
        return self.judgement.verdict in ("adopt", "not_judged")


@dataclass(frozen=True)
class Mixed:
    """Result of `adapt_mixed`. left: names of faces that are in no group. whole: if there is one damage only, the usual
    adaptation to all of them, which has no groups."""

    run: Run
    groups: list[Group]
    left: list[str]
    whole: Adapted | None = None

    @property
    def verdict(self) -> Verdict:
        said = {group.judgement.verdict for group in self.groups}
        return "adopt" if "adopt" in said else "not_judged" if "not_judged" in said else "keep_base"

    @property
    def likeness(self) -> FolderLikeness:
        """Of the faces in groups: by the base, and by what serves each, the base where its group is not adopted."""
        base: dict[str, FaceLikeness] = {}
        served: dict[str, FaceLikeness] = {}
        for group in self.groups:
            base |= group.likeness.base
            served |= group.likeness.adapted if group.adopted else group.likeness.base
        return FolderLikeness(base, served, sum(len(group.names) for group in self.groups) + len(self.left))

    def lines(self) -> list[str]:
        """The verdict on each group, a line each, and how many faces are in none."""
        said = [
            f"group {i}: {len(g.names)} faces, {VERDICTS[g.judgement.verdict].lower()}: {g.judgement.sentence}"
            for i, g in enumerate(self.groups, 1)
        ]
        return [*said, f"{len(self.left)} faces belong to no group and keep the base"]


def adapt_mixed(
    folder: Path,
    run_dir: Path,
    config: AdaptConfig,
    callback: StageCallback | None = None,
    device: str = "cpu",
    restorer: Restorer | None = None,
    before: Before | None = None,
) -> Mixed:
    """One adaptation for each group of faces that share a damage; everything is kept in `run_dir`, and resumed from it.

    A face that belongs to no group, and a group whose adaptation is not to be adopted, keep the base. Where no face is
    held out, nothing judges the adaptations, and each group has its own.
    `groups.safetensors` restores with all of them. config.finetune.minutes is shared among the groups. Arguments and
    errors as in `adaptation.adapt`.
    """
    if config.album.find:
        raise ValueError("album cannot be used with mixed: good faces are a group of their own; give them by good")
    run = Run(run_dir)
    base = (restorer or load_restorer(config.restorer)).to(device)
    with run.locked():
        faces = collect_faces(Path(folder), run, base.size, config.faces, callback, base.device)
        if result := adapt_groups(run, faces, config, base, callback=callback, before=before):
            return result
    return Mixed(run, [], [], adapt(folder, run_dir, config, callback, device, base, before=before))


def adapt_groups(
    run: Run,
    faces: FaceSet,
    config: AdaptConfig,
    base: Restorer,
    prior: Prior | None = None,
    callback: StageCallback | None = None,
    pause_after: float = 0.0,
    before: Before | None = None,
) -> Mixed | None:
    """`adapt_mixed` for faces that are in the run already, which the caller has locked; None if there is one damage.

    base, prior: config.restorer and, if it is loaded already, config.prior. callback: also ("group", i, count, None)
    before the stages of each. pause_after: as in `finetune`, in minutes, shared among the groups.
    """
    groups, routes = group_faces(run, faces, base, callback)
    if one_damage(groups):
        log.info(ONE_DAMAGE)
        return None
    named = [[name for name, route in zip(faces.names, routes, strict=True) if route == i] for i in range(len(groups))]
    log.info("groups: %s", ", ".join(f"{len(names)} faces" for names in named))
    if config.people.find:
        find_people_if_few(run, faces, config.people, callback)
    prior = prior or load_prior(config.prior)
    _, good = take_good_faces(run, faces, base, prior, config, callback)
    made_with = {"restorer": base.name, "prior": prior.name}
    record_asked(run, config)
    run.record("targets", asdict(config.targets) | made_with)
    run.record("finetune", asdict(config.finetune) | made_with | {"groups": len(named)})
    minutes = config.finetune.minutes / len(named)
    own = replace(config, faces=replace(config.faces, aligned=True), finetune=replace(config.finetune, minutes=minutes))
    own = replace(own, people=replace(own.people, find=False))  # somebody may be in several groups
    done, former = [], run.folder / "groups" / "former"
    if is_own(run.groups):  # of an earlier adaptation
        with suppress(ValueError, FileNotFoundError):  # it cannot be read, and there is nothing to keep
            keep_members(run.groups, former)
    for i, names in enumerate(named, 1):
        if callback:
            callback("group", i, len(named), None)
        how = (own, base, prior, callback, pause_after / len(named), before, good)
        done.append(adapt_group(run.of_group(i), faces, names, *how))
    result = Mixed(run, done, [name for name, route in zip(faces.names, routes, strict=True) if route < 0])
    origin = write_groups(result, groups, base)
    say_kept(delete(former))
    report_mixed(result, faces, base, origin)
    return result


def group_faces(
    run: Run, faces: FaceSet, base: Restorer, callback: StageCallback | None = None
) -> tuple[DamageGroups, list[int]]:
    """The groups of damages among `faces`, and for each face its group, -1 for none; kept in the run's groups/.

    A face is described as the restorer is given it, so that it finds its group again when its photo is restored.
    """
    kept = run.folder / "groups" / "found.safetensors"
    fingerprint_value = fingerprint(VERSION, faces.fingerprint, base.sha256)
    if kept.exists():
        tensors, metadata = load_tensors(kept)
        routes = tensors.pop("routes", torch.empty(0)).tolist()
        if metadata.get("fingerprint") == fingerprint_value and len(routes) == len(faces):
            return read_groups(kept, tensors), routes
    sample = set(evenly(len(faces), KNOWN_FACES))
    described: list[Tensor] = []
    restored: list[Tensor] = []
    done = 0
    for _, crops in faces.batches(BATCH):
        lq = torch.stack([given_to_restorer(crop) for crop in crops])
        new = base.restore_each(lq)
        described.append(describe(lq, new))
        restored += [face for i, face in enumerate(new, done) if i in sample]
        done += len(lq)
        if callback:
            callback("groups", done, len(faces), None)
    units = units_of(known_descriptions(torch.stack(restored), base.restore_each))
    groups = DamageGroups.of(torch.cat(described), units)
    routes = groups.route(torch.cat(described))
    save_tensors(kept, tensors_of(groups) | {"routes": torch.tensor(routes)}, {"fingerprint": fingerprint_value})
    return groups, routes


def adapt_group(
    run: Run,
    faces: FaceSet,
    names: list[str],
    config: AdaptConfig,
    base: Restorer,
    prior: Prior,
    callback: StageCallback | None,
    pause_after: float,
    before: Before | None = None,
    good: Examples | None = None,
) -> Group:
    """The usual adaptation, in a run of its own, to the faces of these names. good: see `adapt`."""
    own = [f"{name}.png" for name in names]
    open_stage(run.photos, map(glob.escape, own))
    remove(path for path in sorted(run.photos.glob("*.png")) if path.name not in set(own))
    for name in own:
        copy, face = run.photos / name, faces.folder / name
        if not copy.exists() or (is_own(copy) and sha256_of(copy) != sha256_of(face)):
            replace_atomically(copy, partial(shutil.copy2, face))
    # The group's photos are the crops of `faces`; the report calls them by the labels that they have there.
    labels = {f"{name}.png": faces.label(name) for name in names}
    device = str(base.device)
    result = adapt(run.photos, run.folder, config, callback, device, base, prior, pause_after, before, labels, good)
    number, judgement = run.folder.name, result.judgement
    called = {name: Path(photo).stem for name, photo in result.faces.photos.items()}
    learned = learned_from(result.faces, result.targets)
    trained, held = split(len(learned), config.finetune)
    shown = [called[learned[i]] for i in (held + trained)[:ROWS]]
    group = Group(run, names, judgement, result.progress, shown_names=shown, likeness=result.likeness.renamed(called))
    served = "Its own restorer serves it." if group.adopted else "The base serves it."
    gallery = Gallery(
        f"Group {number}: {len(names)} faces, {VERDICTS[judgement.verdict].lower()}",
        f"{judgement.said} {served} Faces that were not trained on come first.",
        ["damaged", "base restorer", "adapted to this group"],
        rows_of(faces, shown, [base, result.restorer]),
        (f"groups/{number}/report.html", "The whole report of this group"),
    )
    return replace(group, shown=gallery)


def rows_of(faces: FaceSet, names: Sequence[str], restorers: Sequence[Restorer]) -> list[tuple[str, list[Tensor]]]:
    """The rows of a gallery: each face, damaged and as each restorer restores it."""
    rows = []
    for name in names:
        lq = faces.read([name])
        rows.append((faces.label(name), [lq[0], *(one.restore_without_colour(lq)[0] for one in restorers)]))
    return rows


def write_groups(result: Mixed, groups: DamageGroups, base: Restorer) -> dict[str, str]:
    """Save groups.safetensors and a copy of the base beside the groups' runs; returns what they were made from."""
    copy = result.run.folder / "groups" / "base.safetensors"
    save_restorer(copy, base, base.metadata)
    of_one = metadata_in(result.groups[0].run.restorer)
    origin = {key: of_one[key] for key in ORIGIN if key in of_one}
    members = [group.run.restorer if group.adopted else None for group in result.groups]
    save_groups(result.run.groups, groups, copy, members, origin | {"licence": base.licence, "size": str(base.size)})
    return origin


def report_mixed(result: Mixed, faces: FaceSet, base: Restorer, origin: dict[str, str]) -> Path:
    """Write report.html and report.json: a line and pictures for each group, and the faces left to the base."""
    helped = [group for group in result.groups if group.adopted]
    count = sum(len(group.names) for group in helped)
    sentence = (
        f"{len(result.groups)} groups of damages were found. Restorers of their own serve {len(helped)} of them, "
        f"{count} of {len(faces)} faces; the base serves the others. Look at the faces below before you use it."
    )
    lines = [
        (f"group {i}", str(len(group.names)), VERDICTS[group.judgement.verdict], group.judgement.said)
        for i, group in enumerate(result.groups, 1)
    ]
    lines += [("no group", str(len(result.left)), "-", "They belong to no group; the base serves them.")]
    left = Gallery(
        "Left to the base", f"{len(result.left)} faces belong to no group.", ["damaged", "base restorer"],
        rows_of(faces, result.left[:ROWS], [base]),
    )  # fmt: skip
    data = ReportData(
        title="A restorer for each damage",
        verdict=result.verdict,
        verdict_sentence=sentence,
        galleries=[*(group.shown for group in result.groups), left],
        tables=[
            Table("Groups", "", ["group", "faces", "verdict", "why"], lines),
            *likeness_tables(result.likeness, faces.label),
        ],
        notes=[
            *account_notes(faces),
            *people_lines(known_people(result.run, faces), faces),
            *([] if result.likeness.adapted else [NOT_MEASURED]),
        ],
        settings=result.run.config(),
        licences=[
            f"{what}: {origin[key]}, {origin.get(f'{key}_licence', 'unknown')}"
            for what, key in (("base restorer", "base"), ("prior", "prior"))
            if key in origin
        ],
        measurements={
            "groups": [{"faces": group.names, "judgement": group.judgement} for group in result.groups],
            "left_to_base": result.left,
            "likeness": result.likeness.record() if result.likeness.adapted else "not measured",
        },
    )
    return write_report(result.run.folder, data)
