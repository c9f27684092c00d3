"""The tool that makes the embedded recogniser: unpacking, folding, and what it refuses."""

from __future__ import annotations

import io
import json
import tarfile

import make_recogniser
import numpy as np
import pytest
import torch
from make_recogniser import folded, names, read_tensors
from safetensors import safe_open
from torch.nn import functional as F

from bfr_core.faces.recognise import EMBEDDED, RecogniserNet, load_recogniser
from bfr_core.files.tensors import sha256_of


def shapes() -> dict[str, tuple[int, ...]]:
    """Name in the published file -> its shape."""
    weights = RecogniserNet().state_dict()
    found: dict[str, tuple[int, ...]] = {"fc": (256, 128)}
    for ours, theirs in names().items():
        out, into, height, width = weights[f"{ours}.weight"].shape
        found[f"{theirs}/conv/filters"] = (height, width, into, out)
        found |= {f"{theirs}/{part}": (out,) for part in ("conv/bias", "scale/weights", "scale/biases")}
    return found


def published(generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: generator.normal(size=shape) * 0.1 for name, shape in shapes().items()}


def test_the_names_are_those_of_the_published_file():
    theirs = set(names().values())
    assert (
        len(theirs) == 29 and {"conv32_down", "conv32_1/conv1", "conv64_down/conv2", "conv256_down_out/conv1"} <= theirs
    )
    assert "conv32_3/conv2" in theirs and "conv64_3/conv1" in theirs and "conv128_2/conv2" in theirs


def test_a_folded_convolution_does_what_the_two_layers_did():
    tensors = published(np.random.default_rng(0))
    state = folded(tensors)
    RecogniserNet().load_state_dict(state)  # every tensor has its place and shape
    theirs = {part: torch.from_numpy(tensors[f"conv64_down/conv1/{part}"]) for part in ("conv/filters", "conv/bias")}
    scale, shift = (tensors[f"conv64_down/conv1/scale/{part}"] for part in ("weights", "biases"))
    x = torch.rand(1, 32, 9, 9, dtype=torch.float64)
    plain = F.conv2d(x, theirs["conv/filters"].permute(3, 2, 0, 1), theirs["conv/bias"], stride=2)
    expected = plain * torch.from_numpy(scale).view(-1, 1, 1) + torch.from_numpy(shift).view(-1, 1, 1)
    weight, bias = (state[f"stage2.block0.conv1.{part}"].double() for part in ("weight", "bias"))
    assert (F.conv2d(x, weight, bias, stride=2) - expected).abs().max() < 1e-3


def test_bytes_are_unpacked_by_their_scale_and_floats_are_taken_as_they_are():
    manifest = [
        {
            "weights": [
                {"name": "a", "shape": [3], "quantization": {"scale": 0.5, "min": -1.0, "dtype": "uint8"}},
                {"name": "b", "shape": [1, 2]},
            ]
        }
    ]
    content = bytes([0, 2, 255]) + np.array([1.5, -2.0], "<f4").tobytes()
    found = read_tensors(manifest, content)
    assert found["a"].tolist() == [-1, 0, 126.5] and found["b"].tolist() == [[1.5, -2]]
    with pytest.raises(ValueError, match="end before b"):
        read_tensors(manifest, content[:-1])
    with pytest.raises(ValueError, match="1 bytes more"):
        read_tensors(manifest, content + b"x")


def test_the_archive_becomes_a_file_that_loads_and_another_is_refused(tmp_path, monkeypatch, caplog):
    tensors = {name: value.astype("<f4") for name, value in published(np.random.default_rng(1)).items()}
    entries = [{"name": name, "shape": list(value.shape)} for name, value in tensors.items()]
    content = b"".join(value.tobytes() for value in tensors.values())
    archive = tmp_path / "package.tgz"
    with tarfile.open(archive, "w:gz") as files:
        for name, data in (
            (make_recogniser.WEIGHTS, content),
            (make_recogniser.MANIFEST, json.dumps([{"weights": entries}])),
        ):
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            files.addfile(info, io.BytesIO(data))
    target = tmp_path / "made.safetensors"
    assert make_recogniser.main([str(archive), "--out", str(target)]) == 2
    assert "is not the archive" in caplog.text and not target.exists()
    monkeypatch.setattr(make_recogniser, "SHA256", sha256_of(archive))
    assert make_recogniser.main([str(archive), "--out", str(target)]) == 0
    weight = load_recogniser(target).state_dict()["stage5.block0.conv2.weight"]
    assert torch.equal(weight, folded(tensors)["stage5.block0.conv2.weight"].float())
    assert make_recogniser.main([str(tmp_path / "none.tgz")]) == 2


def test_the_embedded_file_says_where_it_comes_from():
    with safe_open(EMBEDDED, "pt") as file:
        assert file.metadata() == make_recogniser.METADATA
