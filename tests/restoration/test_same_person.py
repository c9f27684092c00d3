"""Restored faces are judged, and what is asked for is done: nothing, a warning, the photo kept, or a blend."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from bfr_core.damage.synthetic import stored_as_jpeg
from bfr_core.faces.align import Face
from bfr_core.faces.likeness import CANNOT_TELL, MAY_BE, OTHER, SAME
from bfr_core.faces.people import Person
from bfr_core.files.photos import read_image, write_image
from bfr_core.restoration import same_person as module
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.restore import RestoreConfig, restore_aligned, restore_photo
from bfr_core.restoration.same_person import (
    LEFT_ALONE,
    FaceLikeness,
    LikenessCheck,
    LikenessMeter,
    counted,
    load_check,
    load_limits,
    warnings_of,
)
from tests.restoration.faces_in_photos import a_face, restorer, sharp
from tests.restoration.test_blocks import natural
from tests.restoration.test_restore import face_at, fake_restorer, found, smooth

OWN = FaceLikeness(SAME, 0.2, 0.4, 0.45, 0.02, 0.05)
STRANGE = FaceLikeness(OTHER, 0.7, 0.4, 0.45, 0.02, 0.05)


class Change:
    """In place of the meter: a face is another person's once it is brighter by more than `limit`."""

    def __init__(self, limit: float = 0.065) -> None:
        self.limit = limit
        self.helper_sha256 = "embedded"
        self.net: Any = None

    def judge(self, lq: Tensor, *restored: Tensor, helped: Tensor | None = None) -> list[list[FaceLikeness]]:
        return [self.words(lq, faces) for faces in restored]

    def words(self, lq: Tensor, restored: Tensor) -> list[FaceLikeness]:
        return [
            STRANGE if float((new - old).mean()) > self.limit else OWN for old, new in zip(lq, restored, strict=True)
        ]


def check_of(action: str, limit: float = 0.065, **whose: Any) -> LikenessCheck:
    return LikenessCheck(Change(limit), action, **whose)  # type: ignore[arg-type]


@pytest.fixture
def fake_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LikenessMeter", lambda device: Change())


# ---------------------------------------------------------------- what is done


def changes(photo: Tensor, action: str, limit: float = 0.065) -> tuple[float, Any]:
    """How much brighter the middle of the face became, and the result; the restorer adds 0.1."""
    config = RestoreConfig(match_colour=False, likeness=action)
    check = check_of(action, limit) if action != "off" else None
    result = restore_photo(photo, fake_restorer(), config, found(face_at(50, 50, 100)), likeness=check)
    return float((result.pixels - photo)[:, 95:105, 95:105].mean()), result


def test_each_action_does_what_it_says() -> None:
    photo = smooth(200, 200)
    change, result = changes(photo, "off")
    assert change == pytest.approx(0.1, abs=0.002) and result.likeness == ()
    change, result = changes(photo, "warn")
    assert change == pytest.approx(0.1, abs=0.002) and result.likeness == (STRANGE,) and not result.skipped
    change, result = changes(photo, "keep")
    assert torch.equal(result.pixels, photo) and result.likeness[0].share == 0 and result.faces == []
    assert "left alone: likeness: no longer looks like the same person" in result.skipped[0]
    change, result = changes(photo, "blend")  # 0.6 of 0.1 is the first share below the limit
    assert change == pytest.approx(0.06, abs=0.002) and result.likeness[0].share == 0.6 and len(result.faces) == 1


def test_a_blend_is_never_less_than_half() -> None:
    photo = smooth(200, 200)
    _, result = changes(photo, "blend", limit=0.045)
    assert torch.equal(result.pixels, photo) and result.likeness[0].share == 0
    assert result.skipped and "the photo is kept" in result.skipped[0]


@pytest.mark.parametrize("action", ["keep", "blend"])
def test_a_face_that_stays_itself_is_restored_whole(action: str) -> None:
    change, result = changes(smooth(200, 200), action, limit=1)
    assert change == pytest.approx(0.1, abs=0.002) and result.likeness == (OWN,) and OWN.share == 1


