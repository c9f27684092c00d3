"""Does the verdict know, without clean copies, whether adapting helped? Cheap runs, good and harmful, and the truth.

    python benchmarks/verdict.py [--portraits DIR] [--series blur] [--folders 37] [--part 0/2] [--work DIR]

Each run adapts the embedded restorer to a folder of held-out portraits under one damage, as a user would or in one of
the ways in which it goes wrong, gathers the verdict's evidence from damaged faces alone, and measures the truth on
other portraits. A line a run and the tuned restorers are kept in the work folder; stopped, the command goes on; parts
may run side by side. Without its lines (runs.jsonl) evidence is gathered anew, and nothing is tuned again.
In the end every run of the first folders is judged with limits that were chosen on runs of other damages and other ways
of going wrong; those of further folders, made when the verdict had been finished, with the limits in use. Without
--portraits only that is done, with the runs that are there.
The series "first", kept in results/verdict, is of version 0.1: its "realism" is minus the mean distance of each face
from the mean of clean ones, not the measure of now; it decides none of the verdicts by the limits in use.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from adaptation import held_out_faces

from bfr_core import load_prior, load_restorer
from bfr_core.adaptation.config import SMALL, with_brought_targets
from bfr_core.adaptation.same_person import likeness_vetoes
from bfr_core.adaptation.targets import TargetConfig
from bfr_core.adaptation.tuning import model_for, perceptual_term, sharp_faces
from bfr_core.adaptation.verdict import (
    Agreement,
    Appearance,
    Belief,
    Cues,
    Gains,
    Judgement,
    KnownAnswers,
    Limits,
    appearance_of,
    as_photos_are_restored,
    decide,
    gather,
    load_face_statistics,
)
from bfr_core.damage.estimate import FolderDamage
from bfr_core.device import choose_device
from bfr_core.faces.landmarks import load_landmark_net
from bfr_core.faces.likeness import likeness_distance
from bfr_core.faces.recognise import embed_faces
from bfr_core.metrics.intervals import wilson_interval
from bfr_core.randomness import keyed_generator
from bfr_core.restoration.same_person import FaceLikeness, LikenessMeter
from bfr_core.restorers import save_restorer
from bfr_core.studies.benchmark import damaged, drawn_targets, restored_by, settled_for
from bfr_core.studies.evaluate import face_measures
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.finetune import finetune

FIRST = ("sensor", "halftone", "film_grain", "motion_jpeg", "camera_x4", "shared_online", "blind_twice", "video")
TRUTH = ("psnr", "ssim", "gmsd", "detail_correlation", "detail_energy", "landmarks")
QUICK = replace(SMALL.finetune, iterations=100, held_out=0.0)
FOLDER = 48  # faces
JUDGED = 12  # faces of the folder that are kept from the tuning
MEASURED = 40
BROUGHT = replace(with_brought_targets(SMALL).finetune, iterations=100, held_out=0.0)  # half of the answers are targets


class Series(NamedTuple):
    """Folders of these damages in turn, each round with the next strength; the verdict was developed on the first."""

    damages: tuple[str, ...]
    strengths: tuple[float, ...]
    developed_on: int

    def helped_to_develop(self, run: Run) -> bool:
        """Whether a run is of the first folders, whatever was done with them."""
        return run.seed * len(self.damages) + self.damages.index(run.damage) < self.developed_on

    def other_than(self, damage: str, places: int) -> str:
        """The damage so many places further."""
        return self.damages[(self.damages.index(damage) + places) % len(self.damages)]


SERIES = {
    "first": Series(FIRST, (1.0, 0.15, 0.5, 1.5, 0.0), 50),
    "blur": Series(("camera_x4_iso1500", "motion_jpeg", "soft_focus", "heavy_jpeg"), (1.0, 0.5, 1.5, 0.15, 1.0), 25),
}


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
    """What a way of adapting makes of a folder: pairs, of which the first `JUDGED` are held out, and how it tunes.

    seen: the faces over which the folder's damage is estimated; those of the pairs if it is None.
    """

    lq: Tensor
    targets: Tensor
    config: FinetuneConfig
    seen: Tensor | None = None


class Lab:
    """The folder's faces under one damage, the networks, and the pseudo targets that a right adaptation would use."""

    def __init__(self, portraits: Path, device: torch.device, series: Series) -> None:
        self.series = series
        self.restorer, self.prior = load_restorer().to(device), load_prior().to(device)
        self.net = load_landmark_net()
        adapt_hq, hq = held_out_faces(portraits, self.restorer.size)
        self.adapt_hq, self.hq = adapt_hq[:FOLDER], hq[:MEASURED]
        self.statistics, self.meter = load_face_statistics(self.restorer.size), LikenessMeter()
        self.people = embed_faces(self.meter.net, self.hq)
        self.found: tuple[Tensor, TargetConfig, FolderDamage] | None = None

    def folder(self, run: Run, damage: str = "") -> Tensor:
        return damaged(self.adapt_hq, damage or run.damage, run.seed, f"folder {run.strength}", run.strength)

    def targets(self, lq: Tensor, seed: int) -> Tensor:
        config = replace(self.settled(lq)[0], seed=seed)
        return drawn_targets(lq, self.restorer, self.prior, config)

    def settled(self, lq: Tensor) -> tuple[TargetConfig, FolderDamage]:
        """Settings and damage of the faces, as of a user's folder; those of the last faces are remembered."""
        if not (self.found and torch.equal(self.found[0], lq)):
            config, damage = settled_for(lq, self.restorer, self.prior, SMALL)
            assert damage, "the recipe needs it"
            self.found = lq, config, damage
        return self.found[1:]


