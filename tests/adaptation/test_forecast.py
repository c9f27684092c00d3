"""The forecast of an adaptation, compared with the calls that it then makes, never with a clock."""

from dataclasses import replace
from itertools import chain, repeat
from types import SimpleNamespace

import pytest
import torch

from bfr_core.adaptation import forecast as module
from bfr_core.adaptation.adapt import adapt
from bfr_core.adaptation.config import SMALL, FaceConfig
from bfr_core.adaptation.forecast import (
    Forecast,
    Pace,
    duration,
    estimating_calls,
    examining_calls,
    faces_compared,
    forecast,
    measure,
    memory_lines,
    tell_before,
)
from bfr_core.adaptation.run import Run
from bfr_core.damage import search
from bfr_core.diffusion.prior import load_prior
from bfr_core.diffusion.sampler import SamplerConfig
from bfr_core.restorers import load_restorer
from bfr_core.settings import changed
from bfr_core.training.objectives import Pixels


@pytest.fixture
def config(tiny_restorer, tiny_prior):
    targets = replace(SMALL.targets, t_clean=9, batch_size=4, sampler=SamplerConfig(t_start=50, factor=4, calls=3))
    finetune = replace(SMALL.finetune, iterations=6, batch_size=4, micro_batch=4, judge_every=3, sharp=0)
    own = replace(SMALL, restorer=str(tiny_restorer), prior=str(tiny_prior), faces=FaceConfig(aligned=True))
    return changed(replace(own, targets=targets, finetune=finetune), {"gate.limit": 0.0})


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """No measurement of another test is taken again."""
    monkeypatch.setattr(module, "_kept", {})


@pytest.fixture
def calls(monkeypatch):
    """Counts what the stages do: faces in calls of the prior, tuning steps, and faces that are compared on."""
    from bfr_core.diffusion.prior import Prior
    from bfr_core.training import finetune as finetuning

    seen = {"prior": 0, "steps": 0, "judged": 0}
    prior, average, compared = Prior.__call__, finetuning.average_into, finetuning.batch_of

    def call(self, x, t):
        seen["prior"] += len(x)
        return prior(self, x, t)

    def step(*given):
        seen["steps"] += 1
        return average(*given)

    def compare(pairs, keys, *rest, **more):
        seen["judged"] += len(keys)
        return compared(pairs, keys, *rest, **more)

    monkeypatch.setattr(Prior, "__call__", call)
    monkeypatch.setattr(finetuning, "average_into", step)
    monkeypatch.setattr(finetuning, "batch_of", compare)  # of `held_out_score`; training has its own
    return seen


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"targets.t_clean": 0},
        {"finetune.sharp": 0.5},
        {"targets.sampler": SamplerConfig(kind="paper", t_start=20, factor=4, t_constrain_end=2)},
        {"targets.detail": "auto"},
        {"targets.search": ("t_start",)},
        {"finetune.iterations": 7, "finetune.judge_every": 2},
    ],
    ids=str,
)
def test_it_counts_what_the_adaptation_then_does(photos, config, calls, change, tmp_path):
    config = changed(config, change)
    ones = Pace(prior_call=1.0, step=1.0, judge=1.0)
    told = forecast(ones, 10, config).seconds
    adapt(photos, tmp_path, config)
    assert told["examine"] + told["targets"] == calls["prior"]
    compared = 1 + config.finetune.iterations // config.finetune.judge_every + config.finetune.iterations % 2
    faces = faces_compared(10, config.finetune)
    assert calls["judged"] == faces * compared
    assert calls["steps"] <= told["finetune"] - calls["judged"] <= calls["steps"] + faces, "one comparison more at most"


def test_a_noise_level_that_is_looked_for_takes_no_more_than_it_says(photos, config, calls, tmp_path):
    config = changed(config, {"targets.t_clean": "auto"})
    adapt(photos, tmp_path, config)
    assert estimating_calls(config, 10) == 0
    assert 10 * 3 < calls["prior"] <= 10 * 4 + examining_calls(config.targets, 10)


def test_times_are_those_of_the_settings():
    pace = Pace(prior_call=0.5, restore=0.25, gate=0.1, step=2.0, judge=0.5)
    config = changed(SMALL, {"finetune.iterations": 100, "finetune.judge_every": 50, "targets.t_clean": 0})
    told = forecast(pace, 24, config)
    assert told.seconds == pytest.approx(
        {"examine": 0, "targets": 24 * (3 * 0.5 + 0.25), "gate": 2.4, "finetune": 200 + 4 * 16 * 0.5, "report": 12}
    )
    assert forecast(pace, 24, changed(config, {"finetune.minutes": 1.0})).seconds["finetune"] == 60
    assert forecast(pace, 24, config, drawn=True).seconds["targets"] == 0
    assert forecast(pace, 48, config).seconds["targets"] == 2 * told.seconds["targets"]
    sharp, pace = changed(config, {"finetune.sharp": 0.5}), replace(pace, prior_call=0, trial=0.01)
    assert forecast(pace, 24, sharp).seconds["examine"] == pytest.approx(0.01 * module.TRIALS)
    assert forecast(pace, 24, sharp, drawn=True).seconds["examine"] == 0


