from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bfr_core.damage.tone import with_tone
from bfr_core.faces.align import Face, crop_face, template
from bfr_core.files.photos import read_image
from bfr_core.restoration.even_tone import tone_for_network, with_own_tone
from bfr_core.restoration.restore import RestoreConfig, restore_aligned, restore_crops, restore_photo
from bfr_core.restorers import load_restorer
from tests.restoration.faces_in_photos import a_face, restorer, sharp

FADINGS = {"faded": (0.3, 0.4), "very faded": (0.2, 0.3), "dark": (0.25, 0.0), "very dark": (0.12, 0.01)}


@pytest.mark.parametrize("how", FADINGS)
def test_the_line_is_taken_back_exactly(how: str) -> None:
    gain, offset = FADINGS[how]
    face = gain * sharp(128) + offset
    face[:, 60:62, 60:62] = 0.95  # a light in the eye, beyond the range
    tone = tone_for_network(face)
    assert tone and tone.gain[0] > 1.5 and len(set(tone.gain)) == 1
    evened = with_tone(face, tone)
    assert evened.std() > 1.5 * face.std()
    assert torch.allclose(with_own_tone(evened, face, tone), face, atol=1e-5)


def test_normal_and_flat_faces_are_left_to_the_bit() -> None:
    for face in (sharp(128), torch.full((3, 128, 128), 0.5), torch.full((3, 64, 64), 0.02)):
        assert tone_for_network(face) is None
    (evened,), (plain,) = (restore_crops([sharp(64)], restorer(1.0), 1, even_tone=even) for even in (True, False))
    assert isinstance(evened, Tensor) and isinstance(plain, Tensor) and torch.equal(evened, plain)


def test_the_line_begins_without_a_jump() -> None:
    """A face of a video that fades in is not toned all of a sudden."""
    whole = sharp(128).clamp(0, 1)
    gains = []
    for contrast in torch.linspace(0.2, 1.0, 81).tolist():
        tone = tone_for_network(contrast * (whole - 0.5) + 0.5)
        gains.append(tone.gain[0] if tone else 1.0)
    steps = [abs(a - b) for a, b in pairwise(gains)]
    assert max(gains) > 1.5 and gains[-1] == 1.0 and max(steps) < 0.5, max(steps)


@pytest.mark.parametrize("how", FADINGS)
def test_a_faded_face_is_restored_as_the_same_face_that_is_not_faded(how: str, shared: Path) -> None:
    """Without it the network draws outlines: it takes the low contrast for blur."""
    photo = read_image(sorted((shared / "portraits").glob("*.jpg"))[10])
    network, (gain, offset) = load_restorer("embedded"), FADINGS[how]
    face = crop_face(photo, Face(template(1) * 200 + [112.0, 130.0]), 128).clamp(0, 1)
    (expected,) = restore_crops([face], network, 1)

    def apart(even_tone: bool) -> float:
        (found,) = restore_crops([gain * face + offset], network, 1, even_tone=even_tone)
        assert isinstance(found, Tensor) and isinstance(expected, Tensor)
        return float(((found - offset) / gain - expected).square().mean().sqrt())

    assert apart(True) < 0.5 * apart(False)


def test_it_is_for_faces_in_photos_and_can_be_switched_off() -> None:
    face, photo = a_face(150), 0.25 * sharp()
    on, off = (
        restore_photo(
            photo, restorer(1.0), RestoreConfig(even_tone=even, keep_detail=False), lambda photo: [face]
        ).pixels
        for even in (True, False)
    )
    assert not torch.equal(on, off) and (on - off).abs().max() < 0.01  # the fake is linear: rounding alone differs
    aligned = 0.25 * sharp(128)
    results = [restore_aligned(aligned, restorer(1.0), RestoreConfig(even_tone=even)).pixels for even in (True, False)]
    assert torch.equal(*results)
