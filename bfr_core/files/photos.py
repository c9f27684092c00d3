"""Photos on disk: find them, read them upright in RGB, write them back whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import struct
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO, FileIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from torch import Tensor

from . import kinds, sixteen_bits, wide_colour
from .exif import BLOCKS, GPS, exif_of, tags_of
from .kinds import LeftOutError, UnreadableError, why_left_out
from .names import numbered, printable
from .ownership import (
    Ledger,
    delete,
    made_without_list,
    make_folder,
    move,
    note,
    refuse_foreign,
    scratch_name,
)
from .provenance import TEXT_KEY, Record, read_packet, to_packet

log = logging.getLogger(__name__)

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".mpo": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
}
IMAGE_SUFFIXES = frozenset(FORMATS)

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags that describe the photo and not how a file lays it out: description, camera, resolution, software, date, artist,
# copyright, the Exif and GPS blocks, and the titles that Windows writes.
_MAKER_NOTE = 0x927C
_RESOLUTION = 282  # a tag of TIFF: pixels an inch, or a centimetre
_EXIF_KEPT = {0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298, *BLOCKS}
_EXIF_KEPT |= set(range(0x9C9B, 0x9CA0))
BEYOND_WHITE = 4.0  # times white that the floats of a photo may reach
_JPEG_EXIF_BYTES = 65000  # one JPEG segment, less its header
_XMP_TAG = 700
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT, _WHITE_IS_ZERO = 258, 262, 339, 0  # TIFF 6.0, sections 8 and 19
_XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_IN_PNG = "XML:com.adobe.xmp"
_IPTC = 0x0404  # the number of IPTC-IIM among Photoshop's blocks
_JPEG_IPTC_BYTES = 65_500
_RAW_TEXTS = (_XMP_IN_PNG, "Raw profile type ")  # EXIF and XMP again, which speak of the file as it lay
_UNLISTED = "is a folder that cannot be listed"
_NAME_BYTES = 180  # leaves room for a face number and a suffix in the 255 bytes that file systems allow
_OWN_NAME_BYTES = 240  # leaves room for the number of a name that is taken
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as it is worked on, with what its file held besides pixels.

    pixels: (3, H, W) float32 RGB in [0, 1], already upright. alpha: (1, H, W) in [0, 1], or None.
    grey: R = G = B in every pixel of the source. mode: "L" if the file itself was grey, else "RGB".
    icc: the profile that `pixels` are in, None meaning sRGB. exif: without orientation and thumbnail.
    format: what the file was ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "HEIF", "GIF").
    text: PNG key -> text. dpi: x, y. depth: bits a channel, 8 or 16. lossless: whether a WebP was coded without loss.
    comment, iptc: of a JPEG, its comment and its block of captions and names (IPTC-IIM), as stored.
    record: what was done to the photo before; nothing else is kept of its XMP, which may repeat orientation and place.
    notes: what of the file is not in here, a sentence each.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "PNG"
    mode: str = "RGB"
    text: dict[str, str] = field(default_factory=dict)
    dpi: tuple[float, float] | None = None
    comment: bytes = b""
    iptc: bytes = b""
    record: Record = field(default_factory=Record)
    depth: int = 8
    lossless: bool = False
    notes: tuple[str, ...] = ()


def to_signed(x: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return x * 2 - 1


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped."""
    return ((x + 1) / 2).clamp(0, 1)


# ---------------------------------------------------------------- finding and naming


def list_images(folder: Path, with_results: bool = False) -> list[Path]:
    """Every image file under `folder`, sorted by relative path; names and folders that start with a dot are skipped.

    Whatever has an image suffix is listed, readable or not, so that each one is accounted for. Links to folders are
    not followed. A run below `folder`, and results such as restored copies, are not taken for photos, unless there is
    nothing else, or with_results says so. Raises FileNotFoundError if there is no such folder, ValueError if it is a
    file or has no images.
    """
    found, left_out = look_through(folder, with_results)
    for path, reason in left_out.items():
        if reason == kinds.LINKED_FOLDER:
            log.warning("%s: %s", printable(path), reason)
    warn_of_failed(left_out)
    return found


def warn_of_failed(left_out: Mapping[Path, str]) -> None:
    """Name what of the files that `look_through` leaves out has failed, see `status_of`."""
    for path, reason in left_out.items():
        if status_of(reason) == "failed":
            log.warning("%s: %s", printable(path), reason)


def status_of(reason: str) -> str:
    """Of what `look_through` leaves out, whether it was "left_out" or has "failed": a folder that cannot be listed."""
    return "failed" if reason.startswith(_UNLISTED) else "left_out"


