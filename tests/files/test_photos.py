import errno
import os
import shutil
import struct
import threading
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, TiffImagePlugin

from bfr_core.files import photos as images
from bfr_core.files.exif import StoredText, exif_of, tags_of
from bfr_core.files.kinds import LeftOutError, UnreadableError
from bfr_core.files.photos import (
    Photo,
    list_images,
    look_through,
    own_names,
    photo_name,
    photo_names,
    png_names,
    printable,
    read_image,
    read_photo,
    replace_atomically,
    stated_pixels,
    to_signed,
    to_unit,
    without_place,
    write_image,
    write_photo,
)
from bfr_core.files.provenance import Record, Step

posix = pytest.mark.skipif(os.name == "nt", reason="Windows allows no such names, links or pipes")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(mode: str = "RGB", size: tuple[int, int] = (24, 16), seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    planes = [Image.fromarray(values[..., i]) for i in range(bands)]
    return planes[0] if bands == 1 else Image.merge(mode, planes)


def smooth(size: tuple[int, int] = (64, 48)) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    return Image.fromarray((np.stack([x, y, 1 - x * y], -1) * 255).astype(np.uint8))


def as_uint8(pixels: torch.Tensor) -> np.ndarray:
    return (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text and text.isprintable()
    return text


def gray_profile(gamma: float) -> bytes:
    """The least ICC v2 profile that says: one channel, raised to `gamma`."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    header = bytearray(128)
    header[8:12], header[12:24], header[36:40] = b"\x02\x10\0\0", b"mntrGRAYXYZ ", b"acsp"
    header[68:80] = struct.pack(">iii", 63190, 65536, 54061)
    table = struct.pack(">I", 2) + b"kTRC" + struct.pack(">II", 156, 16) + b"wtpt" + struct.pack(">II", 172, 20)
    profile = bytes(header) + table + curve + white
    return struct.pack(">I", len(profile)) + profile[4:]


# ---------------------------------------------------------------- values


def test_signed_and_unit_are_inverse_and_unit_clamps():
    x = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(to_unit(to_signed(x)), x)
    assert to_signed(torch.tensor([0.0, 1.0])).tolist() == [-1, 1]
    assert to_unit(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".PNG"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str):
    source = np.asarray(noise())
    path = tmp_path / f"a{suffix}"
    noise().save(path, {".png": "PNG", ".bmp": "BMP"}.get(suffix.lower(), "TIFF"))
    photo = read_photo(path)
    assert photo.pixels.dtype == torch.float32 and photo.pixels.shape == (3, 16, 24)
    np.testing.assert_array_equal(as_uint8(photo.pixels), source)
    write_photo(tmp_path / f"b{suffix}", photo)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"b{suffix}")), source)
    assert photo.mode == "RGB" and not photo.grey and photo.alpha is None


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_formats_stay_close(tmp_path: Path, suffix: str):
    write_image(tmp_path / f"a{suffix}", read_pil(smooth()))
    back = read_photo(tmp_path / f"a{suffix}")
    assert (back.pixels - read_pil(smooth())).abs().mean() < 0.01
    assert back.format == ("WEBP" if suffix == ".webp" else "JPEG")


def read_pil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_every_orientation_is_applied_and_then_forgotten(tmp_path: Path, orientation: int, suffix: str):
    # Four flat quarters, so that lossy files keep them: as seen upright, top row 0 and 80, bottom row 160 and 240.
    upright = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 24), np.uint8))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(path, exif=exif.tobytes())
    photo = read_photo(path)
    assert photo.pixels.shape == (3, 32, 48)
    np.testing.assert_allclose(as_uint8(photo.pixels)[8::16, 12::24, 0], [[0, 80], [160, 240]], atol=3)
    write_photo(tmp_path / f"b{suffix}", photo)
    with Image.open(tmp_path / f"b{suffix}") as written:
        assert written.size == (48, 32)
        assert written.getexif().get(0x0112, 1) == 1 and written.getexif()[0x010F] == "Maker"
    assert torch.allclose(read_image(tmp_path / f"b{suffix}"), photo.pixels, atol=0.02)


@pytest.mark.parametrize("target", ["b.jpg", "b.png", "b.webp", "b.tif"])
@pytest.mark.parametrize("source", ["a.jpg", "a.tif"])
def test_exif_keeps_camera_and_place_and_drops_layout_tags(tmp_path: Path, source: str, target: str):
    exif = Image.Exif()
    exif[0x010F], exif[0x0201] = "Maker", 1234  # 0x0201: where a thumbnail would be
    exif[0x8769], exif[0x8825] = {0x9003: "2001:02:03 04:05:06"}, {1: "N"}
    smooth().save(tmp_path / source, exif=exif.tobytes())
    write_photo(tmp_path / target, read_photo(tmp_path / source))
    kept = Image.open(tmp_path / target).getexif()
    assert (
        kept[0x010F] == "Maker" and kept.get_ifd(0x8769)[0x9003].startswith("2001") and kept.get_ifd(0x8825)[1] == "N"
    )
    assert 0x0201 not in kept and (target == "b.tif" or 0x0111 not in kept)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_names_in_exif_stay_the_bytes_that_they_were(tmp_path: Path, suffix: str, deep: bool):
    """Lightroom and exiftool write UTF-8, which Pillow takes for latin-1 and would not write."""
    raw = {0x013B: "José Müller".encode(), 0x8298: "© 2020".encode(), 0x010F: b"Maker"}
    exif = exif_of({tag: StoredText(text.decode("latin-1")) for tag, text in raw.items()})
    exif[0x8769] = {0xA430: StoredText("Zoë".encode().decode("latin-1"))}
    smooth().save(tmp_path / f"a{suffix}", exif=exif if suffix == ".tif" else exif.tobytes())
    photo = read_photo(tmp_path / f"a{suffix}")
    changed = replace(photo, record=Record().with_step(Step("BFR Adapt", "r.pth")), depth=16 if deep else 8)
    write_photo(tmp_path / f"b{suffix}", changed)
    write_photo(tmp_path / f"c{suffix}", without_place(changed))
    write_photo(tmp_path / f"d{suffix}", replace(changed, record=Record()))
    for name in ("b", "c", "d"):
        kept = Image.open(tmp_path / f"{name}{suffix}").getexif()
        assert {tag: str(kept[tag]).encode("latin-1") for tag in raw} == raw
        assert str(kept.get_ifd(0x8769)[0xA430]).encode("latin-1") == "Zoë".encode()


WITH_RECORD = pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
MARK = Record().with_step(Step("BFR Adapt", "r <&> \U0001f600.pth", faces_found=1, faces_restored=1))


def with_place(path: Path, **more: Any) -> Photo:
    """A photo with camera, date, place and maker's note, read from `path`."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    exif[0x8769], exif[0x8825] = {0x9003: "2001:02:03 04:05:06", 0x927C: b"near 52 N"}, {1: "N", 2: (52.0, 1.0, 2.0)}
    smooth().save(path, exif=exif.tobytes(), **more)
    return read_photo(path)


@WITH_RECORD
@pytest.mark.parametrize("with_exif", [True, False])
def test_a_record_is_written_beside_the_exif_and_changes_no_pixel(tmp_path: Path, suffix: str, with_exif: bool):
    photo = with_place(tmp_path / f"a{suffix}")
    photo = photo if with_exif else replace(photo, exif=None)
    write_photo(tmp_path / f"b{suffix}", photo)
    write_photo(tmp_path / f"c{suffix}", replace(photo, record=MARK))
    plain, marked = read_photo(tmp_path / f"b{suffix}"), read_photo(tmp_path / f"c{suffix}")
    assert marked.record == MARK and plain.record == Record()
    assert torch.equal(plain.pixels, marked.pixels) and plain.pixels.shape == photo.pixels.shape
    exif = Image.open(tmp_path / f"c{suffix}").getexif()
    assert exif.get(0x0112, 1) == 1 and (exif.get_ifd(0x8825).get(1) == "N") is with_exif
    write_photo(tmp_path / f"d{suffix}", marked)  # whoever writes it again keeps what it says
    assert read_photo(tmp_path / f"d{suffix}").record == MARK


def test_a_png_says_it_in_words_too(tmp_path: Path):
    write_photo(tmp_path / "a.png", Photo(read_pil(smooth()), record=MARK, text={"Comment": "mine"}))
    text = Image.open(tmp_path / "a.png").info
    assert "are generated" in text["BFR Adapt"] and "r <&> \U0001f600.pth" in text["BFR Adapt"]
    assert text["Comment"] == "mine" and "XML:com.adobe.xmp" in text


def test_a_format_without_metadata_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_photo(tmp_path / "a.bmp", Photo(read_pil(smooth()), record=MARK))
    assert "a.bmp: BMP has no place to say" in caplog.text


@WITH_RECORD
def test_of_foreign_xmp_only_the_source_type_is_kept(tmp_path: Path, suffix: str):
    source_type = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<r:Description xmlns:e="http://ns.adobe.com/exif/1.0/" e:GPSLatitude="52,1.0N" '
        'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" '
        f'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" i:DigitalSourceType="{source_type}"/>'
        "</r:RDF></x:xmpmeta>"
    )
    path = tmp_path / f"a{suffix}"
    tags, chunks = TiffImagePlugin.ImageFileDirectory_v2(), PngImagePlugin.PngInfo()
    tags[700] = xmp.encode()
    chunks.add_itxt("XML:com.adobe.xmp", xmp)
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp.encode()
    own: dict[str, dict[str, Any]] = {
        ".png": {"pnginfo": chunks},
        ".tif": {"tiffinfo": tags},
        ".jpg": {"extra": b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment},  # as old Pillows need it
        ".webp": {"xmp": xmp.encode()},
    }
    smooth().save(path, **own[suffix])
    photo = read_photo(path)
    assert photo.record == Record(source_type=source_type)
    write_photo(tmp_path / f"b{suffix}", photo)
    assert b"GPSLatitude" in path.read_bytes() and b"GPSLatitude" not in (tmp_path / f"b{suffix}").read_bytes()
    assert read_photo(tmp_path / f"b{suffix}").pixels.shape == photo.pixels.shape  # not turned a second time


def test_damaged_xmp_is_left_out_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    smooth().save(tmp_path / "a.webp", xmp=b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>")
    photo = read_photo(tmp_path / "a.webp")
    assert "document type" in photo.record.problem and not caplog.text  # so far nothing is lost
    write_photo(tmp_path / "b.webp", replace(photo, record=photo.record.with_step(MARK.steps[0])))
    assert "b.webp: its XMP is damaged" in caplog.text and read_photo(tmp_path / "b.webp").record == MARK


@WITH_RECORD
def test_the_place_can_be_left_out(tmp_path: Path, suffix: str):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("exif:GPSLatitude", "52/1")
    chunks.add_text("Raw profile type exif", "\nexif\n 6\n457869660000")
    chunks.add_text("Comment", "mine")
    photo = with_place(tmp_path / f"a{suffix}", **({"pnginfo": chunks} if suffix == ".png" else {}))
    write_photo(tmp_path / f"b{suffix}", without_place(photo))
    exif = Image.open(tmp_path / f"b{suffix}").getexif()
    assert exif[0x010F] == "Maker" and exif.get_ifd(0x8769)[0x9003].startswith("2001") and exif[0x0112] == 1
    assert 0x8825 not in exif and 0x927C not in exif.get_ifd(0x8769)
    kept = without_place(replace(photo, exif=None))
    assert kept.text == ({"Comment": "mine"} if suffix == ".png" else {}) and torch.equal(kept.pixels, photo.pixels)


def test_damaged_exif_does_not_lose_the_photo(tmp_path: Path):
    smooth().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    smooth().save(tmp_path / "b.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff" * 40)
    for name in ("a.jpg", "b.png"):
        assert read_photo(tmp_path / name).pixels.shape == (3, 48, 64)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_rgb_profile_is_kept(tmp_path: Path, suffix: str):
    smooth().save(tmp_path / f"a{suffix}", icc_profile=SRGB)
    photo = read_photo(tmp_path / f"a{suffix}")
    assert photo.icc == SRGB
    write_photo(tmp_path / f"b{suffix}", photo)
    assert Image.open(tmp_path / f"b{suffix}").info["icc_profile"] == SRGB


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_without_profile_becomes_rgb(tmp_path: Path, suffix: str):
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / f"a{suffix}")
    photo = read_photo(tmp_path / f"a{suffix}")
    red, green, blue = photo.pixels.mean((1, 2)).tolist()
    assert red > 0.9 and green < 0.1 and blue < 0.1 and photo.icc is None


def test_profile_that_cannot_be_used_is_dropped_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    broken = b"\0\0\0\x90" + bytes(12) + b"CMYKLab " + bytes(120)
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "a.jpg", icc_profile=broken)
    assert read_photo(tmp_path / "a.jpg").icc is None
    assert "profile" in caplog.text
    caplog.clear()
    smooth().save(tmp_path / "b.jpg", icc_profile=broken)
    assert read_photo(tmp_path / "b.jpg").icc is None
    assert "does not fit" in caplog.text


