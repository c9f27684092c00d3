"""Every file of a folder is accounted for, and what is kept of a photo is what it was: `cases` and made-up folders."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
import threading
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from bfr_core import restorers
from bfr_core.cli.commands import main
from bfr_core.cli.progress import Bars, Cancel
from bfr_core.faces.align import Face, template
from bfr_core.faces.detect import load_detector
from bfr_core.files import photos as images
from bfr_core.files.ownership import LIST
from bfr_core.files.photos import Photo, read_photo, write_image, write_photo
from bfr_core.restorers.base import Restorer

posix = pytest.mark.skipif(os.name == "nt", reason="needs a link to itself")


class Mirror(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, lq: Tensor) -> Tensor:
        return lq * self.share + 0.5 * lq.flip(-1)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Restorer:
    """What every command takes for the restorer: it mirrors half of a face."""
    made = Restorer(Mirror().eval(), "fake", 64, "plain.pth")
    monkeypatch.setattr(restorers, "load_restorer", lambda name="embedded": made)
    return made


@pytest.fixture
def four_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector finds four faces in every photo that is not black, one of them 10 pixels wide, two 150."""
    faces = [face_at(10, 10, 150), face_at(170, 10, 150), face_at(330, 10, 60), face_at(400, 10, 10)]
    for place in ("restoration.restore", "restoration.folder", "faces.detect"):
        monkeypatch.setattr(f"bfr_core.{place}.load_detector", lambda *_: lambda photo: faces if photo.max() else [])


def face_at(x: float, y: float, width: float) -> Face:
    return Face(template(1) * width + [x + width / 2, y + width / 2])


def picture(seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (200, 420), mode="bilinear")[0]


def command(*arguments: object, capsys: Any) -> tuple[int, dict[str, Any], list[str]]:
    """Exit status, the summary for programs, and the lines for people of one call."""
    status = main([*map(str, arguments), "--json"])
    out, error = capsys.readouterr()
    lines = [
        line for line in error.replace("\r", "\n").splitlines() if line and "it/s" not in line and "s/it" not in line
    ]
    return status, json.loads(out.splitlines()[-1]) if out else {}, lines


# ---------------------------------------------------------------- the cases


@pytest.fixture(scope="module")
def cases(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shared / "cases").is_dir():
        pytest.skip("no folder of cases among the shared ones")
    return Path(shutil.copytree(shared / "cases", tmp_path_factory.mktemp("cases") / "in"))


KEPT = ["gray16.png", "j2k.jp2", "lab.tif", "modern.avif", "rgb16.png", "rgba.webp", "stereo.mpo"]


def test_every_case_is_accounted_for_and_kept(cases: Path, tmp_path: Path, plain: Restorer, capsys: Any) -> None:
    out = tmp_path / "out"
    status, summary, lines = command(
        "restore", cases, "--detector", "embedded", "--likeness", "off", "--out", out, capsys=capsys
    )
    has_heif = find_spec("pillow_heif") is not None
    said = {file["photo"]: file["status"] for file in summary["files"]}
    assert said == dict.fromkeys(KEPT, "restored") | {
        "anim.gif": "left_out", "anim.webp": "left_out", "README.md": "left_out",
        "IMG_1.HEIC": "failed" if has_heif else "left_out",
    }  # fmt: skip
    assert status == (1 if has_heif else 0)
    reasons = {file["photo"]: file["reason"] for file in summary["files"]}
    assert "animation of 4 frames" in reasons["anim.webp"] and "GIF" in reasons["anim.gif"]
    assert reasons["stereo.mpo"] == "of its 2 pictures only the first is used"
    assert "has no place to say that details are generated" in reasons["j2k.jp2"]
    assert has_heif or "pillow-heif" in reasons["IMG_1.HEIC"]
    text = "\n".join(lines)
    assert all(name in text for name in ("anim.gif", "anim.webp", "README.md", "IMG_1.HEIC", "stereo.mpo"))
    assert lines[-1] == f"7 restored, {'1 failed, 3' if has_heif else '4'} left out; results in {out}"
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == sorted(KEPT)

    detector = load_detector("embedded", 0.5, torch.device("cpu"))
    for name in ("gray16.png", "j2k.jp2", "lab.tif", "rgb16.png", "rgba.webp"):
        before, after = read_photo(cases / name), read_photo(out / name)
        assert (before.depth, before.lossless, before.mode) == (after.depth, after.lossless, after.mode)
        assert before.depth == (16 if "16" in name else 8) and before.lossless == (name == "rgba.webp")
        outside = torch.ones(before.pixels.shape[1:], dtype=torch.bool)
        for face in detector(before.pixels):
            x, y = face.landmarks.mean(0)
            reach = int(face.width)
            outside[max(0, int(y) - reach) : int(y) + reach, max(0, int(x) - reach) : int(x) + reach] = False
        assert 0.3 < outside.float().mean() < 1
        visible = outside if before.alpha is None else outside & (before.alpha[0] > 0)
        assert torch.equal(before.pixels[:, visible], after.pixels[:, visible]), name
        assert not torch.equal(before.pixels, after.pixels), name
        if before.alpha is not None:
            assert after.alpha is not None and torch.equal(before.alpha, after.alpha)


