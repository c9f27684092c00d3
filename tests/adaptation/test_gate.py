"""The checks on the targets of a run: what is left out, and what is drawn again."""

import json

import pytest

from bfr_core.adaptation.faces import collect_faces
from bfr_core.adaptation.run import Run
from bfr_core.adaptation.target_checks import GateConfig, gate_targets
from bfr_core.adaptation.target_stage import targets_of
from bfr_core.files.photos import write_image


def spoiled_run(photos, config, folder):
    """A run whose second target is of another tone; its faces, its targets, and the name of that face."""
    run = Run(folder)
    with run.locked():
        faces = collect_faces(photos, run, 32, config.faces)
    for i, name in enumerate(faces.names):
        write_image(run.targets / f"{name}.png", (faces.batch(i, i + 1)[0] + (0.4 if i == 1 else 0.01)).clamp(0, 1))
    return run, faces, targets_of(run, faces), faces.names[1]


def test_the_gate_leaves_out_what_no_new_draw_mends(photos, config, tmp_path):
    run, faces, files, spoiled = spoiled_run(photos, config, tmp_path)
    tries = []

    def redraw(lq, names, attempt):
        tries.append((names, attempt))
        return (lq + 0.4).clamp(0, 1)

    accepted = gate_targets(run, faces, files, "made", GateConfig(limit=10), redraw)
    assert set(files) - set(accepted) == {spoiled} and tries == [([spoiled], 1), ([spoiled], 2)]
    found = json.loads(run.gate.read_text())
    assert "low band" in found["refused"][spoiled] and set(found["checks"]) == set(files)
    assert gate_targets(run, faces, files, "made", GateConfig(limit=10), redraw) == accepted and len(tries) == 2


def test_the_gate_takes_a_new_draw_that_passes(photos, config, tmp_path):
    run, faces, files, spoiled = spoiled_run(photos, config, tmp_path)
    before = files[spoiled].read_bytes()
    accepted = gate_targets(run, faces, files, "made", GateConfig(limit=10), lambda lq, names, attempt: lq + 0.01)
    assert accepted[spoiled] == run.redrawn / f"{spoiled}.png" and accepted[spoiled].exists()
    assert files[spoiled].read_bytes() == before  # so that a gate cut short finds what it found before


def test_targets_that_are_all_unfit_are_an_error(photos, config, tmp_path, monkeypatch):
    run, faces, files, _ = spoiled_run(photos, config, tmp_path)
    monkeypatch.setattr("bfr_core.adaptation.target_checks.refusals", lambda checks, *_: ["no"] * len(checks.low_band))
    with pytest.raises(ValueError, match="none of the 10 targets is fit"):
        gate_targets(run, faces, files, "made", GateConfig())
