"""The low band: a difference in it counts, one above it does not."""

from __future__ import annotations

import pytest
import torch

from bfr_core import metrics
from tests.metrics.made_pictures import leaves


def test_low_band_consistency_sees_the_low_band_only():
    lq = leaves(2, seed=4) * 0.8 + 0.1
    assert metrics.low_band_consistency(lq + 0.05, lq, 8).tolist() == pytest.approx([0.05] * 2, abs=1e-3)
    fine = 0.05 * (-1.0) ** torch.arange(64).view(1, 1, 1, 64)
    assert metrics.low_band_consistency(lq + fine, lq, 8).max() < 0.05 / 20
