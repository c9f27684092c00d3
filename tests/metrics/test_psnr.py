"""PSNR: by hand, against scikit-image, and what a fit of tones and matched colours forgive."""

from __future__ import annotations

import pytest
import torch

from bfr_core import metrics
from tests.metrics.made_pictures import leaves, noisy


def test_psnr_by_hand():
    hq = torch.full((2, 3, 8, 8), 0.5)
    restored = hq.clone()
    restored[0] += 0.1
    assert metrics.psnr(restored, hq).tolist() == pytest.approx([20.0, metrics.PSNR_CAP], abs=1e-5)


def test_psnr_after_affine_fit_forgives_tone_and_nothing_else():
    hq = leaves(3, seed=6) * 0.5 + 0.2
    faded = hq * torch.tensor([0.6, 0.7, 0.8]).view(3, 1, 1) + 0.1
    assert (metrics.psnr_after_affine_fit(faded, hq) > 90).all() and (metrics.psnr(faded, hq) < 27).all()
    rough = noisy(hq, 0.02)
    gained = metrics.psnr_after_affine_fit(rough, hq) - metrics.psnr(rough, hq)
    assert (gained >= 0).all() and (gained < 0.5).all()
    flat = torch.full_like(hq, 0.5)
    assert torch.isfinite(metrics.psnr_after_affine_fit(flat, hq)).all()


def test_values_outside_the_range_count_as_a_file_would_hold_them():
    hq = torch.ones(1, 3, 16, 16)
    assert metrics.psnr(hq + 0.3, hq).item() == metrics.PSNR_CAP


def test_colour_matching_sets_mean_and_deviation_of_each_channel():
    draw = torch.Generator().manual_seed(3)
    hq = 0.3 + 0.4 * torch.rand(2, 3, 24, 24, generator=draw, dtype=torch.float64)
    gain, offset = torch.tensor([0.8, 1.1, 0.9]).view(3, 1, 1), torch.tensor([0.05, -0.02, 0.1]).view(3, 1, 1)
    shifted = hq * gain + offset  # stays inside [0, 1]
    assert torch.allclose(metrics.colour_matched(shifted, hq), hq, atol=1e-9)
    assert (metrics.psnr_matched(shifted, hq) == metrics.PSNR_CAP).all() and (metrics.psnr(shifted, hq) < 30).all()
    assert torch.allclose(metrics.ssim_matched(shifted, hq), torch.ones(2).double())
    noisy = (shifted + 0.05 * torch.randn(shifted.shape, generator=draw)).clamp(0, 1)
    made = metrics.colour_matched(noisy, hq)
    for statistic in (torch.mean, torch.std):
        assert torch.allclose(statistic(made, dim=(2, 3)), statistic(hq, dim=(2, 3)))
    wanted = -10 * torch.log10((made - hq).square().mean((1, 2, 3)))
    assert torch.allclose(metrics.psnr_matched(noisy, hq), wanted)
    flat = torch.full_like(hq, 0.9)
    assert torch.isfinite(metrics.psnr_matched(flat, hq)).all()
