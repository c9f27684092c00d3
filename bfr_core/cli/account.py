"""The account that a command gives of every file of a folder: how each ended, and why."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import first_line
from ..files.kinds import LeftOutError, left_out_lines, without_name
from ..files.ownership import claim_results, free_place, maker_of, note_result
from ..files.photos import printable

log = logging.getLogger(__name__)

DONE = {"done": "done", "failed": "failed", "left_out": "left out"}
RESTORED = {
    "restored": "restored",
    "kept": "kept, made before in the same way",
    "no_face": "copied as they are",
    "failed": "failed",
    "skipped": "there already",
    "left_out": "left out",
}
FACES = {"used": "with faces", "no_face": "without a face", "failed": "failed", "left_out": "left out"}


class Results:
    """Where a command's results of some photos are written.

    photos: a folder, or one photo. command: its name, in the list of results. names: of the results, by relative path
    of the photo; those of the photos by default. Raises ValueError if `out` is the folder of the photos.
    """

    def __init__(self, photos: Path, out: Path, command: str, names: Mapping[Path, str | Path] | None = None) -> None:
        if os.path.realpath(photos) == os.path.realpath(out):
            said = "is the folder of the photos; choose another folder for the results"
            raise ValueError(f"--out {printable(out)}: {said}")
        self.photos, self.out, self.command = photos, out, command
        found, folder, _ = photos_in(photos)
        names = names or {file.relative_to(folder): file.relative_to(folder) for file in found}
        self._own = {relative: out / name for relative, name in names.items()}
        self._all = set(self._own.values())
        self._alone = claim_results(out)

    def place(self, file: Path, relative: Path) -> Path:
        """A place for the result of a photo: its own, or with a number where somebody else's file has the name."""
        if relative not in self._own:
            raise ValueError("has come since; run the same command again")
        own = self._own[relative]
        return free_place(own, self._all - {own}, maker_of(self.command, file))

    def written(self, place: Path) -> None:
        """Say that a result lies at `place`, so that it is never taken for a photo."""
        if not self._alone:
            note_result(place)

    def table(self, name: str) -> Path:
        """A place for a table about all results."""
        return free_place(self.out / name, maker=maker_of(self.command, self.photos))


def importable(package: str, flag: str, name: str = "") -> None:
    """Raise ValueError if an optional package that a flag or command needs is not installed: before the work.

    name: by which pip knows it, where that is another.
    """
    try:
        importlib.import_module(package)
    except ImportError:
        name = name or package
        raise ValueError(f"{flag}: {name} is not installed; install it with pip install {name}") from None


def photos_in(place: Path) -> tuple[list[Path], Path, dict[Path, str]]:
    """The photos below a folder, the folder, and why others are left out; of one photo, that, its folder, and {}.

    Raises as `look_through`, or as `refuse_other_kinds` for one file.
    """
    from ..files.photos import look_through, refuse_other_kinds

    if place.is_file():
        refuse_other_kinds(place)
        return [place], place.parent, {}
    found, left_out = look_through(place)
    return found, place, left_out


def each_photo(
    folder: Path,
    work: Callable[[Path, Path], tuple[dict[str, Any], Sequence[str]]],
    callback: Callable[[int, int, Any], None],
) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """What work(file, relative path) finds out about every photo below `folder`, by relative path; and an account.

    folder: of the photos, or one photo.

    work returns this, and what of the photo was not used, a line each, which becomes the reason in the account.
    The account has photo, status ("done", "failed" or "left_out") and reason of every file below the folder. A photo
    that cannot be read or written is logged, and the others are still done.
    """
    from ..files.photos import status_of, warn_of_failed

    photos, folder, left_out = photos_in(folder)
    warn_of_failed(left_out)
    done: dict[str, dict[str, Any]] = {}
    files = [
        {"photo": path.as_posix(), "status": status_of(reason), "reason": reason} for path, reason in left_out.items()
    ]
    for step, file in enumerate(photos):
        relative = file.relative_to(folder)
        name, reason, status = relative.as_posix(), "", "done"
        try:
            done[name], notes = work(file, relative)
            reason = "; ".join(notes)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # of odd shapes, or too large for the memory
            reason = without_name(without_name(first_line(error), printable(relative)), printable(file.name))
            status = "left_out" if isinstance(error, LeftOutError) else "failed"
            if status == "failed":
                log.warning("%s: %s", printable(name), reason)
        files.append({"photo": name, "status": status, "reason": reason})
        callback(step + 1, len(photos), None)
    return done, sorted(files, key=lambda line: Path(line["photo"]).parts)


def print_account(files: Sequence[dict[str, str]], words: dict[str, str], end: str) -> None:
    """Print how many of the files ended in which way, and name those that were left out."""
    counts = Counter(file["status"] for file in files)
    left_out = {printable(f["photo"]): printable(f["reason"]) for f in files if f["status"] == "left_out"}
    for line in left_out_lines(left_out):
        print(line, file=sys.stderr)
    said = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status]) or "no photos"
    print(f"{said}; {end}", file=sys.stderr)


def problems_of(files: Sequence[dict[str, str]]) -> list[str]:
    """The files with a reason, a line each."""
    return [f"{printable(file['photo'])}: {file['reason']}" for file in files if file["reason"]]


def print_face_account(faces: Any) -> list[dict[str, str]]:
    """Print the account of the photos that the faces of a `FaceSet` were found in, and return it."""
    files = faces.account()
    print_account(files, FACES, f"{len(faces)} faces in {printable(faces.folder)}")
    return files
