"""The published camera sets: steps with known answers, and the strength of the damage on real pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core.damage import camera
from bfr_core.damage.camera import SENSOR_NOISE, SensorNoise, draw_illuminant, published_camera, shrink_factor
from bfr_core.metrics.psnr import psnr


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def sharp_faces(shared: Path) -> Tensor:
    """Eight faces of people who do not exist, taken evenly from faces256 and enlarged to 512 pixels."""
    from bfr_core.faces.align import Face, crop_face
    from bfr_core.files.photos import read_image

    folder = shared / "faces256"
    marks = json.loads((folder / "landmarks.json").read_text())
    names = sorted(marks)[::43][:8]
    points = [Face(np.array(marks[name]["landmarks"])) for name in names]
    return torch.stack(
        [crop_face(read_image(folder / n), p, 512).clamp(0, 1) for n, p in zip(names, points, strict=True)]
    )


def mean_psnr(faces: Tensor, shrink: int, iso: int) -> float:
    made = [published_camera(face, seeded(i), 1.0, shrink, iso)[0] for i, face in enumerate(faces)]
    return float(psnr(torch.stack(made), faces).mean())


# Of the published sets on eight sharp synthetic faces of 512 pixels: with noise, without.
@pytest.mark.parametrize(
    ("shrink", "iso", "noisy", "clean"),
    [(4, 1500, 24.30, 35.23), (4, 3000, 21.51, 35.23), (8, 1500, 23.29, 29.65), (8, 3000, 20.87, 29.65)],
)
def test_as_strong_as_the_published_sets(
    sharp_faces: Tensor, monkeypatch: pytest.MonkeyPatch, shrink: int, iso: int, noisy: float, clean: float
) -> None:
    assert mean_psnr(sharp_faces, shrink, iso) == pytest.approx(noisy, abs=0.25)
    monkeypatch.setitem(SENSOR_NOISE, iso, SensorNoise((0, 0, 0), (0, 0, 0)))
    assert mean_psnr(sharp_faces, shrink, iso) == pytest.approx(clean, abs=0.75)


def test_bilinear_demosaicing_would_be_noisier(sharp_faces: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mean_psnr(sharp_faces, 4, 1500)

    def bilinear(mosaic: Tensor) -> Tensor:
        masks = camera.grbg(mosaic)
        kernel = torch.tensor([[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]])[None, None]
        values, weights = F.conv2d(torch.cat([masks * mosaic, masks])[:, None], kernel, padding=1)[:, 0].split(3)
        return values / weights

    monkeypatch.setattr(camera, "demosaic", bilinear)
    assert 2.0 < before - mean_psnr(sharp_faces, 4, 1500) < 2.7


@pytest.mark.parametrize("iso", SENSOR_NOISE)
def test_variance_is_shot_times_signal_plus_read_squared(iso: int) -> None:
    noise = SENSOR_NOISE[iso]
    for level in (0.2, 0.5):
        noisy = camera.with_noise(torch.full((1024, 1024), level), noise, seeded(0))
        masks = camera.grbg(noisy)
        for colour in range(3):
            wanted = noise.shot[colour] * level + noise.read[colour] ** 2
            assert noisy[masks[colour] > 0].var().item() == pytest.approx(wanted, rel=0.02)
    dark = camera.with_noise(torch.zeros(64, 64), noise, seeded(0))
    assert dark.min() == 0 and 0.3 < (dark > 0).float().mean() < 0.7  # clipped at black


def test_the_mosaic_is_green_red_blue_green() -> None:
    masks = camera.grbg(torch.zeros(4, 6))
    assert masks[:, :2, :2].argmax(0).tolist() == [[1, 0], [2, 1]] and torch.equal(masks.sum(0), torch.ones(4, 6))


def test_white_stays_white_and_a_colour_comes_back() -> None:
    assert torch.allclose(camera.colour_matrix().sum(1), torch.ones(3))
    seen = torch.tensor([0.6, 1.0, 0.45])[:, None, None]
    for colour in ((1.0, 1.0, 1.0), (0.8, 0.6, 0.5), (0.1, 0.1, 0.12)):
        image = torch.tensor(colour)[:, None, None].expand(3, 16, 16)
        raw = camera.unprocessed(image, seen)
        back = camera.processed((raw * camera.grbg(raw)).sum(0), seen)
        assert torch.allclose(back, image, atol=2e-3)
        if colour == (1.0, 1.0, 1.0):
            assert torch.allclose(raw[:, 0, 0], seen.flatten(), atol=1e-5)


def test_demosaicing_finds_a_grey_edge_without_colour() -> None:
    edge = torch.zeros(32, 32)
    edge[:, 16:] = 0.8
    colours = camera.demosaic(edge)
    assert (colours - edge).abs().mean() < 0.02 and (colours - colours.mean(0)).abs().max() < 0.1
    assert torch.allclose(camera.demosaic(edge.T.contiguous())[1], colours[1].T)


def test_illuminants_have_the_published_mean_and_limits() -> None:
    generator = seeded(0)
    drawn = np.array([draw_illuminant(generator) for _ in range(4000)])
    assert drawn[:, 0].min() >= 0.422 and drawn[:, 0].max() <= 1.022
    assert drawn[:, 1].min() >= 0.300 and drawn[:, 1].max() <= 0.651
    # The mean of what lies within the limits, by integration.
    red, blue = np.meshgrid(np.linspace(0.422, 1.022, 301), np.linspace(0.3, 0.651, 301), indexing="ij")
    away = np.stack([red - 0.6168, blue - 0.4750], -1)
    inverse = np.linalg.inv([[0.02102, -0.01029], [-0.01029, 0.00765]])
    weight = np.exp(-0.5 * np.einsum("abi,ij,abj->ab", away, inverse, away))
    wanted = [float((x * weight).sum() / weight.sum()) for x in (red, blue)]
    assert drawn.mean(0) == pytest.approx(wanted, abs=0.006)
    assert np.corrcoef(drawn.T)[0, 1] < -0.6


def test_both_readings_of_the_shrinking() -> None:
    for shrink in (4, 8):
        assert shrink_factor(shrink, 512, "ratio") == shrink_factor(shrink, 512, "pixels") == shrink
        assert shrink_factor(shrink, 128, "ratio") == shrink
    assert [shrink_factor(4, size, "pixels") for size in (64, 128, 256)] == [1, 1, 2]
    assert [shrink_factor(8, size, "pixels") for size in (64, 128, 256)] == [1, 2, 4]
    face = torch.rand(3, 128, 128, generator=seeded(0))
    factors = [published_camera(face, seeded(0), 1.0, 8, 1500, reading)[1]["factor"] for reading in ("ratio", "pixels")]
    assert factors == [8, 2]
    with pytest.raises(ValueError, match="reading is 'else'; it must be one of ratio, pixels"):
        shrink_factor(4, 128, "else")


def test_the_result_has_eight_bits() -> None:
    lq = published_camera(torch.rand(3, 64, 64, generator=seeded(0)), seeded(0), 1.0, 4, 1500)[0] * 255
    assert torch.allclose(lq, lq.round(), atol=1e-4)