def test_grey_profile_is_applied(tmp_path: Path):
    Image.new("L", (8, 8), 128).save(tmp_path / "a.png", icc_profile=gray_profile(1.0))
    photo = read_photo(tmp_path / "a.png")
    # Half of the light is 188 of 255 in sRGB.
    assert abs(photo.pixels.mean().item() * 255 - 188) < 2 and photo.icc is None and photo.mode == "L"


def test_grey_with_rgb_profile_is_written_as_rgb_so_that_the_profile_fits(tmp_path: Path):
    Image.new("L", (8, 8), 128).save(tmp_path / "a.png", icc_profile=SRGB)
    photo = read_photo(tmp_path / "a.png")
    write_photo(tmp_path / "b.png", photo)
    assert photo.grey and photo.icc == SRGB and Image.open(tmp_path / "b.png").mode == "RGB"


def test_lab_becomes_srgb(tmp_path: Path):
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (8, 8), (200, 40, 90)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        ImageCms.Intent.PERCEPTUAL,
        "LAB",
    )
    lab.save(tmp_path / "a.tif")
    np.testing.assert_allclose(as_uint8(read_image(tmp_path / "a.tif"))[4, 4], (200, 40, 90), atol=6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_uses_its_full_scale(tmp_path: Path, suffix: str):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    photo = read_photo(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(photo.pixels[1].numpy(), values / 65535, atol=1e-6)
    assert photo.grey and photo.mode == "L"


def sixteen(channels: int, size: tuple[int, int] = (23, 37)) -> np.ndarray:
    """(H, W, C) of all values that 16 bits have, a slope with noise."""
    rng = np.random.default_rng(channels)
    slope = np.linspace(0, 64000, size[1]).astype(np.uint16)
    return slope[None, :, None] + rng.integers(0, 1500, (*size, channels), dtype=np.uint16)


def png16(values: np.ndarray, *more: bytes) -> bytes:
    """A PNG file of `values` (H, W, C) uint16, written by the specification and without filters."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(one[:4], one[4:]) for one in more)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def channels_of(photo: Photo) -> np.ndarray:
    """(H, W, C) uint16 of all that a photo of 16 bits holds."""
    planes = [photo.pixels[:1] if photo.mode == "L" else photo.pixels, *([] if photo.alpha is None else [photo.alpha])]
    return np.rint(torch.cat(planes).double().numpy() * 65535).astype(np.uint16).transpose(1, 2, 0)


def read_elsewhere(path: Path) -> np.ndarray:
    """(H, W, C) as another program reads it: OpenCV for PNG, tifffile for TIFF."""
    if path.suffix == ".tif":
        values = pytest.importorskip("tifffile").imread(path)
    else:
        values = pytest.importorskip("cv2").imread(str(path), -1)
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[1 if values.ndim == 2 else values.shape[-1]]
        values = values.reshape(*values.shape[:2], -1)[..., order]
    return values.reshape(*values.shape[:2], -1)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_in_and_out_are_the_same(tmp_path: Path, channels: int, suffix: str):
    values = sixteen(channels)
    (tmp_path / "a.png").write_bytes(png16(values))
    photo = read_photo(tmp_path / "a.png")
    assert photo.depth == 16 and photo.mode == ("L" if channels < 3 else "RGB")
    np.testing.assert_array_equal(channels_of(photo), values)
    write_photo(tmp_path / f"b{suffix}", photo)
    back = read_photo(tmp_path / f"b{suffix}")
    if suffix == ".tif" and channels == 2:  # written as RGB and alpha, because Pillow opens nothing less
        values = values[..., [0, 0, 0, 1]]
    assert back.depth == 16
    np.testing.assert_array_equal(channels_of(back), values)
    if channels != 2:  # which OpenCV gives as four
        np.testing.assert_array_equal(read_elsewhere(tmp_path / f"b{suffix}"), values)


@pytest.mark.parametrize("height", [255, 256, 257, 600])
def test_sixteen_bits_of_tall_pictures(tmp_path: Path, height: int):
    values = sixteen(3, (height, 5))
    (tmp_path / "a.png").write_bytes(png16(values))
    write_photo(tmp_path / "b.png", read_photo(tmp_path / "a.png"))
    np.testing.assert_array_equal(read_elsewhere(tmp_path / "b.png"), values)
    assert (tmp_path / "b.png").stat().st_size < (tmp_path / "a.png").stat().st_size


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bit_tiff_of_other_programs(tmp_path: Path, compression: str | None, order: str):
    tifffile, values = pytest.importorskip("tifffile"), sixteen(3)
    how = {"photometric": "rgb", "compression": compression, "byteorder": order}
    tifffile.imwrite(tmp_path / "a.tif", values, **how)
    np.testing.assert_array_equal(channels_of(read_photo(tmp_path / "a.tif")), values)
    tifffile.imwrite(tmp_path / "b.tif", values.transpose(2, 0, 1), planarconfig="separate", **how)
    with pytest.raises(ValueError, match="b.tif: has 16 bits a channel in separate planes"):
        read_photo(tmp_path / "b.tif")


@pytest.mark.parametrize("orientation", [3, 6])
def test_sixteen_bits_are_turned_with_what_the_file_says(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    values = sixteen(3)
    (tmp_path / "a.png").write_bytes(png16(values, b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")))
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(channels_of(photo), np.rot90(values, 2 if orientation == 3 else -1))
    for suffix in (".png", ".tif"):
        write_photo(tmp_path / f"b{suffix}", replace(photo, icc=SRGB, dpi=(300.0, 300.0), record=MARK))
        back = read_photo(tmp_path / f"b{suffix}")
        assert (back.icc, back.record) == (SRGB, MARK) and back.dpi[0] == pytest.approx(300, abs=0.1)
        np.testing.assert_array_equal(channels_of(back), channels_of(photo))
        assert Image.open(tmp_path / f"b{suffix}").getexif()[0x010F] == "Maker"


def test_place_and_date_are_kept_beside_sixteen_bits(tmp_path: Path):
    photo = replace(with_place(tmp_path / "a.tif"), depth=16)
    for suffix in (".png", ".tif"):
        write_photo(tmp_path / f"b{suffix}", photo)
        exif = Image.open(tmp_path / f"b{suffix}").getexif()
        assert exif.get_ifd(0x8769)[0x9003].startswith("2001") and exif.get_ifd(0x8825)[1] == "N"
        assert exif.get_ifd(0x8825)[2] == (52.0, 1.0, 2.0) and read_photo(tmp_path / f"b{suffix}").depth == 16


def test_the_transparent_colour_of_sixteen_bits(tmp_path: Path):
    for channels in (1, 3):
        values = sixteen(channels)
        key = values[3, 4]
        (tmp_path / "a.png").write_bytes(png16(values, b"tRNS" + key.astype(">u2").tobytes()))
        photo = read_photo(tmp_path / "a.png")
        np.testing.assert_array_equal(photo.alpha[0].numpy() == 0, (values == key).all(-1))
        write_photo(tmp_path / "b.png", photo)
        np.testing.assert_array_equal(channels_of(read_photo(tmp_path / "b.png"))[..., :channels], values)


def test_a_grey_profile_of_sixteen_bits_stays_and_one_that_does_not_fit_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for icc, kept in ((gray_profile(1.0), True), (SRGB, False)):
        chunk = b"iCCPa\0\0" + zlib.compress(icc)
        (tmp_path / "a.png").write_bytes(png16(sixteen(1), chunk))
        photo = read_photo(tmp_path / "a.png")
        assert kept or photo.notes == ("its colour profile does not fit its pixels and is dropped",)
        assert write_photo(tmp_path / "b.png", photo) == ()
        assert (Image.open(tmp_path / "b.png").info.get("icc_profile") == icc) is kept
    assert caplog.messages == ["a.png: its colour profile does not fit its pixels and is dropped"]


def test_a_format_of_eight_bits_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    notes = write_photo(tmp_path / "a.jpg", Photo(read_pil(smooth()), depth=16))
    assert notes == ("JPEG is written with 8 bits a channel; the photo has 16",)
    assert caplog.messages == [f"a.jpg: {notes[0]}"]
    Image.fromarray(np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)).save(tmp_path / "b.tif")
    photo = read_photo(tmp_path / "b.tif")
    assert caplog.messages[1:] == ["b.tif: of its 32 bits a channel 16 are kept"] and photo.depth == 16


def test_deep_cmyk_is_said_to_lose_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    values = np.full((4, 5, 4), 30_000, np.uint16)
    pytest.importorskip("tifffile").imwrite(tmp_path / "a.tif", values, photometric="separated")
    assert read_photo(tmp_path / "a.tif").notes == ("of its 16 bits a channel 8 are used",)
    assert len(caplog.messages) == 1


# ---------------------------------------------------------------- newer kinds


def needs(suffix: str) -> None:
    if suffix in (".heic", ".heif"):
        pytest.importorskip("pillow_heif")
    if suffix == ".avif":
        pytest.importorskip("PIL.AvifImagePlugin")


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("suffix", [".avif", ".heic", ".heif", ".jp2", ".j2k", ".mpo", ".jfif"])
def test_newer_kinds_are_read_and_written(tmp_path: Path, suffix: str, alpha: bool):
    needs(suffix)
    source = with_place(tmp_path / "a.png")
    clear = torch.linspace(0, 1, source.pixels[0].numel()).view(1, *source.pixels.shape[1:])
    write_photo(tmp_path / f"a{suffix}", replace(source, alpha=clear if alpha else None, icc=SRGB, record=MARK))
    back = read_photo(tmp_path / f"a{suffix}")
    exact = suffix in (".jp2", ".j2k")
    assert (back.pixels - source.pixels).abs().max() < (1e-6 if exact else 0.1)
    assert back.format == images.FORMATS[suffix] and back.pixels.shape == source.pixels.shape
    if images.FORMATS[suffix] != "JPEG":
        assert (back.alpha is not None) is alpha
    if not exact:
        assert back.icc == SRGB and back.record == MARK and b"Maker" in (back.exif or b"")


@pytest.mark.parametrize("suffix", [".avif", ".heic"])
def test_newer_kinds_are_turned_upright_once(tmp_path: Path, suffix: str):
    needs(suffix)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (64, 32), (250, 0, 0))
    picture.paste((0, 0, 250), (0, 0, 32, 32))  # left, and above when seen upright
    if suffix == ".heic":
        from pillow_heif import from_pillow

        from_pillow(picture).save(tmp_path / "a.heic", exif=exif.tobytes())
    else:
        picture.save(tmp_path / "a.avif", exif=exif.tobytes())
    photo = read_photo(tmp_path / f"a{suffix}")
    write_photo(tmp_path / f"b{suffix}", photo)
    for seen in (photo.pixels, read_image(tmp_path / f"b{suffix}")):
        assert seen.shape == (3, 64, 32)
        assert seen[:, 8, 16].tolist() == pytest.approx([0, 0, 250 / 255], abs=0.1)


@pytest.mark.parametrize(
    ("suffix", "module", "says"),
    [(".heic", "pillow_heif", "package pillow-heif"), (".avif", "PIL.AvifImagePlugin", "Pillow 11.3")],
)
def test_a_kind_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str, says: str
):
    import sys

    brand = suffix[1:].encode()
    (tmp_path / f"a{suffix}").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(4) + brand + b"mif1")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(f"PIL.{module.split('.')[-1]}", raising=False)
    with pytest.raises(LeftOutError, match=f"^a{suffix}: .*{says}"):
        read_photo(tmp_path / f"a{suffix}")


def test_more_than_eight_bits_of_newer_kinds_is_said(tmp_path: Path):
    needs(".avif")
    smooth().save(tmp_path / "a.avif")
    content = bytearray((tmp_path / "a.avif").read_bytes())
    assert read_photo(tmp_path / "a.avif").notes == ()
    content[content.index(b"av1C") + 6] |= 0x40  # the box says 10 bits; the pixels are left alone
    assert images.kinds.bits_a_channel(bytes(content)) == 10
    smooth().save(tmp_path / "a.jp2")
    assert images.kinds.bits_a_channel((tmp_path / "a.jp2").read_bytes()) == 8
    assert read_photo(tmp_path / "a.jp2").notes == ()


def test_a_heic_of_ten_bits_is_said_to_lose_two(tmp_path: Path):
    pillow_heif = pytest.importorskip("pillow_heif")
    values = sixteen(3, (64, 64))
    pillow_heif.from_bytes("RGB;16", (64, 64), values.tobytes()).save(tmp_path / "a.heic")
    assert read_photo(tmp_path / "a.heic").notes == ("of its 10 bits a channel 8 are used",)
    write_image(tmp_path / "b.heic", read_pil(smooth()))
    assert read_photo(tmp_path / "b.heic").notes == ()


def test_lossless_webp_stays_lossless(tmp_path: Path):
    source = noise("RGBA", (40, 30))
    for exif in (None, with_place(tmp_path / "e.jpg").exif):  # with and without the extended header
        more: dict[str, Any] = {"exif": exif} if exif else {}
        source.save(tmp_path / "a.webp", lossless=True, exact=True, **more)
        photo = read_photo(tmp_path / "a.webp")
        assert photo.lossless
        write_photo(tmp_path / "b.webp", photo)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.webp")), np.asarray(source))
        source.save(tmp_path / "c.webp", **more)
        assert not read_photo(tmp_path / "c.webp").lossless


@pytest.mark.parametrize(
    ("most", "scale"), [(1.0, 1), (1.02, 1), (1.5, 1), (200.0, 255), (300.0, 255), (60000.0, 65535)]
)
def test_floats_a_little_beyond_white_are_clipped_there(tmp_path: Path, most: float, scale: float):
    values = np.array([[0.0, 0.25 * scale], [0.5 * scale, most]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = read_photo(tmp_path / "a.tif").pixels[0].flatten().tolist()
    assert found == pytest.approx([0, 0.25, 0.5, min(1, most / scale)], abs=1e-6)


def test_float_and_32_bit_tiff(tmp_path: Path):
    Image.fromarray(np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0].tolist() == [[0.0, 0.25], [0.5, 1.0]]
    Image.fromarray(np.array([[0, 51], [102, 255]], np.int32)).save(tmp_path / "b.tif")
    torch.testing.assert_close(read_image(tmp_path / "b.tif")[0], torch.tensor([[0, 0.2], [0.4, 1.0]]))
    Image.fromarray(np.array([[np.nan, 1]], np.float32)).save(tmp_path / "c.tif")
    with pytest.raises(ValueError, match="c.tif: .*finite"):
        read_photo(tmp_path / "c.tif")


def test_twelve_bit_grey_uses_its_full_scale(tmp_path: Path):
    """As microscopes and scanners write it: two values in three bytes, 4095 is white."""
    values = np.linspace(0, 4095, 64, dtype=np.uint16).reshape(2, 32)
    first, second = values.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    entries = {256: 32, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2}
    entries[279] = len(packed)
    table = b"".join(struct.pack("<HHII", key, 4, 1, value) for key, value in entries.items())
    head = struct.pack("<4sI", b"II*\0", 8 + len(packed))
    (tmp_path / "a.tif").write_bytes(head + packed + struct.pack("<H", len(entries)) + table + bytes(4))
    photo = read_photo(tmp_path / "a.tif")
    torch.testing.assert_close(photo.pixels[0], torch.from_numpy(values / np.float32(4095)))
    write_photo(tmp_path / "b.tif", photo)
    again = read_photo(tmp_path / "b.tif")
    assert (again.depth, again.mode) == (16, "L") and torch.allclose(again.pixels, photo.pixels, atol=1e-5)


def test_one_bit_and_grey_are_written_as_grey(tmp_path: Path):
    for name, image in (("a.png", noise("L").convert("1")), ("b.png", noise("L")), ("c.jpg", noise("L"))):
        image.save(tmp_path / name)
        photo = read_photo(tmp_path / name)
        assert photo.grey and photo.mode == "L"
        write_photo(tmp_path / f"out-{name}", photo)
        with Image.open(tmp_path / f"out-{name}") as written:
            assert written.mode == "L"
            if name != "c.jpg":
                np.testing.assert_array_equal(np.asarray(written), np.asarray(image.convert("L")))


def test_grey_looking_rgb_stays_rgb_and_coloured_grey_becomes_rgb(tmp_path: Path):
    noise("L").convert("RGB").save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.grey and photo.mode == "RGB"
    write_photo(tmp_path / "b.png", photo)
    assert Image.open(tmp_path / "b.png").mode == "RGB"
    write_photo(tmp_path / "c.png", Photo(read_pil(noise()), mode="L"))
    assert Image.open(tmp_path / "c.png").mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_kept(tmp_path: Path, mode: str, suffix: str):
    source = noise(mode)
    source.save(tmp_path / f"a{suffix}")
    photo = read_photo(tmp_path / f"a{suffix}")
    assert photo.alpha is not None and photo.alpha.shape == (1, 16, 24)
    write_photo(tmp_path / f"b{suffix}", photo)
    written = Image.open(tmp_path / f"b{suffix}")
    assert written.mode == mode
    np.testing.assert_array_equal(np.asarray(written), np.asarray(source))


def test_alpha_is_turned_with_the_photo(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise("RGBA").save(tmp_path / "a.png", exif=exif)
    alpha = read_photo(tmp_path / "a.png").alpha
    assert alpha is not None
    np.testing.assert_array_equal(as_uint8(alpha)[..., 0], np.rot90(np.asarray(noise("RGBA"))[..., 3], -1))


def test_palette_with_and_without_transparency(tmp_path: Path):
    palette = smooth().quantize(16)
    palette.save(tmp_path / "a.png")
    palette.save(tmp_path / "b.png", transparency=3)
    plain, holed = read_photo(tmp_path / "a.png"), read_photo(tmp_path / "b.png")
    np.testing.assert_array_equal(as_uint8(plain.pixels), np.asarray(palette.convert("RGB")))
    assert plain.alpha is None and holed.alpha is not None
    np.testing.assert_array_equal(holed.alpha[0].numpy() == 0, np.asarray(palette) == 3)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_a_format_cannot_hold_is_dropped_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
):
    photo = Photo(read_pil(smooth()), alpha=torch.zeros(1, 48, 64))
    write_photo(tmp_path / f"a{suffix}", photo)
    assert "transparency" in caplog.text
    assert (read_image(tmp_path / f"a{suffix}") - photo.pixels).abs().mean() < 0.01


def two_pictures(path: Path, kind: str) -> None:
    """A red picture and a blue one in one file."""
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    first.save(path, kind, save_all=True, append_images=[second])


@pytest.mark.parametrize(("suffix", "kind"), [(".tif", "TIFF"), (".mpo", "MPO"), (".jpg", "MPO")])
def test_of_several_pictures_the_first_is_used_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, kind: str
):
    two_pictures(tmp_path / f"a{suffix}", kind)
    photo = read_photo(tmp_path / f"a{suffix}")
    assert photo.pixels[:, 8, 8].tolist() == pytest.approx([250 / 255, 0, 0], abs=0.02)
    assert photo.notes == ("of its 2 pictures only the first is used",)
    assert caplog.messages == [f"a{suffix}: of its 2 pictures only the first is used"]


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".png", "PNG"), (".webp", "WEBP"), (".gif", "GIF"), (".png", "GIF"), (".avif", "AVIF")]
)
def test_an_animation_is_left_out_by_name(tmp_path: Path, suffix: str, kind: str):
    two_pictures(tmp_path / f"a{suffix}", kind)
    with pytest.raises(LeftOutError, match=f"^a{suffix}: is an animation of 2 frames") as error:
        read_photo(tmp_path / f"a{suffix}")
    assert not error.value.reason.startswith("a.") and one_line(error)


def test_png_text_and_resolution_are_kept(tmp_path: Path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "steps: 20")
    info.add_itxt("title", "人物")
    noise().save(tmp_path / "a.png", pnginfo=info, dpi=(300, 300))
    write_photo(tmp_path / "b.png", read_photo(tmp_path / "a.png"))
    written = Image.open(tmp_path / "b.png")
    assert isinstance(written, PngImagePlugin.PngImageFile)
    assert written.text == {"parameters": "steps: 20", "title": "人物"}
    assert written.info["dpi"][0] == pytest.approx(300, abs=0.1)


def test_one_pixel(tmp_path: Path):
    for suffix in sorted(images.IMAGE_SUFFIXES - {".avif", ".heic", ".heif"}):
        write_image(tmp_path / f"a{suffix}", torch.full((3, 1, 1), 0.5))
        assert read_image(tmp_path / f"a{suffix}").shape == (3, 1, 1)


def test_very_long_photo_is_read_without_pillows_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("L", (12_000, 40), 99).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_image(tmp_path / "a.png").shape == (3, 40, 12_000)
    with pytest.raises(ValueError, match=r"a.png: has 12000 x 40 pixels, more than the 400,000 allowed"):
        read_photo(tmp_path / "a.png", max_pixels=400_000)


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("pillow_fills_in", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif", ".jp2", ".avif", ".heic"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_cut_files_are_refused_whatever_the_host_told_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, kept: float, pillow_fills_in: bool
):
    needs(suffix)
    write_image(tmp_path / f"a{suffix}", read_pil(noise(size=(200, 160))))
    content = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(content[: int(len(content) * kept)])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", pillow_fills_in)
    with pytest.raises(ValueError) as error:
        read_photo(tmp_path / f"a{suffix}")
    assert one_line(error).startswith(f"a{suffix}: ")


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text\n", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0"]
)
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_photo(tmp_path / "a.jpg")
    assert one_line(error).startswith("a.jpg: ")


def test_bytes_flipped_anywhere_give_a_picture_or_one_line(tmp_path: Path):
    rng = np.random.default_rng(0)
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "AVIF"):
        whole = BytesIO()
        smooth().save(whole, image_format)
        for _ in range(40):
            content = bytearray(whole.getvalue())
            for place in rng.integers(0, len(content), 6):
                content[place] = rng.integers(0, 256)
            (tmp_path / "a.jpg").write_bytes(content)
            try:
                assert read_photo(tmp_path / "a.jpg", max_pixels=1_000_000).pixels.shape[0] == 3
            except ValueError as error:
                assert str(error).isprintable() and str(error).startswith("a.jpg: ")


@posix
def test_hostile_names_stay_on_one_line(tmp_path: Path):
    for name in ("<script>alert(1)<\n>.jpg", "line\nbreak\r\x1b[31m.jpg", "\u202egpj.jpg", "ø 人.jpg"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError) as error:
            read_photo(tmp_path / name)
        assert one_line(error).startswith(printable(name) + ": ")
    assert printable("a\nb\udcff") == "a\\nb\\udcff" and printable("ø 人") == "ø 人"


@posix
def test_missing_folder_pipe_and_loop(tmp_path: Path):
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (("x", "folder"), ("loop", "cannot be read"), ("pipe", "ordinary"), ("none", "cannot be read")):
        with pytest.raises(ValueError, match=f"^{name}.jpg: .*{reason}") as error:
            read_photo(tmp_path / f"{name}.jpg")
        one_line(error)


def test_unreadable_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise().save(tmp_path / "a.png")

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(images, "_WholeFile", refuse)  # the tests may run as root, whom no permission stops
    with pytest.raises(ValueError, match=r"^a.png: cannot be read \(Permission denied\)$"):
        read_photo(tmp_path / "a.png")


# ---------------------------------------------------------------- listing and naming


@posix
def test_list_images(tmp_path: Path):
    for name in ("b/2.PNG", "b/1.jpg", "a.webp", ".hidden.jpg", ".git/x.jpg", "notes.txt", "b/c/x.jpg/inner.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "b/up").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.webp", "b/1.jpg", "b/2.PNG", "b/c/x.jpg/inner.tif", "loop.jpg"]


@posix
def test_every_other_file_has_a_reason(tmp_path: Path):
    for name in (".DS_Store", "b/anim.gif", "b/a.CR2", "b/film.mp4", "b/notes.txt", "b/draw.psd", "b/x.jxl", "a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b/up").symlink_to(tmp_path)
    found, left_out = look_through(tmp_path)
    assert found == [tmp_path / "a.jpg"]
    assert {path.as_posix(): reason.split()[-1] for path, reason in left_out.items()} == {
        ".DS_Store": "dot", ".git": "dot", "b/a.CR2": "first", "b/anim.gif": "PNG", "b/draw.psd": "TIFF",
        "b/film.mp4": "pictures", "b/notes.txt": "picture", "b/up": "followed", "b/x.jxl": "PNG",
    }  # fmt: skip
    assert all(reason.isprintable() for reason in left_out.values())


def test_list_images_errors(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such folder") as missing:
        list_images(tmp_path / "no\nne")
    one_line(missing)
    with pytest.raises(ValueError, match="holds no images"):
        list_images(tmp_path)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match="is a file"):
        list_images(tmp_path / "a.jpg")


def test_photo_name_is_readable_and_safe():
    assert photo_name(Path("trip 2019/IMG_001 (2).jpg")) == "trip 2019__IMG_001 (2)"
    assert photo_name(Path("_DSC1.jpg")) == "_DSC1" and photo_name(Path("søn/人.png")) == "søn__人"
    assert photo_name(Path("a<b>|c%.jpg")) == "a%3Cb%3E%7Cc%25"
    assert photo_name(Path("nul.jpg")) == "%6Eul" and photo_name(Path("..a.jpg")).startswith("%2E")
    assert "\n" not in photo_name(Path("a\nb.jpg")) and photo_name(Path("a\udcff.jpg")).isascii()
    long = photo_name(Path("人" * 80 + "/b.jpg"))
    assert len(long.encode()) <= 200 and long != photo_name(Path("人" * 80 + "/c.jpg"))


def test_photo_names_never_collide():
    texts = [
        "a.jpg",
        "a.png",
        "A.JPG",
        "a_jpg.png",
        "a/b.jpg",
        "a__b.jpg",
        "a_/b.jpg",
        "a/_b.jpg",
        "a%5F.jpg",
        "a_.jpg",
        "b/a.jpg",
        "c.d.jpg",
        "c.jpg",
    ]
    texts += ["a_/_b.jpg", "a____b.jpg", "a/b/c.jpg", "a/b_/c.jpg", "e\u0301.jpg", "é.jpg", "É.jpg", "x~1.jpg", "x.jpg"]
    paths = [Path(text) for text in texts]
    names = photo_names(paths)
    assert len({images._disk_key(name) for name in names}) == len(paths)
    by_path = dict(zip(texts, names, strict=True))
    assert by_path["c.jpg"] == "c" and by_path["a/b.jpg"] == "a__b" and by_path["a_jpg.png"] == "a_jpg"
    assert by_path["a.png"] == "a_png"
    assert photo_names([Path("a.jpg"), Path("b.jpg")]) == ["a", "b"]
    assert photo_names([Path("a.jpg"), Path("a.png")]) == ["a_jpg", "a_png"]
    assert photo_names([]) == []


def test_own_names_are_those_given_wherever_they_are_safe():
    fine = [
        "scan__01.jpg",
        "Mum, 1962.jpg",
        "a.jpg",
        "a.jpeg",
        "A_2.JPG",
        "søn %5F (1).png",
        "What? 12:30.png",
        "é.jpg",
    ]
    assert own_names([*fine, "CON.jpg"], windows=False) == [*fine, "CON.jpg"]
    assert own_names(["CON.jpg", "nul.tar.png", "What? 12:30.png"], windows=True) == [
        "_CON.jpg", "_nul.tar.png", "What_ 12_30.png",
    ]  # fmt: skip
    for name in ("..\\..\\evil.png", "/etc/evil.png", "C:evil.png", ".bfr-0123456789ab.part.png", "a\nb\0.png"):
        [own] = own_names([name])
        assert not set(own) & set("/\\:\n\0") and not own.startswith(".") and own.endswith(".png")


def test_only_names_that_are_taken_get_a_number():
    assert own_names(["a.jpg", "A.JPG", "b.jpg", "a.jpg"]) == ["a.jpg", "A_2.JPG", "b.jpg", "a_3.jpg"]
    assert own_names(["a.jpg", "a.jpg", "a_2.jpg"]) == ["a.jpg", "a_3.jpg", "a_2.jpg"]
    assert own_names(["e\u0301.jpg", "é.jpg"])[1] == "é_2.jpg" and own_names([]) == []
    long = own_names(["人" * 83 + ".jpg"] * 2)
    assert all(len(name.encode()) <= 255 and name.endswith(".jpg") for name in long) and long[0] != long[1]


def test_png_names_are_the_photos_own_wherever_that_is_no_others():
    texts = ["a.jpg", "below/a.webp", "c.d.jpg", "b.jpg", "B.png", "b.webp.png", "b.webp"]
    names = png_names([Path(text) for text in texts])
    said = [names[Path(text)].as_posix() for text in texts]
    assert said[:5] == ["a.png", "below/a.png", "c.d.png", "b.jpg.png", "B.png.png"]
    assert said[5] == "b.webp.png" and said[6].startswith("b.webp~") and said[6].endswith(".png")
    assert len({name.casefold() for name in said}) == len(texts)


def test_photo_name_takes_no_two_paths_to_one_name():
    rng = np.random.default_rng(1)
    paths = {"".join(rng.choice(list("ab_%/"), 6)) for _ in range(4000)}
    clean = {Path(path.strip("/") + ".jpg") for path in paths if path.strip("/") and "//" not in path}
    assert len({photo_name(path) for path in clean}) == len(clean)


# ---------------------------------------------------------------- writing


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_full_disk_leaves_the_older_result_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_image(tmp_path / "a.png", torch.zeros(3, 4, 4))
    before = (tmp_path / "a.png").read_bytes()

    def full(path: Path, content: BytesIO) -> None:
        path.write_bytes(content.getvalue()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images, "_write_bytes", full)
    with pytest.raises(OSError) as error:
        write_image(tmp_path / "a.png", torch.ones(3, 4, 4))
    assert "No space left on device" in one_line(error) and str(tmp_path) in one_line(error)
    assert isinstance(error.value, OSError) and error.value.errno == errno.ENOSPC
    assert (tmp_path / "a.png").read_bytes() == before and leftovers(tmp_path) == ["a.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_that_fills_up_for_real(tmp_path: Path):
    def write(temporary: Path) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            shutil.copyfileobj(BytesIO(bytes(4096)), file)

    with pytest.raises(OSError, match="cannot write a.png in .*No space left"):
        replace_atomically(tmp_path / "a.png", write)
    assert leftovers(tmp_path) == []


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, content: BytesIO) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(images, "_write_bytes", refuse)
    with pytest.raises(OSError, match="cannot write a.png in .*: Permission denied"):
        write_image(tmp_path / "a.png", torch.ones(3, 4, 4))


def test_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(OSError, match="cannot write a.png in .*out"):
        write_image(tmp_path / "out" / "a.png", torch.ones(3, 4, 4))


def test_anything_else_that_fails_passes_through_and_leaves_nothing(tmp_path: Path):
    def cancel(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_atomically(tmp_path / "a.bin", cancel)
    assert leftovers(tmp_path) == []


def test_file_held_open_by_another_program_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace, calls = os.replace, []

    def held(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) < 3:
            raise PermissionError(errno.EACCES, "in use")
        replace(source, target)

    monkeypatch.setattr(images.os, "replace", held)
    replace_atomically(tmp_path / "new" / "a.bin", lambda temporary: temporary.write_bytes(b"x"))
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"x" and leftovers(tmp_path / "new") == ["a.bin"]


def test_the_content_is_on_the_disk_before_the_file_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else a machine that loses its power could leave an empty file in place of an older one."""
    replace = os.replace
    order: list[str | int] = []

    def named(source: Path, target: Path) -> None:
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(images.os, "replace", named)
    monkeypatch.setattr(images.os, "fsync", lambda file: order.append(os.fstat(file).st_size))
    replace_atomically(tmp_path / "a.bin", lambda temporary: temporary.write_bytes(b"12345"))
    assert order.index(5) < order.index("a.bin")


def test_pictures_a_format_cannot_hold(tmp_path: Path):
    with pytest.raises(ValueError, match="a.jpg: cannot be written as JPEG") as error:
        write_image(tmp_path / "a.jpg", torch.zeros(3, 1, 70_000))
    one_line(error)
    with pytest.raises(ValueError, match="finite"):
        write_image(tmp_path / "a.png", torch.full((3, 2, 2), torch.nan))
    with pytest.raises(ValueError, match=r"\(1, 2, 2\)"):
        write_image(tmp_path / "a.png", torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="a.gif: unknown image format"):
        write_image(tmp_path / "a.gif", torch.zeros(3, 2, 2))
    assert leftovers(tmp_path) == []


def test_values_outside_the_range_are_clamped_and_gradients_do_not_matter(tmp_path: Path):
    write_image(tmp_path / "a.png", torch.tensor([-1.0, 0.5, 2.0]).reshape(3, 1, 1).requires_grad_())
    np.testing.assert_array_equal(as_uint8(read_image(tmp_path / "a.png"))[0, 0], (0, 128, 255))


def test_exif_too_large_for_jpeg_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_photo(tmp_path / "a.jpg", Photo(read_pil(smooth()), exif=b"Exif\0\0" + bytes(70_000)))
    assert "larger than a JPEG" in caplog.text


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_a_tiff_that_counts_from_white_is_no_negative(tmp_path: Path, kind: str):
    light = np.array([[0.0, 0.25], [0.5, 1.0]])
    values = ((1 - light) * (65535 if kind == "uint16" else 1)).astype(kind)
    pytest.importorskip("tifffile").imwrite(tmp_path / "scan.tif", values, photometric="miniswhite")
    photo = read_photo(tmp_path / "scan.tif")
    torch.testing.assert_close(photo.pixels[0], torch.from_numpy(light).float(), atol=1e-4, rtol=0)
    write_photo(tmp_path / "out.tif", photo)
    torch.testing.assert_close(read_image(tmp_path / "out.tif")[0], photo.pixels[0], atol=1e-4, rtol=0)


def test_32_bits_without_a_sign_reach_white(tmp_path: Path):
    values = (np.array([[0.0, 0.25], [0.5, 1.0]]) * (2**32 - 1)).astype(np.uint32)
    pytest.importorskip("tifffile").imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    torch.testing.assert_close(read_image(tmp_path / "a.tif")[0], torch.tensor([[0.0, 0.25], [0.5, 1.0]]))


def test_an_absurd_resolution_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match="a.png: cannot be written as PNG with 8 x 8 pixels"):
        write_photo(tmp_path / "a.png", Photo(torch.rand(3, 8, 8), dpi=(2.0**33, 1.0)))


def test_a_file_of_a_known_kind_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    for name, says in (("a.mp4", "is a video"), ("a.cr2", "raw file"), ("a.tga", "save it as PNG")):
        (tmp_path / name).write_bytes(b"II*\0" + bytes(900))
        with pytest.raises(UnreadableError, match=f"^{name}: .*{says}"):
            read_photo(tmp_path / name)
    with pytest.raises(UnreadableError, match="No such file"):
        read_photo(tmp_path / "gone.mp4")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.ppm", "PNG")
    assert read_photo(tmp_path / "a.ppm").format == "PNG", "what it holds counts more"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_the_table_that_names_adobes_colours_stays_whole(tmp_path: Path, suffix: str, recwarn):
    """Cameras name Adobe RGB by it alone; its place in the old file is no place in the new one."""
    exif = exif_of({0x010F: "Maker", 0x8769: {0xA001: 65535, 0xA005: {1: "R03", 2: b"0100"}}})
    smooth().save(tmp_path / f"a{suffix}", exif=exif if suffix == ".tif" else exif.tobytes())
    assert Image.open(tmp_path / f"a{suffix}").getexif().get_ifd(0xA005)[1] == "R03", "the file before"
    write_photo(tmp_path / f"b{suffix}", read_photo(tmp_path / f"a{suffix}"))
    kept = Image.open(tmp_path / f"b{suffix}").getexif()
    assert kept.get_ifd(0x8769)[0xA001] == 65535 and kept.get_ifd(0xA005)[1] == "R03"
    assert not [warning for warning in recwarn if "EXIF" in str(warning.message)]


def test_the_table_that_names_adobes_colours_stays_in_a_deep_tiff(tmp_path: Path):
    exif = exif_of({0x010F: "Maker", 0x8769: {0xA001: 65535, 0xA005: {1: "R03", 2: b"0100"}}}).tobytes()
    photo = Photo(torch.rand(3, 8, 9), depth=16, format="TIFF", exif=exif)
    for name in ("a.tif", "b.tif"):
        write_photo(tmp_path / name, photo)
        photo = read_photo(tmp_path / name)
        assert photo.depth == 16 and tags_of(photo.exif or b"")[0x8769][0xA005][1] == "R03"


def test_a_tiff_without_a_resolution_comes_back_without_one(tmp_path: Path):
    smooth().save(tmp_path / "a.tif")
    assert 282 not in TiffImagePlugin.TiffImageFile(tmp_path / "a.tif").tag_v2
    write_photo(tmp_path / "b.tif", read_photo(tmp_path / "a.tif"))
    assert 282 not in TiffImagePlugin.TiffImageFile(tmp_path / "b.tif").tag_v2, "it would be one pixel an inch"


@posix
def test_the_size_of_what_is_no_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    writer = threading.Timer(20, lambda: (tmp_path / "pipe.jpg").write_bytes(b""))  # who waits goes on, too late
    writer.start()
    assert stated_pixels(tmp_path / "pipe.jpg") == 0 and writer.is_alive(), "it was waited for"
    writer.cancel()


def test_captions_and_comments_of_a_jpeg_stay_unless_its_place_is_to_be_left_out(tmp_path: Path):
    caption = b"\x1c\x02\x78\x00\x05Anna!"
    block = b"8BIM\x04\x04\0\0" + len(caption).to_bytes(4, "big") + caption
    segment = b"Photoshop 3.0\0" + block
    extra = b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment
    smooth().save(tmp_path / "a.jpg", comment=b"at the lake", extra=extra)
    photo = read_photo(tmp_path / "a.jpg")
    write_photo(tmp_path / "b.jpg", replace(photo, record=MARK))
    kept = Image.open(tmp_path / "b.jpg")
    assert kept.info["photoshop"][0x0404] == caption and kept.info["comment"] == b"at the lake"
    assert read_photo(tmp_path / "b.jpg").record == MARK
    write_photo(tmp_path / "c.jpg", without_place(photo))
    left = Image.open(tmp_path / "c.jpg")
    assert 0x0404 not in left.info.get("photoshop", {}) and not left.info.get("comment")
    notes = write_photo(tmp_path / "d.jpg", replace(photo, iptc=b"x" * 70_000))
    assert "IPTC" in notes[0]


def save_naming(path: Path, picture: Image.Image, primaries: int, curve: int) -> None:
    """Write `picture` without losses, its colours named by the numbers of ITU-T H.273."""
    if path.suffix == ".heic":
        from pillow_heif import from_pillow

        named = {"color_primaries": primaries, "transfer_characteristics": curve}
        from_pillow(picture).save(path, quality=-1, chroma=444, matrix_coefficients=6, full_range_flag=1, **named)
    elif path.suffix == ".png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add(b"cICP", bytes([primaries, curve, 0, 1]))
        picture.save(path, pnginfo=chunks)
    else:
        picture.save(path, quality=100, subsampling="4:4:4")
        content = bytearray(path.read_bytes())
        at = content.index(b"colrnclx") + 8
        content[at : at + 4] = bytes([0, primaries, 0, curve])
        path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".heic", ".avif", ".png"])
