"""Sixteen bits a channel, which Pillow reads with eight and cannot write: PNG and TIFF in colour.

Reading: Pillow's own decoders keep one byte of each two. A picture is opened twice, once for the upper bytes and once
with the byte order swapped for the lower ones; so files that are cut short are detected as with eight bits.
Sources: the PNG specification (third edition), TIFF 6.0.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from .exif import tags_of

_NATIVE, _OTHER = ("L", "B") if sys.byteorder == "little" else ("B", "L")
_SWAPPED = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", _OTHER))
}
_GREY_AND_ALPHA = "LA;16B"  # is read whole, as the four bytes of an RGBA picture
_STRIP_ROWS = 256  # of a picture, filtered and compressed at once


def raw_mode(image: Image.Image) -> str:
    """How the pixels of `image`, which is not loaded yet, lie in its file, in Pillow's words; "" if it does not say."""
    tiles: list[Any] = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return str(arguments if isinstance(arguments, str) else next(iter(arguments or ()), ""))


def has_lower_bytes(image: Image.Image) -> bool:
    """Whether `load_lower_bytes` can read what Pillow leaves out of `image`, which is not loaded yet."""
    return raw_mode(image) in _SWAPPED or raw_mode(image) == _GREY_AND_ALPHA


def has_planes_apart(image: Image.Image) -> bool:
    """Whether `image` is a TIFF with 16 bits whose channels lie one after the other, which Pillow reads wrongly."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(284) == 2 and max(tags.get(258, (1,))) == 16


def load_lower_bytes(image: Image.Image) -> None:
    """Load `image`, opened anew from the same file, with the lower bytes in place of the upper ones."""
    opened: Any = image
    if raw_mode(image) == _GREY_AND_ALPHA:
        setattr(opened, "_mode" if hasattr(opened, "_mode") else "mode", "RGBA")
    tiles = []
    for codec, box, offset, arguments in opened.tile:
        if isinstance(arguments, str):
            swapped: Any = _SWAPPED.get(arguments, "RGBA")
        else:
            swapped = (_SWAPPED[arguments[0]], *arguments[1:])
        tiles.append((codec, box, offset, swapped))
    kind = type(opened.tile[0])
    opened.tile = [kind(*tile) if hasattr(kind, "_fields") else tile for tile in tiles]
    opened.load()


def joined(upper: Image.Image, lower: Image.Image, whole: bool) -> np.ndarray:
    """(H, W, C) uint16, C = 3 or 4 of the two readings of a picture; whole: grey and alpha, C = 2, all in `lower`."""
    low = np.asarray(lower).astype(np.uint16)
    if whole:
        return low[..., ::2] << 8 | low[..., 1::2]
    return np.asarray(upper).astype(np.uint16) << 8 | low


# ---------------------------------------------------------------- writing


def png_bytes(values: np.ndarray, options: Mapping[str, Any]) -> bytes:
    """A PNG file of `values`, (H, W, C) uint16 with C = 1 to 4: grey, grey and alpha, RGB, RGBA.

    options: Pillow's, for profile, EXIF, resolution and texts, which Pillow itself writes.
    """
    height, width, channels = values.shape
    shell = BytesIO()
    Image.new({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels], (1, 1)).save(shell, "PNG", **options)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((16, colour_type, 0, 0, 0))
    made = [shell.getvalue()[:8]]
    for kind, content in _chunks(shell.getvalue()):
        if kind == b"IDAT":
            made += [_chunk(b"IDAT", part) for part in _compressed(_filtered(values))]
        else:
            made.append(_chunk(kind, header if kind == b"IHDR" else content))
    return b"".join(made)


def tiff_bytes(values: np.ndarray, options: Mapping[str, Any]) -> bytes:
    """A TIFF file of `values`, (H, W, C) uint16 as in `png_bytes`, compressed without loss.

    options: "exif" (bytes or `Image.Exif`), "icc_profile", "dpi" and "tiffinfo" (further tags), each if there is one.
    """
    height, width, channels = values.shape
    differences = values.copy()
    differences[:, 1:] -= values[:, :-1]  # wraps round, as TIFF's predictor 2 does
    content = zlib.compress(differences.astype("<u2").tobytes(), 6)
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in _described(options):
        tags[tag] = value
    tags[256], tags[257], tags[258] = width, height, (16,) * channels
    tags[259], tags[317] = 8, 2  # deflate, horizontal differences
    tags[262] = 2 if channels > 2 else 1
    tags[277], tags[278], tags[279], tags[284] = channels, height, len(content), 1
    tags[273] = 0  # Pillow adds where the tags end
    if channels in (2, 4):
        tags[338] = 2  # alpha that the colours are not multiplied by
    file = BytesIO()
    tags.save(file)
    return file.getvalue() + content


def _described(options: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    """Tags that describe the picture and not how it lies in its file."""
    yield from tags_of(options.get("exif") or Image.Exif()).items()
    yield from (options.get("tiffinfo") or {}).items()
    if options.get("icc_profile"):
        yield 34675, options["icc_profile"]
    if options.get("dpi"):
        yield from ((282, options["dpi"][0]), (283, options["dpi"][1]), (296, 2))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += length + 12


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def _filtered(values: np.ndarray) -> Iterator[bytes]:
    """The rows as PNG stores them, some at a time, each by whichever of three filters leaves the smallest bytes."""
    height, width, channels = values.shape
    step = 2 * channels  # bytes of a pixel
    above = np.zeros((1, width * step), np.uint8)
    for start in range(0, height, _STRIP_ROWS):
        rows = values[start : start + _STRIP_ROWS].astype(">u2").view(np.uint8).reshape(-1, width * step)
        up = np.concatenate([above, rows[:-1]])
        left, corner = (np.pad(line[:, :-step], ((0, 0), (step, 0))) for line in (rows, up))
        tried = np.stack([rows - left, rows - up, rows - _paeth(left, up, corner)])
        size = np.minimum(tried, -tried.astype(np.int16) & 0xFF).sum(-1, dtype=np.int64)
        best = size.argmin(0)
        chosen = tried[best, np.arange(len(rows))]
        number = np.array([1, 2, 4], np.uint8)[best]
        yield np.concatenate([number[:, None], chosen], 1).tobytes()
        above = rows[-1:]


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    a, b, c = (line.astype(np.int16) for line in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearest = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    return nearest.astype(np.uint8)


def _compressed(parts: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(6)
    for part in parts:
        if packed := packer.compress(part):
            yield packed
    yield packer.flush()
