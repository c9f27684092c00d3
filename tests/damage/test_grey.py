"""Old prints stored in colour: they are told from colour photographs, restored without colour, and tinted as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bfr_core.damage.grey import MAX_COLOUR, grey_like, greyed, is_grey, is_nearly_grey, tinted
from bfr_core.damage.synthetic import stored_as_jpeg
from bfr_core.files.photos import read_image
from bfr_core.pixels import luma
from bfr_core.restoration.restore import restore_crops


class Painter:
    """Stands for a restorer that learned on colour photographs: it makes everything redder, the more the brighter."""

    size = 64

    def restore_and_tell(self, lq: Tensor) -> tuple[Tensor, list[str]]:
        self.seen = lq
        painted = lq * torch.tensor([1.0, 0.7, 0.6]).view(3, 1, 1)
        return painted.clamp(0, 1), [""] * len(lq)


def smooth(seed: int, channels: int = 1) -> Tensor:
    coarse = torch.rand(1, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")[0].clamp(0.1, 0.9)


def grey_print(seed: int) -> Tensor:
    """A yellowed print of a grey picture, stored as colour JPEG: (3, 64, 64)."""
    grey = smooth(seed)
    tint = torch.cat([0.02 + 0.99 * grey, grey, 0.97 * grey - 0.04])
    return stored_as_jpeg(tint, 85)


def test_prints_are_told_from_colour_photographs(shared: Path) -> None:
    assert all(is_nearly_grey(grey_print(seed)) for seed in range(5))
    assert is_nearly_grey(smooth(0).expand(3, -1, -1))
    assert not any(is_nearly_grey(smooth(seed, 3)) for seed in range(5))
    for folder in ("portraits", "diverse"):
        files = sorted(path for path in (shared / folder).rglob("*") if path.suffix == ".jpg")[::20]
        faces = [face for face in map(read_image, files) if not torch.equal(face[0], face[1])]
        assert len(faces) > 2 and not any(map(is_nearly_grey, faces))
    damaged = {path.stem: path for path in (shared / "historic" / "damaged").rglob("*.jpg")}
    prints = [read_image(damaged[name]) for name in ("E000219", "G000202", "M000640")]
    assert all(map(is_nearly_grey, prints)) and not any(torch.equal(face[0], face[1]) for face in prints)


def test_the_limit_is_a_mean_variance_of_ten_steps_squared() -> None:
    step = torch.tensor([1.0, -1.0]).repeat(32)[:, None].expand(64, 64)
    for deviation, grey in ((3.8, True), (3.9, False)):  # of red; the mean of the variances is 2/3 of its square
        face = 0.5 + 0.05 * step.T.repeat(3, 1, 1)
        face[0] += deviation / 255 * step
        assert is_nearly_grey(face) is grey and (2 / 3 * (deviation / 255) ** 2 <= MAX_COLOUR) is grey


def test_a_sepia_print_is_without_colour_and_a_pale_photograph_is_not() -> None:
    for seed in range(5):
        grey, coloured = smooth(seed), smooth(seed, 3)
        sepia = stored_as_jpeg(torch.cat([0.2 + 0.8 * grey, 0.1 + 0.75 * grey, 0.6 * grey]), 90)
        assert is_nearly_grey(sepia)
        assert float((sepia[0] - sepia[2]).var()) > 2 * MAX_COLOUR, "a tint that the published limit does not know"
        pale = luma(coloured) + 0.2 * (coloured - luma(coloured))
        assert not is_nearly_grey(pale)


def test_a_tint_is_taken_off_and_given_back() -> None:
    grey = smooth(3).expand(3, -1, -1)
    slope, offset = torch.tensor([1.02, 1.0, 0.95]).view(3, 1, 1), torch.tensor([0.03, 0.0, -0.05]).view(3, 1, 1)
    face = slope * grey + offset
    assert torch.allclose(tinted(greyed(face), face), face, atol=1e-5)
    brighter = tinted((greyed(face) + 0.05).clamp(0, 1), face)
    assert (brighter - face).mean() == pytest.approx(0.05, abs=5e-3)
    assert torch.equal(greyed(grey), grey)
    flat = torch.tensor([0.5, 0.48, 0.4]).view(3, 1, 1).expand(3, 8, 8)
    assert torch.allclose(tinted(greyed(flat), flat), flat, atol=1e-6)


def test_a_print_is_restored_without_colour_and_a_colour_photograph_with_it() -> None:
    painter, face, colourful = Painter(), grey_print(1), smooth(2, 3)
    restored = restore_crops([face, colourful], painter, 8)  # type: ignore[arg-type]
    assert torch.equal(painter.seen[0][0], painter.seen[0][2]) and torch.equal(painter.seen[1], colourful)
    made, other = (x for x in restored if isinstance(x, Tensor))
    assert torch.equal(other, colourful * torch.tensor([1.0, 0.7, 0.6]).view(3, 1, 1))
    # No colours of its own: what the channels differ by is what they differed by in the print.
    gap, wanted = (x.mean((1, 2)) - x.mean() for x in (made, face))
    assert torch.allclose(gap, wanted, atol=0.01)
    assert (made[0] - made[2]).std() < 0.02 < (face[0] - face[2]).mean().abs()


def test_a_grey_face_comes_back_grey_to_the_bit() -> None:
    (made,) = restore_crops([smooth(4).expand(3, -1, -1)], Painter(), 1)  # type: ignore[arg-type]
    assert isinstance(made, Tensor) and torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_faces_at_the_end_of_a_folder_are_donors_too() -> None:
    """Folders are sorted by year or by kind: a quarter of grey ones at the end is a quarter of the sharp faces'."""
    folder = torch.rand(16, 3, 8, 8)
    folder[12:] = luma(folder[12:])
    faces = torch.rand(12, 3, 8, 8)
    assert [is_grey(face) for face in grey_like(faces, folder)] == [False] * 9 + [True] * 3
