"""The benchmark of memory and speed: its table, and that it goes on where it was stopped. Nothing is measured here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "memory.py"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("memory_benchmark", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stopped_it_goes_on_and_prints_one_whole_table(memory: Any, tmp_path, monkeypatch, capsys):
    asked: list[list[str]] = []

    def measured(folder, device, line):
        asked.append(line)
        if len(asked) == 3:
            raise KeyboardInterrupt
        if line[1] == "tuning step":
            return {"seconds a face": "none: CUDA out of memory."}
        return {"seconds a face": "1.50", "peak memory": "900 MB"}

    monkeypatch.setattr(memory, "measured_apart", measured)
    networks = ["--networks", "GFPGAN", "prior", "--batches", "1", "8", "--work", str(tmp_path / "lines")]
    monkeypatch.setattr(sys, "argv", ["memory.py", *networks])
    with pytest.raises(KeyboardInterrupt):
        memory.main()
    with (tmp_path / "lines").open("a") as file:
        file.write('{"key": ["cut sho')  # by a power failure
    capsys.readouterr()
    memory.main()
    assert len(asked) == 9 and asked[2] == asked[3], "the line it was stopped at is measured anew, and no other"
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 8 and {row.count("|") for row in rows} == {8}
    assert rows[2] == "| GFPGAN | restore | float32 | 1 | 1.50 | 900 MB |  |"
    assert rows[4] == "| GFPGAN | tuning step | float32 | 1 | none: CUDA out of memory. |  |  |"


@pytest.mark.parametrize(
    ("code", "error", "cell", "kept"),
    [
        (-9, "a warning", "none: ended by signal 9, most likely for want of memory", True),
        (1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory | x", "memory / x", True),
        (1, "ModuleNotFoundError: No module named 'x'", "No module named", False),
    ],
)
def test_a_line_without_figures_says_why(memory: Any, tmp_path, monkeypatch, capsys, code, error, cell, kept):
    def run(command, **_):
        return memory.subprocess.CompletedProcess(command, code if "--one" in command else 0, "", error)

    monkeypatch.setattr(memory.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["memory.py", "--networks", "prior", "--work", str(tmp_path / "lines")])
    memory.main()
    assert cell in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "lines").exists() is kept


def test_an_ended_measurement_is_no_result(memory: Any, tmp_path, monkeypatch):
    ended = memory.subprocess.CompletedProcess([], -15, "", "")
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(KeyboardInterrupt):
        memory.measured_apart(tmp_path, "cpu", ["prior", "sample step", "float32", "1"])


def test_a_tuning_that_did_not_fit_at_once_says_so(memory: Any, tmp_path, monkeypatch, tiny_restorer):
    import torch

    from bfr_core.restorers import load_restorer
    from bfr_core.training.objectives import Pixels

    real = Pixels.terms

    def small(self, student, batch):
        if len(batch.lq) > 1:
            raise torch.cuda.OutOfMemoryError("no room")
        return real(self, student, batch)

    monkeypatch.setattr(Pixels, "terms", small)
    monkeypatch.setattr(memory, "load_prior", lambda path: memory_prior)
    images = torch.rand(4, 3, 32, 32)
    memory_prior: Any = type(
        "P", (), {"encoder_to": lambda self, device: self, "features": lambda *_, **__: [images]}
    )()
    seconds, extra = memory.tuning_step(load_restorer(tiny_restorer), tmp_path / "a", False, "float32", images)
    assert seconds > 0 and extra == {"batch": "4 (too little memory for 2 faces at once; going on with 1)"}
