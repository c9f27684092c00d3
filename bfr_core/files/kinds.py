"""Kinds of files: which are photos, why the others are left out, and what of a photo cannot be kept.

Nothing here decodes a picture; everything is told from names and from the first bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

HEAD_BYTES = 4096  # at the start of a file, within which AVIF and JPEG 2000 state their bits a channel
GIF = "a GIF holds 256 colours at most and often moves; save the picture, or each frame, as PNG"
RAW = "is a camera's raw file; develop it to TIFF or PNG first"
WORK = "is not a photo; export it as PNG or TIFF"
VIDEO = "is a video; save the frames to restore as pictures"
CONVERT = "is a picture of a kind that is not read; save it as PNG"
NO_PICTURE = "is not a picture"
HIDDEN = "its name starts with a dot"
OWN = "was made by this program, and is not taken for a photo"
LINKED_FOLDER = "is a link to a folder, which is not followed"
NO_HEIF = "HEIC and HEIF are read with the package pillow-heif, which is not installed"
NO_AVIF = "AVIF is read by Pillow 11.3 or newer, which is not installed"
NO_JPEG_2000 = "this Pillow was built without JPEG 2000; install Pillow from its own wheels"

LEFT_OUT = (
    {".gif": GIF}
    | dict.fromkeys((".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef"), RAW)
    | dict.fromkeys((".psd", ".psb", ".xcf", ".kra", ".svg", ".pdf", ".ai", ".eps"), WORK)
    | dict.fromkeys((".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp", ".wmv"), VIDEO)
    | dict.fromkeys((".jxl", ".tga", ".ppm", ".pgm", ".pnm", ".ico", ".icns", ".pcx", ".dds", ".exr", ".hdr"), CONVERT)
)


class UnreadableError(ValueError):
    """A file that gives no photo. Its text is the file's name and the reason, on one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


class LeftOutError(UnreadableError):
    """A file with which nothing is wrong, but whose kind is not worked on."""


def why_left_out(path: Path) -> str:
    """Why a file of this name is not among the photos."""
    return HIDDEN if path.name.startswith(".") else LEFT_OUT.get(path.suffix.lower(), NO_PICTURE)


def left_out_lines(left_out: Mapping[str, str], most: int = 20) -> list[str]:
    """A line for each reason, which names the files that are left out for it, `most` of them at most.

    left_out: file -> reason.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - most} more" if len(names) > most else ""
        lines.append(f"left out ({reason}): {', '.join(names[:most])}{more}")
    return lines


def without_name(text: str, name: str) -> str:
    """`text` of an error about the file `name`, for a line that starts with the name already."""
    text = text.removeprefix(f"{name}: ")
    for written in (name, f"{name}.png"):  # as a result of its own name, or as one that shows what it was made from
        text = text.replace(f"cannot write {written} in ", "cannot be written in ", 1)
    return text


def is_heif(head: bytes) -> bool:
    """Whether a file that starts with `head` is a HEIC or another HEIF picture, and no AVIF."""
    brands = {head[8:12]} | {head[i : i + 4] for i in range(16, min(len(head), _box_length(head)), 4)}
    return head[4:8] == b"ftyp" and not is_avif(head) and bool(brands & {b"heic", b"heix", b"hevc", b"heim", b"mif1"})


def is_avif(head: bytes) -> bool:
    """Whether a file that starts with `head` is an AVIF picture or sequence."""
    brands = {head[8:12]} | {head[i : i + 4] for i in range(16, min(len(head), _box_length(head)), 4)}
    return head[4:8] == b"ftyp" and bool(brands & {b"avif", b"avis"})


def is_jpeg_2000(head: bytes) -> bool:
    return head.startswith((b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"))


def is_lossless_webp(head: bytes) -> bool:
    """Whether a WebP file that starts with `head`, all of it or enough to reach its pixels, was coded without loss."""
    at = 12
    while at + 8 <= len(head):
        kind, length = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
        if kind in (b"VP8L", b"VP8 "):
            return kind == b"VP8L"
        at += 8 + length + length % 2
    return False


def bits_a_channel(head: bytes) -> int:
    """Bits a channel of an AVIF or a JPEG 2000 picture that starts with `head`; 8 where it does not state them."""
    if is_avif(head) and (at := head.find(b"av1C")) >= 0 and at + 7 <= len(head):
        high, twelve = head[at + 6] >> 6 & 1, head[at + 6] >> 5 & 1
        return 8 + 2 * high + 2 * (high & twelve)
    if is_jpeg_2000(head) and (at := head.find(b"\xff\x4f\xff\x51")) >= 0 and at + 43 <= len(head):
        return (head[at + 42] & 0x7F) + 1  # Ssiz of the first component
    return 8


def named_colours(head: bytes) -> tuple[int, int] | None:
    """Primaries and transfer characteristics, in the numbers of ITU-T H.273, that an AVIF or a PNG picture that starts
    with `head` names; None where it names none."""
    if is_avif(head) and (at := head.find(b"colrnclx")) >= 0 and at + 12 <= len(head):
        return int.from_bytes(head[at + 8 : at + 10], "big"), int.from_bytes(head[at + 10 : at + 12], "big")
    at = 8
    while head.startswith(b"\x89PNG") and at + 10 <= len(head) and (kind := head[at + 4 : at + 8]) != b"IDAT":
        if kind == b"cICP":
            return head[at + 8], head[at + 9]
        at += 12 + int.from_bytes(head[at : at + 4], "big")
    return None


def ends_whole(content: bytes) -> bool:
    """Whether an AVIF, HEIF or JPEG 2000 file has all of the parts that it announces.

    Their decoders make up what is missing, or read on past the end of whole files as well.
    """
    if content.startswith(b"\xff\x4f\xff\x51"):  # a bare codestream
        return content.rstrip(b"\0").endswith(b"\xff\xd9")
    at = 0
    while at + 8 <= len(content):
        length, kind = _box_length(content[at : at + 4]), content[at + 4 : at + 8]
        if not kind.isascii():
            return True  # something that a program has put behind the picture
        if length == 1:
            length = int.from_bytes(content[at + 8 : at + 16], "big")
        if length == 0:  # up to the end of the file
            return kind != b"jp2c" or content.rstrip(b"\0").endswith(b"\xff\xd9")
        if length < 8 or at + length > len(content):
            return False
        at += length
    return at > 0


def _box_length(head: bytes) -> int:
    return int.from_bytes(head[:4], "big")