def test_the_cases_as_photos_to_adapt_to(cases: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    status, summary, lines = command(
        "faces", cases, "--size", 64, "--detector", "embedded", "--run", run, capsys=capsys
    )
    said = {file["photo"]: file["status"] for file in summary["files"]}
    assert {name for name, what in said.items() if what == "used"} == set(KEPT)
    assert said["anim.gif"] == said["anim.webp"] == said["README.md"] == "left_out" and len(said) == 11
    assert status == (1 if find_spec("pillow_heif") else 0) and "anim.gif" in "\n".join(lines)


# ---------------------------------------------------------------- made here


@pytest.mark.parametrize("work", [["restore"], ["tone"], ["degrade", "--kind", "blind"], ["faces", "--size", "32"]])
def test_a_second_picture_in_a_file_is_accounted_for_by_every_command_and_again(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any, work: list[str]
) -> None:
    first, second = (Image.fromarray((picture(i).permute(1, 2, 0) * 255).byte().numpy()) for i in range(2))
    (tmp_path / "in").mkdir()
    first.save(tmp_path / "in" / "two.mpo", save_all=True, append_images=[second])
    where = "--run" if work[0] == "faces" else "--out"
    for time in range(2):
        status, summary, lines = command(work[0], tmp_path / "in", *work[1:], where, tmp_path / "out", capsys=capsys)
        (file,) = summary["files"]
        assert status == 0 and file["reason"].endswith("of its 2 pictures only the first is used")
        assert time or "two.mpo: of its 2 pictures only the first is used" in lines


@pytest.mark.parametrize("work", [["restore"], ["tone"], ["degrade", "--kind", "blind"], ["faces", "--size", "32"]])
@posix
def test_a_link_to_itself_is_a_file_that_failed(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any, work: list[str]
) -> None:
    photos = tmp_path / "in"
    write_image(photos / "a.png", picture())
    (photos / "loop.jpg").symlink_to(photos / "loop.jpg")
    where = "--run" if work[0] == "faces" else "--out"
    status, summary, lines = command(work[0], photos, *work[1:], where, tmp_path / "out", capsys=capsys)
    assert status == 1 and {f["photo"]: f["status"] for f in summary["files"]}["loop.jpg"] == "failed"
    told = [line for line in lines if "loop.jpg" in line]
    assert len(told) == 1 and told[0].startswith("loop.jpg: cannot be read (") and told[0].count("loop.jpg") == 1


@pytest.mark.parametrize("work", [["restore"], ["tone"], ["degrade", "--kind", "blind"]])
def test_a_full_disk_fails_every_photo_and_says_so_in_the_exit_status(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any, monkeypatch: pytest.MonkeyPatch, work: list[str]
) -> None:
    for name in ("a.png", "below/b.png"):
        write_image(tmp_path / "in" / name, picture())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images, "_write_bytes", full)
    status, summary, lines = command(work[0], tmp_path / "in", *work[1:], "--out", tmp_path / "out", capsys=capsys)
    assert status == 1 and [file["status"] for file in summary["files"]] == ["failed", "failed"]
    told = [line for line in lines if "No space left" in line]
    assert [line.split(": ")[0] for line in told] == ["a.png", "below/b.png"]
    assert all(line.count(line.split(": ")[0].split("/")[-1]) == 1 for line in told)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_bad_input_stays_2(tmp_path: Path, plain: Restorer, capsys: Any) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "anim.gif").write_bytes(b"GIF89a")
    status, _, lines = command("restore", tmp_path / "in", "--out", tmp_path / "out", capsys=capsys)
    assert status == 2 and lines[-1].startswith("bfr: ") and "anim.gif: a GIF holds 256 colours" in lines[-1]


