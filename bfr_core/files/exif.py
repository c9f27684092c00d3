"""EXIF tags through Pillow, with their texts as they are stored.

Pillow reads the bytes of a text as latin-1 and writes only what is ASCII, with question marks for the rest. Programs
such as Lightroom and exiftool store UTF-8 there. In latin-1 each byte is a letter, so that the same bytes can be
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

GPS = 0x8825
BLOCKS = (0x8769, GPS)  # tags that hold a table of tags
INTEROP = 0xA005  # a tag in the first of them that holds a table, too: whether the colours are Adobe's, for instance


class StoredText(str):
    """A text that Pillow writes as the bytes that it was read from."""

    def encode(self, encoding: str = "latin-1", errors: str = "replace") -> bytes:
        return super().encode("latin-1", "replace")


class MadeExif(Image.Exif):
    """EXIF whose tables are at hand, and not at a place in a file, where Pillow looks for them."""

    def get_ifd(self, tag: int) -> dict[int, Any]:
        """The table of this tag."""
        value = self.get(tag)
        return value if isinstance(value, dict) else super().get_ifd(tag)


def tags_of(exif: bytes | Image.Exif) -> dict[int, Any]:
    """The tags and what they hold; those of `BLOCKS` hold tables. Raises whatever damaged EXIF makes Pillow raise."""
    if isinstance(exif, bytes):
        content, exif = exif, Image.Exif()
        exif.load(content)
    tags = {tag: _as_stored(exif.get_ifd(tag) if tag in BLOCKS else exif[tag]) for tag in exif}
    for block in tags.values():
        if not isinstance(block, dict) or (table := block.pop(INTEROP, None)) is None:
            continue
        if table := table if isinstance(table, dict) else exif.get_ifd(INTEROP):  # Pillow gives its place in the file
            block[INTEROP] = _as_stored(table)
    return tags


def exif_of(tags: Mapping[int, Any]) -> Image.Exif:
    """EXIF with these tags."""
    made = MadeExif()
    for tag, value in tags.items():
        made[tag] = value
    return made


def _as_stored(value: Any) -> Any:
    if isinstance(value, dict):
        return {tag: _as_stored(inner) for tag, inner in value.items()}
    return StoredText(value) if isinstance(value, str) else value
