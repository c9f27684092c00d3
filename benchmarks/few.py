"""How many damaged faces, and how many minutes, does adapting need?

    python benchmarks/few.py --portraits DIR [--damages sensor] [--counts 1 5 20 75] [--iterations 100 300 900 1800]

The embedded restorer is adapted to the first N held-out portraits of a damage and measured on 75 others: with all
steps for each N, and with all faces for each number of steps. It prints the gain over the base in PSNR and detail
correlation with its 95 % interval over faces, what was lost on old damage, and the run's own verdict.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from adaptation import DAMAGES, held_out_faces

from bfr_core import load_prior, load_restorer, metrics
from bfr_core.adaptation.config import SMALL
from bfr_core.adaptation.tuning import judged_on_faces, model_for, perceptual_term
from bfr_core.damage.estimate import FolderDamage
from bfr_core.diffusion.prior import Prior
from bfr_core.restorers import Restorer
from bfr_core.studies.benchmark import damaged, drawn_targets, restored_by, settled_for, tuned_under
from bfr_core.studies.evaluate import format_interval
from bfr_core.training.batches import split


class Folder(NamedTuple):
    """Damaged faces with their targets, and the damage that was estimated over them."""

    lq: Tensor
    targets: Tensor
    damage: FolderDamage | None

    @classmethod
    def of(cls, lq: Tensor, restorer: Restorer, prior: Prior) -> Folder:
        clear, damage = settled_for(lq, restorer, prior, SMALL)
        return cls(lq, drawn_targets(lq, restorer, prior, clear), damage)


def line(name: str, restorer: Restorer, prior: Prior, folder: Folder, steps: int, measured: dict[str, Tensor]) -> str:
    """One row: adapt to this folder, measure on other faces."""
    config = replace(SMALL.finetune, iterations=steps)
    lq, pairs = folder.lq, list(zip(folder.lq, folder.targets, strict=True))
    started = time.perf_counter()
    tuned = tuned_under(folder.damage, restorer, pairs, config, perceptual_term(config, prior, restorer.device))
    minutes = (time.perf_counter() - started) / 60
    held = [pairs[i] for i in split(len(pairs), config)[1]]
    judgement = judged_on_faces(restorer, tuned, held, model_for(folder.damage, pairs) if folder.damage else None)
    hq = measured["hq"]
    before, after = restored_by(restorer, measured["lq"]), restored_by(tuned, measured["lq"])
    gains = [
        format_interval(metrics.bootstrap_difference(measure(after, hq), measure(before, hq)), decimals)
        for measure, decimals in ((metrics.psnr, 2), (metrics.high_band_correlation, 3))
    ]
    old = [metrics.psnr(restored_by(r, measured["blind"]), hq).mean().item() for r in (restorer, tuned)]
    cells = [name, str(len(lq)), str(steps), f"{minutes:.1f}", *gains, f"{old[1] - old[0]:+.2f}", judgement.verdict]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--damages", nargs="+", default=["sensor"], choices=DAMAGES)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 20, 75])
    parser.add_argument("--iterations", type=int, nargs="+", default=[100, 300, 900, 1800])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    restorer, prior = load_restorer(), load_prior()
    adapt_hq, hq = held_out_faces(args.portraits, restorer.size)
    print("| damage | faces | steps | minutes | PSNR gain (dB) | detail correlation gain | old damage (dB) | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    most = max(args.iterations)
    for kind in args.damages:
        lq = damaged(adapt_hq, kind, 0, "adapt")
        measured = {"hq": hq, "lq": damaged(hq, kind, 0, "measure"), "blind": damaged(hq, "blind", 0, "measure")}
        folders = {count: Folder.of(lq[:count], restorer, prior) for count in sorted({*args.counts})}
        runs = [(n, most) for n in args.counts] + [
            (max(args.counts), steps) for steps in args.iterations if steps != most
        ]
        for count, steps in runs:
            print(line(kind, restorer, prior, folders[count], steps, measured), flush=True)


if __name__ == "__main__":
    main()
