"""SSIM (and PSNR): against scikit-image."""

from __future__ import annotations

import pytest
import torch

from bfr_core import metrics
from tests.metrics.made_pictures import blurred, leaves, noisy


@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_ssim_and_psnr_are_those_of_scikit_image(size):
    reference = pytest.importorskip("skimage.metrics")
    hq = leaves(3, seed=0)[..., : size[0], : size[1]]
    restored = noisy(blurred(hq, 1.2), 0.05)
    ours, our_psnr = metrics.ssim(restored, hq), metrics.psnr(restored, hq)
    for i in range(3):
        a, b = (x[i].permute(1, 2, 0).double().numpy() for x in (restored, hq))
        theirs = reference.structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours[i].item() == pytest.approx(theirs, abs=1e-6)
        assert our_psnr[i].item() == pytest.approx(reference.peak_signal_noise_ratio(b, a, data_range=1), abs=1e-6)


def test_ssim_is_that_of_piq_without_its_shrinking():
    piq = pytest.importorskip("piq")
    hq = leaves(3, seed=0).double()
    restored = noisy(blurred(hq, 1.2), 0.05)
    theirs = piq.ssim(restored, hq, data_range=1.0, reduction="none", downsample=False)
    assert metrics.ssim(restored, hq).tolist() == pytest.approx(theirs.flatten().tolist(), abs=1e-12)


def test_colour_matched_ssim_is_scikit_images():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    draw = torch.Generator().manual_seed(4)
    hq, restored = torch.rand(2, 1, 3, 32, 32, generator=draw, dtype=torch.float64)
    made = metrics.colour_matched(restored, hq)[0].permute(1, 2, 0).numpy()
    wanted = structural_similarity(
        made, hq[0].permute(1, 2, 0).numpy(), data_range=1.0, channel_axis=-1, gaussian_weights=True,
        use_sample_covariance=False,
    )  # fmt: skip
    assert metrics.ssim_matched(restored, hq).item() == pytest.approx(wanted, abs=1e-6)
