"""The record of what was written into a folder of restored photos, and from what, so that restoring can be resumed.

It is one hidden file in that folder, with a line of JSON for each result. A line that is cut short or is no record
counts as missing: its result is made anew.
"""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..files.ownership import note, sha256_of
from ..files.photos import replace_atomically
from ..files.records import fingerprint

NAME = ".bfr_restored.jsonl"


@dataclass(frozen=True)
class Written:
    """A result. name: its path in the folder, with forward slashes. sha256: of the file as it was written.

    key: of the photo, the restorer and the settings that it was made from, see `key_of`; "" if it is to be tried again.
    faces: restored in it. reason, served, notes: see `restore.FileResult`. likeness: the record of each face's, see
    `same_person.FaceLikeness`.
    """

    name: str
    sha256: str
    key: str = ""
    faces: int = 0
    reason: str = ""
    served: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    likeness: tuple[Any, ...] = ()


def key_of(photo: Path, made_with: str) -> str:
    """A key of a photo's content and of what it is restored with; "" where either is not known.

    made_with: fingerprint of restorer and settings.
    """
    if not made_with or not photo.is_file():
        return ""
    with contextlib.suppress(OSError):
        return fingerprint(made_with, sha256_of(photo))
    return ""


class RestorationRecord:
    """The record of one folder of results; it may be added to from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._guard = Path(folder), threading.Lock()
        self._file = self.folder / NAME
        lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines() if self._file.is_file() else []
        read = [written for line in lines if (written := _read(line))]
        self._known = {written.name: written for written in read}
        self._whole = len(lines) == len(self._known)

    def unchanged(self, name: str) -> bool | None:
        """Whether the file of this name is as it was written here; None if it is not there, or not in this record."""
        known, file = self._known.get(name), self.folder / name
        return sha256_of(file) == known.sha256 if known and file.is_file() else None

    def key(self, name: str) -> str:
        """Key that the result of this name was made with; "" if none is known."""
        return self._known[name].key if name in self._known else ""

    def made_before(self, name: str, photo: Path, made_with: str) -> Written | None:
        """The result of this name if it is as it was written, and was made from the same photo in the same way."""
        known = self._known.get(name)
        same = known and known.key and self.unchanged(name) and known.key == key_of(photo, made_with)
        return known if same else None

    def add(self, written: Written) -> None:
        """Note a result that was just written. Raises OSError if the folder cannot be written."""
        with self._guard:
            self._known[written.name] = written
            if self._whole and self._file.is_file():
                with self._file.open("a", encoding="utf-8") as stream:
                    stream.write(_line(written))
                return
            # The file is new, or has a line cut short or several lines for one result: it is written whole, once.
            if self._file.is_file():
                note(self._file)  # no other program uses this name: a damaged file is still this program's own
            text = "".join(map(_line, self._known.values()))
            replace_atomically(self._file, lambda part: part.write_text(text, encoding="utf-8"))
            note(self._file, grows=True)
            self._whole = True


def _line(written: Written) -> str:
    return json.dumps(asdict(written), ensure_ascii=True) + "\n"


def _read(line: str) -> Written | None:
    """The result that a line records; None if the line is no record."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    content = {field.name: content[field.name] for field in fields(Written) if field.name in content}
    texts = [content.get(name, "") for name in ("name", "sha256", "key", "reason")]
    lists = {name: content.get(name, []) for name in ("served", "notes", "likeness")}
    if not all(isinstance(value, list) for value in lists.values()):
        return None
    if not all(isinstance(text, str) for text in [*texts, *lists["served"], *lists["notes"]]):
        return None
    if not content.get("name") or type(content.get("faces", 0)) is not int:
        return None
    told = {name: tuple(value) for name, value in lists.items()}
    return Written(**{**content, "sha256": content.get("sha256", ""), **told})
