"""Is a restored face ever worse than the photo? Large faces as they are, and the same faces damaged.

    python benchmarks/no_worse.py --shared DIR [--sets diverse] [--faces 10] [--damages "none;blur"] [--out PICTURES]

DIR holds photos/, diverse/ and portraits/ (of which the held-out ones are taken), each with its landmarks.json or, for
the eight faces of photos/, the embedded detector. The restorer is the embedded one, which is smaller than these faces.
Every face is restored twice: *off*, with keep_detail and even_tone switched off, and *on*, as by default but for the
grain, which is no matter of these measures. PSNR and GMSD are against the clean face, in the photo's own pixels; the
likeness is the distance of the recogniser's embeddings to the clean face: two photographs of one person have 0.35.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.damage.synthetic import degrade, stored_as_jpeg
from bfr_core.faces.align import Face, crop_face
from bfr_core.faces.detect import load_detector
from bfr_core.faces.recognise import chip_of, embed, load_recogniser
from bfr_core.files.photos import read_image, write_image
from bfr_core.metrics.detail import sharpness
from bfr_core.metrics.gmsd_vif import gmsd
from bfr_core.metrics.psnr import psnr
from bfr_core.pixels import gaussian_blur
from bfr_core.randomness import keyed_generator
from bfr_core.restoration.restore import RestoreConfig, restore_photo
from bfr_core.restorers import load_restorer

SETS = ("eight", "diverse", "portraits")
HELD_OUT = Path(__file__).parents[1] / "bfr_core" / "embedded" / "held_out.txt"
ON = RestoreConfig(match_grain=False)
OFF = RestoreConfig(match_grain=False, keep_detail=False, even_tone=False)
COLUMNS = (
    "set | damage | faces | left alone | less sharp than the photo: off, on | sharpness: photo, off, on "
    "| PSNR: photo, off, on | GMSD: photo, off, on | likeness: photo, off, on"
)


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
    """`count` faces of a set, evenly chosen; the eight faces are all taken."""
    if group == "eight":
        photo = read_image(shared / "photos" / "eight_synthetic_faces.jpg")
        found = load_detector("embedded", 0.5, torch.device("cpu"))(photo)
        return [Case(f"eight_{i}", photo, face) for i, face in enumerate(found)]
    records = json.loads((shared / group / "landmarks.json").read_text(encoding="utf-8"))
    names = HELD_OUT.read_text(encoding="utf-8").split() if group == "portraits" else sorted(records)
    return [
        Case(Path(name).stem, read_image(shared / group / name), Face(np.array(records[name]["landmarks"])))
        for name in names[:: max(1, len(names) // count)][:count]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, metavar="DIR")
    parser.add_argument("--faces", type=int, default=10, help="of each set (10)")
    parser.add_argument("--damages", default=";".join(DAMAGES), help="separated by semicolons; all by default")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--out", type=Path, help="folder for pictures: damaged, off, on, clean")
    args = parser.parse_args()
    logging.getLogger("bfr_core").setLevel(logging.ERROR)
    restorer, net = load_restorer("embedded"), load_recogniser()

    def figures(picture: Tensor, clean: Tensor, face: Face) -> Figures:
        crop, (ours, theirs) = crop_face(picture, face, round(face.width)), (around(p, face) for p in (picture, clean))
        embeddings = [embed(net, chip_of(p, face.landmarks)[None]) for p in (picture, clean)]
        distance = float((embeddings[0] - embeddings[1]).norm())
        return Figures(float(sharpness(crop[None])), float(psnr(ours, theirs)), float(gmsd(ours, theirs)), distance)

    print(f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}")
    for group in args.sets:
        small = [cut_out(case) for case in read_cases(args.shared, group, args.faces)]
        for damage in args.damages.split(";"):
            rows, left_alone = [], 0
            for case in small:
                lq = DAMAGES[damage](case.photo, case.face.width, keyed_generator(damage, case.name))
                detector = lambda photo, face=case.face: [face]  # noqa: E731
                off, on = (restore_photo(lq, restorer, config, detector) for config in (OFF, ON))
                left_alone += len(off.faces) - len(on.faces)
                gain, offset = FADED.get(damage, (1.0, 0.0))
                pictures = [((picture - offset) / gain).clamp(0, 1) for picture in (lq, off.pixels, on.pixels)]
                rows.append([figures(picture, case.photo, case.face) for picture in pictures])
                if args.out:
                    whole = torch.cat([around(p, case.face)[0] for p in (*pictures, case.photo)], -1)
                    write_image(args.out / f"{case.name}_{damage.replace(' ', '_').replace(',', '')}.png", whole)
            table = np.array(rows)  # faces, pictures, measures
            sharp = table[:, :, 0]
            losers = [int((sharp[:, i] < 0.995 * sharp[:, 0]).sum()) for i in (1, 2)]
            means = [", ".join(f"{v:.{d}f}" for v in table[:, :, i].mean(0)) for i, d in enumerate((2, 2, 3, 3))]
            cells = [group, damage, len(rows), left_alone, f"{losers[0]}, {losers[1]}", *means]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
