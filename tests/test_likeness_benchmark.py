"""The benchmark of likeness: its groups of people, and how it counts pairs and words. Nothing is measured here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bfr_core.faces.align import template
from bfr_core.faces.likeness import CANNOT_TELL, MAY_BE, OTHER, SAME

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def people(monkeypatch):
    return loaded("people", monkeypatch)


@pytest.fixture
def likeness(monkeypatch):
    return loaded("likeness", monkeypatch)


# ---------------------------------------------------------------- groups


def test_every_held_out_portrait_but_one_has_a_recorded_sex(people: Any):
    held_out = (BENCHMARKS.parent / "bfr_core" / "embedded" / "held_out.txt").read_text().split()
    sex = people.recorded_sex()
    assert sum(name not in sex for name in held_out) == 1 and set(sex.values()) == {"men", "women"}
    assert sex["B000711.jpg"] == "women" and sex["B001267.jpg"] == "men"  # Barbara Boxer, Michael Bennet


def test_a_search_is_what_its_sheets_state(people: Any):
    sheet = "figures/textual_search_{}_top_10_matches.jpg".format
    sheets = {f"a{i}": sheet("2_Ethnicity x Age 1") for i in range(20)}
    sheets |= {f"b{i}": sheet("2_Ethnicity x Age 3") for i in range(20)}
    sheets |= {f"c{i}": sheet("1_hair_color") for i in range(30)} | {"d": sheet("1_sex"), "e": "something"}
    found = people.stated_searches(sheets)
    assert {found[f"a{i}"] for i in range(20)} | {found["b3"]} == {"ethnicity x age"}
    assert (found["c0"], found["d"], found["e"]) == ("hair color", "other searches", "other searches")


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_typology_angle_of_a_known_colour(people: Any, size):
    """L* = 70 and b* = 20 is atan(20 / 20) = 45 degrees; the rest of the face does not count."""
    from skimage.color import lab2rgb

    skin = torch.from_numpy(lab2rgb(np.array([[[70.0, 10.0, 20.0]]]))[0, 0]).float()
    points = template(size)
    face = torch.zeros(3, size, size)
    between = slice(int(points[0, 1] + 0.08 * size), int(points[3, 1] - 0.01 * size))  # below the eyes, above the mouth
    face[:, between] = skin[:, None, None]
    assert people.typology_angle(face, points) == pytest.approx(45, abs=0.5)
    face[:, between] = torch.tensor([0.25, 0.15, 0.1])[:, None, None]
    assert people.typology_angle(face, points) < -30


def test_thirds_are_by_angle(people: Any):
    angles = {name: angle for angle, name in enumerate("fedcba")}
    found = people.thirds(angles)
    assert [found[name] for name in "fedcba"] == [tone for tone in people.SKIN_TONES for _ in range(2)]


# ---------------------------------------------------------------- counting


def a_set(module: Any, spread: float) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """120 people in two groups whose embeddings lie apart by `spread` within group b; genuine pairs 0.1 apart."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(120, 128, generator=generator) / 16
    first[60:] *= spread
    step = torch.randn(120, 128, generator=generator)
    names = [f"{i}.jpg" for i in range(120)]
    groups = {name: "a" if i < 60 else "b" for i, name in enumerate(names)}
    people = module.People(names, torch.zeros(120, 3, 8, 8), first, groups)
    return people, first, first + 0.1 * step / step.norm(dim=1, keepdim=True)


def test_strangers_are_of_the_same_group(likeness: Any):
    """Where the people of a group look alike, the whole set's limit lets more of its strangers pass."""
    people, first, second = a_set(likeness, 0.2)
    everyone, a, b = likeness.pair_records("set", "damage", people, first, second)
    assert (everyone["group"], a["group"], b["group"], b["faces"]) == ("everyone", "a", "b", 60)
    assert all(record["genuine"][1] == pytest.approx(0.1, abs=1e-3) for record in (everyone, a, b))
    assert everyone["false_at_common"] == pytest.approx(0.01, abs=0.001) and a["false_at_common"] == 0
    assert b["false_at_common"] > 0.02 and b["limit"] < everyone["limit"] < a["limit"]
    assert a["true_accepts"][0] == b["true_accepts"][0] == 1


def test_limits_are_set_on_some_and_words_counted_on_others(likeness: Any):
    generator = torch.Generator().manual_seed(0)
    own = torch.nn.functional.normalize(torch.randn(120, 128, generator=generator))
    step = torch.randn(120, 128, generator=generator)
    restored = own + 0.1 * step / step.norm(dim=1, keepdim=True)
    restored[1] = -own[1]  # a person who is not known again, among those that are asked
    seen = dict.fromkeys(("doing nothing", "the clean face", "half a stranger"), restored[1::2])
    compared = likeness.distances_of(own, seen | {"restored": restored})
    (record,) = likeness.verdict_records("damage", likeness.LIKE, {"diverse": compared})
    assert (record["known"], record["asked"], record["reason"]) == (60, 60, "")
    assert record["words"]["restored"] == {SAME: 59, MAY_BE: 0, OTHER: 1, CANNOT_TELL: 0}
    strangers = record["words"]["any stranger"]
    assert sum(strangers.values()) == 60 * 119 and not strangers[SAME] and strangers[OTHER] > 0.9 * 60 * 119
    assert record["words"]["a stranger"][SAME] == 0 and sum(record["words"]["a stranger"].values()) == 60


def test_limits_are_made_from_known_people_alone(likeness: Any):
    """Of every pair that a limit is made from, both are known people: here those alone lie far apart."""
    own = torch.zeros(100, 128)
    own[likeness.KNOWN, 0] = torch.arange(50.0) * 10
    own[likeness.ASKED, 1] = torch.arange(50.0) + 1
    seen = dict.fromkeys(("doing nothing", "the clean face", "half a stranger"), own[likeness.ASKED])
    compared = likeness.distances_of(own, seen | {"restored": own})
    assert compared.known.shape == (50, 49) and compared.known.min() == 10
    assert compared.strangers.shape == (100, 99) and compared.strangers.min() == 1


def test_the_tables_of_the_results_are_those_of_the_readme(likeness: Any, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["likeness.py"])
    likeness.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    readme = set((BENCHMARKS / "README.md").read_text(encoding="utf-8").splitlines())
    assert len(printed) > 50 and [line for line in printed if line not in readme] == []
