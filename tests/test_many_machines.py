"""The plan for many machines: where it can be worked out by hand. Nothing is measured here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "many_machines.py"


@pytest.fixture(scope="module")
def module() -> Any:
    spec = importlib.util.spec_from_file_location("many_machines", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["many_machines"] = module
    spec.loader.exec_module(module)
    return module


def test_without_chance_the_simulation_is_the_plan(module: Any) -> None:
    inputs = module.Inputs(photos=6400, seconds=2, start_up=10, read=0, written=0, driver=0, task=10, spread=0)
    for workers in (1, 4, 64):
        expected = 10 + 6400 * 2 / workers
        assert module.on_paper(inputs, workers) == (expected, "the workers")
        assert module.simulate(inputs, workers) == pytest.approx(expected)


def test_what_all_share_stops_the_growth(module: Any) -> None:
    slow_disk = module.Inputs(photos=64_000, seconds=1, start_up=0, read=5, written=5, storage=100, driver=0)
    plans = {one.workers: one for one in module.plan(slow_disk)}
    assert plans[4].bound == "the workers" and plans[4].efficiency == pytest.approx(1)
    assert plans[64].bound == "the storage" and plans[64].hours == pytest.approx(6400 / 3600)
    assert plans[64].simulated == pytest.approx(plans[64].hours, rel=0.05)
    slow_driver = module.Inputs(photos=64_000, seconds=1, start_up=0, read=0, written=0, driver=0.1)
    assert module.on_paper(slow_driver, 64) == (6400, "the driver")
    assert module.as_table(module.plan(slow_driver)).count("\n") == 1 + len(module.WORKERS)
