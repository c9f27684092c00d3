"""Pack the faces that the embedded models learn from into one file of aligned JPEG tiles.

    python tools/pack_faces.py --shared DIR --out .training/faces256.safetensors

Each tile is the standard crop at 256 x 256 with a margin of 16 pixels on every side, so that training can turn, shift
and enlarge it a little. What is kept out of every training (see `held_out`) is packed into a second file beside it,
NAME_held_out.safetensors, exact crops of 256 x 256.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.faces.align import Face, similarity, similarity_scale, template, warp

SIZE = 256
MARGIN = 16
QUALITY = 93
MIN_DETAIL = 130.0  # side of the crop in the picture's own pixels; smaller faces are left out
# Folder below the shared one -> licence. Only these may be trained on.
SOURCES = {
    "portraits": "public domain",
    "faces256": "MIT, Copyright (c) 2022 David Beniaguev",
    "faces_t2i": "MIT, Copyright (c) 2024 David Beniaguev",
    "historic/clean": "photographs from before 1931, rights very likely over",
}


@dataclass(frozen=True)
class Entry:
    """Where a tile comes from. detail: side of its standard crop in the picture's own pixels."""

    source: str
    name: str
    detail: float
    grey: bool


def held_out(source: str, names: list[str]) -> set[str]:
    """Names that no training may see: every fifth portrait, every tenth of the other folders, in order of the names."""
    return set(sorted(names)[:: 5 if source == "portraits" else 10])


def entries_of(shared: Path, source: str) -> Iterator[tuple[Entry, Path, np.ndarray, bool]]:
    """For each face its entry, its file, its five landmarks, and whether it is held out."""
    top, _, below = source.partition("/")
    listed = json.loads((shared / top / "landmarks.json").read_text())
    known = {name: entry for name, entry in listed.items() if name.startswith(below)}
    kept_out = held_out(source, list(known))
    for name in sorted(known):
        landmarks = np.array(known[name]["landmarks"])
        entry = Entry(source, Path(name).name, round(Face(landmarks).width, 1), bool(known[name].get("grey", False)))
        yield entry, shared / top / name, landmarks, name in kept_out


def tile(path: Path, landmarks: np.ndarray, margin: int) -> np.ndarray:
    """The standard crop with `margin` pixels around it, (S, S, 3) uint8; shrunk by averaging where it is shrunk."""
    photo = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float()[None]
    side = SIZE + 2 * margin
    matrix = similarity(landmarks, template(SIZE) + margin)
    fine = 2 if similarity_scale(matrix) > 0.5 else 1  # sampled at twice the size, then averaged: sharper
    scaled = np.concatenate([matrix[:, :2] * fine, matrix[:, 2:] * fine + 0.5 * (fine - 1)], 1)
    crop = F.avg_pool2d(warp(photo, scaled, side * fine, side * fine), fine)
    return crop[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def as_jpeg(pixels: np.ndarray) -> Tensor:
    """The bytes of a JPEG file of `pixels` (H, W, 3) uint8, as a uint8 tensor."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def write_pack(path: Path, entries: list[Entry], tiles: list[Tensor]) -> None:
    """Write a pack. `bytes`: all JPEGs end to end; `ends`: where each ends; the entries are JSON in the metadata."""
    ends = torch.tensor([len(data) for data in tiles]).cumsum(0)
    save_file(
        {"bytes": torch.cat(tiles), "ends": ends}, path, {"entries": json.dumps([asdict(entry) for entry in entries])}
    )


def read_pack(path: Path) -> tuple[Tensor, list[Entry]]:
    """All tiles of a pack, (N, 3, S, S) uint8, and where they come from."""
    tensors = load_file(path)
    with safe_open(path, "pt") as stream:
        entries = [Entry(**values) for values in json.loads(stream.metadata()["entries"])]
    data, ends = tensors["bytes"].numpy(), tensors["ends"].tolist()
    starts = [0, *ends[:-1]]
    tiles = [
        torch.from_numpy(np.array(Image.open(io.BytesIO(data[start:end].tobytes())))).permute(2, 0, 1)
        for start, end in zip(starts, ends, strict=True)
    ]
    return torch.stack(tiles), entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder that holds portraits/, faces256/ and so on")
    parser.add_argument("--out", type=Path, default=Path(".training/faces256.safetensors"))
    args = parser.parse_args()
    training: tuple[list[Entry], list[Tensor]] = ([], [])
    unseen: tuple[list[Entry], list[Tensor]] = ([], [])
    for source in SOURCES:
        for entry, path, landmarks, kept_out in entries_of(args.shared, source):
            if entry.detail < MIN_DETAIL:
                continue
            entries, tiles = unseen if kept_out else training
            entries.append(entry)
            tiles.append(as_jpeg(tile(path, landmarks, 0 if kept_out else MARGIN)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for path, (entries, tiles) in ((args.out, training), (args.out.with_stem(args.out.stem + "_held_out"), unseen)):
        write_pack(path, entries, tiles)
        count = {source: sum(entry.source == source for entry in entries) for source in SOURCES}
        print(f"{path.name}: {len(entries)} faces, {path.stat().st_size / 1e6:.1f} MB, {count}")


if __name__ == "__main__":
    main()
