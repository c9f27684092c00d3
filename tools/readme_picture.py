"""Make the README's leading picture: damaged, base restorer, adapted restorer and original.

    python tools/readme_picture.py --portraits DIR --out docs/before_after.jpg

DIR holds the public-domain portraits that `tools/get_faces.py` fetches. The held-out ones among them, which no embedded
model has seen, are damaged, and the restorer is adapted to these damaged copies alone. The picture then shows two other
public-domain photographs, which come with scikit-image and matplotlib, under the same damage. No face is selected.
Run it again after the models or the method have changed. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.adaptation.adapt import adapt
from bfr_core.adaptation.config import recipe
from bfr_core.damage.synthetic import DAMAGES, degrade
from bfr_core.faces.align import Face, crop_face
from bfr_core.files.photos import list_images, read_image, replace_atomically, write_image
from bfr_core.pixels import as_bytes
from bfr_core.randomness import keyed_generator
from bfr_core.restorers import Restorer, load_restorer
from bfr_core.studies.demo import DAMAGE, damaged_photo, real_photos
from bfr_core.studies.evaluate import face_measures

log = logging.getLogger("readme_picture")

COLUMNS = ("damaged", "base restorer", "adapted restorer", "original")
WIDE = 384  # pixels of the picture for the width of a face, or the next smaller multiple of its own
GAP, HEAD = 6, 52  # white pixels between faces, and above them for the labels
HELD_OUT = Path(__file__).resolve().parents[1] / "bfr_core" / "embedded" / "held_out.txt"
MAX_BYTES = 250_000


def damaged_copies(portraits: Path, folder: Path, kind: str, seed: int, faces: int, size: int) -> None:
    """Write the damaged crops of the first `faces` held-out portraits into `folder`, as PNG of `size` pixels.

    Raises FileNotFoundError if the portraits or their landmarks are not in `portraits`.
    """
    landmarks = json.loads((portraits / "landmarks.json").read_text())
    names = set(HELD_OUT.read_text().split())
    held_out = [path for path in list_images(portraits) if path.name in names][:faces]
    if not held_out:
        raise FileNotFoundError(f"{portraits}: holds no held-out portrait; fetch them with tools/get_faces.py")
    folder.mkdir(parents=True, exist_ok=True)
    for path in held_out:
        target = folder / f"{path.stem}.png"
        if not target.exists():
            points = torch.tensor(landmarks[path.name]["landmarks"]).numpy()
            hq = crop_face(read_image(path), Face(points), size).clamp(0, 1)
            write_image(target, degrade(hq[None], kind, keyed_generator(seed, kind, path.stem)).lq[0])


def rows_of(base: Restorer, adapted: Restorer) -> list[list[Tensor]]:
    """The face of each photograph: damaged, as base and adapted restorer restore it, and original, (3, S, S) each."""
    rows = []
    for name, photo in real_photos().items():
        original, damaged, face = damaged_photo(photo, name, base.size)
        hq, lq = (crop_face(version, face, base.size).clamp(0, 1) for version in (original, damaged))
        row = [lq, *(restorer.restore(lq[None])[0].cpu() for restorer in (base, adapted)), hq]
        for column, crop in zip(COLUMNS[:3], row[:3], strict=True):
            log.info("%s, %s: %.2f dB", name, column, float(face_measures(crop[None], hq[None])["psnr"][0]))
        rows.append(row)
    return rows


def labelled(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """The rows below one another, with the columns' names above."""
    times = max(1, WIDE // rows[0][0].shape[-1])
    side = rows[0][0].shape[-1] * times
    picture = Image.new("RGB", (len(COLUMNS) * (side + GAP) - GAP, HEAD + len(rows) * (side + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(32)
    for column, title in enumerate(COLUMNS):
        left = column * (side + GAP)
        draw.text((left + side / 2, HEAD / 2), title, "black", font, anchor="mm")
        for number, row in enumerate(rows):
            enlarged = F.interpolate(row[column][None], scale_factor=times, mode="bicubic")[0].clamp(0, 1)
            pixels = as_bytes(enlarged).permute(1, 2, 0).numpy()
            picture.paste(Image.fromarray(pixels), (left, HEAD + number * (side + GAP)))
    return picture


def as_jpeg(picture: Image.Image, max_bytes: int = MAX_BYTES) -> bytes:
    """The picture at the best quality, from 92 down to 44, that needs at most `max_bytes`."""
    for quality in range(92, 40, -4):
        file = BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
        if file.tell() <= max_bytes:
            break
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True, metavar="DIR", help="public-domain portraits")
    parser.add_argument("--out", type=Path, default=Path("docs/before_after.jpg"), metavar="FILE")
    parser.add_argument(
        "--work", type=Path, default=Path("build/readme_picture"), metavar="DIR", help="folder to work in"
    )
    parser.add_argument("--damage", choices=sorted(DAMAGES), default=DAMAGE)
    parser.add_argument("--restorer", default="embedded", metavar="FILE", help="restorer to adapt ('embedded')")
    parser.add_argument("--prior", default="embedded", metavar="FILE", help="diffusion prior ('embedded')")
    parser.add_argument("--faces", type=int, default=60, metavar="N", help="portraits to adapt to (60)")
    parser.add_argument("--iterations", type=int, default=300, metavar="N", help="tuning steps (300)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the seed of every random draw (0)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    base = load_restorer(args.restorer)
    photos = args.work / f"{args.damage}-{args.seed}-{args.faces}"
    damaged_copies(args.portraits, photos, args.damage, args.seed, args.faces, base.size)
    config = recipe(base)
    config = replace(
        config,
        restorer=args.restorer,
        prior=args.prior,
        faces=replace(config.faces, aligned=True),
        targets=replace(config.targets, seed=args.seed),
        finetune=replace(config.finetune, iterations=args.iterations, seed=args.seed),
    )
    result = adapt(photos, args.work / f"run-{photos.name}", config)
    log.info("%d faces, %d steps: %s", len(result.faces), args.iterations, result.judgement.said)
    jpeg = as_jpeg(labelled(rows_of(base, result.restorer)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(args.out, lambda path: path.write_bytes(jpeg))
    log.info("%s: %d bytes", args.out, len(jpeg))


if __name__ == "__main__":
    main()
