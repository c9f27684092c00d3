"""Where the face networks are in doubt, the recogniser decides; it knows places without a face by where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import save_file
from torch import Tensor

from bfr_core.faces import detect
from bfr_core.faces.align import Face, template
from bfr_core.faces.detect import AWAY, DOUBTFUL, load_detector, load_embedded_detector, looked_at_again
from bfr_core.faces.recognise import NUMBERS
from bfr_core.faces.second_look import SecondLook, load_second_look
from bfr_core.files.photos import read_image


@pytest.fixture(scope="module")
def second_look() -> SecondLook:
    return load_second_look()


def picture(name: str) -> Tensor:
    pixels = np.asarray(getattr(skimage.data, name)())
    pixels = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def test_a_face_lies_far_from_nobody_and_other_places_near(second_look: SecondLook) -> None:
    astronaut = picture("astronaut")
    (face,) = load_embedded_detector()(astronaut)
    assert second_look.distances(astronaut, [face]) > AWAY + 0.05
    beside = Face(face.landmarks + np.array([-120, 250]))  # her suit
    for photo, place in (
        (astronaut, beside),
        *((picture(name), Face(template(100) + 100)) for name in ("brick", "grass", "gravel", "coins", "moon")),
    ):
        assert second_look.distances(photo, [place]) < AWAY - 0.02


def test_no_faces_have_no_distances(second_look: SecondLook) -> None:
    assert second_look.distances(torch.zeros(3, 20, 20), []).shape == (0,)


class Said(SecondLook):
    """Says a distance of so much for everything that it is asked about, and keeps the scores of what that was."""

    def __init__(self, distance: float) -> None:
        object.__setattr__(self, "distance", distance)
        object.__setattr__(self, "asked", [])

    def distances(self, photo: Tensor, faces: Sequence[Face]) -> Tensor:
        self.asked.extend(face.score for face in faces)  # type: ignore[attr-defined]
        return torch.full((len(faces),), self.distance)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("distance", "moves"), [(AWAY - 0.1, -1), (AWAY, 0), (AWAY + 0.1, 1)])
def test_only_doubtful_faces_are_asked_about_and_only_their_scores_move(distance: float, moves: int) -> None:
    scores, said = [0.99, DOUBTFUL[1], 0.6, DOUBTFUL[0], 0.05], Said(distance)
    faces = [Face(template(40) + i, score) for i, score in enumerate(scores)]
    judged = looked_at_again(said, torch.zeros(3, 60, 60), faces)
    assert said.asked == [0.6, DOUBTFUL[0]]  # type: ignore[attr-defined]
    now = {round(face.landmarks[0, 0] - template(40)[0, 0]): face.score for face in judged}
    for i, before in enumerate(scores):
        change = now[i] - before
        assert change * moves > 0.02 if moves and before in (0.6, DOUBTFUL[0]) else abs(change) < 1e-6


def test_what_is_no_face_is_not_found_any_more(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the pictures by which the constants were chosen, in which the face networks alone see a second face."""
    detector = load_detector("embedded")
    photos = [read_image(shared / "faces_t2i" / f"{name}.jpg") for name in ("SDXL_0048051", "FLUX1_schnell_0011254")]
    assert [len(detector(photo)) for photo in photos] == [1, 1]
    monkeypatch.setattr(detect, "WEIGHT", 0.0)
    assert [len(detector(photo)) for photo in photos] == [2, 2]


def test_a_file_that_is_missing_or_another_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="reinstall BFR Adapt"):
        load_second_look(tmp_path / "nobody.safetensors")
    for tensors, says in (({"x": torch.zeros(3)}, "does not say where nobody is"), ({"nobody": torch.zeros(3)}, "128")):
        save_file(tensors, tmp_path / "nobody.safetensors")
        with pytest.raises(ValueError, match=says):
            load_second_look(tmp_path / "nobody.safetensors")
    assert NUMBERS == 128
