from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bfr_core.faces.align import Face, template
from bfr_core.files.ownership import LIST, Ledger
from bfr_core.files.photos import Photo, list_images, read_image, read_photo, write_image, write_photo
from bfr_core.files.provenance import Record
from bfr_core.files.shards import Shard
from bfr_core.metrics import sharpness, sharpness_of_clean
from bfr_core.pixels import gaussian_blur
from bfr_core.restoration import folder as module
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.record import NAME
from bfr_core.restoration.restore import RestoreConfig, choose_faces, restore_aligned, restore_crops, restore_photo
from bfr_core.restoration.same_person import Acted
from bfr_core.restorers.base import Restorer
from bfr_core.restorers.codeformer import CodeFormer

# A uniform change is a cast, and would be taken out again; what is no face at all is not finished as one.
PLAIN = RestoreConfig(match_colour=False, keep_detail=False, match_grain=False, even_tone=False)


class Brighter(nn.Module):
    """Adds 0.1; refuses faces whose mean is above 0.9."""

    def __init__(self, amount: float = 0.1) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(amount))

    def forward(self, lq: Tensor) -> Tensor:
        out = lq + self.amount
        return torch.where(lq.mean((1, 2, 3), keepdim=True) > 0.9, torch.full_like(out, torch.nan), out)


def fake_restorer(amount: float = 0.1, size: int = 64) -> Restorer:
    return Restorer(Brighter(amount).eval(), "fake", size, "fake")


@dataclass(eq=False)
class Faithful(Restorer):
    fidelity_weight: float = 0.7


def found(*faces: Face):
    """A detector that always finds `faces`."""
    return lambda photo: list(faces)


def face_at(x: float, y: float, width: float) -> Face:
    return Face(template(1) * width + [x + width / 2, y + width / 2])


def smooth(height: int, width: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.1
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 0.8)[0]


# ---------------------------------------------------------------- one photo


def test_faces_are_restored_and_the_rest_is_exactly_as_it_was() -> None:
    photo = smooth(200, 300)
    faces = [face_at(20, 20, 100), face_at(180, 60, 64)]
    result = restore_photo(photo, fake_restorer(), PLAIN, found(*faces))
    assert result.faces == faces and result.skipped == []
    outside = result.mask[0] == 0
    assert torch.equal(result.pixels[:, outside], photo[:, outside])
    change = (result.pixels - photo)[:, result.mask[0] > 0.99]
    assert change.mean() == pytest.approx(0.1, abs=0.01)


def test_a_restorer_that_does_nothing_changes_nothing() -> None:
    photo = torch.rand(3, 200, 300)
    result = restore_photo(
        photo, fake_restorer(0.0), RestoreConfig(), found(face_at(20, 20, 100), face_at(90, 30, 150))
    )
    assert (result.pixels - photo).abs().max() < 1e-5


def test_one_failing_face_does_not_stop_the_others() -> None:
    photo = smooth(200, 400)
    photo[:, :, 200:] = 1  # too bright for the fake
    good, bad, tiny = face_at(20, 20, 100), face_at(260, 40, 100), face_at(10, 150, 8)
    result = restore_photo(photo, fake_restorer(), PLAIN, found(good, bad, tiny))
    assert result.faces == [good]
    assert len(result.skipped) == 2
    assert "min_face" in result.skipped[0] and "NaN" in result.skipped[1]
    assert torch.equal(result.pixels[:, :, 200:], photo[:, :, 200:])


def test_a_face_outside_the_photo_is_said_and_nothing_is_claimed() -> None:
    photo = smooth(200, 300)
    result = restore_photo(photo, fake_restorer(), PLAIN, found(face_at(500, 600, 100)))
    assert result.faces == [] and result.step is None and torch.equal(result.pixels, photo)
    assert result.skipped == ["a face 100 pixels wide is left out: it lies outside the photo"]


def test_a_grey_photo_stays_grey() -> None:
    photo = smooth(200, 200)[:1].expand(3, -1, -1).contiguous()
    restorer = fake_restorer()
    tinted, generator = torch.tensor([0.3, 0.0, -0.1]).view(1, 3, 1, 1), torch.Generator().manual_seed(0)
    restorer.module.register_forward_hook(
        lambda module, args, out: out + tinted * torch.rand(out.shape, generator=generator)
    )
    result = restore_photo(photo, restorer, RestoreConfig(), found(face_at(30, 30, 100)))
    assert (result.pixels - photo).abs().max() > 0.02
    assert torch.equal(result.pixels[0], result.pixels[1]) and torch.equal(result.pixels[0], result.pixels[2])


def test_a_face_larger_than_the_restorer_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        restore_photo(smooth(200, 200), fake_restorer(size=64), PLAIN, found(face_at(20, 20, 64)))
        assert not caplog.records
        restore_photo(smooth(200, 200), fake_restorer(size=64), PLAIN, found(face_at(20, 20, 128)))
    assert "128 pixels wide, 2.0 times the 64 pixels" in caplog.text


