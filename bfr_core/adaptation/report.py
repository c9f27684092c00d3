"""The report of an adaptation: the results in its run folder, shown to a person."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..damage.estimate import FolderDamage
from ..faces.likeness import OTHER
from ..files.ownership import sha256_of
from ..files.photos import printable, read_image
from ..files.records import read_table
from ..pixels import resized
from ..reports.html import Gallery, ReportData, Table, write_report
from ..restoration.restore import square
from ..training.batches import split
from ..training.config import FinetuneConfig
from .faces import FaceSet, faces_of
from .folder_damage import read_damage
from .good_faces import MAX_EXAMPLES
from .people import known_people, people_lines
from .same_person import NOT_MEASURED, FolderLikeness
from .tuning import learned_from

if TYPE_CHECKING:
    from .adapt import Adapted

ROWS = 12
WIDTHS = (8, 16, 32, 64, 128, 256)  # parts of a crop's width, for what is said of lost detail
PERSON_TABLE = "Is it still the person?"
COMPARED = (
    "The photo is compared with the restored face under the photo's damage. It says whether the face agrees with what "
    "the photo still shows of the person: where that is too little, nobody can tell."
)

LOOK = "Look at the faces below, first at those that it was not trained on, before you use it."


def report_adaptation(result: Adapted, config: FinetuneConfig) -> Path:
    """Write report.html and report.json of a finished adaptation; faces held out of the tuning come first."""
    names = learned_from(result.faces, result.targets)
    trained, held = split(len(names), config)
    chosen = (held + trained)[:ROWS]
    rows = []
    for i in chosen:
        name = names[i]
        lq = result.faces.read([name])
        base, tuned = (r.restore_without_colour(lq)[0] for r in (result.base, result.restorer))
        target = resized(read_image(result.targets[name])[None], lq.shape[-2:], "area")[0]
        label = result.faces.label(name)
        rows.append((label if i in trained else f"{label} (not trained on)", [lq[0], base, target, tuned]))
    progress = result.progress
    data = ReportData(
        title="Adapted restorer",
        verdict=result.judgement.verdict,
        verdict_sentence=f"{result.judgement.said} {LOOK}",
        galleries=[
            Gallery(
                "Faces of this folder", "", ["damaged", "base restorer", "pseudo target", "adapted restorer"], rows
            ),
            *refused_faces(result),
            *good_faces(result),
        ],
        figures=[
            ("faces adapted to", str(len(trained))),
            ("faces held out for the verdict", str(len(held))),
            ("tuning steps", str(progress.step)),
            ("step kept", str(progress.best_step)),
            ("minutes of tuning", f"{progress.seconds / 60:.1f}"),
        ],
        tables=[
            *(damage_tables(result) if config.sharp else []),
            *likeness_tables(result.likeness, result.faces.label),
        ],
        loss_curves=progress.losses | ({"held-out faces": progress.held_out} if progress.held_out else {}),
        notes=[
            *progress.notes,
            *account_notes(result.faces),
            *lines_of_people(result),
            *([] if result.likeness.adapted else [NOT_MEASURED]),
        ],
        settings=result.run.config(),
        licences=licences(result),
        measurements={"steps": progress.step, "best_step": progress.best_step, "held_out": progress.held_out}
        | {
            "likeness": result.likeness.record() if result.likeness.adapted else "not measured",
            "judgement": result.judgement,
        }
        | (
            {"good": [file.stem for file in result.good.files], "clarity": result.good.found}
            if result.good.files
            else {}
        ),
    )
    return write_report(result.run.folder, data)


def lines_of_people(result: Adapted) -> list[str]:
    """`people_lines` of all of the run's faces, also those taken as good examples; [] if none were grouped."""
    if not result.run.people.is_file():
        return []
    everybody = faces_of(result.run)
    return people_lines(known_people(result.run, everybody), everybody)


def account_notes(faces: FaceSet) -> list[str]:
    """How many photos gave faces, and a line for every file that gave none, or of which not all was used."""
    files = faces.account()
    used = sum(file["status"] == "used" for file in files)
    return [f"{used} of {len(files)} files of the folder gave faces."] * bool(files) + [
        *(problem["problem"] for problem in faces.problems),
        *(f"{printable(photo)}: {note}" for photo, note in faces.notes.items()),
    ]


