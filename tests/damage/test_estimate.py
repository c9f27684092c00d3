"""The damage of a folder is found again where it is known, from other people's sharp faces alone."""

import pytest
import torch

from bfr_core.damage.estimate import FolderDamage, InTurn, KnownDamage, estimate_damage, plausible
from bfr_core.damage.family import Photographed
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.pixels import gaussian_blur

SIZE = 64


@pytest.fixture(scope="module")
def faces():
    """(of the folder, of others): every second sharp face each."""
    every = SharpFaces(SIZE).stacked(160)
    return every[::2], every[1::2]


def noise(like, level):
    return level * torch.randn(like.shape, generator=torch.Generator().manual_seed(0))


def at(damage: FolderDamage, *frequencies: float) -> list[float]:
    return damage.transfer_at(torch.tensor(frequencies, dtype=torch.float64)).tolist()


@pytest.mark.parametrize("sigma", [0.8, 1.5, 2.5])
def test_a_blur_is_found_again(faces, sigma):
    clean, sharp = faces
    lq = gaussian_blur(clean, sigma)
    where = [0.05, 0.1, 0.15, 0.2, 0.3]
    expected = torch.exp(-2 * torch.pi**2 * sigma**2 * torch.tensor(where) ** 2).tolist()
    assert at(estimate_damage(lq, lq, sharp), *where) == pytest.approx(expected, abs=0.13)


def test_noise_is_found_under_a_blur_and_not_taken_for_detail(faces):
    clean, sharp = faces
    blurred = gaussian_blur(clean, 1.5)
    lq = blurred + noise(clean, 0.06)
    restored = gaussian_blur(blurred, 1.0)  # takes off the noise, and some of the face with it
    damage = estimate_damage(lq, restored, sharp)
    grey = 0.06 / 3**0.5
    assert damage.noise_level == pytest.approx(grey, rel=0.2)
    (kept,) = at(damage, 0.1)
    assert kept == pytest.approx(0.64, abs=0.13)


def test_a_clean_folder_lost_nothing(faces):
    clean, sharp = faces
    damage = estimate_damage(clean, clean, sharp)
    assert min(at(damage, 0.05, 0.1, 0.2, 0.3, 0.4)) > 0.85 and damage.noise_level < 1e-3 and damage.kept_to() == 0.5


def test_less_contrast_is_not_a_blur(faces):
    clean, sharp = faces
    lq = gaussian_blur(clean, 1.0)
    plain, faded = (estimate_damage(x, x, sharp) for x in (lq, 0.2 + 0.5 * lq))
    assert torch.allclose(plain.transfer, faded.transfer, atol=1e-5)


def test_a_sharp_face_with_the_damage_looks_as_it_would_in_the_folder(faces):
    """The folder's damage is known: blur and noise. Put on other faces it has the same blur, and noise as strong."""
    clean, sharp = faces
    blurred = gaussian_blur(clean, 1.5)
    lq = blurred + noise(clean, 0.05)
    known = KnownDamage.of(estimate_damage(lq, blurred, sharp), lq, blurred)
    made = torch.stack([known.put_on(face, lq[i], blurred[i]) for i, face in enumerate(sharp[:40])])
    added = made - gaussian_blur(sharp[:40], 1.5)
    assert added.std() == pytest.approx(0.05, rel=0.15)
    assert gaussian_blur(added, 3.0).std() < 0.02, "the blur is right: what is wrong with it would be coarse"
    assert (made.mean((2, 3)) - sharp[:40].mean((2, 3))).abs().mean() < 0.01


def test_noise_that_the_restored_faces_still_hold_is_put_on_nevertheless(faces):
    clean, sharp = faces
    lq = clean + noise(clean, 0.06)
    estimate = estimate_damage(lq, clean, sharp)
    halfway = (lq + clean) / 2  # holds half of the noise
    made = [KnownDamage.of(estimate, lq, y).put_on(sharp[0], lq[0], y[0]) - sharp[0] for y in (clean, halfway)]
    high = [(x - gaussian_blur(x[None], 1.0)[0]).std() for x in made]
    assert high[1] == pytest.approx(float(high[0]), rel=0.1)


def test_colour_is_never_sharper_than_lightness_and_nothing_is_amplified():
    transfer = plausible(torch.tensor([[0.9, 0.5, 0.7, 0.2], [1.5, 0.9, 0.9, 0.9], [0.5, 0.1, 0.3, 0.0]]).double())
    wanted = [[1, 0.5, 0.5, 0.2], [1, 0.5, 0.5, 0.2], [1, 0.1, 0.1, 0.0]]
    assert torch.allclose(transfer, torch.tensor(wanted, dtype=torch.float64))


def test_of_two_models_each_is_put_on_half_of_the_faces(faces):
    lq, face = faces[0], faces[1][0]
    known = KnownDamage.of(estimate_damage(lq, lq, faces[1]), lq, lq)
    camera = Photographed.at([0.5] * 14)
    both = InTurn(known, camera)
    by_filter = 0
    for key in range(60):
        made, again, *single = (model.put_on(face, lq[0], lq[1], key) for model in (both, both, known, camera))
        assert torch.equal(made, again)
        assert [torch.equal(made, one) for one in single].count(True) == 1
        by_filter += torch.equal(made, single[0])
    assert 20 < by_filter < 40


def test_it_is_kept_as_json_and_what_is_no_estimate_is_refused(faces):
    damage = estimate_damage(faces[0], faces[0], faces[1])
    again = FolderDamage.from_json(damage.as_json())
    assert torch.allclose(again.transfer, damage.transfer, atol=1e-4) and again.size == SIZE
    kept = damage.as_json()
    for wrong in ({}, kept | {"size": 0}, kept | {"noise": [[1.0]]}, kept | {"transfer": "x"}):
        with pytest.raises(ValueError, match="no estimate"):
            FolderDamage.from_json(wrong)


@pytest.mark.parametrize("size", [16, 24, 26, 32])
def test_very_small_faces_have_an_estimate(size):
    lq, restored, sharp = torch.rand(3, 4, 3, size, size, generator=torch.Generator().manual_seed(0))
    damage = estimate_damage(lq, restored, sharp)
    assert damage.noise.isfinite().all() and damage.transfer.isfinite().all()
