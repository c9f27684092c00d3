"""The paper's own sets: the tables of benchmarks/README.md, from the cells that `bfr bench paper` keeps.

    bfr bench paper --hq DIR --out build/paper --iterations 200 --faces 150 --groups benchmarks/portraits_by_sex.csv
    python benchmarks/paper_sets.py --cells build/paper/cells

The first command makes the sets and runs every method, for hours on a CPU, and goes on where it was stopped. DIR holds
the 150 portraits that no embedded model has seen (`bfr_core/embedded/held_out.txt`). Without --cells the second prints
the tables of what was measured last.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core import metrics
from bfr_core.damage.camera import published_kind
from bfr_core.studies.benchmark import GENERIC, ROWS
from bfr_core.studies.evaluate import MEASURES, format_interval
from bfr_core.studies.paper_table import PUBLISHED_ROW, SETS, SHORT

KEPT = Path(__file__).resolve().parent / "results" / "paper"
COLUMNS = ("psnr", "psnr_matched", "ssim", "gmsd", "vif", "feature_distance", "likeness_distance", "landmarks",
           "detail_energy", "detail_correlation")  # fmt: skip
COMPARED = ("psnr", "gmsd", "vif", "detail_correlation", "likeness_distance", "landmarks")
TITLES = SHORT | {"psnr": "PSNR (dB)", "psnr_matched": "matched", "gmsd": "GMSD", "vif": "VIF"}
Rows = dict[str, dict[str, Any]]


def kept_sets(cells: Path) -> dict[str, Rows]:
    """The rows of each set that was measured: by its name, then by method."""
    files = {name: cells / f"{published_kind(*kind, 'ratio')}.json" for name, kind in SETS.items()}
    return {name: json.loads(file.read_text())["rows"] for name, file in files.items() if file.exists()}


def tables(sets: dict[str, Rows]) -> str:
    """Markdown: methods of each set by measures, then what adapting gained."""
    heads = [*(TITLES[column] for column in COLUMNS), "KID"]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, rows in sets.items():
        for row in (row for row in (*ROWS, PUBLISHED_ROW) if row in rows):
            lines.append(f"| {name}: {row} | {' | '.join(_shown(rows[row]))} |")
    gains = [_gains(name, rows) for name, rows in sets.items() if {"base", "adapted", "oracle", GENERIC} <= set(rows)]
    return "\n".join([*lines, "", *(line for some in gains for line in some)])


def _shown(record: dict[str, Any]) -> list[str]:
    cells = []
    for column in COLUMNS:
        interval, decimals = metrics.bootstrap_interval(_values(record, column)), MEASURES[column].decimals
        cells.append(format_interval(interval, decimals) if column == "psnr" else f"{interval.mean:.{decimals}f}")
    return [*cells, f"{record['kid'][0]:.3f}"]


def _gains(name: str, rows: Rows) -> list[str]:
    """Shares of the oracle's gain, differences to base and control with intervals, and what old damage lost."""

    def share(of: dict[str, float]) -> str:
        return f"{(of['adapted'] - of['base']) / (of['oracle'] - of['base']):.0%}"

    three = ("base", "adapted", "oracle")
    psnr = {row: float(np.mean(_values(rows[row], "psnr"))) for row in three}
    kid = {row: rows[row]["kid"][0] for row in three}
    lines = [f"- {name}: {share(psnr)} of the oracle's gain in PSNR, {share(kid)} of that in KID"]
    for other in ("base", GENERIC):
        parts = []
        for column in COMPARED:
            d = metrics.bootstrap_difference(_values(rows["adapted"], column), _values(rows[other], column))
            parts.append(f"{TITLES[column]} {format_interval(d, MEASURES[column].decimals)}")
        lines.append(f"- {name}, adapted less {other}: {', '.join(parts)}")
    after, before = rows["adapted"]["old damage"][1], rows["adapted"]["old damage"][0]
    return [*lines, f"- {name}, on ordinary damage: {np.mean(np.subtract(after, before)):+.2f} dB"]


def _values(record: dict[str, Any], column: str) -> np.ndarray:
    return np.array(record["faces"][column], np.float64)  # null becomes NaN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, default=KEPT, help="folder of what is kept of each set")
    sets = kept_sets(parser.parse_args().cells)
    if not sets:
        parser.error("--cells: there is none of the paper's sets")
    print(tables(sets))


if __name__ == "__main__":
    main()
