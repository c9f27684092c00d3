"""Targets of a run's faces: drawn in batches, or matched to pictures from elsewhere."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bfr_core.adaptation import target_stage
from bfr_core.adaptation.config import FaceConfig
from bfr_core.adaptation.faces import collect_faces, collect_shard, faces_of
from bfr_core.adaptation.run import Run
from bfr_core.adaptation.target_checks import accepted_targets
from bfr_core.adaptation.target_stage import (
    check_given,
    draw_shard,
    draw_targets,
    drawn_by,
    made_targets,
    make_targets,
    match_in_order,
    match_targets,
)
from bfr_core.diffusion.prior import load_prior
from bfr_core.files.photos import read_image, write_image
from bfr_core.files.records import read_json, write_json
from bfr_core.files.shards import Shard
from bfr_core.restorers import load_restorer

ROOT = Path(__file__).resolve().parents[2]
ALIGNED = FaceConfig(aligned=True)


def test_a_faces_target_does_not_depend_on_its_batch(photos, config, tiny_restorer, tiny_prior, tmp_path):
    restorer, prior = load_restorer(tiny_restorer), load_prior(tiny_prior)
    made = []
    for batch_size in (1, 4):
        run = Run(tmp_path / str(batch_size))
        faces = collect_faces(photos, run, 32, ALIGNED)
        draw_targets(run, faces, restorer, prior, replace(config.targets, batch_size=batch_size, precision="float32"))
        made.append(read_image(run.targets / f"{faces.names[5]}.png"))
    assert (made[0] - made[1]).abs().max() <= 1.01 / 255


def held_by(run: Run) -> dict[str, bytes]:
    """What the crops, restored faces and targets of a run hold, by relative path."""
    files = (path for folder in (run.faces, run.restored, run.targets) for path in folder.glob("*.png"))
    return {path.relative_to(run.folder).as_posix(): path.read_bytes() for path in files}


def test_shards_collect_and_draw_what_one_process_would(photos, config, tiny_restorer, tiny_prior, tmp_path):
    restorer, prior = load_restorer(tiny_restorer), load_prior(tiny_prior)
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    some = replace(config, targets=replace(config.targets, t_clean="auto", batch_size=2))
    expected = collect_faces(photos, whole, 32, ALIGNED)
    _, made_from = make_targets(whole, expected, restorer, prior, some)

    counts = [collect_shard(photos, run, 32, ALIGNED, Shard(number, 3))[0] for number in (2, 3, 1)]
    assert counts == [3, 3, 4] and not (run.faces / "faces.json").exists()
    looked_at: list[str] = []
    faces = collect_faces(photos, run, 32, ALIGNED, lambda *said: looked_at.append(said[0]))
    assert faces.names == expected.names and faces.fingerprint == expected.fingerprint
    assert not list(run.faces.glob("photos-*")), "their journals are in the run's"

    drawn = [draw_shard(run, faces, restorer, prior, some, Shard(number, 2)) for number in (2, 1)]
    assert drawn == [4, 6]
    before = {path: path.stat().st_mtime_ns for path in run.targets.glob("*.png")}
    _, gathered = make_targets(run, faces, restorer, prior, some)
    assert before == {path: path.stat().st_mtime_ns for path in run.targets.glob("*.png")}, "nothing was left to draw"
    assert held_by(run) == held_by(whole) and gathered == made_from
    assert not list(run.targets.glob("stage-*"))
    draw_targets(run, faces, restorer, prior, replace(config.targets, seed=1))
    assert before != {path: path.stat().st_mtime_ns for path in run.targets.glob("*.png")}


def test_a_shard_does_not_draw_twice_and_draws_anew_with_other_settings(
    photos, config, tiny_restorer, tiny_prior, tmp_path, drawn_names
):
    restorer, prior, run = load_restorer(tiny_restorer), load_prior(tiny_prior), Run(tmp_path)
    faces = collect_faces(photos, run, 32, ALIGNED)
    part = Shard(1, 2)
    for config_, expected in (
        (config, 6), (config, 0), (replace(config, targets=replace(config.targets, seed=1)), 6), (config, 6),
    ):  # fmt: skip
        drawn_names.clear()
        draw_shard(run, faces, restorer, prior, config_, part)
        assert len(drawn_names) == expected
    drawn_names.clear()
    draw_targets(run, faces, restorer, prior, config.targets)
    assert sorted(drawn_names) == sorted(Shard(2, 2).of(faces.names, config.targets.batch_size))


def test_targets_never_hold_more_than_a_batch(photos, config, tiny_restorer, tiny_prior, tmp_path, monkeypatch):
    import bfr_core.adaptation.target_stage as module

    sizes = []
    real = module.draw_in_batches

    def counted(batches, *rest):
        for names, made in real(batches, *rest):
            assert len(made.restored) == len(made.pseudo_target) == len(names)
            sizes.append(len(names))
            yield names, made

    monkeypatch.setattr(module, "draw_in_batches", counted)
    run = Run(tmp_path)
    faces = collect_faces(photos, run, 32, ALIGNED)
    draw_targets(run, faces, load_restorer(tiny_restorer), load_prior(tiny_prior), config.targets)
    assert sizes == [4, 4, 2]


COUNTED = """
import resource, sys
from pathlib import Path
from bfr_core.adaptation.config import SMALL
from bfr_core.adaptation.faces import FaceSet
from bfr_core.adaptation.run import Run
from bfr_core.adaptation.target_stage import draw_targets
from bfr_core.diffusion.prior import load_prior
from bfr_core.restorers import load_restorer

