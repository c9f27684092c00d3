"""Curves over steps: laid out once, and drawn as SVG for pages or as a picture for the nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .pages import render, trusted

Points = Sequence[tuple[int, float]]
WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 26  # margins in pixels
MAX_POINTS = 1000
MEAN_SHARE = 20  # a running mean is taken over the number of points divided by this
TITLE = 22  # pixels above a picture's plot
PAPER, QUIET, RULE = (255, 255, 255), (102, 103, 108), (222, 222, 218)
LINES = {"raw": ((168, 190, 226), 1), "mean": ((32, 96, 192), 2)}  # colour and width of each line


@dataclass(frozen=True)
class Curve:
    """What is drawn of some points. lines: "mean", and "raw" where that is a running mean; {} if no point is finite.

    said: what a reader must know beside the picture, such as the last value.
    """

    name: str
    lines: dict[str, list[tuple[int, float]]]
    said: str


@dataclass(frozen=True)
class Plot:
    """Where everything of a curve is drawn, in pixels from the top left.

    left, right: ends of the horizontal rules. x_ticks, y_ticks: positions with their texts. lines: as in `Curve`, each
    thinned to `MAX_POINTS` points and the last one.
    """

    width: int
    height: int
    left: int
    right: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: dict[str, list[tuple[float, float]]]


def curve_of(name: str, points: Points) -> Curve:
    """What is drawn of `points`: a long curve gets its running mean; points that are not finite are only counted."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    said = [] if len(finite) == len(points) else [f"{len(points) - len(finite)} of {len(points)} points are not finite"]
    if not finite:
        return Curve(name, {}, "; ".join(said))
    lines = {"mean": finite}
    window = len(finite) // MEAN_SHARE
    if window >= 3:
        lines = {"raw": finite, "mean": _running_mean(finite, window)}
        said.append(f"thick line: mean of {window} values")
    said.append(f"last: {finite[-1][1]:.4g} at step {finite[-1][0]:,}")
    return Curve(name, lines, "; ".join(said))


def plot_of(curve: Curve, width: int = WIDTH, height: int = HEIGHT, top: int = TOP) -> Plot:
    """The curve on `width` x `height` pixels, its plot from `top` on. It must have lines."""
    every = next(iter(curve.lines.values()))  # the raw values, which reach furthest
    steps, values = [step for step, _ in every], [value for _, value in every]
    (x0, x1), x_ticks = _axis(min(steps), max(steps), whole=True)
    (y0, y1), y_ticks = _axis(min(values), max(values), whole=False)
    right, bottom = width - RIGHT, height - BOTTOM

    def place_x(step: float) -> float:
        return LEFT + (step - x0) / (x1 - x0) * (right - LEFT)

    def place_y(value: float) -> float:
        return bottom - (value - y0) / (y1 - y0) * (bottom - top)

    return Plot(
        width,
        height,
        LEFT,
        right,
        [(place_x(tick), f"{tick:,.0f}") for tick in x_ticks],
        [(place_y(tick), f"{tick:.4g}") for tick in y_ticks],
        {kind: [(place_x(x), place_y(y)) for x, y in _thinned(line)] for kind, line in curve.lines.items()},
    )


def chart(name: str, points: Points) -> str:
    """The curve as a figure of HTML, drawn as SVG."""
    curve = curve_of(name, points)
    return trusted(render("chart.html", curve=curve, plot=plot_of(curve) if curve.lines else None).strip())


def draw_curve(points: Points, title: str, width: int = 512, height: int = 256) -> Tensor:
    """The curve as a picture: (3, height, width) in [0, 1].

    points: (step, value); with none that is finite, only the title is drawn.
    """
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    curve = curve_of(title, points)
    draw.text((8, 5), f"{title}   {curve.said}".encode("latin-1", "replace").decode("latin-1"), QUIET)
    if curve.lines:
        plot = plot_of(curve, width, height, TITLE + TOP)
        for y, text in plot.y_ticks:
            draw.line([(plot.left, y), (plot.right, y)], RULE)
            draw.text((plot.left - 8, y), text, QUIET, anchor="rm")
        for x, text in plot.x_ticks:
            draw.text((x, height - 6), text, QUIET, anchor="mb")
        for kind, line in plot.lines.items():
            colour, thickness = LINES[kind]
            draw.line(line, colour, thickness)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _running_mean(points: Points, window: int) -> list[tuple[int, float]]:
    """Mean of the last `window` values at each step that has so many."""
    means = np.lib.stride_tricks.sliding_window_view([value for _, value in points], window).mean(-1)
    return [(step, float(mean)) for (step, _), mean in zip(points[window - 1 :], means, strict=True)]


def _thinned(points: Points) -> list[tuple[int, float]]:
    """Evenly chosen points, `MAX_POINTS` at most, and the last one."""
    every = math.ceil(len(points) / MAX_POINTS)
    return [*points[:-1:every], points[-1]]


def _axis(low: float, high: float, whole: bool) -> tuple[tuple[float, float], list[float]]:
    """The ends of an axis that holds `low` and `high`, and 3 to 6 round numbers on it."""
    if low == high:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    if whole:
        step = max(step, 1)
        return (low, high), [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    first, last = math.floor(low / step), math.ceil(high / step)
    return (first * step, last * step), [i * step for i in range(first, last + 1)]
