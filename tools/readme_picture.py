"""Make the README's leading picture: damaged, base restorer, adapted restorer and original.

    python benchmarks/adaptation.py --portraits DIR --iterations 600 --seeds 0 --damages camera_x4_iso1500 sensor \\
        --rows adapted --restorers build/adapted --work build/adapted
    python tools/readme_picture.py --restorers build/adapted

The first command adapts the embedded restorer to damaged copies of 75 portraits that no embedded model has seen, once
for each kind of damage. The picture shows two other public-domain photographs, which come with scikit-image and
matplotlib, each under one of these kinds. No face is selected. Make it again after models or method have changed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.damage.synthetic import DAMAGES
from bfr_core.faces.align import crop_face
from bfr_core.files.photos import replace_atomically
from bfr_core.pixels import as_bytes
from bfr_core.restorers import Restorer, load_restorer
from bfr_core.studies.demo import DAMAGE, damaged_photo, real_photos
from bfr_core.studies.evaluate import face_measures

log = logging.getLogger("readme_picture")

COLUMNS = ("damaged", "base restorer", "adapted restorer", "original")
WIDE = 384  # pixels of the picture for the width of a face, or the next smaller multiple of its own
GAP, HEAD = 6, 52  # white pixels between faces, and above them for the labels
MAX_BYTES = 250_000


def rows_of(base: Restorer, adapted: Mapping[str, Restorer]) -> list[list[Tensor]]:
    """The face of each photograph: damaged, as base and adapted restorer restore it, and original, (3, S, S) each.

    adapted: by kind of damage; the photographs are given these kinds in turn.
    """
    rows = []
    for (name, photo), kind in zip(real_photos().items(), cycle(adapted)):
        original, damaged, face = damaged_photo(photo, name, base.size, kind)
        hq, lq = (crop_face(version, face, base.size).clamp(0, 1) for version in (original, damaged))
        row = [lq, *(restorer.restore(lq[None])[0].cpu() for restorer in (base, adapted[kind])), hq]
        for column, crop in zip(COLUMNS[:3], row[:3], strict=True):
            log.info("%s, %s, %s: %.2f dB", name, kind, column, float(face_measures(crop[None], hq[None])["psnr"][0]))
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
    parser.add_argument("--restorers", type=Path, required=True, metavar="DIR", help="the adapted restorers")
    parser.add_argument("--out", type=Path, default=Path("docs/before_after.jpg"), metavar="FILE")
    parser.add_argument(
        "--damages", nargs="+", choices=sorted(DAMAGES), default=[DAMAGE, "sensor"], help="one for each photograph"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="with which they were adapted (0)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    files = {kind: args.restorers / f"{kind}-{args.seed}.safetensors" for kind in args.damages}
    adapted = {kind: load_restorer(str(file)) for kind, file in files.items()}
    jpeg = as_jpeg(labelled(rows_of(load_restorer(), adapted)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(args.out, lambda path: path.write_bytes(jpeg))
    log.info("%s: %d bytes", args.out, len(jpeg))


if __name__ == "__main__":
    main()