count, face, restorer, prior, folder = int(sys.argv[1]), *map(Path, sys.argv[2:])
run = Run(folder)
run.faces.mkdir(parents=True)
for i in range(count):
    (run.faces / f"{i}.png").symlink_to(face)
faces = FaceSet(run.faces, [str(i) for i in range(count)], "test", [])
draw_targets(run, faces, load_restorer(restorer), load_prior(prior), SMALL.targets)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_thousand_faces_need_no_more_memory_than_a_hundred(photos, tiny_restorer, tiny_prior, tmp_path):
    peaks = []
    for count in (100, 10_000):
        places = [photos / "face 0.png", tiny_restorer, tiny_prior, tmp_path / str(count)]
        command = [sys.executable, "-c", COUNTED, str(count), *map(str, places)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 50, f"{peaks[0]:.0f} MB for 100 faces, {peaks[1]:.0f} MB for 10,000"


def test_targets_from_elsewhere_are_matched_by_name(photos, tmp_path):
    faces = collect_faces(photos, Run(tmp_path / "run"), 32, ALIGNED)
    folder = tmp_path / "targets"
    write_image(folder / f"{faces.names[2]}.jpg", torch.zeros(3, 64, 64))
    write_image(folder / "stranger.png", torch.zeros(3, 64, 64))
    assert list(match_targets(faces, folder)) == [faces.names[2]]


def test_targets_that_match_nothing_are_refused(photos, tmp_path):
    faces = collect_faces(photos, Run(tmp_path / "run"), 32, ALIGNED)
    write_image(tmp_path / "targets" / "stranger.png", torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match="no target has the name of a face"):
        match_targets(faces, tmp_path / "targets")


def test_pictures_in_order_become_targets(photos, tmp_path):
    run = Run(tmp_path / "run")
    faces = collect_faces(photos, run, 32, ALIGNED)
    match_in_order(run, faces, torch.rand(4, 3, 64, 64))
    files = match_in_order(run, faces, torch.rand(6, 3, 32, 32), first=4)
    assert list(files) == faces.names
    with pytest.raises(ValueError, match="2 targets from face 9 on were given, but there are 10 faces"):
        match_in_order(run, faces, torch.rand(2, 3, 32, 32), first=9)
    with pytest.raises(ValueError, match="square"):
        match_in_order(run, faces, torch.rand(1, 3, 32, 40))


def test_targets_that_were_given_stay_while_their_crops_do(photos, tmp_path, caplog):
    """In rounds: after one, a photo is added, one is replaced, and one is taken away and comes back."""
    folder, run = tmp_path / "photos", Run(tmp_path / "run")
    shutil.copytree(photos, folder)
    faces = collect_faces(folder, run, 32, ALIGNED)
    match_in_order(run, faces, torch.rand(5, 3, 32, 32))
    given = {n: p.read_bytes() for n, p in match_in_order(run, faces, torch.rand(4, 3, 64, 64), first=5).items()}
    changed, away = [name for name in faces.names if "__" not in name][:2]
    write_image(folder / f"{changed}.png", 1 - read_image(folder / f"{changed}.png"))
    (folder / f"{away}.png").rename(tmp_path / "away.png")
    write_image(folder / "a new one.png", torch.rand(3, 32, 32))
    more = collect_faces(folder, run, 32, ALIGNED)
    files = match_in_order(run, more, torch.rand(1, 3, 32, 32), first=more.names.index("a new one"))
    assert set(files) == set(given) - {changed, away} | {"a new one"}
    assert [r.getMessage().split(": ")[1] for r in caplog.records if changed in r.getMessage()] == [
        "has changed since its target was given; give its target again"
    ]
    (tmp_path / "away.png").rename(folder / f"{away}.png")
    files = match_in_order(run, collect_faces(folder, run, 32, ALIGNED), [])
    assert set(files) == set(given) - {changed} | {"a new one"}
    assert all(files[name].read_bytes() == given[name] for name in set(given) & set(files))


def test_targets_given_to_a_version_that_kept_no_marks_stay(photos, tmp_path):
    run = Run(tmp_path / "run")
    faces = collect_faces(photos, run, 32, ALIGNED)
    match_in_order(run, faces, torch.rand(10, 3, 32, 32))
    write_json(run.given / "stage.json", {"fingerprint": faces.fingerprint})
    assert len(match_in_order(run, faces, [])) == 10
    write_json(run.given / "stage.json", {"fingerprint": "of other faces"})
    assert not match_in_order(run, faces, [])


def test_pictures_of_several_sizes_become_targets(photos, tmp_path):
    run = Run(tmp_path / "run")
    faces = collect_faces(photos, run, 32, ALIGNED)
    files = match_in_order(run, faces, [torch.rand(3, 64, 64), torch.rand(3, 32, 32)])
    assert [read_image(path).shape[-1] for path in files.values()] == [64, 32]


def test_targets_of_former_faces_are_not_learned_from(photos, config, tiny_restorer, tiny_prior, tmp_path, caplog):
    """`bfr finetune` after one photo was replaced and another added, with no `bfr targets` between."""
    folder, run = tmp_path / "photos", Run(tmp_path / "run")
    shutil.copytree(photos, folder)
    restorer, prior = load_restorer(tiny_restorer), load_prior(tiny_prior)
    faces = collect_faces(folder, run, 32, ALIGNED)
    passed, made_from = make_targets(run, faces, restorer, prior, config)
    caplog.clear()
    assert made_targets(run, faces) == (passed, made_from) and not caplog.records
    changed, by_hand = [name for name in passed if "__" not in name][:2]
    write_image(folder / f"{changed}.png", 1 - read_image(folder / f"{changed}.png"))
    write_image(folder / f"{by_hand}.png", 1 - read_image(folder / f"{by_hand}.png"))
    (run.targets / f"{by_hand}.png").write_bytes((run.targets / f"{changed}.png").read_bytes())
    write_image(folder / "new.png", torch.rand(3, 32, 32))
    found = made_targets(run, collect_faces(folder, run, 32, ALIGNED))[0]
    assert set(found) == set(passed) - {changed, by_hand}, "what was retouched was so for the former face"
    said = [record.getMessage() for record in caplog.records]
    assert f"{changed}.png: has changed since its target was drawn; it is left out" in said
    assert "1 of 11 faces have no target and are left out (new.png)" in said
    (run.targets / "stage.json").write_text('{"made": {}}')  # of a run of before, which does not tell
    assert {changed, by_hand} < set(made_targets(run, faces_of(run))[0])


def test_targets_of_former_faces_stay_so_when_drawing_them_anew_is_stopped(
    photos, config, tiny_restorer, tiny_prior, tmp_path
):
    folder, run = tmp_path / "photos", Run(tmp_path / "run")
    shutil.copytree(photos, folder)
    restorer, prior = load_restorer(tiny_restorer), load_prior(tiny_prior)
    passed, _ = make_targets(run, collect_faces(folder, run, 32, ALIGNED), restorer, prior, config)
    changed = [name for name in passed if "__" not in name][:2]
    for name in changed:
        write_image(folder / f"{name}.png", 1 - read_image(folder / f"{name}.png"))
    faces = collect_faces(folder, run, 32, ALIGNED)
    assert set(made_targets(run, faces)[0]) == set(passed) - set(changed)

    def stop(stage, *_):
        if stage == "targets":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_targets(run, faces, restorer, prior, config, stop)
    assert set(made_targets(run, faces)[0]) == set(passed) - set(changed)
    assert drawn_by(run)["prior_sha256"] == prior.sha256
    make_targets(run, faces, restorer, prior, config)
    assert set(changed) <= set(made_targets(run, faces)[0]) | set(read_json(run.target_checks)["refused"])


def test_targets_of_two_settings_are_never_mixed(
    photos, config, tiny_restorer, tiny_prior, tmp_path, monkeypatch, caplog
):
    """The drawing with other settings is stopped inside its second batch."""
    restorer, prior, run = load_restorer(tiny_restorer), load_prior(tiny_prior), Run(tmp_path / "run")
    faces = collect_faces(photos, run, 32, ALIGNED)
    before = replace(config, targets=replace(config.targets, batch_size=4), gate=replace(config.gate, limit=0.0))
    after = replace(before, targets=replace(before.targets, seed=9))
    make_targets(run, faces, restorer, prior, before)
    whole = held_by(run)
    write, written = target_stage.write_or_keep, []

    def stop_within(count):
        def counted(path, pixels):
            if path.parent == run.targets:
                written.append(path)
                if len(written) == count:
                    raise KeyboardInterrupt
            write(path, pixels)

        return counted

    monkeypatch.setattr(target_stage, "write_or_keep", stop_within(7))
    with pytest.raises(KeyboardInterrupt):
        make_targets(run, faces, restorer, prior, after)
    assert set(made_targets(run, faces)[0]) == set(faces.names[:4]), "those that were drawn with the new settings"
    assert "those of 6 faces are of other settings" in caplog.text
    monkeypatch.setattr(target_stage, "write_or_keep", write)
    make_targets(run, faces, restorer, prior, before)
    assert held_by(run) == whole and len(made_targets(run, faces)[0]) == 10


def test_a_run_whose_targets_are_all_of_former_faces_says_so(photos, config, tiny_restorer, tiny_prior, tmp_path):
    folder, run = tmp_path / "photos", Run(tmp_path / "run")
    shutil.copytree(photos, folder)
    faces = collect_faces(folder, run, 32, ALIGNED)
    make_targets(run, faces, load_restorer(tiny_restorer), load_prior(tiny_prior), config)
    for photo in folder.rglob("*.png"):
        write_image(photo, 1 - read_image(photo))
    with pytest.raises(ValueError, match="holds no targets of its faces; make them first"):
        made_targets(run, collect_faces(folder, run, 32, ALIGNED))


def test_checks_of_other_targets_leave_those_of_the_runs_own(photos, config, tiny_restorer, tiny_prior, tmp_path):
    restorer, prior, run = load_restorer(tiny_restorer), load_prior(tiny_prior), Run(tmp_path / "run")
    faces = collect_faces(photos, run, 32, ALIGNED)
    strict = replace(config.gate, limit=0.2, tries=0)
    passed, _ = make_targets(run, faces, restorer, prior, replace(config, gate=strict))
    assert 0 < len(passed) < len(faces)
    others = {}
    for name in faces.names:
        others[name] = tmp_path / "others" / f"{name}.png"
        write_image(others[name], read_image(faces.crop(name)).flip(2))
    given, made_from = check_given(run, faces, others, replace(config.gate, limit=0.0))
    assert set(given) == set(faces.names)
    assert set(made_targets(run, faces)[0]) == set(passed), "those that were refused stay refused"
    own = {name: run.targets / f"{name}.png" for name in faces.names}
    brought = check_given(run, faces, own, replace(config.gate, limit=0.0))[0]
    assert set(brought) == set(faces.names), "the checks were asked to refuse none"
    assert set(accepted_targets(run, others, made_from)) == set(faces.names)


def test_of_the_targets_of_another_run_the_one_that_was_drawn_again_counts(photos, tmp_path):
    run, other = Run(tmp_path / "run"), tmp_path / "other" / "targets"
    faces = collect_faces(photos, run, 32, ALIGNED)
    name = faces.names[0]
    for place in (other / f"{name}.png", other / "redrawn" / f"{name}.png", other / "redrawn" / "tries" / "z_1.png"):
        write_image(place, torch.rand(3, 32, 32))
    (other / "stage.json").write_text("{}")
    assert match_targets(faces, other) == {name: other / "redrawn" / f"{name}.png"}
    for again in ([], [name]):  # what the other run learns from
        write_json(other.parent / "gate.json", {"redrawn": again})
        assert match_targets(faces, other) == {name: other / ("redrawn" if again else "") / f"{name}.png"}


def test_another_estimate_of_the_damage_alone_draws_no_target_anew(
    photos, config, tiny_restorer, tiny_prior, tmp_path, monkeypatch
):
    restorer, prior, run = load_restorer(tiny_restorer), load_prior(tiny_prior), Run(tmp_path / "run")
    faces = collect_faces(photos, run, 32, ALIGNED)
    estimates, levels = iter("ab"), iter((8, 12))
    damage = lambda *_: SimpleNamespace(as_json=lambda: next(estimates))  # noqa: E731
    monkeypatch.setattr(target_stage, "folder_damage", damage)
    monkeypatch.setattr(target_stage, "level_by_known_answers", lambda *_: next(levels))
    own = replace(config, targets=replace(config.targets, t_clean="auto"), finetune=replace(config.finetune, sharp=1.0))
    settled = [target_stage.settled_target_config(run, faces, restorer, prior, own) for _ in range(2)]
    assert [one.t_clean for one in settled] == [8, 8]


def test_settings_that_were_corrected_beside_a_prior_draw_its_targets_anew(
    photos, config, tiny_restorer, tiny_prior, tmp_path
):
    shutil.copytree(tiny_prior, tmp_path / "prior")
    restorer, run = load_restorer(tiny_restorer), Run(tmp_path / "run")
    faces = collect_faces(photos, run, 32, ALIGNED)
    held = []
    for prediction in ("v_prediction", "epsilon"):
        (tmp_path / "prior/scheduler_config.json").write_text(f'{{"prediction_type": "{prediction}"}}')
        draw_targets(run, faces, restorer, load_prior(tmp_path / "prior"), config.targets)
        held.append(held_by(run))
    assert all(held[0][name] != held[1][name] for name in held[0] if name.startswith("targets/"))
