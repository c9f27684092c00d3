"""Make the embedded face recogniser (bfr_core/embedded/recogniser.safetensors) from the published file.

    npm pack @vladmandic/face-api@1.7.15
    python tools/make_recogniser.py vladmandic-face-api-1.7.15.tgz

The package holds dlib's dlib_face_recognition_resnet_model_v1 (Davis King, released into the public domain, CC0 1.0) in
8 bits. Every convolution has a frozen batch norm behind it, which is folded into its weight and bias; the result is
rounded to fp16. The archive is checked against its SHA-256 first, so the same command always writes the same tensors.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.faces.recognise import EMBEDDED, STAGES
from bfr_core.files.tensors import save_tensors, sha256_of

SOURCE = "@vladmandic/face-api 1.7.15"
SHA256 = "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031"
MANIFEST = "package/model/face_recognition_model-weights_manifest.json"
WEIGHTS = "package/model/face_recognition_model.bin"
METADATA = {
    "architecture": "dlib_face_recognition_resnet_model_v1",
    "licence": "CC0-1.0",
    "source": SOURCE,
    "source_sha256": SHA256,
    "input": "(RGB of 255 - [122.782, 117.001, 104.298]) / 256, 150 x 150",
}
log = logging.getLogger("make_recogniser")


def read_tensors(manifest: list[dict[str, Any]], content: bytes) -> dict[str, np.ndarray]:
    """Every tensor of a TensorFlow.js file in float64: in the manifest's order, with nothing between them.

    Raises ValueError if the file is shorter or longer than its manifest says.
    """
    found: dict[str, np.ndarray] = {}
    start = 0
    for entry in (entry for group in manifest for entry in group["weights"]):
        packed = entry.get("quantization")
        dtype = np.dtype("uint8" if packed else "<f4")
        count = int(np.prod(entry["shape"]))
        end = start + count * dtype.itemsize
        if end > len(content):
            raise ValueError(f"the weights end before {entry['name']}; get the package anew")
        values = np.frombuffer(content[start:end], dtype).astype(np.float64)
        found[entry["name"]] = (values * packed["scale"] + packed["min"] if packed else values).reshape(entry["shape"])
        start = end
    if start != len(content):
        raise ValueError(f"the weights have {len(content) - start} bytes more than their manifest says")
    return found


def names() -> dict[str, str]:
    """Layer of `RecogniserNet` -> the same layer in the published file."""
    found = {"stem.conv": "conv32_down"}
    for number, (width, blocks) in enumerate(STAGES, 1):
        for i in range(blocks):
            if number == len(STAGES):
                theirs = "conv256_down_out"
            elif number == 1:
                theirs = f"conv{width}_{i + 1}"
            else:
                theirs = f"conv{width}_{i}" if i else f"conv{width}_down"
            found |= {f"stage{number}.block{i}.conv{n}": f"{theirs}/conv{n}" for n in (1, 2)}
    return found


def folded(tensors: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The tensors of `RecogniserNet` in fp16, with the frozen batch norm behind every convolution folded into it."""
    state = {"embedding.weight": tensors["fc"].T}
    for ours, theirs in names().items():
        scale = tensors[f"{theirs}/scale/weights"]
        state[f"{ours}.weight"] = (tensors[f"{theirs}/conv/filters"] * scale).transpose(3, 2, 0, 1)
        state[f"{ours}.bias"] = tensors[f"{theirs}/conv/bias"] * scale + tensors[f"{theirs}/scale/biases"]
    return {name: torch.from_numpy(np.ascontiguousarray(value)).half() for name, value in state.items()}


def make(archive: Path, target: Path) -> None:
    """Write `target` from the npm archive. Raises FileNotFoundError, or ValueError if it is another archive."""
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such file; npm pack @vladmandic/face-api@1.7.15 gets it")
    if (found := sha256_of(archive)) != SHA256:
        raise ValueError(f"{archive.name}: is not the archive of {SOURCE} (its SHA-256 is {found}, not {SHA256})")
    with tarfile.open(archive) as files:
        manifest, weights = (files.extractfile(name) for name in (MANIFEST, WEIGHTS))
        if manifest is None or weights is None:
            raise ValueError(f"{archive.name}: holds no {WEIGHTS}")
        tensors = read_tensors(json.load(manifest), weights.read())
    save_tensors(target, folded(tensors), METADATA)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="the npm package's archive")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="the file to write (default: the embedded one)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        make(options.archive, options.out)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 2
    log.info("%s: SHA-256 %s", options.out, sha256_of(options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
