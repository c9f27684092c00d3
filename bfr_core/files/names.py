"""Names of files as they are shown, and names that are free."""

from __future__ import annotations

from pathlib import Path


def printable(name: str | Path) -> str:
    """`name` on one line: line breaks, control and direction characters and undecodable bytes are escaped."""
    text = str(name)
    if text.isprintable():  # as nearly all are, and a page's pictures are long texts
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def typed_path(text: str) -> str:
    """A path that was typed or pasted, without spaces around it and the quotes that Windows copies with a path."""
    plain = text.strip()
    quoted = len(plain) > 1 and plain[0] == plain[-1] and plain[0] in "\"'"
    return plain[1:-1].strip() if quoted else plain


def numbered(path: Path, number: int) -> Path:
    """`path` itself for 1, else with the number in its name: photo.jpg, photo_2.jpg, photo_3.jpg, ..."""
    return path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")
