"""The faces of a run: taken from photos, kept, and found again."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import bfr_core.adaptation.faces as faces_module
from bfr_core.adaptation.config import FaceConfig
from bfr_core.adaptation.faces import collect_faces, faces_of, leave_out, left_out_of
from bfr_core.adaptation.run import Run
from bfr_core.faces import detect
from bfr_core.faces.align import Face, template
from bfr_core.files.kinds import LeftOutError
from bfr_core.files.photos import read_image, write_image
from bfr_core.files.records import write_json

ALIGNED = FaceConfig(aligned=True)


def test_a_changed_photo_is_noticed(photos, config, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    run = Run(tmp_path / "run")
    before = collect_faces(folder, run, 32, ALIGNED)
    changed = next(folder.glob("*.png"))
    write_image(changed, 1 - read_image(changed))
    after = collect_faces(folder, run, 32, ALIGNED)
    assert before.fingerprint != after.fingerprint


def test_bad_photos_are_reported_and_the_others_used(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "text.jpg").write_text("not a picture")
    write_image(folder / "wide.png", torch.zeros(3, 10, 20))
    found = collect_faces(folder, Run(tmp_path / "run"), 32, ALIGNED)
    assert len(found) == 10
    assert sorted(p["photo"] for p in found.problems) == ["text.jpg", "wide.png"]
    assert json.loads((tmp_path / "run/faces/faces.json").read_text())["problems"] == found.problems


def test_a_copy_of_a_photo_counts_once_and_is_accounted_for(photos, tmp_path):
    """Held out, it would judge what its other half has taught."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    first = min(folder.glob("*.png"))
    (folder / "again").mkdir()
    shutil.copy(first, folder / "again" / "copy.png")
    run = Run(tmp_path / "run")
    plain = collect_faces(photos, Run(tmp_path / "plain"), 32, ALIGNED)
    found = collect_faces(folder, run, 32, ALIGNED)
    assert len(found) == len(plain) == 10
    (copied,) = [line for line in found.account() if line["status"] != "used"]
    kept = {copied["photo"], copied["reason"].removeprefix("shows the same as ")}
    assert copied["status"] == "left_out" and kept == {first.name, "again/copy.png"}
    assert collect_faces(folder, run, 32, ALIGNED).fingerprint == found.fingerprint
    first.unlink()
    assert len(collect_faces(folder, run, 32, ALIGNED)) == 10


def test_no_usable_photo_is_an_error(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "text.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match="no face could be taken from its 1 images"):
        collect_faces(tmp_path / "photos", Run(tmp_path / "run"), 32, ALIGNED)


def test_a_journal_cut_by_a_power_failure_is_mended(photos, tmp_path):
    run = Run(tmp_path)
    collect_faces(photos, run, 32, ALIGNED)
    journal = run.faces / "photos.jsonl"
    journal.write_text(journal.read_text()[:-20])
    (run.faces / "faces.json").unlink()
    assert len(collect_faces(photos, run, 32, ALIGNED)) == 10


def test_a_run_without_faces_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="bfr faces"):
        faces_of(Run(tmp_path))


def test_crops_of_a_side_that_none_has_are_refused(photos, tmp_path):
    for size in (0, -8, 10**6):
        with pytest.raises(ValueError, match=f"size is {size}"):
            collect_faces(photos, Run(tmp_path), size, FaceConfig(aligned=True))
    assert not list(tmp_path.iterdir())


def test_a_print_without_colour_is_kept_without_its_tint(tmp_path):
    """As it will be given to the restorer; a photo in colour is kept as it is."""
    grey = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1))
    folder = tmp_path / "photos"
    folder.mkdir()
    write_image(folder / "print.png", torch.cat([grey, 0.99 * grey, 0.97 * grey]))
    write_image(folder / "photo.png", torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2)))
    run = Run(tmp_path / "run")
    collect_faces(folder, run, 32, ALIGNED)
    kept, photo = (read_image(run.faces / f"{name}.png") for name in ("print", "photo"))
    assert (kept == kept[:1]).all() and kept.std() > 0.2
    assert torch.equal(photo, read_image(folder / "photo.png"))


def test_a_wrong_folder_takes_no_faces_from_the_run(photos, tmp_path):
    run = Run(tmp_path / "run")
    before = collect_faces(photos, run, 32, ALIGNED)
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "text.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match="no face could be taken"):
        collect_faces(tmp_path / "wrong", run, 32, ALIGNED)
    assert faces_of(run).names == before.names and len(before.batch(0, 10)) == 10


