"""One cell of a benchmark: what each method is given, and that kept figures are found again."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch

from bfr_core.adaptation.config import SMALL, AdaptConfig
from bfr_core.adaptation.folder_damage import restored_for_estimate
from bfr_core.diffusion.prior import load_prior
from bfr_core.restorers import load_restorer
from bfr_core.settings import changed
from bfr_core.studies import benchmark
from bfr_core.studies.benchmark import ROWS, make_cell_faces, own_settings, read_cell, run_cell
from bfr_core.training.batches import split

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lab(tiny_restorer, tiny_prior):
    """Restorer, prior, quick settings and the faces of a cell."""
    quick = {"finetune.iterations": 2, "finetune.sharp": 0, "finetune.perceptual": 0}
    config = changed(SMALL, quick | {"targets.sampler.t_start": 8, "targets.sampler.calls": 2})
    faces = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    faces = torch.nn.functional.interpolate(faces, (32, 32), mode="bicubic").clamp(0, 1)
    cell_faces = make_cell_faces(faces[:4], faces[4:], "sensor", 3)
    return load_restorer(tiny_restorer), load_prior(tiny_prior), config, cell_faces


def test_every_method_is_run_and_those_done_are_not(lab):
    restorer, prior, config, cell_faces = lab
    made: dict[str, tuple[torch.Tensor, dict]] = {}
    run_cell(cell_faces, restorer, prior, config, (), lambda name, faces, more: made.update({name: (faces, more)}))
    assert set(made) == set(ROWS)
    assert torch.equal(made["damaged"][0], cell_faces.lq)
    assert torch.equal(made["base"][0], torch.cat([restorer.restore(cell_faces.lq)]))
    assert set(made["adapted"][1]) == {"old damage", "targets", "noise level"} and "setting" in made["denoiser"][1]
    again: list[str] = []
    run_cell(cell_faces, restorer, prior, config, set(ROWS) - {"oracle"}, lambda name, *_: again.append(name))
    assert again == ["oracle"]


def test_the_oracle_alone_sees_the_clean_faces(lab, monkeypatch):
    restorer, prior, config, cell_faces = lab
    given: list[torch.Tensor] = []
    tuned = benchmark.tuned

    def watched(restorer, lq, targets, *rest):
        given.append(targets)
        return tuned(restorer, lq, targets, *rest)

    monkeypatch.setattr(benchmark, "tuned", watched)
    run_cell(cell_faces, restorer, prior, config, (), lambda *_: None)
    assert sum(torch.equal(targets, cell_faces.adapt_hq) for targets in given) == 1 and len(given) == 7


def test_the_adapted_restorer_alone_learns_from_sharp_faces_under_the_folders_damage(lab, monkeypatch):
    restorer, prior, config, cell_faces = lab
    config = changed(config, {"finetune.sharp": 0.5})
    given: list[tuple[float, Any]] = []
    finetune = benchmark.finetune

    def watched(restorer, pairs, config, **more):
        given.append((config.sharp, more.get("sharp")))
        return finetune(restorer, pairs, config, **more)

    monkeypatch.setattr(benchmark, "finetune", watched)
    made: dict[str, torch.Tensor] = {}
    run_cell(cell_faces, restorer, prior, config, (), lambda name, faces, more: made.update({name: faces}))
    with_sharp = [sharp for share, sharp in given if share]
    assert len(given) == 7 and len(with_sharp) == 1 and with_sharp[0] is not None
    assert all(not torch.equal(made["adapted"], made[row]) for row in (benchmark.GENERIC, benchmark.ALONE))


def test_one_tuning_on_generic_damage_serves_the_cells_of_every_damage(lab, monkeypatch):
    restorer, prior, config, cell_faces = lab
    others = [rows for rows in ROWS if rows != benchmark.GENERIC]
    tunings: list[torch.Tensor] = []
    tuned = benchmark.tuned

    def watched(restorer, lq, *rest):
        tunings.append(lq)
        return tuned(restorer, lq, *rest)

    monkeypatch.setattr(benchmark, "tuned", watched)
    by_itself: list[torch.Tensor] = []
    run_cell(cell_faces, restorer, prior, config, others, lambda _, faces, __: by_itself.append(faces))
    generic = cache(partial(benchmark.tuned_on_generic_damage, restorer, config))
    shared: list[torch.Tensor] = []
    for kind in ("sensor", "halftone"):
        faces = make_cell_faces(cell_faces.adapt_hq, cell_faces.hq, kind, 3)
        run_cell(faces, restorer, prior, config, others, lambda _, faces, __: shared.append(faces), generic=generic)
    assert len(tunings) == 2  # one by itself, one for both damages
    assert torch.equal(shared[0], by_itself[0]) and not torch.equal(shared[0], shared[1])


@pytest.mark.parametrize("share", [0.1, 0.0, 0.5])
def test_the_generic_control_is_chosen_on_faces_that_it_does_not_learn_from(share):
    config = changed(SMALL, {"finetune.held_out": share}).finetune
    shown = benchmark.faces_of_pairs(300, 174, config)
    learned, held = split(300, config)
    assert not {shown[i] for i in learned} & {shown[i] for i in held}
    assert set(shown) == set(range(174)) and len(shown) == 300


def test_the_benchmark_cleans_faces_as_the_program_does(lab, monkeypatch):
    """At the prior's size, whichever the restorer's is."""
    restorer, prior, config, cell_faces = lab
    config = changed(config, {"targets.t_clean": 12})
    asked = []

    def restored(lq, base, by, how):
        asked.append((base, by, how.t_clean))
        return restored_for_estimate(lq, base, by, how)

    monkeypatch.setattr(benchmark, "restored_for_estimate", restored)
    made: list[torch.Tensor] = []
    rest = set(ROWS) - {benchmark.TEACHER}
    run_cell(cell_faces, restorer, prior, config, rest, lambda _, faces, __: made.append(faces))
    assert asked == [(restorer, prior, 12)]
    assert torch.equal(made[0], restored_for_estimate(cell_faces.lq, restorer, prior, config.targets))


def test_faces_are_damaged_alike_in_any_number_and_otherwise_in_each_half():
    faces = torch.rand(3, 3, 32, 32)
    assert torch.equal(benchmark.damaged(faces, "sensor", 0, "a")[:2], benchmark.damaged(faces[:2], "sensor", 0, "a"))
    assert not torch.equal(benchmark.damaged(faces, "sensor", 0, "a"), benchmark.damaged(faces, "sensor", 0, "b"))


def test_only_what_was_changed_counts_as_a_departure():
    assert own_settings(AdaptConfig()) == {}
    config = replace(AdaptConfig(), finetune=replace(AdaptConfig().finetune, lr=0.5, halve_at=(0.1,)))
    assert own_settings(config) == {"finetune": {"lr": 0.5, "halve_at": (0.1,)}}


def test_a_cell_of_another_recipe_is_as_good_as_none(tmp_path):
    path = tmp_path / "cell.json"
    assert read_cell(path, "a") == {}
    path.write_text(json.dumps({"made_from": "a", "rows": {"base": {}}}))
    assert read_cell(path, "a") == {"base": {}} and read_cell(path, "b") == {}


@pytest.mark.parametrize(
    ("results", "asked", "page", "count"),
    [
        ("results/models256_600", "--summary", "docs/results.md", 5),
        ("results/unseen_200", "--summary", "docs/results.md", 3),
        ("results/models256_200", "--summary", "docs/results.md", 8),
        ("results", "--brief", "benchmarks/README.md", 4),
    ],
)
def test_the_published_results_are_found_and_are_those_of_the_documentation(
    monkeypatch, capsys, results, asked, page, count
):
    path = str(ROOT / "benchmarks" / "adaptation.py")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [path, "--work", str(ROOT / "benchmarks" / results), asked])
    run_path(path, run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| (\w+: )?adapted \|", line)]
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(rows) == count and all(row in text for row in rows)


@pytest.mark.slow
def test_the_papers_sets_of_the_documentation_are_those_that_are_kept(monkeypatch, capsys):
    path = str(ROOT / "benchmarks" / "paper_sets.py")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [path])
    run_path(path, run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("|---")]
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert len([line for line in lines if ": adapted |" in line]) >= 3 and all(line in text for line in lines)
