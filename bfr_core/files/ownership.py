"""Which files are this program's own: lists of the files that it wrote, and the one function that deletes.

A run, its stages and folders of results hold a list each, `.bfr-files`: a line with name and SHA-256 for each file that
was written there. A file is this program's own as long as it holds what a line says of it. Every other file was put
there by somebody else, or was changed since it was written: it is never deleted, nor replaced in a folder with a list.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Literal

from .names import numbered, printable

log = logging.getLogger(__name__)

LIST = ".bfr-files"
Kind = Literal["run", "results"]
LOCKS = frozenset({".lock", ".job.lock"})  # of a run; always empty
SHARD_LOCK = re.compile(r"\.bfr-shard-(\d+-of-\d+)\.lock")  # see `files.shards`; always empty
SCRATCH = re.compile(r"\.bfr-[0-9a-f]{12}\.part(\.\w+)?|.+\.bfr-part")  # names that no other program gives
ALWAYS_THERE = frozenset({"thumbs.db", "desktop.ini"})  # what Windows adds to any folder
# Version 0.1 kept no lists: by these files a folder is known as one of its stages, or as a run.
OLD_STAGE, OLD_STAGES = "stage.json", ("faces", "restored", "targets", "photos", "given", "clean", "damaged")
OLD_MARKS = {"config.json": "faces", "request.json": "photos", "comfyui.json": "id", "job.json": "state"}
RESULT = "result"  # in a list, in place of the SHA-256
MADE = "made:"  # likewise, before the maker of what is written next under this name, see `maker_of`
STALE_SECONDS = 3600.0  # a scratch file that nobody has written to for so long was left by a crash


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class Ledger:
    """The list of a folder as it was when this was made; empty where there is none.

    kind: "run" of a folder that a run or one of its stages made, "results" of one that was made for results, else "".
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            text = (self.folder / LIST).read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        lines = text.splitlines()
        kinds: tuple[Kind, ...] = ("run", "results")
        self.kind: Kind | Literal[""] = next((kind for kind in kinds if _mark(kind) in lines), "")
        self.there = os.path.isfile(self.folder / LIST)
        self._known: dict[str, set[str]] = {}
        self._makers: dict[str, str] = {}
        for line in lines:
            said, _, name = line.partition(" ")
            if said.startswith(MADE):
                self._makers[name] = said.removeprefix(MADE)
            else:
                self._known.setdefault(name, set()).add(said)

    def results(self) -> set[str]:
        """Names of the files among those of others that are results, see `claim_results`."""
        told = (_name_in(name) for name, said in self._known.items() if RESULT in said)
        return {name for name in told if name is not None}

    def may_replace(self, path: Path, maker: str = "") -> bool:
        """Whether `path` is this program's own, see `owns`, and as far as is known made by no other `maker`.

        In the folders of a run, what names no maker was made by the run, which goes on with it: no `maker` replaces it.
        """
        made_by = self.maker(path)
        if maker and made_by != maker and (made_by or self._is_of_run()):
            return False
        return self.owns(path)

    def maker(self, path: Path) -> str:
        """Who made, or is about to make, the file `path` of this folder, see `maker_of`; "" if that is not known."""
        return self._makers.get(json.dumps(path.name), "")

    def _is_of_run(self) -> bool:
        """Whether a run made the folder: by its own kind, or by that of the nearest folder above it that has one."""
        above = (Ledger(one).kind for one in self.folder.absolute().parents if os.path.isfile(one / LIST))
        return (self.kind or next(filter(None, above), "")) == "run"

    def owns(self, path: Path) -> bool:
        """Whether `path`, directly in this folder, is a file that this program wrote and that nobody changed since.

        Of a file that grows, such as a log, the first line decides. A link is never owned.
        """
        if os.path.islink(path) or not os.path.isfile(path):
            return False
        if SCRATCH.fullmatch(path.name):
            return True
        if path.name in LOCKS or SHARD_LOCK.fullmatch(path.name):
            return self.there and not path.stat().st_size
        known = self._known.get(json.dumps(path.name))
        try:
            return known is not None and (sha256_of(path) in known or _first_line(path) in known)
        except OSError:  # what cannot be read cannot be known
            return False


