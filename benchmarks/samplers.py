"""The paper's sampler against the fast one: cost, quality of the targets, quality of the restorer tuned on them.

    python benchmarks/samplers.py --portraits DIR [--damages sensor film_grain] [--seeds 1] [--iterations 1000]

Both draw targets for the same damaged held-out portraits: the paper's sampler with the start, constraint and factor
that suited it best on training portraits, then without the cleaning call; the fast one as the recipe has it; all else
is the recipe for both. It tunes a restorer on each; quality is measured on other held-out portraits. The last line is
the paired difference in PSNR of the two restorers with its 95% interval over faces.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from adaptation import DAMAGES, held_out_faces

from bfr_core import load_prior, load_restorer, metrics
from bfr_core.adaptation.config import SMALL
from bfr_core.adaptation.targets import resolved_settings
from bfr_core.adaptation.tuning import perceptual_term
from bfr_core.diffusion.sampler import SamplerConfig
from bfr_core.studies.benchmark import damaged, drawn_targets, restored_by, tuned
from bfr_core.studies.evaluate import face_measures, format_interval

PAPER = replace(SMALL.targets, sampler=SamplerConfig("paper", t_start=60, t_constrain_end=15, factor=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--damages", nargs="+", default=["sensor", "film_grain"], choices=DAMAGES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=SMALL.finetune.iterations)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    restorer, prior = load_restorer(), load_prior()
    adapt_hq, hq = held_out_faces(args.portraits, restorer.size)
    on_targets = replace(SMALL.finetune, iterations=args.iterations, sharp=0.0)  # they are compared
    scores: dict[str, list[np.ndarray]] = {"paper": [], "fast": []}
    cost: dict[str, float] = {"paper": 0.0, "fast": 0.0}
    for seed in range(args.seeds):
        for kind in args.damages:
            lq, adapt_lq = damaged(hq, kind, seed, "measure"), damaged(adapt_hq, kind, seed, "adapt")
            for sampler in ("paper", "fast"):
                config = replace(PAPER if sampler == "paper" else SMALL.targets, seed=seed)
                config = resolved_settings(config, adapt_lq[::5], restorer, prior)
                started = time.perf_counter()
                targets = drawn_targets(adapt_lq, restorer, prior, config)
                cost[sampler] += time.perf_counter() - started
                made = {k: v.mean().item() for k, v in face_measures(targets, adapt_hq).items()}
                recipe = replace(on_targets, seed=seed)
                term = perceptual_term(recipe, prior, restorer.device)
                restored = restored_by(tuned(restorer, adapt_lq, targets, recipe, term), lq)
                scores[sampler].append(metrics.psnr(restored, hq).numpy())
                print(
                    f"{kind} seed {seed} {sampler}: {config.network_calls} network calls a face; "
                    f"targets {made['psnr']:.2f} dB, detail correlation {made['detail_correlation']:.3f}; "
                    f"tuned restorer {scores[sampler][-1].mean():.2f} dB",
                    flush=True,
                )
    fast, paper = (np.mean(scores[k], axis=0) for k in ("fast", "paper"))
    ratio = cost["paper"] / cost["fast"]
    print(f"seconds: paper {cost['paper']:.0f}, fast {cost['fast']:.0f}; ratio {ratio:.1f} (aim 10)")
    difference = metrics.bootstrap_difference(fast, paper)
    print(f"tuned restorer, fast less paper: {format_interval(difference, 3)} dB (aim: lower end above -0.1)")


if __name__ == "__main__":
    main()
