"""Measure the limits of likeness, which `bfr_core/restoration/same_person.py` judges restored faces by.

    python tools/likeness_limits.py --shared DIR

DIR holds portraits/ and faces_t2i/, of which the faces that are kept from all training are left out here, too. Each
face is damaged in a few ways, half of them at 128 pixels and half at 256, because the same dots and grains hide more of
a small face. Good restorations are the embedded restorer's of that size and the clean face itself; other people are
both with another person's eyes, nose and mouth in the place of their own, as a restorer that changes the person leaves
hair and surroundings. They are sorted into classes by how far the damaged face lies from the average one, because
damage makes all faces alike, and each class gets its limits.
Written to bfr_core/embedded/likeness_limits.json; `benchmarks/likeness.py --parts acted` tests them on other faces.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.damage.synthetic import degrade
from bfr_core.faces.align import Face, crop_face
from bfr_core.faces.likeness import Calibration, calibrate
from bfr_core.faces.recognise import NUMBERS, embed_faces
from bfr_core.files.photos import read_image, replace_atomically
from bfr_core.metrics.intervals import wilson_interval
from bfr_core.pixels import resized
from bfr_core.randomness import keyed_generator
from bfr_core.restoration.same_person import LIMITS, LikenessMeter, Limits
from bfr_core.restorers import Restorer, load_restorer
from bfr_core.spread import evenly

SOURCES = {"portraits": 5, "faces_t2i": 10}  # folder -> of so many names, in order, the first is kept from training
PEOPLE = 60  # of each folder
KINDS = ("blind", "sensor", "film_grain", "halftone", "motion_jpeg", "camera_x4", "camera_x8")
DAMAGES = (("blind", 0.0), *((kind, strength) for strength in (0.5, 1.0) for kind in KINDS))
EACH = 6  # damages a face, by turns at each size
SIZE = 256  # pixels of the larger restorer's faces
MISSED = 0.05  # of other people, at least, who may be passed over for the sake of good restorations
EDGES = (0.5, 0.56)  # between the classes: distances of a damaged face from the average one
INNER_CENTRE, INNER_RADII = (0.5, 0.6), (0.23, 0.28)  # of the part that makes a face somebody's, in crop widths


def people_of(shared: Path, folder: str, every: int) -> Tensor:
    """Clean standard crops of so many people, evenly chosen: (N, 3, S, S) of the largest size."""
    records = json.loads((shared / folder / "landmarks.json").read_text(encoding="utf-8"))
    names = [name for i, name in enumerate(sorted(records)) if i % every]
    chosen = [names[i] for i in evenly(len(names), PEOPLE)]
    faces = [Face(np.array(records[name]["landmarks"])) for name in chosen]
    return torch.stack(
        [crop_face(read_image(shared / folder / name), face, SIZE) for name, face in zip(chosen, faces, strict=True)]
    ).clamp(0, 1)


def swapped(faces: Tensor, others: Tensor) -> Tensor:
    """`faces` (B, 3, S, S) with the eyes, nose and mouth of `others`, at their own brightness and colour."""
    mask = inner_mask(faces.shape[-1])
    own, new = ((faces_ * mask).sum((2, 3), keepdim=True) / mask.sum() for faces_ in (faces, others))
    return torch.lerp(faces, (others - new + own).clamp(0, 1), mask)


def inner_mask(size: int) -> Tensor:
    """(1, S, S) in [0, 1], soft at its rim."""
    line = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(line, line, indexing="ij")
    distance = (((x - INNER_CENTRE[0]) / INNER_RADII[0]) ** 2 + ((y - INNER_CENTRE[1]) / INNER_RADII[1]) ** 2).sqrt()
    return ((1.15 - distance) / 0.3).clamp(0, 1)[None]


class Found(NamedTuple):
    """Of one face under one damage. photo, restored: (D,) embeddings. good, others: distances, like with like."""

    photo: Tensor
    restored: Tensor
    good: list[float]
    others: list[float]


def found_of(
    meter: LikenessMeter, restorer: Restorer, clean: Tensor, other: Tensor, kind: str, strength: float, key: int
) -> Found | None:
    """What is measured of one face (1, 3, S, S) and another person; None if the damaged face is not plainly one.

    The damage is put on faces of the restorer's size.
    """
    clean, other = (resized(face, restorer.size).clamp(0, 1) for face in (clean, other))
    lq = degrade(clean, kind, keyed_generator(0, "limits", kind, key), strength).lq
    if not meter.readable(lq)[0]:
        return None
    restored = restorer.restore_each(lq)
    candidates = torch.cat([restored, clean, swapped(restored, other), swapped(clean, other)])
    measured = meter.measure(lq.expand(4, -1, -1, -1), candidates, meter.noise_of(lq).expand(4, -1, -1, -1))
    distances = measured.distance.tolist()
    return Found(measured.photos[0], embed_faces(meter.net, restored)[0], distances[:2], distances[2:])


def limits_of(found: list[Found]) -> dict[str, Any]:
    """What `load_limits` reads."""
    average = torch.stack([one.restored for one in found]).mean(0)
    sorted_in: list[list[Found]] = [[] for _ in range(len(EDGES) + 1)]
    for one in found:
        sorted_in[sum(float((one.photo - average).norm()) >= edge for edge in EDGES)].append(one)
    classes = [
        record_of([d for one in some for d in one.good], [d for one in some for d in one.others]) for some in sorted_in
    ]
    return {"average": [round(value, 5) for value in average.tolist()], "upto": EDGES, "classes": classes}


def record_of(good: list[float], others: list[float]) -> dict[str, Any]:
    """The limits of one class, ready for JSON."""
    limits = calibrate(good, others)
    if limits.tells:
        limits = with_late_warning(limits, np.array(good), np.array(others))
    record: dict[str, Any] = {name: _number(getattr(limits, name)) for name in ("same", "other")}
    parts = ("false_warnings", "missed", "comforted", "false_comfort")
    record |= {name: [round(float(value), 4) for value in getattr(limits, name)] for name in parts}
    record |= {"genuine": limits.genuine, "strangers": limits.strangers, "reason": limits.reason}
    return record | {"config": asdict(limits.config)}


def with_late_warning(limits: Calibration, good: np.ndarray, others: np.ndarray) -> Calibration:
    """`limits` that warn as late as `MISSED` of other people allow: restorers differ, and may do better than ours."""
    other = max(limits.other, float(np.quantile(others, MISSED)))
    warned, missed = (wilson_interval(int(beyond.sum()), len(beyond)) for beyond in (good > other, others <= other))
    return replace(limits, other=other, false_warnings=warned, missed=missed)


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the folder that holds portraits/ and faces_t2i/")
    parser.add_argument("--out", type=Path, default=LIMITS)
    args = parser.parse_args()
    meter, found = LikenessMeter(limits=Limits(torch.zeros(NUMBERS), (), ())), []
    restorers = (meter.helper, load_restorer())
    for folder, every in SOURCES.items():
        clean = people_of(args.shared, folder, every)
        for i in range(len(clean)):
            for turn in range(EACH):
                kind, strength = DAMAGES[(EACH * i + turn) % len(DAMAGES)]
                restorer = restorers[turn % len(restorers)]
                found.append(found_of(meter, restorer, clean[i][None], clean[i - 1][None], kind, strength, i))
            print(f"{folder}: {i + 1} of {len(clean)}", file=sys.stderr, flush=True)
    write_limits(args.out, limits_of([one for one in found if one]))


def write_limits(path: Path, limits: dict[str, Any]) -> None:
    lines = ",\n ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in limits.items())
    replace_atomically(path, lambda part: part.write_text("{" + lines + "}\n", encoding="utf-8"))


if __name__ == "__main__":
    main()
