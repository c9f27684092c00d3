"""FID: of normal sets, whose distance is known."""

from __future__ import annotations

import pytest
import torch

from bfr_core import metrics


def test_fid_of_normal_sets_is_known():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40_000, 2, generator=draw, dtype=torch.float64) for _ in "ab")
    mixed = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    # Means 3 apart on one axis; for commuting covariances the spread is the sum of squared differences of deviations.
    assert metrics.fid(a, b * torch.tensor([2.0, 1.0]) + torch.tensor([3.0, 0.0])) == pytest.approx(9 + 1, rel=0.03)
    assert metrics.fid(a @ mixed, a @ mixed) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"1999 and 40000 faces; FID needs 2000"):
        metrics.fid(a[:1999], b)


def test_statistics_of_different_networks_are_refused():
    a, b = (metrics.statistics_of(torch.rand(5, size)) for size in (2, 3))
    with pytest.raises(ValueError, match="statistics of 2 and of 3 features do not come from one network"):
        metrics.frechet_distance(a, b)
    with pytest.raises(ValueError, match="N of 2 or more"):
        metrics.statistics_of(torch.rand(1, 2))