def is_own(path: Path) -> bool:
    """`Ledger.owns` by the list of the file's folder as it is now."""
    return Ledger(path.parent).owns(path)


def made_by_hand(files: dict[str, Path]) -> list[str]:
    """Names of those files, in folders of a run, that this program did not write, or that were changed since."""
    ledgers = {folder: Ledger(folder) for folder in {path.parent for path in files.values()}}
    of_runs = {folder: ledger for folder, ledger in ledgers.items() if ledger.kind == "run"}
    return [name for name, path in files.items() if path.parent in of_runs and not of_runs[path.parent].owns(path)]


def note(path: Path, content: Path | None = None, *, grows: bool = False) -> None:
    """Enter in its folder's list that `path` holds, or is about to hold, what `content` (by default itself) holds.

    Nothing is entered in folders that have no list and are not below one of this program's. An earlier line stays:
    whichever of the two contents is on disk after a crash, the file is known. grows: lines will be added to the file,
    so that its first line identifies it. Scratch files are known by their name and not listed.
    """
    if not SCRATCH.fullmatch(path.name) and is_listed(path.parent):
        source = content or path
        _add(path.parent, f"{_first_line(source) if grows else sha256_of(source)} {json.dumps(path.name)}")


def refuse_foreign(path: Path) -> None:
    """Raise ValueError, in one line, if there is something at `path` that is not this program's own file.

    Nothing is refused in a folder that has no list and is not below one of this program's: there the caller decides.
    """
    if os.path.lexists(path) and is_listed(path.parent) and not is_own(path):
        raise ValueError(
            f"{printable(path)}: was not written by this program, or was changed since, and is kept; move it away or "
            "choose another name"
        )


def free_name(
    path: Path,
    taken: Container[Path] = (),
    *,
    always: bool = False,
    ledger: Ledger | None = None,
    maker: str = "",
) -> Path:
    """`path`, or `path` with the first free number where something that is not this program's has the name.

    taken: names that are not free either. always: this program's own files are not replaced either. ledger: that of the
    folder, if it is at hand. maker: own files that another one made are not replaced, see `maker_of`.
    """
    for number in count(1):
        place = numbered(path, number)
        if place in taken:
            continue
        if not os.path.lexists(place) or (not always and (ledger or Ledger(path.parent)).may_replace(place, maker)):
            return place
    raise AssertionError("there is always a number")


def maker_of(command: str, source: Path) -> str:
    """What made a result: the command, and the file that it was made from, wherever a link to it lies.

    A result is replaced by the same command on the same photo, changed or with other settings; that of another photo of
    the same name, as all cameras give, is not.
    """
    return hashlib.sha256(f"{command}\0{os.path.realpath(source)}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def note_maker(path: Path, maker: str) -> None:
    """Enter in its folder's list, before `path` is written, who makes it."""
    _add(path.parent, f"{MADE}{maker} {json.dumps(path.name)}")


class Claims:
    """The names in a folder that were taken by `note_maker` since this was made; several threads may ask at once.

    So two processes that write into one folder do not take the same free name, though neither sees a file there yet:
    of two that enter themselves in the list as its maker, the first one has it.
    """

    def __init__(self, folder: Path) -> None:
        self._list, self._guard = Path(folder) / LIST, threading.Lock()
        self._read = self._list.stat().st_size if os.path.isfile(self._list) else 0  # bytes
        self._first: dict[str, str] = {}

    def take(self, path: Path, maker: str) -> bool:
        """`note_maker` for a file of this folder; False if another maker took the name before, whose it then stays."""
        name = json.dumps(path.name)
        with self._guard:
            note_maker(path, maker)
            self._look()
            first = self._first.setdefault(name, maker)
        if first != maker:
            note_maker(path, first)
        return first == maker

    def _look(self) -> None:
        """Read the lines that were added, up to the last whole one."""
        with self._list.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        added = added[: added.rfind(b"\n") + 1]
        self._read += len(added)
        for line in added.decode(errors="replace").splitlines():
            said, _, name = line.partition(" ")
            if said.startswith(MADE):
                self._first.setdefault(name, said.removeprefix(MADE))


def free_place(path: Path, taken: Container[Path] = (), maker: str = "") -> Path:
    """`free_name` in a folder, which gets a list if it has none; a warning says if the name is taken.

    maker: entered in the list, see `maker_of`.
    """
    begin_list(path.parent)
    place = free_name(path, taken, maker=maker)
    if maker:
        note_maker(place, maker)
    if place != path:
        log.warning("%s: the name is taken; written to %s", printable(path), printable(place.name))
    return place


def is_listed(folder: Path) -> bool:
    """Whether what is written into `folder` is listed: it has a list, or is below a run's or a folder of results."""
    if os.path.isfile(folder / LIST):
        return True
    return any(Ledger(one).kind for one in folder.absolute().parents if os.path.isfile(one / LIST))


def in_the_way(folder: Path) -> str:
    """The file or broken link that keeps `folder` from being made, in words that begin with its path, or ""."""
    there = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), folder)
    if os.path.islink(there) and not os.path.exists(there):
        return f"{printable(there)}: is a link to {printable(os.readlink(there))}, which leads nowhere"
    return f"{printable(there)}: is a file" if os.path.exists(there) and not os.path.isdir(there) else ""


