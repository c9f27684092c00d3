"""ArcFace: built from a file by our own loader; where it is missing, that is said and nothing stands in for it."""

import logging
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bfr_core.faces.align import template
from bfr_core.faces.arcface import FILE, TEMPLATE_112, Recogniser, find_recogniser, likeness


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    return tmp_path


def weights():
    from facexlib.recognition.arcface_arch import Backbone

    torch.manual_seed(0)
    return Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se").state_dict()


def test_a_picture_is_like_itself_and_its_mirror_image(folder):
    torch.save(weights(), folder / FILE)
    recogniser = Recogniser()
    faces = F.interpolate(torch.rand(2, 3, 4, 4), (96, 96), mode="bicubic").clamp(0, 1)
    found = recogniser(faces)
    assert found.shape == (2, 512) and torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(likeness(found, recogniser(faces.flip(-1))), torch.ones(2), atol=0.02)
    assert not torch.equal(found[0], found[1])


def test_landmarks_come_to_lie_where_arcface_was_trained_to_have_them(folder, monkeypatch):
    torch.save(weights(), folder / FILE)
    recogniser, seen = Recogniser(), []

    def forward(image):
        seen.append(image)
        return torch.rand(len(image), 512)

    monkeypatch.setattr(recogniser.net, "forward", forward)
    dots = torch.zeros(1, 3, 512, 512)
    for x, y in template(512).round().astype(int):
        dots[..., y - 8 : y + 9, x - 8 : x + 9] = 1
    recogniser(dots)
    assert seen[0].shape == (1, 3, 112, 112) and seen[0].min() >= -1.01 and seen[0].max() <= 1.01
    for x, y in TEMPLATE_112.round().astype(int):  # the two templates agree to about two pixels
        assert seen[0][0, 0, y - 2 : y + 3, x - 2 : x + 3].max() > 0.5, (x, y)


def test_without_its_file_identity_is_not_measured(folder, caplog):
    with caplog.at_level(logging.INFO):
        assert find_recogniser() is None
    assert "identity is not measured" in caplog.text


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, None], ids=["other weights", "no weights"])
def test_an_unfit_file_is_one_clear_line(folder, content, caplog):
    if content:
        torch.save(content, folder / FILE)
    else:
        (folder / FILE).write_bytes(b"not weights")
    assert find_recogniser() is None
    (record,) = caplog.records
    assert "identity is not measured" in record.message and "\n" not in record.message


def test_no_run_depends_on_it():
    """It is an extra measure of `evaluate`, and `verify-real` looks whether its file is sound."""
    core = Path(__file__).resolve().parents[2] / "bfr_core"
    users = {
        path.relative_to(core).as_posix()
        for path in core.rglob("*.py")
        if {"find_recogniser", "Recogniser(", "may_recognise"} & set(words_of(path.read_text(encoding="utf-8")))
    }
    assert users == {"faces/arcface.py", "studies/evaluate.py", "studies/verification.py"}


def words_of(text):
    """Names, and names that are called."""
    return [word for match in re.finditer(r"\w+\(?", text) for word in (match[0], match[0].rstrip("("))]
