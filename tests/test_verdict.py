"""Evidence without clean copies: each cue must fall for the failure that it is there to see."""

import pytest
import torch
from torch.nn import functional as F

from bfr_core.faces.landmarks import load_landmark_net
from bfr_core.metrics import high_band
from bfr_core.verdict import gather, reference_of, transferred


@pytest.fixture(scope="module")
def scene():
    """Clean smooth pictures with fine detail, damaged by noise; their targets are the clean ones."""
    generator = torch.Generator().manual_seed(0)

    def pictures(count):
        coarse = F.interpolate(torch.rand(count, 3, 8, 8, generator=generator), (64, 64), mode="bicubic")
        fine = F.interpolate(torch.rand(count, 3, 32, 32, generator=generator), (64, 64), mode="bicubic")
        return (0.8 * coarse + 0.2 * fine).clamp(0, 1)

    clean, others = pictures(6), pictures(20)
    lq = (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    return clean, lq, reference_of(others), load_landmark_net()


def cues(scene, restore):
    clean, lq, reference, net = scene
    return {name: value.mean().item() for name, value in gather(restore, lq, clean, reference, net)._asdict().items()}


def blur(x):
    return x - high_band(x, 2.0)


def test_each_cue_has_one_number_a_face(scene):
    clean, lq, reference, net = scene
    for value in gather(blur, lq, clean, reference, net):
        assert value.shape == (6,) and torch.isfinite(value).all()


def test_a_change_of_tone_is_inconsistent(scene):
    assert cues(scene, lambda x: (x + 0.1).clamp(0, 1))["consistency"] < cues(scene, lambda x: x)["consistency"] - 20


def test_noise_left_in_shows_in_energy_and_realism(scene):
    noisy, soft = cues(scene, lambda x: x), cues(scene, lambda x: x - high_band(x, 0.7))
    assert noisy["energy"] > soft["energy"] and noisy["realism"] < soft["realism"]
    assert noisy["transfer"] < soft["transfer"] and noisy["teacher"] < soft["teacher"]


def test_a_blur_loses_the_detail(scene):
    soft, blurred = cues(scene, lambda x: x - high_band(x, 0.7)), cues(scene, blur)
    assert blurred["energy"] < soft["energy"] - 0.5
    for name in ("kept", "teacher_detail", "transfer_detail", "realism"):
        assert blurred[name] < soft[name], name


def test_damage_moves_to_another_face_whole(scene):
    clean, lq, reference, _ = scene
    moved = transferred(lq, clean, reference.faces[:6])
    inside = (moved > 0) & (moved < 1)
    assert ((moved - reference.faces[:6] - (lq - clean))[inside]).abs().max() < 1e-6
