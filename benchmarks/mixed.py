"""A folder of three damages: one adaptation for all, or one for each group of faces that is found?

    python benchmarks/mixed.py --portraits DIR [--iterations 1800] [--each] [--work DIR]
    python benchmarks/mixed.py --portraits DIR --check 40

The 75 held-out portraits to adapt on are damaged in three ways, 25 each at random; the 75 others, under all three, are
measured. "One for all" is tuned on the 75; "found groups" on each group that is found: a measured face is routed by
itself, and a group that is not judged worth adopting keeps the base; "true groups" on the 25 of each damage, with the
right one for every face. All have the same number of steps in total; --each gives every group all of them. What is
tuned is kept in the work folder: the command can be stopped and goes on. --check: instead, draw so many mixes of
portraits that the embedded models were trained on (the constants were chosen there), and print how well it groups them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from adaptation import held_out_faces
from album import training_faces

from bfr_core import load_prior, load_restorer, metrics
from bfr_core.adaptation.config import SMALL
from bfr_core.adaptation.tuning import judged_on_faces, model_for, perceptual_term
from bfr_core.damage.estimate import FolderDamage
from bfr_core.damage.groups import KNOWN_FACES, DamageGroups, describe, known_descriptions, one_damage, units_of
from bfr_core.diffusion.prior import Prior
from bfr_core.files.records import fingerprint
from bfr_core.files.tensors import load_tensors, save_tensors
from bfr_core.pixels import as_bytes
from bfr_core.randomness import keyed_generator
from bfr_core.restorers import Restorer, save_restorer
from bfr_core.settings import changed
from bfr_core.spread import evenly
from bfr_core.studies.benchmark import damaged, drawn_targets, own_settings, restored_by, settled_for, tuned_under
from bfr_core.studies.evaluate import format_interval
from bfr_core.training.batches import split

DAMAGES = ("sensor", "halftone", "film_grain")
COLUMNS = {
    "PSNR (dB)": (metrics.psnr, 2),
    "Detail correlation": (metrics.high_band_correlation, 3),
    "GMSD": (metrics.gmsd, 4),
}
BASE, ALL, FOUND, TRUE = "base", "one for all", "found groups", "true groups"
ROWS = (BASE, ALL, FOUND, TRUE)
DISTINCT = ("sensor", "halftone", "film_grain", "motion_jpeg", "camera_x4", "camera_x8")
ALIKE = ("motion_jpeg", "blind", "shared_online")  # blur and JPEG: the base knows them, and they need not be told apart
EVERY = tuple(dict.fromkeys(DISTINCT + ALIKE))
FOLDER, ROUTED = 60, 30  # training portraits: of folders, and others that are routed
SIZES = (15, 60)  # faces of one damage


# ---------------------------------------------------------------- the comparison


class Mix(NamedTuple):
    """lq: the faces to adapt to. truth: which damage each has. restored: by the base."""

    lq: Tensor
    truth: Tensor
    restored: Tensor


def make_mix(hq: Tensor, kinds: tuple[str, ...], seed: int, restorer: Restorer) -> Mix:
    order = torch.randperm(len(hq), generator=keyed_generator(seed, "mix"))
    truth = torch.empty(len(hq), dtype=torch.long)
    truth[order] = torch.arange(len(hq)) * len(kinds) // len(hq)
    each = torch.stack([damaged(hq, kind, seed, "adapt") for kind in kinds])
    lq = each[truth, torch.arange(len(hq))]
    return Mix(lq, truth, restored_by(restorer, lq))


def adapted(
    lq: Tensor, steps: int, restorer: Restorer, prior: Prior, config: object, work: Path
) -> tuple[Restorer, str]:
    """The restorer tuned on these faces, and the verdict on it; kept in `work`, and resumed from there."""
    config = changed(config, {"finetune.iterations": steps})
    faces = fingerprint(as_bytes(lq).numpy().tobytes().hex(), restorer.sha256, prior.sha256)
    made_from = fingerprint(faces, own_settings(config))
    name = work / f"{made_from}.safetensors"
    if not name.exists():
        drawn = work / f"targets-{fingerprint(faces, own_settings(config.targets))}.safetensors"
        if not drawn.exists():
            clear, damage = settled_for(lq, restorer, prior, config)
            found = {"damage": json.dumps(damage.as_json())} if damage else {}
            save_tensors(drawn, {"targets": drawn_targets(lq, restorer, prior, clear)}, found)
        tensors, found = load_tensors(drawn)
        damage = FolderDamage.from_json(json.loads(found["damage"])) if "damage" in found else None
        pairs = list(zip(lq, tensors["targets"], strict=True))
        tuned = tuned_under(
            damage, restorer, pairs, config.finetune, perceptual_term(config.finetune, prior, restorer.device),
            checkpoint=name.with_suffix(".ckpt"), fingerprint=made_from,
        )  # fmt: skip
        held = [pairs[i] for i in split(len(pairs), config.finetune)[1]]
        judgement = judged_on_faces(restorer, tuned, held, model_for(damage, pairs) if damage else None)
        save_restorer(name, tuned, {"verdict": judgement.verdict, "verdict_sentence": judgement.sentence})
    tuned = load_restorer(name)
    print(f"{len(lq)} faces, {steps} steps: {tuned.metadata['verdict_sentence']}", flush=True)
    return tuned, tuned.metadata["verdict"]


def compare(args: argparse.Namespace, restorer: Restorer, prior: Prior) -> None:
    """Tune what is not there yet, measure, and print the table."""
    config = changed(SMALL, {"targets.seed": args.seed, "finetune.seed": args.seed})
    adapt_hq, hq = held_out_faces(args.portraits, restorer.size)
    mix = make_mix(adapt_hq, DAMAGES, args.seed, restorer)
    known = mix.restored[evenly(len(mix.restored), KNOWN_FACES)]
    units = units_of(known_descriptions(known, lambda lq: restored_by(restorer, lq)))
    groups = DamageGroups.of(describe(mix.lq, mix.restored), units)
    labels = torch.tensor(groups.route(describe(mix.lq, mix.restored)))
    print(f"{len(groups)} groups found; {purity(labels, mix.truth):.3f} of their faces have the damage of most in it")
    lq = torch.stack([damaged(hq, kind, args.seed, "measure") for kind in DAMAGES])  # (3, 75, 3, S, S)
    base = torch.stack([restored_by(restorer, some) for some in lq])
    routes = torch.tensor([groups.route(describe(*both)) for both in zip(lq, base, strict=True)])

    def tuned_on(which: Tensor, steps: int) -> tuple[Restorer, str]:
        return adapted(mix.lq[which], steps, restorer, prior, config, args.work)

    def by(restorers: list[Restorer], chosen: Tensor) -> Tensor:
        """`base`, but each face by the restorer that `chosen` (3, 75) names; -1 leaves it."""
        result = base.clone()
        for i, one in enumerate(restorers):
            if (chosen == i).any():
                result[chosen == i] = restored_by(one, lq[chosen == i])
        return result

    truth = torch.arange(len(DAMAGES))[:, None].expand(-1, len(hq))
    share = args.iterations if args.each else args.iterations // len(DAMAGES)
    of_all = tuned_on(torch.ones_like(mix.truth, dtype=torch.bool), args.iterations)[0]
    of_true = [tuned_on(mix.truth == i, share)[0] for i in range(len(DAMAGES))]
    of_found = [tuned_on(labels == i, share) for i in range(len(groups))]
    served = torch.tensor([i if verdict == "adopt" else -1 for i, (_, verdict) in enumerate(of_found)] + [-1])
    rows = {
        BASE: base,
        ALL: by([of_all], torch.zeros_like(truth)),
        FOUND: by([one for one, _ in of_found], served[routes]),
        TRUE: by(of_true, truth),
    }
    majority = torch.tensor([int(mix.truth[labels == i].mode().values) for i in range(len(groups))] + [-1])
    print(f"measured faces whose group is the one of their damage: {(majority[routes] == truth).float().mean():.3f}")
    values = {
        row: {
            name: torch.stack([measure(some, hq) for some in faces]).double().numpy()
            for name, (measure, _) in COLUMNS.items()
        }
        for row, faces in rows.items()
    }  # each (3, 75)
    print_table(values)


def print_table(values: dict[str, dict[str, np.ndarray]]) -> None:
    """values: row -> column -> (damages, faces)."""
    print("\n| damage | | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 2) + "|")
    parts = {"all three": slice(None)} | {kind: slice(i, i + 1) for i, kind in enumerate(DAMAGES)}
    for title, part in parts.items():
        of = {row: {name: value[part].mean(0) for name, value in values[row].items()} for row in ROWS}
        for row in ROWS:
            cells = [format_interval(metrics.bootstrap_interval(of[row][n]), d) for n, (_, d) in COLUMNS.items()]
            print(f"| {title} | {row} | {' | '.join(cells)} |")
        for row in (FOUND, TRUE):
            cells = [
                format_interval(metrics.bootstrap_difference(of[row][n], of[ALL][n]), d)
                for n, (_, d) in COLUMNS.items()
            ]
            print(f"| {title} | {row} less {ALL} | {' | '.join(cells)} |")


# ---------------------------------------------------------------- how well groups are found


def purity(labels: Tensor, truth: Tensor) -> float:
    """Of the faces in a group, the share with the damage that most of their group have."""
    right = sum(
        int((truth[labels == i] == truth[labels == i].mode().values).sum()) for i in set(labels.tolist()) - {-1}
    )
    return right / max(1, int((labels >= 0).sum()))


def adjusted_rand(a: Tensor, b: Tensor) -> float:
    """Agreement of two groupings, 1 if they are the same, 0 on average by chance (Hubert and Arabie, 1985)."""
    counts = torch.zeros(int(a.max()) + 2, int(b.max()) + 2, dtype=torch.float64)
    counts.index_put_((a + 1, b + 1), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    pairs, rows, columns, every = (
        float((n * (n - 1) / 2).sum()) for n in (counts, counts.sum(1), counts.sum(0), counts.sum())
    )
    chance, most = rows * columns / every, (rows + columns) / 2
    return 1.0 if most == chance else (pairs - chance) / (most - chance)


def check(args: argparse.Namespace, restorer: Restorer) -> None:
    """Print how well groups of training portraits are found, and how well other faces are routed."""
    hq = training_faces(args.portraits, FOLDER + ROUTED, restorer.size)
    described, known = {}, {}
    for kind in EVERY:
        lq = damaged(hq, kind, args.seed, "check")
        restored = restored_by(restorer, lq)
        described[kind] = describe(lq, restored)
        known[kind] = known_descriptions(restored[:KNOWN_FACES], lambda lq: restored_by(restorer, lq))
        print(f"described: {kind}", flush=True)
    print("| damages drawn from | mixes | adjusted Rand | purity | routing | left to the base |")
    print("|---|---|---|---|---|---|")
    for name, kinds, as_one in (("distinct", DISTINCT, ()), ("all", EVERY, ()), ("all", EVERY, ALIKE)):
        drawn = [random.Random(f"{name} {i}") for i in range(args.check)]
        found = np.array([one_mix(described, known, kinds, as_one, one) for one in drawn])
        title = f"{name}, {', '.join(as_one)} counted as one" if as_one else name
        print(f"| {title} | {args.check} | {' | '.join(f'{value:.3f}' for value in found.mean(0))} |", flush=True)
    drawn = random.Random("one")
    split_up, strangers = 0, []
    for i in range(args.check):
        kind = list(described)[i % len(described)]
        some = drawn.sample(range(FOLDER), drawn.randint(*SIZES))
        groups = DamageGroups.of(described[kind][some], units_of(known[kind][:, : len(some)]))
        split_up += not one_damage(groups)
        strangers += [
            np.mean([route == -1 for route in groups.route(described[other][FOLDER:])])
            for other in described
            if other != kind and not {other, kind} <= set(ALIKE)
        ]
    print(f"\nfolders of one damage taken for more: {split_up} of {args.check}")
    print(f"faces of another damage, routed in a folder of one, that are left to the base: {np.mean(strangers):.3f}")


def one_mix(
    described: dict[str, Tensor],
    known: dict[str, Tensor],
    kinds: tuple[str, ...],
    as_one: tuple[str, ...],
    drawn: random.Random,
) -> list[float]:
    """Adjusted Rand index, purity, share of other faces routed rightly, share of faces in no group, of one mix.

    as_one: damages that count as one.
    """
    kinds = tuple(drawn.sample(kinds, drawn.choice([2, 3, 4])))
    sizes = [drawn.randint(*SIZES) for _ in kinds]
    faces = torch.cat([described[k][drawn.sample(range(FOLDER), n)] for k, n in zip(kinds, sizes, strict=True)])
    which = [
        kinds.index(next(k for k in kinds if k in as_one)) if kind in as_one else i for i, kind in enumerate(kinds)
    ]
    truth = torch.tensor([i for i, n in zip(which, sizes, strict=True) for _ in range(n)])
    shares = [max(1, KNOWN_FACES * n // sum(sizes)) for n in sizes]
    units = units_of(torch.cat([known[k][:, :n] for k, n in zip(kinds, shares, strict=True)], 1))
    groups = DamageGroups.of(faces, units)
    labels = torch.tensor(groups.route(faces))
    majority = [int(truth[labels == i].mode().values) for i in range(len(groups))] + [-1]
    routed = [majority[g] == i for i, k in zip(which, kinds, strict=True) for g in groups.route(described[k][FOLDER:])]
    return [adjusted_rand(labels, truth), purity(labels, truth), np.mean(routed), float((labels < 0).float().mean())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=SMALL.finetune.iterations)
    parser.add_argument("--each", action="store_true", help="all of the steps for every group, not in total")
    parser.add_argument("--check", type=int, default=0, metavar="MIXES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".training/mixed"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    restorer = load_restorer()
    if args.check:
        check(args, restorer)
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        compare(args, restorer, load_prior())


if __name__ == "__main__":
    main()
