"""`bfr bench paper`: the synthetic sets of arXiv:2410.04618 from any folder of clean faces, and its table of methods.

One half of the faces is adapted to, with only their damaged copies, and the other half is measured on. A cell, one
method on one set, is measured once and kept.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..adaptation.config import AdaptConfig
from ..adaptation.faces import StageCallback, collect_faces
from ..adaptation.published import PUBLISHED_RECIPE, departures, published, recipe_of, recipe_with
from ..adaptation.run import Run
from ..adaptation.tuning import perceptual_term
from ..damage.camera import CAMERA_TO_SRGB, PUBLISHED_SIZE, READINGS, SENSOR_NOISE, published_kind
from ..diffusion.prior import Prior
from ..files.ownership import refuse_foreign
from ..files.photos import printable, read_image, replace_atomically, write_image
from ..files.records import fingerprint, read_json, write_json
from ..metrics.intervals import Interval
from ..metrics.optional import find_inception
from ..randomness import keyed_generator
from ..restorers import Restorer
from ..training.losses import find_vgg
from .benchmark import (
    FORMER,
    ROWS,
    CellFaces,
    drawn_targets,
    make_cell_faces,
    own_settings,
    read_cell,
    restored_by,
    run_cell,
    tuned,
    tuned_on_generic_damage,
)
from .evaluate import (
    MEASURES,
    NO_REFERENCE,
    all_measures,
    differences,
    face_measures,
    format_interval,
    network_measures,
    notes_on_networks,
    reference_statistics,
    summarise,
)

log = logging.getLogger(__name__)

# The authors' sets are of one ISO each; 1500 is what they call moderate noise.
SETS = {f"{shrink}x ISO {iso}": (shrink, iso) for shrink in (4, 8) for iso in SENSOR_NOISE}
# The measures of the paper's table, and ours that need no network; those that cannot be taken here are left out.
SHORT = {
    "psnr": "PSNR",
    "psnr_matched": "PSNR cm",
    "ssim": "SSIM",
    "ssim_matched": "SSIM cm",
    "lpips": "LPIPS",
    "fid": "FID",
    "fid_reference": "FID ref",
    "niqe": "NIQE",
    "musiq": "MUSIQ",
    "maniqa": "MANIQA",
    "feature_distance": "FD",
    "likeness_distance": "LD",
    "identity": "IDA",
    "landmarks": "LMD",
    "kid": "KID",
    "detail_energy": "Energy",
    "detail_correlation": "Corr",
}
GAIN, EVERYONE = "adapted - base", "all"
SHOWN_FACES = 6
MIN_FACES = 4  # faces: two to adapt to, two to measure on
PUBLISHED_ROW = "published recipe"
METHODS = tuple(row for row in ROWS if row != FORMER)  # of the program as it is
SPLITS = ("halves", "published")
PUBLISHED_SPLIT = (2500, 500)  # faces adapted to and measured on in the paper


@dataclass(frozen=True)
class PaperTable:
    """What was measured.

    sets: set -> method -> measure -> interval over faces. gains: set -> group of people, `EVERYONE` first -> measure ->
    interval of adapted - base. groups: number of faces in each. notes: what was left out, and why. reading: how the
    sets were shrunk, one of `READINGS`. files: what became of each photo, see `FaceSet.account`.
    """

    adapted_to: int
    measured: int
    sets: dict[str, dict[str, dict[str, Interval]]]
    gains: dict[str, dict[str, dict[str, Interval]]]
    groups: dict[str, int]
    notes: list[str] = field(default_factory=list)
    reading: str = "ratio"
    files: list[dict[str, str]] = field(default_factory=list)


def bench_paper(
    hq: Path,
    out: Path,
    restorer: Restorer,
    prior: Prior,
    config: AdaptConfig,
    sets: Sequence[str] = tuple(SETS),
    most: int = 200,
    groups: Path | None = None,
    callback: StageCallback | None = None,
    reading: str = "ratio",
    split: str = "halves",
    reference: Path | None = None,
    with_published: bool = False,
) -> PaperTable:
    """Run every method on every set and write table.txt, table.csv, table.json and pictures/ below `out`.

    hq: folder of clean photos, or of aligned faces with config.faces.aligned. sets: some of `SETS`. most: how many
    faces are used at most, chosen at random; all are held in memory. groups: see `read_groups`. reading: how the sets
    are shrunk, one of `READINGS`. split: "halves", or "published", which ignores `most`; see `parts_of`. reference: for
    FID, a file of statistics or a folder, see `evaluate.reference_statistics`. with_published: also tune by the
    published recipe, see `restored_as_published`. Stopped and run again, it goes on; cells are made anew when faces,
    settings, networks, or the available measures have changed. Raises FileNotFoundError or ValueError, in one line.
    """
    run = Run(out)
    with run.locked():
        faces = collect_faces(Path(hq), run, restorer.size, config.faces, callback, restorer.device)
        group_of = read_groups(groups, photos_of(run)) if groups else {}
        adapt_to, measure_on = parts_of(faces.names, most, config.targets.seed, split)
        adapt_hq, clean = (
            torch.stack([read_image(faces.folder / f"{n}.png") for n in names]) for names in (adapt_to, measure_on)
        )
        judge = Judge(clean, reference)
        made_from = fingerprint(
            *(
                faces.fingerprint,
                adapt_to,
                measure_on,
                restorer.sha256,
                prior.sha256,
                own_settings(config),
                judge.taken,
            ),
            *(SENSOR_NOISE, CAMERA_TO_SRGB),
        )
        term = perceptual_term(config.finetune, prior, restorer.device)
        generic = cache(partial(tuned_on_generic_damage, restorer, config, term))  # for all sets
        pictures = run.folder / "pictures"
        write_image(pictures / "clean.png", strip(clean))

        def cell(kind: str, before: int) -> dict[str, Any]:
            path = run.folder / "cells" / f"{kind}.json"
            refuse_foreign(path)  # now, and not when the first row is made
            done = read_cell(path, made_from)

            def tell() -> None:
                if callback:
                    callback("bench", before + len(done), len(sets) * len(rows), None)

            def keep(row: str, restored: Tensor, more: dict[str, Any]) -> None:
                done[row] = judge.record(restored) | more
                write_json(path, {"made_from": made_from, "rows": done})
                write_image(pictures / kind / f"{row.replace(',', '').replace(' ', '_')}.png", strip(restored))
                tell()

            tell()
            if with_published and done.get(PUBLISHED_ROW, {}).get("recipe") != preset:
                done.pop(PUBLISHED_ROW, None)
            cell_faces = make_cell_faces(adapt_hq, clean, kind, config.targets.seed) if set(rows) - set(done) else None
            if cell_faces and set(METHODS) - set(done):
                run_cell(cell_faces, restorer, prior, config, {*done, FORMER}, keep, term, generic=generic)
            if cell_faces and with_published and PUBLISHED_ROW not in done:
                restored = restored_as_published(cell_faces, restorer, prior, config, reading)
                keep(PUBLISHED_ROW, restored, {"recipe": preset})
            return done

        rows = (*METHODS, PUBLISHED_ROW) if with_published else METHODS
        preset = ""
        if with_published:
            judge.notes.append(departures_note(restorer, config, reading))
            preset = fingerprint(asdict(published_settings(restorer, config, reading)))
        cells = {name: cell(published_kind(*SETS[name], reading), i * len(rows)) for i, name in enumerate(sets)}
        table = tabulate(cells, adapt_to, measure_on, group_of, judge.notes, reading)
        table = replace(table, files=faces.account())
        write_table(run.folder, table)
    return table


def published_settings(restorer: Restorer, config: AdaptConfig, reading: str) -> AdaptConfig:
    """The published recipe as it is compared with `config`: with as many steps, the same random numbers and precision,
    and without LPIPS where its file is not on this machine. On a CPU its discriminator of 256 pixels takes a fifth of
    the time in bfloat16.

    With the reading "pixels" N shrinks with the face, as the sets do; with "ratio" it is the published one.
    """
    values: dict[str, Any] = {
        "finetune.iterations": config.finetune.iterations,
        "finetune.seed": config.finetune.seed,
        "finetune.precision": config.finetune.precision,
        "targets.seed": config.targets.seed,
        "targets.precision": config.targets.precision,
        "targets.batch_size": config.targets.batch_size,
    }
    own = recipe_of(restorer, PUBLISHED_RECIPE)
    if reading == "pixels":
        values["targets.sampler.factor"] = max(1, own.targets.sampler.factor * restorer.size // PUBLISHED_SIZE)
    if not restorer.tuned_by_codes and find_vgg() is None:
        values["finetune.perceptual"] = 0.0
    return recipe_with(restorer, PUBLISHED_RECIPE, values)


def restored_as_published(
    cell_faces: CellFaces, restorer: Restorer, prior: Prior, config: AdaptConfig, reading: str
) -> Tensor:
    """The measured faces as restored after a tuning by the published recipe, see `published_settings`."""
    preset = published_settings(restorer, config, reading)
    targets = drawn_targets(cell_faces.adapt_lq, restorer, prior, preset.targets)
    term = perceptual_term(preset.finetune, prior, restorer.device)
    return restored_by(tuned(restorer, cell_faces.adapt_lq, targets, preset.finetune, term), cell_faces.lq)


def departures_note(restorer: Restorer, config: AdaptConfig, reading: str) -> str:
    """One line that names what in this table departs from the published recipe."""
    preset = published_settings(restorer, config, reading)
    return f"{PUBLISHED_ROW}: {'; '.join(departures(preset, published(restorer))) or 'as it is'}"


class Judge:
    """Measures restored faces against their clean copies (N, 3, S, S), by every measure that is available.

    taken: names of these measures, which depend on what is on this machine. notes: on those that are missing.
    """

    def __init__(self, clean: Tensor, reference: Path | None = None) -> None:
        self.clean, self.networks = clean, network_measures()
        self.large = len(clean) >= metrics.FID_MIN_FACES
        self.inception = find_inception() if self.large or reference else None
        self.kid_features = metrics.kid_features(clean)
        self.fid_features = self._seen(clean) if self.large else torch.empty(0)
        self.reference = reference_statistics(reference, self.inception) if reference and self.inception else None
        distances = ["fid"] if self.large and self.inception else []
        if self.reference:
            distances.append(f"fid against {fingerprint(self.reference.mean.tolist())}")
        self.taken = sorted([*self.networks, *distances, *face_measures(clean[:1], clean[:1])])
        self.notes = notes_on_networks(self.networks, len(clean), self.inception is not None)
        if reference and not self.reference:
            self.notes.append(NO_REFERENCE)

    def record(self, restored: Tensor) -> dict[str, Any]:
        """faces: measure -> a number for each face, null where it is undefined; kid, fid: of the whole set."""
        pairs = zip(restored.split(16), self.clean.split(16), strict=True)
        parts = [all_measures(*pair, self.networks) for pair in pairs]
        found = {key: torch.cat([part[key] for part in parts]).tolist() for key in parts[0]}
        faces = {k: [round(v, 5) if math.isfinite(v) else None for v in values] for k, values in found.items()}
        record: dict[str, Any] = {"faces": faces}
        record["kid"] = list(metrics.paired_kid(metrics.kid_features(restored), self.kid_features))
        seen = self._seen(restored)
        if self.large and self.inception:
            record["fid"] = metrics.fid(seen, self.fid_features)
        if self.reference:
            record["fid_reference"] = metrics.frechet_distance(metrics.statistics_of(seen), self.reference)
        return record

    def _seen(self, faces: Tensor) -> Tensor:
        return torch.cat([self.inception(some) for some in faces.split(16)]) if self.inception else torch.empty(0)


def strip(faces: Tensor) -> Tensor:
    """The first faces side by side: (N, 3, S, S) -> (3, S, n S)."""
    return torch.cat(list(faces[:SHOWN_FACES]), 2)


def parts_of(names: Sequence[str], most: int, seed: int, split: str) -> tuple[list[str], list[str]]:
    """The names to adapt to and those to measure on: "halves", see there, or "published", 2,500 and 500.

    The published split is fixed: of a folder it is the same whatever the seed. Raises ValueError for too few faces.
    """
    if split == "halves":
        return halves(names, most, seed)
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    first, second = PUBLISHED_SPLIT
    if len(names) < first + second:
        raise ValueError(
            f"{len(names)} faces are too few for the published split of {first} and {second}; use --split halves"
        )
    order = torch.randperm(len(names), generator=keyed_generator(0, "published split")).tolist()
    return [names[i] for i in sorted(order[:first])], [names[i] for i in sorted(order[first : first + second])]


def halves(names: Sequence[str], most: int, seed: int) -> tuple[list[str], list[str]]:
    """The names to adapt to and those to measure on, `most` in all at most, at random. Raises ValueError if too few."""
    if min(len(names), most) < MIN_FACES:
        raise ValueError(f"{min(len(names), most)} faces are too few to adapt to one half and measure on the other")
    order = torch.randperm(len(names), generator=keyed_generator(seed, "halves")).tolist()[:most]
    half = len(order) // 2
    return [names[i] for i in sorted(order[:half])], [names[i] for i in sorted(order[half:])]


# ---------------------------------------------------------------- groups of people


def photos_of(run: Run) -> dict[str, str]:
    """Face -> the photo that it is in, as a relative path."""
    return {face["name"]: face["photo"] for face in read_json(run.faces / "faces.json")["faces"]}


def read_groups(path: Path, photos: dict[str, str]) -> dict[str, str]:
    """Face -> group, from a CSV file with the columns `name` and `group`; faces that it does not name are in none.

    name: a face, or its photo: as relative path or file name, with or without suffix. photos: see `photos_of`.
    Raises FileNotFoundError, or ValueError in one line, if it cannot be read, lacks a column or names no face.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{printable(path)}: no such file")
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{printable(path)}: not a CSV file in UTF-8 ({error})") from None
    if not lines or not {"name", "group"} <= set(lines[0]):
        raise ValueError(f"{printable(path)}: must have the columns name and group, and a line for each face")
    known = {_plain_name(line["name"] or ""): (line["group"] or "").strip() for line in lines}
    found: dict[str, str] = {}
    for face, photo in photos.items():
        place = Path(photo)
        calls = (face, photo, place.with_suffix("").as_posix(), place.name, place.stem)
        group = next((known[call] for call in map(_plain_name, calls) if call in known), "")
        if group:
            found[face] = printable(group)
    if not found:
        raise ValueError(f"{printable(path)}: names none of the {len(photos)} faces; one would be {min(photos)}")
    if len(found) < len(photos):
        log.warning("%s: %d of %d faces are in no group", printable(path), len(photos) - len(found), len(photos))
    return found