def test_an_aligned_face_is_kept_or_blended(fake_meter: None) -> None:
    face = smooth(64, 64)
    kept = restore_aligned(face, fake_restorer(), RestoreConfig(likeness="keep"))
    assert torch.equal(kept.pixels, face) and kept.faces == [] and kept.step is None and len(kept.skipped) == 1
    blended = restore_aligned(face, fake_restorer(), RestoreConfig(likeness="blend"))
    assert float((blended.pixels - face).mean()) == pytest.approx(0.06, abs=0.002)
    assert blended.step and "1 face: looks like the same person" in blended.step.settings["looks"]


def test_a_face_that_is_left_alone_because_it_is_sharp_is_said_to_look_like_nobody(
    fake_meter: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, face, left = RestoreConfig(), a_face(), (FaceLikeness(LEFT_ALONE, share=0.0),)
    photo = sharp(contrast=0.15)
    for enlarge in (None, lambda photo: photo.repeat_interleave(2, 1).repeat_interleave(2, 2)):
        how: dict[str, Any] = {"likeness": check_of("warn"), "enlarge": enlarge}
        result = restore_photo(photo, restorer(1.0), config, lambda photo: [face], **how)
        assert not result.faces and result.likeness == left
    assert counted([*result.likeness, OWN]) == "1 face: looks like the same person; 1 face: left alone"
    monkeypatch.setattr("bfr_core.restoration.folder.load_detector", lambda *_: lambda photo: [face])
    write_image(tmp_path / "photos" / "a.png", photo)
    network = restorer(1.0)
    network.sha256 = "1"
    for status in ("no_face", "kept"):
        (file,) = restore_folder(tmp_path / "photos", tmp_path / "out", network, config).files
        assert file.status == status and file.likeness == left and "sharper there" in file.reason
    assert "the photo is kept" not in caplog.text and warnings_of(left) == []


def test_a_face_of_which_only_the_blocks_were_taken_out_is_left_alone() -> None:
    photo, config = stored_as_jpeg(natural(), 30), RestoreConfig(match_grain=False)
    result = restore_photo(photo, restorer(0.6), config, lambda photo: [a_face()], likeness=check_of("warn"))
    assert len(result.unblocked) == 1 and result.likeness == (FaceLikeness(LEFT_ALONE, share=0.0),)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_folder_says_it_of_every_face_and_remembers_it(
    fake_meter: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, aligned: bool
) -> None:
    monkeypatch.setattr("bfr_core.restoration.folder.load_detector", lambda *_: found(face_at(0, 0, 64)))
    write_image(tmp_path / "photos" / "a.png", smooth(64, 64))
    restorer = fake_restorer()
    restorer.sha256 = "1"
    how: dict[str, Any] = {"aligned": aligned}
    (first,) = restore_folder(tmp_path / "photos", tmp_path / "warned", restorer, RestoreConfig(), **how).files
    assert first.status == "restored" and first.likeness == (STRANGE,)
    assert "no longer looks like the same person" in caplog.text
    (again,) = restore_folder(tmp_path / "photos", tmp_path / "warned", restorer, RestoreConfig(), **how).files
    assert again.status == "kept" and again.likeness == (STRANGE,)
    config = RestoreConfig(likeness="keep")
    (kept,) = restore_folder(tmp_path / "photos", tmp_path / "kept", restorer, config, **how).files
    assert kept.status == "no_face" and kept.written and "the photo is kept" in kept.reason
    assert torch.equal(read_image(tmp_path / "kept" / "a.png"), read_image(tmp_path / "photos" / "a.png"))


def test_a_damaged_record_of_likeness_says_that_nothing_can_be_told(tmp_path: Any) -> None:
    assert FaceLikeness.of(json.loads(json.dumps(STRANGE.record()))) == STRANGE
    for wrong in ("word", None, {}, {"word": "a friend"}, {"word": SAME, "distance": "near"}):
        assert FaceLikeness.of(wrong).distance is None


# ---------------------------------------------------------------- one person


def test_only_the_person_asked_for_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bright faces are the person's here."""
    monkeypatch.setattr(module, "embed_faces", lambda net, faces: faces.mean((1, 2, 3))[:, None])
    photo = torch.full((3, 200, 400), 0.2)
    photo[:, :, 200:] = 0.7
    dark, bright = face_at(50, 50, 100), face_at(250, 50, 100)
    check = check_of("off", person=Person(torch.tensor([0.8]), "aunt.jpg"), person_limit=0.2)
    config = RestoreConfig(keep_detail=False)
    result = restore_photo(photo, fake_restorer(), config, found(dark, bright), likeness=check)
    assert result.faces == [bright] and torch.equal(result.pixels[:, :, :200], photo[:, :, :200])
    assert "not like the person in aunt.jpg (distance 0.50, limit 0.20)" in result.skipped[0] and result.likeness == ()


def test_a_photo_of_the_person_without_a_face_is_refused(tmp_path: Any) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "wall.png")
    with pytest.raises(ValueError, match=r"wall\.png: no face found"):
        load_check("off", fake_restorer(), found(), person=tmp_path / "wall.png")
    assert load_check("off", fake_restorer()) is None


