"""KID: computed by hand, unbiased, and sensitive to the damages that it must notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core import metrics
from bfr_core.files.photos import list_images, read_image
from tests.metrics.made_pictures import blurred, leaves, noisy, over_smoothed, screened

WORSE_AND_WORSE = {
    "blurred": (blurred, (0.7, 1.0, 1.5, 2.5)),
    "over-smoothed": (over_smoothed, (0.3, 0.5, 0.75, 1.0)),
    "noisy": (noisy, (0.06, 0.12, 0.2)),
    "screened": (screened, (0.15, 0.3, 0.6)),
}


def test_kid_by_hand():
    """k(x, y) = (x.y / 2 + 1)^3 on two points a set."""
    a, b = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    # within a: 1; within b: 1; between: (2^3 + 2^3 + 2^3 + 0^3) / 4 = 6
    assert metrics.kid(a, b) == pytest.approx(1 + 1 - 12)


def test_kid_is_unbiased():
    draw = torch.Generator().manual_seed(0)
    values = [metrics.kid(*torch.randn(2, 10, 6, generator=draw)) for _ in range(400)]
    interval = metrics.bootstrap_interval(values)
    assert interval.low < 0 < interval.high
    shifted = metrics.kid(torch.randn(200, 6, generator=draw), torch.randn(200, 6, generator=draw) + 0.5)
    assert shifted > 5 * np.std(values) / 20


def test_features_are_the_same_everywhere():
    features = metrics.kid_features(leaves(2, seed=0))
    assert features.shape == (2, 1792)
    again = metrics.kid_features(leaves(2, seed=0)[1:])
    assert (again - features[1:]).abs().max() < 1e-4
    chirp = (0.5 + 0.5 * torch.cos(torch.arange(64.0).square() / 40)).expand(1, 3, 64, 64)
    recorded = torch.tensor([3.0678, 1.7337, 1.4545, 0.9967, 1.2348, 0.8627, 1.0981])
    assert (metrics.kid_features(chirp)[0, ::256] - recorded).abs().max() < 1e-3


@pytest.mark.slow
def test_kid_grows_with_every_damage_and_sees_slight_over_smoothing():
    clean = metrics.kid_features(leaves(40, seed=10))
    others = leaves(40, seed=11)
    assert_separates(clean, others)


@pytest.mark.slow
def test_kid_separates_damaged_faces_from_clean_ones(shared):
    paths = list_images(shared / "faces256")[:100]
    pixels = torch.stack([read_image(path) for path in paths])
    faces = torch.nn.functional.avg_pool2d(pixels, 4)
    assert_separates(metrics.kid_features(faces[::2]), faces[1::2])


def assert_separates(clean: Tensor, others: Tensor) -> None:
    features = metrics.kid_features(others)
    both = torch.cat([clean, features])
    shuffles = [torch.randperm(len(both), generator=torch.Generator().manual_seed(i)) for i in range(20)]
    null = np.std([metrics.kid(both[order[: len(clean)]], both[order[len(clean) :]]) for order in shuffles])
    start = metrics.kid(clean, features)
    assert abs(start) < 5 * null
    for name, (damage, strengths) in WORSE_AND_WORSE.items():
        values = [metrics.kid(clean, metrics.kid_features(damage(others, strength))) for strength in strengths]
        assert all(a < b for a, b in zip([start, *values], values, strict=False)), (name, values)
        assert values[0] > start + 3 * null, (name, values[0] / null)


def test_paired_kid_of_equal_sets_is_zero_and_agrees_with_kid_else():
    hq = leaves(40, seed=10)
    features = metrics.kid_features(hq)
    assert metrics.paired_kid(features, features) == pytest.approx((0, 0, 0), abs=1e-9)
    damaged = metrics.kid_features(noisy(hq, 0.1))
    paired = metrics.paired_kid(damaged, features)
    assert paired.low < paired.mean < paired.high
    unpaired = metrics.kid(damaged[:20], features[20:])
    assert paired.mean == pytest.approx(unpaired, rel=0.25)


def test_kid_refuses_sets_it_cannot_compare():
    with pytest.raises(ValueError, match="at least 2"):
        metrics.kid(torch.zeros(1, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="do not pair up"):
        metrics.paired_kid(torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="are needed"):
        metrics.kid(torch.zeros(2, 4), torch.zeros(3, 5))


def test_many_faces_go_through_the_network_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    faces, together = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    one_by_one = torch.cat([metrics.kid_features(face[None]) for face in faces])
    conv2d = F.conv2d

    def watched(x: Tensor, kernel: Tensor) -> Tensor:
        together.append(len(x))
        return conv2d(x, kernel)

    monkeypatch.setattr(F, "conv2d", watched)
    assert torch.allclose(metrics.kid_features(faces), one_by_one, atol=1e-5) and max(together) <= 16
