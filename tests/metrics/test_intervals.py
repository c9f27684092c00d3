"""Intervals: how often they hold the mean, and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bfr_core import metrics


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        _, low, high = metrics.bootstrap_interval(draw.normal(3, 1, 60), samples=400)
        hits += low <= 3 <= high
    assert 0.89 <= hits / 200 <= 0.98


def test_bootstrap_is_repeatable_and_narrows_with_faces_and_level():
    values = np.random.default_rng(1).normal(size=50)
    full = metrics.bootstrap_interval(values)
    assert full == metrics.bootstrap_interval(torch.from_numpy(values))
    assert full.mean == pytest.approx(values.mean())
    assert full != metrics.bootstrap_interval(values, seed=1)
    narrow = metrics.bootstrap_interval(values, level=0.5)
    assert full.low < narrow.low < narrow.high < full.high


def test_pairing_takes_away_what_the_faces_have_in_common():
    faces = np.random.default_rng(2).normal(25, 4, 60)
    better = faces + np.random.default_rng(3).normal(0.3, 0.2, 60)
    difference = metrics.bootstrap_difference(better, faces)
    assert 0.2 < difference.low < difference.mean < difference.high < 0.4
    assert metrics.bootstrap_interval(better).low < faces.mean()  # unpaired, the gain drowns in the faces' spread


def test_one_face_has_a_mean_and_no_interval():
    mean, low, high = metrics.bootstrap_interval([2.5])
    assert mean == 2.5 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize(
    ("values", "message"), [([], "one number per face"), ([[1.0]], "one number per face"), ([1.0, math.nan], "1 of 2")]
)
def test_values_without_a_mean_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval(values)
    with pytest.raises(ValueError, match="pair up"):
        metrics.bootstrap_difference([1.0], [1.0, 2.0])


def test_student_interval_is_that_of_a_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for count in (2, 3, 12, 31, 200):
        a, b = draw.normal(1, 1, count), draw.normal(0, 1, count)
        found = metrics.student_difference(a.tolist(), torch.from_numpy(b))
        expected = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert found == pytest.approx(((a - b).mean(), expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_student_interval_of_one_face_has_no_ends_and_of_unequal_numbers_is_refused():
    found = metrics.student_difference([2.0], [1.5])
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    for a, b in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="pair up"):
            metrics.student_difference(a, b)


def test_welch_interval_is_that_of_an_unpaired_t_test():
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for count, other in ((2, 3), (12, 16), (200, 31)):
        a, b = draw.normal(1, 1, count), draw.normal(0, 3, other)
        found = metrics.welch_difference(a.tolist(), torch.from_numpy(b))
        expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        assert found == pytest.approx((a.mean() - b.mean(), expected.low, expected.high), rel=1e-9, abs=1e-12)
    assert metrics.welch_difference([1.0, 1.0], [0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="two numbers"):
        metrics.welch_difference([1.0], [1.0, 2.0])


def test_wilson_interval_by_hand():
    found = metrics.wilson_interval(8, 10)  # 0.4902 and 0.9433 in Newcombe's examples of the score interval
    assert (
        found.mean == 0.8
        and found.low == pytest.approx(0.4902, abs=1e-4)
        and found.high == pytest.approx(0.9433, abs=1e-4)
    )
    with pytest.raises(ValueError):
        metrics.wilson_interval(1, 0)
