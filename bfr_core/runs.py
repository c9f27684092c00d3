"""A run: one folder that holds one adaptation, can be resumed, and is the only place written to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from .files.ownership import claim, delete, empty, free_name, made_without_list, note, refuse_foreign, tidy
from .images import printable, replace_atomically

log = logging.getLogger(__name__)

LOG_HEAD = "# What BFR Adapt did in this folder\n"
# What version 0.1, which kept no lists, wrote into a run besides its stages; also demonstrations and benchmarks.
OLD_FILES = (
    *("config.json", "left_out.json", "album.json", "settled.json", "gate.json", "job.json", "request.json"),
    *("comfyui.json", "report.html", "report.json", "log.txt", "restorer.safetensors", "restorer.pth"),
    *("restorer_codeformer.pth", "change.safetensors", "groups.safetensors", "checkpoints/last.pt"),
    *("groups/base.safetensors", "groups/found.safetensors", "good/config.json", "repaired/repaired [0-9]*.zip"),
    *("before_after.png", "table.txt", "table.csv", "table.json", "cells/*.json", "pictures/*.png", "pictures/*/*.png"),
)


# What hours of work end in: whether it may be written is asked before they begin.
WRITTEN_LAST = (
    *("report.html", "report.json", "restorer.safetensors", "restorer.pth", "restorer_codeformer.pth"),
    *("change.safetensors", "groups.safetensors"),
)


class Run:
    """Paths and records of a run folder.

    config.json       settings of every stage, as last used
    faces/            aligned crops and faces.json
    left_out.json     faces that the user does not want used
    restored/         what the base restorer makes of them
    targets/          pseudo targets; redrawn/ in it: those drawn again because the gate refused the first
    photos/, given/   photos and targets that came as pictures, not as files
    album.json        how clear each face is, where good ones were looked for
    good/             faces of photos that were given as good ones
    real/             faces of photos that the discriminator takes for real
    settled.json      settings that were left to the faces ("auto")
    gate.json         what the gate found of each
    checkpoints/      training state
    restorer.safetensors, report.html, report.json, log.txt
    job.json          how far the last job in the background is, see `jobs`
    restorer.pth          the same again, if asked for; restorer_codeformer.pth where it is one
    change.safetensors    after low-rank tuning: what it changed, alone
    groups.safetensors    of a mixed folder: the groups of damages that were found, and who serves them
    groups/           base.safetensors, and a run for each group: 1/, 2/, ...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--run {printable(folder)}: is a file; give a folder")

    @property
    def faces(self) -> Path:
        return self.folder / "faces"

    @property
    def left_out(self) -> Path:
        return self.folder / "left_out.json"

    @property
    def restored(self) -> Path:
        return self.folder / "restored"

    @property
    def targets(self) -> Path:
        return self.folder / "targets"

    @property
    def redrawn(self) -> Path:
        return self.targets / "redrawn"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def given(self) -> Path:
        return self.folder / "given"

    @property
    def album(self) -> Path:
        return self.folder / "album.json"

    @property
    def real(self) -> Path:
        return self.folder / "real"

    @property
    def good(self) -> Path:
        return self.folder / "good"

    @property
    def settled(self) -> Path:
        return self.folder / "settled.json"

    @property
    def gate(self) -> Path:
        return self.folder / "gate.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.pt"

    @property
    def restorer(self) -> Path:
        return self.folder / "restorer.safetensors"

    def exported(self, architecture: str) -> Path:
        """The .pth file; ReActor and facerestore_cf know a CodeFormer by its file's name."""
        return self.folder / ("restorer_codeformer.pth" if architecture == "CodeFormer" else "restorer.pth")

    @property
    def change(self) -> Path:
        return self.folder / "change.safetensors"

    @property
    def groups(self) -> Path:
        return self.folder / "groups.safetensors"

    @property
    def result(self) -> Path:
        """What restores with all that was learned: the file of groups if there is one, else the restorer."""
        return self.groups if self.groups.is_file() else self.restorer

    def of_group(self, number: int) -> Run:
        """The run, inside this one, of a group of faces that share a damage; counted from 1."""
        return Run(self.folder / "groups" / str(number))

    def by_group(self) -> list[Run]:
        """The runs of the groups that the run was last adapted to; none if it was adapted to as one."""
        count = self.config().get("finetune", {}).get("groups", 0)
        numbers = range(1, 1 + count) if isinstance(count, int) else ()
        return list(takewhile(lambda run: run.folder.is_dir(), map(self.of_group, numbers)))

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def claim(self) -> None:
        """Make the folder; ValueError, in one line, if it holds files that this program did not make."""
        before = old_files(self.folder, OLD_FILES) if made_without_list(self.folder) else None
        claim(self.folder, "run", before)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process and write the log to log.txt; freed by the system if the process dies.

        Raises ValueError if another process holds it, OSError in one line if the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        try:
            self.claim()
            for name in WRITTEN_LAST:
                refuse_foreign(self.folder / name)
            lock = FileLock(self.folder / ".lock", timeout=1)  # who asks whether it is held holds it for a moment
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"run {printable(self.folder)} is in use by another process; wait for it or stop it"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                f"run {printable(self.folder)}: cannot be written ({reason}); choose another folder"
            ) from None
        tidy(self.folder)
        handler = logging.FileHandler(growing(self.folder / "log.txt", LOG_HEAD), encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        package = logging.getLogger(__package__)
        package.addHandler(handler)
        try:
            yield
        finally:
            package.removeHandler(handler)
            handler.close()
            lock.release()

    def busy(self) -> bool:
        """Whether a process, this one included, holds the run."""
        return is_held(self.folder / ".lock")

    def record(self, stage: str, settings: dict[str, Any]) -> None:
        """Note the settings a stage used in config.json."""
        write_json(self.folder / "config.json", self.config() | {stage: settings})

    def config(self) -> dict[str, Any]:
        """Settings of the stages done so far. Raises ValueError naming config.json if it is damaged."""
        path = self.folder / "config.json"
        return read_table(path, **dict.fromkeys(read_table(path), dict))


def is_held(lock: Path) -> bool:
    """Whether any process, this one included, holds a lock file."""
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def open_stage(folder: Path, made_before: Iterable[str] = ()) -> None:
    """Make the folder of a stage, or take it as this program made it.

    made_before: patterns of the names that the stage made in version 0.1, which kept no lists.
    Raises ValueError, in one line, if it holds files and this program did not make it.
    """
    before = old_files(folder, ("stage.json", *made_before)) if made_without_list(folder) else None
    claim(folder, "run", before, propose=free_name(folder.parent, always=True))


def stage_folder(folder: Path, fingerprint: str, made_before: Iterable[str] = ()) -> None:
    """Make `folder` ready for a stage: what it made from other photos or settings is deleted, and that is said.

    Files that the stage did not make, and those changed since, are kept and named. fingerprint: of everything the
    stage's results depend on; kept in stage.json in the folder. Otherwise as `open_stage`.
    """
    open_stage(folder, made_before)
    marker = folder / "stage.json"
    if read_table(marker).get("fingerprint") != fingerprint:
        if marker.exists():
            log.info("%s/: photos or settings changed since it was made; made anew", folder.name)
        say_kept(empty(folder))
        write_json(marker, {"fingerprint": fingerprint})


def remove(paths: Iterable[Path]) -> None:
    """`delete` files that are no longer needed; those that are kept are named."""
    for path in paths:
        say_kept(delete(path))


def say_kept(paths: Iterable[Path]) -> None:
    """Name files that were not deleted."""
    for path in paths:
        log.warning(
            "%s/%s: was not written by this program, or was changed since; it is kept",
            printable(path.parent.name), printable(path.name),
        )  # fmt: skip


def old_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files in a folder of version 0.1 that it made there, by the patterns of their names."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]


def growing(path: Path, head: str) -> Path:
    """A file that lines are added to, begun with the line `head`: `path`, or with a number if that is somebody else's.

    A file of version 0.1, which has no such line, is taken as it is.
    """
    place = free_name(path)
    if not place.exists():
        replace_atomically(place, lambda part: part.write_text(head, encoding="utf-8"))
    note(place, grows=True)
    return place


def fingerprint(*parts: Any) -> str:
    """SHA-256 of anything JSON can write, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write JSON; an older file stays until the new one is complete."""
    text = json.dumps(value, indent=1, ensure_ascii=True)
    replace_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path, default: Any = None) -> Any:
    """Content of a JSON file, or `default` if there is none. Raises ValueError naming the file if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (ValueError, RecursionError):
        raise ValueError(f"{printable(path)}: is damaged; delete it to make it anew") from None


def read_table(path: Path, **kinds: Any) -> dict[str, Any]:
    """The table in a JSON file, {} if there is no file. kinds: what an entry must be, a type or a tuple of types.

    Raises ValueError naming the file if it is damaged, holds something else, or an entry is of another type.
    """
    found = read_json(path, {})
    sound = isinstance(found, dict)
    if not sound or any(name in found and not isinstance(found[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"{printable(path)}: is damaged; delete it to make it anew")
    return found
