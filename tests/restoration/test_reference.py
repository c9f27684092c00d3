"""The detail of a reference is lent to the face of its person: where, how much, to whom, and when not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bfr_core.faces.people import Person
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files.photos import write_image
from bfr_core.metrics.psnr import psnr
from bfr_core.pixels import gaussian_blur
from bfr_core.restoration import reference as module
from bfr_core.restoration import same_person
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.reference import (
    COPY,
    Lender,
    Reference,
    inner_part,
    read_references,
    shift_between,
    with_reference,
)
from bfr_core.restoration.restore import RestoreConfig, restore_photo
from bfr_core.restoration.same_person import LikenessCheck, load_check
from tests.restoration.test_restore import face_at, fake_restorer, found, smooth
from tests.restoration.test_same_person import OWN, STRANGE, Change, check_of


def faces(count: int = 3, size: int = 128) -> Tensor:
    return SharpFaces(size).stacked(count)


def blurred(face: Tensor, sigma: float = 2.5) -> Tensor:
    return gaussian_blur(face[None], sigma, edges="replicate")[0]


# ---------------------------------------------------------------- one face


@pytest.mark.parametrize("size", [128, 256])
def test_a_soft_face_gets_its_detail_back_from_a_photo_that_lies_elsewhere(size: int) -> None:
    for clean in faces(3, size):
        soft = blurred(clean, 2.5 * size / 128)
        elsewhere = torch.roll(clean, (3 * size // 128, -2 * size // 128), (1, 2))
        made = with_reference(soft, elsewhere, 0.6)
        assert psnr(made[None], clean[None]) > psnr(soft[None], clean[None]) + 0.5


def test_somebody_who_is_unlike_is_lent_less() -> None:
    clean = faces(1)[0]
    soft = blurred(clean)
    own, other = ((with_reference(soft, one, 0.6) - soft).square().mean() for one in (clean, clean.flip(1)))
    assert other < 0.3 * own


def test_nothing_changes_outside_or_in_colour_or_without_strength() -> None:
    clean, other, _ = faces()
    soft = 0.2 + 0.6 * blurred(clean)
    made = with_reference(soft, other, 1.0)
    outside = (inner_part()[0] == 0).expand(3, -1, -1)
    assert outside.any() and torch.allclose(made[outside], soft[outside], atol=1e-6)
    change = made - soft
    inside = ((made > 0) & (made < 1)).all(0)
    assert change.abs().max() > 0.02
    assert torch.allclose(change[0][inside], change[1][inside], atol=1e-5)
    assert torch.allclose(with_reference(soft, other, 0.0), soft, atol=1e-6)
    assert torch.allclose(with_reference(soft, soft, 1.0), soft, atol=1e-3)


def test_the_shift_is_found_and_a_flat_face_moves_nothing() -> None:
    grey = faces(1).mean(1, keepdim=True)
    assert shift_between(grey, torch.roll(grey, (-4, 2), (-2, -1))) == (4, -2)
    assert shift_between(torch.full_like(grey, 0.5), grey) == (0, 0)


def test_faces_of_two_sizes_and_strengths_beyond_1_are_refused() -> None:
    small, large = faces(1, 64)[0], faces(1)[0]
    with pytest.raises(ValueError, match=r"\(3, 128, 128\) and the reference \(3, 64, 64\)"):
        with_reference(large, small, 0.5)
    with pytest.raises(ValueError, match="strength of the reference is 1.5"):
        with_reference(large, large, 1.5)


# ---------------------------------------------------------------- the faces of a photo


def lender(monkeypatch: pytest.MonkeyPatch, limit: float = 0.65, **how: Any) -> Lender:
    """Somebody whose embedding, a mean brightness here, is 1; lent detail brings a face nearer by its strength."""
    monkeypatch.setattr(module, "embed_faces", lambda net, some: some.mean((1, 2, 3))[:, None])
    monkeypatch.setattr(module, "with_reference", lambda face, other, strength: face + strength)
    person = Person(torch.tensor([1.0]), "aunt.jpg")
    return Lender((Reference(torch.ones(3, 8, 8), person),), None, limit=limit, **how)  # type: ignore[arg-type]


def grey(*values: float) -> list[Tensor | str]:
    return [torch.full((3, 8, 8), value) for value in values]


def test_only_the_nearest_face_is_lent_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    made, reason = lender(monkeypatch, strength=0.04)(["failed", *grey(0.4, 0.5)], [80, 90, 100])
    ((place, (face, strength)),) = made.items()
    assert (place, strength, reason) == (2, 0.04, "") and float(face.mean()) == pytest.approx(0.54)


def test_a_face_that_is_not_like_the_person_is_lent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, reason = lender(monkeypatch, limit=0.3)(grey(0.5, 0.6), [90, 100])
    assert made == {} and "none is like aunt.jpg (distance 0.40, limit 0.30)" in reason


def test_a_face_that_is_like_the_person_without_detail_is_lent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, lent detail makes a face no more like the person where it is nearer to the reference than 0.45."""
    made, reason = lender(monkeypatch, strength=0.04, limit=9)(grey(0.2, 0.56), [90, 100])
    assert made == {} and reason.startswith(
        "a face 100 pixels wide is lent no detail: without it, it is as like aunt.jpg"
    )
    assert lender(monkeypatch, strength=0.04)(grey(0.54), [90])[0].keys() == {0}


