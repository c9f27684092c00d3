"""Does `--start auto --factor auto` find what a search with clean copies would find?

    python benchmarks/settings.py --portraits DIR [--damages sensor halftone] [--strengths 0.5 1] [--faces 10]

For each damage, every sampler that the automatic search tries is measured against the clean faces; its gain is that
of its targets' PSNR over the base restorer's. It prints the gain of the best sampler, that of the one chosen from the
damaged faces alone, and their ratio (goal 0.95).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from adaptation import held_out_faces

from bfr_core import load_prior, load_restorer
from bfr_core.adaptation.config import SMALL
from bfr_core.adaptation.targets import best_sampler, make_pseudo_targets, resolved_settings, samplers_to_try
from bfr_core.damage.synthetic import DAMAGES
from bfr_core.diffusion.prior import Prior
from bfr_core.metrics.psnr import psnr
from bfr_core.restorers import Restorer
from bfr_core.studies.benchmark import damaged, restored_by

SEARCH = ("t_start", "factor")


def line(kind: str, strength: float, hq: Tensor, restorer: Restorer, prior: Prior) -> str:
    """One row of the table."""
    lq = damaged(hq, kind, 0, "settings", strength)
    config = replace(resolved_settings(SMALL.targets, lq, restorer, prior), search=SEARCH)
    names = [str(i) for i in range(len(lq))]
    base = psnr(restored_by(restorer, lq), hq).mean().item()
    gains = {}
    for sampler in samplers_to_try(config.sampler, SEARCH, prior.size):
        plain = replace(config, search=(), sampler=sampler)
        gains[sampler] = (
            psnr(make_pseudo_targets(lq, names, restorer, prior, plain).pseudo_target, hq).mean().item() - base
        )
    chosen = best_sampler(lq, restorer, prior, config)
    best = max(gains, key=gains.__getitem__)
    cells = [f"{kind} x {strength}", str(config.t_clean)]
    cells += [f"{gains[s]:+.2f} (K {s.t_start}, N {s.factor})" for s in (config.sampler, best, chosen)]
    share = f"{gains[chosen] / gains[best]:.2f}" if gains[best] > 0.05 else "no gain to be had"
    return "| " + " | ".join([*cells, share]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument(
        "--damages",
        nargs="+",
        default=["sensor", "halftone", "film_grain", "motion_jpeg", "camera_x8"],
        choices=DAMAGES,
    )
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--faces", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    restorer, prior = load_restorer(), load_prior()
    hq = held_out_faces(args.portraits, restorer.size)[0][: args.faces]
    print("| damage | noise level | gain of the recipe, dB | best | chosen | share |\n|---|---|---|---|---|---|")
    for kind in args.damages:
        for strength in args.strengths:
            print(line(kind, strength, hq, restorer, prior), flush=True)


if __name__ == "__main__":
    main()