def look_through(folder: Path, with_results: bool = False) -> tuple[list[Path], dict[Path, str]]:
    """Every image file under `folder`, as `list_images` gives them, and why each of the others is left out.

    The others are files and whole folders (links, hidden ones), by path relative to `folder`. Raises FileNotFoundError
    if there is no such folder, ValueError if it is a file or has no images.
    """
    folder = Path(folder)
    if not os.path.exists(folder):
        raise FileNotFoundError(f"{printable(folder)}: no such folder")
    if not os.path.isdir(folder):
        raise ValueError(f"{printable(folder)}: is a file; give the folder that holds it")
    found: list[Path] = []
    own: list[Path] = []
    left_out: dict[Path, str] = {}

    def unlisted(error: OSError) -> None:
        left_out[Path(error.filename).relative_to(folder)] = f"{_UNLISTED} ({error.strerror})"

    for parent, folders, files in os.walk(folder, onerror=unlisted):
        inside = Path(parent).relative_to(folder)
        for name in folders:
            if name.startswith("."):
                left_out[inside / name] = kinds.HIDDEN
            elif os.path.islink(os.path.join(parent, name)):
                left_out[inside / name] = kinds.LINKED_FOLDER
            elif _made_by_us(Path(parent, name)):
                left_out[inside / name] = kinds.OWN
        folders[:] = [name for name in folders if inside / name not in left_out]
        results = Ledger(Path(parent)).results()
        for name in files:
            if name in results:
                own.append(Path(parent, name))
            elif Path(name).suffix.lower() in FORMATS and not name.startswith("."):
                found.append(Path(parent, name))
            elif not name.startswith(".bfr"):  # this program's own lists need not be mentioned
                left_out[inside / name] = why_left_out(Path(name))
    if found and not with_results:
        left_out |= {path.relative_to(folder): kinds.OWN for path in own}
    else:
        found += [path for path in own if path.suffix.lower() in FORMATS]
    if not found:
        others = "".join(f"; {printable(path)}: {reason}" for path, reason in list(left_out.items())[:3])
        raise ValueError(f"{printable(folder)}: holds no images ({', '.join(sorted(FORMATS))}){others}")
    return sorted(found, key=lambda path: path.relative_to(folder).parts), dict(sorted(left_out.items()))


def refuse_other_kinds(file: Path) -> None:
    """Raise LeftOutError, in one line, for a file that was named as a photo and whose name is not a photo's."""
    if file.suffix.lower() not in FORMATS:
        other = f"its name is not that of a photo, which ends in {', '.join(sorted(FORMATS))}"
        raise LeftOutError(printable(file.name), kinds.LEFT_OUT.get(file.suffix.lower(), other))


def photo_name(relative: Path) -> str:
    """A file name, without suffix, that says where in a folder a photo lies and is safe on every system.

    Separators become "__"; what is not a letter, a digit or one of " ._-()" is percent-encoded, as are the underscores
    that could be taken for a separator. Paths that differ in more than their suffix get different names; for a whole
    folder, where suffixes and case may collide, use `photo_names`.
    """
    parts = [*relative.parts[:-1], relative.stem]
    encoded = []
    for i, part in enumerate(parts):
        safe = re.sub("_{2,}", lambda run: "%5F" * len(run[0]), _percent(part))
        if i > 0:
            safe = re.sub("^_", "%5F", safe)
        if i < len(parts) - 1:
            safe = re.sub("_$", "%5F", safe)
        encoded.append(safe)
    name = "__".join(encoded)
    if name.startswith(".") or _WINDOWS_DEVICES.match(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name.encode()) > _NAME_BYTES:
        name = name.encode()[: _NAME_BYTES - 20].decode(errors="ignore") + "~" + _digest(relative)
    return name


def photo_names(relatives: Sequence[Path]) -> list[str]:
    """`photo_name` of each path where that is unique whatever the case, else with the suffix added ("a_jpg").

    Different paths never share a name, on disks that ignore case as well. The same path given twice keeps one name.
    """
    plain = {path: photo_name(path) for path in relatives}
    counts = Counter(_disk_key(name) for name in plain.values())
    names = {path: name for path, name in plain.items() if counts[_disk_key(name)] == 1}
    taken = {_disk_key(name) for name in names.values()}
    longer = {path: f"{plain[path]}_{_percent(path.suffix[1:])}" for path in plain if path not in names}
    counts = Counter(_disk_key(name) for name in longer.values())
    for path, name in longer.items():
        unique = counts[_disk_key(name)] == 1 and _disk_key(name) not in taken
        names[path] = name if unique else f"{name}~{_digest(path)}"
    return [names[path] for path in relatives]


