"""Which places of a picture are surely no face, in whichever way it is shown."""

import json

import make_nobody as tool
import numpy as np
import pytest
import torch

from bfr_core.faces.align import Face, template
from bfr_core.files.photos import write_image


@pytest.fixture
def file(tmp_path):
    coarse = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    picture = torch.nn.functional.interpolate(coarse, (300, 240), mode="bicubic").clamp(0, 1)[0]
    write_image(tmp_path / "a.png", picture)
    return tmp_path / "a.png"


FACE = template(100) + np.array([60.0, 40.0])


def test_a_picture_is_shown_in_three_ways(file):
    plain, turned, damaged = (tool.shown(file, FACE, 3, way) for way in tool.WAYS)
    assert torch.equal(turned.picture, plain.picture.flip(1)) and damaged.picture.shape == plain.picture.shape
    assert 0 < (damaged.picture - plain.picture).abs().mean() < 0.3
    assert torch.equal(damaged.picture, tool.shown(file, FACE, 3, "damaged").picture)
    np.testing.assert_allclose(turned.middle, [plain.middle[0], 299 - plain.middle[1]])
    assert plain.width == turned.width == pytest.approx(100)


@pytest.mark.parametrize("way", tool.WAYS)
def test_the_face_itself_is_no_stray_and_is_found_upright_only(file, way):
    one = tool.shown(file, FACE, 0, way)

    def at(x, y, width):
        return Face(template(width) - template(width).mean(0) + one.middle + (x, y))

    assert one.is_found(at(0, 0, 100)) == (way != "upside down")
    assert not one.is_found(at(60, 0, 100)) and not one.is_found(at(0, 0, 40))
    assert one.is_stray(at(60, 0, 40)) and not one.is_stray(at(60, 0, 100)) and not one.is_stray(at(5, 0, 40))


def test_no_picture_is_both_searched_and_kept_for_constants(tmp_path):
    for folder, count in (("portraits", 50), ("others", 50)):
        marks = {f"{i:02}.png": {"landmarks": FACE.tolist()} for i in range(count)}
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "landmarks.json").write_text(json.dumps(marks))
    both = [tool.files_of(tmp_path / "portraits", [tmp_path / "others"], chosen) for chosen in (False, True)]
    searched, kept = ({file for file, _ in files} for files in both)
    assert searched and kept and not searched & kept and len(searched | kept) < 100
