"""What the buttons of the page do: begin, go on with, stop and delete runs, repair photos, hand out files.

`Page` also has what the page shows (`views`) and the runs themselves (`runs`). No web framework is needed here.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..adaptation.faces import StageCallback, leave_out, left_out_of
from ..adaptation.old_runs import list_old_run
from ..adaptation.run import Run
from ..files.ownership import LIST, claim, delete, empty, free_name
from ..files.photos import list_images, photo_name, printable, replace_atomically
from ..files.records import read_table, write_json
from ..files.stages import say_kept
from ..restoration.background import OFF, offered_backgrounds
from ..restoration.restore import NO_WORSE, RestoreConfig
from ..restorers.routed import group_files
from .choices import Choices
from .jobs import Kind, Outcome, Status, adapt_restorer, find_faces, look_first, repair_photos, zip_files
from .runs import MARKS, adapted_file, touched
from .views import RunViews

AT_WORK = "the run is at work; wait for it, or stop it"
NO_RESTORER = "adapt first, or repair with the base"
NOT_BOTH = "photos were dropped and a folder is named: take the photos away, or clear the field of the folder"


class Page(RunViews):
    """The runs below one folder, what is shown of them, and what may be done with them.

    Methods raise ValueError, FileNotFoundError or OSError, in one line, for what cannot be done.
    """

    def new_run(self, title: str, uploads: Sequence[str], folder: str, choices: Choices) -> tuple[str, list[str]]:
        """Make a run from uploaded photos, or a folder, and look for faces; returns its name and unusable uploads."""
        if folder.strip() and uploads:
            raise ValueError(NOT_BOTH)
        photos = self.typed_folder(folder) if folder.strip() else None
        if photos is None and not uploads:
            raise ValueError("drop some photos first, or name a folder")
        self.checked(choices)
        if photos:
            list_images(photos)
        files, problems = self.usable_uploads(uploads) if not photos else ([], [])
        fallback = photos.name if photos else f"run {time.strftime('%Y-%m-%d %H.%M')}"
        run = Run(self._new_folder(title.strip() or fallback))
        run.claim()
        try:
            if photos is None:
                claim(run.photos, "run")
                self.keep_uploads(run, files, run.photos)
            write_json(run.folder / "request.json", {"photos": str(photos or ""), "restorer": choices.restorer})
            self.look_for_faces(run.folder.name, choices)
        except (ValueError, OSError):
            delete(run.folder)
            raise
        return run.folder.name, problems

    def look_for_faces(self, name: str, choices: Choices) -> None:
        """Start looking for faces in the run's photos."""
        run = self.run(name)
        with self.alone(run):
            self.remember(run, choices)
            photos, settings = self.photos_of(run), self.settings_of(choices)
            work = find_faces(run, photos, choices.restorer, settings, self.device, choices.recipe)
            self.jobs.start(run, "faces", work)

    def search_goes_on(self, name: str | None, choices: Choices) -> bool:
        """Look for faces again in the photos of a run whose search was stopped, or failed; False if its last job was
        something else, or ended."""
        if not name:
            return False
        with self.alone(run := self.run(name)):
            if not self._stopped(self.status(run), "faces"):
                return False
            self.look_for_faces(name, self._chosen(run, choices)[0])
        return True

    def _chosen(self, run: Run, choices: Choices) -> tuple[Choices, dict[str, Any]]:
        """The choices with which the run goes on, and the settings that they make."""
        self.refuse_other_networks(run)
        choices = self.with_others(run, choices)
        return choices, self.checked(choices)

    def adapt(self, name: str | None, choices: Choices) -> Status:
        """Start the adaptation, or go on with it; a run that is at work already is left alone."""
        with self.alone(run := self.run(name)):
            if (status := self.status(run)).active:
                return status
            choices, values = self._chosen(run, choices)
            photos = self.photos_of(run)
            self.remember(run, choices)
            adapt_now = adapt_restorer(
                run, photos, choices.restorer, values, self.device, choices.mixed, choices.recipe
            )

            def work(callback: StageCallback) -> Outcome:
                try:
                    return adapt_now(callback)
                finally:
                    self.changed()

            return self.jobs.start(run, "adapt", work, 60 * choices.minutes)

    def look_first(self, name: str | None, choices: Choices) -> Status:
        """Start the first look at what an adaptation would do; a run that is at work already is left alone."""
        with self.alone(run := self.run(name)):
            if (status := self.status(run)).active:
                return status
            choices, settings = self._chosen(run, choices)
            self.remember(run, choices)
            photos = None
            with contextlib.suppress(ValueError, OSError):  # only for faces of another size than the run's
                photos = self.photos_of(run)
            work = look_first(run, photos, choices.restorer, settings, self.device, choices.recipe)
            return self.jobs.start(run, "look", work)

    def stop(self, name: str | None) -> None:
        """Stop the run's job after its present step."""
        self.jobs.cancel(self.run(name))

    def delete(self, name: str | None) -> list[str]:
        """Delete the run with all that this program wrote there; returns what is kept, by its path in the run."""
        with self.alone(run := self.run(name)):
            if self.status(run).active:
                raise ValueError(f"{printable(str(name))}: is at work; stop it first")
            list_old_run(run)
            self.forget_pictures(run)
            try:
                last = (LIST, *MARKS)  # what is left after an error can be deleted again
                for path in sorted(run.folder.iterdir()):
                    if path.name not in last:
                        delete(path)
                kept = delete(run.folder)
            finally:
                self.changed()
        return [path.relative_to(run.folder).as_posix() for path in kept]

    def toggle(self, name: str | None, index: int) -> None:
        """Leave out the face at this place in `faces`, or use it again."""
        run = self.run(name)
        if self.status(run).needs_faces:
            raise ValueError("stop the run before you change its faces")
        names = self.face_names(run)
        if not index < len(names):
            raise ValueError("the run has fewer faces by now; open it again")
        face = names[index]
        with self._leaving_out:
            leave_out(run, set(left_out_of(run)) ^ {face})

    def save(self, name: str | None) -> list[Path]:
        """Files to download, in the page's cache: the adapted restorer and the report; of groups, all in a zip."""
        run = self.run(name)
        stem = photo_name(Path(f"{name}.run"))
        if adapted_file(run) == run.groups:
            files = [*group_files(run.groups), run.report, *(one.report for one in run.by_group())]
            folder = run.folder.resolve()
            return [self._offer(run, partial(zip_files, folder, [f.resolve() for f in files]), f"{stem}.zip")]
        kept = {run.restorer: f"{stem}.safetensors", run.report: f"{stem} report.html"}
        return [
            self._offer(run, partial(shutil.copyfile, file), shown) for file, shown in kept.items() if file.is_file()
        ]

    def _offer(self, run: Run, write: Callable[[Path], object], shown: str) -> Path:
        """A file that `write` makes in the page's cache, which is all that is served."""
        target = free_name(self.shown_of(run, "save") / shown)
        replace_atomically(target, write)
        return target

    def repair(
        self,
        name: str | None,
        uploads: Sequence[str],
        folder: str,
        with_base: bool = False,
        strip_gps: bool = False,
        aligned: bool = False,
        config: RestoreConfig | None = None,
    ) -> list[str]:
        """Start repairing uploaded photos, or a folder, with the run's restorer; a line for each unusable upload.

        config: how they are restored, by default as everywhere. Without uploads and folder, a repair that was stopped
        goes on with its photos, as it was begun; where the photos were taken is left out if either call says so.
        """
        run = self.run(name)
        with self.alone(run):
            if self.status(run).active:
                raise ValueError(AT_WORK)
            return self._begin_repair(run, uploads, folder, with_base, strip_gps, aligned, config or RestoreConfig())

    def _begin_repair(
        self,
        run: Run,
        uploads: Sequence[str],
        folder: str,
        with_base: bool,
        strip_gps: bool,
        aligned: bool,
        config: RestoreConfig,
    ) -> list[str]:
        """`repair` of a run that is not at work."""
        if folder.strip() and uploads:
            raise ValueError(NOT_BOTH)
        stopped = None if folder.strip() or uploads else self._stopped_repair(run)
        if stopped:
            begun = _repair_begun(run)
            with_base, aligned = begun.get("with_base", with_base), begun.get("aligned", aligned)
            strip_gps = strip_gps or begun.get("strip_gps", False)
            config = replace(config, **{what: begun[what] for what in (*NO_WORSE, "background") if what in begun})
        chosen = {"with_base": with_base, "strip_gps": strip_gps, "aligned": aligned}
        chosen |= {what: getattr(config, what) for what in (*NO_WORSE, "background")}
        if with_base:
            self.refuse_other_networks(run, ("restorer",))
        name = run.folder.name
        restorer: str | Path = self.choices_of(name).restorer if with_base else adapted_file(run, NO_RESTORER)
        photos, problems = run.folder / "to_repair", list[str]()
        before = read_table(run.folder / "repair.json", photos=str).get("photos", "")
        if folder.strip():
            photos = self.typed_folder(folder)
            list_images(photos)
            write_json(run.folder / "repair.json", {"photos": str(photos)} | chosen)
        elif uploads:
            files, problems = self.usable_uploads(uploads)  # first: a stopped repair is not given up for nothing
            claim(photos, "run", made_before=())
            say_kept(empty(photos))
            self.keep_uploads(run, files, photos)
            write_json(run.folder / "repair.json", {"photos": ""} | chosen)
        elif stopped:
            photos = stopped
            write_json(run.folder / "repair.json", {"photos": before} | chosen)
        else:
            raise ValueError("drop the photos to repair first, or name a folder")
        if before != read_table(run.folder / "repair.json", photos=str).get("photos", ""):
            say_kept(delete(run.folder / "repaired" / "under way"))  # of a repair of other photos, which was stopped
        work = repair_photos(run, photos, restorer, config, aligned, strip_gps, self.device)
        self.jobs.start(run, "repair", work)
        if not self.jobs.has(run, work):  # another job has begun since
            raise ValueError(AT_WORK)
        return problems

    @staticmethod
    def _stopped(status: Status, kind: Kind) -> bool:
        return status.kind == kind and status.state in ("cancelled", "stopped", "failed")

    def _stopped_repair(self, run: Run) -> Path | None:
        """The photos of a repair that was stopped, to go on with; None if the last job was something else, or ended."""
        if not self._stopped(self.status(run), "repair"):
            return None
        kept = read_table(run.folder / "repair.json", photos=str).get("photos")
        photos = self.typed_folder(kept) if kept else run.folder / "to_repair"
        return photos if photos.is_dir() else None

    def repaired(self, name: str | None) -> Path | None:
        """The last zip of repaired photos, in the page's cache; copied there once, however often it is asked for."""
        run = self.run(name)
        status = self.status(run)
        archives = list((run.folder / "repaired").glob("*.zip"))
        if not archives or (status.kind == "repair" and status.active):
            return None
        newest = max(archives, key=touched)
        target = self.shown_of(run, "save") / str(newest.stat().st_mtime_ns) / newest.name
        if not target.is_file():
            replace_atomically(target, partial(shutil.copyfile, newest))
        return target


def _repair_begun(run: Run) -> dict[str, Any]:
    """What was chosen for the run's last repair, as far as it is known; what a run folder says is not trusted.

    Raises ValueError naming the file if it is damaged, or a file for the background that is not offered any more.
    """
    boxes = ("with_base", "strip_gps", "aligned", *NO_WORSE)
    kept = read_table(run.folder / "repair.json", **dict.fromkeys(boxes, bool), background=str)
    begun = {name: kept[name] for name in (*boxes, "background") if name in kept}
    if begun.get("background", OFF) not in offered_backgrounds().values():
        named = printable(Path(begun["background"]).name)
        raise ValueError(f"the repair was begun with {named} for the rest, which is not here; drop the photos again")
    return begun
