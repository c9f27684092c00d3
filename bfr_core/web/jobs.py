"""Jobs in the background, one per run folder: they outlive whoever started them, and anyone may ask how far they are.

Nothing here knows a page: a job is a thread that calls a function and records what its callback is told.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import zipfile
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from ..adaptation.adapt import adapt
from ..adaptation.faces import StageCallback, collect_faces
from ..adaptation.first_look import first_look
from ..adaptation.forecast import Forecast, forecast_run, tell_before
from ..adaptation.people import find_people
from ..adaptation.per_damage import ONE_DAMAGE, adapt_mixed
from ..adaptation.published import RECOMMENDED, recipe_with
from ..adaptation.run import Run
from ..device import choose_device, release_memory
from ..diffusion.prior import load_prior
from ..errors import first_line
from ..files.names import numbered
from ..files.ownership import delete, free_name, is_own, move
from ..files.photos import printable, replace_atomically, to_unit
from ..files.records import read_table, write_json
from ..files.stages import is_held
from ..restoration.folder import restore_folder
from ..restoration.restore import RestoreConfig
from ..restoration.same_person import counted, warnings_of
from ..restorers import load_restorer
from ..training.checkpoint import TuningProgress

log = logging.getLogger(__name__)

Kind = Literal["faces", "look", "adapt", "repair"]
State = Literal["new", "waiting", "running", "elsewhere", "done", "cancelled", "failed", "stopped"]
WRITE_SECONDS = 2.0
TURN_SECONDS = 0.2  # between two checks whether a waiting job's turn has come
MAX_POINTS = 200  # of a curve
MAX_NOTES = 100
PEOPLE_SOUGHT = 100  # faces up to which it is found out unasked whose they are: a fraction of a second each


class Cancelled(Exception):
    """Raised inside a job that was told to stop."""


@dataclass(frozen=True)
class Outcome:
    """What a job made: a file, by its path in the run folder, and what there is to say of it, in lines."""

    file: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """How far the last job of a run is.

    state: "new" if there is nothing yet, "stopped" if the job's process ended before the job did, "elsewhere" while a
    process that has no jobs, such as the command line, is at work on the run.
    stage, step, steps: as in `adaptation.StageCallback`. seconds_left: of this stage; None if that is not known yet.
    group, groups: which group of damages the stages are of, from 1, and how many there are; 0 if there are none.
    error: why it failed, in one line. file, notes: see `Outcome`. curves: (step, value) by name, while tuning.
    """

    kind: str = ""
    state: State = "new"
    stage: str = ""
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    group: int = 0
    groups: int = 0
    error: str = ""
    file: str = ""
    notes: tuple[str, ...] = ()
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        return self.state in ("waiting", "running", "elsewhere")

    @property
    def needs_faces(self) -> bool:
        """Whether the job is at work on the run's faces, so that none may be left out or taken back meanwhile.

        Repairing other photos does not need them. Telling people apart and the forecast only read faces that have been
        taken, and those stay where they are if they are left out.
        """
        spared = self.kind == "repair" or (self.kind == "faces" and self.stage in ("people", "forecast"))
        return self.active and not spared


Work = Callable[[StageCallback], Outcome]


class Jobs:
    """The jobs of this process. They take turns: a second one waits until the first is over."""

    def __init__(self) -> None:
        self._jobs: dict[Path, _Job] = {}
        self._guard = threading.Lock()
        self._turn = threading.Lock()

    def start(self, run: Run, kind: Kind, work: Work, tuning_seconds: float = 0.0) -> Status:
        """Start `work` on the run; if a job of the run is under way already, in any process, that one goes on alone.

        tuning_seconds: the tuning ends after so long, for the time left; 0 = no limit.
        Raises OSError if the run's folder cannot be made, ValueError if it is somebody else's.
        """
        with self._guard:
            status = self.status(run)
            if status.active:
                return status
            run.claim()
            _set_aside(_record(run))
            job = self._jobs[_key(run)] = _Job(run, kind, work, self._turn, tuning_seconds)
            job.thread.start()
            return job.status

    def status(self, run: Run) -> Status:
        """The status of the run's last job, whichever process it ran in."""
        job = self._jobs.get(_key(run))
        return read_status(run) if job is None or job.on_disk else job.status

    def has(self, run: Run, work: Work) -> bool:
        """Whether this is the work of the run's last job, as after `start`, unless another job was under way."""
        job = self._jobs.get(_key(run))
        return job is not None and job.work is work

    def preview(self, run: Run) -> Tensor | None:
        """The last picture that the job drew, (3, S, S) in [0, 1]."""
        job = self._jobs.get(_key(run))
        return job.preview if job and job.status.active else None

    def cancel(self, run: Run) -> None:
        """Tell the run's job to stop after its present step; what it has made is kept.

        Raises ValueError if it is another process that is at work on the run.
        """
        job = self._jobs.get(_key(run))
        if job and not job.on_disk:
            job.told_to_stop.set()
        elif self.status(run).active:
            raise ValueError(f"{printable(run.folder.name)}: another program is at work on it; stop it there")

    def stop_all(self, seconds: float = 60.0) -> None:
        """Tell every job to stop, and give them so long to keep what they have."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.told_to_stop.set()
        end = time.monotonic() + seconds
        for job in jobs:
            job.thread.join(max(0.0, end - time.monotonic()))

    def wait(self, run: Run, seconds: float = 600.0) -> Status:
        """The status once the run's job is over, or after so many seconds."""
        job = self._jobs.get(_key(run))
        if job:
            job.thread.join(seconds)
        return self.status(run)


