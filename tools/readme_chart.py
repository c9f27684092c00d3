"""Draw the README's chart from the table in docs/results.md: PSNR of base, adapted restorer and controls.

python tools/readme_chart.py            # writes docs/results.svg
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Name in the table -> what it is called in the chart, its colour and its marker. The controls are drawn where they were
# measured.
METHODS = {
    "base": ("base restorer", "#8a8f98", "o"),
    "adapted": ("adapted", "#1d5fc4", "D"),
    "tuned on generic damage": ("tuned on generic damage instead", "#d08a1d", "s"),
}
ALWAYS = ("base", "adapted")
TITLES = {
    "sensor": "sensor noise",
    "halftone": "halftone dots",
    "film_grain": "film grain",
    "camera_x4_iso1500": "camera, shrunk 4x",
    "motion_jpeg": "motion blur, JPEG",
}


class Value(NamedTuple):
    """A mean with the ends of its 95 % interval, in dB."""

    mean: float
    low: float
    high: float


def psnr_of(page: str) -> dict[tuple[str, str], Value]:
    """PSNR by (damage, method), from the rows `| damage: method | mean (low to high) | ...` of a page in Markdown.

    Of tables that have the same damage the first counts: it is the one of the most steps.
    """
    row = re.compile(r"^\| (\w+): ([^|]+) \| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \|", re.MULTILINE)
    found: dict[tuple[str, str], Value] = {}
    for table in re.split(r"\n\s*\n", page):
        known = {kind for kind, _ in found}
        rows = [(kind, name, numbers) for kind, name, *numbers in row.findall(table) if kind not in known]
        found |= {(kind, name): Value(*map(float, numbers)) for kind, name, numbers in rows}
    return found


def draw(values: dict[tuple[str, str], Value], path: Path) -> None:
    """Write the chart to `path`, as SVG. The same values give the same file."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bfr-adapt", "font.size": 12})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
    for number, (name, (title, colour, marker)) in enumerate(METHODS.items()):
        rows = [row for row, kind in enumerate(TITLES) if (kind, name) in values]
        shown = [value for kind in TITLES if (value := values.get((kind, name)))]
        places = [-row + (1 - number) * 0.17 for row in rows]
        errors = [[v.mean - v.low for v in shown], [v.high - v.mean for v in shown]]
        means = [v.mean for v in shown]
        axes.errorbar(means, places, xerr=errors, fmt=marker, color=colour, label=title, markersize=7, capsize=3)
    axes.set_yticks([-row for row in range(len(TITLES))], list(TITLES.values()))
    axes.set_xlabel("PSNR in dB, with 95 % interval; higher is better")
    axes.grid(axis="x", color="#e2e4e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw(psnr_of((DOCS / "results.md").read_text(encoding="utf-8")), DOCS / "results.svg")
