"""Which faces of a folder are taken for good ones, and does it help to use them?

    python benchmarks/album.py --portraits DIR [--faces 40] [--training] [--tune 400] [--good 6]

The faces are held-out portraits: clean, stored as JPEG, and under each damage at a quarter, a half and all of its
strength. It prints the share that `bfr adapt --album` takes for good, then recall and precision. --training: on
portraits that the embedded models were trained on, on which the limits were chosen. --tune: instead, adapt to damaged
portraits among which some are clean, with and without the album, and measure on others.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from adaptation import held_out_faces

from bfr_core import load_prior, load_restorer, metrics
from bfr_core.adaptation.config import SMALL
from bfr_core.adaptation.good_faces import AlbumConfig, clarity, is_good
from bfr_core.adaptation.tuning import perceptual_term
from bfr_core.damage.synthetic import stored_as_jpeg
from bfr_core.diffusion.prior import Prior
from bfr_core.faces.align import Face, crop_face
from bfr_core.files.photos import read_image
from bfr_core.restorers import Restorer
from bfr_core.spread import evenly
from bfr_core.studies.benchmark import damaged, drawn_targets, restored_by, settled_for, tuned_under
from bfr_core.studies.evaluate import format_interval

DAMAGES = (
    "sensor",
    "film_grain",
    "halftone",
    "motion_jpeg",
    "blind",
    "shared_online",
    "camera_x4",
    "camera_x8",
    "faded",
)
TONE_ONLY = ("faded",)  # no detail is lost: neither good nor bad
STRENGTHS = (0.25, 0.5, 1.0)
CLEAR = 0.5  # strength from which a damaged face must not be taken for good


def training_faces(portraits: Path, count: int, size: int) -> Tensor:
    """Aligned portraits of `size` pixels that are not held out, evenly over all."""
    held = set((Path(__file__).parents[1] / "bfr_core/embedded/held_out.txt").read_text().split())
    landmarks = json.loads((portraits / "landmarks.json").read_text())
    names = [name for name in sorted(landmarks) if name not in held]
    names = [names[i] for i in evenly(len(names), count)]
    crops = [crop_face(read_image(portraits / n), Face(np.array(landmarks[n]["landmarks"])), size) for n in names]
    return torch.stack(crops).clamp(0, 1)


def taken(faces: Tensor, restorer: Restorer, prior: Prior) -> int:
    found = [one for some in faces.split(16) for one in clarity(some, restorer, prior)]
    return sum(is_good(one, AlbumConfig()) for one in found)


def recognition(faces: Tensor, restorer: Restorer, prior: Prior) -> None:
    """Print who is taken for good."""
    count = len(faces)
    clean = {"clean": faces} | {
        f"JPEG, quality {q}": torch.stack([stored_as_jpeg(face, q) for face in faces]) for q in (95, 90, 80)
    }
    print("| faces | taken for good |\n|---|---|")
    right = 0
    for name, some in clean.items():
        number = taken(some, restorer, prior)
        right += number
        print(f"| {name} | {number} of {count} |", flush=True)
    wrong = shown = 0
    for kind in DAMAGES:
        for strength in STRENGTHS:
            number = taken(damaged(faces, kind, 0, "album", strength), restorer, prior)
            print(f"| {kind} x {strength} | {number} of {count} |", flush=True)
            if strength >= CLEAR and kind not in TONE_ONLY:
                wrong, shown = wrong + number, shown + count
    recall, mistaken = metrics.wilson_interval(right, len(clean) * count), metrics.wilson_interval(wrong, shown)
    print(f"\nrecall, over the clean and the JPEGs: {format_interval(recall, 3)}")
    print(f"share of the damaged, at half strength or more, that is taken for good: {format_interval(mistaken, 4)}")
    for share in (0.5, 0.1):
        found, false = share * recall.mean, (1 - share) * mistaken.mean
        print(f"precision in a folder of which {share:.0%} are good: {found / max(found + false, 1e-9):.3f}")


def gain(portraits: Path, kind: str, folder: int, good: int, steps: int, restorer: Restorer, prior: Prior) -> None:
    """Print what is gained over the base with and without the album."""
    adapt_hq, hq = (some[:folder] for some in held_out_faces(portraits, restorer.size))
    lq, measure_lq = damaged(adapt_hq[good:], kind, 0, "adapt"), damaged(hq, kind, 0, "measure")
    examples = adapt_hq[:good]
    config = replace(SMALL.finetune, iterations=steps)
    term = perceptual_term(config, prior, restorer.device)
    before = restored_by(restorer, measure_lq)
    for name, faces in (("as it is", torch.cat([examples, lq])), ("album", lq)):
        clear, damage = settled_for(faces, restorer, prior, SMALL)
        pairs = list(zip(faces, drawn_targets(faces, restorer, prior, clear), strict=True))
        tuned = tuned_under(damage, restorer, pairs, config, term, examples=examples if name == "album" else None)
        after = restored_by(tuned, measure_lq)
        gains = [
            format_interval(metrics.bootstrap_difference(measure(after, hq), measure(before, hq)), decimals)
            for measure, decimals in ((metrics.psnr, 2), (metrics.high_band_correlation, 3))
        ]
        energy = metrics.high_band_energy_ratio(after, hq).mean()
        print(f"| {kind} | {name} | {' | '.join(gains)} | {energy:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--faces", type=int, default=40)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--tune", type=int, default=0, metavar="STEPS")
    parser.add_argument("--good", type=int, default=6, help="clean faces among those that are adapted to")
    parser.add_argument("--damages", nargs="+", default=["sensor"], choices=DAMAGES, help="with --tune")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    restorer, prior = load_restorer(), load_prior()
    if args.tune:
        print("| damage | | PSNR gain (dB) | detail correlation gain | detail energy |\n|---|---|---|---|---|")
        for kind in args.damages:
            gain(args.portraits, kind, args.faces, args.good, args.tune, restorer, prior)
    elif args.training:
        recognition(training_faces(args.portraits, args.faces, restorer.size), restorer, prior)
    else:
        recognition(held_out_faces(args.portraits, restorer.size)[1][: args.faces], restorer, prior)


if __name__ == "__main__":
    main()
