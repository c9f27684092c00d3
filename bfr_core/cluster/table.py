"""The summary of a restored folder as a table in Parquet, for those who count results of many photos."""

from __future__ import annotations

from pathlib import Path

from ..files.photos import printable, replace_atomically
from ..restoration.folder import FolderResult


def write_parquet(path: Path, result: FolderResult) -> None:
    """Write a row for each file: photo, status, reason, notes, faces, result, likeness, served.

    photo: path below the folder. result: path of its result, null where there is none. likeness: a word for each
    restored face, see `FaceLikeness`; served: the group that restored it, see `FileResult`.
    Raises ValueError if pyarrow is not installed.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("--parquet: pyarrow is not installed; install it with pip install pyarrow") from None
    text, texts = arrow.string(), arrow.list_(arrow.string())
    columns = {
        "photo": arrow.array([printable(file.path.as_posix()) for file in result.files], text),
        "status": arrow.array([file.status for file in result.files], text),
        "reason": arrow.array([file.reason for file in result.files], text),
        "notes": arrow.array([list(file.notes) for file in result.files], texts),
        "faces": arrow.array([file.faces for file in result.files], arrow.int32()),
        "result": arrow.array([None if file.place is None else printable(file.place) for file in result.files], text),
        "likeness": arrow.array([[one.word for one in file.likeness] for file in result.files], texts),
        "served": arrow.array([list(file.served) for file in result.files], texts),
    }
    table = arrow.table(columns)
    replace_atomically(path, lambda part: parquet.write_table(table, part))
