"""Is a restored face ever worse than the photo? Large faces as they are, and the same faces damaged.

    python benchmarks/no_worse.py --shared DIR [--sets diverse] [--faces 10] [--damages "none;blur"] [--out PICTURES]
    python benchmarks/no_worse.py --summary

DIR holds photos/ and the folders of the other sets, each with its landmarks.json; the eight faces of photos/ are found
by the embedded detector. Of portraits/, faces_t2i/ and faces256/ only faces that are kept out of training are taken,
and of all sets only faces of `LEAST` pixels and more. The thresholds of `keep_detail` were chosen on diverse/ and
portraits/; the others were not looked at for that. The restorer is the embedded one, which is smaller than these faces.

Every face is restored twice: *off*, with keep_detail and even_tone switched off, and *on*, as by default but for the
grain, which is no matter of these measures. PSNR and GMSD are against the clean face, in the photo's own pixels; the
likeness is the distance of the recogniser's embeddings to the clean face: two photographs of one person have 0.35.
Each face's figures are added to --results, from which --summary prints the tables; a face that is there is not done
again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.damage.synthetic import degrade, stored_as_jpeg
from bfr_core.faces.align import Face, crop_face
from bfr_core.faces.detect import load_detector
from bfr_core.faces.recognise import chip_of, embed, load_recogniser
from bfr_core.files.photos import read_image, replace_atomically, write_image
from bfr_core.metrics.detail import sharpness
from bfr_core.metrics.gmsd import gmsd
from bfr_core.metrics.intervals import wilson_interval
from bfr_core.metrics.psnr import psnr
from bfr_core.pixels import gaussian_blur
from bfr_core.randomness import keyed_generator
from bfr_core.restoration.restore import RestoreConfig, restore_photo
from bfr_core.restorers import Restorer, load_restorer

SETS = {"eight": "photos", "diverse": "diverse", "portraits": "portraits", "recent": "portraits_recent",
        "t2i": "faces_t2i", "sfhq": "faces256"}  # fmt: skip
CHOSEN_ON = ("eight", "diverse", "portraits")  # whose faces the thresholds were chosen on, or looked at
EVERY = {"t2i": 10, "sfhq": 10}  # of so many names, in order, the first is kept from training
LEAST = 200.0  # pixels of a face's width
LESS_SHARP, LESS_PSNR, LESS_ALIKE = 0.995, 0.1, 0.05  # of the photo's sharpness; dB; of the recogniser's distance
RESULTS = Path(__file__).parent / "results" / "no_worse.json"
HELD_OUT = Path(__file__).parents[1] / "bfr_core" / "embedded" / "held_out.txt"
ON = RestoreConfig(match_grain=False)
OFF = RestoreConfig(match_grain=False, keep_detail=False, even_tone=False)
PICTURES = ("photo", "off", "on")
COLUMNS = ("set", "damage", "faces", "left alone", "less sharp: off, on", "PSNR lower: off, on", "less alike: off, on",
           "sharpness: photo, off, on", "PSNR", "GMSD", "likeness")  # fmt: skip


class Case(NamedTuple):
    """One face of a clean photo."""

    name: str
    photo: Tensor
    face: Face


class Figures(NamedTuple):
    """Of one face in one picture."""

    sharpness: float
    psnr: float
    gmsd: float
    likeness: float


def noisy(photo: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    """`photo` with independent noise of this standard deviation."""
    return (photo + sigma * torch.randn(photo.shape, generator=generator)).clamp(0, 1)


Damage = Callable[[Tensor, float, torch.Generator], Tensor]  # photo, width of its face, draws
DAMAGES: dict[str, Damage] = {
    "none": lambda photo, width, generator: photo,
    "blur": lambda photo, width, generator: gaussian_blur(photo[None], width / 80)[0],
    "strong blur": lambda photo, width, generator: gaussian_blur(photo[None], width / 40)[0],
    "noise 0.02": lambda photo, width, generator: noisy(photo, generator, 0.02),
    "noise 0.05": lambda photo, width, generator: noisy(photo, generator, 0.05),
    "noise 0.1": lambda photo, width, generator: noisy(photo, generator, 0.1),
    "JPEG 75": lambda photo, width, generator: stored_as_jpeg(photo, 75),
    "JPEG 30": lambda photo, width, generator: stored_as_jpeg(photo, 30),
    "JPEG 10": lambda photo, width, generator: stored_as_jpeg(photo, 10),
    "blur, noise, JPEG": lambda photo, width, generator: stored_as_jpeg(
        noisy(gaussian_blur(photo[None], width / 80)[0], generator, 0.03), 50
    ),
    "faded": lambda photo, width, generator: 0.3 * photo + 0.35,
    "dark": lambda photo, width, generator: 0.25 * photo,
    "sensor": lambda photo, width, generator: degrade(photo[None], "sensor", generator).lq[0],
    "film grain": lambda photo, width, generator: degrade(photo[None], "film_grain", generator).lq[0],
}
FADED = {"faded": (0.3, 0.35), "dark": (0.25, 0.0)}  # what is measured is undone first: the tones are no matter here


def read_cases(shared: Path, group: str, count: int) -> list[Case]:
    """`count` faces of a set, evenly chosen, none smaller than `LEAST`; the eight faces are all taken."""
    folder = shared / SETS[group]
    if group == "eight":
        photo = read_image(folder / "eight_synthetic_faces.jpg")
        found = load_detector("embedded", 0.5, torch.device("cpu"))(photo)
        return [Case(f"eight_{i}", photo, face) for i, face in enumerate(found)]
    records = json.loads((folder / "landmarks.json").read_text(encoding="utf-8"))
    names = HELD_OUT.read_text(encoding="utf-8").split() if group == "portraits" else sorted(records)
    faces = {name: Face(np.array(records[name]["landmarks"])) for name in names[:: EVERY.get(group, 1)]}
    large = [name for name, face in faces.items() if face.width >= LEAST]
    return [
        Case(Path(name).stem, read_image(folder / name), faces[name])
        for name in large[:: max(1, len(large) // count)][:count]
    ]


def around(photo: Tensor, face: Face) -> Tensor:
    """The upright square of the face's width, (1, 3, h, w), in the photo's own pixels."""
    left, top = np.maximum(face.landmarks.mean(0) - face.width / 2, 0).astype(int)
    return photo[None, :, top : top + round(face.width), left : left + round(face.width)]


def cut_out(case: Case) -> Case:
    """The case in a photo that ends half a face's width around the face, which is all that restoring looks at."""
    reach = 0.75 * case.face.width
    left, top = np.maximum(case.face.landmarks.mean(0) - reach, 0).astype(int)
    part = case.photo[:, top : top + round(2 * reach), left : left + round(2 * reach)]
    return case._replace(photo=part, face=Face(case.face.landmarks - [left, top]))


