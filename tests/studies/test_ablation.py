"""The grid over settings, against clean copies."""

import json

import pytest
import torch

from bfr_core.adaptation.targets import TargetConfig
from bfr_core.adaptation.tuning import perceptual_by
from bfr_core.cli.commands import main
from bfr_core.diffusion.prior import load_prior
from bfr_core.diffusion.sampler import SamplerConfig
from bfr_core.files.records import write_json
from bfr_core.studies.ablation import Grid, _measured, as_table
from bfr_core.training.config import FinetuneConfig


def test_the_grid_leaves_out_what_makes_no_sense():
    base = TargetConfig(SamplerConfig(num_steps=100, t_start=50, t_constrain_end=10, calls=10))
    made = list(Grid((2, 4), (5, 20), (0, 8), (0, 3)).configs(base))
    assert len(made) == 2 * 3 * 2
    assert all(c.sampler.t_constrain_end < c.sampler.t_start and c.sampler.calls <= c.sampler.t_start for c in made)
    assert {(c.sampler.factor, c.sampler.t_start, c.sampler.t_constrain_end, c.t_clean) for c in made} >= {
        (4, 20, 8, 3)
    }


@pytest.fixture
def command(photos, tiny_restorer, tiny_prior, tmp_path):
    assert main(["degrade", str(photos), "--kind", "film_grain", "--out", str(tmp_path / "lq")]) == 0
    for file in (tmp_path / "lq").rglob("*.png.png"):  # photos were .png: one suffix to match by
        file.rename(file.with_suffix(""))
    return ["ablate", str(tmp_path / "lq"), "--clean", str(photos), "--out", str(tmp_path / "out"), "--factors", "2",
            "4", "--starts", "20", "--ends", "0", "5", "--calls", "2", "--iterations", "2", "--micro-batch", "2",
            "--restorer", str(tiny_restorer), "--prior", str(tiny_prior), "--json"]  # fmt: skip


@pytest.mark.slow
def test_every_cell_is_measured_once_and_kept(command, tmp_path, capsys, monkeypatch):
    assert main([*command, "--tune"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(c["factor"], c["t_constrain_end"]) for c in cells] == [(2, 0), (2, 5), (4, 0), (4, 5)]
    for cell in cells:
        mean, low, high = cell["restorer"]["psnr"]
        assert 5 < low <= mean <= high < 60 and cell["targets"]["psnr"][0] != mean
    kept = tmp_path / "out" / "ablation.json"
    first = json.loads(kept.read_text())
    first[next(iter(first))]["factor"] = 99  # shows whether it is made again
    write_json(kept, first)  # as the program writes it: a file changed by hand would be kept beside a new one
    assert main([*command, "--tune"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["factor"] == 99
    monkeypatch.setattr("bfr_core.studies.ablation.perceptual_by", lambda *_: "LPIPS")  # was installed since
    assert main([*command, "--tune"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["factor"] == 2


def test_a_sorted_folder_is_taken_evenly_and_halved_in_turn(command, monkeypatch):
    from bfr_core.studies import ablation

    seen = []

    def cell(faces, half, names, *_):
        seen.append((half, names))
        return {}

    monkeypatch.setattr(ablation, "_cell", cell)
    monkeypatch.setattr(ablation, "as_table", lambda cells: "")
    main([*command, "--tune", "--limit", "5"])
    half, names = seen[0]
    every = sorted(names)
    assert half == 2 and names == every[1::2] + every[::2]


def test_it_is_known_by_which_network_the_perceptual_term_measures(tiny_prior, monkeypatch, tmp_path):
    prior, config = load_prior(tiny_prior), FinetuneConfig(perceptual=0.1)
    monkeypatch.setattr("bfr_core.adaptation.tuning.find_vgg", lambda: None)
    assert perceptual_by(config, prior) == prior.sha256 and perceptual_by(config, None) == ""
    monkeypatch.setattr("bfr_core.adaptation.tuning.find_vgg", lambda: tmp_path)
    assert perceptual_by(config, prior) == "LPIPS"
    assert perceptual_by(FinetuneConfig(perceptual=0), prior) == ""


def test_what_cannot_be_ablated_is_one_line(command, capsys):
    command[command.index("20")] = "4"
    command[command.index("0")] = "6"
    assert main(command) == 2
    assert "no combination is left" in capsys.readouterr().err


def test_what_one_face_has_no_interval_of_is_null_and_can_be_shown():
    face = torch.rand(1, 3, 32, 32)
    measured = _measured((face + 0.1).clamp(0, 1), face)
    mean, *interval = measured["psnr"]
    assert mean and mean > 10 and interval == [None, None]
    json.dumps(measured, allow_nan=False)
    cell = {"factor": 2, "t_start": 8, "t_constrain_end": 0, "t_clean": 0, "targets": measured}
    assert f"{mean:.2f}" in as_table([cell])
