"""The record of what was written into a folder of restored photos, and from what, so that restoring can be resumed.

It is one hidden file in that folder, with a line of JSON for each result; where several processes or machines restore
one folder, each writes a file of its own, and all of them are read. A line that is cut short or is no record counts as
missing: its result is made anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from ..files.names import numbered
from ..files.ownership import note, sha256_of
from ..files.photos import replace_atomically
from ..files.records import fingerprint

STEM, SUFFIX = ".bfr_restored", ".jsonl"
NAME = STEM + SUFFIX


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
    if not made_with or not os.path.isfile(photo):
        return ""
    with contextlib.suppress(OSError):
        return fingerprint(made_with, sha256_of(photo))
    return ""


class RestorationRecord:
    """The record of one folder of results; it may be added to from several threads.

    writer: a part of the name of the file that is added to, where others add to files of their own meanwhile. known:
    what was written before, if that is at hand; by default it is read from all files of the record.
    """

    def __init__(self, folder: Path, writer: str = "", known: Iterable[Written] | None = None) -> None:
        self.folder, self._guard = Path(folder), threading.Lock()
        self._file = self.folder / (f"{STEM}-{writer}{SUFFIX}" if writer else NAME)
        own, self._whole = _read_file(self._file)
        self._own = {written.name: written for written in own}
        self._known: dict[str, list[Written]] = {}
        if known is None:
            others = [path for path in sorted(self.folder.glob(f"{STEM}*{SUFFIX}")) if path != self._file]
            known = [*(written for path in others for written in _read_file(path)[0]), *self._own.values()]
        self.learn(known)

    def learn(self, known: Iterable[Written]) -> None:
        """Know of results that were written before."""
        for written in known:
            self._known.setdefault(written.name, []).append(written)

    def forget(self) -> None:
        """Forget what was written, to need no more memory; what is in the files stays there."""
        with self._guard:
            self._known.clear()
            if self._whole and os.path.isfile(self._file):
                self._own.clear()

    def about(self, name: str) -> list[Written]:
        """What is known of the result of this name, and of those with numbers in case the name is taken."""
        numbers = (numbered(Path(name), number).as_posix() for number in count(2))
        names = (name, *takewhile(self._known.__contains__, numbers))
        return [written for one in names for written in self._known.get(one, ())]

    def _found(self, name: str) -> tuple[Written | None, bool | None]:
        """What is known of the result of this name, and whether its file is as it was written; None: no file or record.

        Of several records, which several processes made, that counts which the file agrees with.
        """
        known, file = self._known.get(name, []), self.folder / name
        if not known or not os.path.isfile(file):
            return (known[-1] if known else None), None
        now = sha256_of(file)
        agrees = [one for one in known if one.sha256 == now]
        return (agrees or known)[-1], bool(agrees)

    def unchanged(self, name: str) -> bool | None:
        """Whether the file of this name is as it was written here; None if it is not there, or not in this record."""
        return self._found(name)[1]

    def key(self, name: str) -> str:
        """Key that the result of this name was made with; "" if none is known."""
        known = self._known.get(name)
        return known[-1].key if known else ""

    def made_before(self, name: str, photo: Path, made_with: str) -> Written | None:
        """The result of this name if it is as it was written, and was made from the same photo in the same way."""
        known, unchanged = self._found(name)
        same = known and known.key and unchanged and known.key == key_of(photo, made_with)
        return known if same else None

    def add(self, written: Written) -> None:
        """Note a result that was just written. Raises OSError if the folder cannot be written."""
        with self._guard:
            self._known[written.name] = [written]
            self._own[written.name] = written
            if self._whole and os.path.isfile(self._file):
                with self._file.open("a", encoding="utf-8") as stream:
                    stream.write(line_of(written))
                return
            # The file is new, or has a line cut short or several lines for one result: it is written whole, once.
            if os.path.isfile(self._file):
                note(self._file)  # no other program uses this name: a damaged file is still this program's own
            text = "".join(map(line_of, self._own.values()))
            replace_atomically(self._file, lambda part: part.write_text(text, encoding="utf-8"))
            note(self._file, grows=True)
            self._whole = True


def _read_file(path: Path) -> tuple[list[Written], bool]:
    """The results in a file of the record, the last line of each, and whether the file has no other lines."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if os.path.isfile(path) else []
    found = {written.name: written for line in lines if (written := read_line(line))}
    return list(found.values()), len(lines) == len(found)


def line_of(written: Written) -> str:
    """The line of the record for a result."""
    return json.dumps(asdict(written), ensure_ascii=True) + "\n"


def read_line(line: str) -> Written | None:
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