Measure = Callable[[Tensor, Tensor, Face], Figures]  # a picture, the clean photo, the face


def measured(case: Case, damage: str, restorer: Restorer, measure: Measure, out: Path | None) -> dict[str, Any]:
    """The figures of one face under one damage, ready for JSON. out: folder for its pictures side by side."""
    lq = DAMAGES[damage](case.photo, case.face.width, keyed_generator(damage, case.name))
    off, on = (restore_photo(lq, restorer, config, lambda photo: [case.face]) for config in (OFF, ON))
    gain, offset = FADED.get(damage, (1.0, 0.0))
    pictures = [((picture - offset) / gain).clamp(0, 1) for picture in (lq, off.pixels, on.pixels)]
    if out:
        whole = torch.cat([around(p, case.face)[0] for p in (*pictures, case.photo)], -1)
        write_image(out / f"{case.name}_{damage.replace(' ', '_').replace(',', '')}.png", whole)
    figures = [[round(value, 4) for value in measure(picture, case.photo, case.face)] for picture in pictures]
    return {"left_alone": len(off.faces) - len(on.faces), **dict(zip(PICTURES, figures, strict=True))}


def summary(kept: dict[str, dict[str, dict[str, Any]]]) -> Iterable[str]:
    """The lines of the table, and a last one for each half of the sets: how many faces lose what."""
    yield f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    for group in SETS:
        for damage in DAMAGES:
            if rows := list(kept.get(group, {}).get(damage, {}).values()):
                yield row_of(group, damage, rows)
    for said, groups in (("chosen on", CHOSEN_ON), ("not looked at", [g for g in SETS if g not in CHOSEN_ON])):
        for damage in ("none", ""):
            rows = [
                row
                for group in groups
                for name, faces in kept.get(group, {}).items()
                if not damage or name == damage
                for row in faces.values()
            ]
            if rows:
                losses = [
                    f"{name} {lost} of {len(rows)} ({100 * interval.low:.1f} to {100 * interval.high:.1f} %)"
                    for name, lost in zip(("less sharp", "PSNR lower", "less alike"), losers(rows, "on"), strict=True)
                    for interval in [wilson_interval(lost, len(rows))]
                ]
                yield f"{said}, {'clean faces' if damage else 'all damages'}, on: {'; '.join(losses)}"