def own_names(names: Sequence[str], windows: bool = os.name == "nt") -> list[str]:
    """File names for files of these names that others gave: each its own, as far as it is safe and can be one here.

    "_" stands for separators, control characters, the dot of a hidden file and the colon of a drive, and on Windows for
    what it allows in no name. One that another has before it, whatever the case, gets a number (a_2.jpg).
    """
    plain = [_own_name(name, windows) for name in names]
    reserved, taken, own = {_disk_key(name) for name in plain}, set[str](), []
    for name in plain:
        places = (numbered(Path(name), number).name for number in count(1))
        free = (place for place in places if _disk_key(place) not in (taken if place == name else taken | reserved))
        own.append(next(free))
        taken.add(_disk_key(own[-1]))
    return own


def _own_name(name: str, windows: bool) -> str:
    name = re.sub(r"[\x00-\x1f\x7f-\x9f/\\]|^\.|(?<=^[A-Za-z]):", "_", name)
    if windows:
        name = re.sub(r'[<>:"|?*]', "_", name)
        name = f"_{name}" if _WINDOWS_DEVICES.match(name) else name
    stem, suffix = os.path.splitext(name)
    while stem and len(f"{stem}{suffix}".encode(errors="replace")) > _OWN_NAME_BYTES:
        stem = stem[:-1]
    return f"{stem}{suffix}"


def png_names(relatives: Sequence[Path]) -> dict[Path, Path]:
    """Where PNGs made from a folder's photos lie, by path of the photo: the same path with the suffix .png.

    Photos that would share a PNG keep their suffix before it (a.jpg.png and a.webp.png).
    """
    names: dict[Path, Path] = {}
    taken: set[str] = set()
    plain = {path: path.with_suffix(".png") for path in relatives}
    counts = Counter(_disk_key(place.as_posix()) for place in plain.values())
    for path in sorted(relatives, key=lambda path: counts[_disk_key(plain[path].as_posix())] > 1):
        alone = counts[_disk_key(plain[path].as_posix())] == 1
        place = plain[path] if alone else path.with_name(f"{path.name}.png")
        if _disk_key(place.as_posix()) in taken:  # as of a photo that is itself called a.jpg.png
            place = path.with_name(f"{path.name}~{_digest(path)}.png")
        taken.add(_disk_key(place.as_posix()))
        names[path] = place
    return names


# ---------------------------------------------------------------- reading


def read_photo(path: Path, max_pixels: int = 200_000_000) -> Photo:
    """The photo in `path`: upright, RGB, with its alpha, profile, EXIF and texts.

    CMYK, Lab and grey with a profile of its own become sRGB; of several pictures the first is taken and a note says so.
    Raises UnreadableError, a ValueError in one line that starts with the file's name, for whatever cannot be read
    completely, and its subclass LeftOutError for animations and for kinds that need a package that is not installed.
    """
    path = Path(path)
    name = printable(path.name)
    try:
        # A pipe or device would be waited on for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("is a folder" if os.path.isdir(path) else "is not an ordinary file")
        with _WholeFile(path) as file:
            image = _open(file)
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"has {image.width} x {image.height} pixels, more than the {max_pixels:,} allowed; shrink it first"
                )
            return _photo(image, file, name)
    except _OtherKind as error:
        raise LeftOutError(name, str(error)) from error
    except Exception as error:  # decoders raise almost anything on a broken file; none of it may look like success
        of_disk = os.path.isdir(path) or (isinstance(error, OSError) and error.strerror)
        known = None if of_disk or path.suffix.lower() == ".gif" else kinds.LEFT_OUT.get(path.suffix.lower())
        raise UnreadableError(name, known or _reason(error)) from error


def read_image(path: Path) -> Tensor:
    """The pixels of `read_photo`: (3, H, W) float32 RGB in [0, 1]."""
    return read_photo(path).pixels


class _OtherKind(ValueError):
    """Nothing is wrong with the file; its kind is not worked on."""


class _WholeFile(FileIO):
    """A file that fails when read past its end while `complete` is set.

    Pillow fills what is missing from a cut file with grey if any code in the process has set LOAD_TRUNCATED_IMAGES.
    """

    complete = False

    def read(self, size: int | None = -1) -> bytes:
        got = super().read(-1 if size is None else size) or b""
        if self.complete and not got and size:
            raise OSError("is cut short")
        return got


def _open(file: _WholeFile) -> Image.Image:
    """The image in `file`, not yet decoded, chosen by content and among few formats.

    The formats' own classes are called because Image.open warns or refuses by a limit that is global to the process.
    """
    file.seek(0)
    head = file.read(kinds.HEAD_BYTES)
    file.seek(0)
    if not head:
        raise ValueError("is empty")
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.jpeg_factory(file)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(file)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(file)
    if head.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile(file)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffImagePlugin.TiffImageFile(file)
    if head.startswith(b"GIF8"):
        return GifImagePlugin.GifImageFile(file)
    if kinds.is_avif(head):
        return _open_avif(file)
    if kinds.is_jpeg_2000(head):
        return _open_jpeg_2000(file)
    if kinds.is_heif(head):
        return _open_heif(file)
    raise ValueError(
        "is not a JPEG, PNG, WebP, BMP, TIFF, AVIF, JPEG 2000, HEIC or GIF picture, whatever its name says"
    )


