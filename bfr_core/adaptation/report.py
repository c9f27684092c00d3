"""The report of an adaptation: the results in its run folder, shown to a person."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..faces.arcface import Recognise, likeness
from ..files.photos import printable, read_image
from ..files.records import read_json
from ..metrics.intervals import bootstrap_difference
from ..reports.html import Gallery, ReportData, Table, write_report
from ..restoration.restore import square
from ..training.batches import split
from ..training.config import FinetuneConfig
from .faces import FaceSet
from .good_faces import MAX_EXAMPLES
from .tuning import learned_from

if TYPE_CHECKING:
    from .adapt import Adapted

ROWS = 12
BATCH = 16
SAME_PERSON = 0.5  # cosine of two photos; strict, so that hardly anyone is compared with somebody else
LESS_LIKE = 0.01  # likeness that a face may lose before it is named: less is the recogniser's own noise
NOT_MEASURED = "Identity was not measured: look yourself whether each face is still the person."

LOOK = "Look at the faces below, first at those that it was not trained on, before you use it."


def report_adaptation(result: Adapted, config: FinetuneConfig, recogniser: Recognise | None = None) -> Path:
    """Write report.html and report.json of a finished adaptation; faces held out of the tuning come first.

    recogniser: standard crops -> directions of length 1, by which the report says whether each face is still the
    person; without one it says that this was not measured.
    """
    names = learned_from(result.faces, result.targets)
    trained, held = split(len(names), config)
    chosen = (held + trained)[:ROWS]
    rows = []
    for i in chosen:
        name = names[i]
        lq = read_image(result.faces.crop(name))
        base, tuned = (r.restore(lq[None])[0].cpu() for r in (result.base, result.restorer))
        target = torch.nn.functional.interpolate(read_image(result.targets[name])[None], lq.shape[-2:], mode="area")[0]
        label = result.faces.label(name)
        rows.append((label if i in trained else f"{label} (not trained on)", [lq, base, target, tuned]))
    progress = result.progress
    likenesses = measure_identity(result, recogniser)
    known = measure_against_good(result, recogniser)
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
            ("faces learned from", str(len(names))),
            ("tuning steps", str(progress.step)),
            ("step kept", str(progress.best_step)),
            ("minutes of tuning", f"{progress.seconds / 60:.1f}"),
        ],
        tables=[
            *identity_tables(likenesses, result.faces.label),
            *good_photo_tables(known, result.faces.label, result.good_label),
        ],
        loss_curves=progress.losses | ({"held-out faces": progress.held_out} if progress.held_out else {}),
        notes=[*progress.notes, *account_notes(result.faces), *([] if likenesses else [NOT_MEASURED])],
        settings=result.run.config(),
        licences=licences(result),
        measurements={"steps": progress.step, "best_step": progress.best_step, "held_out": progress.held_out}
        | {"likeness": likenesses or "not measured", "judgement": result.judgement}
        | (
            {"good": [file.stem for file in result.good.files], "clarity": result.good.found}
            if result.good.files
            else {}
        )
        | ({"likeness_to_good": known} if known else {}),
    )
    return write_report(result.run.folder, data)


def account_notes(faces: FaceSet) -> list[str]:
    """How many photos gave faces, and a line for every file that gave none, or of which not all was used."""
    files = faces.account()
    used = sum(file["status"] == "used" for file in files)
    return [f"{used} of {len(files)} files of the folder gave faces."] * bool(files) + [
        *(problem["problem"] for problem in faces.problems),
        *(f"{printable(photo)}: {note}" for photo, note in faces.notes.items()),
    ]


def measure_identity(result: Adapted, recogniser: Recognise | None) -> dict[str, tuple[float, float]]:
    """Likeness of every restored face to its damaged photo, by base and by adapted restorer; empty if not measured."""
    found: dict[str, tuple[float, float]] = {}
    if recogniser is None:
        return found
    for names, lq in result.faces.batches(BATCH):
        damaged = recogniser(lq)
        both = [likeness(recogniser(r.restore_each(lq)), damaged).tolist() for r in (result.base, result.restorer)]
        for name, *values in zip(names, *both, strict=True):
            found[name] = (round(values[0], 4), round(values[1], 4))
    return found


def identity_tables(likenesses: dict[str, tuple[float, float]], label: Callable[[str], str] = str) -> list[Table]:
    """The mean change of likeness, and every face that lost some, worst first; nothing if it was not measured.

    label: what a face is called, by its name.
    """
    if not likenesses:
        return []
    base, tuned = zip(*likenesses.values(), strict=True)
    change = bootstrap_difference(tuned, base)
    dropped = sorted((after - before, name) for name, (before, after) in likenesses.items())
    dropped = [(drop, name) for drop, name in dropped if drop < -LESS_LIKE]
    note = (
        f"Cosine of the recogniser's directions, restored face to damaged photo; the adapted restorer changes it by "
        f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f}) on average. "
        f"{len(dropped)} of {len(likenesses)} faces became less like the photo: look at them."
    )
    rows = [
        (label(name), f"{likenesses[name][0]:.3f}", f"{likenesses[name][1]:.3f}", f"{d:+.3f}") for d, name in dropped
    ]
    return [Table("Is it still the person?", note, ["face that lost likeness", "base", "adapted", "change"], rows)]


def measure_against_good(result: Adapted, recogniser: Recognise | None) -> dict[str, tuple[str, float, float]]:
    """Face -> the good face of the same person, and the restored face's likeness to it, by base and adapted restorer.

    Only of faces whose damaged copy is as like a good face as one person's photos are; empty if not measured.
    """
    files = result.good.files[:MAX_EXAMPLES]
    if recogniser is None or not files:
        return {}
    good = torch.cat([recogniser(square(read_image(file), result.base.size)[None]) for file in files])
    found: dict[str, tuple[str, float, float]] = {}
    for names, lq in result.faces.batches(BATCH):
        nearest = (recogniser(lq) @ good.T).max(1)
        both = [likeness(recogniser(r.restore_each(lq)), good[nearest.indices]) for r in (result.base, result.restorer)]
        for i, name in enumerate(names):
            if nearest.values[i] >= SAME_PERSON:
                base, tuned = (round(float(of[i]), 4) for of in both)
                found[name] = (files[nearest.indices[i]].stem, base, tuned)
    return found


def good_photo_tables(
    known: dict[str, tuple[str, float, float]],
    label: Callable[[str], str] = str,
    good_label: Callable[[str], str] = str,
) -> list[Table]:
    """Likeness to good photos of the person, least first; nothing if it was not measured.

    label, good_label: what a face and a good face are called, by their names.
    """
    if not known:
        return []
    change = bootstrap_difference([tuned for *_, tuned in known.values()], [base for _, base, _ in known.values()])
    note = (
        "Cosine of the recogniser's directions, restored face to the good face that its damaged photo is most like; "
        f"the adapted restorer changes it by {change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f}) on average."
    )
    rows = [
        (label(name), good_label(good), f"{base:.3f}", f"{tuned:.3f}", f"{tuned - base:+.3f}")
        for name, (good, base, tuned) in sorted(known.items(), key=lambda item: item[1][2] - item[1][1])
    ]
    return [Table("Like the good photos?", note, ["face", "good face", "base", "adapted", "change"], rows)]


def good_faces(result: Adapted) -> list[Gallery]:
    """The faces that were taken for good, with the figures that decided it; nothing if there are none."""
    good = result.good
    rows = []
    for file in good.files[:ROWS]:
        shown = result.good_label(file.stem)
        label, face = f"{shown}: given", square(read_image(file), result.base.size)
        if said := good.found.get(file.stem):
            label = f"{shown}: sharpness {said.sharpness:.2f}, noise {said.noise:.2f}, kept {said.kept:.1f} dB"
        rows.append((label, [face, result.restorer.restore(face[None])[0].cpu()]))
    note = (
        f"{len(good.found)} found in the folder, {len(good.files) - len(good.found)} given. They were not adapted to; "
        "they showed the tuning what a good face is. Check that they are good."
    )
    return [Gallery("Taken as good examples", note, ["good face", "adapted restorer"], rows)] if rows else []


def refused_faces(result: Adapted) -> list[Gallery]:
    """The faces whose target the checks refused, with the reason; nothing if there are none."""
    refused = {
        n: why
        for n, why in read_json(result.run.target_checks, {}).get("refused", {}).items()
        if n not in result.targets
    }
    rows = []
    for name, why in list(refused.items())[:ROWS]:
        lq = read_image(result.faces.crop(name))
        target = result.run.targets / f"{name}.png"
        shown = read_image(target) if target.exists() else torch.zeros_like(lq)
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
