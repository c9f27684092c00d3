"""Paths that a workflow may name: below ComfyUI's own folders and nowhere else. A workflow may come from a stranger.

A link in such a folder was put there by the owner of the computer. It is followed for reading, never for writing; a
link below it that leads out again is not followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..bfr_core.files.photos import list_images, printable

MAX_BYTES = 255  # of a name, in UTF-8, that file systems allow
MAX_PATH_BYTES = 1024
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def inside(root: Path, text: str) -> Path:
    """The path, to be written, that `text` names below `root`, existing or not; "" is `root` itself.

    Raises ValueError, in one line, for an absolute path, "..", a drive letter, a UNC path, a name that is none on
    some system or is too long, and for a link that leads out of `root`.
    """
    path = _named(root, text)
    if not is_inside(path, root):
        raise ValueError(
            f"{printable(text)}: is a link that leads out of the folder {root.name}; only what lies inside is used"
        )
    return path


def to_read(root: Path, text: str) -> Path:
    """The path, to be read, that `text` names below `root`; a link that lies in `root` is followed wherever it leads.

    Raises ValueError as `inside`, and for a link that leads out of the folder that the first one led to.
    """
    path = _named(root, text)
    reach(root, path)
    return path


def reach(root: Path, path: Path) -> Path:
    """Where reading `path`, which is below `root`, must stay: `root`, or the place that a link in `root` leads to.

    The links of the place returned are followed. Raises ValueError as `to_read`.
    """
    place, real_root = root, _real(root)
    bounds = real_root
    for part in path.relative_to(root).parts:
        place = place / part
        real = _real(place)
        if real == bounds or bounds in real.parents:
            continue
        if bounds != real_root:
            name = printable(place.relative_to(root).as_posix())
            raise ValueError(f"{name}: is a link that leads out of a linked folder; only what lies inside is read")
        bounds = real
    return bounds


def is_inside(path: Path, root: Path) -> bool:
    """Whether `path`, links followed, is `root` or lies below it. Raises ValueError for links in a circle."""
    real, real_root = _real(path), _real(root)
    return real == real_root or real_root in real.parents


def images_inside(folder: Path, root: Path) -> tuple[list[Path], list[str]]:
    """The images under `folder`, itself below `root`, and a line for each link that is not followed.

    Raises ValueError if no image is left, else as `list_images` and `to_read`.
    """
    bounds, images = reach(root, folder), []
    left_out = [f"{name}: is a link to a folder; choose it as the folder" for name in _linked_folders(folder)]
    for file in list_images(folder):
        name = printable(file.relative_to(folder).as_posix())
        try:
            if is_inside(file, bounds):
                images.append(file)
            else:
                left_out.append(f"{name}: is a link that leads out of the folder")
        except ValueError as error:
            left_out.append(str(error))
    if not images:
        raise ValueError(f"{left_out[-1]}; no other image is in it")
    return images, left_out


def folders_inside(root: Path, deep: int, most: int) -> list[str]:
    """Folders below `root` by their path in it, `deep` levels deep and `most` of them at most; a link to another of
    them is not opened. A folder that cannot be named in a workflow, or cannot be listed, is left out."""
    found: list[str] = []

    def look(folder: Path, levels: int) -> None:
        for place in _folders_of(folder):
            name = place.relative_to(root).as_posix()
            try:
                bounds = reach(root, _named(root, name))
            except ValueError:
                continue
            if len(found) == most:
                return
            found.append(name)
            if levels > 1 and not (os.path.islink(place) and bounds != _real(place)):
                look(place, levels - 1)

    look(root, deep)
    return found


def _folders_of(folder: Path) -> list[Path]:
    """Folders directly in `folder`, links to folders too, sorted; hidden ones are passed over."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and os.path.isdir(e))
    except OSError:
        return []


def _linked_folders(folder: Path) -> Iterator[str]:
    """Links to folders below `folder`, by their path in it."""
    for parent, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for place in (Path(parent, name) for name in names):
            if os.path.islink(place):
                yield printable(place.relative_to(folder).as_posix())


def _named(root: Path, text: str) -> Path:
    """The path that `text` names below `root`, as by `inside`, but with its links unchecked."""
    shown = printable(text if len(text) < 100 else f"{text[:100]}...")
    if text.startswith(("/", "\\")) or _DRIVE.match(text):
        raise ValueError(f"{shown}: is an absolute path; give a path inside ComfyUI's folder {root.name}")
    if "\\" in text:
        raise ValueError(f"{shown}: separate folders by /, not by \\")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"{shown}: '..' leads out of the folder {root.name}; give a path inside it")
    for part in parts:
        if not part.isprintable() or re.search(r'[:*?"<>|]', part) or _DEVICE.match(part) or part != part.rstrip(" ."):
            raise ValueError(f"{shown}: {printable(part)!r} is no name for a file on every system; choose another")
        if len(part.encode()) > MAX_BYTES:
            raise ValueError(f"{shown}: a name in it is longer than the {MAX_BYTES} bytes that disks allow; shorten it")
    if len(text.encode()) > MAX_PATH_BYTES:
        raise ValueError(f"{shown}: the path is longer than {MAX_PATH_BYTES} bytes; choose a shorter one")
    return root.joinpath(*parts)


def _real(path: Path) -> Path:
    """`path` with all links followed. Raises ValueError, in one line, where that is not possible."""
    try:
        real = path.resolve()
        if not os.path.islink(real):
            return real
        reason = "its links lead in a circle"  # which newer Pythons leave as they are
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "its links lead in a circle"
    raise ValueError(f"{printable(path.name)}: cannot be followed ({reason})")
