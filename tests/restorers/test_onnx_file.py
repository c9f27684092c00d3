"""Restorers in ONNX files: run as they are published, refused in one line where they are something else."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from bfr_core.adaptation.config import recipe
from bfr_core.restoration.restore import RestoreConfig, restore_aligned
from bfr_core.restorers import export_pth, load_restorer, save_restorer
from tests.onnx_files import write_onnx

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.mark.parametrize("half", [False, True])
def test_faces_go_through_it_in_minus_one_to_one(tmp_path, half):
    restorer = load_restorer(write_onnx(tmp_path / "GPEN-BFR-64.onnx", half=half))
    assert (restorer.architecture, restorer.size, restorer.licence) == ("ONNX", 64, "unknown")
    lq = torch.rand(3, 3, 64, 64) * 0.8
    assert torch.allclose(restorer.restore(lq), lq + 0.125, atol=2e-3 if half else 1e-6), "0.25 of a range of two"
    assert restorer.restore(torch.ones(1, 3, 64, 64)).max() == 1, "clamped"
    result = restore_aligned(lq[0], restorer, RestoreConfig(likeness="off"))
    assert len(result.faces) == 1 and torch.allclose(result.pixels, lq[0] + 0.125, atol=0.01)


def test_an_open_side_is_that_of_published_restorers(tmp_path):
    assert load_restorer(write_onnx(tmp_path / "open.ONNX", side="side")).size == 512


def test_it_can_be_neither_tuned_nor_saved(tmp_path):
    restorer = load_restorer(write_onnx(tmp_path / "GPEN.onnx"))
    for use in (
        lambda: recipe(restorer),
        lambda: save_restorer(tmp_path / "a.safetensors", restorer, {}),
        lambda: export_pth(tmp_path / "a.pth", restorer),
    ):
        with pytest.raises(ValueError, match=r"GPEN.onnx: is an ONNX file, which restores and cannot be tuned"):
            use()


def test_without_onnxruntime_a_line_says_what_to_install(tmp_path, monkeypatch):
    path = write_onnx(tmp_path / "GPEN.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"^GPEN.onnx: .*needs the package onnxruntime: pip install onnxruntime$"):
        load_restorer(path)


def test_what_is_no_restorer_is_refused_in_one_line(tmp_path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"\x08\x06\x12\x07pytorch")
    refused = {
        damaged: "is not a readable ONNX file",
        write_onnx(tmp_path / "grey.onnx", shape=(1, 1, 64, 64)): "only networks from one face",
        write_onnx(tmp_path / "wide.onnx", shape=(1, 3, 64, 128)): "only networks from one face",
        write_onnx(tmp_path / "huge.onnx", side=4096): "4096 pixels a side; 16 to 2048 are known",
    }
    for path, said in refused.items():
        with pytest.raises(ValueError, match=said) as raised:
            load_restorer(path)
        assert str(raised.value).startswith(path.name) and str(raised.value).isprintable()


def test_no_path_inside_it_is_followed(tmp_path, monkeypatch):
    elsewhere: dict[str, Any] = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    path = write_onnx(tmp_path / "outside.onnx", **elsewhere)
    assert (tmp_path / "weights.bin").is_file(), "the weights are not in the file"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"outside.onnx: keeps its weights in another file"):
        load_restorer(path)


def test_a_network_that_answers_with_another_shape_is_told(tmp_path):
    restorer = load_restorer(write_onnx(tmp_path / "GPEN.onnx"))
    with pytest.raises(ValueError, match=r"an ONNX network failed on a face of \(1, 3, 32, 32\)"):
        restorer.restore(torch.rand(1, 3, 32, 32))


def test_it_computes_where_it_is_told_to(tmp_path):
    class Noted:
        def __init__(self) -> None:
            self.used = ["CPUExecutionProvider"]

        def get_providers(self) -> list[Any]:
            return [one if isinstance(one, str) else one[0] for one in self.used]

        def set_providers(self, names: list[Any]) -> None:
            self.used = names

    restorer = load_restorer(write_onnx(tmp_path / "GPEN.onnx"))
    session: Any = restorer.module
    session.session, session.available = Noted(), ("CUDAExecutionProvider", "CPUExecutionProvider")
    session.run_on(torch.device("cuda:1"))
    assert session.session.used[0] == ("CUDAExecutionProvider", {"device_id": 1})
    restorer.to("cpu")
    assert session.session.used == ["CPUExecutionProvider"]


def test_it_computes_where_a_host_has_moved_its_module(tmp_path, monkeypatch):
    """ComfyUI moves a module without a word to the restorer."""
    session, asked = load_restorer(write_onnx(tmp_path / "GPEN.onnx")).module, list[torch.device]()
    monkeypatch.setattr(session, "run_on", asked.append)
    session(torch.zeros(1, 3, 64, 64))
    assert asked == []
    session.to("meta")
    session(torch.zeros(1, 3, 64, 64))
    assert asked == [torch.device("meta")]
