"""The first look: three faces through the stages of the adaptation itself, in a place of its own."""

import shutil
from dataclasses import replace

import pytest
import torch

from bfr_core.adaptation.adapt import adapt
from bfr_core.adaptation.config import SMALL, FaceConfig
from bfr_core.adaptation.faces import collect_faces, faces_of, leave_out
from bfr_core.adaptation.first_look import COLUMNS, first_look, place_of, read_first_look, spread
from bfr_core.adaptation.run import Run
from bfr_core.diffusion.sampler import SamplerConfig
from bfr_core.faces.align import Face, template
from bfr_core.files.photos import read_image, write_image
from bfr_core.files.records import read_json, write_json
from bfr_core.restorers import load_restorer
from bfr_core.settings import changed


@pytest.fixture
def config(tiny_restorer, tiny_prior):
    targets = replace(SMALL.targets, t_clean=9, batch_size=4, sampler=SamplerConfig(t_start=50, factor=4, calls=3))
    finetune = replace(SMALL.finetune, iterations=6, batch_size=4, micro_batch=4, lr=1e-2, sharp=0)
    own = replace(SMALL, restorer=str(tiny_restorer), prior=str(tiny_prior), faces=FaceConfig(aligned=True))
    return replace(own, targets=targets, finetune=finetune)


def everything(folder, but):
    files = (path for path in folder.rglob("*") if path.is_file() and but not in path.parents)
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_three_faces_of_the_run_before_and_after_and_the_run_stays_as_it_is(photos, config, tmp_path):
    run, base = Run(tmp_path / "run"), load_restorer(config.restorer)
    faces = collect_faces(photos, run, base.size, config.faces)
    leave_out(run, faces.names[:1])
    place = place_of(run)
    before, stages = everything(tmp_path, place.folder), []
    look = first_look(None, run, config, lambda stage, *_: stages.append(stage))
    assert everything(tmp_path, place.folder) == before
    assert list(dict.fromkeys(stages)) == ["forecast", "targets", "gate", "finetune"]
    assert [name for name, _ in look.rows] == [faces.names[i] for i in (1, 4, 7)], "of the nine that are in use"
    tuned = load_restorer(place.restorer)
    for name, (lq, restored, adapted, target) in look.rows:
        assert torch.equal(lq, read_image(run.faces / f"{name}.png"))
        assert torch.allclose(restored, base.restore(lq[None])[0], atol=1e-6), "of the face itself, not cleaned first"
        assert torch.allclose(adapted, tuned.restore(lq[None])[0], atol=1e-4) and not torch.equal(adapted, restored)
        assert torch.equal(target, read_image(place.targets / f"{name}.png"))
    assert look.steps == 6 and "3 faces and 6 of 6 steps" in look.said and "no verdict" in look.said
    assert (look.forecast.faces, look.forecast.guessed) == (9, False)
    report = place.report.read_text()
    assert report.count('src="data:image') == 12 and all(column in report for column in COLUMNS)
    assert read_json(place.folder / "report.json")["verdict"] == "not_judged"
    assert not place.checkpoint.exists()


def test_it_draws_what_the_adaptation_draws(photos, config, tmp_path):
    run = Run(tmp_path / "run")
    collect_faces(photos, run, 32, config.faces)
    config = changed(config, {"gate.limit": 0.0})
    look = first_look(None, run, config)
    adapt(photos, run.folder, config)
    for name, (*_, target) in look.rows:
        assert (target - read_image(run.targets / f"{name}.png")).abs().max() <= 2 / 255


def test_faces_of_another_size_are_named_and_photos_help(photos, config, tmp_path):
    run = Run(tmp_path)
    collect_faces(photos, run, 48, config.faces)
    with pytest.raises(ValueError, match="its faces are 48 pixels wide, and the restorer takes 32"):
        first_look(None, run, config)
    assert len(first_look(photos, run, config).rows) == 3


def test_a_look_at_another_folder_shows_its_faces(photos, config, tmp_path):
    run = Run(tmp_path / "run")
    collect_faces(photos, run, 32, config.faces)
    write_image(tmp_path / "others" / "white.png", torch.full((3, 32, 32), 0.9))
    (row,) = first_look(tmp_path / "others", run, config).rows
    assert row[0] == "white" and float(row[1][0].min()) > 0.85


def test_so_does_one_at_a_folder_of_the_same_name(photos, config, tmp_path):
    run = Run(tmp_path / "run")
    collect_faces(photos, run, 32, config.faces)
    write_image(tmp_path / "b" / photos.name / "white.png", torch.full((3, 32, 32), 0.9))
    assert [name for name, _ in first_look(tmp_path / "b" / photos.name, run, config).rows] == ["white"]
    renamed = tmp_path / "renamed"
    shutil.copytree(photos, renamed)
    write_image(run.faces / f"{faces_of(run).names[0]}.png", torch.zeros(3, 32, 32))  # as only the run has it
    assert float(first_look(renamed, run, config).rows[0][1][0].max()) == 0, "its own faces, whatever they are called"


