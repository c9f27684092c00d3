"""Paths that a workflow may name: below ComfyUI's own folders and nowhere else. A workflow may come from a stranger."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..bfr_core.images import list_images, printable

_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def inside(root: Path, text: str) -> Path:
    """The path that `text` names below `root`, existing or not; "" is `root` itself.

    Raises ValueError, in one line, for an absolute path, "..", a drive letter, a UNC path, a name that is none on
    some system, and for a link that leads out of `root`.
    """
    shown = printable(text)
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
    path = root.joinpath(*parts)
    if not is_inside(path, root):
        raise ValueError(f"{shown}: is a link that leads out of the folder {root.name}; only what lies inside is used")
    return path


def is_inside(path: Path, root: Path) -> bool:
    """Whether `path`, links followed, is `root` or lies below it."""
    real, real_root = (Path(os.path.realpath(one)) for one in (path, root))  # unlike resolve, takes a link to itself
    return real == real_root or real_root in real.parents


def images_inside(folder: Path, root: Path) -> list[Path]:
    """The images under `folder`. Raises ValueError if one is a link out of `root`, else as `list_images`."""
    files = list_images(folder)
    for file in files:
        if not is_inside(file, root):
            name = printable(file.relative_to(folder).as_posix())
            raise ValueError(f"{name}: is a link that leads out of ComfyUI's folder {root.name}; remove it")
    return files