# ---------------------------------------------------------------- ways to adapt, right and wrong


def right(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets, QUICK)


def few(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq[: JUDGED + 12], targets[: JUDGED + 12], QUICK)


def three(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq[: JUDGED + 3], targets[: JUDGED + 3], replace(QUICK, iterations=150))


def too_fast(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets, replace(QUICK, lr=2e-2, anchor=0.0))


def no_anchor(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets, replace(QUICK, lr=4e-3, anchor=0.0, texture=0.0))


def blurred(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    from bfr_core.metrics.detail import high_band

    soft = targets - high_band(targets, 1.0 + run.seed % 3)
    return Case(lq, soft, BROUGHT)


def noisy_targets(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    noise = torch.randn(targets.shape, generator=keyed_generator(run.seed, "noisy targets"))
    return Case(lq, (targets + 0.05 * noise).clamp(0, 1), replace(BROUGHT, lr=1e-3))


def mixed_up(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets.roll(1 + run.seed % 3, 0), BROUGHT)


def shifted(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    return Case(lq, targets.roll(2, -1), BROUGHT)


def other_damage(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    unlike = lab.folder(run, damage=lab.series.other_than(run.damage, 3))[JUDGED:]
    found = lab.targets(unlike, run.seed)
    tuned_on = torch.cat([lq[:JUDGED], unlike]), torch.cat([targets[:JUDGED], found])
    return Case(*tuned_on, replace(QUICK, anchor=0.0))


def wrong_prior(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    """Targets of faces turned upside down, of which the prior knows nothing."""
    config = replace(SMALL.targets, seed=run.seed)
    config = replace(config, sampler=replace(config.sampler, t_start=100, calls=6))
    flipped = drawn_targets(lq.flip(-2), lab.restorer, lab.prior, config).flip(-2)
    return Case(lq, flipped, BROUGHT)


def wrong_damage(lab: Lab, lq: Tensor, targets: Tensor, run: Run) -> Case:
    """The folder's damage is taken for another: tuning and verdict put that on their sharp faces."""
    return Case(lq, targets, QUICK, lab.folder(run, damage=lab.series.other_than(run.damage, 2)))


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
    "wrong damage": wrong_damage,
}
WRONG = [way for way in WAYS if way != "right"]


def plan(series: Series) -> Iterator[list[Run]]:
    """Runs of one folder at a time, a right one and two wrong ones; any beginning is a fair mixture."""
    for number in itertools.count():
        seed, place = divmod(number, len(series.damages))
        ways = [WRONG[(2 * number + k) % len(WRONG)] for k in (0, 1)]
        strength = series.strengths[seed % len(series.strengths)]
        yield [Run(series.damages[place], way, strength, seed) for way in ("right", *ways)]


def numbers(values: Any) -> Any:
    """Named tuples of tensors as JSON: per face, rounded."""
    if values is None:
        return None
    if isinstance(values, Tensor):
        return [round(v, 5) for v in values.tolist()]
    return {name: numbers(value) for name, value in values._asdict().items()}


def run_one(lab: Lab, run: Run, lq: Tensor, targets: Tensor, work: Path) -> dict:
    """Evidence and truth of one run, ready for JSON. The tuned restorer is kept in `work`, and used if it is there."""
    started = time.monotonic()
    case = WAYS[run.way](lab, lq, targets, run)
    judged = lq[:JUDGED], case.targets[:JUDGED]
    config = replace(case.config, seed=run.seed)
    file = work / f"{run.name.replace(' ', '_')}.safetensors"
    pairs = list(zip(case.lq[JUDGED:], case.targets[JUDGED:], strict=True))
    damage = lab.settled(case.lq if case.seen is None else case.seen)[1]
    if not file.exists():
        term = perceptual_term(config, lab.prior, lab.restorer.device)
        sharp = sharp_faces(damage, pairs, 0)
        save_restorer(file, finetune(lab.restorer, pairs, config, perceptual=term, sharp=sharp)[0], {})
    adapted = load_restorer(file).to(lab.restorer.device)
    measured = damaged(lab.hq, run.damage, run.seed, "measure", run.strength)
    evidence: dict[str, Any] = {"targets": numbers(appearance_of(judged[1], judged[0], lab.statistics, lab.net))}
    by_base, by_tuned = (as_photos_are_restored(partial(restored_by, one)) for one in (lab.restorer, adapted))
    known_answers = KnownAnswers.of(judged[0], by_tuned(judged[0]), lab.statistics)
    model = model_for(damage, pairs)
    folder = KnownAnswers.under(model, *judged, lab.statistics)
    base, new = by_base(judged[0]), by_tuned(judged[0])
    belief = Belief.of(model, folder, (base, by_base(folder.given)), *judged, lab.statistics)
    evidence |= {name: round(value, 5) for name, value in belief._asdict().items()}
    said = lab.meter.judge(judged[0], base, new, helped=base)
    evidence["likeness"] = dict(zip(("base", "tuned"), ([one.record() for one in of] for of in said), strict=True))
    truth = {}
    for who, restore in (("base", by_base), ("tuned", by_tuned)):
        cues: Cues = gather(restore, *judged, known_answers, lab.statistics, lab.net, folder)
        evidence[who] = numbers(cues)
        restored = restore(measured)
        values = face_measures(restored, lab.hq, TRUTH)
        truth[who] = {name: numbers(values[name]) for name in TRUTH}
        truth[who]["likeness"] = numbers(likeness_distance(embed_faces(lab.meter.net, restored), lab.people))
    seconds = round(time.monotonic() - started, 1)
    return {"run": run._asdict(), "evidence": evidence, "truth": truth, "seconds": seconds}


# ---------------------------------------------------------------- how often the verdict is right

# Less of a difference is a tie.
MIN_DIFFERENCE = {"psnr": 0.1, "detail_correlation": 0.01, "texture": 0.15, "landmarks": 0.5, "likeness": 0.02}


def gains_of(record: dict) -> dict[str, float]:
    """What tuning won, by what only clean copies can tell: fidelity (PSNR), detail (its correlation, and how near the
    strength of the texture is to the truth, in log10), identity (landmarks; of a face in which none are found they are
    off by the whole eye distance; and likeness, the recogniser's distance to the clean face). Older records have no
    likeness."""

    def told(who: str) -> dict[str, float]:
        means = {k: float(np.mean(np.nan_to_num(v, nan=100.0))) for k, v in record["truth"][who].items()}
        better = {k: means[k] for k in ("psnr", "detail_correlation")}
        better |= {name: -means[name] for name in ("landmarks", "likeness") if name in means}
        return better | {"texture": -abs(math.log10(means["detail_energy"]))}

    base = told("base")
    return {k: value - base[k] for k, value in told("tuned").items()}


def truth_of(record: dict) -> str:
    """ "harm" if anything got worse, "good" if fidelity or detail got better and nothing worse, else "tie"."""
    gain = gains_of(record)
    if any(gain[k] < -least for k, least in MIN_DIFFERENCE.items() if k in gain):
        return "harm"
    return "good" if any(gain[k] > MIN_DIFFERENCE[k] for k in ("psnr", "detail_correlation")) else "tie"


class Judged(NamedTuple):
    """A run that can be judged. truth: see `truth_of`; the rest is what the verdict is given.

    belief: in the folder's damage; none in the oldest records, and in some by how unlike the faces are alone.
    likeness: what is said of each face, by the base and by the tuned restorer; older records have none.
    """

    run: Run
    truth: str
    base: Cues
    tuned: Cues
    targets: Appearance
    belief: Belief = Belief()
    likeness: tuple[tuple[FaceLikeness, ...], tuple[FaceLikeness, ...]] = ((), ())

    @classmethod
    def of(cls, record: dict) -> Judged:
        def tensors(values: dict) -> dict[str, Tensor]:
            return {name: torch.tensor(numbers) for name, numbers in values.items()}

        def cues(values: dict) -> Cues:
            parts = {"looks": Appearance, "teacher": Agreement, "transfer": Agreement, "known": Agreement}
            parts |= {"folder": Agreement} if values.get("folder") else {}
            return Cues(**{name: kind(**tensors(values[name])) for name, kind in parts.items()})

        seen = record["evidence"]
        targets = Appearance(**tensors(seen["targets"]))
        kept = seen.get("likeness", {"base": (), "tuned": ()})
        said = tuple(FaceLikeness.of(one) for one in kept["base"]), tuple(FaceLikeness.of(one) for one in kept["tuned"])
        belief = Belief(**{name: seen[name] for name in Belief._fields if name in seen})
        return cls(
            Run(**record["run"]), truth_of(record), cues(seen["base"]), cues(seen["tuned"]), targets, belief, said
        )

    def judgement(self, limits: Limits) -> Judgement:
        return decide(self.base, self.tuned, self.targets, limits, likeness_vetoes(*self.likeness), self.belief)

    def verdict(self, limits: Limits) -> str:
        return self.judgement(limits).verdict

    def on(self, faces: slice) -> Judged:
        """The same run, judged on some of the faces."""

        def some(values: Any) -> Any:
            if values is None or isinstance(values, Tensor):
                return values if values is None else values[faces]
            return type(values)(*map(some, values))

        likeness = self.likeness[0][faces], self.likeness[1][faces]
        of_folder = [(some(cues._replace(folder=None)), cues.folder) for cues in (self.base, self.tuned)]
        base, tuned = (cues._replace(folder=folder) for cues, folder in of_folder)
        parts = {"base": base, "tuned": tuned, "targets": some(self.targets)}
        return self._replace(**parts, likeness=likeness)

    def half(self, series: Series) -> tuple[int, int]:
        """Which half of the damages and which half of the ways it belongs to; right ones are of either way in turn."""
        way = self.run.seed if self.run.way == "right" else WRONG.index(self.run.way)
        return series.damages.index(self.run.damage) % 2, way % 2


def share_right(runs: list[Judged], limits: Limits, truth: str) -> float:
    """Of the runs that truly helped, how many it adopts; of those that harmed, how many not. 1 if there are none."""
    right = [adopted(known, limits) == (truth == "good") for known in runs if known.truth == truth]
    return float(np.mean(right)) if right else 1.0


def adopted(run: Judged, limits: Limits) -> bool:
    """Whether the verdict is to adopt; what takes long is done once for all limits of the gains."""
    vetoed, gains = apart_from_gains(run, replace(limits, gain=0.0, transfer=0.0))
    return not vetoed and gains.passed(limits)


@cache
def apart_from_gains(run: Judged, limits: Limits) -> tuple[bool, Gains]:
    """Whether anything but the gains speaks against adopting, and the gains."""
    return bool(run.judgement(limits).vetoes), Gains.of(run.base, run.tuned, run.belief, limits)


LOOKS = (20.0, 24.0, 28.0), (0.06, 0.1, 0.2), (0.1, 0.2, 0.4, 1.0), (0.15, 0.3, 0.5)
GAINS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3), (-9.0, 0.0, 0.1, 0.2), (0.28, 0.32, 0.4)


def chosen_on(runs: list[Judged]) -> Limits:
    """The limits with the fewest harmful adoptions, then the most right ones, then the fewest idle ones; of equals, one
    in their middle."""
    grid = list(itertools.starmap(Limits, itertools.product(*LOOKS, *GAINS)))
    scores = [tuple(share_right(runs, limits, truth) for truth in ("harm", "good", "tie")) for limits in grid]
    best = [astuple(limits) for limits, score in zip(grid, scores, strict=True) if score == max(scores)]
    places = np.array([[axis.index(v) for axis, v in zip((*LOOKS, *GAINS), some, strict=True)] for some in best])
    return Limits(*best[int(np.abs(places - places.mean(0)).sum(1).argmin())])


def accuracy(records: list[dict], series: Series) -> str:
    """Every run judged with limits chosen on runs of other damages and other ways; further ones with those in use."""
    known = [Judged.of(record) for record in records]
    runs, further = ([r for r in known if series.helped_to_develop(r.run) == own] for own in (True, False))
    counted: list[tuple[Judged, str]] = []
    with_likeness = sum("likeness" in record["truth"]["base"] for record in records)
    lines = [f"likeness is part of the truth and of the evidence in {with_likeness} of {len(records)} runs"]
    for half in itertools.product((0, 1), (0, 1)):
        others = [
            r for r in runs if r.half(series)[0] != half[0] and (r.run.way == "right" or r.half(series)[1] != half[1])
        ]
        limits = chosen_on(others)
        tested = [r for r in runs if r.half(series) == half]
        lines.append(f"limits for {len(tested)} runs, chosen on {len(others)}: {limits}")
        counted += [(r, r.verdict(limits)) for r in tested]
    lines += [*table(counted), *wrong_of(counted), "", f"limits chosen on all runs: {chosen_on(runs)}"]
    lines += [f"the limits in use, {Limits()}:", *in_use(runs)]
    if further:
        lines += [f"the same on {len(further)} further runs:", *in_use(further)]
    lines += ["| faces judged on | good runs adopted | harmful runs adopted |", "|---|---|---|"]
    for count in (2, 3, 4, 6, JUDGED):
        parts = [slice(i, i + count) for i in range(0, JUDGED - count + 1, count)]
        fewer = [known.on(part) for known in runs for part in parts]
        adopted = share_right(fewer, Limits(), "good"), 1 - share_right(fewer, Limits(), "harm")
        lines.append(f"| {count} | {adopted[0]:.2f} | {adopted[1]:.2f} |")
    return "\n".join(lines)


def in_use(runs: list[Judged]) -> list[str]:
    """The table with the limits in use, and the runs that they are wrong about."""
    counted = [(run, run.verdict(Limits())) for run in runs]
    return [*table(counted), *wrong_of(counted), ""]


def wrong_of(counted: list[tuple[Judged, str]]) -> list[str]:
    """Lines that name the runs about which the verdict was wrong."""
    return [
        f"{r.run.name}: {said}, in truth {r.truth}"
        for r, said in counted
        if r.truth != "tie" and (said == "adopt") != (r.truth == "good")
    ]


def table(counted: list[tuple[Judged, str]]) -> list[str]:
    """Lines of a table: what was truly the case against what was said."""
    lines = ["", "| truth | runs | adopt | keep the base | cannot tell | right |", "|---|---|---|---|---|---|"]
    shares = []
    for truth in ("good", "tie", "harm"):
        said = [verdict for run, verdict in counted if run.truth == truth]
        cells = [str(said.count(verdict)) for verdict in ("adopt", "keep_base", "cannot_tell")]
        right = said.count("adopt") if truth == "good" else len(said) - said.count("adopt")
        interval = wilson_interval(right, len(said)) if said else None
        cells.append(f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})" if interval else "")
        lines.append(f"| {truth} | {len(said)} | {' | '.join(cells)} |")
        shares += [right / len(said)] if said and truth != "tie" else []
    return [*lines, "", f"balanced accuracy {np.mean(shares):.3f} (always adopt or always keep: 0.500)", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path)
    parser.add_argument("--series", choices=SERIES, default="blur")
    parser.add_argument("--folders", type=int, default=37)
    parser.add_argument("--part", default="0/1", help="of the folders, for instance 0/2 and 1/2 side by side")
    parser.add_argument("--work", type=Path, default=Path(".training/verdict"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="where the networks run (%(default)s)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    series, path = SERIES[args.series], args.work / "runs.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not args.portraits:
        print(accuracy(known, series))
        return
    torch.set_num_threads(args.threads)
    done = {Run(**record["run"]).name for record in known}
    part, parts = map(int, args.part.split("/"))
    lab = Lab(args.portraits, choose_device(args.device), series)
    for runs in itertools.islice(plan(series), part, args.folders, parts):
        left = [run for run in runs if run.name not in done]
        if not left:
            continue
        lq = lab.folder(left[0])
        targets = lab.targets(lq, left[0].seed)
        for run in left:
            record = run_one(lab, run, lq, targets, args.work)
            with path.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
            shown = ", ".join(f"{k} {v:+.3f}" for k, v in gains_of(record).items())
            print(f"{run.name}, {record['seconds']} s: {truth_of(record)}; {shown}", flush=True)
    print(accuracy([json.loads(line) for line in path.read_text().splitlines()], series))


if __name__ == "__main__":
    main()