def read_status(run: Run) -> Status:
    """What the run folder says of its last job, or of what was done to the run since without one.

    If job.json is damaged, the job counts as failed for that reason; starting it again writes the file anew.
    """
    try:
        status = _kept_status(_record(run))
    except (ValueError, OSError) as error:
        status = Status(state="failed", error=_line(error))
    if status.active and is_held(_lock(run)):
        return status
    if run.busy():
        return Status("adapt", "elsewhere")
    if status.active:
        status = replace(status, state="stopped", seconds_left=None)
    return _without_a_job(run, status) or status


def _kept_status(record: Path) -> Status:
    """The status in a job.json. Raises ValueError naming the file if it is damaged."""
    text, whole = dict.fromkeys(("kind", "state", "stage", "error", "file"), str), ("step", "steps", "group", "groups")
    kinds = text | dict.fromkeys(whole, int) | {"seconds_left": (int, float, type(None)), "notes": list, "curves": dict}
    kept = read_table(record, **kinds)
    known = {name: kept[name] for name in Status.__dataclass_fields__ if name in kept}
    try:
        known["notes"] = tuple(map(str, kept.get("notes", ())))
        known["curves"] = {str(name): points_of(c) for name, c in kept.get("curves", {}).items()}
        if kept.get("state", "new") not in get_args(State):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{printable(record.name)}: is damaged; start the run again to make it anew") from None
    return Status(**known)


def _set_aside(record: Path) -> None:
    """Give a job.json that is damaged, or was changed by others, another name, so that a new one may be written."""
    if os.path.lexists(record) and not is_own(record):
        place = free_name(record, always=True)
        move(record, place)
        log.warning("%s: is not as it was written; it is kept as %s", printable(record.name), printable(place.name))


def points_of(curve: Any) -> list[tuple[int, float]]:
    """A curve from a JSON file as (step, value); steps without a value are left out.

    Raises TypeError or ValueError if it is no curve.
    """
    return [(int(step), float(value)) for step, value in curve if value is not None]


def _without_a_job(run: Run, last: Status) -> Status | None:
    """What the command line made of the run after its last job; None if nothing of a later stage."""
    if os.path.isfile(run.result) and _written(run.report) > _written(_record(run)):
        return Status("adapt", "done")
    if last.state != "new":
        return None
    if os.path.isfile(run.checkpoint) or os.path.isfile(run.targets / "stage.json") or run.by_group():
        return Status("adapt", "stopped")
    return Status("faces", "done") if os.path.isfile(run.faces / "faces.json") else None