def test_what_is_said():
    whole = Forecast(24, {"examine": 1.0, "targets": 130.0, "finetune": 600.0}, int(3.4e9), int(8e9), "memory")
    assert whole.lines() == [
        "24 faces will take about 13 min on this machine (clean faces about 3 min, tuning about 10 min)",
        "it needs about 3.4 GB of memory of 8 GB",
    ]
    assert replace(whole, guessed=True).lines()[0].startswith("about 24 faces")
    few = 'fewer than 8 faces always end in "keep the base": give more of them'
    assert replace(whole, faces=7).lines()[1] == few and replace(whole, faces=8).lines()[1:] == whole.lines()[1:]
    assert few not in replace(whole, faces=7, guessed=True).lines()
    tight = memory_lines(replace(whole, memory=int(7.6e9), where="the graphics card's memory"))
    assert tight == [
        "it needs about 7.6 GB of the graphics card's memory of 8 GB; that is nearly all there is: choose low memory"
    ]
    assert memory_lines(replace(whole, memory=None)) == [] and "of 8" not in memory_lines(replace(whole, room=None))[0]
    assert duration(float("inf")) == "unknown"


def test_a_step_of_each_stage_is_timed_and_nothing_is_changed(photos, config, calls, tmp_path):
    from bfr_core.adaptation.faces import collect_faces

    base, prior, run = load_restorer(config.restorer), load_prior(config.prior), Run(tmp_path)
    lq = collect_faces(photos, run, base.size, config.faces).batch(0, 3)
    before = {name: value.clone() for name, value in base.module.state_dict().items()}
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    generator = torch.get_rng_state()
    many = changed(config, {"finetune.adversarial": 0.1, "finetune.discriminator_features": 8, "finetune.sharp": 0.5})
    pace = measure(lq, base, prior, many)
    assert all(getattr(pace, name) > 0 for name in module.TIMES)
    assert (calls["steps"], calls["prior"]) == (3, 3 * 4), "three steps; the cleaning call and two more, of a batch"
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in base.module.state_dict().items())
    assert not base.module.training and not any(p.requires_grad for p in base.module.parameters())
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_the_same_is_not_measured_again_for_a_while(config, calls, monkeypatch):
    base, prior, lq = load_restorer(config.restorer), load_prior(config.prior), torch.rand(3, 3, 32, 32)
    sharp = changed(config, {"finetune.sharp": 0.5})

    def measured(what=sharp, restorer=base):
        before = calls["steps"], calls["prior"]
        return measure(lq, restorer, prior, what), (calls["steps"] - before[0], calls["prior"] - before[1])

    first, done = measured()
    assert done == (3, 12)
    assert measured() == (first, (0, 0))
    assert measured(changed(sharp, {"finetune.iterations": 900})) == (first, (0, 0)), "a step is not longer for that"
    assert measured(changed(sharp, {"finetune.micro_batch": 2}))[1] == (3, 0)
    assert measured(changed(sharp, {"targets.batch_size": 2}))[1] == (0, 6)
    assert measured(restorer=replace(base, sha256=""))[1] == (3, 12), "it cannot be told from another"
    monkeypatch.setattr(module, "KEPT_SECONDS", -1.0)
    assert measured()[1] == (3, 12)


@pytest.mark.skipif(module.held_now(torch.device("cpu")) is None, reason="this system does not say what is held")
def test_memory_that_is_held_for_a_moment_only_is_seen(monkeypatch):
    held = chain([100, 900, 200], repeat(50))  # as many as are asked for
    monkeypatch.setattr(module, "held_now", lambda device: next(held))
    monkeypatch.setattr(module, "SAMPLE_SECONDS", 0.0)
    with module.PeakMemory(torch.device("cpu")) as watched:
        while next(iter(watched._seen[3:]), None) is None:
            pass
    assert watched.most == 900


def test_an_adaptation_says_it_once_before_it_draws_and_not_when_it_goes_on(photos, config, tmp_path):
    heard, stages = [], []

    def hear(stage, step, total, detail):
        stages.append(stage)
        if isinstance(detail, Forecast):
            heard.append(detail)

    adapt(photos, tmp_path, config, hear, before=tell_before(hear))
    order = list(dict.fromkeys(stages))
    assert order.index("forecast") < order.index("targets") and [told.faces for told in heard] == [10]
    adapt(photos, tmp_path, changed(config, {"finetune.iterations": 9}), hear, before=tell_before(hear))
    assert len(heard) == 1


def test_too_little_memory_is_said_before_anything_is_drawn(photos, config, tmp_path, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(Pixels, "terms", full)
    with pytest.raises(ValueError, match="too little memory to tune on one face"):
        adapt(photos, tmp_path, config, before=tell_before(lambda *_: None))
    assert not list(Run(tmp_path).targets.glob("*.png"))


def test_the_search_is_timed_by_its_second_generation(monkeypatch):
    """The first one also imports the library and reads the faces, and after the second one enough is known."""
    clock = SimpleNamespace(now=0.0)

    def searched(lq, sharp, trials, at_once, callback):
        for generation, seconds in ((1, 30.0), (2, 0.5 * module.POPULATION), (3, 99.0)):
            clock.now += seconds
            callback(generation * module.POPULATION, trials)

    monkeypatch.setattr(module, "closest_damage", searched)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    assert module.measure_search(torch.rand(1, 3, 32, 32)).trial == pytest.approx(0.5)
    assert clock.now == 30.0 + 0.5 * module.POPULATION, "it is stopped there"


def test_the_pace_of_the_search_is_that_of_its_trials(monkeypatch):
    """What a start comes to is judged on all sharp faces, once; no trial of the pace is to pay for that."""
    clock = SimpleNamespace(now=0.0)

    def distance(how, sharp, *rest):
        clock.now += len(sharp)
        return how.blur

    monkeypatch.setattr(search, "distance_under", distance)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    assert module.measure_search(torch.rand(2, 3, 256, 256)).trial == module.faces_of_a_trial(256)


def test_a_search_of_one_generation_is_timed_too(monkeypatch):
    """The pace is asked for however short the search itself will be."""
    monkeypatch.setattr(module, "TRIALS", module.POPULATION)
    assert module.measure_search(torch.rand(2, 3, 32, 32)).trial > 0