def test_no_face_becomes_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0.5 away, all of 0.3 would leave 0.2 and two thirds 0.3; a third leaves 0.4, which is no copy."""
    made, _ = lender(monkeypatch, strength=0.3)(grey(0.5), [90])
    assert made[0][1] == pytest.approx(0.1) and 1 - float(made[0][0].mean()) >= COPY
    made, reason = lender(monkeypatch)(grey(0.54), [90])
    assert made == {} and "a face 90 pixels wide is lent no detail: it is as near to aunt.jpg" in reason


def test_the_nearest_of_several_references_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    one = lender(monkeypatch, strength=0.05)
    other = Reference(torch.zeros(3, 8, 8), Person(torch.tensor([0.0]), "old.jpg"))
    taken: list[Tensor] = []

    def watched(face: Tensor, other: Tensor, strength: float) -> Tensor:
        taken.append(other)
        return face

    monkeypatch.setattr(module, "with_reference", watched)
    both = Lender((*one.references, other), one.net, one.strength, one.limit)
    both(grey(0.46), [90])
    assert all(torch.equal(face, other.face) for face in taken) and taken


def restored_with(check: LikenessCheck) -> Any:
    photo = smooth(200, 200)
    return restore_photo(photo, fake_restorer(), RestoreConfig(), found(face_at(50, 50, 100)), likeness=check)


def with_lender(check: LikenessCheck, monkeypatch: pytest.MonkeyPatch) -> LikenessCheck:
    """Lends a brightness of 0.04 to the face whatever it is; the restorer adds 0.1."""
    one = lender(monkeypatch, limit=9, strength=0.04)
    monkeypatch.setattr(module, "COPY", 0.0)
    return LikenessCheck(check.meter, check.action, lender=one)


@pytest.mark.parametrize("action", ["off", "warn", "keep"])
def test_lent_detail_is_said_and_recorded(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    with_it = restored_with(with_lender(check_of(action, limit=1), monkeypatch))
    without = restored_with(check_of(action, limit=1))
    change = float((with_it.crops[0] - without.crops[0]).mean())
    assert change == pytest.approx(0.04, abs=0.005) and not with_it.skipped
    assert with_it.likeness[0].lent == 0.04 and "detail of the reference is lent (4%)" in with_it.likeness[0].said
    assert with_it.step.settings["detail_of_reference"] == 0.04
    assert "detail_of_reference" not in without.step.settings


@pytest.mark.parametrize("action", ["off", "warn", "keep"])
def test_detail_that_makes_another_person_is_not_lent(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """The face may become brighter by 0.12: the restorer's 0.1 is fine, 0.14 would be somebody else."""
    result = restored_with(with_lender(check_of(action, limit=0.12), monkeypatch))
    assert torch.equal(result.pixels, restored_with(check_of(action, limit=0.12)).pixels)
    assert "lent no detail: with it, it no longer looks like the same person" in result.skipped[0]
    assert all(one.lent == 0 and one.word == OWN.word for one in result.likeness) and len(result.faces) == 1


def test_the_noise_is_measured_without_lent_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lent would count as noise and excuse itself."""

    class Watched(Change):
        def judge(self, lq: Tensor, *restored: Tensor, helped: Tensor | None = None) -> Any:
            seen.append((restored[0], helped))
            return super().judge(lq, *restored)

    seen: list[tuple[Tensor, Tensor | None]] = []
    check = with_lender(check_of("warn", limit=1), monkeypatch)
    check = LikenessCheck(Watched(1), "warn", "embedded", lender=check.lender)  # type: ignore[arg-type]
    restored_with(check)
    ((judged, helped_by),) = seen
    assert helped_by is not None and float((judged - helped_by).mean()) == pytest.approx(0.04, abs=1e-3)


def test_references_are_read_and_results_made_anew_with_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    find = found(face_at(0, 0, 64))
    monkeypatch.setattr("bfr_core.restoration.folder.load_detector", lambda *_: find)
    monkeypatch.setattr(same_person, "LikenessMeter", lambda device: Change(1))
    monkeypatch.setattr(module, "person_of", lambda *_: Person(torch.tensor([1.1]), "aunt.png"))
    one = lender(monkeypatch, limit=9, strength=0.04)
    write_image(tmp_path / "photos" / "a.png", smooth(64, 64))
    write_image(tmp_path / "aunt.png", smooth(64, 64, 1))
    restorer = fake_restorer()
    restorer.sha256 = "1"
    config = RestoreConfig(reference_strength=0.04, reference_limit=9.0)

    def run(*references: Any) -> Any:
        (file,) = restore_folder(tmp_path / "photos", tmp_path / "out", restorer, config, references=references).files
        return file

    assert run().likeness[0].lent == 0 and run().status == "kept"
    again = run(tmp_path / "aunt.png")
    assert again.status == "restored" and again.likeness[0].lent == 0.04
    assert one.strength == 0.04 and STRANGE.lent == 0


def test_a_reference_without_a_face_is_named(tmp_path: Any) -> None:
    write_image(tmp_path / "wall.png", smooth(64, 64))
    with pytest.raises(ValueError, match=r"wall\.png: no face found"):
        load_check("off", fake_restorer(), found(), references=[tmp_path / "wall.png"])


def test_the_largest_face_is_the_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "person_of", lambda photo, face, net, name: Person(torch.tensor([face.width]), name))
    small, large = face_at(10, 10, 40), face_at(60, 60, 100)
    (one,) = read_references([smooth(200, 200)], found(small, large), None, 64)  # type: ignore[arg-type]
    assert float(one.person.embedding) == pytest.approx(large.width) and one.face.shape == (3, 64, 64)