def test_a_photo_that_failed_is_tried_again(photos, tmp_path, monkeypatch):
    """The reason may have lain in a package or in permissions, which neither size nor time of a file tell."""
    folder, run = tmp_path / "photos", Run(tmp_path / "run")
    shutil.copytree(photos, folder)
    victim = sorted(folder.glob("*.png"))[0].name
    real = faces_module.read_photo

    reasons: list[ValueError] = []

    def refused(file):
        if file.name == victim:
            raise reasons[-1]
        return real(file)

    monkeypatch.setattr(faces_module, "read_photo", refused)
    for reason in (ValueError(f"{victim}: cannot be read"), LeftOutError(victim, "needs a package")):
        reasons.append(reason)
        found = collect_faces(folder, run, 32, ALIGNED)
        assert len(found) == 9 and [one["photo"] for one in found.problems] == [victim]
    monkeypatch.setattr(faces_module, "read_photo", real)
    assert len(collect_faces(folder, run, 32, ALIGNED)) == 10


def test_another_detector_looks_again_where_none_was_found(photos, tmp_path, monkeypatch):
    """Photos with a face are left as they are: their crops are what targets were drawn from."""
    looked: list[int] = []
    sees: list[Face] = []

    def searched(photo):
        looked.append(1)
        return sees

    monkeypatch.setattr(detect, "load_detector", lambda *_: searched)
    run, here = Run(tmp_path), photos
    with pytest.raises(ValueError, match="no face could be taken"):
        collect_faces(here, run, 32, FaceConfig(min_face=1))
    looked.clear()
    with pytest.raises(ValueError, match="no face could be taken"):
        collect_faces(here, run, 32, FaceConfig(min_face=1))
    assert not looked
    sees.append(Face(template(32)))
    monkeypatch.setattr(detect, "_retinaface_file", lambda *_: (Path("file"), ""))
    assert len(collect_faces(here, run, 32, FaceConfig(min_face=1))) == 10
    monkeypatch.undo()
    monkeypatch.setattr(detect, "load_detector", lambda *_: pytest.fail("was searched again"))
    assert len(collect_faces(here, run, 32, FaceConfig(min_face=1))) == 10


def test_a_lesser_detector_does_not_look_again(photos, tmp_path, monkeypatch):
    """Nor is one asked for that has gone since, where nothing is left to search."""
    sees = iter([[], *[[Face(template(32))]] * 9])
    monkeypatch.setattr(detect, "load_detector", lambda *_: lambda photo: next(sees))
    monkeypatch.setattr(detect, "_retinaface_file", lambda *_: (Path("file"), ""))
    for kind in ("auto", "retinaface"):
        run = Run(tmp_path / kind)
        assert len(collect_faces(photos, run, 32, FaceConfig(detector=kind, min_face=1))) == 9
        sees = iter([[], *[[Face(template(32))]] * 9])
    monkeypatch.setattr(detect, "load_detector", lambda *_: pytest.fail("was searched again"))
    monkeypatch.setattr(detect, "_retinaface_file", lambda *_: (None, "is not there"))
    for kind in ("auto", "retinaface"):
        run = Run(tmp_path / kind)
        assert len(collect_faces(photos, run, 32, FaceConfig(detector=kind, min_face=1))) == 9


def test_a_face_that_was_left_out_stays_so_when_its_name_changes(photos, tmp_path):
    """A second photo of the same stem gives both another name, `IMG_2` becomes `IMG_2_png`."""
    folder, run = tmp_path / "photos", Run(tmp_path / "run")
    shutil.copytree(photos, folder)
    names = collect_faces(folder, run, 32, ALIGNED).names
    photo = sorted(folder.glob("*.png"))[0]
    leave_out(run, [photo.stem])
    write_image(photo.with_suffix(".jpg"), torch.rand(3, 32, 32))
    found = collect_faces(folder, run, 32, ALIGNED)
    assert left_out_of(run) == [f"{photo.stem}_png"]
    assert len(found) == len(names) and f"{photo.stem}_jpg" in found.names
    write_image(photo, 1 - read_image(photo))  # another picture: the mark no longer holds
    assert len(collect_faces(folder, run, 32, ALIGNED)) == len(names) + 1


def test_a_face_that_was_left_out_stays_so_while_its_photo_is_away(photos, tmp_path):
    folder, run = tmp_path / "photos", Run(tmp_path / "run")
    shutil.copytree(photos, folder)
    names = collect_faces(folder, run, 32, ALIGNED).names
    away = next(path for path in sorted(folder.rglob("*.png")) if path.stem == names[0].split("__")[-1])
    leave_out(run, [names[0]])
    away.rename(tmp_path / "away.png")
    collect_faces(folder, run, 32, ALIGNED)
    leave_out(run, [names[1]])
    (tmp_path / "away.png").rename(away)
    collect_faces(folder, run, 32, ALIGNED)
    assert left_out_of(run) == sorted(names[:2])
    leave_out(run, [])
    assert left_out_of(run) == []


def test_marks_of_before_still_hold(photos, tmp_path):
    run = Run(tmp_path)
    name = collect_faces(photos, run, 32, ALIGNED).names[0]
    found = next(face["found"] for face in json.loads((run.faces / "faces.json").read_text())["faces"])
    for names in ([name], {name: found}):
        run.left_out.write_text(json.dumps({"names": names}))
        assert left_out_of(run) == [name]
    run.left_out.write_text(json.dumps({"names": {name: "another photo"}}))
    assert left_out_of(run) == []