def _open_avif(file: _WholeFile) -> Image.Image:
    try:
        from PIL import AvifImagePlugin
    except ImportError:
        raise _OtherKind(kinds.NO_AVIF) from None
    if not AvifImagePlugin.SUPPORTED:
        raise _OtherKind(kinds.NO_AVIF)
    return AvifImagePlugin.AvifImageFile(file)


def _open_jpeg_2000(file: _WholeFile) -> Image.Image:
    from PIL import Jpeg2KImagePlugin, features

    if not features.check_codec("jpg_2000"):
        raise _OtherKind(kinds.NO_JPEG_2000)
    return Jpeg2KImagePlugin.Jpeg2KImageFile(file)


def _open_heif(file: _WholeFile) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise _OtherKind(kinds.NO_HEIF) from None
    return HeifImageFile(file)


def stated_pixels(path: Path) -> int:
    """How many pixels a photo has, as its file says without being decoded; 0 where it says nothing that can be read."""
    with contextlib.suppress(Exception):
        if stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited on for ever
            with _WholeFile(path) as file:
                image = _open(file)
                return int(image.width * image.height)
    return 0


def _photo(image: Image.Image, file: _WholeFile, name: str) -> Photo:
    """`image`, which is opened in `file` and not decoded yet, as a Photo."""
    file_format = "JPEG" if image.format == "MPO" else image.format or ""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and file_format in ("GIF", "PNG", "WEBP", "AVIF"):
        raise _OtherKind(f"is an animation of {frames} frames; save the frames to restore as pictures")
    notes = [f"of its {frames} pictures only the first is used"] if frames > 1 else []
    raw = sixteen_bits.raw_mode(image)
    has_more = sixteen_bits.has_lower_bytes(image)
    if sixteen_bits.has_planes_apart(image):
        raise ValueError("has 16 bits a channel in separate planes; save it with its channels interleaved")
    if file_format in ("AVIF", "HEIF", "JPEG2000") and not kinds.ends_whole(_content(file)):
        raise ValueError("is cut short")
    file.complete = file_format not in ("HEIF", "JPEG2000")  # which read past the end of whole files as well
    image.load()
    deep = None
    if has_more:
        file.complete = False
        again = _open(file)
        file.complete = True
        sixteen_bits.load_lower_bytes(again)
        deep = again
    elif ";16" in raw and not image.mode.startswith(("I", "F")):
        notes.append("of its 16 bits a channel 8 are used")
    said = image.info.get("bit_depth") if file_format == "HEIF" else None
    bits = int(said or kinds.bits_a_channel(_content(file, kinds.HEAD_BYTES)))
    if bits > 8 and not image.mode.startswith(("I", "F")):
        notes.append(f"of its {bits} bits a channel 8 are used")

    text = getattr(image, "text", {}) if file_format == "PNG" else {}
    dpi = image.info.get("dpi")
    if file_format == "TIFF" and _RESOLUTION not in image.tag_v2:  # type: ignore[attr-defined]
        dpi = None  # Pillow makes one pixel an inch of it
    orientation, exif = _exif(image, notes)
    record = _record(image)
    if file_format == "TIFF":
        orientation = 1  # Pillow turns TIFF pictures itself as it decodes them
    icc = image.info.get("icc_profile") or None
    transparent = image.info.get("transparency")
    lossless = file_format == "WEBP" and kinds.is_lossless_webp(_content(file))
    primaries = _named_colours(image, icc, file)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
        deep = deep.transpose(_UPRIGHT[orientation]) if deep else None

    mode, alpha, depth = "RGB", None, 8
    if deep:
        depth = 16
        values = sixteen_bits.joined(image, deep, ";16" in raw and raw.startswith("LA"))
        mode = "L" if values.shape[-1] == 2 else "RGB"
        pixels, alpha = _deep_planes(values, transparent)
        icc = _kept_profile(icc, b"GRAY" if mode == "L" else b"RGB ", notes)
    elif image.mode.startswith(("I", "F")):
        mode, depth = "L", 16
        if not image.mode.startswith("I;16") and file_format != "PNG":
            notes.append("of its 32 bits a channel 16 are kept")
        pixels = _deep_grey(image, file_format).expand(3, -1, -1).contiguous()
        if isinstance(transparent, int):
            alpha = (pixels[:1] * 65535 - transparent).abs().gt(0.5).float()
        icc = _kept_profile(icc, b"GRAY", notes)
    else:
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA" if image.mode not in ("LA", "La") else "LA")
            alpha = _plane(image.getchannel("A"))[None]
        if image.mode in ("1", "L", "LA"):
            mode, image = "L", image.convert("L")
        image, icc = _in_rgb(image, icc, notes)
        if icc:  # an RGB profile can only describe a file in RGB
            mode = "RGB"
        pixels = torch.empty(3, image.height, image.width)
        for i in range(3):
            pixels[i] = _plane(image.getchannel(i))
    if primaries in wide_colour.TO_SRGB:
        pixels = wide_colour.in_srgb(pixels, primaries)
    elif primaries not in wide_colour.SRGB_PRIMARIES:
        notes.append("its colours are of a kind that is not known here, and are taken for sRGB")
    for line in notes:
        log.warning("%s: %s", name, line)
    grey = bool(torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[1], pixels[2]))
    return Photo(
        pixels=pixels,
        alpha=alpha,
        grey=grey,
        icc=icc,
        exif=exif,
        format=file_format,
        mode=mode,
        text={str(key): str(value) for key, value in text.items() if not str(key).startswith(_RAW_TEXTS)},
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None,
        comment=_bytes_in(image.info, "comment") if file_format == "JPEG" else b"",
        iptc=_bytes_in(image.info.get("photoshop"), _IPTC) if file_format == "JPEG" else b"",
        record=record,
        depth=depth,
        lossless=lossless,
        notes=tuple(notes),
    )