def test_largest_takes_one_face_and_bad_settings_are_named() -> None:
    faces = [face_at(10, 10, 100), face_at(120, 10, 64)]
    result = restore_photo(smooth(200, 200), fake_restorer(), RestoreConfig(faces="largest"), found(*faces))
    assert result.faces == faces[:1]
    for wrong in ({"faces": "some"}, {"batch_size": 0}, {"blend": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RestoreConfig(**wrong)
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        restore_photo(torch.rand(1, 10, 10), fake_restorer(), PLAIN, found())


def test_a_real_portrait_through_the_embedded_detector(shared: Path) -> None:
    photo = read_image(sorted((shared / "portraits").glob("*.jpg"))[10])
    config = RestoreConfig(detector="embedded", match_colour=False, keep_detail=False)
    result = restore_photo(photo, fake_restorer(size=128), config)
    assert len(result.faces) == 1
    assert (result.pixels - photo).abs().max() > 0.05


# ---------------------------------------------------------------- a folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six photos, one of them broken and one without a face; the detector is a fake that goes by brightness."""
    folder = tmp_path / "photos"
    write_image(folder / "a.jpg", smooth(100, 120, 1))
    write_image(folder / "a.png", smooth(100, 120, 2))
    write_image(folder / "sub" / "a.jpg", smooth(100, 120, 3))
    write_photo(folder / "grey.png", Photo(smooth(100, 120, 4)[:1].expand(3, -1, -1), grey=True, mode="L"))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    write_image(folder / "nobody.webp", torch.zeros(3, 50, 60))

    def detector(photo: Tensor) -> list[Face]:
        return [face_at(20, 10, 70)] if photo.max() > 0 else []

    monkeypatch.setattr("bfr_core.restoration.folder.load_detector", lambda *args: detector)
    return folder


def test_every_photo_has_one_result_or_one_reason(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[tuple[int, int, bool]] = []
    result = restore_folder(
        photos, tmp_path / "out", fake_restorer(), PLAIN, callback=lambda s, n, p: steps.append((s, n, p is not None))
    )
    status = {file.path.as_posix(): file.status for file in result.files}
    assert status == {
        "a.jpg": "restored", "a.png": "restored", "sub/a.jpg": "restored", "grey.png": "restored",
        "broken.jpg": "failed", "nobody.webp": "no_face",
    }  # fmt: skip
    assert [s for s, _, _ in steps] == [1, 2, 3, 4, 5, 6] and sum(p for _, _, p in steps) == 4
    for name in ("a.jpg", "a.png", "sub/a.jpg", "grey.png"):
        before, after = read_photo(photos / name), read_photo(tmp_path / "out" / name)
        assert (before.format, before.grey) == (after.format, after.grey)
        assert (after.pixels - before.pixels)[:, 40:50, 50:60].mean() == pytest.approx(0.1, abs=0.02)
    assert (tmp_path / "out" / "nobody.webp").read_bytes() == (photos / "nobody.webp").read_bytes()
    assert not (tmp_path / "out" / "broken.jpg").exists()
    assert "broken.jpg" in caplog.text and "nobody.webp: no face found" in caplog.text
    assert result.count("restored") == 4


def test_results_say_how_they_were_made_and_copies_say_nothing(photos: Path, tmp_path: Path) -> None:
    restorer = fake_restorer()
    restorer.name, restorer.sha256, restorer.licence = str(tmp_path / "r.pth"), "ab" * 32, "MIT"
    restorer.metadata = {"base": "/srv/secret/b.pth", "base_licence": "CC0-1.0", "prior": "p", "steps": "9"}
    out = tmp_path / "out"
    restore_folder(photos, out, restorer, PLAIN)
    for name in ("a.jpg", "a.png", "sub/a.jpg", "grey.png"):
        (step,) = read_photo(out / name).record.steps
        assert (step.restorer, step.sha256, step.licence) == ("r.pth", "ab" * 32, "MIT")
        assert (step.base, step.base_licence, step.prior) == ("b.pth", "CC0-1.0", "p")
        assert (step.faces_found, step.faces_restored) == (1, 1) and step.software.startswith("BFR Adapt 0.")
        assert step.settings["threshold"] == 0.5 and step.settings["match_colour"] is False
        content = (out / name).read_bytes()
        assert str(tmp_path).encode() not in content and b"secret" not in content
    assert read_photo(out / "nobody.webp").record == Record()


def test_restoring_again_keeps_the_history(photos: Path, tmp_path: Path) -> None:
    restore_folder(photos, tmp_path / "once", fake_restorer(), PLAIN)
    again = replace(fake_restorer(), name="other.pth")
    restore_folder(tmp_path / "once", tmp_path / "twice", again, PLAIN)
    for name in ("a.jpg", "a.png"):
        assert [s.restorer for s in read_photo(tmp_path / "twice" / name).record.steps] == ["fake", "other.pth"]


@pytest.mark.parametrize("aligned", [True, False])
def test_where_nothing_is_generated_nothing_is_claimed(tmp_path: Path, aligned: bool, monkeypatch) -> None:
    monkeypatch.setattr("bfr_core.restoration.folder.load_detector", lambda *args: found(face_at(10, 10, 60)))
    write_image(tmp_path / "in" / "a.png", smooth(100, 100))
    write_image(tmp_path / "bright" / "a.png", torch.full((3, 100, 100), 0.95))  # the fake fails at it
    for folder, config, claims in (("in", PLAIN, 1), ("in", replace(PLAIN, blend=0.0), 0), ("bright", PLAIN, 0)):
        result = restore_folder(tmp_path / folder, tmp_path / "out", fake_restorer(), config, aligned=aligned)
        if result.count("failed") and aligned:
            continue  # no file
        record = read_photo(tmp_path / "out" / "a.png").record
        assert len(record.steps) == claims
        assert not claims or record.steps[0].settings.get("aligned", False) is aligned


def test_a_photo_in_memory_comes_with_its_step() -> None:
    faces = [face_at(20, 20, 100), face_at(180, 60, 8)]
    step = restore_photo(smooth(200, 300), fake_restorer(), PLAIN, found(*faces)).step
    assert (step.faces_found, step.faces_restored) == (2, 1) and step.settings["detector"] == "own"
    assert restore_photo(smooth(200, 300), fake_restorer(), PLAIN, found()).step is None
    codeformer = Faithful(Brighter().eval(), "fake", 64, "fake")
    settings = restore_photo(smooth(200, 300), codeformer, PLAIN, found(*faces)).step.settings
    assert settings["fidelity_weight"] == 0.7 and settings["size"] == 64


@pytest.mark.parametrize("strip", [True, False])
def test_the_place_is_kept_or_left_out_as_asked_also_without_faces(photos: Path, tmp_path: Path, strip: bool) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x8825] = "Maker", {1: "N"}
    for name in ("a.jpg", "nobody.webp"):
        write_photo(photos / name, replace(read_photo(photos / name), exif=exif.tobytes()))
    restore_folder(photos, tmp_path / "out", fake_restorer(), PLAIN, strip_gps=strip)
    for name in ("a.jpg", "nobody.webp"):
        with Image.open(tmp_path / "out" / name) as written:
            assert written.getexif()[0x010F] == "Maker" and (0x8825 in written.getexif()) is not strip
    assert not read_photo(tmp_path / "out" / "nobody.webp").record.steps


def test_a_second_run_overwrites_unless_told_otherwise(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restore_folder(photos, out, fake_restorer(0.1), PLAIN)
    again = restore_folder(photos, out, fake_restorer(0.0), PLAIN, skip_existing=True)
    assert again.count("skipped") == 5 and again.count("failed") == 1
    assert read_image(out / "a.png")[:, 45, 55].mean() > read_image(photos / "a.png")[:, 45, 55].mean() + 0.05
    restore_folder(photos, out, fake_restorer(0.0), PLAIN)
    assert torch.equal(read_image(out / "a.png"), read_image(photos / "a.png"))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the name of every photo that is written from here on."""
    written: list[str] = []
    real = module._write

    def write(job, *how):
        written.append(job.name)
        return real(job, *how)

    monkeypatch.setattr(module, "_write", write)
    return written


def from_file(amount: float = 0.1, sha256: str = "ab" * 32) -> Restorer:
    return replace(fake_restorer(amount), sha256=sha256)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("aligned", [False, True])
def test_stopped_it_goes_on_and_ends_as_if_it_had_not_been(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aligned: bool
) -> None:
    if aligned:
        for path in [*photos.glob("*.*"), *photos.glob("sub/*.*")]:
            if path.name != "broken.jpg":
                write_image(path, smooth(64, 64, len(path.name)))
    how: dict = {"config": replace(PLAIN, batch_size=1), "aligned": aligned}
    restore_folder(photos, tmp_path / "whole", from_file(), **how)

    class Cancelled(Exception):
        pass

    def stop(step: int, total: int, preview: Tensor | None) -> None:
        if step == 2:
            raise Cancelled

    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        restore_folder(photos, out, from_file(), callback=stop, **how)
    before, written, steps = contents(out), counted(monkeypatch), []
    assert 2 <= len(before) <= 5
    result = restore_folder(photos, out, from_file(), callback=lambda s, n, p: steps.append((s, n)), **how)
    assert steps == [(i, 6) for i in range(1, 7)]
    assert not set(written) & set(before) and result.count("kept") == len(before)
    after = contents(out)
    assert before.items() <= after.items(), "results that were made keep even their time"
    assert {n: c for n, (c, _) in after.items()} == {n: c for n, (c, _) in contents(tmp_path / "whole").items()}
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == {NAME, LIST}
    assert {path.name for path in out.rglob(".*")} == {NAME, LIST}

    written.clear()
    result = restore_folder(photos, out, from_file(), **how)
    assert written == ["broken.jpg"] and result.count("kept") == len(after), "what failed is tried again"
    assert all(file.reason for file in result.files if not file.faces), "and each is still accounted for"


def test_results_of_another_photo_restorer_or_setting_are_made_anew(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (photos / "broken.jpg").unlink()
    restore_folder(photos, out, from_file(), PLAIN)
    written, every = counted(monkeypatch), {"a.jpg", "a.png", "sub/a.jpg", "grey.png", "nobody.webp"}

    def made(*how, **more) -> set[str]:
        written.clear()
        restore_folder(photos, out, *how, **more)
        return set(written)

    assert made(from_file(), PLAIN) == set()
    assert made(from_file(), replace(PLAIN, batch_size=3)) == set(), "changes nothing in a result"
    os.utime(photos / "a.png", ns=(1, 1))
    assert made(from_file(), PLAIN) == set(), "nor does a photo's time"
    status = (photos / "a.png").stat()
    write_photo(photos / "grey.png", Photo(smooth(100, 120, 9)[:1].expand(3, -1, -1), grey=True, mode="L"))
    assert made(from_file(), PLAIN) == {"grey.png"}
    (photos / "a.png").write_bytes((photos / "a.png").read_bytes() + b"more")
    os.utime(photos / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert made(from_file(), PLAIN) == {"a.png"}, "other bytes, whatever the time says"
    (out / "a.jpg").unlink()
    assert made(from_file(), PLAIN) == {"a.jpg"}
    assert made(from_file(), replace(PLAIN, blend=0.5)) == every
    assert made(from_file(0.0, "cd" * 32), replace(PLAIN, blend=0.5)) == every
    assert made(from_file(0.0, "cd" * 32), replace(PLAIN, blend=0.5), strip_gps=True) == every
    assert made(from_file(0.0, "cd" * 32), replace(PLAIN, blend=0.5), strip_gps=True, again=True) == every
    assert made(fake_restorer(), PLAIN) == every == made(fake_restorer(), PLAIN), "a network that is of no file"


def test_a_result_that_was_retouched_is_left_alone_and_named(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    restore_folder(photos, out, from_file(), PLAIN)
    write_image(tmp_path / "retouched.png", smooth(100, 120, 77))
    shutil.copyfile(tmp_path / "retouched.png", out / "a.png")
    retouched = (out / "a.png").read_bytes()
    for restorer, again, expected in (
        (from_file(), False, "skipped"), (from_file(0.0, "cd" * 32), False, "restored"), (from_file(), True, "skipped"),
    ):  # fmt: skip
        result = restore_folder(photos, out, restorer, PLAIN, again=again)
        (file,) = (file for file in result.files if file.path.name == "a.png")
        assert file.status == expected and ("changed since it was made" in file.reason) is (expected == "skipped")
        assert file.place == (out / "a_2.png" if expected == "restored" else None)
        assert (out / "a.png").read_bytes() == retouched
    assert "a.png: its result was changed" in caplog.text


def test_a_face_that_failed_is_tried_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(photos / "bright.png", torch.full((3, 100, 120), 0.95))  # the fake fails at it
    for _ in range(2):
        written = counted(monkeypatch)
        result = restore_folder(photos, tmp_path / "out", from_file(), PLAIN)
        assert "bright.png" in written and result.count("failed") == 2


@pytest.mark.parametrize("work", ["read_photo", "paste_faces"])
def test_a_photo_that_is_too_large_for_the_memory_does_not_end_the_batch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    real, calls = getattr(module, work), []

    def small(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise MemoryError
        return real(*given)

    monkeypatch.setattr(module, work, small)
    result = restore_folder(photos, tmp_path / "out", from_file(), PLAIN)
    assert len(calls) > 1 and result.count("failed") == 2  # one is broken
    assert len(result.files) == len(list(photos.rglob("*.*")))


def test_a_face_that_cannot_be_judged_does_not_end_the_batch(photos: Path, tmp_path: Path, monkeypatch) -> None:
    calls = []

    def judge(crops: list[Tensor], restored: list[Any], widths: list[float]) -> Acted:
        calls.append(widths)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return Acted(list(range(len(crops))), restored, (), [], [])

    monkeypatch.setattr(module.FolderRestorer, "look", property(lambda self: judge))
    result = restore_folder(photos, tmp_path / "out", from_file(), PLAIN)
    (problem,) = [file.reason for file in result.files if "judged" in file.reason]
    assert "could not be judged" in problem and len(calls) > 1
    assert result.count("failed") == 2 and result.count("restored") == len(calls) - 1  # one is broken


def test_of_large_photos_few_are_held_at_once(tmp_path: Path, monkeypatch) -> None:
    """Eight scans of 100 megapixels, read ahead and waiting to be written, would need more memory than there is."""
    monkeypatch.setattr(module, "HELD_PIXELS", 64 * 64)
    alive: weakref.WeakSet[Photo] = weakref.WeakSet()
    most = 0

    def counting(path: Path) -> Photo:
        nonlocal most
        photo = read_photo(path)
        alive.add(photo)
        most = max(most, len(alive))
        return photo

    monkeypatch.setattr(module, "read_photo", counting)
    for i in range(12):
        write_image(tmp_path / "in" / f"{i:02}.png", smooth(64, 64))
    monkeypatch.setattr("bfr_core.restoration.folder.load_detector", lambda *args: found(face_at(5, 5, 40)))
    result = restore_folder(tmp_path / "in", tmp_path / "out", fake_restorer(), PLAIN)
    assert result.count("restored") == 12 and most <= 4, "one read, one at work, one written, one that is let go"


def test_a_damaged_record_only_costs_time(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    restore_folder(photos, out, from_file(), PLAIN)
    lines = (out / NAME).read_text().splitlines()
    strange = ['{"name": "a.png"', "[]", "3", '{"name": 3}', '{"name": "x", "served": 1}', '{"name":"y","faces":"z"}']
    kept = next(line for line in lines if '"a.jpg"' in line)
    (out / NAME).write_text("\n".join([*strange, kept, kept[: len(kept) // 2]]))
    written = counted(monkeypatch)
    result = restore_folder(photos, out, from_file(), PLAIN)
    assert result.count("kept") == 1 and "a.jpg" not in written and len(written) == 5
    again = (out / NAME).read_text().splitlines()
    assert sorted(json.loads(line)["name"] for line in again) == sorted(json.loads(line)["name"] for line in lines)


def bytes_in(folder: Path) -> dict[str, bytes]:
    """What every picture below a folder holds, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".bfr"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("aligned", [False, True])
def test_shards_together_make_what_one_process_makes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aligned: bool
) -> None:
    for i in range(9):
        write_image(photos / f"square {i}.png", smooth(64, 64, i))
    config = replace(PLAIN, batch_size=2)
    sizes: list[int] = []
    real = module.restore_crops

    def noted(crops: list[Tensor], *how: Any) -> list[Tensor | str]:
        sizes.append(len(crops))
        return real(crops, *how)

    monkeypatch.setattr(module, "restore_crops", noted)
    whole = restore_folder(photos, tmp_path / "whole", from_file(), config, aligned=aligned)
    in_one, parts = sorted(sizes), []
    sizes.clear()
    for number in (3, 1, 2):
        (out := tmp_path / "out").mkdir(exist_ok=True)
        parts.append(restore_folder(photos, out, from_file(), config, aligned=aligned, shard=Shard(number, 3)))
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "whole") and len(bytes_in(out)) >= 9
    assert sorted(sizes) == in_one, "they are cut at whole batches"
    told = [(file.path, file.status, file.reason) for part in parts for file in part.files]
    assert sorted(told) == sorted((file.path, file.status, file.reason) for file in whole.files)

    written = counted(monkeypatch)
    again = restore_folder(photos, out, from_file(), config, aligned=aligned)
    assert set(written) <= {file.path.as_posix() for file in again.files if file.status == "failed"}
    assert again.count("kept") == sum(part.count("restored") + part.count("no_face") for part in parts)


def test_a_shard_that_is_restored_already_is_refused_and_the_next_one_is_not(photos: Path, tmp_path: Path) -> None:
    def in_another(step: int, total: int, preview: Tensor | None) -> None:
        with pytest.raises(ValueError, match="shard 1/2 is in use"):
            restore_folder(photos, tmp_path / "out", from_file(), PLAIN, shard=Shard(1, 2))
        restore_folder(photos, tmp_path / "out", from_file(), PLAIN, shard=Shard(2, 2))

    restore_folder(photos, tmp_path / "out", from_file(), PLAIN, callback=in_another, shard=Shard(1, 2))
    assert len(bytes_in(tmp_path / "out")) == 5


def test_a_photo_gets_a_number_in_its_shard_as_it_would_in_the_whole(photos: Path, tmp_path: Path) -> None:
    write_image(photos / "a_2.png", smooth(100, 120, 5))
    for out in (tmp_path / "whole", tmp_path / "out"):
        out.mkdir()
        for name in ("a.png", "a_2.png"):
            (out / name).write_bytes(b"somebody else's")
    restore_folder(photos, tmp_path / "whole", from_file(), PLAIN)
    for number in (2, 3, 1):
        restore_folder(photos, tmp_path / "out", from_file(), PLAIN, shard=Shard(number, 3))
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "whole")
    assert {"a_3.png", "a_2_2.png"} <= bytes_in(tmp_path / "out").keys()


