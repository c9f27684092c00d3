"""GMSD, VIF and FSIM: their fixed points and directions."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bfr_core import metrics
from tests.metrics.made_pictures import blurred, leaves, noisy


def test_gmsd_and_vif_have_their_fixed_points_and_directions():
    pytest.importorskip("piq")
    hq = leaves(3, seed=5)
    assert metrics.gmsd(hq, hq).abs().max() < 1e-6
    assert metrics.vif(hq, hq).sub(1).abs().max() < 1e-4
    assert metrics.fsim(hq, hq).sub(1).abs().max() < 1e-5
    for damage in (partial(blurred, sigma=1.0), partial(noisy, sigma=0.05)):
        little = damage(hq)
        much = damage(damage(little))
        assert (metrics.gmsd(much, hq) > metrics.gmsd(little, hq)).all()
        assert (metrics.fsim(much, hq) < metrics.fsim(little, hq)).all()
    assert (metrics.vif(noisy(hq, 0.1), hq) < metrics.vif(noisy(hq, 0.03), hq)).all()
    assert (metrics.vif(noisy(hq, 0.03), hq) < 1).all()


def test_without_piq_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "piq", None)
    for measure in (metrics.vif, metrics.fsim):
        with pytest.raises(ImportError, match="pip install piq"):
            measure(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (47, 64), (64, 47), (33, 35)])
def test_gmsd_agrees_with_piq(height: int, width: int) -> None:
    piq = pytest.importorskip("piq")
    hq = leaves(3, seed=5)[..., :height, :width]
    for lq in (blurred(hq, sigma=1.5), noisy(hq, 0.1)):
        expected = piq.gmsd(lq.double().clamp(0, 1), hq.double(), data_range=1.0, reduction="none")
        assert torch.allclose(metrics.gmsd(lq, hq), expected, rtol=0, atol=1e-7)


def test_gmsd_needs_no_piq_and_says_which_images_are_too_small(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "piq", None)
    hq = leaves(1, seed=5)
    assert metrics.gmsd(blurred(hq, sigma=1.5), hq).item() > 0.05
    with pytest.raises(ValueError, match="too small for GMSD"):
        metrics.gmsd(hq[..., :5], hq[..., :5])