def losers(rows: list[dict[str, Any]], picture: str) -> tuple[int, int, int]:
    """How many faces of a picture are less sharp, have a lower PSNR, and are less alike than the photo's."""
    photo, made = (np.array([row[which] for row in rows]) for which in ("photo", picture))
    return (
        int((made[:, 0] < LESS_SHARP * photo[:, 0]).sum()),
        int((made[:, 1] < photo[:, 1] - LESS_PSNR).sum()),
        int((made[:, 3] > photo[:, 3] + LESS_ALIKE).sum()),
    )


def row_of(group: str, damage: str, rows: list[dict[str, Any]]) -> str:
    """The row of one damage of one set."""
    table = np.array([[row[picture] for picture in PICTURES] for row in rows])  # faces, pictures, measures
    lost = [f"{off}, {on}" for off, on in zip(losers(rows, "off"), losers(rows, "on"), strict=True)]
    means = [", ".join(f"{v:.{d}f}" for v in table[:, :, i].mean(0)) for i, d in enumerate((2, 2, 3, 3))]
    cells = [group, damage, len(rows), sum(row["left_alone"] for row in rows), *lost, *means]
    return f"| {' | '.join(map(str, cells))} |"


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, metavar="DIR")
    parser.add_argument("--faces", type=int, default=10, help="of each set (10)")
    parser.add_argument("--damages", default=";".join(DAMAGES), help="separated by semicolons; all by default")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, help="folder for pictures: damaged, off, on, clean")
    parser.add_argument("--summary", action="store_true", help="print the tables of the results that are there")
    args = parser.parse_args()
    logging.getLogger("bfr_core").setLevel(logging.ERROR)
    kept = json.loads(args.results.read_text(encoding="utf-8")) if args.results.is_file() else {}
    if args.summary:
        print("\n".join(summary(kept)))
        return
    if not args.shared:
        parser.error("--shared is missing")
    restorer, net = load_restorer("embedded"), load_recogniser()

    def measure(picture: Tensor, clean: Tensor, face: Face) -> Figures:
        crop, (ours, theirs) = crop_face(picture, face, round(face.width)), (around(p, face) for p in (picture, clean))
        embeddings = [embed(net, chip_of(p, face.landmarks)[None]) for p in (picture, clean)]
        distance = float((embeddings[0] - embeddings[1]).norm())
        return Figures(float(sharpness(crop[None])), float(psnr(ours, theirs)), float(gmsd(ours, theirs)), distance)

    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for group in args.sets:
        small = [cut_out(case) for case in read_cases(args.shared, group, args.faces)]
        for damage in args.damages.split(";"):
            rows = kept.setdefault(group, {}).setdefault(damage, {})
            for case in small:
                if case.name not in rows:
                    rows[case.name] = measured(case, damage, restorer, measure, args.out)
            text = json.dumps(kept, indent=0)
            replace_atomically(args.results, partial(_write, text))
            print(row_of(group, damage, [rows[case.name] for case in small]), flush=True)


if __name__ == "__main__":
    main()
