"""Train the embedded face network (bfr_core/embedded/landmarks.safetensors) on one CPU thread.

    python tools/train_landmarks.py --portraits DIR --faces DIR --minutes 26

Each folder holds images and a landmarks.json (file name -> {"landmarks": five points}); every fifth portrait is held
out, and the figures printed at the end are measured on those. The same command run again trains on where it stopped
while minutes are left; `--export-only` measures and writes the last checkpoint.
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
from torch import Tensor
from torch.nn import functional as F
from train_embedded import held_out_names, save  # puts the repository on sys.path, so it comes first

from bfr_core.device import autocast
from bfr_core.faces.align import similarity, template, warp
from bfr_core.faces.landmarks import CROP, EMBEDDED, MARGIN, STRIDE, WINDOW, LandmarkNet
from bfr_core.pixels import luma

CANVAS = 224  # a stored face: its standard crop is 112 wide and the picture goes on around it
CANVAS_CROP = 112
BATCH = 48
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
class Faces:
    """canvas: (N, 1, 224, 224) grey in [0, 1], mirrored beyond the picture's edge; inside: 1 where the picture was;
    landmarks: (N, 5, 2) on the canvas."""

    canvas: Tensor
    inside: Tensor
    landmarks: Tensor


def read_faces(folder: Path, names: set[str] | None = None, skip: frozenset[str] = frozenset()) -> Faces:
    """The faces of a folder, upright and of one size."""
    from torchvision.io import ImageReadMode, decode_image

    canvases, insides, points = [], [], []
    for name, entry in sorted(json.loads((folder / "landmarks.json").read_text()).items()):
        if name in skip or (names is not None and name not in names):
            continue
        photo = luma(decode_image(str(folder / name), ImageReadMode.RGB).float() / 255)[None]
        matrix = similarity(entry["landmarks"], template(CANVAS_CROP) + (CANVAS - CANVAS_CROP) / 2)
        canvases.append(warp(photo, matrix, CANVAS, CANVAS))
        insides.append(warp(torch.ones_like(photo), matrix, CANVAS, CANVAS, padding_mode="zeros"))
        points.append(np.array(entry["landmarks"]) @ matrix[:, :2].T + matrix[:, 2])
    landmarks = torch.from_numpy(np.stack(points)).float()
    return Faces(torch.cat(canvases), torch.cat(insides), landmarks)


def background_pictures() -> list[Tensor]:
    """Grey pictures without faces, (1, 1, H, W) in [0, 1]."""
    import skimage.data

    pictures = []
    for name in BACKGROUNDS.split():
        try:
            pixels = np.asarray(getattr(skimage.data, name)())
        except Exception as error:  # some pictures are downloaded by scikit-image: without network they are left out
            log.info("%s left out (%s)", name, type(error).__name__)
            continue
        image = torch.from_numpy(pixels[..., :3] if pixels.ndim == 3 else np.stack([pixels] * 3, -1)).float()
        image = luma(image.permute(2, 0, 1) / (255 if pixels.dtype == np.uint8 else max(1.0, float(image.max()))))[None]
        pictures.append(image)
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


def similarity_batch(scale: Tensor, angle: Tensor, centre: Tensor, to: Tensor) -> Tensor:
    """(N, 2, 3) maps that turn and enlarge around `centre` (source) and put it at `to` (result)."""
    a, b = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], -2)
    return torch.cat([linear, (to - (linear @ centre[..., None])[..., 0])[..., None]], -1)


def warp_batch(images: Tensor, matrices: Tensor, size: int, padding_mode: str) -> Tensor:
    """Bilinear `warp` with a matrix of its own for each image: (N, C, H, W), (N, 2, 3) -> (N, C, size, size)."""
    inverse = torch.linalg.inv(matrices[:, :, :2])
    axis = torch.arange(size, dtype=torch.float32)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(1, -1, 2)
    source = (points - matrices[:, None, :, 2]) @ inverse.transpose(1, 2)
    extent = torch.tensor([images.shape[-1], images.shape[-2]])
    grid = ((source + 0.5) * 2 / extent - 1).view(-1, size, size, 2)
    return F.grid_sample(images, grid, padding_mode=padding_mode, align_corners=False)


def background_bank(pictures: list[Tensor], count: int, rng: torch.Generator) -> Tensor:
    """Random windows of the pictures at all sizes and turns, and textures: (count, 1, 96, 96)."""
    windows: list[Tensor] = []
    while len(windows) < count:
        if torch.rand((), generator=rng) < 0.25:
            windows.append(texture(rng, WINDOW))
            continue
        picture = pictures[int(torch.randint(len(pictures), (), generator=rng))]
        height, width = picture.shape[-2:]
        scale = 2 ** (torch.rand(1, generator=rng) * 3.0 - 2.2)
        scale = scale.clamp_min(WINDOW / min(height, width))
        if scale < 0.9:
            small = F.interpolate(picture, scale_factor=float(scale), mode="bilinear", antialias=True)
        else:
            small = picture
        extent = torch.tensor([small.shape[-1], small.shape[-2]])
        centre = torch.rand(4, 2, generator=rng) * extent
        angle = torch.randn(4, generator=rng) * 0.6
        zoom = (scale if scale >= 0.9 else torch.ones(1)).expand(4)
        matrix = similarity_batch(zoom, angle, centre, torch.full((4, 2), (WINDOW - 1) / 2))
        windows.extend(warp_batch(small.expand(4, -1, -1, -1), matrix, WINDOW, "reflection").clamp(0, 1).split(1))
    return torch.cat(windows[:count])


def stray_windows(faces: Faces, count: int, rng: torch.Generator) -> Tensor:
    """Windows of the faces' pictures that no cell may call a face: too near, too far, off. (<= count, 1, 96, 96)."""
    pick = torch.randint(len(faces.canvas), (count,), generator=rng)
    flat = torch.rand(count, 4, generator=rng) * 2 - 1
    scale = 2 ** (0.4 + 1.8 * flat[:, 0]) * CROP / CANVAS_CROP
    middle = torch.full((count, 2), (CANVAS - 1) / 2)
    matrix = similarity_batch(scale, math.pi * flat[:, 1] ** 3, middle, (WINDOW - 1) / 2 + 50 * flat[:, 2:])
    points = faces.landmarks[pick] @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]
    label, _ = targets(points, torch.ones(count, dtype=torch.bool))
    stray = (label == 0).all(2).all(1)
    return warp_batch(faces.canvas[pick[stray]], matrix[stray], WINDOW, "reflection").clamp(0, 1)