def likeness_tables(found: FolderLikeness, label: Callable[[str], str] = str) -> list[Table]:
    """What is said of each face by base and adapted restorer, those that lost most first; nothing if not measured.

    label: what a face is called, by its name.
    """
    if not found.adapted:
        return []
    limits = next((one for one in found.adapted.values() if one.missed is not None), None)
    note = f"{found.said} {COMPARED}"
    if limits:
        note += (
            f" Where the limit is {limits.other:.2f}, {limits.false_warnings:.1%} of good restorations are called "
            f"another person (false alarms), and {limits.missed:.1%} of other people are not (missed)."
        )

    def lost(name: str) -> float:
        before, after = found.base[name].distance, found.adapted[name].distance
        return -math.inf if before is None or after is None else after - before

    rows = []
    for name in sorted(found.adapted, key=lambda name: (found.adapted[name].word != OTHER, -lost(name))):
        own = (found.base[name], found.adapted[name])
        numbers = ["" if one.distance is None else f"{one.distance:.2f}" for one in own]
        change = f"{lost(name):+.2f}" if all(numbers) else ""
        rows.append((label(name), own[0].word, own[1].word, *numbers, change))
    columns = ["face", "by the base", "by the adapted restorer", "distance, base", "distance, adapted", "change"]
    return [Table(PERSON_TABLE, note, columns, rows)]


def good_faces(result: Adapted) -> list[Gallery]:
    """The faces that were taken for good, with the figures that decided it; nothing if there are none."""
    good = result.good
    rows = []
    for file in good.files[:ROWS]:
        shown = result.good_label(file.stem)
        label, face = f"{shown}: given", square(read_image(file), result.base.size)
        if said := good.found.get(file.stem):
            label = f"{shown}: sharpness {said.sharpness:.2f}, noise {said.noise:.2f}, kept {said.kept:.1f} dB"
        rows.append((label, [face, result.restorer.restore_without_colour(face[None])[0]]))
    shown = "they" if len(good.files) <= MAX_EXAMPLES else f"{MAX_EXAMPLES} of them, evenly spread,"
    note = (
        f"{len(good.found)} found in the folder, {len(good.files) - len(good.found)} given. They were not adapted to; "
        f"{shown} showed the tuning what a good face is. Check that they are good."
    )
    return [Gallery("Taken as good examples", note, ["good face", "adapted restorer"], rows)] if rows else []


def damage_tables(result: Adapted) -> list[Table]:
    """What the photos lost and gained, where it was estimated."""
    damage = read_damage(result.run)
    if damage is None:
        return []
    rows = [[f"1/{parts} of the face's width", f"{kept:.0%}"] for parts, kept in kept_by_width(damage)]
    note = (
        "How much of the detail of a sharp face is left, by the width of the detail: estimated over the faces of the "
        f"folder by comparison with sharp faces of other people. Their noise has a standard deviation of "
        f"{255 * damage.noise_level:.1f} of 255."
    )
    if damage.photographed:
        note += f" Most like theirs is this damage: {damage.photographed.in_words(damage.size)}."
    return [Table("What these photos lost", note, ["detail", "left"], rows)]


def kept_by_width(damage: FolderDamage) -> list[tuple[int, float]]:
    """(parts, share): of detail as wide as the crop divided by `parts`, the share of its strength that is left."""
    parts = [n for n in WIDTHS if n <= damage.size]
    # A line of that width and the gap beside it are one cycle.
    shares = damage.transfer_at(torch.tensor([n / 2 / damage.size for n in parts], dtype=torch.float64)).tolist()
    return list(zip(parts, shares, strict=True))


def refused_faces(result: Adapted) -> list[Gallery]:
    """The faces whose target the checks refused, with the reason; nothing if there are none."""
    known = set(result.faces.names) - set(result.targets)  # a face that was refused may have left the photos since
    own = any(result.run.targets in path.parents for path in result.targets.values())
    table = read_table(
        result.run.target_checks if own else result.run.given_checks, places=dict, seen=dict, refused=dict
    )
    refused = {n: why for n, why in table.get("refused", {}).items() if n in known}
    rows = []
    for name, why in list(refused.items())[:ROWS]:
        lq = result.faces.read([name])[0]
        target = result.run.folder / table.get("places", {}).get(name, result.run.targets / f"{name}.png")
        as_seen = target.is_file() and sha256_of(target) == table.get("seen", {}).get(name)
        shown = resized(read_image(target)[None], lq.shape[-2:], "area")[0] if as_seen else torch.zeros_like(lq)
        rows.append((f"{result.faces.label(name)}: {why}", [lq, shown]))
    note = (
        f"{len(refused)} faces were not learned from. The checks refused targets that stand out; nobody looked at them."
    )
    return [Gallery("Left out", note, ["damaged", "refused target"], rows)] if rows else []


def licences(result: Adapted) -> list[str]:
    """Where the weights come from and on what terms, a line each."""
    lines = [f"base restorer: {result.base.name}, {result.base.licence}"]
    if result.prior:
        lines.append(f"prior: {result.prior.name}, {result.prior.licence}")
    return lines
