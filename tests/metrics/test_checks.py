"""Pictures that no measure can be taken of are refused by name."""

from __future__ import annotations

import pytest
import torch

from bfr_core import metrics


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim, metrics.high_band_correlation])
def test_shapes_that_do_not_fit_are_refused_by_name(measure):
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 3, 16, 18\)"):
        measure(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 18))
    with pytest.raises(ValueError, match="needed"):
        measure(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))


def test_too_small_images_are_refused():
    tiny = torch.zeros(1, 3, 8, 8)
    for measure in (metrics.ssim, lambda a, _: metrics.kid_features(a)):
        with pytest.raises(ValueError, match="8 x 8 pixels are too small"):
            measure(tiny, tiny)
