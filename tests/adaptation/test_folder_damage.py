"""The damage of a run's folder: estimated once, kept, made again when what it depends on changes, and reported."""

import json
from dataclasses import replace

import pytest
import torch

from bfr_core.adaptation import folder_damage as stage
from bfr_core.adaptation.config import SMALL, FaceConfig
from bfr_core.adaptation.faces import collect_faces
from bfr_core.adaptation.folder_damage import described, folder_damage, likest, model_of, read_damage
from bfr_core.adaptation.report import kept_by_width
from bfr_core.adaptation.run import Run
from bfr_core.damage.estimate import FolderDamage, InTurn, KnownDamage, estimate_damage
from bfr_core.damage.family import Photographed, photographed
from bfr_core.damage.synthetic import degrade
from bfr_core.diffusion.prior import load_prior
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files.photos import write_image
from bfr_core.pixels import gaussian_blur
from bfr_core.randomness import keyed_generator
from bfr_core.restorers import load_restorer


@pytest.fixture(scope="module")
def base():
    return load_restorer("embedded128")


@pytest.fixture
def blurred(tmp_path, base):
    """A run of eight sharp faces that were blurred by 2 pixels."""
    for i, face in enumerate(gaussian_blur(SharpFaces(base.size).stacked(8), 2.0)):
        write_image(tmp_path / "photos" / f"{i}.png", face)
    run = Run(tmp_path / "run")
    return run, collect_faces(tmp_path / "photos", run, base.size, FaceConfig(aligned=True))


def test_it_is_found_once_and_kept(blurred, base, monkeypatch):
    run, faces = blurred
    damage = folder_damage(run, faces, base)
    assert damage.kept_to() == pytest.approx(0.094, abs=0.03), "a Gaussian of 2 pixels halves 0.094 cycles a pixel"
    monkeypatch.setattr(stage, "estimate_damage", None)
    again = folder_damage(run, faces, base)
    assert again.photographed == damage.photographed
    assert torch.equal(again.transfer, damage.transfer) and torch.equal(read_damage(run).noise, damage.noise)
    assert "half of the detail is left at" in described(damage)
    shares = dict(kept_by_width(damage))
    assert list(shares) == [8, 16, 32, 64, 128] and shares[8] > 0.8 and shares[64] < 0.2


def test_other_faces_have_an_estimate_of_their_own(blurred, base):
    run, faces = blurred
    folder_damage(run, faces, base)
    table = json.loads(run.damage.read_text())
    run.damage.write_text(json.dumps(table | {"made_from": "others", "damage": table["damage"] | {"transfer": []}}))
    assert read_damage(run) is None
    assert folder_damage(run, faces, base).kept_to() < 0.2
    assert json.loads(run.damage.read_text()) == table


@pytest.mark.slow
def test_the_model_that_makes_sharp_faces_look_like_the_folders_is_taken():
    """A screen of dots is not in the family, a small photo in poor light is."""
    sharp = SharpFaces(128).stacked(160)
    mine = sharp[80::5]
    camera = Photographed.at([0.1, 0.3, 0.9, 0.7, 0.6, 0.5, 0.5, 0.5, 0.1, 0.3, 1.0, 0.2, 0.0, 0.0])
    damages = {
        Photographed: photographed(mine, camera, keyed_generator(1)),
        KnownDamage: degrade(mine, "halftone", keyed_generator(1)).lq,
    }
    for kind, lq in damages.items():
        restored = gaussian_blur(lq, 1.5)
        damage = replace(estimate_damage(lq, restored, sharp[:80:2]), photographed=camera)
        found = likest(damage, lq, restored)
        assert type(model_of(found, lq, restored)) is kind and found.transfer is damage.transfer


@pytest.mark.parametrize(("by_filter", "kind"), [(0.7, KnownDamage), (0.9, InTurn), (1.1, InTurn), (1.3, Photographed)])
def test_where_neither_model_is_clearly_nearer_both_are_put_on_faces(by_filter, kind, monkeypatch):
    lq = SharpFaces(128).stacked(4)
    distances = iter((by_filter, 1.0))
    monkeypatch.setattr(stage.Looks, "distance", lambda looks, of: next(distances))
    damage = replace(estimate_damage(lq, lq, lq), photographed=Photographed.at([0.5] * 14))
    found = likest(damage, lq, lq)
    assert type(model_of(found, lq, lq)) is kind
    assert type(model_of(FolderDamage.from_json(found.as_json()), lq, lq)) is kind, "as a resumed run has it"


def test_a_folder_of_before_has_no_camera_and_keeps_its_filter(base):
    lq = SharpFaces(128).stacked(4)
    damage = replace(estimate_damage(lq, lq, lq), photographed=None)
    assert likest(damage, lq, lq).photographed is None and type(model_of(damage, lq, lq)) is KnownDamage
    assert FolderDamage.from_json(damage.as_json()).photographed is None


@pytest.mark.slow
def test_an_estimate_is_of_a_level_among_so_many_steps(blurred, base, tiny_prior):
    """The same index is another level of noise where there are more steps."""
    run, faces = blurred
    prior, config = load_prior(tiny_prior), replace(SMALL.targets, t_clean=9)
    folder_damage(run, faces, base, prior, config)
    before = json.loads(run.damage.read_text())
    more = replace(config, sampler=replace(config.sampler, num_steps=2 * config.sampler.num_steps))
    folder_damage(run, faces, base, prior, more)
    assert json.loads(run.damage.read_text())["cleaned_by"] != before["cleaned_by"]
