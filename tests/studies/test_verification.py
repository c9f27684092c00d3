"""`bfr verify-real` on files that stand for the published ones: it checks, restores, adapts, and reports failures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from published_shapes import NARROW_PRIOR, prior_shapes
from torch.nn import functional as F

from bfr_core.diffusion import latent_prior
from bfr_core.diffusion.prior import load_prior
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files import weights
from bfr_core.files.photos import write_image
from bfr_core.files.tensors import save_tensors, sha256_of
from bfr_core.files.weights import Weights
from bfr_core.restorers import load_restorer, save_restorer
from bfr_core.restorers.load import SHIPPED
from bfr_core.studies import verification
from bfr_core.studies.verification import verify_real
from tests.checkpoint_layouts import write_checkpoint
from tests.diffusion.test_latent_prior import narrow


@pytest.fixture
def table(tiny_restorer, tmp_path, monkeypatch):
    """A table of a good restorer, a damaged one, and one that is not here."""
    folder = tmp_path / "weights"
    folder.mkdir()
    good, bad = folder / "good.safetensors", folder / "bad.safetensors"
    good.write_bytes(tiny_restorer.read_bytes())
    bad.write_bytes(tiny_restorer.read_bytes()[:-100])
    entries = tuple(
        Weights(name, "test, restorer, 32", "https://nowhere.invalid", 0, digest, "MIT", True)
        for name, digest in (
            (good.name, sha256_of(good)),
            (bad.name, sha256_of(tiny_restorer)),
            ("absent.safetensors", "0" * 64),
        )
    )
    monkeypatch.setenv("BFR_WEIGHTS", str(folder))
    monkeypatch.setattr(weights, "TABLE", entries)
    monkeypatch.setattr(verification, "TABLE", entries)
    return tmp_path


@pytest.fixture
def alone(monkeypatch):
    """The checks come without the adaptation of a few steps, which is made in the first test and with a prior."""
    monkeypatch.setattr(verification, "_short_adaptation", lambda *_: verification.Finding("short"))


@pytest.mark.slow
def test_every_file_is_checked_and_a_failure_does_not_stop_the_rest(table):
    page, findings = verify_real(table / "out")
    good, bad, adaptation = findings
    rows = dict(good.rows)
    assert not good.failed and rows["SHA-256"] == "ok" and float(rows["seconds to load"]) >= 0
    assert len(good.pictures) == 4 and "PSNR of the restored faces" in rows
    assert bad.failed and dict(bad.rows)["SHA-256"].startswith("wrong") and "failed" in dict(bad.rows)
    assert "good.safetensors" in adaptation.name and not adaptation.failed
    assert float(dict(adaptation.rows)["seconds"]) > 0
    assert rows["its SHA-256"] == sha256_of(table / "weights" / "good.safetensors") and int(rows["its bytes"]) > 0
    assert any(name.startswith("the restored faces are those faces") and said == "yes" for name, said in good.rows)
    text = page.read_text()
    assert "not here: absent.safetensors" in text and "1 checks failed" in text and "Not finished" not in text
    report = json.loads((table / "out" / "report.json").read_text())
    assert report["measurements"]["good.safetensors"]["SHA-256"] == "ok"


@pytest.mark.parametrize(
    ("what", "save", "says"),
    [
        ("test, restorer, 32", "dark", "the restored faces are those faces"),
        ("test, diffusion prior", "random unet", "it tells noise from face at t = 300"),
        pytest.param("ParseNet, face parsing", "parsenet", "the face is part of the crop", marks=pytest.mark.slow),
    ],
    ids=["restorer", "prior", "parser"],
)
def test_a_network_that_loads_and_does_not_do_its_work_is_a_failure(
    table, alone, tiny_restorer, monkeypatch, what, save, says
):
    """Weights under the right keys whose values are wrong: nothing fails to load, the report says no."""
    name = {"parsenet": "parsing_parsenet.pth", "random unet": "unet.safetensors"}.get(save, "dark.safetensors")
    path = table / "weights" / name
    if save == "dark":
        dark = load_restorer(tiny_restorer)
        with torch.no_grad():
            dark.module.get_parameter("ending.bias").fill_(-1)
        save_restorer(path, dark, {})
    elif save == "random unet":
        state = {name: 0.02 * torch.randn(shape) for name, shape in prior_shapes(NARROW_PRIOR).items()}
        save_tensors(path, state, {"unet": json.dumps({"image_size": 64, "num_head_channels": 64})})
    else:
        from facexlib.parsing.parsenet import ParseNet

        state = ParseNet(512, 512, parsing_ch=19).state_dict()
        state["out_mask_conv.conv2d.bias"][0] = 1e6  # background everywhere
        torch.save(state, path)
    entry = Weights(name, what, "https://nowhere.invalid", 0, sha256_of(path), "MIT", True)
    for module in (weights, verification):
        monkeypatch.setattr(module, "TABLE", (entry,))
    page, (found, _) = verify_real(table / "out")
    assert found.failed and dict(found.rows)["SHA-256"] == "ok" and "failed" not in dict(found.rows)
    assert [said for name, said in found.rows if name.startswith(says)] == ["no"]
    assert "1 checks failed" in page.read_text()


def test_a_prior_of_ones_own_is_checked_alone(table, tiny_prior, tiny_restorer, monkeypatch):
    monkeypatch.setitem(SHIPPED, "embedded", tiny_restorer)
    page, (found, adaptation) = verify_real(table / "out", prior=tiny_prior)
    rows = dict(found.rows)
    assert found.failed and "failed" not in rows, "it has learned nothing, and did all that it was asked"
    assert dict(adaptation.rows).get("failed", "fit to learn from").count("fit to learn from"), "it drew targets"
    assert len(found.pictures) == 4 and rows["its SHA-256"] == load_prior(tiny_prior).sha256
    assert [said for what, said in found.rows if what.startswith("the drawn faces have the photo's")] == ["yes"]
    assert tiny_prior.name in adaptation.name and "embedded" in adaptation.name
    text = page.read_text()
    assert "1 file was given; " in text and "not here" not in text and "Not finished" not in text


def test_a_prior_of_few_steps_is_checked_at_its_own_levels(tiny_prior):
    prior = load_prior(tiny_prior)
    prior.alpha_bar = prior.alpha_bar[::4]
    found = verification.Finding("prior")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "load_prior", lambda path: prior)
        verification._check_prior(found, tiny_prior, "cpu", 0.0)
    steps = len(prior.alpha_bar)
    assert f"squared error of the noise at t = {round(0.3 * steps)}" in dict(found.rows)


def test_a_checkpoint_that_has_learned_nothing_fails(table, alone, monkeypatch):
    shapes, family = narrow("sd15")
    path = write_checkpoint(table / "random.safetensors", shapes)
    monkeypatch.setattr(latent_prior, "FAMILIES", (family,))
    page, (found, _) = verify_real(table / "out", prior=path)
    rows = dict(found.rows)
    assert found.failed and "failed" not in rows, rows
    said = [word for what, word in found.rows if what.startswith(("its VAE gives", "it tells noise"))]
    assert said == ["no", "no", "no"] and len(found.pictures) == 4
    assert "random.safetensors" in page.read_text() and str(table) not in page.read_text()
    path.write_bytes(path.read_bytes()[:-100])
    _, (broken, _) = verify_real(table / "out", prior=path)
    assert broken.failed and "may be cut short" in dict(broken.rows)["failed"]


def test_ended_early_it_leaves_what_was_found(table, monkeypatch):
    def end(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verification, "_short_adaptation", end)
    with pytest.raises(KeyboardInterrupt):
        verify_real(table / "out")
    text = (table / "out" / "report.html").read_text()
    assert "Not finished: 2 of 3 checks are done." in text and "PSNR of the restored faces" in text


def test_a_report_to_be_shared_names_no_folder_of_its_writer(table, monkeypatch):
    def locked(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(verification, "load_restorer", locked)
    page, (good, *_) = verify_real(table / "out")
    assert dict(good.rows)["failed"] == "[Errno 13] Permission denied: 'good.safetensors'"
    assert str(table) not in page.read_text() + (table / "out" / "report.json").read_text()


def test_weights_whose_hash_nobody_knows_yet_are_reported_with_theirs(table, alone, monkeypatch):
    entry = replace(verification.TABLE[0], sha256="")
    for module in (weights, verification):
        monkeypatch.setattr(module, "TABLE", (entry,))
    _, (found, _) = verify_real(table / "out")
    rows = dict(found.rows)
    assert rows["SHA-256"].startswith("not checkable") and len(rows["its SHA-256"]) == 64 and not found.failed


@pytest.mark.slow
def test_with_clean_photos_the_restorers_that_are_here_are_compared(table, alone):
    faces = table / "photos"
    for i, face in enumerate(SharpFaces(256).stacked(3)):
        write_image(faces / f"{i}.png", F.pad(face[None], (64,) * 4, "reflect")[0])
    page, findings = verify_real(table / "out", faces=faces)
    compared = findings[-1]
    assert not compared.failed and [row[0] for row in compared.table.rows][:3] == ["damaged", "embedded", "good"]
    assert "Restorers against one another" in page.read_text() and "The same faces" in page.read_text()


@pytest.mark.slow
def test_a_photo_that_cannot_be_used_fails_the_comparison_and_is_named(table, alone):
    for i, face in enumerate(SharpFaces(256).stacked(2)):
        write_image(table / "photos" / f"{i}.png", F.pad(face[None], (64,) * 4, "reflect")[0])
    (table / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    _, findings = verify_real(table / "out", faces=table / "photos")
    assert findings[-1].failed and findings[-1].table
    assert dict(findings[-1].rows)["photos that cannot be used"] == "broken.jpg"


def test_photos_without_faces_are_said_and_the_rest_stays(table, alone):
    write_image(table / "photos" / "grey.png", torch.full((3, 200, 200), 0.5))
    page, findings = verify_real(table / "out", faces=table / "photos")
    assert findings[-1].failed and "failed" in dict(findings[-1].rows) and not findings[0].failed
    assert "Restorers against one another" in page.read_text()
