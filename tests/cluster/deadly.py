"""What happens to workers of a test: a photo that ends the process that reads it, and a disk that is full.

A photo named deadly.jpg is as a fault of a decoder would be. While a file named "full disk" lies in a folder above a
picture that is written, the disk is full after half of it: for the first worker that comes, or for all of them if the
file says "everywhere".
"""

from __future__ import annotations

import errno
import os
from io import BytesIO
from pathlib import Path
from typing import Any

from bfr_core.files import photos
from bfr_core.restoration import folder


def install() -> None:
    """Make the photo deadly and the disk full in this process."""
    read, write_bytes = folder.read_photo, photos._write_bytes

    def deadly_read(path: Path, *how: Any) -> Any:
        if Path(path).name == "deadly.jpg":
            os._exit(1)
        return read(path, *how)

    def write(path: Path, content: BytesIO) -> None:
        if is_full(path):
            path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(path, content)

    folder.read_photo = deadly_read  # type: ignore[assignment]
    photos._write_bytes = write


def is_full(path: Path) -> bool:
    """Whether the disk that holds `path` is full for this process."""
    mark = next((folder / "full disk" for folder in path.parents if (folder / "full disk").exists()), None)
    if mark is None:
        return False
    if mark.read_text() == "everywhere":
        return True
    whose = mark.with_name("full for")
    try:
        with whose.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        pass
    return whose.read_text() == str(os.getpid())