def merged(windows: Tensor, rng: torch.Generator) -> Tensor:
    """Each window in front of another one, cut along a random soft outline: as many windows."""
    coarse = F.interpolate(torch.randn(len(windows), 1, 4, 4, generator=rng), (WINDOW, WINDOW), mode="bicubic")
    mask = torch.sigmoid(coarse * 12)
    return windows * mask + windows[torch.randperm(len(windows), generator=rng)] * (1 - mask)


def hard_windows(net: LandmarkNet, faces: Faces, pictures: list[Tensor], rng: torch.Generator, count: int) -> Tensor:
    """Of many windows without a face, the `count` that the network takes most for one: (count, 1, 96, 96)."""
    pool = torch.cat([background_bank(pictures, 3 * count, rng), stray_windows(faces, 5 * count, rng)])
    pool = torch.cat([pool, merged(pool, rng)])
    net.eval()
    with torch.inference_mode(), autocast(torch.device("cpu"), "auto"):
        scores = torch.cat([net(part)[0].float().amax((1, 2)) for part in pool.split(64)])
    net.train()
    return pool[scores.topk(count).indices].clone()


def uniform(rng: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=rng)


def placements(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Enlargement, turn and shift of each face relative to a perfectly aligned one.

    Half of them as after alignment, a third as from a sloppy box, the rest anything: too big, too small, off, upside
    down. Returns (count,), (count,) in radians, (count, 2) in pixels of the window.
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
        x[i] = decode_jpeg(encode_jpeg((x[i] * 255).byte(), quality)).float() / 255
    return torch.where(torch.rand(column, generator=rng) < 0.2, untouched, x)


def make_batch(faces: Faces, bank: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Windows with and without faces: (B, 1, 96, 96), landmarks (B, 5, 2) in the window, has_face (B,)."""
    pick = torch.randint(len(faces.canvas), (BATCH,), generator=rng)
    canvas, inside, points = faces.canvas[pick], faces.inside[pick], faces.landmarks[pick]
    flip = torch.rand(BATCH, generator=rng) < 0.5
    canvas = torch.where(flip[:, None, None, None], canvas.flip(-1), canvas)
    inside = torch.where(flip[:, None, None, None], inside.flip(-1), inside)
    mirrored = points[:, FLIPPED] * torch.tensor([-1.0, 1.0]) + torch.tensor([CANVAS - 1.0, 0.0])
    points = torch.where(flip[:, None, None], mirrored, points)

    scale, angle, shift = placements(BATCH, rng)
    middle = (WINDOW - 1) / 2
    matrix = similarity_batch(
        scale * CROP / CANVAS_CROP, angle, torch.full((BATCH, 2), (CANVAS - 1) / 2), middle + shift
    )
    window = warp_batch(torch.cat([canvas, inside], 1), matrix, WINDOW, "zeros")
    mirror = warp_batch(canvas, matrix, WINDOW, "reflection")
    points = points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]

    # Around the picture: its mirror image, something else, or one shade.
    behind = bank[torch.randint(len(bank), (BATCH,), generator=rng)]
    kind = torch.rand(BATCH, 1, 1, 1, generator=rng)
    around = torch.where(kind < 0.4, mirror, torch.where(kind < 0.85, behind, behind.mean((2, 3), keepdim=True)))
    mask = window[:, 1:]
    window = window[:, :1] * mask + around * (1 - mask)

    has_face = torch.rand(BATCH, generator=rng) < 0.65
    window = torch.where(has_face[:, None, None, None], window, behind.flip(-1))
    return damage(window, rng), points, has_face


def targets(points: Tensor, has_face: Tensor) -> tuple[Tensor, Tensor]:
    """What each of the 3 x 3 cells must say: 1 face, 0 none, -1 does not matter; and landmarks from its centre.

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
    near = (off <= 18) & (size <= 0.8) & (turn <= math.radians(65))
    there = has_face[:, None, None]
    label = torch.where(there & good, 1.0, torch.where(there & near, -1.0, 0.0))
    return label, points[:, None, None] - cell[None, :, :, None]


# ---------------------------------------------------------------- training


def loss_of(net: LandmarkNet, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, float, float]:
    """Focal cross-entropy of the score + L1 of the landmarks in units of the face's eye distance."""
    window, points, has_face = batch
    label, where = targets(points, has_face)
    with autocast(torch.device("cpu"), "auto"):
        logit, landmarks = net(window.contiguous(memory_format=torch.channels_last))
    logit, landmarks = logit.float(), landmarks.float()
    matters = label >= 0
    cross = F.binary_cross_entropy_with_logits(logit, label.clamp_min(0), reduction="none")
    focus = (1 - torch.exp(-cross)).detach()
    positive = label == 1
    score_loss = (cross * focus * matters).sum() / positive.sum().clamp_min(1)
    eyes = (points[:, 0] - points[:, 1]).norm(dim=1)[:, None, None]
    error = (landmarks - where).abs().mean((3, 4)) / eyes
    # The middle cell reads the aligned window in the end: it counts more than its neighbours.
    weight = positive * torch.tensor([[1.0, 1, 1], [1, 3, 1], [1, 1, 1]])
    landmark_loss = (error * weight).sum() / weight.sum().clamp_min(1)
    return score_loss + 2 * landmark_loss, score_loss.item(), landmark_loss.item()


def train(args: argparse.Namespace, faces: Faces) -> dict:
    """AdamW with a one-cycle rate over `args.minutes` of computing time; the averaged weights are the result."""
    path = args.work / "landmarks.pt"
    rng = torch.Generator().manual_seed(args.seed)
    net = LandmarkNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, betas=(0.9, 0.99), weight_decay=0.02)
    state: dict[str, Any] = {
        "ema": {k: v.detach().clone() for k, v in net.state_dict().items()},
        "step": 0,
        "seconds": 0.0,
        "log": [],
    }
    if path.exists():
        state = torch.load(path, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        rng.manual_seed(args.seed + state["step"])
        log.info("resumed at step %d after %.1f minutes", state["step"], state["seconds"] / 60)
    pictures = background_pictures()
    bank = background_bank(pictures, 3000, rng)
    last, sums = time.monotonic(), []
    while state["seconds"] < args.minutes * 60:
        done = state["seconds"] / (args.minutes * 60)
        rate = 3e-3 * min(1.0, (state["step"] + 1) / 100, max(0.002, (1 - done) / 0.7))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, score_loss, landmark_loss = loss_of(net, make_batch(faces, bank, rng))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        state["step"] += 1
        decay = min(0.995, (1 + state["step"]) / (10 + state["step"]))
        with torch.no_grad():
            for key, value in net.state_dict().items():
                ema = state["ema"][key]
                ema.lerp_(value, 1 - decay) if value.is_floating_point() else ema.copy_(value)
        sums.append((score_loss, landmark_loss))
        now = time.monotonic()
        state["seconds"] += now - last
        last = now
        if state["step"] % 100 == 0:
            mean = np.mean(sums, 0)
            sums.clear()
            entry = [state["step"], round(state["seconds"] / 60, 2), round(float(mean[0]), 4), round(float(mean[1]), 4)]
            state["log"].append(entry)
            log.info("step %d  %.2f min  score %.4f  landmarks %.4f", *entry)
            save(path, {**state, "net": net.state_dict(), "optimizer": optimizer.state_dict()})
            bank = torch.cat([bank[400:], hard_windows(net, faces, pictures, rng, 400)])
    state = {**state, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
    save(path, state)
    return state


# ---------------------------------------------------------------- figures and export


def measure(net: LandmarkNet, faces: Faces, bank: Tensor, seed: int = 5) -> dict[str, float]:
    """Figures on held-out faces: error of the points in % of the eye distance, and scores of faces and of backgrounds.

    Each face is placed loosely, found, aligned by what was found, and read again: as the detector does.
    """
    rng = torch.Generator().manual_seed(seed)
    count = len(faces.canvas)
    flat = torch.rand(count, 4, generator=rng) * 2 - 1
    middle = torch.full((count, 2), (WINDOW - 1) / 2)
    start = torch.full((count, 2), (CANVAS - 1) / 2)
    matrix = similarity_batch(
        2 ** (0.25 * flat[:, 0]) * CROP / CANVAS_CROP, 0.3 * flat[:, 1], start, middle + 8 * flat[:, 2:]
    )
    figures: dict[str, float] = {}
    with torch.inference_mode():
        for turn in range(3):
            _, found = net(warp_batch(faces.canvas, matrix, WINDOW, "reflection"))
            found = found[:, 1, 1] + middle[:, None]
            truth = faces.landmarks @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]
            error = (found - truth).norm(dim=-1).mean(1) / (truth[:, 0] - truth[:, 1]).norm(dim=1)
            figures[f"error_{turn}"] = 100 * error.mean().item()
            found = (found - matrix[:, None, :, 2]) @ torch.linalg.inv(matrix[:, :, :2]).transpose(1, 2)
            matrix = torch.from_numpy(np.stack([similarity(f, template(CROP) + MARGIN) for f in found.numpy()])).float()
        aligned = warp_batch(faces.canvas, matrix, WINDOW, "reflection")
        figures["faces_above_0.5"] = (net(aligned)[0][:, 1, 1] > 0).float().mean().item()
        figures["damaged_faces_above_0.5"] = (net(damage(aligned, rng))[0][:, 1, 1] > 0).float().mean().item()
        scores = torch.cat([net(part)[0].flatten() for part in bank.split(64)])
        figures["background_cells_above_0.5"] = (scores > 0).float().mean().item()
    return {key: round(value, 4) for key, value in figures.items()}


def export(state: dict, figures: dict[str, float], path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {k: v.half().contiguous() for k, v in state["ema"].items() if not k.endswith("num_batches_tracked")}
    metadata = {
        "architecture": "LandmarkNet",
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
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--minutes", type=float, default=26)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export-only", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    held_out = frozenset(held_out_names(args.portraits))
    if args.export_only:
        state = torch.load(args.work / "landmarks.pt", weights_only=True)
    else:
        parts = [read_faces(args.portraits, skip=held_out), read_faces(args.faces)]
        faces = Faces(*(torch.cat([getattr(p, f) for p in parts]) for f in ("canvas", "inside", "landmarks")))
        log.info("%d faces to train on, %d held out", len(faces.canvas), len(held_out))
        state = train(args, faces)
    net = LandmarkNet()
    net.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in state["ema"].items()})
    net.eval()
    bank = background_bank(background_pictures(), 2000, torch.Generator().manual_seed(99))
    figures = measure(net, read_faces(args.portraits, names=set(held_out)), bank)
    log.info("held out: %s", figures)
    export(state, figures, EMBEDDED)


if __name__ == "__main__":
    main()
