"""Does the verdict know, without clean copies, whether adapting helped? Cheap runs, good and harmful, and the truth.

    python benchmarks/verdict.py [--portraits DIR] [--runs 200] [--work DIR]

Each run adapts the embedded restorer to a folder of held-out portraits under one damage, as a user would or in one of
the ways in which it goes wrong, gathers the verdict's evidence from damaged faces alone, and measures the truth on
other portraits. A line a run is kept in the work folder; stopped, the command goes on. In the end the verdict's limits
are chosen on the runs of one half of the damages and ways, and its accuracy is counted on those of the other half.
Without --portraits only that is done, with the runs that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from adaptation import held_out_faces

from bfr_core import load_prior, load_restorer
from bfr_core.adaptation import SMALL
from bfr_core.benchmark import damaged, restored_by, targets_of, tuned
from bfr_core.draws import keyed_generator
from bfr_core.evaluate import face_measures
from bfr_core.faces.landmarks import load_landmark_net
from bfr_core.finetuning import FinetuneConfig
from bfr_core.metrics import wilson_interval
from bfr_core.pseudo_targets import settled
from bfr_core.verdict import Agreement, Appearance, Cues, Limits, decide, gather, load_usual, look_at

DAMAGES = ("sensor", "halftone", "film_grain", "motion_jpeg", "camera_x4", "shared_online", "blind_twice", "video")
TRUTH = ("psnr", "detail_correlation", "landmarks", "gmsd")
QUICK = replace(SMALL.finetune, iterations=200, held_out=0.0)
FOLDER = 48  # faces
JUDGED = 12  # faces of the folder that are kept from the tuning
MEASURED = 40


class Run(NamedTuple):
    """damage of the folder, what is done with it, strength of the damage, seed."""

    damage: str
    way: str
    strength: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.damage} {self.way} {self.strength} {self.seed}"


class Case(NamedTuple):
    """What a way makes of a folder: pairs, of which the first `JUDGED` are not tuned on, and how it tunes."""

    lq: Tensor
    targets: Tensor
    config: FinetuneConfig


class Lab:
    """The folder's faces under one damage, the networks, and the pseudo targets that a right adaptation would use."""

    def __init__(self, portraits: Path) -> None:
        adapt_hq, hq = held_out_faces(portraits)
        self.adapt_hq, self.hq = adapt_hq[:FOLDER], hq[:MEASURED]
        self.restorer, self.prior, self.net = load_restorer(), load_prior(), load_landmark_net()
        self.usual = load_usual()

    def folder(self, run: Run, strength: float | None = None, damage: str = "") -> Tensor:
        strength = run.strength if strength is None else strength
        return damaged(self.adapt_hq, damage or run.damage, run.seed, f"folder {strength}", strength)

    def targets(self, lq: Tensor, seed: int) -> Tensor:
        config = settled(replace(SMALL.targets, seed=seed), lq[:8], self.restorer, self.prior)
        return targets_of(lq, self.restorer, self.prior, config)


# ---------------------------------------------------------------- ways to adapt, right and wrong


def right(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets, QUICK)


def few(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq[: JUDGED + 12], targets[: JUDGED + 12], QUICK)


def three(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq[: JUDGED + 3], targets[: JUDGED + 3], replace(QUICK, iterations=300))


def too_fast(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets, replace(QUICK, lr=8e-3, anchor=0.0))


def no_anchor(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets, replace(QUICK, lr=2e-3, anchor=0.0, texture=0.0))