def _content(file: _WholeFile, most: int = -1) -> bytes:
    """All of the file, or its first `most` bytes; its position is then as before."""
    at, file.complete = file.tell(), False
    file.seek(0)
    content = file.read(most)
    file.seek(at)
    return content


def _deep_planes(values: np.ndarray, transparent: object) -> tuple[Tensor, Tensor | None]:
    """Colours (3, H, W) and alpha (1, H, W) or None, float32 in [0, 1], of (H, W, 2 to 4) uint16.

    transparent: the one colour that counts as transparent, if the file names one.
    """
    planes = torch.from_numpy(np.moveaxis(values, -1, 0).astype(np.float32)).div_(65535)
    if len(planes) == 2:
        return planes[:1].expand(3, -1, -1).contiguous(), planes[1:]
    if len(planes) == 4:
        return planes[:3].contiguous(), planes[3:].contiguous()
    if isinstance(transparent, tuple) and len(transparent) == 3:
        return planes, torch.from_numpy((values != np.array(transparent)).any(-1).astype(np.float32))[None]
    return planes, None


def _named_colours(image: Image.Image, icc: bytes | None, file: _WholeFile) -> int:
    """The primaries that a file without a profile names, see `wide_colour`; those of sRGB if it names none."""
    named = image.info.get("nclx_profile")  # of a HEIF picture, of which the file may have several
    if icc:
        return wide_colour.SRGB_PRIMARIES[0]
    if isinstance(named, dict):
        primaries, curve = named.get("color_primaries"), named.get("transfer_characteristics")
    else:
        primaries, curve = kinds.named_colours(_content(file, kinds.HEAD_BYTES)) or (None, None)
    if curve in wide_colour.HIGH_RANGE:
        raise _OtherKind("is brighter than a usual picture can be (HDR); save it in the standard range, as JPEG or PNG")
    return wide_colour.SRGB_PRIMARIES[0] if primaries is None else int(primaries)


def _bytes_in(table: object, key: object) -> bytes:
    """What a table that Pillow read holds there, as bytes; none where either is missing or of another kind."""
    value = table.get(key) if isinstance(table, dict) else None
    return value if isinstance(value, bytes) else b""


def _kept_profile(icc: bytes | None, space: bytes, notes: list[str]) -> bytes | None:
    """`icc` if it describes pixels of this colour space, else None; of a profile that does not fit there is a note."""
    if icc and icc[16:20] != space:
        notes.append("its colour profile does not fit its pixels and is dropped")
        return None
    return icc


