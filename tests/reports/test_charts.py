"""Curves: drawn where their values are, as SVG and as a picture."""

from __future__ import annotations

import math
import re

import pytest
import torch

from bfr_core.reports import html as report
from bfr_core.reports.charts import draw_curve
from bfr_core.reports.html import ReportData


def points_of(text: str, kind: str) -> list[tuple[float, float]]:
    drawn = re.search(rf'<polyline class="{kind}" points="([^"]*)"', text)[1]
    return [(float(x), float(y)) for x, y in (point.split(",") for point in drawn.split())]


def test_curves_are_drawn_where_their_values_are():
    text = report.render_html(ReportData("t", "adopt", "s", loss_curves={"falling": [(0, 4.0), (50, 2.0), (100, 0.0)]}))
    (x0, top), (x1, middle), (x2, bottom) = points_of(text, "mean")
    assert x1 - x0 == pytest.approx(x2 - x1) and middle - top == pytest.approx(bottom - middle) and bottom > top
    assert "last: 0 at step 100" in text


def test_long_noisy_curves_get_their_running_mean_and_few_points():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, generator=draw).tolist()
    text = report.render_html(ReportData("t", "adopt", "s", loss_curves={"noise": list(enumerate(noise))}))
    raw, mean = points_of(text, "raw"), points_of(text, "mean")
    assert len(raw) <= 1001 and len(mean) <= 1001
    spread = [max(y for _, y in line) - min(y for _, y in line) for line in (raw, mean)]
    assert spread[1] < spread[0] / 10
    assert "thick line: mean of 1000 values" in text


@pytest.mark.parametrize(
    "curve", [[(0, float("nan"))], [(0, 1.0)], [(0, 0.0), (1, 0.0)], [(7, 1e-12), (9, float("inf"))]]
)
def test_odd_curves_are_drawn_or_said_to_be_missing(curve):
    text = report.render_html(ReportData("t", "adopt", "s", loss_curves={"odd": curve}))
    assert "nan" not in text and "inf" not in re.sub(r"base64,\S+|aria-\S+", "", text).partition("<main>")[2]
    if not all(math.isfinite(value) for _, value in curve):
        assert f"1 of {len(curve)} points are not finite" in text


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 3.0), (2, 3.0)], [(1, math.nan), (2, 1.0), (9, 2.0)]])
def test_a_curve_of_anything(points: list[tuple[int, float]]) -> None:
    picture = draw_curve(points, "loss \u2013 <b>", 200, 100)
    assert picture.shape == (3, 100, 200) and 0 <= picture.min() < picture.max() <= 1


def test_a_falling_curve_falls() -> None:
    picture = draw_curve([(i, 100.0 - i) for i in range(100)], "")
    line = (picture[2] - picture[0]) > 0.4
    left, right = (line[:, x].nonzero().float().mean() for x in (100, 450))
    assert left < right, "row 0 is on top"
