"""The high band: against SciPy, and what its measures notice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bfr_core import metrics
from bfr_core.files.photos import read_image
from tests.metrics.made_pictures import blurred, leaves, noisy


def test_high_band_is_that_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    image = leaves(1, seed=1)
    theirs = image[0].numpy() - ndimage.gaussian_filter(image[0].numpy(), (0, 1.5, 1.5), mode="nearest", truncate=4)
    assert np.abs(metrics.high_band(image)[0].numpy() - theirs).max() < 1e-5


def test_high_band_measures_know_less_more_and_other_detail():
    hq = leaves(4, seed=2) * 0.5 + 0.25
    energy, correlation = metrics.high_band_energy_ratio, metrics.high_band_correlation
    for gain in (0.5, 1.2):
        restored = 0.5 + gain * (hq.double() - 0.5)
        assert energy(restored, hq).tolist() == pytest.approx([gain**2] * 4)
        assert correlation(restored, hq).tolist() == pytest.approx([1] * 4)
    assert correlation(1 - hq, hq).tolist() == pytest.approx([-1] * 4)
    blur, noise = blurred(hq, 3), noisy(torch.full_like(hq, 0.5), 0.03) - 0.5
    assert energy(blur, hq).max() < 0.1
    assert energy(blur + noise, hq).min() > 0.5  # noise passes for detail in energy alone
    assert (correlation(blur + noise, hq) < correlation(blur, hq)).all()  # and not in correlation


def test_flat_images_do_not_pass_for_detail():
    hq, flat = leaves(1, seed=0), torch.full((1, 3, 64, 64), 0.3)
    assert metrics.high_band_correlation(flat, hq).item() == 0
    assert metrics.high_band_energy_ratio(flat, hq).item() < 1e-20
    assert math.isnan(metrics.high_band_correlation(hq, flat).item())
    assert math.isnan(metrics.high_band_energy_ratio(hq, flat).item())
    assert math.isnan(metrics.high_band_correlation(hq * torch.nan, hq).item())


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 256])
def test_sharpness_tells_clean_faces_from_blurred_and_from_noisy_ones(shared, size):
    files = sorted((shared / "portraits").glob("*.jpg"))[:20]
    clean = torch.stack([F.interpolate(read_image(f)[None, :, :225], (size, size), mode="bicubic")[0] for f in files])
    half = F.interpolate(clean, (size // 3, size // 3), mode="bicubic", antialias=True)
    blurred = F.interpolate(half, (size, size), mode="bicubic")
    noisy = blurred + 0.08 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    scores = [float(metrics.sharpness(images.clamp(0, 1)).median()) for images in (clean, blurred, noisy)]
    assert scores[0] > 1.5 * scores[1], scores
    assert scores[2] < 0.5, scores


def test_a_flat_picture_is_not_sharp():
    assert metrics.sharpness(torch.full((2, 3, 33, 33), 0.5)).tolist() == [0, 0]
