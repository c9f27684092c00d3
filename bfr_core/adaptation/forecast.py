"""How long an adaptation will take, and how much memory, before it starts: from one timed step of each stage.

The steps are the stages' own, on the user's faces and machine; nothing of them is kept.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..damage.search import FROM_EACH, POPULATION, closest_damage
from ..diffusion.prior import Prior
from ..faces.landmarks import load_landmark_net
from ..faces.sharp_faces import KEPT_APART, SharpFaces
from ..restorers import Restorer
from ..training.batches import FEWEST, split
from ..training.checkpoint import TuningProgress
from ..training.config import FinetuneConfig
from ..training.finetune import finetune, held_out_score
from ..training.objectives import objective_of
from .adapt import Before
from .cleaning import KNOWN, LEVELS
from .config import AdaptConfig
from .faces import FaceSet, StageCallback
from .folder_damage import COMPARED, ESTIMATED_FACES, TRIALS, faces_of_a_trial
from .run import Run
from .target_checks import measurements_of
from .target_stage import EXAMINED_FACES
from .targets import SEARCH_FACES, TargetConfig, make_pseudo_targets, samplers_to_try
from .tuning import perceptual_term

TIMED_STEPS = 3  # of the tuning; the first prepares, and of the others the quicker one counts
SAMPLE_SECONDS = 0.005  # between two samples of the memory that is held
NEARLY_ALL = 0.9  # share of the memory above which a line warns that it may not be enough
NAMED = 0.1  # share of the whole time above which a stage is named
MEASURED_FACES = 4
KEPT_SECONDS = 300.0  # how long a measurement is taken again for the same networks, settings and size of faces
STAGES = {"examine": "looking at the damage", "targets": "clean faces", "gate": "checking them",
          "finetune": "tuning", "report": "report"}  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """What a step of each stage takes on this machine; 0 where it was not measured.

    In seconds: prior_call, one call of the prior for one face; restore, the restorer for one face; gate, the checks of
    one face; step, one step of the tuning; judge, comparing checkpoints on one face; trial, one of the search for the
    folder's damage.
    memory: the most bytes that the process held meanwhile, with all else that it holds; None if the system does not
    say. room: bytes of memory that there are. where: which memory that is.
    """

    prior_call: float = 0.0
    restore: float = 0.0
    gate: float = 0.0
    step: float = 0.0
    judge: float = 0.0
    trial: float = 0.0
    memory: int | None = None
    room: int | None = None
    where: str = "memory"

    def also(self, other: Pace) -> Pace:
        """Both measurements in one: the larger time and memory of each."""
        held = [pace.memory for pace in (self, other) if pace.memory is not None]
        times = {name: max(getattr(self, name), getattr(other, name)) for name in TIMES}
        return replace(self, **times, memory=max(held) if held else None, room=other.room, where=other.where)


TIMES = ("prior_call", "restore", "gate", "step", "judge", "trial")


@dataclass(frozen=True)
class Forecast:
    """What an adaptation will take. seconds: by stage. faces: their number; guessed: whether that is a guess.

    memory, room, where: as in `Pace`.
    """

    faces: int
    seconds: dict[str, float]
    memory: int | None
    room: int | None
    where: str
    guessed: bool = False

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def lines(self) -> list[str]:
        """The forecast in words: how long, and how much memory."""
        long = {stage: seconds for stage, seconds in self.seconds.items() if seconds > NAMED * self.total}
        parts = [f"{STAGES[stage]} {duration(seconds)}" for stage, seconds in long.items()]
        told = f" ({', '.join(parts)})" if len(parts) > 1 else ""
        who = f"{'about ' if self.guessed else ''}{self.faces} faces"
        said = f"{who} will take {duration(self.total)} on this machine{told}"
        few = (
            []
            if self.guessed or self.faces >= FEWEST
            else [f'fewer than {FEWEST} faces always end in "keep the base": give more of them']
        )
        return [said, *few, *memory_lines(self)]

    def as_record(self) -> dict[str, Any]:
        """The forecast for programs: seconds by stage, memory in bytes."""
        seconds = {stage: round(value, 1) for stage, value in self.seconds.items()}
        return {"faces": self.faces, "guessed": self.guessed, "seconds": seconds, "memory_bytes": self.memory}


def memory_lines(seen: Forecast | Pace) -> list[str]:
    """How much memory it takes, and whether that may not be enough; nothing where this system does not say."""
    if seen.memory is None:
        return []
    line = f"it needs about {seen.memory / 1e9:.1f} GB of {seen.where}"
    if seen.room is None:
        return [line]
    line += f" of {seen.room / 1e9:.0f} GB"
    tight = "; that is nearly all there is: choose low memory" if seen.memory > NEARLY_ALL * seen.room else ""
    return [line + tight]


def duration(seconds: float) -> str:
    """A duration in words: "less than a minute", "about 5 min", "about 2 h 10 min"."""
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    minutes = math.ceil(seconds / 60)
    if minutes <= 1:
        return "less than a minute"
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min"


# ---------------------------------------------------------------- what is to come


def forecast(
    pace: Pace,
    faces: int,
    config: AdaptConfig,
    guessed: bool = False,
    drawn: bool = False,
    searched: bool | None = None,
) -> Forecast:
    """What adapting to so many faces will take at this pace. drawn: whether their targets are there already; searched:
    whether the folder's damage has been searched for, if that is not so just where they are.

    Drawing refused targets again, and searching the photos for faces, are not included.
    """
    targets, tuning = config.targets, config.finetune
    calls = {"examine": 0 if drawn else examining_calls(targets, faces) + estimating_calls(config, faces)}
    calls["targets"] = 0 if drawn else faces * targets.network_calls
    seconds = {stage: count * pace.prior_call for stage, count in calls.items()}
    known = drawn if searched is None else searched
    seconds["examine"] += 0 if known or not tuning.sharp else TRIALS * pace.trial
    seconds["targets"] += 0 if drawn else faces * pace.restore
    seconds["gate"] = faces * pace.gate
    compared = faces_compared(faces, tuning)
    comparisons = 2 + tuning.iterations // tuning.judge_every if compared else 0
    seconds["finetune"] = tuning.iterations * pace.step + comparisons * compared * pace.judge
    if tuning.minutes:
        seconds["finetune"] = min(seconds["finetune"], 60 * tuning.minutes)
    seconds["report"] = 2 * faces * pace.restore
    return Forecast(faces, seconds, pace.memory, pace.room, pace.where, guessed)


def examining_calls(config: TargetConfig, faces: int) -> int:
    """Calls of the prior for one face that `resolved_settings` takes, at most."""
    some, calls = min(EXAMINED_FACES, faces), 0
    if config.t_clean == "auto":
        lowest, highest = max(1, config.sampler.num_steps // 125), max(2, config.sampler.num_steps // 4)
        calls += some * (1 + (highest - lowest).bit_length())
    if config.search:
        tried = 1 + len(samplers_to_try(config.sampler, config.search, 0))  # at a size that every factor divides
        calls += min(SEARCH_FACES, faces) * tried * config.network_calls
    if config.detail == "auto":
        calls += some * config.network_calls
    return calls


def estimating_calls(config: AdaptConfig, faces: int) -> int:
    """Calls of the prior for one face that `folder_damage` and `level_by_known_answers` take, at most."""
    if not (config.finetune.sharp and config.targets.t_clean):
        return 0
    found = config.targets.t_clean == "auto"
    levels = min(EXAMINED_FACES, faces) + KNOWN * (len(LEVELS) + 3) if found else 0  # the own, two in between
    return min(ESTIMATED_FACES, faces) + levels


def faces_compared(faces: int, config: FinetuneConfig) -> int:
    """On how many faces the states of a tuning are compared, see `held_out_score`; 0 where none is held out."""
    held = len(split(faces, config)[1])
    return max(held, KEPT_APART) if held and config.sharp and config.judged_on == "sharp" else held


def forecast_run(
    run: Run, faces: FaceSet, base: Restorer, prior: Prior, config: AdaptConfig, callback: StageCallback | None = None
) -> Forecast:
    """What adapting to these faces will take, from one timed step of each stage; nothing is written.

    Raises ValueError if there is too little memory for a step of one face.
    """
    lq = faces.batch(0, MEASURED_FACES)
    drawn = all((run.targets / f"{name}.png").exists() for name in faces.names)
    return forecast(measure(lq, base, prior, config, callback), len(faces), config, drawn=drawn)


def tell_before(callback: StageCallback) -> Before:
    """The argument `before` of `adapt` that makes a forecast and calls callback("forecast", 2, 2, Forecast)."""

    def before(run: Run, faces: FaceSet, base: Restorer, prior: Prior, config: AdaptConfig) -> None:
        callback("forecast", 2, 2, forecast_run(run, faces, base, prior, config, callback))

    return before


def measure(
    lq: Tensor, base: Restorer, prior: Prior, config: AdaptConfig, callback: StageCallback | None = None
) -> Pace:
    """The pace of every stage on some damaged faces (B, 3, S, S) in [0, 1]. callback: may raise between the steps."""

    def tell(step: int) -> None:
        if callback:
            callback("forecast", step, 2, None)

    tell(0)
    first = measure_targets(lq, base, prior, config.targets)
    tell(1)
    perceptual = None if base.tuned_by_codes else perceptual_term(config.finetune, prior, base.device)
    both = first.also(measure_tuning(lq, base, config.finetune, perceptual))
    if config.finetune.sharp:
        both = both.also(measure_search(lq))
    tell(2)
    return both


_kept: dict[tuple[object, ...], tuple[float, Pace]] = {}


def _measured(key: tuple[object, ...], measurement: Callable[[], Pace]) -> Pace:
    """`measurement()`, or what it gave for this key within the last KEPT_SECONDS: the page tells how long an adaptation
    takes when the faces are found and again when it starts, and each kind of damage in a folder has its own. A network
    that came from no file has no SHA-256 in its key, and is measured each time."""
    if "" in key:
        return measurement()
    now = time.monotonic()
    for old in [kept for kept, (then, _) in _kept.items() if now - then > KEPT_SECONDS]:
        del _kept[old]
    if key not in _kept:
        _kept[key] = now, measurement()
    return _kept[key][1]


def _identity(network: Restorer | Prior) -> tuple[object, ...]:
    """What tells a loaded network from others; "" is in it where that came from no file."""
    return type(network), network.name, network.sha256, str(network.device)


def measure_search(lq: Tensor) -> Pace:
    """The pace of the search for the folder's damage, from its second generation of trials, at which it is stopped."""
    return _measured(("search", lq.shape, COMPARED, POPULATION), lambda: _measure_search(lq))


