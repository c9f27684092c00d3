"""What the web page does and says, without any web framework: plain methods that a button calls, and pieces of HTML.

Everything that came from outside (names, paths, numbers, what a run folder says) is checked or escaped here.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adaptation.config import LOW_MEMORY, AdaptConfig
from ..adaptation.faces import StageCallback, leave_out, left_out_of
from ..adaptation.first_look import COLUMNS, place_of, read_first_look
from ..adaptation.forecast import duration
from ..adaptation.old_runs import list_old_run
from ..adaptation.published import RECIPES, RECOMMENDED, recipe_of, recipe_with
from ..adaptation.report import PERSON_TABLE
from ..adaptation.run import Run
from ..device import choose_device
from ..files.kinds import why_left_out
from ..files.names import first_line
from ..files.ownership import claim, delete, empty, free_name
from ..files.photos import (
    FORMATS,
    list_images,
    photo_name,
    photo_names,
    printable,
    read_image,
    read_photo,
    replace_atomically,
    write_image,
    write_photo,
)
from ..files.provenance import Step
from ..files.records import fingerprint, read_table, write_json
from ..files.stages import say_kept
from ..files.weights import TABLE, locate
from ..reports.charts import chart
from ..reports.html import VERDICTS, data_uri
from ..restoration.restore import RestoreConfig, restoration_step, restore_photo, square
from ..restorers import Restorer, load_restorer
from ..restorers.load import EMBEDDED
from ..restorers.routed import group_files
from .jobs import (
    Jobs,
    Outcome,
    Status,
    adapt_restorer,
    find_faces,
    look_first,
    points_of,
    repair_photos,
    thinned,
    zip_files,
)

MAX_UPLOAD_BYTES = 200 << 20  # of one file
MAX_UPLOAD_PIXELS = 100_000_000
MAX_UPLOADS = 2000
MAX_FACES_SHOWN = 300
MAX_NOTES_SHOWN = 20
TRIPLETS = 4
COMPARED_FACES = 6
THUMBNAIL = 176  # pixels
LOSSLESS_PIXELS = 2_000_000  # a comparison of larger photos is shown as JPEG
CACHE = "_page"  # below the runs: all that the page serves, and nothing else is served

# Settings behind "Advanced", by dotted path of `AdaptConfig`; label and hint are the setting's, the value the recipe's.
ADVANCED = (
    "finetune.iterations",
    "finetune.transplant",
    "finetune.anchor",
    "finetune.texture",
    "finetune.batch_size",
    "targets.sampler.t_start",
    "targets.sampler.factor",
    "gate.limit",
    "finetune.seed",
)
STAGES = {
    "faces": "Finding faces",
    "people": "Telling people apart",
    "groups": "Telling kinds of damage apart",
    "forecast": "Timing a step of each stage",
    "examine": "Looking at the damage",
    "targets": "Drawing clean faces",
    "gate": "Checking the clean faces",
    "redraw": "Drawing refused ones again",
    "finetune": "Tuning the restorer",
    "repair": "Repairing photos",
}
STATES = {
    "waiting": "Waiting for another run to finish",
    "cancelled": "Stopped by you; it goes on where it was",
    "failed": "Failed",
    "elsewhere": "Another program is at work on this run; this page only shows it",
    "stopped": "Interrupted; it goes on where it was",
}
KINDS = {"faces": "finding faces", "look": "the first look", "adapt": "adapting", "repair": "repairing photos"}
CURVES = {  # names of the report's curves -> what they are to someone who sees them for the first time
    "l1": "distance to the clean faces",
    "texture": "difference in texture",
    "anchor": "old skills lost",
}
NO_RESTORER = "adapt first, or repair with the base"
NEXT = {
    "faces": "Faces found. Look through them below, then go to Adapt.",
    "look": "The first look is under Adapt.",
    "adapt": "Adapted. The verdict is under Result.",
    "repair": "Repaired. The photos are under Repair photos.",
}
STYLE = """<style>
.bfr-refresh { position: absolute !important; left: -9999px; width: 1px; height: 1px; overflow: hidden; }
.pending:has(.bfr) { opacity: 1 !important; }
.bfr-faces .grid-wrap { min-height: 0 !important; max-height: 75vh !important; }
.bfr { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.bfr p { margin: 0 0 8px; } .bfr .quiet { opacity: .7; font-size: .9em; }
.bfr .error { border-left: 4px solid #c0392b; padding: 6px 12px; background: rgb(192 57 43 / .1); }
.bfr .said { border-left: 4px solid #2c6a8f; padding: 6px 12px; background: rgb(44 106 143 / .1); }
.bfr .bar { height: 10px; border-radius: 5px; background: rgb(128 128 128 / .25); overflow: hidden;
  margin: 6px 0 10px; }
.bfr .bar i { display: block; height: 100%; background: #2c6a8f; }
.bfr .steps { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; padding: 0 !important;
  margin: 0 0 8px; }
.bfr .steps li { display: block; opacity: .55; margin: 0; } .bfr .steps li.now { opacity: 1; font-weight: 600; }
.bfr .steps li.over::before { content: "\\2713\\00a0"; }
.bfr .rows { display: grid; gap: 18px 30px; margin: 12px 0; max-width: 1200px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
.bfr .faces { display: flex; gap: 8px; } .bfr .faces figure { flex: 0 1 176px; min-width: 0; }
.bfr .faces img { display: block; width: 100%; margin: 0; border-radius: 6px; }
.bfr .charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 16px; }
.bfr figure { margin: 0; } .bfr figcaption { font-size: .85em; }
.bfr svg { width: 100%; height: auto; font-size: 11px; }
.bfr svg text { fill: currentColor; opacity: .7; } .bfr svg line { stroke: rgb(128 128 128 / .3); }
.bfr svg polyline { fill: none; stroke: #2c6a8f; stroke-width: 2; } .bfr svg .raw { stroke-width: 1; opacity: .4; }
.bfr .verdict { font-size: 1.15em; border-left: 4px solid #66676c; padding-left: 14px; }
.bfr .adopt { border-color: #1d7a4c; } .bfr .keep_base { border-color: #b36a00; }
.bfr table { border-collapse: collapse; width: 100%; border: 0 !important; }
.bfr tr { border: 0 !important; } .bfr th, .bfr td { text-align: left; padding: 6px 10px;
  border: 0 !important; border-bottom: 1px solid rgb(128 128 128 / .3) !important; vertical-align: top; }
</style>"""


@dataclass(frozen=True)
class Choices:
    """What a person chose for a run. minutes: of tuning at most, 0 = until done. changes: see `ADVANCED`.

    mixed: an adaptation for each group of faces that share a damage, see `adapt_mixed`. recipe: one of `RECIPES`.
    real: a folder of good faces of anybody, which only the discriminator sees; "" for none.
    """

    restorer: str = "embedded"
    minutes: float = 0.0
    aligned: bool = False
    min_face: int = AdaptConfig().faces.min_face
    low_memory: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    mixed: bool = False
    recipe: str = RECOMMENDED
    real: str = ""

    def settings(self) -> dict[str, Any]:
        """Changes to the recipe, by dotted path."""
        lean = dict(LOW_MEMORY) if self.low_memory else {}
        own = {"finetune.minutes": float(self.minutes), "faces.aligned": self.aligned, "faces.min_face": self.min_face}
        real = {"album.real": self.real.strip()} if self.real.strip() else {}
        return lean | own | real | dict(self.changes)


NUMBER = (int, float)
CHOSEN: dict[str, Any] = {  # types of what a request.json may hold of `Choices`
    "restorer": str, "minutes": NUMBER, "aligned": bool, "min_face": int, "low_memory": bool, "changes": dict,
    "mixed": bool, "recipe": str, "real": str,
}  # fmt: skip


class Page:
    """The runs below one folder, and what may be done with them.

    allowed: folders that paths typed into the page must lie in; how_to_allow: says how to allow others. uploads: where
    the server puts what is dropped on the page, by default its own cache. changed: called, from whichever thread, after
    an adapted restorer has come or gone. Methods raise ValueError, FileNotFoundError or OSError, in one line, for what
    cannot be done.
    """

    def __init__(
        self,
        runs: Path,
        allowed: Sequence[Path] = (),
        device: str = "auto",
        *,
        how_to_allow: str = "start with --allow DIR",
        uploads: Path | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.runs = Path(runs).resolve()
        self.allowed = [Path(folder).resolve(strict=True) for folder in allowed]
        self.device, self.how_to_allow, self.changed = device, how_to_allow, changed
        self.cache = self.runs / CACHE
        claim(self.cache, "run", made_before=())
        self.uploads = Path(uploads).resolve() if uploads else self.cache
        self.jobs = Jobs()
        self._loaded: dict[tuple[Any, ...], Restorer] = {}
        self._loading = threading.Lock()  # buttons, hosts and HTTP calls ask from threads of their own

    # ------------------------------------------------------------ runs

    def names(self) -> list[str]:
        """The runs, the one touched last first."""
        marks = ("request.json", "config.json", "job.json")
        runs = [path for path in self.runs.iterdir() if any((path / mark).is_file() for mark in marks)]
        return [path.name for path in sorted(runs, key=_touched, reverse=True)]

    def run(self, name: str | None) -> Run:
        """The run of this name, which must be one of `names`."""
        if not name:
            raise ValueError("choose a run first, or start a new one from photos")
        if name not in self.names():
            raise ValueError(f"{printable(str(name))}: there is no such run")
        return Run(self.runs / name)

    def status(self, run: Run) -> Status:
        """How far the run's last job is; a run whose own files are damaged counts as failed for that reason."""
        try:
            return self.jobs.status(run)
        except (ValueError, OSError) as error:
            return Status(state="failed", error=printable(str(error)))

    def latest(self) -> str | None:
        """The run to show when the page is opened: the one that is at work, else the newest."""
        names = self.names()
        active = (name for name in names if self.status(self.run(name)).active)
        return next(active, names[0] if names else None)

    def new_run(self, title: str, uploads: Sequence[str], folder: str, choices: Choices) -> tuple[str, list[str]]:
        """Make a run from uploaded photos, or a folder, and look for faces; returns its name and unusable uploads."""
        photos = self.typed_folder(folder) if folder.strip() else None
        if photos is None and not uploads:
            raise ValueError("drop some photos first, or name a folder")
        self.restorer_named(choices.restorer)
        fallback = photos.name if photos else f"run {time.strftime('%Y-%m-%d %H.%M')}"
        run = Run(self._new_folder(title.strip() or fallback))
        problems = []
        run.claim()
        try:
            if photos is None:
                claim(run.photos, "run")
                problems = self.keep_uploads(uploads, run.folder / "photos")
            else:
                list_images(photos)
            write_json(run.folder / "request.json", {"photos": str(photos or ""), "restorer": choices.restorer})
        except (ValueError, OSError):
            delete(run.folder)
            raise
        self.look_for_faces(run.folder.name, choices)
        return run.folder.name, problems

    def look_for_faces(self, name: str, choices: Choices) -> None:
        """Start looking for faces in the run's photos."""
        run = self.run(name)
        self.remember(run, choices)
        photos, settings = self.photos_of(run), choices.settings()
        self.jobs.start(run, "faces", find_faces(run, photos, choices.restorer, settings, self.device, choices.recipe))

    def adapt(self, name: str | None, choices: Choices) -> Status:
        """Start the adaptation, or go on with it; a run that is at work already is left alone."""
        run = self.run(name)
        if (status := self.status(run)).active:
            return status
        values = choices.settings()
        recipe_with(self.restorer_named(choices.restorer), choices.recipe, values)  # raises for a bad setting, now
        if choices.real.strip():
            self.typed_folder(choices.real)
        photos = self.photos_of(run)
        self.remember(run, choices)
        adapt_now = adapt_restorer(run, photos, choices.restorer, values, self.device, choices.mixed, choices.recipe)

        def work(callback: StageCallback) -> Outcome:
            try:
                return adapt_now(callback)
            finally:
                self.changed()

        return self.jobs.start(run, "adapt", work, 60 * choices.minutes)

    def look_first(self, name: str | None, choices: Choices) -> Status:
        """Start the first look at what an adaptation would do; a run that is at work already is left alone."""
        run = self.run(name)
        if (status := self.status(run)).active:
            return status
        settings = choices.settings()
        recipe_with(self.restorer_named(choices.restorer), choices.recipe, settings)  # raises for a bad setting, now
        self.remember(run, choices)
        work = look_first(run, None, choices.restorer, settings, self.device, choices.recipe)
        return self.jobs.start(run, "look", work)

    def first_look(self, name: str | None) -> str:
        """The run's last first look, as HTML; "" if it has none."""
        try:
            found = read_first_look(self.run(name))
        except ValueError as error:
            return failed(error)
        if found is None:
            return ""
        rows, lines = found
        return block(f"<h3>A first look</h3>{''.join(map(quiet, lines))}{_grid(COLUMNS, rows)}")

    def stop(self, name: str | None) -> None:
        """Stop the run's job after its present step."""
        self.jobs.cancel(self.run(name))

    def delete(self, name: str | None) -> list[str]:
        """Delete the run with all that this program wrote there; returns what is kept, by its path in the run."""
        run = self.run(name)
        if self.status(run).active:
            raise ValueError(f"{printable(str(name))}: is at work; stop it first")
        list_old_run(run)
        kept = delete(run.folder)
        self.changed()
        return [path.relative_to(run.folder).as_posix() for path in kept]

    def remember(self, run: Run, choices: Choices) -> None:
        """Keep what was chosen, so that the run can be continued after the page or the server was closed."""
        kept = read_table(run.folder / "request.json", photos=str)
        chosen = {name: getattr(choices, name) for name in Choices.__dataclass_fields__} | {
            "changes": dict(choices.changes)
        }
        write_json(run.folder / "request.json", {"photos": kept.get("photos", "")} | chosen)

    def choices_of(self, name: str | None) -> Choices:
        """What was chosen for the run last, with the recipe's values for the rest."""
        run = self.run(name) if name else None
        kept = _chosen(run) if run else {}
        known = {key: kept[key] for key, kind in CHOSEN.items() if isinstance(kept.get(key), kind)}
        if known.get("restorer", "embedded") not in restorers():
            known["restorer"] = "embedded"
        if known.get("recipe", RECOMMENDED) not in RECIPES:
            known["recipe"] = RECOMMENDED
        choices = Choices(**known)
        own = {k: value for k, value in choices.changes.items() if k in ADVANCED and isinstance(value, int | float)}
        return replace(choices, changes=self.defaults(choices.restorer, choices.recipe) | own)

    def defaults(self, restorer: str, recipe: str = RECOMMENDED) -> dict[str, Any]:
        """Values of the `ADVANCED` settings in the recipe of this name for `restorer`."""
        config = recipe_of(self.restorer_named(restorer), recipe)
        return {path: value_at(config, path) for path in ADVANCED}

    def photos_of(self, run: Run) -> Path:
        """The folder of the run's photos, checked anew: what a run folder says is not trusted."""
        kept = read_table(run.folder / "request.json", photos=str).get("photos")
        if kept:
            return self.typed_folder(kept)
        if run.photos.is_dir():
            return run.photos
        name = str(run.config().get("faces", {}).get("photos", ""))  # only its name is kept, see collect_faces
        places = [place for folder in self.allowed for place in (folder, folder / name)] if _plain_name(name) else []
        for place in places:
            if place.name == name and place.is_dir():
                return self.typed_folder(str(place))
        which = f'the folder "{printable(name)}" of its photos' if name else "the folder of its photos"
        raise ValueError(f"{printable(run.folder.name)}: {which} is not known here ({self.how_to_allow})")

    # ------------------------------------------------------------ what comes in

    def typed_folder(self, text: str) -> Path:
        """The folder that was typed. Raises ValueError if it lies outside the allowed ones."""
        path = Path(os.path.realpath(text.strip()))  # unlike resolve, it accepts a link to itself
        if not any(path == folder or folder in path.parents for folder in self.allowed):
            which = ", ".join(printable(folder) for folder in self.allowed) or "none yet"
            raise ValueError(
                f"{printable(text.strip())}: may not be read; allowed folders: {which} ({self.how_to_allow})"
            )
        return path

    def keep_uploads(self, uploads: Sequence[str], folder: Path) -> list[str]:
        """Copy uploaded photos into `folder`, under their own names; a line for each that is not a usable picture.

        Raises ValueError if none is usable, or if there are too many.
        """
        if len(uploads) > MAX_UPLOADS:
            raise ValueError(f"{len(uploads)} photos are too many; drop {MAX_UPLOADS} at most, or name a folder")
        files = [Path(upload).resolve() for upload in uploads]
        problems, kept = [], 0
        relatives = [Path(str(i) if len(set(files)) < len(files) else "", file.name) for i, file in enumerate(files)]
        for file, stem in zip(files, photo_names(relatives), strict=True):
            try:
                came = next((where for where in (self.uploads, self.cache) if where in file.parents), None)
                if came is None:
                    raise ValueError(f"{printable(file.name)}: was not uploaded here")
                if file.suffix.lower() not in FORMATS:
                    raise ValueError(f"{printable(file.name)}: {why_left_out(file)}")
                if file.stat().st_size > MAX_UPLOAD_BYTES:
                    raise ValueError(f"{printable(file.name)}: is larger than {MAX_UPLOAD_BYTES >> 20} MB")
                read_photo(file, MAX_UPLOAD_PIXELS)
            except (ValueError, OSError) as error:
                problems.append(printable(str(error)))
                continue
            place = free_name(folder / f"{stem}{file.suffix.lower()}")
            replace_atomically(place, partial(shutil.copyfile, file))
            if self.uploads != self.cache:  # a host's, shared by all its pages; gradio 4 copies from it into the cache
                for where in (self.uploads, self.cache):
                    delete(where / file.relative_to(came), like=place)
            kept += 1
        if not kept:
            raise ValueError(f"none of the files can be used: {'; '.join(problems[:3])}")
        return problems

    def _new_folder(self, title: str) -> Path:
        """A new, empty folder for a run, named after `title`: two that are made at once never share a name."""
        stem = photo_name(Path(re.sub(r"[^\w .()-]+", "-", f"{title[:80]}.run").replace("__", "_"))).strip()
        for number in count(1):
            folder = self.runs / _numbered(stem, number)
            taken = {path.name.casefold() for path in self.runs.iterdir()}  # also where the disk tells a from A
            if folder.name.casefold() not in taken:
                with suppress(FileExistsError):  # made by another since
                    folder.mkdir()
                    return folder
        raise AssertionError("there is a number for every run")

    # ------------------------------------------------------------ faces

    def faces(self, name: str | None) -> list[tuple[Path, str]]:
        """A picture of every face of the run, in the page's cache, with the text below it.

        Faces that are left out are dark, with a cross over them.
        """
        run = self.run(name)
        names = self._face_names(run)[:MAX_FACES_SHOWN]
        left_out, whose = left_out_of(run) if names else [], self._people(run)
        captions = {n: "left out" if n in left_out else whose.get(n, "") for n in names}
        return [(self._face_picture(run, n, n in left_out), captions[n]) for n in names]

    def _people(self, run: Run) -> dict[str, str]:
        """Face -> what is said of whose it is, of people with several faces."""
        kept = read_table(run.people, people=dict).get("people", {})
        counts = Counter(number for number in kept.values() if isinstance(number, int))
        return {name: f"person {number}" for name, number in kept.items() if counts.get(number, 0) > 1}

    def _face_picture(self, run: Run, face: str, left_out: bool) -> Path:
        source = run.faces / f"{face}.png"
        key = fingerprint(run.folder.name, face, left_out, _touched(source))
        path = self.cache / "faces" / f"{key}.png"
        if not path.is_file():
            write_image(path, _face_picture(source, left_out))
        return path

    def toggle(self, name: str | None, index: int) -> None:
        """Leave out the face at this place in `faces`, or use it again."""
        run = self.run(name)
        if self.status(run).needs_faces:
            raise ValueError("stop the run before you change its faces")
        face = self._face_names(run)[index]
        leave_out(run, set(left_out_of(run)) ^ {face})

    def faces_said(self, name: str | None) -> str:
        """How many faces were found and left out, as HTML; "" if there are none."""
        run = self.run(name)
        names = self._face_names(run)
        if not names:
            return ""
        out = len(left_out_of(run))
        shown = f" The first {MAX_FACES_SHOWN} are shown." if len(names) > MAX_FACES_SHOWN else ""
        few = " Eight or more are needed for a verdict." if len(names) - out < 8 else ""
        return quiet(
            f"{len(names)} faces found, {out} left out. Click a face to leave it out or take it back.{shown}{few}"
        )

    def _face_names(self, run: Run) -> list[str]:
        return [name for face in _face_records(run) if _plain_name(name := str(face.get("name", "")))]

    # ------------------------------------------------------------ how it goes

    def state(self, name: str | None) -> str:
        """What the run is doing, with a bar and the time left, and the notes of its last job, as HTML."""
        status = self.status(self.run(name))
        parts = [_headline(status)]
        if status.active and status.steps:
            parts.append(
                f'<div class="bar"><i style="width:{100 * min(1, status.step / status.steps):.1f}%"></i></div>'
            )
        return block("".join([*parts, *map(quiet, status.notes[:MAX_NOTES_SHOWN])]))

    def progress(self, name: str | None) -> str:
        """Stages, triplets and curves of the adaptation, as HTML."""
        run = self.run(name)
        status, preview = self.status(run), self.jobs.preview(run)
        adapting = status.kind == "adapt"
        groups = run.by_group()
        parts = [_stages(status.stage, bool(_chosen(run).get("mixed")))] if adapting and status.active else []
        if adapting and preview is not None and status.stage == "targets":
            parts.append(f'<div class="faces">{_picture(preview, "a clean face taking shape")}</div>')
        parts += [self.triplets(one) for one in groups or [run]]
        of_job = adapting and (status.active or (status.curves and not groups))
        curves = status.curves if of_job else _kept_curves(run)
        drawn = "".join(chart(CURVES.get(n, n), c) for n, c in curves.items() if c)
        parts.append(f'<div class="charts">{drawn}</div>')
        return block("".join(parts))

    def triplets(self, run: Run) -> str:
        """The first faces that have a target: damaged, restored by the base, target."""
        names = [n for n in self._face_names(run) if (run.targets / f"{n}.png").is_file()][:TRIPLETS]
        rows = []
        for n in names:
            files = [folder / f"{n}.png" for folder in (run.faces, run.restored, run.targets)]
            if all(file.is_file() for file in files):
                rows.append((n, [read_image(file) for file in files]))
        return _grid(("damaged", "base restorer", "clean face to learn from"), rows)

    def stamp(self, name: str | None) -> str:
        """Changes whenever something about the run changes that is not shown by `progress`."""
        if not name or name not in self.names():
            return ""
        run, status = self.run(name), self.status(self.run(name))
        looked = place_of(run).folder / "first_look.json"
        times = [_touched(path) for path in (run.faces / "faces.json", run.left_out, run.report, run.result, looked)]
        return f"{name} {status.kind} {status.state} {status.file} {times}"

    # ------------------------------------------------------------ results

    def verdict(self, name: str | None) -> str:
        """The run's verdict on itself, as HTML; "" if it has none yet."""
        run = self.run(name)
        try:
            report = read_table(run.folder / "report.json", verdict=str)
        except ValueError as error:
            return failed(error)
        if not report:
            return ""
        verdict = str(report.get("verdict"))
        kind = verdict if verdict in VERDICTS else "not_judged"
        sentence = text(report.get("verdict_sentence", ""))
        return block(f'<p class="verdict {kind}"><b>{VERDICTS[kind]}.</b> {sentence}</p>')

    def details(self, name: str | None) -> str:
        """Faces before and after, figures and notes of the run's report, as HTML."""
        run = self.run(name)
        try:
            report = read_table(run.folder / "report.json", figures=list, tables=list, notes=list)
        except ValueError:  # which `verdict` says
            report = {}
        figures = "".join(_row((f.get("label", ""), f.get("value", ""))) for f in _tables(report.get("figures", [])))
        shown = ("Groups", PERSON_TABLE)
        tables = [table for table in _tables(report.get("tables", [])) if table.get("title") in shown]
        for table in tables:
            rows = (table.get("columns"), *(table["rows"] if isinstance(table.get("rows"), list) else ()))
            figures += "".join(_row(cells) for cells in rows if isinstance(cells, list))
        likeness = [quiet(str(table.get("note", ""))) for table in tables if table.get("title") == PERSON_TABLE]
        notes = "".join(quiet(str(note)) for note in report.get("notes", []))
        return block(f"{self._adapted_faces(run)}{''.join(likeness)}<table>{figures}</table>{notes}")

    def _adapted_faces(self, run: Run) -> str:
        """A few faces: damaged, base, adapted; without the base if its file is not on this machine."""
        if not run.result.is_file():
            return ""
        tuned = self.loaded(run.result)
        restorers = {"base restorer": tuned, "adapted restorer": tuned}
        said = ""
        try:
            restorers["base restorer"] = self._base_of(run, tuned)
        except (ValueError, OSError) as error:
            said = quiet(str(error))
            del restorers["base restorer"]
        rows, parts = [], run.by_group() or [run]
        for part in parts:
            names = [n for n in self._face_names(part) if (part.faces / f"{n}.png").is_file()]
            for n in names[: math.ceil(COMPARED_FACES / len(parts))]:
                lq = read_image(part.faces / f"{n}.png")
                rows.append((n, [lq, *(self._restored(one, lq) for one in restorers.values())]))
        return _grid(("damaged", *restorers), rows) + said

    def _base_of(self, run: Run, tuned: Restorer) -> Restorer:
        """The restorer that `tuned` was tuned from. Raises ValueError if it is not among the restorers here."""
        base = self.restorer_named(_chosen(run).get("restorer", "embedded"))
        wanted = tuned.metadata.get("base_sha256", base.sha256)
        if base.sha256 != wanted:
            name = printable(tuned.metadata.get("base", "")[:80]) or "unknown"
            raise ValueError(f"{printable(run.folder.name)}: its base, {name}, is not among the restorers here")
        return base

    def _restored(self, restorer: Restorer, face: Tensor) -> Tensor:
        return restorer.restore(square(face, restorer.size)[None])[0].cpu()

    def photos(self, name: str | None) -> list[str]:
        """The run's photos that have faces, by relative path."""
        return list(dict.fromkeys(str(face["photo"]) for face in _face_records(self.run(name)) if "photo" in face))

    def before_after(self, name: str | None, photo: str | None, before: str = "damaged") -> tuple[Path, Path]:
        """Two pictures of the whole photo at full size, in the page's cache: before and after.

        before: "damaged", or "base" for what the base restorer makes of the photo.
        """
        run = self.run(name)
        restores = _adapted(run)
        folder = self.photos_of(run)
        files = {path.relative_to(folder).as_posix(): path for path in list_images(folder)}
        if photo not in files:
            raise ValueError(f"{printable(str(photo))}: is not one of the run's photos")
        source = read_photo(files[photo], MAX_UPLOAD_PIXELS)
        tuned = self.loaded(restores)
        versions = [self._base_of(run, tuned) if before == "base" else None, tuned]
        aligned = self.choices_of(name).aligned
        suffix = ".png" if source.pixels[0].numel() <= LOSSLESS_PIXELS else ".jpg"
        shown = []
        for restorer in versions:
            key = restorer.sha256[:12] if restorer else "damaged"
            shown_as = f"{photo_name(Path(run.folder.name, photo))} {key}{suffix}"
            path = free_name(self.cache / "compare" / shown_as)
            pixels, step = (
                (source.pixels, None) if restorer is None else self._repaired(source.pixels, restorer, aligned)
            )
            if aligned and restorer is None:
                pixels = square(pixels, tuned.size)
            record = source.record.with_step(step)
            photo_shown = replace(source, pixels=pixels, alpha=None, exif=None, text={}, record=record, depth=8)
            write_photo(path, photo_shown)
            shown.append(path)
        return shown[0], shown[1]

    def _repaired(self, photo: Tensor, restorer: Restorer, aligned: bool) -> tuple[Tensor, Step | None]:
        """The photo with its faces restored, and the step for its record."""
        config = RestoreConfig()
        if aligned:
            return self._restored(restorer, photo), restoration_step(restorer, config, None, 1, 1)
        result = restore_photo(photo, restorer, config)
        return result.pixels, result.step

    def save(self, name: str | None) -> list[Path]:
        """Files to download, in the page's cache: the adapted restorer and the report; of groups, all in a zip."""
        run = self.run(name)
        stem = photo_name(Path(f"{name}.run"))
        if _adapted(run) == run.groups:
            files = [*group_files(run.groups), run.report, *(one.report for one in run.by_group())]
            folder = run.folder.resolve()
            return [self._offer(run, partial(zip_files, folder, [f.resolve() for f in files]), f"{stem}.zip")]
        kept = {run.restorer: f"{stem}.safetensors", run.report: f"{stem} report.html"}
        return [
            self._offer(run, partial(shutil.copyfile, file), shown) for file, shown in kept.items() if file.is_file()
        ]

    def _offer(self, run: Run, write: Callable[[Path], object], shown: str) -> Path:
        """A file that `write` makes in the page's cache, which is all that is served."""
        target = free_name(self.cache / "save" / photo_name(Path(f"{run.folder.name}.run")) / shown)
        replace_atomically(target, write)
        return target

    # ------------------------------------------------------------ repairing

    def repair(
        self,
        name: str | None,
        uploads: Sequence[str],
        folder: str,
        with_base: bool = False,
        strip_gps: bool = False,
        aligned: bool = False,
    ) -> list[str]:
        """Start repairing uploaded photos, or a folder, with the run's restorer; a line for each unusable upload.

        Without either, a repair that was stopped goes on with its photos.
        """
        run = self.run(name)
        if self.status(run).active:
            raise ValueError("the run is at work; wait for it, or stop it")
        restorer: str | Path = self.choices_of(name).restorer if with_base else _adapted(run, NO_RESTORER)
        photos, problems = run.folder / "to_repair", []
        if folder.strip():
            photos = self.typed_folder(folder)
            list_images(photos)
            write_json(run.folder / "repair.json", {"photos": str(photos)})
        elif uploads:
            claim(photos, "run", made_before=())
            say_kept(empty(photos))
            problems = self.keep_uploads(uploads, photos)
            write_json(run.folder / "repair.json", {"photos": ""})
        elif stopped := self._stopped_repair(run):
            photos = stopped
        else:
            raise ValueError("drop the photos to repair first, or name a folder")
        work = repair_photos(run, photos, restorer, RestoreConfig(), aligned, strip_gps, self.device)
        self.jobs.start(run, "repair", work)
        return problems

    def _stopped_repair(self, run: Run) -> Path | None:
        """The photos of a repair that was stopped, to go on with; None if the last job was something else, or ended."""
        status = self.status(run)
        if status.kind != "repair" or status.state not in ("cancelled", "stopped", "failed"):
            return None
        kept = read_table(run.folder / "repair.json", photos=str).get("photos")
        photos = self.typed_folder(kept) if kept else run.folder / "to_repair"
        return photos if photos.is_dir() else None

    def repaired(self, name: str | None) -> Path | None:
        """The last zip of repaired photos, in the page's cache."""
        run = self.run(name)
        status = self.status(run)
        archives = list((run.folder / "repaired").glob("*.zip"))
        if not archives or (status.kind == "repair" and status.active):
            return None
        newest = max(archives, key=_touched)
        return self._offer(run, partial(shutil.copyfile, newest), newest.name)

    # ------------------------------------------------------------ past runs

    def table(self) -> str:
        """All runs, a line each, as HTML."""
        rows = []
        for name in self.names():
            run = self.run(name)
            status = self.status(run)
            verdict = _verdict_of(run)
            state = f"{KINDS.get(status.kind, '')}: {status.state}" if status.kind else status.error
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(_touched(run.folder)))
            rows.append(_row((name, _number_of_faces(run), verdict, state, when)))
        if not rows:
            return block(quiet("There are no runs yet."))
        head = "".join(f"<th>{word}</th>" for word in ("run", "faces", "verdict", "last job", "when"))
        hint = quiet("To open one, choose it in the field Run at the top.")
        return block(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{hint}")

    def compare(self, name: str | None, other: str | None) -> str:
        """Faces of the first run, repaired by the restorers of both, and the verdicts on both."""
        runs = [self.run(name), self.run(other)]
        nets = [self.loaded(_adapted(run)) for run in runs]
        names = [run.folder.name for run in runs]
        rows = []
        for n in self._face_names(runs[0])[:COMPARED_FACES]:
            lq = read_image(runs[0].faces / f"{n}.png")
            rows.append((n, [lq, *(self._restored(net, lq) for net in nets)]))
        verdicts = []
        for run in runs:
            sentence = read_table(run.folder / "report.json").get("verdict_sentence", "")
            verdicts.append(f"<p><b>{text(run.folder.name)}: {text(_verdict_of(run))}.</b> {text(sentence)}</p>")
        return block("".join(verdicts) + _grid(("damaged", *names), rows))

    # ------------------------------------------------------------ networks

    def adapted(self) -> list[str]:
        """The runs that have an adapted restorer."""
        return [name for name in self.names() if Run(self.runs / name).result.is_file()]

    def restorer_named(self, name: str) -> Restorer:
        """A restorer that the page offers."""
        if name not in restorers():
            raise ValueError(f"{printable(name)}: is not one of {', '.join(restorers())}")
        return self.loaded("embedded" if name == "embedded" else locate(name) or Path(name))

    def loaded(self, source: str | Path) -> Restorer:
        """The restorer in a file; the last few are kept in memory, each while its file stays the same."""
        status = Path(source).stat() if isinstance(source, Path) else None
        key = (str(source), status and (status.st_size, status.st_mtime_ns))
        with self._loading:
            if key not in self._loaded:
                while len(self._loaded) > 2:
                    self._loaded.pop(next(iter(self._loaded)))
                self._loaded[key] = load_restorer(source).to(choose_device(self.device))
            return self._loaded[key]

    def forget(self) -> None:
        """Let go of the networks that were kept; jobs keep their own."""
        with self._loading:
            self._loaded.clear()


def restorers() -> list[str]:
    """Restorers that are on this machine, by the name the table knows them under."""
    return ["embedded", *(w.name for w in TABLE if ", restorer," in w.what and locate(w.name))]


def value_at(config: Any, path: str) -> Any:
    """The setting at a dotted path."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def _adapted(run: Run, advice: str = "adapt first") -> Path:
    """The file of the run's adapted restorer. Raises ValueError if there is none."""
    if not run.result.is_file():
        raise ValueError(f"{printable(run.folder.name)}: has no adapted restorer yet; {advice}")
    return run.result


def _chosen(run: Run) -> dict[str, Any]:
    """What was chosen for the run last, as `Page.remember` keeps it."""
    return read_table(run.folder / "request.json") or _chosen_elsewhere(run)


def _chosen_elsewhere(run: Run) -> dict[str, Any]:
    """What `Page.remember` would have kept of a run of the command line, from the settings of its stages."""
    config = run.config()
    faces, tuning = config.get("faces", {}), config.get("finetune", {})
    used = config.get("targets", {}).get("restorer", "embedded")
    given = {
        "restorer": "embedded" if used == EMBEDDED.name else used,
        "minutes": tuning.get("minutes"),
        "aligned": faces.get("aligned"),
        "min_face": faces.get("min_face"),
        "mixed": "groups" in tuning,
        "recipe": config.get("recipe", {}).get("name"),
        "real": config.get("recipe", {}).get("real"),
        "changes": {path: value for path in ADVANCED if (value := _at(config, path)) is not None},
    }
    return {name: value for name, value in given.items() if value is not None}


def _at(config: Any, path: str) -> Any:
    """The value at a dotted path of a read config.json; None if it is not there."""
    for part in path.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def changes_of(values: Sequence[Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What was changed among the `ADVANCED` settings, in the settings' own types; an empty field is the default."""
    given = dict(zip(ADVANCED, values, strict=True))
    typed = {path: type(defaults[path])(value) for path, value in given.items() if value is not None}
    return {path: value for path, value in typed.items() if value != defaults[path]}


# ---------------------------------------------------------------- words and pictures


def text(value: object) -> str:
    """`value` on one line, escaped for use between tags and in quoted attributes."""
    return escape(printable(str(value)), quote=True)


def block(body: str) -> str:
    """HTML in a block with the page's own styles."""
    return f'<div class="bfr">{body}</div>'


def quiet(line: str) -> str:
    """A line in subdued type, as HTML."""
    return f'<p class="quiet">{text(line)}</p>'


def said(line: str, problems: Sequence[str] = ()) -> str:
    """What was done, and which files could not be used, as HTML; "" if there is nothing to say."""
    count = len(problems)
    left_out = [f"{count} {'file' if count == 1 else 'files'} cannot be used:", *problems[:10]] if problems else []
    lines = [text(shown) for shown in (line, *left_out) if shown]
    return block(f'<p class="said" role="status">{"<br>".join(lines)}</p>') if lines else ""


def failed(error: Exception) -> str:
    """The first line of an error, as HTML."""
    return block(f'<p class="error" role="alert">{text(first_line(error))}</p>')


def _headline(status: Status) -> str:
    if status.state == "new":
        return quiet("Nothing was started yet.")
    if status.state == "failed":
        what = KINDS.get(status.kind, "the job").capitalize()
        return f'<p class="error" role="alert">{text(what)} failed: {text(status.error)}</p>'
    if status.state == "done":
        return f"<p><b>{text(NEXT.get(status.kind, 'Done'))}</b></p>"
    if status.state != "running":
        where = f" ({KINDS[status.kind]})" if status.kind in KINDS else ""
        return f"<p><b>{text(STATES.get(status.state, status.state))}</b>{text(where)}</p>"
    if not status.stage:
        return "<p><b>Starting</b></p>"
    group = f"Group {status.group} of {status.groups}: " if status.groups else ""
    left = f", {duration(status.seconds_left)} left in this stage" if status.seconds_left is not None else ""
    return (
        f"<p><b>{text(group + STAGES.get(status.stage, status.stage))}</b>: "
        f"{status.step:,} of {status.steps:,}{text(left)}</p>"
    )


def _stages(now: str, mixed: bool) -> str:
    order = [stage for stage in STAGES if stage not in ("repair", "people") and (mixed or stage != "groups")]
    place = order.index(now) if now in order else 0
    items = ""
    for i, stage in enumerate(order):
        kind = "over" if i < place else "now" if i == place else ""
        items += f'<li class="{kind}">{STAGES[stage]}</li>'
    return f'<ul class="steps">{items}</ul>'


def _row(cells: Iterable[object]) -> str:
    """A row of a table."""
    return f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"


def _grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tensor]]]) -> str:
    """Rows of pictures, each with its column's name below; "" without rows."""
    groups = ""
    for name, pictures in rows:
        cells = "".join(_picture(picture, column, name) for column, picture in zip(columns, pictures, strict=True))
        groups += f'<div class="faces">{cells}</div>'
    return f'<div class="rows">{groups}</div>' if groups else ""


def _picture(picture: Tensor, caption: str, name: str = "") -> str:
    alt = f"{caption}: {name}" if name else caption
    image = f'<img src="{data_uri(picture, THUMBNAIL)}" alt="{text(alt)}">'
    return f"<figure>{image}<figcaption>{text(caption)}</figcaption></figure>"


def _face_picture(file: Path, left_out: bool) -> Tensor:
    """(3, S, S) in [0, 1]; a face left out is dark, with a cross over it."""
    if not file.is_file():
        return torch.zeros(3, THUMBNAIL, THUMBNAIL)
    face = read_image(file)
    if left_out:
        size = face.shape[-1]
        face = face.mean(0, keepdim=True).expand(3, -1, -1) * 0.35
        line = torch.eye(size).bool()
        wide = torch.nn.functional.max_pool2d(line[None].float(), 2 * (size // 48) + 1, 1, size // 48)[0] > 0
        face = face.masked_fill(wide | wide.flip(-1), 0.8)
    return face


def _kept_curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """The curves of the run's report, or of its groups'; {} if it has none, or they are not numbers."""
    if groups := list(enumerate(run.by_group(), 1)):
        return {f"group {i}: {CURVES.get(n, n)}": c for i, one in groups for n, c in _kept_curves(one).items()}
    try:
        kept = read_table(run.folder / "report.json", loss_curves=dict).get("loss_curves", {})
        return {str(name): thinned(points_of(curve)) for name, curve in kept.items()}
    except (TypeError, ValueError):
        return {}


def _verdict_of(run: Run) -> str:
    """The run's verdict in a word; a damaged report hides no other run."""
    try:
        return VERDICTS.get(read_table(run.folder / "report.json", verdict=str).get("verdict", ""), "")
    except ValueError:
        return "report damaged"


def _face_records(run: Run) -> list[dict[str, Any]]:
    """What the run's faces.json holds of each face; [] if it has none. Raises ValueError naming the file if damaged."""
    return _tables(read_table(run.faces / "faces.json", faces=list).get("faces", []))


def _number_of_faces(run: Run) -> int | str:
    """The number of a run's faces, for the list of all runs, in which a damaged one hides no other."""
    try:
        return len(_face_records(run)) or ""
    except ValueError:
        return "list damaged"


def _tables(values: Iterable[Any]) -> list[dict[str, Any]]:
    """Those of `values`, read from a file, that are tables."""
    return [value for value in values if isinstance(value, dict)]


def _plain_name(name: str) -> bool:
    """Whether a face's name is a file name and not a path: it was read from a run folder."""
    return bool(name) and Path(name).name == name and "\\" not in name and name not in (".", "..")


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem} {number}"


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
