"""What the page shows of its runs: galleries of faces, progress, verdicts, tables, and photos before and after."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..adaptation.faces import left_out_of
from ..adaptation.first_look import COLUMNS, place_of, read_first_look
from ..adaptation.report import PERSON_TABLE
from ..adaptation.run import Run
from ..device import is_out_of_memory
from ..errors import first_line
from ..files.ownership import LIST, Ledger, free_name
from ..files.photos import FORMATS, list_images, photo_name, printable, read_image, read_photo, write_image, write_photo
from ..files.provenance import Step
from ..files.records import fingerprint, read_table
from ..reports.charts import chart
from ..reports.html import VERDICTS
from ..restoration.restore import RestoreConfig, restoration_step, restore_photo, square
from ..restorers import Restorer
from ..training.batches import FEWEST
from .choices import chosen_for
from .jobs import points_of, thinned
from .pieces import KINDS, block, face_picture, failed, figure, grid, headline, quiet, row, stage_list, text
from .runs import (
    MAX_UPLOAD_PIXELS,
    RunFolders,
    adapted_file,
    face_records,
    number_of_faces,
    sendable_names,
    tables_in,
    touched,
    verdict_of,
)

MAX_FACES_SHOWN = 300
MAX_NOTES_SHOWN = 20
TRIPLETS = 4
COMPARED_FACES = 6
LOSSLESS_PIXELS = 2_000_000  # a comparison of larger photos is shown as JPEG
CURVES = {  # names of the report's curves -> what they are to someone who sees them for the first time
    "l1": "distance to the clean faces",
    "texture": "difference in texture",
    "hatching": "patterns of two pixels beyond the target's",
    "anchor": "old skills lost",
}


class RunViews(RunFolders):
    """What is shown of the runs below one folder; pictures lie in the page's cache."""

    def faces(self, name: str | None) -> list[tuple[Path, str]]:
        """A picture of every face of the run, in the page's cache, with the text below it.

        Faces that are left out are dark, with a cross over them.
        """
        run = self.run(name)
        names = self.face_names(run)[:MAX_FACES_SHOWN]
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
        key = fingerprint(run.folder.name, face, left_out, touched(source))
        path = self.shown_of(run, "faces") / f"{key}.png"
        if not path.is_file():
            write_image(path, face_picture(source, left_out))
        return path

    def faces_said(self, name: str | None) -> str:
        """How many faces were found and left out, as HTML; "" if there are none."""
        run = self.run(name)
        names = self.face_names(run)
        if not names:
            return ""
        out = len(left_out_of(run))
        shown = f" The first {MAX_FACES_SHOWN} are shown." if len(names) > MAX_FACES_SHOWN else ""
        few = f" {FEWEST} or more are needed for a verdict." if len(names) - out < FEWEST else ""
        return quiet(
            f"{len(names)} faces found, {out} left out. Click a face to leave it out or take it back.{shown}{few}"
        )

    def state(self, name: str | None) -> str:
        """What the run is doing, with a bar and the time left, and the notes of its last job, as HTML."""
        status = self.status(self.run(name))
        parts = [headline(status)]
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
        parts = [stage_list(status.stage, bool(chosen_for(run).get("mixed")))] if adapting and status.active else []
        if adapting and preview is not None and status.stage == "targets":
            parts.append(f'<div class="faces">{figure(preview, "a clean face taking shape")}</div>')
        parts += [self.triplets(one) for one in groups or [run]]
        of_job = adapting and (status.active or (status.curves and not groups))
        curves = status.curves if of_job else kept_curves(run)
        drawn = "".join(chart(CURVES.get(n, n), c) for n, c in curves.items() if c)
        parts.append(f'<div class="charts">{drawn}</div>')
        return block("".join(parts))

    def triplets(self, run: Run) -> str:
        """The first faces that have a target: damaged, restored by the base, target."""
        names = [n for n in self.face_names(run) if (run.targets / f"{n}.png").is_file()][:TRIPLETS]
        rows = []
        for n in names:
            files = [folder / f"{n}.png" for folder in (run.faces, run.restored, run.targets)]
            if all(file.is_file() for file in files):
                rows.append((n, [read_image(file) for file in files]))
        return grid(("damaged", "base restorer", "pseudo target"), rows)

    def first_look(self, name: str | None) -> str:
        """The run's last first look, as HTML; "" if it has none."""
        try:
            found = read_first_look(self.run(name))
        except ValueError as error:
            return failed(error)
        if found is None:
            return ""
        rows, lines = found
        return block(f"<h3>A first look</h3>{''.join(map(quiet, lines))}{grid(COLUMNS, rows)}")

    def stamp(self, name: str | None) -> str:
        """Changes whenever something about the run changes that is not shown by `progress`."""
        if not name or name not in self.names():
            return ""
        run, status = self.run(name), self.status(self.run(name))
        looked = place_of(run).folder / "first_look.json"
        files = (run.faces / "faces.json", run.left_out, run.people, looked, run.report, run.result)
        times = [touched(path) for path in files]
        return f"{name}\n{status.kind} {status.state} {printable(status.file)} {times}"

    @staticmethod
    def is_of(stamp: str, name: str | None) -> bool:
        """Whether a stamp is of this run."""
        of, is_stamp, _ = stamp.rpartition("\n")
        return bool(is_stamp) and of == name

    @staticmethod
    def same_result(one: str, other: str) -> bool:
        """Whether the report and the restorer are the same at both stamps, which are of one run."""
        return one.rsplit(", ", 2)[1:] == other.rsplit(", ", 2)[1:]

    @staticmethod
    def only_files_changed(shown: str, before: str, after: str) -> bool:
        """Whether a page that shows the run as of the stamp `shown` misses nothing of its job, at the stamp `after`.

        before, after: stamps around a change of files that the page shows by itself.
        """
        return before == shown and before.rpartition(" [")[0] == after.rpartition(" [")[0]

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
        figures = "".join(row((f.get("label", ""), f.get("value", ""))) for f in tables_in(report.get("figures", [])))
        shown = ("Groups", PERSON_TABLE)
        tables = [table for table in tables_in(report.get("tables", [])) if table.get("title") in shown]
        for table in tables:
            rows = (table.get("columns"), *(table["rows"] if isinstance(table.get("rows"), list) else ()))
            figures += "".join(row(cells) for cells in rows if isinstance(cells, list))
        likeness = [quiet(str(table.get("note", ""))) for table in tables if table.get("title") == PERSON_TABLE]
        notes = "".join(quiet(str(note)) for note in report.get("notes", []))
        return block(f"{self._few_faces(run)}{''.join(likeness)}<table>{figures}</table>{notes}")

    def _few_faces(self, run: Run) -> str:
        """`_adapted_faces`, made once for a restorer and its faces; the networks go when they are made."""
        if not run.result.is_file():
            return ""
        faces = [(n, touched(part.faces / f"{n}.png")) for part, n in self._compared(run)]
        key = fingerprint(run.folder.name, touched(run.result), chosen_for(run).get("restorer"), faces)
        if key not in self._grids:
            with self.only_to_look():
                made, whole = self._adapted_faces(run)
            if not whole:
                return made
            while len(self._grids) > 3:
                self._grids.pop(next(iter(self._grids)), None)
            self._grids[key] = made
        return self._grids[key]

    def _compared(self, run: Run) -> list[tuple[Run, str]]:
        """The faces that `_adapted_faces` shows: of a run, or of each of its groups."""
        parts = run.by_group() or [run]
        each = math.ceil(COMPARED_FACES / len(parts))
        there = [(part, [n for n in self.face_names(part) if (part.faces / f"{n}.png").is_file()]) for part in parts]
        return [(part, n) for part, names in there for n in names[:each]]

    def _adapted_faces(self, run: Run) -> tuple[str, bool]:
        """A few faces: damaged, base, adapted; without the base if its file is not on this machine.

        Also whether nothing is missing.
        """
        try:
            tuned = self.loaded(run.result)
        except (ValueError, OSError) as error:  # a damaged file hides nothing else of the run
            return quiet(str(error)), False
        restorers = {"base restorer": tuned, "adapted restorer": tuned}
        said = ""
        try:
            restorers["base restorer"] = self.base_of(run, tuned)
        except (ValueError, OSError) as error:
            said = quiet(str(error))
            del restorers["base restorer"]
        rows = []
        for part, n in self._compared(run):
            try:
                lq = read_image(part.faces / f"{n}.png")
                rows.append((n, [lq, *(self._restored(one, lq) for one in restorers.values())]))
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                return quiet(f"No faces can be shown now: {first_line(error)}"), False
        return grid(("damaged", *restorers), rows) + said, not said

    def _restored(self, restorer: Restorer, face: Tensor) -> Tensor:
        return restorer.restore_without_colour(square(face, restorer.size)[None])[0]

    def photos(self, name: str | None) -> list[str]:
        """The run's photos that have faces: the `sendable_names` of their relative paths."""
        return list(self._photos(self.run(name)))

    def _photos(self, run: Run) -> dict[str, str]:
        """What is shown of each photo that has faces -> its relative path."""
        return sendable_names(dict.fromkeys(str(face["photo"]) for face in face_records(run) if "photo" in face))

    def before_after(self, name: str | None, photo: str | None, before: str = "damaged") -> tuple[Path, Path]:
        """Two pictures of the whole photo at full size, in the page's cache: before and after.

        before: "damaged", or "base" for what the base restorer makes of the photo.
        """
        run = self.run(name)
        restores = adapted_file(run)
        folder = self.photos_of(run)
        files = {path.relative_to(folder).as_posix(): path for path in list_images(folder)}
        photo = self._photos(run).get(str(photo), photo)
        if photo not in files:
            raise ValueError(f"{printable(str(photo))}: is not one of the run's photos")
        which = fingerprint(photo, touched(files[photo]))[:6]  # "1.jpg" is not "1.png", nor itself after a change
        source = read_photo(files[photo], MAX_UPLOAD_PIXELS)
        tuned = self.loaded(restores)
        versions = [self.base_of(run, tuned) if before == "base" else None, tuned]
        aligned = self.choices_of(name).aligned
        suffix = ".png" if source.pixels[0].numel() <= LOSSLESS_PIXELS else ".jpg"
        shown = []
        for restorer in versions:
            key = restorer.sha256[:12] if restorer else "damaged"
            shown_as = f"{photo_name(Path(photo))} {which} {key}{suffix}"
            path = free_name(self.shown_of(run, "compare") / shown_as)
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

    def to_delete(self, name: str | None) -> str:
        """The label of the box to be ticked before the run is deleted: all that goes with it."""
        run, parts = self.run(name), ["its faces", "its restorer"]
        if any(where.is_dir() for where in (run.photos, run.folder / "to_repair")):
            parts.append("its copies of the photos that were dropped")
        if zips := len(list((run.folder / "repaired").glob("*.zip"))):
            parts.append("the zip of repaired photos" if zips == 1 else f"{zips} zips of repaired photos")
        if restored := number_of_results(run):
            parts.append(f"{restored} restored photo{'s' * (restored > 1)}")
        return f"Delete {printable(run.folder.name)}, with {', '.join(parts[:-1])} and {parts[-1]}"

    def table(self) -> str:
        """All runs, a line each, as HTML."""
        rows = []
        for name in self.names():
            run = self.run(name)
            status = self.status(run)
            verdict = verdict_of(run)
            state = f"{KINDS.get(status.kind, '')}: {status.state}" if status.kind else status.error
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(touched(run.folder)))
            rows.append(row((name, number_of_faces(run), verdict, state, when)))
        if not rows:
            return block(quiet("There are no runs yet."))
        head = "".join(f"<th>{word}</th>" for word in ("run", "faces", "verdict", "last job", "when"))
        hint = quiet("To open one, choose it in the field Run at the top.")
        return block(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{hint}")

    def compare(self, name: str | None, other: str | None) -> str:
        """Faces of the first run, repaired by the restorers of both, and the verdicts on both."""
        runs = [self.run(name), self.run(other)]
        nets = [self.loaded(adapted_file(run)) for run in runs]
        names = [run.folder.name for run in runs]
        rows = []
        for n in self.face_names(runs[0])[:COMPARED_FACES]:
            lq = read_image(runs[0].faces / f"{n}.png")
            rows.append((n, [lq, *(self._restored(net, lq) for net in nets)]))
        verdicts = []
        for run in runs:
            sentence = read_table(run.folder / "report.json").get("verdict_sentence", "")
            verdicts.append(f"<p><b>{text(run.folder.name)}: {text(verdict_of(run))}.</b> {text(sentence)}</p>")
        return block("".join(verdicts) + grid(("damaged", *names), rows))


def number_of_results(run: Run) -> int:
    """How many photos lie in folders of results below the run, see `claim_results`."""
    folders = [file.parent for file in run.folder.rglob(LIST) if Ledger(file.parent).kind == "results"]
    return len({file for folder in folders for file in folder.rglob("*") if file.suffix.lower() in FORMATS})


def kept_curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """The curves of the run's report, or of its groups'; {} if it has none, or they are not numbers."""
    if groups := list(enumerate(run.by_group(), 1)):
        return {f"group {i}: {CURVES.get(n, n)}": c for i, one in groups for n, c in kept_curves(one).items()}
    try:
        kept = read_table(run.folder / "report.json", loss_curves=dict).get("loss_curves", {})
        return {str(name): thinned(points_of(curve)) for name, curve in kept.items()}
    except (TypeError, ValueError):
        return {}