def _measure_search(lq: Tensor) -> Pace:
    ticks: list[float] = []

    class Timed(Exception):
        pass

    def tick(done: int, trials: int) -> None:
        ticks.append(time.perf_counter())
        if len(ticks) == 2:
            raise Timed

    size = lq.shape[-1]
    with contextlib.suppress(Timed):
        trials = math.ceil(2 * POPULATION / FROM_EACH)  # so many that the first two are of the same start
        closest_damage(lq, SharpFaces(size).stacked(COMPARED), trials, faces_of_a_trial(size), callback=tick)
    return Pace(trial=(ticks[1] - ticks[0]) / POPULATION)


def measure_targets(lq: Tensor, base: Restorer, prior: Prior, config: TargetConfig) -> Pace:
    """The pace of drawing targets, from two calls of the prior on a full batch, and of their checks, from one face."""
    resolved = replace(
        config,
        t_clean=1 if config.t_clean == "auto" else config.t_clean,
        detail=1.0 if config.detail == "auto" else config.detail,
        search=(),
    )
    key = ("targets", lq.shape, *_identity(base), base.precision, *_identity(prior), repr(resolved))
    return _measured(key, lambda: _measure_targets(lq, base, prior, resolved))


def _measure_targets(lq: Tensor, base: Restorer, prior: Prior, config: TargetConfig) -> Pace:
    faces = lq.repeat(-(-config.batch_size // len(lq)), 1, 1, 1)[: config.batch_size]
    ticks, now = [], partial(_now, base.device)

    def tick(call: int, calls: int, preview: Tensor) -> None:
        ticks.append(now())
        if call >= 2:
            raise _Enough

    with (
        torch.random.fork_rng(devices=[]),
        PeakMemory(base.device) as held,
    ):  # a network that is built draws its first weights
        _, restore = _timed(now, lambda: base.restore(lq[:1]))
        started = now()
        with contextlib.suppress(_Enough):
            make_pseudo_targets(faces, [str(i) for i in range(len(faces))], base, prior, config, tick)
        net = load_landmark_net()
        _, gate = _timed(now, lambda: measurements_of(lq[:1], lq[:1], net))
    call = ticks[-1] - (ticks[-2] if len(ticks) > 1 else started)
    return Pace(prior_call=call / len(faces), restore=restore, gate=gate, **held.as_pace())


def measure_tuning(lq: Tensor, base: Restorer, config: FinetuneConfig, perceptual: Any = None) -> Pace:
    """The pace of the tuning, from `TIMED_STEPS` steps on pairs of damaged and restored faces."""
    few = replace(config, held_out=0.0, minutes=0.0, judge_every=2**31, iterations=TIMED_STEPS + 1)
    key = ("tuning", lq.shape, *_identity(base), base.precision, repr(few), perceptual is not None)
    return _measured(key, lambda: _measure_tuning(lq, base, few, perceptual))


def _measure_tuning(lq: Tensor, base: Restorer, config: FinetuneConfig, perceptual: Any) -> Pace:
    pairs = [(face, target) for face, target in zip(lq, base.restore_each(lq), strict=True)]
    pairs = pairs if len(pairs) > 1 else 2 * pairs  # a face's damage is put on another
    ticks, now = [], partial(_now, base.device)

    def tick(step: int, steps: int, progress: TuningProgress) -> None:
        ticks.append(now())
        if step >= TIMED_STEPS:
            raise _Enough

    with PeakMemory(base.device) as held:
        started = now()
        with contextlib.suppress(_Enough):
            finetune(base, pairs, config, perceptual=perceptual, callback=tick)
        objective = objective_of(base, config.weights, perceptual)
        judged = partial(held_out_score, base, objective, pairs, [0], config)
        judged()
        _, judge = _timed(now, judged)
    times = [after - before for before, after in zip([started, *ticks], ticks, strict=False)]
    return Pace(step=min(times[1:] or times), judge=judge, **held.as_pace())


class _Enough(Exception):
    """Raised by a callback when enough was timed."""


def _timed(now: Callable[[], float], work: Callable[[], Any]) -> tuple[Any, float]:
    before = now()
    result = work()
    return result, now() - before


def _now(device: torch.device) -> float:
    """The time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


# ---------------------------------------------------------------- memory


class PeakMemory:
    """A context that measures how much memory this process holds at most: of a graphics card, or of the computer.

    most: bytes; None where the system does not say.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.most: int | None = None
        self._over = threading.Event()

    def __enter__(self) -> PeakMemory:
        self._seen: list[int] = []
        self._watcher = threading.Thread(target=self._watch, name="bfr-memory", daemon=True)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.most = torch.cuda.max_memory_allocated(self.device)
            return
        self._over.set()
        self._watcher.join()
        self.most = max(self._seen, default=None)

    def _watch(self) -> None:
        while True:
            held = held_now(self.device)
            if held is None:
                return
            self._seen.append(held)
            if self._over.wait(SAMPLE_SECONDS):
                return

    def as_pace(self) -> dict[str, Any]:
        """The fields of `Pace` that are about memory."""
        on_card = self.device.type != "cpu"
        return {"memory": self.most, "room": room_of(self.device)} | {
            "where": "the graphics card's memory" if on_card else "memory"
        }


def held_now(device: torch.device) -> int | None:
    """Bytes that this process holds of the computer's memory or of Apple's GPU; None where the system does not say."""
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if platform.system() == "Linux":
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * _page_size()
    if platform.system() == "Darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes there; the most so far
    return None


def room_of(device: torch.device) -> int | None:
    """Bytes of memory that the device has; None where this system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if platform.system() in ("Linux", "Darwin"):
        return os.sysconf("SC_PHYS_PAGES") * _page_size()
    return None


def _page_size() -> int:
    return os.sysconf("SC_PAGE_SIZE")
