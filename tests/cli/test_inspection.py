"""What a file records of itself, and whether it may be used commercially."""

import pytest
import torch

from bfr_core.cli import inspection
from bfr_core.cli.inspection import inspect, inspect_picture
from bfr_core.files.photos import Photo, write_photo
from bfr_core.files.provenance import COMPOSITE, GENERATED, Record, Step
from bfr_core.files.tensors import save_tensors
from bfr_core.files.weights import allows_commercial_use
from bfr_core.restorers import load_restorer, save_change, save_restorer


def test_the_embedded_restorer_may_be_used():
    found = inspect("embedded")
    assert found.commercial is True and found.architecture == "NAFNet"
    assert any("may it be used commercially? yes" in line for line in found.lines())


@pytest.mark.parametrize(
    ("base", "prior", "answer"),
    [
        ("Apache-2.0", "Apache-2.0", True),
        ("Apache-2.0", "S-Lab License 1.0 (non-commercial)", False),
        ("CC BY-NC-SA 4.0", "unknown", False),
        ("Apache-2.0", "unknown", None),
    ],
)
def test_an_adapted_restorer_is_as_free_as_all_it_came_from(tiny_restorer, tmp_path, base, prior, answer):
    restorer = load_restorer(tiny_restorer)
    restorer.licence = base
    made = {"base": "b.pth", "base_licence": base, "prior": "p.pth", "prior_licence": prior, "steps": 3}
    save_restorer(tmp_path / "r.safetensors", restorer, made)
    found = inspect(tmp_path / "r.safetensors")
    assert found.commercial is answer and found.facts["steps"] == "3"
    assert [part[0] for part in found.parts] == ["restorer", "base", "prior"]
    if answer is not True:
        assert any("because of its" in line for line in found.lines())


def test_a_change_is_inspected_without_its_base(tiny_restorer, tmp_path):
    base, tuned = load_restorer(tiny_restorer), load_restorer(tiny_restorer)
    with torch.no_grad():
        tuned.module.get_parameter("intro.bias").add_(1)
    base.licence = "CC BY-NC-SA 4.0"
    save_change(tmp_path / "c.safetensors", base, tuned, 4, {"prior": "p", "prior_licence": "MIT"})
    found = inspect(tmp_path / "c.safetensors")
    assert found.kind == "change of a restorer" and found.commercial is False
    assert ("base", "tiny.safetensors", "CC BY-NC-SA 4.0") in found.parts


def test_a_prior_is_inspected_as_a_file_or_a_folder(tiny_prior, tmp_path):
    from published_shapes import NARROW_PRIOR, prior_shapes

    state = {name: torch.zeros(shape, dtype=torch.half) for name, shape in prior_shapes(NARROW_PRIOR).items()}
    record = {"unet": '{"num_head_channels": 64}', "licence": "S-Lab License 1.0 (non-commercial)", "source": "p.pth"}
    save_tensors(tmp_path / "prior.safetensors", state, record)
    for place in (tmp_path, tmp_path / "prior.safetensors"):
        found = inspect(place)
        assert found.kind == "prior" and found.commercial is False and found.parts[0][1] == "p.pth"
        assert any("commercially? no, because of its prior (S-Lab" in line for line in found.lines())
    assert inspect(tiny_prior).commercial is None


@pytest.mark.parametrize(
    ("licence", "answer"),
    [
        ("MIT", True),
        ("Apache-2.0", True),
        ("cc-by-nc-4.0", False),
        ("CC BY NC 4.0", False),
        ("non commercial", False),
        ("Non-Commercial use only", False),
        ("mine", None),
    ],
)
def test_licences_by_name(licence, answer):
    assert allows_commercial_use(licence) is answer


def test_a_picture_says_how_it_was_restored_or_that_it_does_not_say(tmp_path):
    photo = Photo(torch.rand(3, 20, 30))
    write_photo(tmp_path / "plain.png", photo)
    plain = inspect_picture(tmp_path / "plain.png")
    assert not plain.generated
    assert plain.lines() == ["plain.png: PNG picture, 30 x 20 pixels; its metadata says nothing of a restoration"]
    step = Step("BFR Adapt 1", "r.pth", faces_found=2, faces_restored=1)
    write_photo(tmp_path / "a.jpg", Photo(photo.pixels, record=Record().with_step(step)))
    marked = inspect_picture(tmp_path / "a.jpg")
    assert marked.generated and marked.record.steps == (step,)
    assert any("are generated" in line for line in marked.lines()) and any("r.pth" in line for line in marked.lines())


@pytest.mark.parametrize("source", [GENERATED, COMPOSITE, ""])
def test_a_picture_that_was_generated_elsewhere_is_said_to_be(tmp_path, source):
    write_photo(tmp_path / "a.png", Photo(torch.rand(3, 8, 8), record=Record(source_type=source)))
    assert inspect_picture(tmp_path / "a.png").generated is bool(source)


def test_an_onnx_restorer_is_inspected(tmp_path, monkeypatch):
    (tmp_path / "GPEN.onnx").write_bytes(b"onnx")
    monkeypatch.setattr(inspection, "load_restorer", lambda path: load_restorer("embedded128"))
    assert inspection.inspect(tmp_path / "GPEN.onnx").size == "128"