class _Job:
    """A thread, and what is known of it. on_disk: whether the run folder holds all that is known."""

    def __init__(self, run: Run, kind: Kind, work: Work, turn: threading.Lock, tuning_seconds: float) -> None:
        self.run, self.work, self.turn, self.tuning_seconds = run, work, turn, tuning_seconds
        self.status = Status(kind, "waiting")
        self.preview: Tensor | None = None
        self.on_disk = False
        self.told_to_stop = threading.Event()
        self.foretold: tuple[str, ...] = ()
        self._written = self._first_time = 0.0
        self._first_step = 0
        self.thread = threading.Thread(target=self._run, name=f"bfr-{kind}", daemon=True)

    def _run(self) -> None:
        from filelock import FileLock, Timeout

        try:
            with FileLock(_lock(self.run), timeout=1):
                self._work()
            self.on_disk = True
        except Timeout:  # another process was faster and has the job
            self.on_disk = True
        except (OSError, ValueError) as error:
            self.status = replace(self.status, state="failed", error=_line(error))

    def _work(self) -> None:
        try:
            self._write()
            while not self.turn.acquire(timeout=TURN_SECONDS):
                self._check()
            try:
                self.status = replace(self.status, state="running")
                self._write()
                made = self.work(self._step)
            finally:
                self.turn.release()
            self.status = replace(self.status, state="done", file=made.file, notes=made.notes[:MAX_NOTES])
        except Cancelled:
            self.status = replace(self.status, state="cancelled")
        except Exception as error:  # nobody is above a thread to hear of it: the status is where it is seen
            if not isinstance(error, (ValueError, OSError)):
                log.exception("the job failed")
            self.status = replace(self.status, state="failed", error=_line(error))
        self.preview = None
        release_memory()
        self.status = replace(self.status, seconds_left=None)
        self._write()

    def _step(self, stage: str, step: int, steps: int, detail: Any) -> None:
        if stage == "group":
            self.status = replace(self.status, group=step, groups=steps, curves={})
            self._check()
            return
        now = time.monotonic()
        if stage != self.status.stage:
            self._first_time, self._first_step = now, step
        left = None
        if step > self._first_step:
            left = (now - self._first_time) / (step - self._first_step) * (steps - step)
        curves = self.status.curves
        if isinstance(detail, TuningProgress):
            curves = {name: thinned(points) for name, points in detail.losses.items()}
            if detail.held_out:
                curves["held-out faces"] = thinned(detail.held_out)
            if limit := self.tuning_seconds / max(1, self.status.groups):
                left = min(left or limit, max(0.0, limit - detail.seconds))
            self.status = replace(self.status, notes=(*self.foretold, *detail.notes))
        elif isinstance(detail, Forecast):
            self.foretold = tuple(detail.lines())
            self.status = replace(self.status, notes=self.foretold)
        elif isinstance(detail, Tensor):
            self.preview = to_unit(detail[0].cpu()) if detail.ndim == 4 else detail.cpu()
        self.status = replace(
            self.status, stage=stage, step=step, steps=steps, seconds_left=left, curves=curves
        )  # one assignment: readers in other threads see the old status or the new one
        if now - self._written > WRITE_SECONDS:
            self._write()
        self._check()

    def _check(self) -> None:
        if self.told_to_stop.is_set():
            raise Cancelled

    def _write(self) -> None:
        write_json(_record(self.run), asdict(self.status))
        self._written = time.monotonic()


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Evenly chosen points, about `MAX_POINTS`, and the last one."""
    every = max(1, len(points) // MAX_POINTS)
    return [*points[:-1:every], *points[-1:]]


# ---------------------------------------------------------------- what jobs do


def find_faces(
    run: Run,
    photos: Path,
    restorer: str,
    changes: Mapping[str, Any],
    device: str = "auto",
    recipe: str = RECOMMENDED,
) -> Work:
    """Take the faces from the photos, at the restorer's size, and say what adapting to them will take."""

    def work(callback: StageCallback) -> Outcome:
        base = load_restorer(restorer).to(choose_device(device))
        config = recipe_with(base, recipe, changes)
        with run.locked():
            faces = collect_faces(photos, run, base.size, config.faces, callback, base.device)
            callback("people", 0, len(faces), None)  # from here on the faces are only read
            if len(faces) <= PEOPLE_SOUGHT:
                find_people(run, faces, config.people, callback)
        callback("forecast", 0, 2, None)
        problems = tuple(problem["problem"] for problem in faces.problems)
        try:
            prior = load_prior(config.prior).to(base.device)
            whole = forecast_run(run, faces, base, prior, config, callback)
        except (ValueError, FileNotFoundError) as error:  # the faces are there, whatever an adaptation to them may say
            return Outcome(notes=(*problems, _line(error)))
        return Outcome(notes=(*problems, *whole.lines()))

    return work


