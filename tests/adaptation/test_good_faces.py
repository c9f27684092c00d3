"""Good faces: found by what holds only for clean faces, set aside, and used by the tuning."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bfr_core.adaptation import good_faces as album
from bfr_core.adaptation import tuning
from bfr_core.adaptation.adapt import adapt
from bfr_core.adaptation.config import SMALL, AdaptConfig
from bfr_core.adaptation.faces import collect_faces, faces_of
from bfr_core.adaptation.good_faces import (
    AlbumConfig,
    Clarity,
    Examples,
    clarity,
    find_good_faces,
    is_good,
    sharpness_of_clean,
)
from bfr_core.adaptation.report import good_faces
from bfr_core.adaptation.run import Run
from bfr_core.cli.commands import main
from bfr_core.damage.synthetic import degrade
from bfr_core.diffusion.prior import load_prior
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files.photos import read_image
from bfr_core.files.records import read_json
from bfr_core.metrics.detail import sharpness
from bfr_core.randomness import keyed_generator
from bfr_core.restorers import load_restorer
from bfr_core.settings import changed
from bfr_core.training import finetune as finetuning
from bfr_core.training.batches import Material, anchor_faces, examples_share, micro_batches, with_examples
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.discriminator import UNetDiscriminator


@pytest.fixture
def quick(photos, tiny_restorer, tiny_prior):
    """Photos, and settings of a quick adaptation to them."""
    changes = {
        "restorer": str(tiny_restorer), "prior": str(tiny_prior), "faces.aligned": True, "targets.sampler.calls": 2,
        "targets.sampler.t_start": 8, "targets.t_clean": 0, "finetune.iterations": 4, "finetune.batch_size": 4,
        "gate.limit": 0.0, "finetune.sharp": 0,
    }  # fmt: skip
    return photos, changed(SMALL, changes)


def test_a_face_of_256_pixels_is_measured_against_clean_faces_of_256_pixels():
    """By what is sharp at 128, most faces that went through a messenger were taken for good at 256."""
    faces = SharpFaces(256).stacked(200)[::10]
    sent = torch.cat(
        [degrade(face[None], "shared_online", keyed_generator(0, i), 0.5).lq for i, face in enumerate(faces)]
    )
    clean, damaged = (
        sharpness(some) / sharpness_of_clean(256) >= AlbumConfig().least_sharpness for some in (faces, sent)
    )
    assert clean.double().mean() > 0.6 and damaged.double().mean() < 0.2
    assert (sharpness(sent) >= AlbumConfig().least_sharpness).double().mean() > 0.8
    assert sharpness_of_clean(32) == sharpness_of_clean(128) == 1 and sharpness_of_clean(512) == sharpness_of_clean(256)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "restorer.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def two_good(monkeypatch):
    """Two of the faces are taken for good, by their mean."""
    good = Clarity(1.0, 0.1, 50.0)
    means: list[float] = []

    def answer(faces, *_):
        means.append(float(faces.mean()))
        return [good if len(means) in (2, 5) else good._replace(kept=10.0)]

    monkeypatch.setattr(album, "clarity", answer)
    return means


def test_without_good_faces_nothing_changes(quick, tmp_path):
    photos, config = quick
    plain = adapt(photos, tmp_path / "plain", config)
    looked = adapt(photos, tmp_path / "looked", replace(config, album=AlbumConfig(find=True)))
    assert same(weights_of(tmp_path / "plain"), weights_of(tmp_path / "looked"))
    assert looked.good == Examples() and looked.faces.names == plain.faces.names
    assert (
        len(read_json(tmp_path / "looked/album.json")["clarity"]) == 10 and not (tmp_path / "plain/album.json").exists()
    )


def test_good_faces_are_set_aside_used_and_reported(quick, tmp_path, two_good):
    photos, config = quick
    config = changed(config, {"finetune.held_out": 0.0})  # the last weights are kept
    found = replace(config, album=AlbumConfig(find=True))
    adapt(photos, tmp_path / "plain", config)
    result = adapt(photos, tmp_path / "album", found)
    names = {file.stem for file in result.good.files}
    assert len(names) == 2 == len(result.good.found) and len(result.faces) == 8 and not names & set(result.faces.names)
    assert not names & {path.stem for path in (tmp_path / "album/targets").glob("*.png")}
    assert not same(weights_of(tmp_path / "plain"), weights_of(tmp_path / "album"))
    kept = json.loads((tmp_path / "album/report.json").read_text())["measurements"]
    assert set(kept["good"]) == names == set(kept["clarity"]) and "Taken as good examples" in (
        tmp_path / "album/report.html"
    ).read_text(encoding="utf-8")
    before = len(two_good)
    again = adapt(photos, tmp_path / "album", found)
    assert len(two_good) == before and again.faces.names == result.faces.names  # looked at once
    (gallery,) = good_faces(result)
    assert len(gallery.rows) == 2 and "sharpness 1.00" in gallery.rows[0][0]


def test_a_stopped_album_adaptation_ends_with_the_same_weights(quick, tmp_path, two_good):
    photos, config = quick
    config = changed(config, {"album.find": True, "finetune.checkpoint_seconds": 0.0})
    adapt(photos, tmp_path / "whole", config)
    two_good.clear()

    def stop(stage, step, steps, detail):
        if stage == "finetune" and step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(photos, tmp_path / "stopped", config, stop)
    adapt(photos, tmp_path / "stopped", config)
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped"))


def test_enlarged_faces_are_not_good_and_a_folder_of_good_ones_is_adapted_to(quick, tmp_path, monkeypatch, caplog):
    photos, config = quick
    monkeypatch.setattr(album, "clarity", lambda faces, *_: [Clarity(1.0, 0.1, 50.0)])
    config = changed(config, {"album.find": True})
    result = adapt(photos, tmp_path / "all", config)
    assert len(result.faces) == 10 and not result.good.files and "all 10 faces look good already" in caplog.text
    index = read_json(tmp_path / "all/faces/faces.json")
    index["faces"] = [face | {"width": 31 if i else 32} for i, face in enumerate(index["faces"])]
    (tmp_path / "all/faces/faces.json").write_text(json.dumps(index))
    (tmp_path / "all/album.json").unlink()
    base, prior = load_restorer(config.restorer), load_prior(config.prior)
    run = Run(tmp_path / "all")
    found = find_good_faces(run, faces_of(run), base, prior, config.album)
    assert list(found) == [index["faces"][0]["name"]]


def test_given_photos_are_examples_beside_the_folder(quick, tmp_path):
    photos, config = quick
    config = changed(config, {"finetune.held_out": 0.0, "finetune.iterations": 8})  # the last weights are kept
    (tmp_path / "good").mkdir()
    shutil.copy(photos / "face 2.png", tmp_path / "good")
    plain = adapt(photos, tmp_path / "plain", config)
    result = adapt(photos, tmp_path / "run", changed(config, {"album.good": str(tmp_path / "good")}))
    assert result.faces.names == plain.faces.names and [f.stem for f in result.good.files] == ["face 2"]
    assert not same(weights_of(tmp_path / "plain"), weights_of(tmp_path / "run"))
    (gallery,) = good_faces(result)
    assert gallery.rows[0][0] == "face 2: given" and "0 found in the folder, 1 given" in gallery.note


def test_the_command_takes_good_photos_and_names_a_folder_that_is_not_there(quick, tmp_path, capsys):
    photos, config = quick
    command = ["adapt", str(photos), "--aligned", "--restorer", config.restorer, "--prior", config.prior, "--run",
               str(tmp_path / "run"), "--album", "--good", str(tmp_path / "absent")]  # fmt: skip
    assert main(command) == 2
    assert "absent: no such folder" in capsys.readouterr().err


# ---------------------------------------------------------------- what tuning does with them


@pytest.fixture
def pairs():
    """Six pairs of grey faces, 0.1 to 0.6, and three examples that are white, with a dark left edge."""
    faces = [torch.full((3, 16, 16), 0.1 * (i + 1)) for i in range(6)]
    examples = torch.ones(3, 3, 16, 16)
    examples[..., 0] = 0.5
    return [(face, face) for face in faces], examples


def test_examples_get_the_damage_of_others_in_their_share(pairs):
    pairs, examples = pairs
    config = FinetuneConfig(batch_size=8, micro_batch=8, transplant=0.75)
    plain = [batch for step in range(60) for batch in micro_batches(pairs, list(range(6)), step, config)]
    mixed = [
        batch for step in range(60) for batch in micro_batches(pairs, list(range(6)), step, config, examples=examples)
    ]
    taken = 0
    for a, b in zip(plain, mixed, strict=True):
        for i, ((face, mirrored), (other, also)) in enumerate(zip(a.keys, b.keys, strict=True)):
            assert mirrored == also
            if other >= 0:  # untouched where no example came in
                assert face == other and torch.equal(a.target[i], b.target[i]) and torch.equal(a.lq[i], b.lq[i])
            else:
                taken += 1
                assert torch.equal(b.target[i], examples[-1 - other].flip(-1) if mirrored else examples[-1 - other])
    assert taken / (60 * 8) == pytest.approx(0.75 * examples_share(examples), abs=0.06)
    assert examples_share(examples) == 3 / 8 and examples_share(torch.ones(40, 1)) == 0.5


def test_the_anchor_sees_examples_in_their_share(pairs, monkeypatch):
    pairs, examples = pairs
    seen: list[torch.Tensor] = []

    def undamaged(clean, kind, generator):
        seen.append(clean)
        return degrade(clean, kind, generator)

    monkeypatch.setattr("bfr_core.training.batches.degrade", undamaged)
    config = FinetuneConfig(batch_size=8, anchor=1.0)
    for step in range(30):
        anchor_faces(Material(pairs, list(range(6)), [], examples), step, config)
    white = (torch.cat(seen).amax((1, 2, 3)) == 1).float().mean().item()
    assert white == pytest.approx(3 / 8, abs=0.1)


def test_examples_among_old_skills_are_not_mirrored_if_nothing_is(pairs, monkeypatch):
    pairs, examples = pairs
    seen: list[torch.Tensor] = []

    def undamaged(clean, *_):
        seen.extend(clean)
        return type("Damaged", (), {"lq": clean})

    monkeypatch.setattr("bfr_core.training.batches.degrade", undamaged)
    config, faces = (
        FinetuneConfig(batch_size=8, anchor=1.0, mirror=False),
        Material(pairs, list(range(6)), [], examples),
    )
    for step in range(10):
        anchor_faces(faces, step, config)
    taken = [face for face in seen if float(face.amax()) == 1]
    assert len(taken) > 10 and all(any(torch.equal(face, one) for one in examples) for face in taken)


def test_of_many_good_faces_those_that_are_learned_from_are_spread_over_them(photos, config, tmp_path, monkeypatch):
    run, base = Run(tmp_path / "run"), load_restorer(config.restorer)
    faces = collect_faces(photos, run, base.size, config.faces)
    files = [faces.crop(name) for name in faces.names]
    seen: list[Any] = []

    def spied(*_, **more):
        seen.append(more["examples"])
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "finetune", spied)
    monkeypatch.setattr(tuning, "MAX_EXAMPLES", 2)
    with pytest.raises(KeyboardInterrupt):
        targets = dict(zip(faces.names, files, strict=True))
        plain = replace(config.finetune, perceptual=0.0, sharp=0.0)
        tuning.tune(run, faces, targets, "made", base, plain, None, good=album.Examples(tuple(files), "good"))
    assert [torch.equal(a, read_image(files[i])) for a, i in zip(seen[0], (0, 5), strict=True)] == [True, True]


def test_the_discriminator_takes_examples_alone_for_real(pairs, tiny_restorer, monkeypatch):
    pairs, examples = pairs
    pairs = [tuple(torch.nn.functional.interpolate(x[None], (32, 32))[0] for x in pair) for pair in pairs]
    examples = torch.nn.functional.interpolate(examples, (32, 32))
    seen: list[torch.Tensor] = []
    forward = UNetDiscriminator.forward

    def watched(self, image):
        seen.append(image.detach())
        return forward(self, image)

    monkeypatch.setattr(UNetDiscriminator, "forward", watched)
    config = FinetuneConfig(
        iterations=2, batch_size=4, micro_batch=2, perceptual=0, discriminator_features=4, held_out=0, adversarial=0.1
    )
    for given, wanted in ((None, False), (examples, True)):
        seen.clear()
        finetuning.finetune(load_restorer(tiny_restorer), pairs, config, examples=given)
        real = torch.cat(seen[1::3])  # each pass: restored, for the restorer; real; restored
        assert len(real) == 8 and bool((real.amax((1, 2, 3)) == 1).all()) is wanted


def test_examples_are_mixed_in_by_key_and_mirrored():
    faces, examples = torch.zeros(64, 1, 1, 2), torch.tensor([1.0, 2.0]).expand(1, 1, 1, 2)
    assert with_examples(faces, None, 1.0, 0) is faces and torch.equal(with_examples(faces, examples, 0.0, 0), faces)
    mixed = with_examples(faces, examples, 0.5, 1)
    assert torch.equal(mixed, with_examples(faces, examples, 0.5, 1)) and not torch.equal(
        mixed, with_examples(faces, examples, 0.5, 2)
    )
    firsts = mixed[:, 0, 0, 0].tolist()
    assert 20 <= firsts.count(0) <= 44 and firsts.count(1) > 4 and firsts.count(2) > 4


# ---------------------------------------------------------------- which faces are good


def test_every_limit_counts():
    config, good = AlbumConfig(), Clarity(1.2, 0.4, 37.0)
    assert is_good(good, config)
    for name, value in (("sharpness", 0.5), ("noise", 1.0), ("kept", 30.0)):
        assert not is_good(good._replace(**{name: value}), config)


@pytest.mark.slow
def test_clean_portraits_are_good_and_damaged_ones_are_not(shared):
    from bfr_core.faces.align import Face, crop_face

    names = (Path(album.__file__).parents[1] / "embedded/held_out.txt").read_text().split()[::30]
    landmarks = json.loads((shared / "portraits/landmarks.json").read_text())
    faces = torch.stack(
        [crop_face(read_image(shared / "portraits" / n), Face(np.array(landmarks[n]["landmarks"])), 128) for n in names]
    )
    faces = faces.clamp(0, 1)
    base, prior = load_restorer(), load_prior()
    assert sum(is_good(found, AlbumConfig()) for found in clarity(faces, base, prior)) >= len(names) - 1
    for kind in ("sensor", "motion_jpeg", "halftone"):
        lq = degrade(faces, kind, torch.Generator().manual_seed(0), 0.5).lq
        assert not any(is_good(found, AlbumConfig()) for found in clarity(lq, base, prior))


def test_the_default_recipe_uses_no_album():
    assert AdaptConfig().album == SMALL.album == AlbumConfig(find=False, good="")