def test_what_was_seen_is_read_back_as_it_is_on_disk(photos, config, tmp_path):
    run = Run(tmp_path)
    assert read_first_look(run) is None
    look = first_look(photos, run, config)
    read = read_first_look(run)
    assert read is not None
    rows, lines = read
    assert lines == [look.said, *look.forecast.lines()]
    for (name, seen), (expected, pictures) in zip(rows, look.rows, strict=True):
        assert name == expected
        assert all((a - b).abs().max() <= 0.5 / 255 + 1e-6 for a, b in zip(seen, pictures, strict=True))
    record = place_of(run).folder / "first_look.json"
    write_json(record, {"names": ["../../../secret"], "said": "", "lines": []})
    assert read_first_look(run) is None
    write_json(record, [1])
    assert read_first_look(run) is None


def test_another_look_with_other_settings_is_made_anew(photos, config, tmp_path):
    first = first_look(photos, Run(tmp_path), config)
    other = first_look(photos, Run(tmp_path), changed(config, {"finetune.lr": 3e-2, "targets.seed": 5}))
    assert not torch.equal(first.rows[0][1][2], other.rows[0][1][2])
    assert not torch.equal(first.rows[0][1][3], other.rows[0][1][3])
    assert not list(place_of(Run(tmp_path)).checkpoint.parent.glob("*.pt"))


def test_without_faces_some_photos_are_looked_through_and_no_more(config, tmp_path, monkeypatch):
    """Of 40 photos every sixth has a face; one of them has five."""
    folder, looked = tmp_path / "photos", []
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        photo = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5, generator=generator), (90, 90), mode="bilinear")
        write_image(folder / f"{i:02d}.png", (photo[0] * 0.5 + 0.2) * (i % 6 == 0))

    def detector(photo):
        looked.append(float(photo.mean()))
        return [Face(template(1) * 40 + 10 * k) for k in range(5 if len(looked) > 3 else 1)] if photo.max() > 0 else []

    monkeypatch.setattr("bfr_core.faces.detect.load_detector", lambda *_: detector)
    config = changed(config, {"faces.aligned": False})
    look = first_look(folder, Run(tmp_path / "run"), config)
    assert len(look.rows) == 3 and len(set(looked)) < 30
    assert (look.forecast.faces, look.forecast.guessed) == (40, True)
    for path in folder.iterdir():
        write_image(path, torch.zeros(3, 20, 20))
    with pytest.raises(ValueError, match="no face could be taken"):
        first_look(folder, Run(tmp_path / "none"), config)


def test_two_faces_are_enough_and_none_is_said(photos, config, tmp_path):
    write_image(tmp_path / "photos" / "a.png", read_image(photos / "face 0.png"))
    write_image(tmp_path / "photos" / "b.png", read_image(photos / "face 2.png"))
    assert len(first_look(tmp_path / "photos", Run(tmp_path / "run"), config).rows) == 2
    with pytest.raises(ValueError, match="holds no faces yet"):
        first_look(None, Run(tmp_path / "other"), config)


def test_faces_are_spread():
    assert spread(9, 3) == [0, 3, 6] and spread(2, 3) == [0, 1] and spread(3, 3) == [0, 1, 2]


def test_a_second_look_at_photos_of_several_people_is_like_the_first(config, tmp_path, monkeypatch):
    for i in range(3):
        write_image(tmp_path / "photos" / f"{i}.png", torch.rand(3, 90, 90))
    two = [Face(template(1) * 40 + 10 * k) for k in range(2)]
    monkeypatch.setattr("bfr_core.faces.detect.load_detector", lambda *_: lambda photo: two)
    own = changed(config, {"faces.aligned": False})
    first, second = (first_look(tmp_path / "photos", Run(tmp_path / "run"), own) for _ in range(2))
    assert len(first.rows) == 3 and [name for name, _ in first.rows] == [name for name, _ in second.rows]


def test_what_an_earlier_look_left_out_is_not_left_out_of_the_next(config, tmp_path, monkeypatch):
    sizes = {"a group": 130, "one": 90, "two": 100}
    for name, size in sizes.items():
        write_image(tmp_path / "photos" / f"{name}.png", torch.rand(3, size, size))
    faces = [Face(template(1) * 40 + 10 * k) for k in range(4)]
    found = {130: faces, 90: faces[:1], 100: faces[:1]}
    monkeypatch.setattr("bfr_core.faces.detect.load_detector", lambda *_: lambda photo: found[photo.shape[-1]])
    own = changed(config, {"faces.aligned": False})
    first_look(tmp_path / "photos", Run(tmp_path / "run"), own)
    (tmp_path / "photos" / "a group.png").unlink()
    assert len(first_look(tmp_path / "photos", Run(tmp_path / "run"), own).rows) == 2