def blurred(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    from bfr_core.metrics import high_band

    soft = targets - high_band(targets, 1.0 + run.seed % 3)
    return Case(lq, soft, QUICK)


def noisy_targets(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    noise = torch.randn(targets.shape, generator=keyed_generator(run.seed, "noisy targets"))
    return Case(lq, (targets + 0.05 * noise).clamp(0, 1), replace(QUICK, lr=1e-3))


def mixed_up(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets.roll(1 + run.seed % 3, 0), QUICK)


def shifted(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets.roll(2, -1), QUICK)


def other_damage(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    other = DAMAGES[(DAMAGES.index(run.damage) + 3) % len(DAMAGES)]
    unlike = lab.folder(run, damage=other)[JUDGED:]
    found = lab.targets(unlike, run.seed)
    tuned_on = torch.cat([lq[:JUDGED], unlike]), torch.cat([targets[:JUDGED], found])
    return Case(*tuned_on, replace(QUICK, anchor=0.0))


def wrong_prior(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    """Faces upside down to the prior: what it makes of them it knows nothing of."""
    config = replace(SMALL.targets, seed=run.seed)
    config = replace(config, sampler=replace(config.sampler, t_start=100, calls=6))
    flipped = targets_of(lq.flip(-2), lab.restorer, lab.prior, config).flip(-2)
    return Case(lq, flipped, QUICK)


WAYS: dict[str, Callable[[Lab, Tensor, Tensor, Run], Case]] = {
    "right": right,
    "few": few,
    "three": three,
    "too fast": too_fast,
    "no anchor": no_anchor,
    "blurred targets": blurred,
    "noisy targets": noisy_targets,
    "mixed up": mixed_up,
    "shifted targets": shifted,
    "other damage": other_damage,
    "wrong prior": wrong_prior,
}


def plan() -> Iterator[Run]:
    """Runs in an order of which any beginning is a fair mixture: every second one is right."""
    wrong = [way for way in WAYS if way != "right"]
    number = 0
    while True:
        for damage in DAMAGES:
            seed = number // len(DAMAGES)
            strength = (1.0, 0.15, 0.5, 1.5)[seed % 4]
            yield Run(damage, "right", strength, seed)
            yield Run(damage, wrong[(number + seed) % len(wrong)], strength, seed)
            number += 1


def numbers(values: Any) -> Any:
    """Named tuples of tensors as JSON: per face, rounded."""
    if isinstance(values, Tensor):
        return [round(v, 5) for v in values.tolist()]
    return {name: numbers(value) for name, value in values._asdict().items()}


def run_one(lab: Lab, run: Run, lq: Tensor, targets: Tensor) -> dict:
    """Evidence and truth of one run, ready for JSON."""
    started = time.monotonic()
    case = WAYS[run.way](lab, lq, targets, run)
    judged = lq[:JUDGED], case.targets[:JUDGED]
    config = replace(case.config, seed=run.seed)
    adapted = tuned(lab.restorer, case.lq[JUDGED:], case.targets[JUDGED:], config)
    measured = damaged(lab.hq, run.damage, run.seed, "measure", run.strength)
    evidence: dict[str, Any] = {"targets": numbers(look_at(judged[1], judged[0], lab.usual, lab.net))}
    truth = {}
    for who, restorer in (("base", lab.restorer), ("tuned", adapted)):
        restore = partial(restored_by, restorer)
        cues: Cues = gather(restore, *judged, lab.usual, lab.net)
        evidence[who] = numbers(cues)
        values = face_measures(restore(measured), lab.hq, TRUTH)
        truth[who] = {name: numbers(values[name]) for name in TRUTH}
    seconds = round(time.monotonic() - started, 1)
    return {"run": run._asdict(), "evidence": evidence, "truth": truth, "seconds": seconds}


# ---------------------------------------------------------------- how often the verdict is right

LEAST = {"psnr": 0.1, "detail_correlation": 0.01, "landmarks": 0.5}  # below these, a difference is a tie
WRONG = [way for way in WAYS if way != "right"]
TUNED_ON = (set(DAMAGES[::2]), {"right", "few", *WRONG[1::2]})  # damages, ways; the verdict is tested on the others


def truth_of(record: dict) -> str:
    """ "good", "harm" or "tie", by fidelity, detail and identity together; only clean copies can tell."""
    tuned_, base = (record["truth"][who] for who in ("tuned", "base"))
    gain = {k: np.nanmean(tuned_[k]) - np.nanmean(base[k]) for k in LEAST}
    gain["landmarks"] = -gain["landmarks"]
    if any(gain[k] < -least for k, least in LEAST.items()):
        return "harm"
    return "good" if gain["psnr"] > LEAST["psnr"] or gain["detail_correlation"] > LEAST["detail_correlation"] else "tie"


def cues_of(values: dict) -> Cues:
    parts = {"looks": Appearance, "teacher": Agreement, "transfer": Agreement}
    return Cues(**{name: kind(**_tensors(values[name])) for name, kind in parts.items()})


def _tensors(values: dict) -> dict[str, Tensor]:
    return {name: torch.tensor(numbers) for name, numbers in values.items()}


def judged(record: dict, limits: Limits) -> str:
    evidence = record["evidence"]
    targets = Appearance(**_tensors(evidence["targets"]))
    return decide(cues_of(evidence["base"]), cues_of(evidence["tuned"]), targets, limits).verdict


def rates(records: list[dict], limits: Limits) -> dict[str, tuple[int, int]]:
    """(right, all) among runs that truly helped and that truly harmed; "cannot tell" does not adopt."""
    found = {"good": [0, 0], "harm": [0, 0]}
    for record in records:
        truth = truth_of(record)
        if truth in found:
            found[truth][0] += (judged(record, limits) == "adopt") == (truth == "good")
            found[truth][1] += 1
    return {name: (right, total) for name, (right, total) in found.items()}


def balanced(found: dict[str, tuple[int, int]]) -> float:
    return float(np.mean([right / total for right, total in found.values() if total]))


def accuracy(records: list[dict]) -> str:
    """Limits chosen on one half of damages and ways, the verdict counted on the other half."""
    damages, ways = TUNED_ON
    tune_on = [r for r in records if r["run"]["damage"] in damages and r["run"]["way"] in ways]
    test_on = [r for r in records if r["run"]["damage"] not in damages and r["run"]["way"] not in ways - {"right"}]
    grid = [
        Limits(*values)
        for values in itertools.product((20.0, 24.0, 28.0), (0.06, 0.1, 0.2), (0.0, 0.1, 0.3, 1.0), (0.15, 0.3, 0.5))
    ]
    # No harmful adoption first, then accuracy.
    best = max(grid, key=lambda x: (rates(tune_on, x)["harm"][0], balanced(rates(tune_on, x))))
    lines = [f"limits chosen: {best}"]
    for name, some in (("chosen on", tune_on), ("tested on", test_on), ("all", records)):
        found, truths = rates(some, best), [truth_of(r) for r in some]
        lines.append(
            f"{name} {len(some)} runs ({', '.join(f'{truths.count(t)} {t}' for t in ('good', 'harm', 'tie'))}): "
            f"balanced accuracy {balanced(found):.3f} (always adopt or always keep: 0.500)"
        )
        for truth, (right, total) in found.items():
            if total:
                share = wilson_interval(right, total)
                lines.append(f"  {truth}: {right} of {total} right, {share.low:.2f} to {share.high:.2f}")
    lines.append(
        f"with the shipped limits, tested on: {balanced(rates(test_on, Limits())):.3f} {rates(test_on, Limits())}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path(".training/verdict"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "runs.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not args.portraits:
        print(accuracy(known))
        return
    torch.set_num_threads(args.threads)
    done = {Run(**record["run"]).name for record in known}
    lab = Lab(args.portraits)
    folder: tuple[Any, ...] = ()
    for _, run in zip(range(args.runs), plan(), strict=False):
        if run.name in done:
            continue
        same = (run.damage, run.strength, run.seed)
        if not folder or folder[0] != same:  # two runs in a row share a folder and its right targets
            lq = lab.folder(run)
            folder = (same, lq, lab.targets(lq, run.seed))
        record = run_one(lab, run, *folder[1:])
        known.append(record)
        with path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        gain = {k: torch.tensor(record["truth"]["tuned"][k]) - torch.tensor(record["truth"]["base"][k]) for k in TRUTH}
        shown = {k: round(v.nanmean().item(), 3) for k, v in gain.items()}
        print(run.name, f"{record['seconds']} s", truth_of(record), shown, flush=True)
    print(accuracy(known))


if __name__ == "__main__":
    main()