def _in_rgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """`image` (any 8-bit mode) in RGB, and the profile those pixels are then in (None: sRGB)."""
    space = icc[16:20] if icc else b""
    if space == b"RGB " and image.mode not in ("CMYK", "LAB"):
        return image.convert("RGB"), icc
    fits = {"CMYK": b"CMYK", "L": b"GRAY", "LAB": b"Lab "}.get(image.mode) == space
    if image.mode == "LAB":
        return _to_srgb(image, icc if fits else None), None
    if icc and fits:
        try:
            return _to_srgb(image, icc), None
        except (ImportError, OSError) as error:
            notes.append(f"its colour profile cannot be used ({printable(str(error))}) and is dropped")
    elif icc:
        notes.append("its colour profile does not fit its pixels and is dropped")
    return image.convert("RGB"), None


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """`image` in the colours of profile `icc` (None: Lab) as sRGB. Raises ImportError, or OSError for a bad profile."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(icc)) if icc else ImageCms.createProfile("LAB")
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, image.mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        return transform.apply(image)
    except (ImageCms.PyCMSError, ValueError) as error:
        raise OSError(str(error)) from error


def _deep_grey(image: Image.Image, file_format: str) -> Tensor:
    """Grey of 16 or 32 bits, or float, as (H, W) float32 in [0, 1]; format or values tell the full scale.

    Floats may go beyond white, as sharpening leaves them or highlights are kept, by up to `BEYOND_WHITE` times.
    A TIFF may count from white, as scanners do, and its 32 bits may have no sign, of which Pillow knows nothing.
    """
    tags = getattr(image, "tag_v2", {})
    stored = np.asarray(image)
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1 and tags.get(_BITS_PER_SAMPLE, (0,))[0] == 32:
        stored = stored.view(np.uint32)
    values = stored.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite numbers")
    top = float(values.max())
    if image.mode.startswith("I;16") or file_format == "PNG":
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # Pillow gives the 12 bits of a TIFF in this mode, as they are
        scale = 2.0**bits - 1
    else:
        is_float = image.mode == "F"
        scales = (1.0, 255.0, 65535.0, 2.0**31 - 1)[0 if is_float else 1 :]
        scale = next((s for s in scales if top <= s * (BEYOND_WHITE if is_float else 1)), 2.0**32 - 1)
    light = np.clip(values / scale, 0, 1)
    return torch.from_numpy(1 - light if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else light)


def _plane(channel: Image.Image) -> Tensor:
    """One 8-bit channel as (H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(channel)).float().div_(255)


def _exif(image: Image.Image, notes: list[str]) -> tuple[int, bytes | None]:
    """Orientation 1...8, and the EXIF that stays true of the upright photo (no orientation, no thumbnail)."""
    orientation = 1
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        kept = exif_of({tag: value for tag, value in tags_of(exif).items() if tag in _EXIF_KEPT})
        if len(kept):
            kept[_ORIENTATION] = 1
        return orientation, kept.tobytes() if len(kept) else None
    except Exception as error:
        notes.append(f"its EXIF is damaged and is left out ({printable(str(error))})")
        return orientation, None


def _record(image: Image.Image) -> Record:
    """What the picture's XMP says; Pillow's versions differ in where they put it."""
    packet = image.info.get("xmp") or image.info.get(_XMP_IN_PNG)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        segments = [content for marker, content in image.applist if marker == "APP1"]
        packet = next((s[len(_XMP_IN_JPEG) :] for s in segments if s.startswith(_XMP_IN_JPEG)), None)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        packet = image.tag_v2.get(_XMP_TAG)
        packet = packet[0] if isinstance(packet, tuple) and packet else packet
    if isinstance(packet, str):
        packet = packet.encode(errors="replace")
    if not packet or not isinstance(packet, bytes):
        return Record()
    return read_packet(packet)


def _reason(error: Exception) -> str:
    """Why a file could not be read, on one line."""
    if isinstance(error, MemoryError):
        return "needs more memory than there is; shrink it first"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    if type(error) is ValueError or "cut short" in str(error):
        return printable(str(error))
    return f"is damaged or of an unknown kind ({printable(str(error)) or type(error).__name__})"


# ---------------------------------------------------------------- writing


