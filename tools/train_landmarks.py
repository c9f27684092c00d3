"""Train the embedded face networks (bfr_core/embedded/landmarks.safetensors) on one CPU thread.

    python tools/train_landmarks.py --portraits DIR --faces DIR DIR DIR --minutes 50

Each folder holds images and a landmarks.json (file name -> {"landmarks": five points}); of a folder such as
historic/clean the landmarks are listed in the one above it. Every fifth portrait and every tenth face of the other
folders are held out, and the figures printed at the end are measured on those portraits. A twentieth of the rest is
kept for the choice of constants. The same command run again trains on where it stopped while minutes are left;
`--export-only` measures and writes the last checkpoint. `--start FILE` begins with the layers of an older file.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pack_faces import held_out
from torch import Tensor, nn
from torch.nn import functional as F
from train_embedded import held_out_names, save  # puts the repository on sys.path, so it comes first

from bfr_core.device import autocast
from bfr_core.faces.align import similarity, template
from bfr_core.faces.landmarks import (
    CROP,
    EMBEDDED,
    MARGIN,
    STRIDE,
    WINDOW,
    FaceNet,
    LandmarkNet,
    ResidualLayer,
    ScanNet,
)
from bfr_core.pixels import as_bytes, luma

BATCH = 48
WIDE, WIDE_CROP = 144, 80  # sides of the stored window of a place without a face, and of the crop in it
FLIPPED = [1, 0, 2, 4, 3]
LICENCE = "Apache-2.0"
# Pictures without a face that come with scikit-image; those with people in them are left out.
BACKGROUNDS = (
    "brick cell chelsea clock coffee coins colorwheel grass gravel horse hubble_deep_field immunohistochemistry logo"
    " microaneurysms moon page retina rocket text"
)
log = logging.getLogger("train_landmarks")


# ---------------------------------------------------------------- data


@dataclass
class Picture:
    """A grey picture at its own size, half and a quarter of it: (1, H, W) uint8 each; `landmarks` (5, 2) of its face in
    its own pixels, or None if it holds none."""

    levels: list[Tensor]
    landmarks: np.ndarray | None = None

    @property
    def face(self) -> np.ndarray:
        """`landmarks` of a picture that holds a face. Raises ValueError if it holds none."""
        if self.landmarks is None:
            raise ValueError("the picture holds no face, so it has no landmarks")
        return self.landmarks


def picture_of(grey: Tensor, landmarks: np.ndarray | None = None) -> Picture:
    """The picture of `grey`, (1, H, W) in [0, 1], with its smaller copies."""
    levels = [grey[None]]
    while len(levels) < 4 and min(levels[-1].shape[-2:]) >= 64:
        size = [n // 2 for n in levels[-1].shape[-2:]]
        levels.append(F.interpolate(levels[-1], size, mode="bilinear", antialias=True, align_corners=False))
    return Picture([as_bytes(level[0]) for level in levels], landmarks)


def listed(folder: Path) -> dict[str, np.ndarray]:
    """File name -> landmarks (5, 2) of the faces of a folder, sorted by name."""
    own = folder / "landmarks.json"
    if own.is_file():
        entries = json.loads(own.read_text())
    else:
        prefix = f"{folder.name}/"
        every = json.loads((folder.parent / "landmarks.json").read_text())
        entries = {name.removeprefix(prefix): entry for name, entry in every.items() if name.startswith(prefix)}
    return {name: np.array(entries[name]["landmarks"], np.float64) for name in sorted(entries)}


def split(folder: Path, kept_out: set[str]) -> tuple[list[str], list[str]]:
    """The names of a folder that are trained on, and those by which constants are chosen: every twentieth."""
    names = [name for name in listed(folder) if name not in kept_out]
    chosen = names[5::20]
    return [name for name in names if name not in set(chosen)], chosen


def read_pictures(folder: Path, names: list[str]) -> list[Picture]:
    from torchvision.io import ImageReadMode, decode_image

    landmarks = listed(folder)
    pictures = []
    for name in names:
        photo = decode_image(str(folder / name), ImageReadMode.RGB).float() / 255
        pictures.append(picture_of(luma(photo), landmarks[name]))
    return pictures


def background_pictures() -> list[Picture]:
    """Pictures without faces."""
    import skimage.data

    pictures = []
    for name in BACKGROUNDS.split():
        try:
            pixels = np.asarray(getattr(skimage.data, name)())
        except Exception as error:  # some pictures are downloaded by scikit-image: without network they are left out
            log.info("%s left out (%s)", name, type(error).__name__)
            continue
        image = torch.from_numpy(pixels[..., :3] if pixels.ndim == 3 else np.stack([pixels] * 3, -1)).float()
        image = image.permute(2, 0, 1) / (255 if pixels.dtype == np.uint8 else max(1.0, float(image.max())))
        pictures.append(picture_of(luma(image)))
    return pictures


def texture(rng: torch.Generator, size: int) -> Tensor:
    """A random picture: cloudy noise of random roughness, sometimes cut into hard shapes. (1, 1, size, size)."""
    frequency = torch.fft.fftfreq(size)[:, None].hypot(torch.fft.rfftfreq(size)[None]).clamp_min(1 / size)
    slope = 0.5 + 2 * torch.rand((), generator=rng)
    noise = torch.fft.irfft2(torch.fft.rfft2(torch.randn(size, size, generator=rng)) / frequency**slope, s=(size, size))
    noise = noise / noise.std()
    if torch.rand((), generator=rng) < 0.4:
        noise = (noise * 4).round() / 4 if torch.rand((), generator=rng) < 0.5 else noise.sign()
    return (0.5 + 0.2 * noise).clamp(0, 1)[None, None]


def window_of(
    picture: Picture, matrix: np.ndarray, size: int, edge: str, box: tuple[int, int, int, int] | None = None
) -> Tensor:
    """What `matrix` (2, 3), a map from the picture's pixels to the window's, shows: (1, size, size) in [0, 1].

    edge: "border" repeats the picture's outermost pixels, "reflection" mirrors it, "zeros" leaves NaN beyond it.
    box: left, top, right, bottom in the picture's pixels, beyond which nothing is seen of it.
    """
    level = 0
    while level + 1 < len(picture.levels) and math.hypot(matrix[0, 0], matrix[1, 0]) * 2**level < 0.6:
        level += 1
    image = picture.levels[level]
    factor = np.array([image.shape[-1] / picture.levels[0].shape[-1], image.shape[-2] / picture.levels[0].shape[-2]])
    left, top = 0, 0
    if box:
        left, top, right, bottom = (round(side * factor[i % 2]) for i, side in enumerate(box))
        image = image[:, top : max(bottom, top + 2), left : max(right, left + 2)]
    inverse = np.linalg.inv(matrix[:, :2])
    linear = inverse * factor[:, None]
    shift = (-(inverse @ matrix[:, 2]) + 0.5) * factor - 0.5 - (left, top)
    extent = np.array([image.shape[-1], image.shape[-2]])
    # From [-1, 1] of the window to pixels of it, to pixels of the picture, to [-1, 1] of the picture.
    middle = (size - 1) / 2
    theta = np.concatenate(
        [linear * size / extent[:, None], ((linear.sum(1) * middle + shift + 0.5) * 2 / extent - 1)[:, None]], 1
    )
    grid = F.affine_grid(torch.from_numpy(theta)[None].float(), [1, 1, size, size], align_corners=False)
    window = F.grid_sample(image[None].float() / 255, grid, padding_mode=edge, align_corners=False)[0]
    if edge == "zeros":
        window = torch.where((grid.abs() <= 1).all(-1), window, torch.nan)
    return window


def placed(scale: float, angle: float, source: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The (2, 3) map that turns and enlarges around `source` and puts it at `to`."""
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[a, -b], [b, a]])
    return np.concatenate([linear, (to - linear @ source)[:, None]], 1)


