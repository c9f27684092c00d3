"""The sharp faces that ship: which they are, how large the file is, and that no benchmark measures on one of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bfr_core.faces.sharp_faces import SHARP_FACES, SharpFaces
from bfr_core.metrics.detail import sharpness


def sources():
    """Where each of them comes from."""
    with safe_open(SHARP_FACES, "pt") as stream:
        return json.loads(stream.metadata()["entries"])


FREE = {"portraits", "faces_t2i", "faces256"}


def test_they_are_free_sharp_and_small():
    found = sources()
    assert {entry["source"] for entry in found} == FREE and len(found) == len(SharpFaces(64)) >= 100
    assert SHARP_FACES.stat().st_size <= 4_000_000
    faces = SharpFaces(128).stacked(24)
    assert faces.shape == (24, 3, 128, 128) and 0 <= faces.min() < faces.max() <= 1
    assert sharpness(faces).median() > 0.9


def test_none_is_kept_out_of_training():
    kept_out = {Path(name).stem for name in SHARP_FACES.with_name("held_out.txt").read_text().split()}
    names = {Path(str(entry["name"])).stem for entry in sources() if entry["source"] == "portraits"}
    assert kept_out and names and not kept_out & names


def test_a_face_is_the_same_at_every_size():
    small, large = (SharpFaces(size)[3][None] for size in (64, 256))
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (small - shrunk).abs().mean() < 0.01


def test_a_file_that_is_missing_or_something_else_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: the sharp faces are missing"):
        SharpFaces(64, tmp_path / "none.safetensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(SHARP_FACES.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.safetensors: holds no sharp faces"):
        SharpFaces(64, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: holds no sharp faces"):
        SharpFaces(64, tmp_path / "other.safetensors")