def test_the_photos_themselves_are_never_written(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose another folder"):
        restore_folder(photos, photos / "sub" / "..", fake_restorer(), PLAIN)
    write_image(photos / "photos" / "a.png", smooth(30, 30))
    with pytest.raises(ValueError, match="is one of the photos"):
        restore_folder(photos, tmp_path / "photos" / "..", fake_restorer(), PLAIN)
    assert not (tmp_path / "a.jpg").exists()


def test_results_inside_the_folder_are_not_read_again(photos: Path) -> None:
    for _ in range(2):
        result = restore_folder(photos, photos / "restored", fake_restorer(), PLAIN)
        assert len(result.files) == 6
    assert not (photos / "restored" / "restored").exists()


def test_a_photo_in_the_folder_of_the_results_is_said_to_be_left_out(tmp_path: Path, photos: Path) -> None:
    for _ in range(2):
        files = restore_folder(photos, photos / "sub", from_file(), PLAIN).files
        assert len(files) == 6, "results of the time before are not named"
        told = {file.path.as_posix(): file.reason for file in files if file.status == "left_out"}
        assert told == {"sub/a.jpg": "lies in the folder of the results"}


def test_cancelling_stops_and_leaves_whole_files(photos: Path, tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def stop(step: int, total: int, preview: Tensor | None) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        restore_folder(photos, tmp_path / "out", fake_restorer(), PLAIN, callback=stop)
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or ".part" not in path.name


def test_aligned_faces_of_other_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    for name, shape in {
        "small.png": (32, 32),
        "same.png": (64, 64),
        "large.png": (96, 96),
        "wide.png": (64, 80),
    }.items():
        write_image(folder / name, smooth(*shape))
    result = restore_folder(folder, tmp_path / "out", fake_restorer(), aligned=True)
    assert {f.path.name: f.status for f in result.files}["wide.png"] == "failed"
    assert "square" in next(f.reason for f in result.files if f.status == "failed")
    sizes = {name: read_image(tmp_path / "out" / name).shape[-1] for name in ("small.png", "same.png", "large.png")}
    assert sizes == {"small.png": 64, "same.png": 64, "large.png": 96}
    change = read_image(tmp_path / "out" / "same.png") - read_image(folder / "same.png")
    assert change.mean() == pytest.approx(0.1, abs=0.01)


def test_photos_are_read_and_written_while_the_network_works(tmp_path: Path, monkeypatch) -> None:
    """Its first call ends when a photo of the second has been read, its second when one of the first is written."""
    read, written = threading.Event(), threading.Event()

    def telling(original, name, event):
        def act(job, *arguments):
            result = original(job, *arguments)
            if job.relative.name == name:
                event.set()
            return result

        return act

    awaited = iter([read, written])

    class Waiting(Brighter):
        def forward(self, lq: Tensor) -> Tensor:
            event = next(awaited, None)
            assert event is None or event.wait(600), "the network works while nothing else does"
            return lq

    monkeypatch.setattr(module, "_read", telling(module._read, "2.png", read))
    monkeypatch.setattr(module, "_write", telling(module._write, "0.png", written))
    for i in range(6):
        write_image(tmp_path / "in" / f"{i}.png", smooth(64, 64))
    restorer = Restorer(Waiting().eval(), "fake", 64, "fake")
    result = restore_folder(tmp_path / "in", tmp_path / "out", restorer, RestoreConfig(batch_size=2), aligned=True)
    assert result.count("restored") == 6


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16"])
def test_the_precision_is_chosen_by_the_hardware_or_by_the_user(tmp_path, monkeypatch, native, asked):
    """And it is the same for one photo, for an aligned one, and for a folder of any number of them."""
    monkeypatch.setattr("bfr_core.device.has_bfloat16", lambda device: native)
    seen = []

    class Telling(Brighter):
        def forward(self, lq: Tensor) -> Tensor:
            seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return lq

    restorer, config = Restorer(Telling().eval(), "fake", 64, "fake"), RestoreConfig(precision=asked)
    for i in range(9):
        write_image(tmp_path / "in" / f"{i}.png", smooth(64, 64))
    restore_folder(tmp_path / "in", tmp_path / "out", restorer, config, aligned=True)
    aligned = restore_aligned(smooth(64, 64), restorer, config)
    whole = restore_photo(smooth(200, 200), restorer, config, found(face_at(50, 50, 60)))
    expected = "bfloat16" if asked == "bfloat16" or (asked == "auto" and native) else "float32"
    assert set(seen) == {getattr(torch, expected)}
    record = read_photo(tmp_path / "out" / "0.png").record
    for step in (aligned.step, whole.step, record.steps[-1]):
        assert step.settings["precision"] == expected, "the record says what was computed in, never auto"


def test_codes_are_chosen_in_float32_unless_asked(monkeypatch):
    monkeypatch.setattr("bfr_core.device.has_bfloat16", lambda device: True)
    restorer = CodeFormer(Brighter().eval(), "CodeFormer", 64, "fake")
    assert restorer.at_precision("auto").precision == "float32"
    assert restorer.at_precision("bfloat16").precision == "bfloat16"


def test_a_precision_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="precision is 'half'"):
        RestoreConfig(precision="half")  # type: ignore[arg-type]


class Small(nn.Module):
    """A network on a device with room for two faces; what it holds of a face while it works is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.sizes: list[int] = []
        self.held: list[weakref.ref[Tensor]] = []

    def forward(self, lq: Tensor) -> Tensor:
        assert all(tensor() is None for tensor in self.held), "what a failed call held is still there"
        inner = lq * self.weight
        self.sizes.append(len(lq))
        self.held.append(weakref.ref(inner))
        if len(lq) > 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return inner + 0.1


def test_too_little_memory_halves_the_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    net, crops = Small(), [torch.full((3, 16, 16), i / 32) for i in range(21)]
    restored = restore_crops(crops, Restorer(net.eval(), "fake", 16, "fake"), 8)
    assert net.sizes == [8, 4] + [2] * 10 + [1], "not tried again with more"
    assert all(torch.allclose(a, b + 0.1) for a, b in zip(restored, crops, strict=True) if isinstance(a, Tensor))
    assert len(restored) == 21 and not any(isinstance(one, str) for one in restored)
    assert "going on with 4" in caplog.text and "going on with 2" in caplog.text


def test_one_face_that_does_not_fit_is_said() -> None:
    class Full(Small):
        def forward(self, lq: Tensor) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    restored = restore_crops([torch.zeros(3, 16, 16)] * 3, Restorer(Full().eval(), "fake", 16, "fake"), 8)
    assert len(restored) == 3 and all(isinstance(one, str) and "can't allocate memory" in one for one in restored)


# ---------------------------------------------------------------- which faces, and onto what


@pytest.mark.parametrize(
    ("choice", "numbers", "expected"),
    [
        ("all", "1", [0, 1, 2]),
        ("largest", "1", [0]),
        ("leftmost", "1", [2]),
        ("rightmost", "1", [1]),
        ("topmost", "1", [1]),
        ("bottommost", "1", [0]),
        ("numbered", "1, 3", [1, 2]),
    ],
)
def test_faces_are_chosen_by_size_place_or_number(choice: str, numbers: str, expected: list[int]) -> None:
    faces = [face_at(100, 200, 90), face_at(250, 10, 60), face_at(10, 100, 40)]
    chosen, skipped = choose_faces(faces, 64, RestoreConfig(faces=choice, numbers=numbers))
    assert chosen == [faces[i] for i in expected] and not skipped


def test_a_number_that_is_no_face_is_said() -> None:
    chosen, skipped = choose_faces([face_at(0, 0, 40)], 64, RestoreConfig(faces="numbered", numbers="1,4"))
    assert len(chosen) == 1 and skipped == ["there is no face 4: the photo has 1"]
    with pytest.raises(ValueError, match="numbers is"):
        RestoreConfig(numbers="one")
    with pytest.raises(ValueError, match="skip_sharp is -1"):
        RestoreConfig(skip_sharp=-1)


def test_sharp_faces_are_left_alone(shared: Path) -> None:
    photo = read_image(shared / "faces256/0000.jpg")
    blurred = F.interpolate(photo[None], 64, mode="bicubic", antialias=True)
    photo = torch.cat([photo, F.interpolate(blurred, 256, mode="bicubic")[0].clamp(0, 1)], -1)
    faces = found(face_at(0, 0, 256), face_at(256, 0, 256))
    result = restore_photo(photo, fake_restorer(size=128), RestoreConfig(skip_sharp=0.8), faces)
    assert result.found == 2 and [face.landmarks[2, 0] > 256 for face in result.faces] == [True]
    assert "already sharp" in result.skipped[0]
    assert torch.equal(result.pixels[..., :256], photo[..., :256])


def test_how_sharp_a_face_may_be_depends_on_the_size_of_its_crop(shared: Path) -> None:
    """Larger crops of clean faces show finer detail: a face that is a third less sharp is no clean one there."""
    photo = F.interpolate(read_image(shared / "faces_t2i/FLUX1_schnell_0000328.jpg")[None], 256, mode="area")[0]
    softer = gaussian_blur(photo[None], 0.7)[0]
    assert 0.8 < float(sharpness(softer[None])) < 0.8 * sharpness_of_clean(256)
    both, faces = torch.cat([photo, softer], -1), found(face_at(0, 0, 256), face_at(256, 0, 256))
    result = restore_photo(both, fake_restorer(size=256), RestoreConfig(skip_sharp=0.8), faces)
    assert [face.landmarks[2, 0] > 256 for face in result.faces] == [True]


def test_faces_are_put_on_an_enlarged_background() -> None:
    photo = smooth(100, 160)

    def twice(photo: Tensor) -> Tensor:
        return F.interpolate(photo[None], scale_factor=2, mode="bilinear")[0]

    face = face_at(20, 20, 64)
    result = restore_photo(photo, fake_restorer(), PLAIN, found(face), enlarge=twice)
    assert result.pixels.shape == (3, 200, 320) and result.mask.shape == (1, 200, 320)
    assert result.faces[0].width == pytest.approx(2 * face.width)
    assert torch.equal(result.pixels[:, result.mask[0] == 0], twice(photo)[:, result.mask[0] == 0])
    middle = (slice(None), slice(80, 120), slice(80, 120))
    assert torch.allclose(result.pixels[middle], twice(photo)[middle] + 0.1, atol=0.02)
    grey = photo.mean(0, keepdim=True).expand(3, -1, -1)
    tinted = restore_photo(grey, fake_restorer(), PLAIN, found(face), enlarge=lambda x: twice(x) * torch.rand(3, 1, 1))
    assert torch.equal(tinted.pixels[0], tinted.pixels[2])
    with pytest.raises(ValueError, match="the enlarged background is 320 x 100"):
        restore_photo(photo, fake_restorer(), PLAIN, found(face), enlarge=lambda x: x.repeat_interleave(2, -1))


def test_check_is_called_after_every_call_of_the_restorer() -> None:
    faces = [face_at(20 + 10 * i, 20, 64) for i in range(5)]
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_photo(smooth(100, 160), fake_restorer(), RestoreConfig(batch_size=2), found(*faces), check=stop)
    assert len(calls) == 2


def test_restored_crops_come_with_the_photo() -> None:
    result = restore_photo(smooth(100, 160), fake_restorer(), PLAIN, found(face_at(20, 20, 64)))
    assert [crop.shape for crop in result.crops] == [(3, 64, 64)]


@pytest.mark.parametrize(("given", "made"), [(32, 64), (64, 64), (96, 96)])
def test_an_aligned_face_is_restored_from_edge_to_edge(given: int, made: int) -> None:
    face = smooth(given, given)
    result = restore_aligned(face, fake_restorer(), RestoreConfig(blend=0.5))
    assert result.pixels.shape == (3, made, made) and result.crops[0].shape == (3, 64, 64) and result.found == 1
    assert torch.equal(result.mask, torch.full((1, made, made), 0.5)) and result.step.settings["aligned"]
    if given == made == 64:
        assert torch.allclose(result.pixels, face + 0.05, atol=1e-6)
    if given == made:
        kept = restore_aligned(face, fake_restorer(), RestoreConfig(blend=0.0)).pixels
        assert torch.equal(kept, face), "0 keeps the photo, not what a smaller crop holds of it"
    grey = restore_aligned(face[:1].expand(3, -1, -1), fake_restorer()).pixels
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


def test_an_aligned_face_that_fails_or_is_none_is_said() -> None:
    result = restore_aligned(torch.full((3, 64, 64), 0.95), fake_restorer())
    assert not result.faces and not result.mask.any() and result.skipped[0].startswith("the face failed:")
    with pytest.raises(ValueError, match="is 64 x 32 pixels; an aligned face is square"):
        restore_aligned(smooth(32, 64), fake_restorer())


@pytest.mark.parametrize("there", [True, False])
def test_auto_pastes_the_face_alone_where_parsenets_file_is(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class OnlyTheLeft:
        def __init__(self, device: object) -> None:
            asked.append(device)

        def __call__(self, crop: Tensor) -> Tensor:
            return (torch.arange(crop.shape[-1]) < 32).float().expand(1, *crop.shape[-2:])

    monkeypatch.setattr("bfr_core.restoration.restore.has_parser", lambda: there)
    monkeypatch.setattr("bfr_core.restoration.restore.FaceParser", OnlyTheLeft)
    result = restore_photo(smooth(100, 100), fake_restorer(), PLAIN, found(face_at(18, 18, 64)))
    assert len(asked) == there
    assert result.mask[0, 50, 30] > 0.9 and bool(result.mask[0, 50, 70] > 0.9) is not there
    assert result.step is not None and result.step.settings["mask"] == ("face" if there else "square")
    square = replace(PLAIN, mask="square")
    assert restore_photo(smooth(100, 100), fake_restorer(), square, found(face_at(18, 18, 64))).mask[0, 50, 70] > 0.9


def test_another_photo_of_the_same_name_does_not_replace_a_result(photos: Path, tmp_path: Path) -> None:
    """As all cameras call their first picture IMG_0001."""
    for number, folder in enumerate(("one", "other")):
        write_image(tmp_path / folder / "IMG_1.png", smooth(100, 120, number))
        restore_folder(tmp_path / folder, tmp_path / "out", from_file(), PLAIN)
    made = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert made == ["IMG_1.png", "IMG_1_2.png"]
    for folder, name in (("one", "IMG_1.png"), ("other", "IMG_1_2.png")):
        for config, status in ((PLAIN, "kept"), (replace(PLAIN, blend=0.5), "restored")):
            (file,) = restore_folder(tmp_path / folder, tmp_path / "out", from_file(), config).files
            assert (file.status, file.place) == (status, tmp_path / "out" / name)
    shutil.move(tmp_path / "one", tmp_path / "elsewhere")
    (file,) = restore_folder(tmp_path / "elsewhere", tmp_path / "out", from_file(), replace(PLAIN, blend=0.5)).files
    assert (file.status, file.place) == ("kept", tmp_path / "out" / "IMG_1.png"), "the same photo in the same way"
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_the_result_of_another_photo_is_no_reason_to_skip_one(photos: Path, tmp_path: Path) -> None:
    out, status = tmp_path / "out", []
    for number, folder in enumerate(("one", "other")):
        write_image(tmp_path / folder / "p.png", smooth(100, 120, number))
    for folder in ("one", "other", "other", "one"):
        (file,) = restore_folder(tmp_path / folder, out, from_file(), PLAIN, skip_existing=True).files
        status.append(file.status)
    assert status == ["restored", "restored", "skipped", "skipped"]
    assert sorted(path.name for path in out.glob("*.png")) == ["p.png", "p_2.png"]
    write_image(out / "p_2.png", smooth(100, 120, 5))  # retouched, or made by others
    write_image(tmp_path / "new" / "q.png", smooth(100, 120, 6))
    shutil.copyfile(out / "p.png", out / "q.png")
    for folder in ("other", "new"):
        (file,) = restore_folder(tmp_path / folder, out, from_file(), PLAIN, skip_existing=True).files
        assert file.status == "skipped"


def test_pictures_beside_results_stay_photos(tmp_path: Path, photos: Path) -> None:
    write_image(tmp_path / "pictures" / "sub" / "mine.png", smooth(100, 120, 1))
    for _ in range(2):
        restore_folder(photos, tmp_path / "pictures", from_file(), PLAIN)
        assert Ledger(tmp_path / "pictures").kind == Ledger(tmp_path / "pictures" / "sub").kind == ""
        assert list_images(tmp_path / "pictures") == [tmp_path / "pictures" / "sub" / "mine.png"]


def test_results_beside_pictures_are_marked_also_when_it_was_stopped(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    write_image(out / "mine.png", smooth(100, 120, 1))

    def stop(step: int, total: int, preview: Tensor | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_folder(photos, out, from_file(), PLAIN, callback=stop)
    assert len(list(out.glob("[!.]*.*"))) > 2 and list_images(out) == [out / "mine.png"]
    lines = (out / LIST).read_text().splitlines(keepends=True)
    (out / LIST).write_text("".join(line for line in lines if not line.startswith("result ")))
    restore_folder(photos, out, from_file(), PLAIN)
    assert list_images(out) == [out / "mine.png"], "those that are kept, too"


def test_two_processes_do_not_replace_the_results_of_each_other(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the one writes a name that was free when the other began."""
    for number, folder in enumerate(("one", "other")):
        write_image(tmp_path / folder / "z.png", smooth(100, 120, number))
    for number in range(6):
        write_image(tmp_path / "one" / f"a{number}.png", smooth(100, 120, 3))
    out, made = tmp_path / "out", []

    def meanwhile(step: int, total: int, preview: Tensor | None) -> None:
        if step == 1:
            made.extend(restore_folder(tmp_path / "other", out, from_file(), PLAIN).files)

    files = restore_folder(tmp_path / "one", out, from_file(), PLAIN, callback=meanwhile).files
    assert [file.place for file in (*made, files[-1])] == [out / "z.png", out / "z_2.png"]
    assert "z.png: z.png was taken meanwhile; the result is z_2.png" in caplog.text
    for folder, name in (("one", "z_2.png"), ("other", "z.png")):
        change = read_image(out / name) - read_image(tmp_path / folder / "z.png")
        assert change[:, 40:50, 50:60].mean() == pytest.approx(0.1, abs=0.02)
        assert restore_folder(tmp_path / folder, out, from_file(), PLAIN).files[-1].status == "kept"


def test_one_photo_is_restored_like_a_folder(photos: Path, tmp_path: Path) -> None:
    (file,) = restore_folder(photos / "a.png", tmp_path / "out", from_file(), PLAIN).files
    assert (file.path, file.status, file.place) == (Path("a.png"), "restored", tmp_path / "out/a.png")
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["a.png"]
    with pytest.raises(ValueError, match="is one of the photos"):
        restore_folder(photos / "a.png", photos, from_file(), PLAIN)


def test_a_person_is_not_a_reference_and_must_be_there(photos: Path, tmp_path: Path) -> None:
    made = [
        module.FolderRestorer(tmp_path, from_file(), PLAIN, module.RestorationRecord(tmp_path), **known).made_with
        for known in (
            {}, {"person": photos / "a.png"}, {"references": [photos / "a.png"]},
            {"person": photos / "a.png", "references": [photos / "a.png"]},
            {"references": [photos / "a.png", photos / "a.png"]},
        )
    ]  # fmt: skip
    assert len(set(made)) == 5
    for known in ({"person": tmp_path / "nobody.jpg"}, {"references": [photos / "a.png", tmp_path / "nobody.jpg"]}):
        with pytest.raises(FileNotFoundError, match="nobody.jpg: no such file"):
            restore_folder(photos, tmp_path / "out", from_file(), PLAIN, **known)
    for name, known in (("person", {"person": photos}), ("reference", {"references": [photos]})):
        with pytest.raises(ValueError, match=f"^{name} .*: is a folder; name one photo in it"):
            restore_folder(photos, tmp_path / "out", from_file(), PLAIN, **known)


def test_a_face_that_fails_among_faces_of_several_restorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What served the others is told of the others."""

    @dataclass(eq=False)
    class Told(Restorer):
        def restore_and_tell(self, lq: Tensor) -> tuple[Tensor, list[str]]:
            return self.restore(lq), [f"group {1 + round(float(face.mean() * 10))}" for face in lq]

    photo = smooth(200, 600) * 0.1
    photo[:, :, 200:400] = 1  # too bright for the fake
    photo[:, :, 400:] += 0.4
    write_image(tmp_path / "photos" / "a.png", photo)
    faces = [face_at(20, 20, 100), face_at(260, 40, 100), face_at(450, 40, 100)]
    monkeypatch.setattr(module, "load_detector", lambda *_: found(*faces))
    kept = staticmethod(lambda crops, new, widths: Acted([0, 1, 2], list(new), (), [], []))
    restorer = Told(Brighter().eval(), "fake", 64, "fake")
    for check in (None, kept):
        monkeypatch.setattr(module.FolderRestorer, "look", check)
        (file,) = restore_folder(tmp_path / "photos", tmp_path / f"out {check is None}", restorer, PLAIN).files
        assert (file.status, file.faces, file.failed_faces) == ("restored", 2, 1) and "NaN" in file.reason
        assert len(file.served) == 2 and len(set(file.served)) == 2