def write_photo(path: Path, photo: Photo) -> tuple[str, ...]:
    """Write `photo` in the format of the suffix of `path`, keeping profile, EXIF, alpha, texts and record where it can.

    As many bits a channel as the photo has, where the format is PNG or TIFF; else 8. JPEG, AVIF and HEIF at quality 95
    without chroma subsampling; JPEG 2000, and WebP where the photo was, without loss. Grey only if the source file was
    grey and the pixels still are. What of the photo is not in the file is logged and returned, a sentence each.
    Raises ValueError for a picture that the format cannot hold, OSError as
    `replace_atomically`.
    """
    path = Path(path)
    name, notes = printable(path.name), list[str]()
    file_format = FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise ValueError(f"{name}: unknown image format; use one of {', '.join(sorted(FORMATS))}")
    deep = photo.depth > 8 and file_format in ("PNG", "TIFF")
    if photo.depth > 8 and not deep:
        notes.append(f"{file_format} is written with 8 bits a channel; the photo has {photo.depth}")
    planes = _planes(photo, name, 65535 if deep else 255)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(planes)]
    if file_format in ("JPEG", "BMP") and mode in ("LA", "RGBA"):
        notes.append(f"{file_format} has no transparency; it is left out")
        planes, mode = planes[:-1], mode[:-1]
    by_format: dict[str, dict[str, object]] = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "exact": True, "method": 4} if photo.lossless else {"quality": 95, "method": 4},
        "TIFF": {"compression": "raw" if photo.exif else "tiff_adobe_deflate"},  # Pillow has no EXIF in compressed TIFF
        "AVIF": {"quality": 95, "subsampling": "4:4:4"},
        "JPEG2000": {"irreversible": False, "no_jp2": path.suffix.lower() == ".j2k"},
        "HEIF": {"quality": 95, "chroma": 444},
    }
    options = by_format.get(file_format, {})
    bare = file_format in ("BMP", "JPEG2000")
    if photo.icc and not bare and photo.icc[16:20] == (b"GRAY" if mode in ("L", "LA") else b"RGB "):
        options["icc_profile"] = photo.icc
    if photo.exif and file_format == "JPEG" and len(photo.exif) > _JPEG_EXIF_BYTES:
        notes.append("its EXIF is larger than a JPEG can hold; it is left out")
    elif photo.exif and not bare:
        # Of a TIFF they are tags like any other, which Pillow would read from the bytes and write anew.
        options["exif"] = exif_of(tags_of(photo.exif)) if file_format == "TIFF" else photo.exif
    if file_format == "JPEG2000" and (photo.exif or photo.icc):
        notes.append("JPEG 2000 is written without EXIF and colour profile; they are left out")
    if photo.dpi and file_format in ("JPEG", "PNG", "TIFF", "BMP"):
        options["dpi"] = photo.dpi
    if photo.record.problem:
        notes.append(f"{photo.record.problem}; what it said is left out")
    packet = to_packet(photo.record)
    if file_format == "PNG" and (photo.text or packet):
        options["pnginfo"] = _png_text(photo.text, photo.record.words(), packet)
    elif packet:
        options |= _with_packet(file_format, packet, photo.exif, notes)
    if file_format == "JPEG" and photo.comment:
        options["comment"] = photo.comment
    if file_format == "JPEG" and 0 < len(photo.iptc) <= _JPEG_IPTC_BYTES:
        options["extra"] = options.get("extra", b"") + _photoshop(photo.iptc)  # type: ignore[operator]
    elif photo.iptc:
        notes.append(f"its captions and names (IPTC) do not fit into one block of a {file_format}; they are left out")
    try:  # in memory, so that the disk's errors come from one plain write, with their reason
        encoded = BytesIO(_encoded(planes, mode, file_format, options, deep))
    except (OSError, ValueError, OverflowError, RuntimeError, struct.error) as error:
        size = f"{planes[0].shape[1]} x {planes[0].shape[0]} pixels"
        raise ValueError(f"{name}: cannot be written as {file_format} with {size} ({printable(str(error))})") from error
    replace_atomically(path, lambda temporary: _write_bytes(temporary, encoded))
    for line in notes:
        log.warning("%s: %s", name, line)
    return tuple(notes)


def without_place(photo: Photo) -> Photo:
    """`photo` without what may say where it was taken: GPS block, camera maker's notes, texts that repeat them, and
    captions and comments of a JPEG."""
    photo = replace(photo, comment=b"", iptc=b"")
    text = {key: value for key, value in photo.text.items() if not re.search("gps|location", key, re.IGNORECASE)}
    if photo.exif is None:
        return replace(photo, text=text)
    kept = tags_of(photo.exif)
    kept.pop(GPS, None)
    for block in filter(None, map(kept.get, BLOCKS)):
        block.pop(_MAKER_NOTE, None)
    return replace(photo, text=text, exif=exif_of(kept).tobytes())


