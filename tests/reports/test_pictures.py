from __future__ import annotations

import math

import pytest
import torch

from bfr_core.reports.pictures import draw_curve, sheet, side_by_side


def test_pictures_of_all_sizes_stand_side_by_side() -> None:
    row = side_by_side([torch.zeros(3, 8, 8), torch.ones(3, 16, 24)])
    assert row.shape == (3, 16, 40) and row[:, :, :16].max() == 0 and row[:, :, 16:].min() == 1


def test_short_rows_are_filled_with_white() -> None:
    made = sheet([[torch.zeros(3, 4, 4)] * 3, [torch.zeros(3, 8, 8)]])
    assert made.shape == (3, 12, 12) and made[:, 4:, 8:].min() == 1 and made[:, :, :8].max() == 0


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 3.0), (2, 3.0)], [(1, math.nan), (2, 1.0), (9, 2.0)]])
def test_a_curve_of_anything(points: list[tuple[int, float]]) -> None:
    picture = draw_curve(points, "loss \u2013 <b>", 200, 100)
    assert picture.shape == (3, 100, 200) and 0 <= picture.min() < picture.max() <= 1


def test_a_falling_curve_falls() -> None:
    picture = draw_curve([(i, 100.0 - i) for i in range(100)], "")
    line = (picture[2] - picture[0]) > 0.4
    left, right = (line[:, x].nonzero().float().mean() for x in (60, 450))
    assert left < right, "row 0 is on top"