def through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def after(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The map that does `first`, then `second`."""
    linear = second[:, :2] @ first[:, :2]
    return np.concatenate([linear, (second[:, :2] @ first[:, 2] + second[:, 2])[:, None]], 1)


def free_of_faces(pictures: list[Picture], matrices: list[np.ndarray]) -> np.ndarray:
    """Whether each wide window, however `seen_anew` may shift it, has no cell that counts as a face."""
    points = np.stack([
        through(matrix, picture.landmarks) if picture.landmarks is not None else template(1) * 1e-3 + 9999
        for picture, matrix in zip(pictures, matrices, strict=True)
    ])  # fmt: skip
    upright = torch.from_numpy((points - (WIDE - WIDE_CROP) / 2 + 0.5) * CROP / WIDE_CROP - 0.5 + MARGIN).float()
    label, _ = targets(upright, torch.ones(len(points), dtype=torch.bool), slack=1.4)
    return (label == 0).all(2).all(1).numpy()


def random_place(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """A wide window anywhere in the picture, at any size from all of it down to a magnified detail."""
    height, width = picture.levels[0].shape[-2:]
    whole = WIDE_CROP / min(height, width)
    scale = math.exp(rng.uniform(math.log(0.7 * whole), math.log(max(3 * whole, 2.2))))
    angle = rng.normal(0, 0.35)
    return placed(scale, angle, rng.random(2) * (width, height), np.full(2, (WIDE - 1) / 2))


def stray_places(
    pictures: list[Picture], count: int, rng: np.random.Generator
) -> tuple[list[Picture], list[np.ndarray]]:
    """Places of the pictures where no face is to be seen."""
    picks = [pictures[i] for i in rng.integers(len(pictures), size=count)]
    matrices = [random_place(picture, rng) for picture in picks]
    free = np.flatnonzero(free_of_faces(picks, matrices))
    return [picks[i] for i in free], [matrices[i] for i in free]


def seen_wide(pictures: list[Picture], matrices: list[np.ndarray]) -> Tensor:
    """The wide windows of these places, (N, 1, 144, 144) uint8."""
    shown = [window_of(picture, matrix, WIDE, "border") for picture, matrix in zip(pictures, matrices, strict=True)]
    return as_bytes(torch.stack(shown))


def random_bank(pictures: list[Picture], count: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Places without a face and, for a tenth, textures: (<= count, 1, 144, 144) uint8."""
    textures = torch.cat([texture(generator, WIDE) for _ in range(count // 10)])
    return torch.cat([seen_wide(*stray_places(pictures, count - count // 10, rng)), as_bytes(textures)])


def seen_anew(bank: Tensor, rng: torch.Generator, jitter: float = 1.0) -> Tensor:
    """Windows out of wide ones, each scaled, turned, shifted a little or mirrored: (N, 1, 96, 96) in [0, 1]."""
    flat = torch.rand(len(bank), 4, generator=rng) * 2 - 1
    scale = WINDOW / CROP * WIDE_CROP / WIDE * 2 ** (0.25 * jitter * flat[:, 0])
    angle = math.radians(12) * jitter * flat[:, 1]
    flip = torch.where(torch.rand(len(bank), generator=rng) < 0.5 * min(1, jitter), -1.0, 1.0)
    c, s, off = scale * angle.cos(), scale * angle.sin(), 0.08 * jitter * flat[:, 2:]
    theta = torch.stack([torch.stack([flip * c, -s, off[:, 0]], -1), torch.stack([flip * s, c, off[:, 1]], -1)], 1)
    grid = F.affine_grid(theta, [len(bank), 1, WINDOW, WINDOW], align_corners=False)
    return F.grid_sample(bank.float() / 255, grid, padding_mode="border", align_corners=False)


@torch.inference_mode()
def answers(net: FaceNet, windows: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of every window's surest cell, (N,), and the landmarks there in the window's pixels, (N, 5, 2)."""
    net.eval()
    logits, points = [], []
    for part in windows.split(64):
        with autocast(torch.device("cpu"), "auto"):
            logit, landmarks = net(part.contiguous(memory_format=torch.channels_last))
        logit, landmarks = logit.float().flatten(1), landmarks.float().flatten(1, 2)
        best = logit.argmax(1)
        axis = (part.shape[-1] - 1) / 2 + net.stride * torch.arange(-1, 2)
        cells = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(9, 1, 2)
        logits.append(logit.amax(1))
        points.append(landmarks[torch.arange(len(part)), best] + cells[best])
    net.train()
    return torch.cat(logits), torch.cat(points)


def hard_places(
    nets: Nets, pictures: list[Picture], count: int, rng: np.random.Generator, generator: torch.Generator
) -> Tensor:
    """Places without a face that the networks take for one, (<= count, 1, 144, 144) uint8.

    They are found as when a photo is searched: of many places, those with the highest scores of the scanning network
    are aligned by its landmarks, and again by those of the landmark network, which then scores them.
    """
    picks, matrices = stray_places(pictures, 8 * count, rng)
    windows = torch.cat(
        [
            seen_anew(seen_wide(picks[i : i + 512], matrices[i : i + 512]), generator, 0)
            for i in range(0, len(picks), 512)
        ]
    )
    logit, points = answers(nets.scan, F.avg_pool2d(windows, 2))
    best = logit.topk(min(2 * count, len(picks))).indices
    picks, matrices, points = [picks[i] for i in best], [matrices[i] for i in best], points[best] * 2 + 0.5
    found = []
    for turn in range(2):
        realigned = [
            after(similarity(p, template(WIDE_CROP) + (WIDE - WIDE_CROP) / 2), after(WINDOW_OF_WIDE, matrix))
            for p, matrix in zip(points.double().numpy(), matrices, strict=True)
        ]
        free = np.flatnonzero(free_of_faces(picks, realigned))
        picks, matrices = [picks[i] for i in free], [realigned[i] for i in free]
        wide = seen_wide(picks, matrices)
        logit, points = answers(nets.landmarks, seen_anew(wide, generator, 0))
        found.append((logit, wide))
        if not turn:
            best = torch.nonzero(logit > -3).flatten()
            picks, matrices, points = [picks[i] for i in best], [matrices[i] for i in best], points[best]
        if len(points) < 2:
            break
    logit, wide = torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
    return wide[logit.topk(min(count, len(logit))).indices]


# From a pixel of the wide window to one of the network's.
WINDOW_OF_WIDE = np.array([[CROP / WIDE_CROP, 0, 0.0], [0, CROP / WIDE_CROP, 0.0]])
WINDOW_OF_WIDE[:, 2] = (WINDOW - 1) / 2 - CROP / WIDE_CROP * (WIDE - 1) / 2


def uniform(rng: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=rng)


def placements(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Enlargement, turn and shift of each face relative to a perfectly aligned one.

    Nearly half of them are as after alignment, a third as from an inaccurate box, and the rest anything: too big, too
    small, shifted, upside down. Returns (count,), (count,) in radians, (count, 2) in pixels of the window.
    """
    kind = torch.rand(count, generator=rng)[:, None]
    normal = torch.randn(count, 4, generator=rng)
    tight = normal * torch.tensor([0.08, math.radians(6), 2.5, 2.5])
    flat = torch.rand(count, 4, generator=rng) * 2 - 1
    loose = flat * torch.tensor([0.45, math.radians(35), 12.0, 12.0])
    wild = torch.stack([1.7 * flat[:, 0] + 0.2, math.pi * flat[:, 1] ** 3, 32 * flat[:, 2], 32 * flat[:, 3]], 1)
    draw = torch.where(kind < 0.45, tight, torch.where(kind < 0.8, loose, wild))
    return 2 ** draw[:, 0], draw[:, 1], draw[:, 2:]


def damage(x: Tensor, rng: torch.Generator) -> Tensor:
    """Light, blur, coarse pixels, noise, JPEG, covered parts: (B, 1, 96, 96) -> same, in [0, 1]; some stay clean."""
    from torchvision.io import decode_jpeg, encode_jpeg

    count, untouched = len(x), x
    column = (count, 1, 1, 1)
    x = x.clamp(1e-3, 1) ** (2 ** torch.randn(column, generator=rng).mul(0.5))
    ramp = torch.linspace(-1, 1, WINDOW)
    slope = torch.randn(count, 2, 1, 1, generator=rng) * 0.25
    x = x * (1 + slope[:, :1] * ramp + slope[:, 1:] * ramp[:, None])
    contrast = uniform(rng, count, 0.4, 1.3).view(column)
    level = x.mean((2, 3), keepdim=True)
    x = level + (x - level) * contrast + 0.12 * torch.randn(column, generator=rng)

    for i in torch.nonzero(torch.rand(count, generator=rng) < 0.2).flatten().tolist():  # a hat, a hand, a neighbour
        size = torch.randint(10, 40, (2,), generator=rng).tolist()
        top, left = (int(torch.randint(0, WINDOW - n, (), generator=rng)) for n in size)
        x[i, :, top : top + size[0], left : left + size[1]] = torch.rand((), generator=rng)

    # Each picture is either blurred or made of coarse pixels, or neither.
    order = torch.randperm(count, generator=rng)
    for part, sigma in zip(order[: count * 3 // 8].chunk(5), uniform(rng, 5, 0.4, 2.8).tolist(), strict=True):
        tap = torch.arange(-8, 9)
        kernel = torch.exp(-0.5 * (tap / sigma) ** 2)
        kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
        blurred = F.conv2d(F.pad(x[part], (8, 8, 8, 8), mode="replicate"), kernel)
        x[part] = F.conv2d(blurred, kernel.transpose(2, 3))
    for part, factor in zip(order[count * 3 // 4 :].chunk(4), uniform(rng, 4, 1.2, 5.0).tolist(), strict=True):
        small = F.interpolate(x[part], size=(round(WINDOW / factor),) * 2, mode="bilinear", antialias=True)
        small = small + torch.randn(small.shape, generator=rng) * 0.03
        x[part] = F.interpolate(small, size=(WINDOW, WINDOW), mode="bicubic" if factor > 2 else "nearest")

    strength = (torch.rand(column, generator=rng) - 0.5).clamp_min(0) * 0.35 * contrast
    x = (x + torch.randn(x.shape, generator=rng) * strength).clamp(0, 1)
    for i in torch.nonzero(torch.rand(count, generator=rng) < 0.35).flatten().tolist():
        quality = int(torch.randint(8, 70, (), generator=rng))
        x[i] = decode_jpeg(encode_jpeg(as_bytes(x[i]), quality)).float() / 255
    return torch.where(torch.rand(column, generator=rng) < 0.2, untouched, x)


def box_around(points: np.ndarray, extent: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The part of a picture that is left where a face fills the frame: its standard crop, more or less a side."""
    inverse = np.linalg.inv(np.vstack([similarity(points, template(1)), [0, 0, 1]]))
    centre, width = inverse[:2, :2] @ [0, 0] + inverse[:2, 2], math.hypot(inverse[0, 0], inverse[1, 0])
    low = np.clip(centre - width * rng.uniform(0.36, 0.72, 2), 0, extent - 8)
    high = np.clip(centre + width * rng.uniform(0.36, 0.72, 2), low + 8, extent)
    return (*low.astype(int), *high.astype(int))  # type: ignore[return-value]


def make_batch(faces: list[Picture], bank: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Windows with and without faces: (B, 1, 96, 96), landmarks (B, 5, 2) in the window, has_face (B,)."""
    numbers = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
    scale, angle, shift = placements(BATCH, rng)
    has_face = torch.rand(BATCH, generator=rng) < 0.58
    behind = seen_anew(bank[torch.randint(len(bank), (BATCH,), generator=rng)], rng)
    windows, points = behind.clone(), torch.zeros(BATCH, 5, 2)
    middle = np.full(2, (WINDOW - 1) / 2)
    for i in torch.nonzero(has_face).flatten().tolist():
        face = faces[int(numbers.integers(len(faces)))]
        aligned = similarity(face.face, template(CROP) + MARGIN)
        matrix = after(placed(float(scale[i]), float(angle[i]), middle, middle + shift[i].numpy()), aligned)
        extent = np.array([face.levels[0].shape[-1], face.levels[0].shape[-2]])
        box = box_around(face.face, extent, numbers) if numbers.random() < 0.3 else None
        # Beyond the picture: its outermost pixels, its mirror image, something else, or one shade.
        edge = ("border", "reflection", "zeros")[int(numbers.choice(3, p=(0.35, 0.3, 0.35)))]
        window = window_of(face, matrix, WINDOW, edge, box)
        around = behind[i] if numbers.random() < 0.6 else behind[i].mean()
        window, found = torch.where(window.isnan(), around, window), through(matrix, face.face)
        if numbers.random() < 0.5:
            window, found = window.flip(-1), (found * (-1, 1) + (WINDOW - 1, 0))[FLIPPED]
        windows[i], points[i] = window, torch.from_numpy(found)
    return damage(windows, rng), points, has_face


def targets(points: Tensor, has_face: Tensor, slack: float = 1.0) -> tuple[Tensor, Tensor]:
    """The label of each of the 3 x 3 cells, 1 face, 0 none, -1 ignored; and the landmarks from its centre.

    slack: widens the range that is ignored.
    Returns (B, 3, 3), (B, 3, 3, 5, 2).
    """
    perfect = torch.from_numpy(template(CROP)).float()
    centred = perfect - (CROP - 1) / 2
    p = points - points.mean(1, keepdim=True)
    t = centred - centred.mean(0)
    spread = t.square().sum()
    a = (p * t).sum((1, 2)) / spread
    b = (p[..., 1] * t[:, 0] - p[..., 0] * t[:, 1]).sum(1) / spread
    scale, angle = a.hypot(b), torch.atan2(b, a).abs()
    offset = -centred.mean(0)  # from the landmarks' mean to the crop's centre, upright
    centre = points.mean(1) + torch.stack([a * offset[0] - b * offset[1], b * offset[0] + a * offset[1]], 1)

    axis = MARGIN + (CROP - 1) / 2 + STRIDE * torch.arange(-1, 2)
    cell = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # (3, 3, 2)
    off = (centre[:, None, None] - cell).abs().amax(-1)
    size = scale.log2().abs()[:, None, None]
    turn = angle[:, None, None]
    good = (off <= 10) & (size <= 0.4) & (turn <= math.radians(32))
    near = (off <= 18 * slack) & (size <= 0.8 * slack) & (turn <= math.radians(65) * slack)
    there = has_face[:, None, None]
    label = torch.where(there & good, 1.0, torch.where(there & near, -1.0, 0.0))
    return label, points[:, None, None] - cell[None, :, :, None]


# ---------------------------------------------------------------- training


class Nets(nn.Module):
    """The two networks, trained on the same windows; the scanning one sees them at half their size."""

    def __init__(self) -> None:
        super().__init__()
        self.landmarks, self.scan = LandmarkNet(), ScanNet()


def loss_of(net: FaceNet, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, float, float]:
    """Focal cross-entropy of the score + L1 of the landmarks in units of the face's eye distance."""
    window, points, has_face = batch
    label, where = targets(points, has_face)
    shrink = CROP // net.crop
    window, where = (F.avg_pool2d(window, shrink), where / shrink) if shrink > 1 else (window, where)
    with autocast(torch.device("cpu"), "auto"):
        logit, landmarks = net(window.contiguous(memory_format=torch.channels_last))
    logit, landmarks = logit.float(), landmarks.float()
    matters = label >= 0
    cross = F.binary_cross_entropy_with_logits(logit, label.clamp_min(0), reduction="none")
    focus = (1 - torch.exp(-cross)).detach()
    positive = label == 1
    score_loss = (cross * focus * matters).sum() / positive.sum().clamp_min(1)
    eyes = ((points[:, 0] - points[:, 1]).norm(dim=1) / shrink)[:, None, None].clamp_min(1)
    error = (landmarks - where).abs().mean((3, 4)) / eyes
    # The middle cell reads the aligned window in the end: it counts more than its neighbours.
    weight = positive * torch.tensor([[1.0, 1, 1], [1, 3, 1], [1, 1, 1]])
    landmark_loss = (error * weight).sum() / weight.sum().clamp_min(1)
    return score_loss + 2 * landmark_loss, score_loss.item(), landmark_loss.item()


def started_from(net: LandmarkNet, path: Path) -> None:
    """Fill the layers of `net` that an older file has, in order; residual layers stay as they are."""
    from safetensors.torch import load_file

    numbers = [i for i, step in enumerate(net.features) if not isinstance(step, ResidualLayer)]
    renamed = {f"features.{before}": f"features.{now}" for before, now in enumerate(numbers)}
    state = net.state_dict()
    for key, value in load_file(path).items():
        layer, _, name = key.rpartition(".")
        state[f"{renamed.get(layer, layer)}.{name}"].copy_(value)


def train(args: argparse.Namespace, faces: list[Picture]) -> dict:
    """AdamW with a one-cycle rate over `args.minutes` of computing time; the averaged weights are the result."""
    path = args.work / "landmarks.pt"
    rng = torch.Generator().manual_seed(args.seed)
    numbers = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    nets = Nets().to(memory_format=torch.channels_last)
    if args.start:
        started_from(nets.landmarks, args.start)
    optimizer = torch.optim.AdamW(nets.parameters(), 3e-3, betas=(0.9, 0.99), weight_decay=0.02)
    state: dict[str, Any] = {
        "ema": {k: v.detach().clone() for k, v in nets.state_dict().items()},
        "step": 0,
        "seconds": 0.0,
        "log": [],
    }
    pictures = faces + background_pictures() * 20
    bank = random_bank(pictures, 3000, numbers, rng)
    if path.exists():
        state = torch.load(path, weights_only=True)
        nets.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        bank = state["bank"]
        rng.manual_seed(args.seed + state["step"])
        numbers = np.random.default_rng(args.seed + state["step"])
        log.info("resumed at step %d after %.1f minutes", state["step"], state["seconds"] / 60)
    last, sums = time.monotonic(), []
    while state["seconds"] < args.minutes * 60:
        done = state["seconds"] / (args.minutes * 60)
        rate = args.rate * min(1.0, (state["step"] + 1) / 100, max(0.002, (1 - done) / 0.7))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = make_batch(faces, bank, rng)
        loss, score_loss, landmark_loss = loss_of(nets.landmarks, batch)
        scan_loss, scan_score, scan_landmark = loss_of(nets.scan, batch)
        optimizer.zero_grad()
        (loss + scan_loss).backward()
        for net in (nets.landmarks, nets.scan):
            torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        state["step"] += 1
        decay = min(0.998, (1 + state["step"]) / (10 + state["step"]))
        with torch.no_grad():
            for key, value in nets.state_dict().items():
                ema = state["ema"][key]
                ema.lerp_(value, 1 - decay) if value.is_floating_point() else ema.copy_(value)
        sums.append((score_loss, landmark_loss, scan_score, scan_landmark))
        now = time.monotonic()
        state["seconds"] += now - last
        last = now
        if state["step"] % 100 == 0:
            mean = np.mean(sums, 0)
            sums.clear()
            entry = [state["step"], round(state["seconds"] / 60, 2), *(round(float(value), 4) for value in mean)]
            state["log"].append(entry)
            log.info("step %d  %.2f min  score %.4f  landmarks %.4f  scan: score %.4f  landmarks %.4f", *entry)
            hard = hard_places(nets, pictures, 300, numbers, rng)
            easy = random_bank(pictures, 100, numbers, rng)
            bank = torch.cat([bank, hard, easy])[-8000:]
            save(path, {**state, "net": nets.state_dict(), "optimizer": optimizer.state_dict(), "bank": bank})
    state = {**state, "net": nets.state_dict(), "optimizer": optimizer.state_dict(), "bank": bank}
    save(path, state)
    return state


# ---------------------------------------------------------------- figures and export


def measure(net: LandmarkNet, faces: list[Picture], bank: Tensor, seed: int = 5) -> dict[str, float]:
    """Figures on held-out faces: error of the points in % of the eye distance, and scores of faces and of backgrounds.

    Each face is placed loosely, found, aligned by what was found, and read again: as the detector does.
    """
    rng = torch.Generator().manual_seed(seed)
    numbers = np.random.default_rng(seed)
    middle = np.full(2, (WINDOW - 1) / 2)
    matrices = []
    for face in faces:
        flat = numbers.uniform(-1, 1, 4)
        loose = placed(2 ** (0.25 * flat[0]), 0.3 * flat[1], middle, middle + 8 * flat[2:])
        matrices.append(after(loose, similarity(face.face, template(CROP) + MARGIN)))
    figures: dict[str, float] = {}
    with torch.inference_mode():
        for turn in range(3):
            seen = torch.stack([window_of(f, m, WINDOW, "border") for f, m in zip(faces, matrices, strict=True)])
            found = (net(seen)[1][:, 1, 1] + middle[0]).double().numpy()
            errors = []
            for i, face in enumerate(faces):
                truth = through(matrices[i], face.face)
                errors.append(np.linalg.norm(found[i] - truth, axis=1).mean() / np.linalg.norm(truth[0] - truth[1]))
                matrices[i] = after(similarity(found[i], template(CROP) + MARGIN), matrices[i])
            figures[f"error_{turn}"] = 100 * float(np.mean(errors))
        aligned = torch.stack([window_of(f, m, WINDOW, "border") for f, m in zip(faces, matrices, strict=True)])
        figures["faces_above_0.5"] = (net(aligned)[0][:, 1, 1] > 0).float().mean().item()
        figures["damaged_faces_above_0.5"] = (net(damage(aligned, rng))[0][:, 1, 1] > 0).float().mean().item()
        scores = torch.cat([net(part)[0].flatten() for part in seen_anew(bank, rng).split(64)])
        figures["background_cells_above_0.5"] = (scores > 0).float().mean().item()
    return {key: round(value, 4) for key, value in figures.items()}


def export(state: dict, figures: dict[str, float], path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {k: v.half().contiguous() for k, v in state["ema"].items() if not k.endswith("num_batches_tracked")}
    metadata = {
        "architecture": "LandmarkNet, ScanNet",
        "licence": LICENCE,
        "made_by": "tools/train_landmarks.py",
        "steps": str(state["step"]),
        "minutes": f"{state['seconds'] / 60:.1f}",
        "figures": json.dumps(figures),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata)
    part.replace(path)
    path.chmod(0o644)  # safetensors makes files only their owner can read
    log.info("%s: %d kB", path.name, path.stat().st_size // 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--faces", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--start", type=Path, help="older landmarks.safetensors whose layers to begin with")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export-only", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    portraits = held_out_names(args.portraits)
    if args.export_only:
        state = torch.load(args.work / "landmarks.pt", weights_only=True)
    else:
        faces = read_pictures(args.portraits, split(args.portraits, set(portraits))[0])
        for folder in args.faces:
            faces += read_pictures(folder, split(folder, held_out(folder.name, list(listed(folder))))[0])
        log.info("%d faces to train on, %d portraits held out", len(faces), len(portraits))
        state = train(args, faces)
    nets = Nets()
    nets.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in state["ema"].items()})
    nets.eval()
    rng = torch.Generator().manual_seed(99)
    bank = random_bank(background_pictures(), 2000, np.random.default_rng(99), rng)
    figures = measure(nets.landmarks, read_pictures(args.portraits, portraits), bank)
    log.info("held out: %s", figures)
    export(state, figures, args.out)


if __name__ == "__main__":
    main()
