"""Does the embedded restorer pay on the rest of a photo, around its faces? Whole photographs under four damages.

    python benchmarks/background.py --shared DIR [--photos "eight;diverse/041"] [--damages "sensor;JPEG 20"]
                                    [--restorer FILE] [--pictures DIR]
    python benchmarks/background.py --summary

DIR holds photos/ and diverse/; the cup of coffee, a photo without faces, comes with scikit-image. The faces are those
that the embedded detector finds in the clean photo. All that no pasted face covers is measured, against the clean
photo: PSNR, and of the detail (above the band of `metrics.detail`) how much there is and how well it correlates. *Faces
invented* are those that the detector finds in the restored photo where it found none before, in the clean photo or the
damaged one. *off* is the photo as it is damaged; *adapted* is `background = adapted`. Each photo's figures are added to
--results, from which the table is printed; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.damage.synthetic import degrade, stored_as_jpeg
from bfr_core.faces.align import Face
from bfr_core.faces.detect import FaceDetector, load_detector
from bfr_core.files.photos import read_image, replace_atomically, write_image
from bfr_core.metrics.detail import high_band
from bfr_core.randomness import keyed_generator
from bfr_core.restoration.restore import RestoreConfig, restore_photo
from bfr_core.restorers import Restorer, load_restorer

RESULTS = Path(__file__).parent / "results" / "background.json"
PHOTOS = {
    "coffee": "",
    "diverse/041": "diverse/041.jpg",
    "diverse/020": "diverse/020.jpg",
    "eight": "photos/eight_synthetic_faces.jpg",
    "solvay": "photos/solvay_conference_1927.png",
}
DAMAGES = ("sensor", "film_grain", "JPEG 20", "halftone")
OFF = RestoreConfig(precision="float32", likeness="off")
ADAPTED = replace(OFF, background="adapted")
WAYS = {"off": OFF, "adapted": ADAPTED}
NEAR = 0.5  # of a face's width: a face found nearer than this to one that was there is that one


def read_clean(shared: Path, name: str) -> Tensor:
    """A clean photo, (3, H, W) in [0, 1]."""
    if name == "coffee":
        from skimage.data import coffee

        return torch.from_numpy(coffee().copy()).permute(2, 0, 1).float() / 255
    return read_image(shared / PHOTOS[name])


def damaged(clean: Tensor, damage: str, name: str) -> Tensor:
    """`clean` with a damage; a photo always gets the same."""
    if damage.startswith("JPEG"):
        return stored_as_jpeg(clean, int(damage.split()[1]))
    return degrade(clean[None], damage, keyed_generator(damage, name)).lq[0]


def figures(picture: Tensor, clean: Tensor, rest: Tensor) -> dict[str, float]:
    """PSNR, and the share and the correlation of the detail, where `rest` (H, W) is true."""
    error = (picture - clean)[:, rest].square().mean()
    mine, true = (high_band(one[None])[0][:, rest] for one in (picture, clean))
    together = (mine * true).sum() / (mine.square().sum() * true.square().sum()).sqrt()
    share = mine.square().sum() / true.square().sum()
    return {"psnr": -10 * math.log10(float(error)), "detail": float(share), "correlation": float(together)}


def invented(detector: FaceDetector, picture: Tensor, known: Sequence[Face]) -> int:
    """How many faces are found in `picture` besides `known`."""

    def is_known(face: Face) -> bool:
        places = [(abs(face.landmarks.mean(0) - one.landmarks.mean(0)).max(), one.width) for one in known]
        return any(distance < NEAR * max(width, face.width) for distance, width in places)

    return sum(not is_known(face) for face in detector(picture))


def measured(
    clean: Tensor,
    faces: Sequence[Face],
    name: str,
    damage: str,
    restorer: Restorer,
    detector: FaceDetector,
    pictures: Path | None,
) -> dict[str, Any]:
    """The figures of a photo with `faces` under a damage, for each way."""
    lq = damaged(clean, damage, name)
    known = [*faces, *detector(lq)]
    result: dict[str, Any] = {"faces": len(faces)}
    rest = None
    for way, config in WAYS.items():
        made = restore_photo(lq, restorer, config, lambda photo: list(faces))
        rest = made.mask[0] == 0 if rest is None else rest  # of off, where only faces are new
        result[way] = figures(made.pixels, clean, rest)
        result[way]["invented"] = invented(detector, made.pixels, known)
        if pictures:
            write_image(pictures / f"{name.replace('/', '_')}_{damage.replace(' ', '')}_{way}.png", made.pixels)
    return result


def table(results: dict[str, Any]) -> str:
    """The figures as a table in Markdown, with a mean for each damage."""
    head = "photo | faces | damage | PSNR: off, adapted | detail: off, adapted | correlation | invented"
    lines = [f"| {head} |", "|" + "---|" * len(head.split(" | "))]
    for damage in DAMAGES:
        rows = {key.split(": ")[0]: value for key, value in results.items() if key.split(": ")[1] == damage}
        for name, found in rows.items():
            lines.append(f"| {name} | {found['faces']} | {damage} | {_cells([found])} |")
        if rows:
            lines.append(f"| *mean of {len(rows)}* | | {damage} | {_cells(list(rows.values()))} |")
    return "\n".join(lines)


def _cells(found: list[dict[str, Any]]) -> str:
    def mean(way: str, measure: str) -> float:
        return sum(one[way][measure] for one in found) / len(found)

    psnr, detail, correlation = (
        ", ".join(f"{mean(way, measure):.2f}" for way in WAYS) for measure in ("psnr", "detail", "correlation")
    )
    invented = ", ".join(str(sum(one[way]["invented"] for one in found)) for way in WAYS)
    return f"{psnr} | {detail} | {correlation} | {invented}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--photos", default=";".join(PHOTOS))
    parser.add_argument("--damages", default=";".join(DAMAGES))
    parser.add_argument("--restorer", default="embedded")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="Only print the table of what is measured already.")
    args = parser.parse_args()
    results = json.loads(args.results.read_text(encoding="utf-8")) if args.results.is_file() else {}
    if not args.summary:
        if args.shared is None:
            parser.error("--shared is missing")
        restorer = load_restorer(args.restorer)
        detector = load_detector("embedded", 0.5, torch.device("cpu"))
        for name in args.photos.split(";"):
            clean = read_clean(args.shared, name)
            faces = detector(clean)
            for damage in args.damages.split(";"):
                key = f"{name}: {damage}"
                if key not in results:
                    results[key] = measured(clean, faces, name, damage, restorer, detector, args.pictures)
                    text = json.dumps(results, indent=1)
                    replace_atomically(args.results, lambda part, text=text: part.write_text(text, encoding="utf-8"))
                    print(key, results[key], file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