def adapt_restorer(
    run: Run,
    photos: Path,
    restorer: str,
    changes: Mapping[str, Any],
    device: str = "auto",
    mixed: bool = False,
    recipe: str = RECOMMENDED,
) -> Work:
    """The whole adaptation, with its report; `changes` are made to the recipe of this name, by dotted path.

    mixed: one for each group of faces that share a damage, see `adapt_mixed`.
    """

    def work(callback: StageCallback) -> Outcome:
        base = load_restorer(restorer).to(choose_device(device))
        config = recipe_with(base, recipe, dict(changes) | {"restorer": restorer})
        before = tell_before(callback)
        if mixed:
            found = adapt_mixed(photos, run.folder, config, callback, str(base.device), base, before)
            return Outcome(run.result.name, () if found.groups else (ONE_DAMAGE,))
        result = adapt(photos, run.folder, config, callback, str(base.device), base, before=before)
        return Outcome(run.restorer.name, tuple(result.progress.notes))

    return work


def look_first(
    run: Run,
    photos: Path | None,
    restorer: str,
    changes: Mapping[str, Any],
    device: str = "auto",
    recipe: str = RECOMMENDED,
) -> Work:
    """The first look, see `first_look`; settings as in `adapt_restorer`."""

    def work(callback: StageCallback) -> Outcome:
        base = load_restorer(restorer).to(choose_device(device))
        config = recipe_with(base, recipe, dict(changes) | {"restorer": restorer})
        look = first_look(photos, run, config, callback, str(base.device), base)
        return Outcome(look.run.report.relative_to(run.folder).as_posix(), tuple(look.forecast.lines()))

    return work


def repair_photos(
    run: Run,
    photos: Path,
    restorer: str | Path,
    config: RestoreConfig,
    aligned: bool = False,
    strip_gps: bool = False,
    device: str = "auto",
) -> Work:
    """Restore the photos into a zip in the run's folder `repaired`, under their own names."""

    def work(callback: StageCallback) -> Outcome:
        out = run.folder / "repaired" / "under way"
        net = load_restorer(restorer).to(choose_device(device))
        result = restore_folder(  # what it made stays if it is stopped, and is not made again
            photos,
            out,
            net,
            config,
            aligned=aligned,
            strip_gps=strip_gps,
            callback=lambda step, steps, preview: callback("repair", step, steps, preview),
        )
        if not any(file.faces or file.status == "restored" for file in result.files):
            delete(out)
            said = "; ".join(printable(f"{f.path.as_posix()}: {f.reason}") for f in result.files[:3])
            raise ValueError(f"none of the {len(result.files)} photos was restored: {said}")
        archives = (out.parent / f"repaired {number}.zip" for number in count(1))
        archive = next(path for path in archives if not os.path.lexists(path))
        made = [file.place for file in result.files if file.place]
        replace_atomically(archive, partial(zip_files, out, made))
        delete(out)  # not before: if the disk refuses the zip, the next call begins there
        counts = ", ".join(f"{result.count(s)} {word}" for s, word in REPAIRED.items() if result.count(s))
        reasons = ((f.path.as_posix(), "; ".join(filter(None, (f.reason, *f.notes)))) for f in result.files)
        likeness = counted([one for file in result.files for one in file.likeness])
        notes = [counts, *filter(None, [likeness]), *(f"{name}: {reason}" for name, reason in reasons if reason)]
        notes += [f"{file.path.as_posix()}: {line}" for file in result.files for line in warnings_of(file.likeness)]
        return Outcome(archive.relative_to(run.folder).as_posix(), tuple(printable(note) for note in notes))

    return work


REPAIRED = {
    "restored": "restored",
    "kept": "done before it was stopped",
    "no_face": "without a face to restore, unchanged",
    "failed": "failed",
    "skipped": "left alone",
    "left_out": "left out",
}


def zip_files(folder: Path, paths: Iterable[Path], archive: Path) -> None:
    """Zip those of `paths`, below `folder`, that are files, uncompressed: pictures and weights hardly shrink.

    What of a name is not UTF-8 becomes a replacement character; names that are the same then get a number.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path in paths:
            if os.path.isfile(path):
                file.write(path, _name_in_zip(path.relative_to(folder), file.NameToInfo))


def _name_in_zip(path: Path, taken: Container[str]) -> str:
    """`path` as text that a zip can hold, with a number if it is `taken`."""
    plain = Path(path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    names = (numbered(plain, number).as_posix() for number in count(1))
    return next(name for name in names if name not in taken)


# ---------------------------------------------------------------- on disk


def _key(run: Run) -> Path:
    return run.folder.resolve()


def _record(run: Run) -> Path:
    return run.folder / "job.json"


def _lock(run: Run) -> Path:
    return run.folder / ".job.lock"


def _written(path: Path) -> float:
    """When a file was last written; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _line(error: Exception) -> str:
    return printable(first_line(error))
