"""The demonstration: the whole method on faces that the prior draws from a fixed seed, and on two real photographs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
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
from ..device import autocast
from ..diffusion.prior import Prior, load_prior
from ..diffusion.sampler import LatentNoisePredictor, predict_x0
from ..diffusion.schedule import respace
from ..faces.align import Face, crop_face
from ..faces.detect import load_detector
from ..files.photos import read_image, to_unit, write_image
from ..files.records import fingerprint, read_json
from ..files.stages import stage_folder
from ..pixels import resized
from ..randomness import keyed_generator, keyed_noise
from ..reports.html import Gallery, ReportData, Table, write_report
from ..restoration.restore import RestoreConfig, restore_photo
from ..restorers import Restorer, load_restorer
from ..studies.evaluate import MEASURES, face_measures, format_interval, summarise

log = logging.getLogger(__name__)

FACES, STEPS, SEED, DAMAGE = 32, 40, 7, "sensor"
ITERATIONS, RATE = 560, 1e-3  # of the tuning: fewer and larger steps than the recipe's, to end in five minutes
MEASURED = ("psnr", "ssim", "detail_energy", "detail_correlation")
UNFINISHED = RestoreConfig(keep_detail=False, match_grain=False, even_tone=False)  # the restorer itself is measured
FLATTERY = (
    "The drawn faces come from the very prior that made the pseudo targets, so they flatter it: "
    "read the real photographs first."
)


@torch.no_grad()
def draw_faces(
    prior: Prior, names: Sequence[str], seed: int, callback: Callable[[int, int, Tensor], None] | None = None
) -> Tensor:
    """Faces of people who do not exist, drawn by the prior from pure noise: (B, 3, S, S) RGB in [0, 1].

    The result is on the CPU. Each face's random numbers are keyed by its name. callback: step, steps and what the faces
    look like so far, after every network call; what it raises ends the work. DDIM with eta 1 in `STEPS` steps.
    Source: arXiv:2010.02502, eq. 12.
    """
    schedule = respace(prior.alpha_bar, STEPS)
    noise = keyed_noise(seed, "demo", names, prior.device)
    sample = torch.zeros(1, 3, prior.size, prior.size, device=prior.device)
    bound = 1.0
    decode: Callable[[Tensor], Tensor] = torch.clone
    if isinstance(prior, LatentNoisePredictor):
        sample, bound, decode = prior.encode(sample), math.inf, prior.decode
    shape = torch.Size([len(names), *sample.shape[1:]])
    x = noise(shape)
    for i in range(STEPS - 1, -1, -1):
        alpha_bar, alpha_bar_prev = float(schedule.alpha_bar[i]), float(schedule.alpha_bar_prev[i])
        with autocast(x.device, "auto"):
            eps, _ = prior(x, schedule.timesteps[i].to(x.device).expand(len(x)))
        x0_hat = predict_x0(x, eps, alpha_bar).clamp(-bound, bound)
        eps = (x - alpha_bar**0.5 * x0_hat) / (1 - alpha_bar) ** 0.5
        sigma = ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)) ** 0.5
        x = alpha_bar_prev**0.5 * x0_hat + max(0.0, 1 - alpha_bar_prev - sigma**2) ** 0.5 * eps
        if i:
            x = x + sigma * noise(shape)
        if callback:
            callback(STEPS - i, STEPS, to_unit(decode(x0_hat)))
    return to_unit(decode(x)).cpu()


def real_photos() -> dict[str, Tensor]:
    """Two public-domain portraits that come with installed packages: (3, H, W) RGB in [0, 1] by name."""
    import matplotlib
    import skimage.data

    astronaut = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    hopper = read_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    return {"Eileen Collins (NASA)": astronaut, "Grace Hopper (US Navy)": hopper}


def prepare(folder: Path, prior: Prior, callback: StageCallback | None = None) -> tuple[Path, Path]:
    """Draw the faces into folder/clean and their damaged copies into folder/damaged; resumable."""
    clean, damaged = folder / "clean", folder / "damaged"
    made = fingerprint(prior.sha256, FACES, STEPS, SEED, DAMAGE)
    Run(folder).claim()
    for part in (clean, damaged):
        stage_folder(part, made, ["drawn_[0-9]*.png"])
    names = [f"drawn_{i:02d}" for i in range(FACES)]
    for start in range(0, FACES, 8):
        some = names[start : start + 8]
        if not all((damaged / f"{n}.png").exists() for n in some):
            for name, face in zip(some, draw_faces(prior, some, SEED), strict=True):
                write_or_keep(clean / f"{name}.png", face)
                lq = degrade(face[None], DAMAGE, keyed_generator(SEED, DAMAGE, name)).lq[0]
                write_or_keep(damaged / f"{name}.png", lq)
        if callback:
            callback("draw", start + len(some), FACES, None)
    return clean, damaged


def damaged_photo(photo: Tensor, name: str, size: int) -> tuple[Tensor, Tensor, Face]:
    """The photo shrunk until its largest face fills a crop of `size`, the same photo damaged, and where the face is."""
    detector = load_detector("embedded")
    faces = detector(photo)
    if not faces:
        raise ValueError(f"no face was found in the photograph of {name}")
    shrink = size / faces[0].width
    if shrink < 1:
        height, width = (round(n * shrink) for n in photo.shape[-2:])
        photo = resized(photo[None], (height, width))[0].clamp(0, 1)
        faces = [replace(faces[0], landmarks=(faces[0].landmarks + 0.5) * shrink - 0.5)]
    lq = degrade(photo[None], DAMAGE, keyed_generator(SEED, DAMAGE, name)).lq[0]
    return photo, lq, faces[0]


def demo(folder: Path, callback: StageCallback | None = None) -> Path:
    """Run the whole demonstration in `folder`; returns the path of report.html. Stopped and run again, it goes on."""
    prior, base = load_prior(), load_restorer()
    clean, damaged = prepare(folder, prior, callback)
    config = recipe(base)
    faces, finetune = replace(config.faces, aligned=True), replace(config.finetune, iterations=ITERATIONS, lr=RATE)
    config = replace(config, faces=faces, finetune=finetune)
    result = adapt(damaged, folder / "run", config, callback)
    return report(folder, clean, result, callback)


def report(folder: Path, clean: Path, result: Adapted, callback: StageCallback | None = None) -> Path:
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
    names = sorted(p.stem for p in clean.glob("*.png"))
    hq = torch.stack([read_image(clean / f"{n}.png") for n in names])
    lq = torch.stack([read_image(result.run.faces / f"{n}.png") for n in names])
    drawn = {"damaged": lq} | {k: r.restore(lq) for k, r in restorers.items()} | {"drawn face": hq}
    drawn_rows = [[f"{len(names)} drawn faces: {k}", *_numbers(drawn[k], hq)] for k in ("damaged", *restorers)]
    drawn_pictures = [(n, [v[i] for v in drawn.values()]) for i, n in enumerate(names)]
    if callback:
        callback("restore", len(photos) + 1, len(photos) + 1, None)
    columns = ["", *(f"{MEASURES[m].title}, {MEASURES[m].goal}" for m in MEASURED)]
    data = ReportData(
        title="BFR Adapt: a demonstration",
        verdict=result.judgement.verdict,
        verdict_sentence=(
            f"{result.judgement.said} "
            f"The adaptation was given {len(names)} damaged faces, these among them, and nothing else. "
            "Left to right: damaged, base restorer, adapted restorer, and the original, which it never saw."
        ),
        galleries=[
            Gallery("Real photographs: the face", "", ["damaged", "base", "adapted", "original"], face_pictures),
            Gallery("Real photographs, whole", "", ["damaged", "base", "adapted", "original"], photo_pictures),
            Gallery("Drawn faces", FLATTERY, ["damaged", "base", "adapted", "drawn face"], drawn_pictures),
        ],
        tables=[
            Table(
                "Real photographs, measured on the face",
                "Two pictures: an illustration, no proof.",
                columns,
                photo_rows,
            ),
            Table("Drawn faces", FLATTERY, columns, drawn_rows),
        ],
        loss_curves=result.progress.losses | {"held-out faces": result.progress.held_out},
        notes=[
            f"Damage: {DAMAGE}, seed {SEED}; the embedded restorer was never trained on it.",
            f"The faces are drawn by the embedded prior with seed {SEED}; none was selected.",
            "Details are generated. No restored face identifies anyone.",
        ],
        settings=result.run.config(),
        measurements={"real": photo_rows, "drawn": drawn_rows},
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
    """The photo with its one face restored; the place is given, so that both restorers work on the same crop."""
    return restore_photo(lq, restorer, UNFINISHED, detector=lambda photo: [face]).pixels


def _numbers(restored: Tensor, hq: Tensor) -> list[str]:
    values = summarise({k: v for k, v in face_measures(restored, hq).items() if k in MEASURED})
    return [format_interval(values.get(m), MEASURES[m].decimals) for m in MEASURED]
