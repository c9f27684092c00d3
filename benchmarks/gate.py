"""Do the target checks raise the quality of the targets that are kept, and of the restorer tuned on them?

    python benchmarks/gate.py --portraits DIR [--damages sensor] [--spoiled 15]

75 held-out portraits are damaged, and some of their pseudo targets are spoiled in ways in which targets go wrong. The
checks see only damaged faces and targets; the clean copies judge. It prints how many spoiled and unspoiled targets were
refused, the quality of all and of the kept targets, and that of the restorers tuned on either, on 75 other faces.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from adaptation import DAMAGES, held_out_faces

from bfr_core import load_prior, load_restorer, metrics
from bfr_core.adaptation.config import SMALL
from bfr_core.adaptation.target_checks import check_targets, measurements_of, refusals
from bfr_core.adaptation.targets import resolved_settings
from bfr_core.adaptation.tuning import perceptual_term
from bfr_core.damage.synthetic import DESIGN_SIZE
from bfr_core.faces.landmarks import load_landmark_net
from bfr_core.metrics.detail import high_band
from bfr_core.studies.benchmark import damaged, drawn_targets, restored_by, tuned
from bfr_core.studies.evaluate import format_interval


def pixels(targets: Tensor, of_design: float) -> float:
    """So many pixels of a face 128 wide in pixels of these targets."""
    return of_design * targets.shape[-1] / DESIGN_SIZE


# Each: (targets (B, 3, S, S), index of the face) -> the spoiled one.
WAYS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "another face": lambda targets, i: targets[(i + 7) % len(targets)],
    "another tone": lambda targets, i: (targets[i] * 0.8 + 0.1).clamp(0, 1),
    "a blur": lambda targets, i: targets[i] - high_band(targets[i][None], pixels(targets, 3))[0],
    "moved": lambda targets, i: targets[i].roll((round(pixels(targets, 6)), round(pixels(targets, -5))), (1, 2)),
    "noise": lambda targets, i: (targets[i] + 0.06 * torch.randn(targets[i].shape)).clamp(0, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--damages", nargs="+", default=["sensor"], choices=DAMAGES)
    parser.add_argument("--spoiled", type=int, default=15)
    parser.add_argument("--iterations", type=int, default=SMALL.finetune.iterations)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    restorer, prior, net = load_restorer(), load_prior(), load_landmark_net()
    adapt_hq, hq = held_out_faces(args.portraits, restorer.size)
    config = replace(SMALL.finetune, iterations=args.iterations, sharp=0.0)  # on the targets that are compared
    for kind in args.damages:
        lq, measure_lq = damaged(adapt_hq, kind, 0, "adapt"), damaged(hq, kind, 0, "measure")
        drawn = drawn_targets(lq, restorer, prior, resolved_settings(SMALL.targets, lq[::5], restorer, prior))
        spoiled, targets = list(range(0, 5 * args.spoiled, 5)), drawn.clone()
        ways = {i: list(WAYS)[n % len(WAYS)] for n, i in enumerate(spoiled)}
        for i, way in ways.items():
            targets[i] = WAYS[way](drawn, i)
        reasons = refusals(check_targets(measurements_of(lq, targets, net)), SMALL.gate)
        kept = [i for i, reason in enumerate(reasons) if not reason]
        print(f"\n### {kind}\n")
        for way in WAYS:
            those = [i for i in spoiled if ways[i] == way]
            print(f"- {way}: {sum(bool(reasons[i]) for i in those)} of {len(those)} refused")
        whole = [i for i in range(len(lq)) if i not in ways]
        print(f"- as drawn: {sum(bool(reasons[i]) for i in whole)} of {len(whole)} refused\n")
        print("| | targets: PSNR (dB) | detail correlation | restorer: PSNR (dB) | detail correlation |")
        print("|---|---|---|---|---|")
        measures = ((metrics.psnr, 2), (metrics.high_band_correlation, 3))
        results = {}
        term = perceptual_term(config, prior, restorer.device)
        for name, chosen in (("all", list(range(len(lq)))), ("kept", kept), ("unspoiled", whole)):
            results[name] = restored_by(tuned(restorer, lq[chosen], targets[chosen], config, term), measure_lq)
            pairs = ((targets[chosen], adapt_hq[chosen]), (results[name], hq))
            cells = [f"{measure(*pair).mean():.{n}f}" for pair in pairs for measure, n in measures]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        gain = [metrics.bootstrap_difference(m(results["kept"], hq), m(results["all"], hq)) for m, _ in measures]
        said = [format_interval(g, n) for g, (_, n) in zip(gain, measures, strict=True)]
        print(f"\nrestorer, kept less all: PSNR {said[0]} dB, detail correlation {said[1]}")


if __name__ == "__main__":
    main()
