"""Likeness: like is compared with like, the limits keep their promises, and where nothing can be told it is said."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bfr_core.faces.likeness import (
    CANNOT_TELL,
    MAY_BE,
    OTHER,
    SAME,
    LikenessConfig,
    calibrate,
    distances_to_strangers,
    embedding_under,
    judge,
    like_with_like,
    likeness_distance,
    true_accepts,
)


def draws(count: int, middle: float, spread: float, seed: int = 0) -> Tensor:
    return middle + spread * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- distances


def test_distances_of_known_points():
    people = torch.tensor([[0.0, 0], [3, 4], [6, 8]])
    assert likeness_distance(people, people.flip(0)).tolist() == [10, 0, 10]
    # Row i leaves out the i-th of the others, wherever it lies.
    assert distances_to_strangers(people, people + torch.tensor([0.0, 0])).tolist() == [[5, 10], [5, 5], [10, 5]]
    shifted = distances_to_strangers(people, torch.tensor([[9.0, 9], [0, 0], [3, 4]]))
    assert shifted.tolist() == [[0, 5], [pytest.approx(math.hypot(6, 5)), 0], [pytest.approx(math.hypot(3, 1)), 10]]


def mean_colour(faces: Tensor) -> Tensor:
    return faces.mean((2, 3))


def test_like_is_compared_with_like():
    """A damage that takes away half the light: the clean face is the right answer, doing nothing is not."""
    clean = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def darken(faces: Tensor) -> Tensor:
        return faces / 2

    lq = darken(clean)
    assert like_with_like(lq, clean, darken, mean_colour).abs().max() < 1e-6
    assert like_with_like(lq, lq, darken, mean_colour).min() > 0.2
    assert likeness_distance(mean_colour(lq), mean_colour(clean)).min() > 0.3  # the plain distance has it the wrong way
    larger = torch.nn.functional.interpolate(clean, scale_factor=2)
    assert like_with_like(lq, larger, darken, mean_colour).abs().max() < 1e-6


def test_the_noise_of_one_draw_is_averaged_away():
    """Under a damage that adds a random tint, four samples lie half as far from where the face lies on average."""
    faces, generator = torch.full((500, 3, 2, 2), 0.5), torch.Generator().manual_seed(0)

    def tinted(some: Tensor) -> Tensor:
        return some + 0.1 * torch.randn(len(some), 3, 1, 1, generator=generator)

    one, four = (embedding_under(tinted, faces, mean_colour, draws).sub(0.5).square().mean().sqrt() for draws in (1, 4))
    assert one == pytest.approx(0.1, rel=0.1) and four == pytest.approx(0.05, rel=0.1)
    with pytest.raises(ValueError, match="samples is 0"):
        embedding_under(tinted, faces, mean_colour, 0)


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="4 damaged and 3 restored"):
        like_with_like(torch.rand(4, 3, 8, 8), torch.rand(3, 3, 8, 8), lambda faces: faces, mean_colour)
    with pytest.raises(ValueError, match="of 2 faces 1 were damaged again"):
        like_with_like(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), lambda faces: faces[:1], mean_colour)
    with pytest.raises(ValueError, match="both must be"):
        likeness_distance(torch.rand(2, 3), torch.rand(3, 3))
    with pytest.raises(ValueError, match="both must be"):
        distances_to_strangers(torch.rand(2, 3), torch.rand(3, 3))


# ---------------------------------------------------------------- limits


def test_the_limits_of_a_known_row():
    """99 genuine pairs at 1 ... 99, 99 strangers at 51 ... 149: of a hundred two may lie beyond a limit."""
    found = calibrate(torch.arange(1.0, 100), torch.arange(51.0, 150), LikenessConfig(most_missed=0.5))
    assert found.other == 98 and found.same == 52 and found.tells
    assert found.false_warnings.mean == pytest.approx(1 / 99)  # 99 alone
    assert found.missed.mean == pytest.approx(48 / 99)  # 51 ... 98
    assert found.false_comfort.mean == pytest.approx(2 / 99) and found.comforted.mean == pytest.approx(52 / 99)
    assert found.missed.low < found.missed.mean < found.missed.high
    assert (found.genuine, found.strangers) == (99, 99)
    words = judge([10, 52, 53, 98, 98.5, math.nan], found)
    assert words == [SAME, SAME, MAY_BE, MAY_BE, OTHER, CANNOT_TELL]


def test_where_the_two_are_far_apart_the_gap_between_them_may_be():
    found = calibrate(torch.arange(1.0, 100), torch.arange(201.0, 300))
    assert (found.same, found.other) == (98, 202) and found.tells
    assert judge([98, 150, 203], found) == [SAME, MAY_BE, OTHER]
    assert found.missed.mean <= 2 / 99 and found.false_warnings.mean == 0


def test_the_promised_rates_hold_for_further_pairs():
    """Over many calibrations from 60 pairs each: further genuine ones are warned of, further strangers called the same,
    in no more than 2 % of the cases."""
    warned, comforted, config = [], [], LikenessConfig(most_missed=0.9999)
    for seed in range(200):
        found = calibrate(draws(60, 0.4, 0.1, seed), draws(60, 0.7, 0.1, seed + 10_000), config)
        assert found.tells
        warned += [word == OTHER for word in judge(draws(200, 0.4, 0.1, seed + 20_000), found)]
        comforted += [word == SAME for word in judge(draws(200, 0.7, 0.1, seed + 30_000), found)]
    assert 0.005 < sum(warned) / len(warned) < 0.022 and 0.005 < sum(comforted) / len(comforted) < 0.022


def test_where_strangers_are_as_near_as_the_person_it_cannot_tell():
    found = calibrate(draws(200, 0.5, 0.1), draws(200, 0.6, 0.1, seed=1))
    assert not found.tells and "of strangers are as near" in found.reason
    assert judge([0.0, 0.5, 2.0], found) == [CANNOT_TELL] * 3
    # The same distances are fine for whoever allows that many misses.
    assert calibrate(draws(200, 0.5, 0.1), draws(200, 0.6, 0.1, seed=1), LikenessConfig(most_missed=0.99)).tells


@pytest.mark.parametrize(("genuine", "strangers"), [(48, 500), (500, 48), (1, 1)])
def test_too_few_known_pairs_cannot_promise_anything(genuine, strangers):
    found = calibrate(draws(genuine, 0.2, 0.01), draws(strangers, 0.9, 0.01))
    assert not found.tells and "49 of each are needed" in found.reason
    assert math.isnan(found.same) and math.isnan(found.other)
    assert judge([0.1, 5.0], found) == [CANNOT_TELL] * 2


def test_forty_nine_pairs_are_enough():
    found = calibrate(draws(49, 0.2, 0.01), draws(49, 0.9, 0.01))
    assert found.tells and judge([0.15, 0.5, 0.95], found) == [SAME, MAY_BE, OTHER]


# ---------------------------------------------------------------- faces that say nothing


def test_a_face_that_strangers_are_near_to_says_nothing():
    found = calibrate(draws(100, 0.3, 0.03), draws(100, 0.8, 0.03))
    apart = torch.full((20,), 0.8)
    crowded = torch.cat([apart[:17], torch.full((3,), 0.3)])  # 3 of 20, more than a tenth
    lone = torch.cat([apart[:18], torch.full((2,), 0.3)])
    assert judge([0.3, 0.3, 0.3], found, torch.stack([apart, crowded, lone])) == [SAME, CANNOT_TELL, SAME]
    assert judge([0.9], found, crowded[None]) == [CANNOT_TELL]


def test_what_is_plainly_no_face_says_nothing():
    found = calibrate(draws(100, 0.3, 0.03), draws(100, 0.8, 0.03))
    assert judge([0.3, 0.3], found, readable=[True, False]) == [SAME, CANNOT_TELL]
    assert judge(torch.tensor([0.3, 0.9]), found, readable=torch.tensor([False, True])) == [CANNOT_TELL, OTHER]


def test_wrong_input_is_refused_in_words():
    found = calibrate(draws(100, 0.3, 0.03), draws(100, 0.8, 0.03))
    with pytest.raises(ValueError, match="strangers are"):
        judge([0.3], found, torch.rand(2, 5))
    with pytest.raises(ValueError, match="1 distances and 2 answers"):
        judge([0.3], found, readable=[True, False])
    with pytest.raises(ValueError, match="genuine pairs must be finite"):
        calibrate([], [0.5])
    with pytest.raises(ValueError, match="strangers must be finite"):
        calibrate([0.5], [math.nan])
    with pytest.raises(ValueError, match="error_rate is 0"):
        LikenessConfig(error_rate=0)


# ---------------------------------------------------------------- accepts


def test_true_accepts_of_known_rows():
    found = true_accepts(torch.arange(0.0, 100), torch.arange(50.0, 151), 0.1)
    assert found.limit == 60 and found.share.mean == 0.6
    assert found.share.low < 0.6 < found.share.high
    with pytest.raises(ValueError, match="false_accepts is 1"):
        true_accepts([0.1], [0.9], 1)