def test_colours_that_are_only_named_come_into_srgb(tmp_path: Path, suffix: str):
    """Display P3 without a profile would be taken for sRGB, and look dull."""
    needs(suffix)
    colours = torch.tensor([[0.8, 0.3, 0.2], [0.5, 0.5, 0.5], [0.2, 0.6, 0.3]])
    picture = Image.fromarray((colours[None].repeat_interleave(64, 0).repeat_interleave(64, 1) * 255).byte().numpy())
    save_naming(tmp_path / f"p3{suffix}", picture, 12, 13)
    seen = read_image(tmp_path / f"p3{suffix}")[:, 32, 32::64]
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    # To XYZ by the primaries of Display P3, and from there by the inverse of those of sRGB (IEC 61966-2-1).
    p3 = torch.tensor([[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0.0, 0.04511, 1.04394]])
    srgb = torch.tensor([[0.41239, 0.35758, 0.18048], [0.21264, 0.71517, 0.07219], [0.01933, 0.11919, 0.95053]])
    wanted = (torch.linalg.solve(srgb, p3) @ linear.T).clamp(0, 1)
    wanted = torch.where(wanted <= 0.0031308, 12.92 * wanted, 1.055 * wanted ** (1 / 2.4) - 0.055)
    assert torch.allclose(seen, wanted, atol=0.012), "two levels of 255 are lost in the file"
    assert float((seen[:, 0] - colours[0]).abs().max()) > 0.03, "it is not what the numbers say"
    save_naming(tmp_path / f"grey{suffix}", Image.new("L", (64, 64), 99), 12, 13)
    assert read_photo(tmp_path / f"grey{suffix}").grey
    save_naming(tmp_path / f"hdr{suffix}", picture, 12, 16)
    with pytest.raises(LeftOutError, match=rf"hdr\{suffix}: is brighter than a usual picture can be \(HDR\)"):
        read_photo(tmp_path / f"hdr{suffix}")


def test_a_camera_names_its_files_as_it_likes(tmp_path: Path):
    for name in ("DSC1.HIF", "scan.jpe"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_images(tmp_path)] == ["DSC1.HIF", "scan.jpe"]
