"""Folders that a stage of a run fills: how they are opened and emptied of this program's own files, and their locks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from .ownership import claim, delete, empty, free_name, made_without_list, note
from .photos import printable, replace_atomically
from .records import read_table, write_json

log = logging.getLogger(__name__)


SOMEBODY_ASKS = 0.2  # seconds


def is_held(lock: Path) -> bool:
    """Whether any process, this one included, holds a lock file.

    Whoever asks holds it for a moment, which others who ask at the same time do not take for an answer.
    """
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=SOMEBODY_ASKS, poll_interval=SOMEBODY_ASKS / 20):
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
