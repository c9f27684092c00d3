"""How light a face is: what a model of damage must not change, and what people differ in."""

from dataclasses import replace

import pytest
import torch

from bfr_core.damage.family import Photographed, photographed
from bfr_core.damage.grey import greyed
from bfr_core.damage.light import KEPT, SHARE, lit_like, with_light_of
from bfr_core.damage.search import closest_damage
from bfr_core.damage.statistics import Looks, statistics
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.pixels import gaussian_blur, luma
from bfr_core.randomness import keyed_generator

NOISY = Photographed(0, 1.5, 2.3, -1.6, -1.6, 0, 0, 2, 0.3, 1, 105, 0)


@pytest.fixture(scope="module")
def faces():
    return SharpFaces(64).stacked(48)


def light(faces):
    return gaussian_blur(luma(faces), 2 * KEPT * faces.shape[-1] / 128, edges="replicate")


def test_a_damage_that_darkens_leaves_a_sharp_face_as_light_as_it_was(faces):
    dark = photographed(faces, NOISY, keyed_generator(3))
    kept = torch.stack([NOISY.put_on(face, face, face, i) for i, face in enumerate(faces)])
    middle = (light(faces) > 0.2) & (light(faces) < 0.8)
    assert (light(dark) - light(faces))[middle].mean() < -0.01, "noise in light darkens what is shown"
    assert (light(kept) - light(faces))[middle].mean().abs() < 0.002
    assert (kept - faces).std() > 0.8 * (dark - faces).std(), "the noise is still there"


def test_light_is_put_back_coarsely_and_without_colour(faces):
    checks = 0.1 * torch.eye(2).repeat(32, 32)
    made = (faces * 0.5 + 0.2 + checks).clamp(0, 1)
    back = with_light_of(made, faces)
    fine = [x - gaussian_blur(x, 1.0, edges="replicate") for x in (made, back)]
    inside = (back > 0.01) & (back < 0.99)
    assert (fine[0] - fine[1])[inside].abs().mean() < 0.1 * fine[0][inside].abs().mean()
    assert (light(back) - light(faces)).abs().mean() < 0.01
    red, green, blue = ((back - made)[:, channel][inside.all(1)] for channel in range(3))
    assert torch.allclose(red, green, atol=1e-5) and torch.allclose(red, blue, atol=1e-5)


def test_faces_get_the_brightness_and_the_contrast_of_others(faces):
    mine, others = faces[::2], faces[1::2]
    pale = 0.3 + 0.5 * others
    before, after = (x.mean((1, 2, 3)) for x in (light(mine), light(lit_like(mine, pale))))
    wanted = light(pale).mean((1, 2, 3))
    assert after.mean() == pytest.approx(float(wanted.mean()), abs=0.01)
    assert after.std() == pytest.approx(float(wanted.std()), rel=0.1) and before.std() > 1.5 * after.std()
    ratio = (lit_like(mine, pale).std((2, 3)) / mine.std((2, 3))).median()
    assert ratio == pytest.approx(0.5**SHARE, rel=0.1)
    assert (lit_like(mine, mine) - mine).abs().max() < 1e-5, "nothing is changed where nothing differs"


@pytest.mark.slow
def test_the_damage_of_softly_lit_people_is_not_taken_for_a_stronger_blur(faces):
    mine, others = faces[::2], faces[1::2]
    blurred = replace(NOISY, shot=-5.0, read=-3.0, gamma=1.0, shrink=2.0)
    soft = photographed(0.25 + 0.5 * mine, blurred, keyed_generator(1))
    as_they_are, lit = (closest_damage(soft, some, 240, 12).how.shrink for some in (others, lit_like(others, soft)))
    assert abs(lit - 2.0) < abs(as_they_are - 2.0)


def test_as_many_faces_are_grey_as_of_the_others(faces):
    mine, others = faces[:12], faces[12:24].clone()
    others[::3] = torch.stack([greyed(face) for face in others[::3]])
    lit = lit_like(mine, others)
    assert [bool((face == face[:1]).all()) for face in lit] == [i % 3 == 0 for i in range(12)]


def test_a_grey_face_stays_grey_under_any_damage_of_the_family(faces):
    grey = torch.stack([greyed(face) for face in faces[:2]])
    made = photographed(torch.cat([grey, faces[2:3]]), replace(NOISY, quality=40), keyed_generator(1))
    assert (made[:2] == made[:2, :1]).all() and not (made[2] == made[2, :1]).all()
    on = replace(NOISY, quality=40).put_on(grey[0], faces[3], faces[3], 1)
    assert torch.allclose(on, on[:1].expand(3, -1, -1), atol=1e-6) and (on - grey[0]).std() > 0.01


def test_the_damage_of_a_grey_folder_is_not_sought_in_its_colours(faces):
    """Sharp faces in colours are unlike it whatever is done to them."""
    folder = photographed(torch.stack([greyed(face) for face in faces[::2]]), NOISY, keyed_generator(1))
    looks, others = Looks(statistics(folder)), lit_like(faces[1::2], folder)
    true = looks.distance(statistics(photographed(others, NOISY, keyed_generator(2))))
    coloured = looks.distance(statistics(photographed(faces[1::2], NOISY, keyed_generator(2))))
    assert true < 0.3 * coloured