def test_faces_of_another_size_are_refused(photos, tmp_path):
    collect_faces(photos, Run(tmp_path), 32, ALIGNED)
    assert len(faces_of(Run(tmp_path), 32)) == 10
    with pytest.raises(ValueError, match="its faces are 32 pixels wide, and the restorer takes 64"):
        faces_of(Run(tmp_path), 64)


def test_a_crop_that_was_changed_by_hand_may_have_another_size(photos, tmp_path):
    run = Run(tmp_path / "run")
    faces = collect_faces(photos, run, 32, ALIGNED)
    write_image(faces.crop(faces.names[1]), torch.rand(3, 48, 48))
    assert faces.batch(0, 3).shape == (3, 3, 32, 32)
    write_image(faces.crop(faces.names[1]), torch.rand(3, 32, 30))
    with pytest.raises(ValueError, match=f"{faces.names[1]}.png: is 30 x 32 pixels; an aligned face is square"):
        faces.batch(0, 3)


def test_a_crop_that_was_changed_by_hand_makes_other_faces_at_once(photos, tmp_path, monkeypatch):
    """Targets, their checks, the estimate of damage and the tuning are known again by this fingerprint."""
    run = Run(tmp_path / "run")
    before = collect_faces(photos, run, 32, ALIGNED)
    with monkeypatch.context() as patch:
        patch.setattr(faces_module, "content_hash", lambda crop: pytest.fail(f"{crop} was read again"))
        assert faces_of(run).fingerprint == before.fingerprint
    crop = before.crop(before.names[0])
    os.utime(crop, (1, 1))
    assert faces_of(run).fingerprint == before.fingerprint, "copied to another disk"
    write_image(crop, read_image(crop).flip(-1))
    now = faces_of(run)
    assert now.fingerprint != before.fingerprint
    assert collect_faces(photos, run, 32, ALIGNED).fingerprint == now.fingerprint
    index = json.loads((run.faces / "faces.json").read_text())
    for face in index["faces"]:
        del face["sha256"]
    write_json(run.faces / "faces.json", index | {"fingerprint": "as version 0.1 kept it"})
    assert faces_of(run).fingerprint == "as version 0.1 kept it"


def test_a_photo_that_is_too_large_for_the_memory_fails_alone(photos, tmp_path, monkeypatch):
    def detector(photo):
        if bool((photo[0] - read_image(photos / "face 0.png")[0]).abs().max() == 0):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")
        return [Face(template(1) * 40)]

    monkeypatch.setattr("bfr_core.faces.detect.load_detector", lambda *_: detector)
    found = collect_faces(photos, Run(tmp_path / "run"), 32, FaceConfig())
    (failed,) = [line for line in found.account() if line["status"] == "failed"]
    assert failed["photo"] == "face 0.png" and failed["reason"].startswith("needs more memory than there is")


@pytest.mark.parametrize("what", ["folder", "photo"])
def test_what_cannot_be_read_for_a_moment_loses_no_crop(photos, tmp_path, monkeypatch, what):
    run = Run(tmp_path / "run")
    before = collect_faces(photos, run, 32, ALIGNED)
    crops = {name: before.crop(name).read_bytes() for name in before.names}
    whole, still_true = faces_module.look_through, faces_module._still_true

    def without_below(folder):
        below = {Path("below"): "is a folder that cannot be listed (Permission denied)"}
        return [path for path in whole(folder)[0] if path.parent == folder], below

    def looks_anew(record, key, file, *rest):
        return None if "below" in file.parts else still_true(record, key, file, *rest)

    def unreadable(*_):
        raise ValueError("cannot be read")

    with monkeypatch.context() as patch:
        if what == "folder":
            patch.setattr(faces_module, "look_through", without_below)
        else:
            patch.setattr(faces_module, "_still_true", looks_anew)
            patch.setattr(faces_module, "_crops_of", unreadable)
        found = collect_faces(photos, run, 32, ALIGNED)
    assert 0 < len(found) < len(before) and {name: before.crop(name).read_bytes() for name in before.names} == crops
    lost = [line for line in found.account() if line["photo"].startswith("below")]
    assert lost and all(line["status"] == "failed" for line in lost), "so that the command says so"
    again = collect_faces(photos, run, 32, ALIGNED)
    assert again.names == before.names and again.fingerprint == before.fingerprint


def test_that_a_face_that_was_left_out_is_used_again_is_said(photos, tmp_path, caplog):
    run = Run(tmp_path / "run")
    name = collect_faces(photos, run, 32, ALIGNED).names[0]
    leave_out(run, [name])
    assert len(collect_faces(photos, run, 32, ALIGNED)) == 9 and "is used again" not in caplog.text
    assert len(collect_faces(photos, run, 32, FaceConfig(aligned=True, min_face=40))) == 10
    assert "a face that was left out is used again" in caplog.text
