"""The benchmark of the verdict: likeness is part of its truth and of its evidence, where a record has it."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bfr_core.faces.likeness import OTHER, SAME
from bfr_core.restoration.same_person import FaceLikeness

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RUNS = BENCHMARKS / "results" / "verdict" / "runs.jsonl"


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("verdict_benchmark", BENCHMARKS / "verdict.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def good(verdict: Any) -> dict[str, Any]:
    """A recorded run that helped and is adopted."""
    with RUNS.open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            known = verdict.Judged.of(record)
            if known.truth == "good" and known.verdict(verdict.Limits()) == "adopt":
                return record
    raise AssertionError("no recorded run helped")


def with_likeness(record: dict[str, Any], base: float, tuned: float) -> dict[str, Any]:
    """The record with these distances of the restored faces to the clean ones."""
    made = copy.deepcopy(record)
    for who, distance in (("base", base), ("tuned", tuned)):
        made["truth"][who]["likeness"] = [distance] * len(made["truth"][who]["psnr"])
    return made


def test_a_run_that_loses_the_person_did_harm(verdict: Any, good: dict[str, Any]) -> None:
    assert verdict.truth_of(with_likeness(good, 0.4, 0.5)) == "harm"
    assert verdict.truth_of(with_likeness(good, 0.4, 0.41)) == "good"  # less is a tie
    assert verdict.gains_of(with_likeness(good, 0.4, 0.5))["likeness"] == pytest.approx(-0.1)


def test_records_without_likeness_are_judged_as_before(verdict: Any, good: dict[str, Any]) -> None:
    assert "likeness" not in verdict.gains_of(good) and verdict.truth_of(good) == "good"
    assert verdict.Judged.of(good).likeness == ((), ())


def test_other_people_are_a_veto(verdict: Any, good: dict[str, Any]) -> None:
    own = FaceLikeness(SAME, 0.2, 0.4, 0.45, 0.02, 0.05).record()
    strange = FaceLikeness(OTHER, 0.7, 0.4, 0.45, 0.02, 0.05).record()
    made = copy.deepcopy(good)
    made["evidence"]["likeness"] = {"base": [own] * 12, "tuned": [strange] * 4 + [own] * 8}
    known = verdict.Judged.of(made)
    assert known.verdict(verdict.Limits()) == "keep_base" and not verdict.adopted(known, verdict.Limits())
    assert "no longer look like the same person" in known.judgement(verdict.Limits()).sentence
    assert known.on(slice(4, 12)).likeness[1] == (FaceLikeness.of(own),) * 8
    made["evidence"]["likeness"]["tuned"] = [own] * 12
    assert verdict.Judged.of(made).verdict(verdict.Limits()) == "adopt"


def test_the_folders_damage_on_sharp_faces_stands_for_the_targets_of_others(verdict: Any, good: dict[str, Any]) -> None:
    made = copy.deepcopy(good)
    made["evidence"]["base"]["folder"] = {"fidelity": [24.0, 25.0, 26.0, 27.0], "detail": [0.5] * 4}
    made["evidence"]["tuned"]["folder"] = {"fidelity": [23.0, 24.1, 24.9, 26.0], "detail": [0.5] * 4}
    known = verdict.Judged.of(made)
    assert known.verdict(verdict.Limits()) == "keep_base" and not verdict.adopted(known, verdict.Limits())
    assert "worse, -1.00 dB" in known.judgement(verdict.Limits()).sentence
    some = known.on(slice(0, 2))
    assert len(some.tuned.known.fidelity) == 2 and len(some.tuned.folder.fidelity) == 4
    made["evidence"]["tuned"]["folder"]["fidelity"] = [25.0, 26.1, 26.9, 28.0]
    assert verdict.adopted(verdict.Judged.of(made), verdict.Limits())


def test_the_folders_damage_decides_where_sharp_faces_under_it_look_like_the_folder(
    verdict: Any, good: dict[str, Any]
) -> None:
    made = copy.deepcopy(good)
    count = len(made["evidence"]["base"]["known"]["fidelity"])
    made["evidence"]["base"]["folder"] = {"fidelity": [24.0, 25.0, 26.0, 27.0], "detail": [0.5] * 4}
    made["evidence"]["tuned"]["folder"] = {"fidelity": [25.0, 26.1, 26.9, 28.0], "detail": [0.5] * 4}
    unsure = [value + (-1) ** i for i, value in enumerate(made["evidence"]["base"]["known"]["fidelity"])]
    made["evidence"]["tuned"]["known"]["fidelity"] = unsure
    assert count > 4 and not verdict.adopted(verdict.Judged.of(made), verdict.Limits())
    made["evidence"]["unlike"] = 0.25
    known = verdict.Judged.of(made)
    assert verdict.adopted(known, verdict.Limits()) and known.verdict(verdict.Limits()) == "adopt"
    made["evidence"]["overdone"] = 1.5  # but the base changes them more than the folder's faces
    assert not verdict.adopted(verdict.Judged.of(made), verdict.Limits())
    made["evidence"] |= {"unlike": 0.5, "overdone": -1.0}
    assert not verdict.adopted(verdict.Judged.of(made), verdict.Limits())


def test_runs_are_told_from_further_ones_by_their_folder_whatever_ways_there_are_by_now(verdict: Any) -> None:
    first, blur = verdict.SERIES["first"], verdict.SERIES["blur"]
    runs = [verdict.Run(**json.loads(line)["run"]) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    assert sum(map(first.helped_to_develop, runs)) == 150 and len(runs) == 228  # as the tables say
    planned = [run for of_folder in itertools.islice(verdict.plan(blur), 27) for run in of_folder]
    assert [blur.helped_to_develop(run) for run in planned] == [True] * 75 + [False] * 6