def _plain_name(name: str) -> str:
    """A name as it is compared, whichever system wrote it."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/"))


# ---------------------------------------------------------------- the table


def tabulate(
    cells: dict[str, dict[str, Any]],
    adapt_to: Sequence[str],
    measure_on: Sequence[str],
    group_of: dict[str, str],
    notes: list[str],
    reading: str = "ratio",
) -> PaperTable:
    """Means with intervals from the kept cells: set -> method -> record."""
    members = {EVERYONE: list(range(len(measure_on)))}
    for group in sorted(set(group_of.values())):
        members[group] = [i for i, name in enumerate(measure_on) if group_of.get(name) == group]
    members = {group: places for group, places in members.items() if places}
    sets: dict[str, dict[str, dict[str, Interval]]] = {}
    gains: dict[str, dict[str, dict[str, Interval]]] = {}
    for name, rows in cells.items():
        sets[name] = {}
        for row in (row for row in (*ROWS, PUBLISHED_ROW) if row in rows):
            values = summarise(_columns(rows[row])) | {"kid": Interval(*rows[row]["kid"])}
            for key in ("fid", "fid_reference"):
                if key in rows[row]:
                    values[key] = Interval(rows[row][key], math.nan, math.nan)
            sets[name][row] = values
        after, before = _columns(rows["adapted"]), _columns(rows["base"])
        gains[name] = {
            group: differences({k: v[places] for k, v in after.items()}, {k: v[places] for k, v in before.items()})
            for group, places in members.items()
        }
    return PaperTable(
        len(adapt_to), len(measure_on), sets, gains, {g: len(p) for g, p in members.items()}, notes, reading
    )


def format_table(table: PaperTable) -> str:
    """Plain text: methods down, sets and their measures across; then what adapting gained, by group; then the notes."""
    keys = [k for k in SHORT if any(k in values for rows in table.sets.values() for values in rows.values())]
    methods = [row for row in (*ROWS, PUBLISHED_ROW) if any(row in rows for rows in table.sets.values())]
    columns: list[tuple[str, list[str]]] = [("", ["", *methods])]
    for name, rows in table.sets.items():
        for number, key in enumerate(keys):
            means = [_mean(rows.get(row, {}).get(key), MEASURES[key].decimals) for row in methods]
            columns.append((name if not number else "", [SHORT[key], *means]))
    lines = _across(columns)
    lines += ["", *(f"{SHORT[key]}: {MEASURES[key].title}, {MEASURES[key].goal}" for key in keys)]
    gained = [key for key in keys if key not in ("kid", "fid", "fid_reference", "detail_energy")]
    body = [["", "group", "faces", *(SHORT[key] for key in gained)]]
    for name, groups in table.gains.items():
        for group, values in groups.items():
            shown = [format_interval(values.get(key), MEASURES[key].decimals) for key in gained]
            body.append([name, group, str(table.groups[group]), *shown])
    lines += ["", f"{GAIN}: mean (95% interval over faces)", *_aligned(body)]
    head = f"{table.adapted_to} faces to adapt to, {table.measured} others to measure on; means over these; "
    head += f"sets shrunk to the {READINGS[table.reading]} as published"
    return "\n".join([head, "", *lines, "", *table.notes]).rstrip()


def as_dict(table: PaperTable) -> dict[str, Any]:
    """`table` for JSON; null where undefined."""

    def plain(value: Any) -> Any:
        if isinstance(value, Interval):
            return {k: v if math.isfinite(v) else None for k, v in value._asdict().items()}
        return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value

    return {name: plain(value) for name, value in vars(table).items()}


def write_table(folder: Path, table: PaperTable) -> None:
    """Write table.txt, table.json and table.csv with a line for each figure. Raises OSError as `replace_atomically`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "method", "group", "faces", "measure", "mean", "low", "high"])
    entries = [(name, row, EVERYONE, v) for name, rows in table.sets.items() for row, v in rows.items()]
    entries += [(name, GAIN, group, v) for name, groups in table.gains.items() for group, v in groups.items()]
    for name, row, group, values in entries:
        for key, interval in values.items():
            numbers = [f"{n:.6g}" if math.isfinite(n) else "" for n in interval]
            label = f"'{group}" if group.startswith(("=", "+", "-", "@")) else group  # a spreadsheet would run it
            writer.writerow([name, row, label, table.groups[group], key, *numbers])
    for name, content in (
        ("table.csv", text.getvalue()),
        ("table.txt", format_table(table) + "\n"),
        ("table.json", json.dumps(as_dict(table), indent=1)),
    ):
        replace_atomically(folder / name, lambda part, content=content: part.write_text(content, encoding="utf-8"))  # type: ignore[misc]


# ---------------------------------------------------------------- parts


def _columns(record: dict[str, Any]) -> dict[str, np.ndarray]:
    return {key: np.array(values, np.float64) for key, values in record["faces"].items()}  # null becomes NaN


def _mean(interval: Interval | None, decimals: int) -> str:
    return "-" if interval is None else f"{interval.mean:.{decimals}f}"


def _across(columns: list[tuple[str, list[str]]]) -> list[str]:
    """Columns side by side; a title stands above the first column of its set and may reach over the others."""
    widths = [max(map(len, cells)) for _, cells in columns]
    title, end = "", 0
    for (text, _), width in zip(columns, widths, strict=True):
        title = (title.ljust(end) + text) if text else title
        end += width + 2
    rows = zip(*(cells for _, cells in columns), strict=True)
    return [title, *("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)]


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
