"""`bfr ablate`: how the sampler's settings change the targets and the tuned restorer, measured against clean copies."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..adaptation.config import AdaptConfig
from ..adaptation.faces import resize_square
from ..adaptation.target_stage import EXAMINED_FACES
from ..adaptation.targets import TargetConfig, make_pseudo_targets, resolved_settings
from ..adaptation.tuning import perceptual_by, perceptual_term
from ..diffusion.prior import Prior
from ..files.ownership import free_place
from ..files.photos import printable, read_image
from ..files.records import fingerprint, read_json, write_json
from ..metrics.intervals import Interval
from ..restorers import Restorer
from ..spread import evenly
from ..training.finetune import finetune
from .evaluate import MEASURES, face_measures, format_interval, match_files, summarise

log = logging.getLogger(__name__)

SHOWN = ("psnr", "ssim", "detail_energy", "detail_correlation")


@dataclass(frozen=True)
class Grid:
    """Values to try for N (factors), K (starts), L (ends) and t_clean (clean_levels); see `TargetConfig`."""

    factors: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    clean_levels: tuple[int | Literal["auto"], ...] = (0,)

    def configs(self, base: TargetConfig) -> Iterator[TargetConfig]:
        """`base` with each combination that makes sense: the constraint must end below the start."""
        for factor, start, end, clean in itertools.product(self.factors, self.starts, self.ends, self.clean_levels):
            if end < start:
                calls = min(base.sampler.calls, start)
                sampler = replace(base.sampler, factor=factor, t_start=start, t_constrain_end=end, calls=calls)
                yield replace(base, sampler=sampler, t_clean=clean)


def ablate(
    lq: Path,
    clean: Path,
    out: Path,
    restorer: Restorer,
    prior: Prior,
    config: AdaptConfig,
    grid: Grid,
    tune: bool = False,
    limit: int = 64,
    callback: Callable[[int, int, None], None] | None = None,
) -> list[dict[str, Any]]:
    """One record per cell of the grid: its settings, and measures (mean, low, high) of the targets against `clean`.

    lq, clean: folders of aligned faces with the same names. tune: every second face is tuned on in every cell,
    and the record has the measures of the tuned restorer on the others, too. limit: the most faces used, evenly spread
    over them all; they are held in memory. Finished cells are kept in out/ablation.json and not made again.
    Raises FileNotFoundError or ValueError in one line.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be 1 face or more")
    pairs, notes = match_files({"damaged": Path(lq), "clean": Path(clean)})
    for note in notes:
        log.info("%s", note)
    chosen = [list(pairs)[i] for i in evenly(len(pairs), limit)]
    chosen = chosen[1::2] + chosen[::2] if tune else chosen  # half of them, whatever a sorted folder begins with
    pairs = {name: pairs[name] for name in chosen}
    half = len(pairs) // 2 if tune else len(pairs)
    if not half:
        raise ValueError(
            f"{printable(lq)}: {len(pairs)} faces are too few to tune on one half and measure on the other"
        )
    stamps = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for paths in pairs.values() for p in paths.values()]
    faces = {
        role: torch.stack([resize_square(read_image(p[role]), restorer.size, p[role]) for p in pairs.values()])
        for role in ("damaged", "clean")
    }
    kept = free_place(Path(out) / "ablation.json")
    cells: dict[str, dict[str, Any]] = read_json(kept, {})
    wanted = list(grid.configs(config.targets))
    if not wanted:
        raise ValueError("no combination is left: every --ends is at or above every --starts")
    results = []
    tuning = [asdict(config.finetune), perceptual_by(config.finetune, prior)] if tune else None
    for step, targets in enumerate(wanted):
        key = fingerprint(stamps, restorer.sha256, prior.identity, asdict(targets), tuning)
        if key not in cells:
            cells[key] = _cell(faces, half, list(pairs), restorer, prior, replace(config, targets=targets), tune)
            write_json(kept, cells)
        results.append(cells[key])
        if callback:
            callback(step + 1, len(wanted), None)
    return results


def _cell(
    faces: dict[str, Tensor],
    half: int,
    names: list[str],
    restorer: Restorer,
    prior: Prior,
    config: AdaptConfig,
    tune: bool,
) -> dict[str, Any]:
    lq, hq = faces["damaged"][:half], faces["clean"][:half]
    targets = resolved_settings(config.targets, lq[evenly(half, EXAMINED_FACES)], restorer, prior)
    size = targets.batch_size
    made = torch.cat(
        [
            make_pseudo_targets(
                lq[i : i + size], names[i : i + size][: half - i], restorer, prior, targets
            ).pseudo_target
            for i in range(0, half, size)
        ]
    )
    sampler = targets.sampler
    record: dict[str, Any] = {
        "factor": sampler.factor,
        "t_start": sampler.t_start,
        "t_constrain_end": sampler.t_constrain_end,
        "t_clean": targets.t_clean,
        "detail": targets.detail,
        "targets": _measured(made, hq),
    }
    if tune:
        term = perceptual_term(config.finetune, prior, restorer.device)
        on_targets = replace(config.finetune, sharp=0.0)  # what is compared is what the targets teach
        tuned, _ = finetune(restorer, list(zip(lq, made, strict=True)), on_targets, perceptual=term)
        rest = faces["damaged"][half:]
        restored = torch.cat([tuned.restore(some).cpu() for some in rest.split(size)])
        record["restorer"] = _measured(restored, faces["clean"][half:])
    return record


def _measured(restored: Tensor, hq: Tensor) -> dict[str, list[float | None]]:
    """Mean and interval of each measure, for JSON: null where undefined, as the interval of one face is."""
    values = face_measures(restored, hq, SHOWN)
    return {key: [x if math.isfinite(x) else None for x in interval] for key, interval in summarise(values).items()}


def as_table(cells: list[dict[str, Any]]) -> str:
    """The cells as plain text, the best by PSNR (of the tuned restorer where there is one) marked with a star."""
    judged = "restorer" if "restorer" in cells[0] else "targets"
    best = max(cells, key=lambda cell: cell[judged]["psnr"][0])
    lines = [["", "N", "K", "L", "clean", *(f"{judged}: {MEASURES[key].title}" for key in SHOWN)]]
    for cell in cells:
        settings = [str(cell[key]) for key in ("factor", "t_start", "t_constrain_end", "t_clean")]
        numbers = ([math.nan if x is None else x for x in cell[judged][key]] for key in SHOWN)
        shown = [
            format_interval(Interval(*kept), MEASURES[key].decimals) for key, kept in zip(SHOWN, numbers, strict=True)
        ]
        lines.append(["*" if cell is best else "", *settings, *shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