def write_image(path: Path, pixels: Tensor) -> None:
    """Write `pixels` (3, H, W) float RGB in [0, 1] as 8-bit sRGB; format and errors as in `write_photo`."""
    write_photo(path, Photo(pixels))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file beside `path`, then move it there: readers see the old file or the new one.

    Missing folders are made, and the file is entered in the list of its folder, see `files.ownership`. When anything
    fails, the temporary file is removed and an older `path` stays as it was.
    Raises ValueError, in one line, if `path` is a file that is not this program's or was changed since; OSError, in one
    line that names the folder, when the disk refuses; what else `write` raises passes through.
    """
    path = Path(path)
    refuse_foreign(path)
    temporary = scratch_name(path)
    try:
        make_folder(path.parent)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        if temporary.stat().st_mode != mode:  # safetensors makes files that only their owner can read
            temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        note(path, temporary)
        move(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        line = f"cannot write {printable(path.name)} in {printable(path.parent)}: {printable(reason)}"
        clear = OSError(f"{line}; free space there or choose another folder")
        clear.errno = error.errno
        raise clear from error
    finally:
        with contextlib.suppress(OSError):  # already moved, or the folder itself is not there
            delete(temporary)


def _write_bytes(path: Path, content: BytesIO) -> None:
    with open(path, "wb") as file:
        file.write(content.getbuffer())


def _planes(photo: Photo, name: str, top: int) -> list[np.ndarray]:
    """Grey or red, green, blue, then alpha if there is one: (H, W) of whole numbers from 0 to `top`, 255 or 65535."""
    pixels = photo.pixels.detach().cpu()
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"{name}: pixels must be (3, H, W), not {tuple(pixels.shape)}")
    planes = [_to_whole(plane, name, top) for plane in pixels]
    if photo.mode == "L" and all(np.array_equal(planes[0], plane) for plane in planes[1:]):
        planes = planes[:1]
    if photo.alpha is not None:
        planes.append(_to_whole(photo.alpha.detach().cpu()[0], name, top))
    return planes


def _to_whole(plane: Tensor, name: str, top: int) -> np.ndarray:
    if not torch.isfinite(plane).all():
        raise ValueError(f"{name}: the picture holds values that are not finite numbers; it is not written")
    return plane.float().clamp(0, 1).mul(top).round_().numpy().astype(np.uint8 if top == 255 else np.uint16)


def _encoded(planes: list[np.ndarray], mode: str, file_format: str, options: dict[str, Any], deep: bool) -> bytes:
    """The file's content. deep: `planes` are uint16. Raises as the encoders do."""
    if deep:
        if file_format == "TIFF" and mode == "LA":  # which Pillow does not open again
            planes = [*planes[:1] * 3, planes[1]]
        values = np.stack(planes, -1)
        return (sixteen_bits.png_bytes if file_format == "PNG" else sixteen_bits.tiff_bytes)(values, options)
    image, encoded = Image.merge(mode, [Image.fromarray(plane) for plane in planes]), BytesIO()
    if file_format == "HEIF":
        from pillow_heif import from_pillow

        from_pillow(image).save(encoded, **options)
    else:
        image.save(encoded, file_format, **options)
    return encoded.getvalue()


def _segment(marker: bytes, content: bytes) -> bytes:
    """A segment of a JPEG file."""
    return marker + (len(content) + 2).to_bytes(2, "big") + content


def _photoshop(iptc: bytes) -> bytes:
    """The segment of a JPEG that holds IPTC-IIM, as Photoshop lays it out."""
    block = b"8BIM" + _IPTC.to_bytes(2, "big") + b"\0\0" + len(iptc).to_bytes(4, "big") + iptc + b"\0" * (len(iptc) % 2)
    return _segment(b"\xff\xed", b"Photoshop 3.0\0" + block)


def _with_packet(file_format: str, packet: bytes, exif: bytes | None, notes: list[str]) -> dict[str, object]:
    """Options of Pillow, whatever its version, that write an XMP packet beside `exif`; a note if there is no place."""
    if file_format in ("WEBP", "AVIF", "HEIF"):
        return {"xmp": packet}
    if file_format == "JPEG":
        return {"extra": _segment(b"\xff\xe1", _XMP_IN_JPEG + packet)}
    if file_format == "TIFF" and exif:
        return {"exif": exif_of(tags_of(exif) | {_XMP_TAG: packet})}
    if file_format == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[_XMP_TAG] = packet
        return {"tiffinfo": tags}
    notes.append(f"{file_format} has no place to say that details are generated; use another format")
    return {}


def _png_text(text: dict[str, str], words: list[str], packet: bytes | None) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    if packet:
        chunks.add_itxt(_XMP_IN_PNG, packet.decode())
        text = text | {TEXT_KEY: "\n".join(words)}
    for key, value in text.items():
        try:
            value.encode("latin-1")
            chunks.add_text(key, value)
        except UnicodeEncodeError:
            chunks.add_itxt(key, value)
    return chunks


# ---------------------------------------------------------------- names


def _percent(part: str) -> str:
    def encode(c: str) -> str:
        return "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogatepass"))

    return "".join(c if c.isalnum() or c in " ._-()" else encode(c) for c in part)


def _digest(relative: Path) -> str:
    return hashlib.sha256(relative.as_posix().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _disk_key(name: str) -> str:
    """Equal for names that are one file where the disk ignores case or how accents are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _made_by_us(folder: Path) -> bool:
    """Whether a folder was made by a run, one of its stages, or for results; also by version 0.1, without a list."""
    return bool(Ledger(folder).kind) or made_without_list(folder)