def begin_list(folder: Path) -> None:
    """Make `folder` and its list. Raises ValueError if a link is in the list's place, or anything in the folder's."""
    if blocked := in_the_way(folder):
        raise ValueError(f"{blocked}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if os.path.islink(folder / LIST):
        raise ValueError(f"{printable(folder / LIST)}: is a link; this program keeps a list there, remove the link")
    (folder / LIST).touch()


def make_folder(folder: Path) -> None:
    """Make `folder` and the missing ones above it; below a folder of this program's each gets a list."""
    missing = [one for one in (folder, *folder.parents) if not os.path.exists(one)]
    folder.mkdir(parents=True, exist_ok=True)
    if missing and is_listed(missing[-1].parent):
        for one in missing:
            begin_list(one)


def claim(folder: Path, kind: Kind, made_before: Iterable[Path] | None = None, propose: Path | None = None) -> None:
    """Make `folder` for a run or a stage, or take it as it is if this program made it.

    made_before: the files that a version without lists made there, which are entered in the list. propose: the folder
    that the error names instead.
    Raises ValueError, in one line that names another folder, if it holds files and this program did not make it, and if
    a file or a broken link is in its place.
    """
    if blocked := in_the_way(folder):
        raise ValueError(f"{blocked}; choose another folder")
    ledger = Ledger(folder)
    if ledger.kind:
        return
    foreign = _foreign(folder, ledger) if made_before is None else []
    if foreign:
        other = propose or next(place for n in count(2) if not os.path.exists(place := numbered(folder, n)))
        raise ValueError(
            f"{printable(folder)}: holds files that this program did not make, such as {printable(foreign[0].name)}; "
            f"choose an empty or a new folder, such as {printable(other)}"
        )
    make_folder(folder)
    _add(folder, _mark(kind))
    for path in made_before or ():
        note(path)


def claim_results(folder: Path) -> bool:
    """Mark `folder` as made for results, so that none of them is taken for a photo of the folder above it.

    Returns False where others have files in it, too: then each result must be marked by `note_result`.
    """
    ledger = Ledger(folder)
    if ledger.kind:
        return True
    alone = not _foreign(folder, ledger)
    begin_list(folder)
    if alone:
        _add(folder, _mark("results"))
    return alone


def note_result(path: Path) -> None:
    """Mark a file as a result, which is not to be taken for a photo."""
    _add(path.parent, f"{RESULT} {json.dumps(path.name)}")


def delete(path: Path, like: Path | None = None, ledger: Ledger | None = None) -> list[Path]:
    """Delete a file of this program's, or all such files in a folder, and the folder if nothing is left in it.

    Everything that this program deletes goes through here. Returns what was kept, because it was not written by this
    program or was changed since; links are kept and not followed. A path that is not there is passed over. like: the
    file is deleted also if it holds the same bytes as this other one. ledger: that of its folder, if it is at hand.
    """
    if os.path.isdir(path) and not os.path.islink(path):
        kept = empty(path)
        if not kept and os.path.isfile(path / LIST):
            (path / LIST).unlink()
            path.rmdir()
            return []
        return kept or [path]
    if not os.path.lexists(path):
        return []
    copied = (
        like is not None and os.path.isfile(path) and not os.path.islink(path) and sha256_of(path) == sha256_of(like)
    )
    if not (copied or (ledger or Ledger(path.parent)).owns(path)):
        return [path]
    path.unlink(missing_ok=True)
    return []


def empty(folder: Path) -> list[Path]:
    """`delete` everything in a folder, and keep the folder with its list; returns what was kept."""
    ledger = Ledger(folder)
    children = [child for child in sorted(folder.iterdir()) if child.name != LIST]
    return [kept for child in children for kept in delete(child, ledger=ledger)]


def tidy(folder: Path) -> None:
    """Delete the scratch files below `folder` that a crash left."""
    for path in list(folder.rglob(".bfr-*")):
        try:
            stale = SCRATCH.fullmatch(path.name) and time.time() - path.stat().st_mtime > STALE_SECONDS
        except OSError:  # it was moved to its place meanwhile
            continue
        if stale:
            delete(path)


def move(source: Path, target: Path, attempts: int = 8) -> None:
    """Put this program's own file `source` at `target`, on the same disk, in place of what is there.

    Waits up to three seconds for a virus scanner or viewer that holds the file open on Windows. The caller has asked
    `refuse_foreign` whether `target` may be replaced.
    """
    for attempt in range(attempts):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if attempt == attempts - 1:
                raise
            time.sleep(0.025 * 2**attempt)


def scratch_name(path: Path) -> Path:
    """A new name beside `path`, with its suffix, for what is written before it is moved there."""
    return path.parent / f".bfr-{uuid.uuid4().hex[:12]}.part{path.suffix}"


@contextmanager
def scratch(folder: Path, suffix: str) -> Iterator[Path]:
    """A name for a file in `folder` that is deleted at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    path = scratch_name(folder / f"scratch{suffix}")
    try:
        yield path
    finally:
        delete(path)


def made_without_list(folder: Path) -> bool:
    """Whether version 0.1, which kept no lists, made `folder` for a run or one of its stages."""
    if Ledger(folder).there:
        return False
    stages = (folder, *(folder / name for name in OLD_STAGES))
    return any(os.path.isfile(stage / OLD_STAGE) for stage in stages) or any(
        _has_entry(folder / name, key) for name, key in OLD_MARKS.items()
    )


# ---------------------------------------------------------------- parts


def _foreign(folder: Path, ledger: Ledger) -> list[Path]:
    """The files and folders of others in a folder, except hidden ones."""
    if not os.path.isdir(folder):
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and path.name.lower() not in ALWAYS_THERE
        and not ledger.owns(path)
        and not _is_own_folder(path)
    ]


def _is_own_folder(folder: Path) -> bool:
    """Whether this program made a folder: it has a list, which is for a run or for results, or nobody else's files."""
    ledger = Ledger(folder)
    return ledger.there and (bool(ledger.kind) or not _foreign(folder, ledger))


def _first_line(path: Path) -> str:
    """What a list says of a file that grows: the SHA-256 of its first line, and "+"."""
    with path.open("rb") as file:
        return f"{hashlib.sha256(file.readline(1 << 16)).hexdigest()}+"


def _has_entry(path: Path, key: str) -> bool:
    """Whether a file is a table in JSON with an entry of this name."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and key in found


def _name_in(text: str) -> str | None:
    """The name that a line of a list holds as JSON; None of a line that was cut short."""
    try:
        name = json.loads(text)
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _mark(kind: str) -> str:
    return f"folder {kind}"


def _add(folder: Path, line: str) -> None:
    """Add a line to the folder's list, by one write: threads and processes may do so at once.

    A line that was cut short, by a full disk or a crash, is ended first: what follows it must not be lost with it.
    """
    begin_list(folder)
    try:
        with (folder / LIST).open("ab+") as file:
            cut_short = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * cut_short + f"{line}\n".encode())
    except OSError as error:
        if error.filename is None:  # of a full disk, which names no place
            error.filename = str(folder)
        raise