def test_reasons_for_skipped_faces_are_in_the_terminal_once(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any
) -> None:
    write_image(tmp_path / "in" / "group.png", picture())
    restore = ["restore", tmp_path / "in", "--out", tmp_path / "out", "--min-face", 8]
    status, summary, lines = command(*restore, "--faces", "numbered", "--numbers", "2,9", capsys=capsys)
    assert status == 0 and summary["problems"][0]["reason"] == "there is no face 9: the photo has 4"
    assert [line for line in lines if "no face 9" in line] == ["group.png: there is no face 9: the photo has 4"]

    more = ("--min-face", 16, "--set", "keep_detail=false")
    status, summary, lines = command(*restore[:-2], *more, capsys=capsys)
    told = [line for line in lines if "min_face" in line]
    assert told == ["group.png: a face 10 pixels wide is left out: narrower than min_face (16)"] and status == 0


def test_the_size_warning_is_said_once_a_photo_with_its_name(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any
) -> None:
    for name in ("a.png", "below/b.png"):
        write_image(tmp_path / "in" / name, picture())
    _, _, lines = command("restore", tmp_path / "in", "--out", tmp_path / "out", capsys=capsys)
    told = sorted(line for line in lines if "no finer detail" in line)
    said = "2 faces are up to 150 pixels wide, 2.3 times the 64 pixels of the restorer: no finer detail is made"
    assert told == [f"a.png: {said}", f"{Path('below/b.png')}: {said}"]


def test_fidelity_of_a_restorer_that_has_none_is_one_line(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any
) -> None:
    write_image(tmp_path / "in" / "a.png", picture())
    restore = ("restore", tmp_path / "in", "--out", tmp_path / "out")
    status, summary, lines = command(*restore, "--fidelity", 0.7, capsys=capsys)
    assert status == 0 and summary["restored"] == 1
    assert [line for line in lines if line.startswith("--")] == [
        "--fidelity 0.7: plain.pth has none, and is used as it is"
    ]
    assert not [line for line in command(*restore, capsys=capsys)[2] if line.startswith("--")]


def test_the_summary_counts_all_that_can_become_of_a_file(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any
) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    write_image(photos / "a.png", picture())
    write_image(photos / "black.png", torch.zeros(3, 50, 60))
    write_image(photos / "there.png", picture())
    write_image(out / "there.png", picture())
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for i in range(25):
        (photos / f"{i:02}.txt").touch()
    status, summary, lines = command("restore", photos, "--out", out, "--skip-existing", capsys=capsys)
    assert status == 1 and len(summary["files"]) == 29
    assert lines[-1] == f"1 restored, 1 copied as they are, 1 failed, 1 there already, 25 left out; results in {out}"
    assert lines[-2].startswith("left out (is not a picture): 00.txt, 01.txt, ") and lines[-2].endswith(
        "19.txt and 5 more"
    )
    broken = [line for line in lines if "broken.png" in line]
    assert len(broken) == 1 and broken[0].count("broken.png") == 1


def test_the_results_in_the_folder_of_photos_are_not_accounted_for(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any
) -> None:
    write_image(tmp_path / "a.png", picture())
    for _ in range(2):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "notes.txt").touch()
        _, summary, _ = command("restore", tmp_path, "--out", tmp_path / "out", capsys=capsys)
        assert [file["photo"] for file in summary["files"]] == ["a.png"]


def test_sixteen_bits_far_from_the_face_are_kept_by_tone_and_restore_in_every_layout(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any
) -> None:
    exact = (picture() * 65535).round() / 65535
    for name in ("a.png", "a.tif"):
        write_photo(tmp_path / "in" / name, Photo(exact, depth=16, alpha=exact[:1] if name == "a.png" else None))
    command("restore", tmp_path / "in", "--out", tmp_path / "out", capsys=capsys)
    command("tone", tmp_path / "in", "--out", tmp_path / "toned", capsys=capsys)
    for name in ("a.png", "a.tif"):
        after = read_photo(tmp_path / "out" / name)
        assert after.depth == 16 and torch.equal(after.pixels[:, 190:], exact[:, 190:])
        assert not torch.equal(after.pixels, exact) and read_photo(tmp_path / "toned" / name).depth == 16


def test_an_older_reader_of_the_faces_file_is_not_needed(tmp_path: Path, plain: Restorer, capsys: Any) -> None:
    """A run of 0.1, which did not say what became of a photo, is still read."""
    from bfr_core.adaptation.faces import faces_of
    from bfr_core.adaptation.run import Run
    from bfr_core.files.records import write_json

    index = {"fingerprint": "x", "faces": [{"name": "a_0", "photo": "a.jpg"}, {"name": "a_1", "photo": "a.jpg"}]}
    problems = [{"photo": "b.jpg", "problem": "b.jpg: no face found"}]
    write_json(tmp_path / "faces" / "faces.json", index | {"problems": problems})
    faces = faces_of(Run(tmp_path))
    assert [line["status"] for line in faces.account()] == ["used", "failed"]
    assert faces.account()[1]["reason"] == "no face found"
    assert (faces.label("a_1"), faces.label("unknown")) == ("a.jpg, face 2", "unknown")