# ---------------------------------------------------------------- the measure itself


def test_the_limits_that_ship_keep_their_promise_and_say_where_nothing_can_be_told() -> None:
    limits = load_limits()
    assert len(limits.upto) == len(limits.calibrations) - 1 and sorted(limits.upto) == list(limits.upto)
    assert limits.average.shape == (128,) and limits.at(limits.average).reason  # the average face is nobody's
    told = [one for one in limits.calibrations if one.tells]
    assert told and all(one.false_warnings.mean <= 0.02 and one.missed.mean <= 0.1 for one in told)
    assert all(one.same <= one.other for one in told)


def test_files_that_hold_no_limits_are_named(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match="reinstall"):
        load_limits(tmp_path / "none.json")
    for wrong in ("", "[]", '{"average": [], "upto": [], "classes": [{}]}'):
        (tmp_path / "limits.json").write_text(wrong)
        with pytest.raises(ValueError, match="not the limits of likeness"):
            load_limits(tmp_path / "limits.json")


def test_a_picture_that_is_no_face_says_nothing() -> None:
    ((said,),) = LikenessMeter().judge(smooth(64, 64)[None], smooth(64, 64, 1)[None])
    assert said == FaceLikeness(CANNOT_TELL) and said.said == "likeness: cannot tell"


def test_a_face_is_itself_and_another_is_not(shared: Any) -> None:
    """On real portraits under noise: the clean face agrees with the photo, another person's does not."""
    from bfr_core.faces.align import crop_face

    known = json.loads((shared / "portraits" / "landmarks.json").read_text())
    faces = [
        crop_face(read_image(shared / "portraits" / name), Face(torch.tensor(known[name]["landmarks"]).numpy()), 128)
        for name in sorted(known)[:4]
    ]
    clean = torch.stack(faces).clamp(0, 1)
    lq = (clean + 0.08 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    meter = LikenessMeter()
    own, others = meter.judge(lq, clean, clean.roll(1, 0))
    assert {one.word for one in own} <= {SAME, MAY_BE, CANNOT_TELL} and SAME in {one.word for one in own}
    assert OTHER in {one.word for one in others} and SAME not in {one.word for one in others}
    assert meter.judge(lq, clean) == [own]  # whatever else is judged beside it


def test_words_are_counted_and_warnings_named() -> None:
    both = [OWN, STRANGE, STRANGE, FaceLikeness(CANNOT_TELL)]
    said = "1 face: looks like the same person; 2 faces: no longer looks like the same person; 1 face: cannot tell"
    assert counted(both) == said and counted([]) == ""
    assert warnings_of(both) == [STRANGE.said] * 2
    assert STRANGE.said.endswith("(0.70, limit 0.45: wrong of 2% of good faces, misses 5% of other people)")
