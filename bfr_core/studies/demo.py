"""The demonstration: the whole method on damaged faces whose clean originals come with the program.

The folder that is adapted to holds only their damaged copies; their originals are among the sharp faces that every
tuning learns from, so that they show nothing. What was gained is measured on other faces, of which no tuning has seen
the originals, and on two real photographs, which no training has seen.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adaptation.adapt import Adapted, adapt
from ..adaptation.config import recipe
from ..adaptation.faces import StageCallback, write_or_keep
from ..adaptation.run import Run
from ..damage.synthetic import degrade
from ..faces.align import Face, crop_face
from ..faces.detect import load_detector
from ..faces.sharp_faces import SharpFaces
from ..files.photos import read_image, write_image
from ..files.records import fingerprint, read_json
from ..files.stages import stage_folder
from ..pixels import resized
from ..randomness import keyed_generator
from ..reports.html import Gallery, ReportData, Table, write_report
from ..restoration.restore import RestoreConfig, restore_photo
from ..restorers import Restorer, load_restorer
from ..studies.evaluate import MEASURES, face_measures, format_interval, summarise

log = logging.getLogger(__name__)

FACES, SEED, DAMAGE = 32, 7, "camera_x4_iso1500"
ITERATIONS = 200  # of the tuning: fewer than the recipe's, to end in some minutes
MEASURED = ("psnr", "ssim", "detail_energy", "detail_correlation")
# The restorer itself is measured, so nothing is given back to the face; the rest of the photo goes through it, too.
UNFINISHED = RestoreConfig(keep_detail=False, match_grain=False, even_tone=False, background="adapted")
SEEN_BEFORE = (
    "No tuning has seen these faces, but the embedded restorer was trained on them, under other damage: read the real "
    "photographs first."
)
REST = "Base and adapted restorer worked on the rest of the photo, too; bfr restore does so with --background adapted."


def real_photos() -> dict[str, Tensor]:
    """Two public-domain portraits that come with installed packages: (3, H, W) RGB in [0, 1] by name."""
    import matplotlib
    import skimage.data

    astronaut = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    hopper = read_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    return {"Eileen Collins (NASA)": astronaut, "Grace Hopper (US Navy)": hopper}


def prepare(folder: Path, size: int) -> Path:
    """Write damaged copies of `FACES` of the sharp faces into folder/damaged; returns that folder. Resumable."""
    sharp, damaged = SharpFaces(size), folder / "damaged"
    Run(folder).claim()
    stage_folder(damaged, fingerprint(sharp.fingerprint, size, FACES, SEED, DAMAGE), ["face_[0-9]*.png"])
    for i in range(FACES):
        file = damaged / f"face_{i:02d}.png"
        if not file.exists():
            write_or_keep(file, damaged_copy(sharp[i], file.stem))
    return damaged


def damaged_copy(picture: Tensor, name: str, kind: str = DAMAGE) -> Tensor:
    """`picture` (3, H, W) with this kind of damage, whose random numbers are keyed by the name."""
    return degrade(picture[None], kind, keyed_generator(SEED, kind, name)).lq[0]


def damaged_photo(photo: Tensor, name: str, size: int, kind: str = DAMAGE) -> tuple[Tensor, Tensor, Face]:
    """The photo shrunk until its largest face fills a crop of `size`, the same photo damaged, and where the face is.

    kind: of the damage, one of DAMAGES. Raises ValueError for a photo without a face.
    """
    detector = load_detector("embedded")
    faces = detector(photo)
    if not faces:
        raise ValueError(f"no face was found in the photograph of {name}")
    shrink = size / faces[0].width
    if shrink < 1:
        height, width = (round(n * shrink) for n in photo.shape[-2:])
        photo = resized(photo[None], (height, width))[0].clamp(0, 1)
        faces = [replace(faces[0], landmarks=(faces[0].landmarks + 0.5) * shrink - 0.5)]
    return photo, damaged_copy(photo, name, kind), faces[0]


def demo(folder: Path, callback: StageCallback | None = None) -> Path:
    """Run the whole demonstration in `folder`; returns the path of report.html. Stopped and run again, it goes on."""
    base = load_restorer()
    config = recipe(base)
    faces, finetune = replace(config.faces, aligned=True), replace(config.finetune, iterations=ITERATIONS)
    config = replace(config, faces=faces, finetune=finetune)
    result = adapt(prepare(folder, base.size), folder / "run", config, callback)
    return report(folder, result, callback)


def report(folder: Path, result: Adapted, callback: StageCallback | None = None) -> Path:
    """Restore everything with base and adapted restorer; write before_after.png and report.html; returns its path."""
    restorers = {"base": result.base, "adapted": result.restorer}
    photo_rows, photo_pictures, face_pictures = [], [], []
    photos = real_photos()
    for step, (name, photo) in enumerate(photos.items()):
        hq, lq, face = damaged_photo(photo, name, result.base.size)
        versions = {"damaged": lq} | {k: _restored(lq, r, face) for k, r in restorers.items()} | {"original": hq}
        crops = {k: crop_face(v, face, result.base.size).clamp(0, 1) for k, v in versions.items()}
        photo_rows += [
            [f"{name}: {k}", *_numbers(crops[k][None], crops["original"][None])] for k in ("damaged", *restorers)
        ]
        photo_pictures.append((name, list(versions.values())))
        face_pictures.append((name, list(crops.values())))
        if callback:
            callback("restore", step + 1, len(photos) + 1, None)
    strip = torch.cat([torch.cat(crops, 2) for _, crops in face_pictures], 1)
    write_image(folder / "before_after.png", F.interpolate(strip[None], scale_factor=2, mode="bicubic")[0].clamp(0, 1))
    hq = SharpFaces(result.base.size).kept_apart()
    names = [f"face {i + 1}" for i in range(len(hq))]
    lq = torch.stack([damaged_copy(face, name) for face, name in zip(hq, names, strict=True)])
    others = {"damaged": lq} | {k: r.restore(lq) for k, r in restorers.items()} | {"original": hq}
    other_rows = [[f"{len(names)} other faces: {k}", *_numbers(others[k], hq)] for k in ("damaged", *restorers)]
    other_pictures = [(n, [v[i] for v in others.values()]) for i, n in enumerate(names)]
    if callback:
        callback("restore", len(photos) + 1, len(photos) + 1, None)
    columns_of_pictures = ["damaged", "base", "adapted", "original"]
    columns = ["", *(f"{MEASURES[m].title}, {MEASURES[m].goal}" for m in MEASURED)]
    data = ReportData(
        title="BFR Adapt: a demonstration",
        verdict=result.judgement.verdict,
        verdict_sentence=(
            f"{result.judgement.said} "
            f"The adaptation was given {FACES} damaged faces of others and, as always, the sharp faces that come with "
            "the program, which here include their originals. "
            "Left to right: damaged, base restorer, adapted restorer, and the original, which no tuning saw."
        ),
        galleries=[
            Gallery("Real photographs: the face", "", columns_of_pictures, face_pictures),
            Gallery("Real photographs, whole", REST, columns_of_pictures, photo_pictures),
            Gallery("Other faces", SEEN_BEFORE, columns_of_pictures, other_pictures),
        ],
        tables=[
            Table(
                "Real photographs, measured on the crop of the face",
                "Two pictures: an illustration, no proof.",
                columns,
                photo_rows,
            ),
            Table("Other faces", SEEN_BEFORE, columns, other_rows),
        ],
        loss_curves=result.progress.losses | {"held-out faces": result.progress.held_out},
        notes=[
            f"Damage: {DAMAGE}, seed {SEED}; the embedded restorer was never trained on it.",
            "The faces are the sharp faces that come with the program, in an order by lot; none was picked out.",
            "Details are generated. No restored face identifies anyone.",
        ],
        settings=result.run.config(),
        measurements={"real": photo_rows, "others": other_rows},
    )
    return write_report(folder, data, max_rows=8)


def read_table(folder: Path) -> str:
    """The demonstration's tables as plain text, from report.json."""
    tables = read_json(folder / "report.json")["tables"]
    lines = []
    for table in tables:
        lines += ["", table["title"], table["note"]]
        cells = [table["columns"], *table["rows"]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def _restored(lq: Tensor, restorer: Restorer, face: Face) -> Tensor:
    """The photo, all of it restored; the place of its one face is given, so that both restorers see the same crop."""
    return restore_photo(lq, restorer, UNFINISHED, detector=lambda photo: [face]).pixels


def _numbers(restored: Tensor, hq: Tensor) -> list[str]:
    values = summarise(face_measures(restored, hq, MEASURED))
    return [format_interval(values.get(m), MEASURES[m].decimals) for m in MEASURED]