# ---------------------------------------------------------------- what is seen while it works


def test_one_photo_has_no_speed_of_its_own_invention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is made up: loading the networks took a part of the 5 seconds, nobody knows which."""
    clock, screen = [100.0], StringIO()
    for where in ("time.time", "tqdm.std.time"):
        monkeypatch.setattr(where, lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", screen)
    with Cancel() as cancel:
        bars = Bars(cancel)
        clock[0] += 5
        bars("restore", 1, 1, None)
    last = screen.getvalue().split("\r")[-1]
    assert "1/1" in last and "?it/s" in last, last


def test_work_done_before_is_no_speed_either(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, screen = [100.0], StringIO()
    for where in ("time.time", "tqdm.std.time"):
        monkeypatch.setattr(where, lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", screen)
    with Cancel() as cancel:
        bars = Bars(cancel)
        clock[0] += 2
        bars("restore", 901, 902, None)
        clock[0] += 2
        bars("restore", 902, 902, None)
    last = screen.getvalue().split("\r")[-1]
    assert "902/902" in last and "2.00s/it" in last, last


def test_animations_under_any_name_are_left_out_of_every_command(tmp_path: Path, plain: Restorer, capsys: Any) -> None:
    frames = [Image.new("RGB", (64, 64), (i * 60, 0, 0)) for i in range(3)]
    (tmp_path / "in").mkdir()
    frames[0].save(tmp_path / "in" / "move.png", save_all=True, append_images=frames[1:])
    for work in (["restore"], ["tone"], ["degrade", "--kind", "blind"]):
        status, summary, lines = command(work[0], tmp_path / "in", *work[1:], "--out", tmp_path / "out", capsys=capsys)
        assert status == 0 and [file["status"] for file in summary["files"]] == ["left_out"]
        assert [line for line in lines if "move.png" in line] == [
            "left out (is an animation of 3 frames; save the frames to restore as pictures): move.png"
        ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_a_pipe_among_the_photos_is_not_waited_for(tmp_path: Path, four_faces: None, capsys: Any) -> None:
    write_image(tmp_path / "in" / "a.png", picture())
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    writer = threading.Timer(20, lambda: (tmp_path / "in" / "pipe.jpg").write_bytes(b""))  # who waits goes on, too late
    writer.start()
    status, summary, _ = command("faces", tmp_path / "in", "--run", tmp_path / "run", capsys=capsys)
    assert writer.is_alive(), "it was waited for"
    writer.cancel()
    states = {file["photo"]: file["status"] for file in summary["files"]}
    assert status == 1 and states == {"a.png": "used", "pipe.jpg": "failed"}


def test_a_full_disk_is_not_bad_input_and_its_folder_is_named(
    tmp_path: Path, four_faces: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "in" / "a.png", picture())

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open

    def full(path: Path, mode: str = "r", *more: Any, **how: Any) -> Any:
        return Full() if path.name == LIST and mode == "ab+" else opened(path, mode, *more, **how)

    monkeypatch.setattr(Path, "open", full)
    status, _, lines = command("faces", tmp_path / "in", "--run", tmp_path / "run", capsys=capsys)
    assert status == 1 and "No space left" in lines[-1] and str(tmp_path / "run") in lines[-1]


def test_a_table_that_cannot_be_written_is_told_before_the_work_or_costs_no_summary(
    tmp_path: Path, plain: Restorer, four_faces: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    write_image(tmp_path / "in" / "a.png", picture())
    (tmp_path / "file").write_text("")
    work = ["restore", tmp_path / "in", "--out", tmp_path / "out", "--parquet"]
    status, _, lines = command(*work, tmp_path / "file" / "table.parquet", capsys=capsys)
    assert status == 2 and "file" in lines[-1] and not (tmp_path / "out").exists()

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bfr_core.cluster.table.write_parquet", fails)
    status, summary, lines = command(*work, tmp_path / "table.parquet", capsys=capsys)
    assert status == 1 and [file["status"] for file in summary["files"]] == ["restored"]
    assert summary["failed"] == [str(tmp_path / "table.parquet")]
    assert any("--parquet: " in line and "No space left" in line for line in lines)
