"""Make clean faces look damaged in seeded ways: for training the embedded models, for tests and for evaluation.

Every length (blur, dot pitch, shrinking) is meant for a face 128 pixels wide and grows with the picture, so that a
damage looks alike at 512; the grid of a sensor or of JPEG stays as fine as its pixels. At strength 1 the person is
still recognisable: noise, dots and grain leave 18-24 dB at 128, blur 23-30 dB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor
from torch.nn import functional as F

from ..pixels import as_bytes, gaussian_blur, luma
from .camera import READINGS, SENSOR_NOISE, published_camera, published_kind
from .transplant import convolved, filtered

DESIGN_SIZE = 128
Parameters = dict[str, float]
STRENGTH_TEXT = "How strong the damage is: 0 is next to nothing, 1 the usual damage, 2 doubles its amounts."


@dataclass(frozen=True, eq=False)
class Degraded:
    """Damaged images. lq: (B, 3, H, W) in [0, 1]. parameters: those drawn for each image, ready for JSON."""

    lq: Tensor
    parameters: list[Parameters]


def degrade(hq: Tensor, kind: str, generator: torch.Generator, strength: float = 1.0) -> Degraded:
    """`hq` with damage `kind`, one of DAMAGES, whose parameters are drawn anew for each image.

    hq: (B, 3, H, W) RGB in [0, 1], any size; 8 pixels or more make sense. generator: on the CPU; the same seed gives
    the same pixels. strength: see `STRENGTH_TEXT`.
    Images are damaged in order from the one generator, so an image's damage depends on those before it. When a face
    must be damaged alike whatever batch it comes in, call with a batch of one and a generator seeded for that face.
    Returns lq with the dtype and device of `hq`. Raises ValueError for an unknown kind, shape or strength.
    """
    check_damage(kind, strength)
    if hq.ndim != 4 or hq.shape[1] != 3:
        raise ValueError(f"hq must be (B, 3, H, W), not {tuple(hq.shape)}")
    damaged, parameters = [], []
    for image in hq.detach().float().cpu().clamp(0, 1):
        lq, drawn = DAMAGES[kind](image, generator, strength)
        damaged.append(lq.clamp(0, 1))
        parameters.append({name: round(value, 5) for name, value in drawn.items()})
    lq = torch.stack(damaged) if damaged else hq.detach().clone()
    return Degraded(lq.to(hq), parameters)


def check_damage(kind: str, strength: float) -> None:
    """Raise ValueError for a kind that is not in `DAMAGES`, or a strength that is none."""
    if kind not in DAMAGES:
        raise ValueError(f"unknown damage {kind!r}; use one of {', '.join(DAMAGES)}")
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must be 0 or more, not {strength}")


# ---------------------------------------------------------------- the damages: (3, H, W) -> (3, H, W), parameters drawn


def blind(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """The usual blind pipeline: blur, shrink, noise, JPEG, back to size; the embedded restorer is trained on it."""
    height, width = image.shape[-2:]
    scale = _scale(image)
    sigma = _uniform(generator, 0.2, 2.2) * scale * strength
    stretch = _uniform(generator, 0.4, 1.0)  # 1 is a round blur
    angle = _uniform(generator, 0, math.pi)
    factor = max(1.0, 1 + (_uniform(generator, 1, 4) * scale - 1) * strength)
    noise = _uniform(generator, 0, 0.06) * strength
    quality = _quality(_uniform(generator, 35, 95), strength)

    lq = convolved(image, _gaussian_kernel(sigma, sigma * stretch, angle))
    small = (max(4, round(height / factor)), max(4, round(width / factor)))
    lq = F.interpolate(lq[None], small, mode="bicubic", antialias=True)[0]
    lq = lq + noise * torch.randn(lq.shape, generator=generator)
    lq = F.interpolate(stored_as_jpeg(lq, quality)[None], (height, width), mode="bicubic")[0]
    drawn = {"sigma": sigma, "stretch": stretch, "angle": angle, "factor": factor, "noise": noise, "quality": quality}
    return lq, drawn


def sensor(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """Noise of a small sensor in poor light: drawn in raw light on a Bayer mosaic, then developed as a camera does.

    Its variance grows with the light (photons) above a floor (read-out); white balance, colour matrix and demosaicing
    turn it into coloured blotches a few pixels wide, strongest in the shadows.
    """
    shot = _uniform(generator, 0.004, 0.012) * strength**2
    read = _uniform(generator, 0.008, 0.02) * strength
    red_gain = _uniform(generator, 1.5, 2.3)
    blue_gain = _uniform(generator, 1.4, 2.2)
    lq = _to_display(_photographed(_to_linear(image), shot, read, (red_gain, 1.0, blue_gain), generator))
    return lq, {"shot": shot, "read": read, "red_gain": red_gain, "blue_gain": blue_gain}


def camera(image: Tensor, generator: torch.Generator, strength: float, shrink: int) -> tuple[Tensor, Parameters]:
    """A face small in the frame, at an ISO from 800 to 6400: it is shrunk, turned back to raw light, made noisy,
    developed and enlarged.

    Noise by ISO, tone curve and gains as in Brooks et al., "Unprocessing images", arXiv:1811.11127. `shrink` is the
    same at every size; strength above 1 adds noise only. The sets of arXiv:2410.04618 are other kinds, those with an
    ISO in their names: see `damage.camera`.
    """
    height, width = image.shape[-2:]
    iso = 100 * math.exp(_uniform(generator, math.log(8), math.log(64))) * strength
    shot = 1e-4 * iso / 100
    read = math.sqrt(math.exp(2.18 * math.log(max(shot, 1e-9)) + 1.2 + 0.26 * _normal(generator)))
    red_gain = _uniform(generator, 1.9, 2.4)
    blue_gain = _uniform(generator, 1.5, 1.9)

    factor = 1 + (shrink - 1) * min(1.0, strength)
    small = (max(4, round(height / factor)), max(4, round(width / factor)))
    lq = F.interpolate(image[None], small, mode="bicubic", antialias=True)[0].clamp(0, 1)
    lq = 0.5 - torch.sin(torch.asin(1 - 2 * lq) / 3)  # undoes the tone curve below
    lq = _to_display(_photographed(_to_linear(lq), shot, read, (red_gain, 1.0, blue_gain), generator))
    lq = lq.square() * (3 - 2 * lq)
    lq = F.interpolate(lq[None], (height, width), mode="bicubic")[0]
    return lq, {"iso": iso, "shot": shot, "read": read, "red_gain": red_gain, "blue_gain": blue_gain, "factor": factor}


def blind_twice(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """Two rounds of the blind pipeline, the second milder, and a last JPEG: after Real-ESRGAN, arXiv:2107.10833."""
    lq, first = blind(image, generator, strength)
    lq, second = blind(lq.clamp(0, 1), generator, 0.5 * strength)
    quality = _quality(_uniform(generator, 40, 95), strength)
    drawn = {f"{name}_{i}": value for i, part in enumerate((first, second), 1) for name, value in part.items()}
    return stored_as_jpeg(lq, quality), drawn | {"quality": quality}


def shared_online(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """A picture passed around online: three times shrunk a little, shifted by part of a block and stored as JPEG."""
    height, width = image.shape[-2:]
    lq = image
    drawn: Parameters = {}
    for i in range(1, 4):
        scale = 1 - _uniform(generator, 0.05, 0.45) * min(1.5, strength)
        scale = max(scale, min(1.0, 1.01 / min(height, width)))  # one pixel at least is left
        quality = _quality(_uniform(generator, 15, 50), strength)
        shift = int(_uniform(generator, 0, 8))
        lq = F.interpolate(lq[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
        lq = stored_as_jpeg(lq.roll((shift, shift), (1, 2)), quality).roll((-shift, -shift), (1, 2))
        lq = F.interpolate(lq[None], (height, width), mode="bicubic")[0].clamp(0, 1)
        drawn |= {f"scale_{i}": scale, f"quality_{i}": quality, f"shift_{i}": float(shift)}
    return lq, drawn


def video(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """A frame of a small H.264 video in which the face moves. Raises ValueError without PyAV (`pip install av`)."""
    try:
        import av
    except ImportError:
        raise ValueError("damage 'video' needs the package av: pip install av") from None
    crf = min(51.0, round(_uniform(generator, 30, 38) * max(0.1, strength) ** 0.3))
    move = [int(_uniform(generator, -3, 4)) for _ in range(2)]
    even = F.pad(image[None], (0, image.shape[-1] % 2, 0, image.shape[-2] % 2), mode="replicate")[0]
    stream = BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        encoder = container.add_stream("libx264", rate=25, options={"crf": str(int(crf)), "preset": "veryfast"})
        encoder.height, encoder.width, encoder.pix_fmt = *even.shape[-2:], "yuv420p"
        for frame in range(5):
            moved = even.roll((move[0] * (frame - 4), move[1] * (frame - 4)), (1, 2))
            pixels = as_bytes(moved).permute(1, 2, 0).contiguous().numpy()
            container.mux(encoder.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(encoder.encode())
    stream.seek(0)
    with av.open(stream, "r") as film:
        last = list(film.decode(video=0))[-1].to_ndarray(format="rgb24")
    lq = torch.from_numpy(last).permute(2, 0, 1).float() / 255
    return lq[:, : image.shape[-2], : image.shape[-1]], {"crf": crf, "down": float(move[0]), "right": float(move[1])}


def motion_jpeg(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """A shot with camera shake, sent as a small file: blur along a slightly bent line, then strong JPEG."""
    length = _uniform(generator, 4, 10) * _scale(image) * strength
    angle = _uniform(generator, 0, math.pi)
    bend = _uniform(generator, -0.6, 0.6)
    quality = _quality(_uniform(generator, 8, 20), strength)
    lq = stored_as_jpeg(convolved(image, motion_kernel(length, angle, bend)), quality)
    return lq, {"length": length, "angle": angle, "bend": bend, "quality": quality}


def soft_focus(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """A lens that was focused on something else: each point becomes an even disc, then a little noise and JPEG."""
    radius = _uniform(generator, 1.5, 3.5) * _scale(image) * strength
    noise = _uniform(generator, 0.005, 0.02) * strength
    quality = _quality(_uniform(generator, 70, 95), strength)
    lq = filtered(image, disc_kernel(radius))
    lq = lq + noise * torch.randn(lq.shape, generator=generator)
    return stored_as_jpeg(lq, quality), {"radius": radius, "noise": noise, "quality": quality}


def heavy_jpeg(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """A picture made small for a message: shrunk up to twice, stored as bad JPEG, shown large again."""
    height, width = image.shape[-2:]
    factor = 1 + (_uniform(generator, 1.0, 2.0) - 1) * strength
    quality = _quality(_uniform(generator, 6, 20), strength)
    small = (max(8, round(height / factor)), max(8, round(width / factor)))
    lq = stored_as_jpeg(F.interpolate(image[None], small, mode="bicubic", antialias=True)[0].clamp(0, 1), quality)
    return F.interpolate(lq[None], (height, width), mode="bicubic")[0], {"factor": factor, "quality": quality}


def halftone(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """A print in four inks, each with a dot screen at an angle of its own, then scanned slightly out of focus."""
    height, width = image.shape[-2:]
    pitch = max(1.5, _uniform(generator, 2.4, 3.6) * _scale(image) * max(1.0, strength))
    turn = _uniform(generator, -0.15, 0.15)
    scan_blur = pitch * _uniform(generator, 0.2, 0.3)
    paper = _uniform(generator, 0, 0.1) * max(1.0, strength)
    fine = max(1, math.ceil(10 / pitch))  # a dot needs about ten samples across to be round

    black = 0.6 * (1 - image.amax(0))  # grey component: part of the dark is printed in black instead of three inks
    inks = torch.cat([1 - image / (1 - black).clamp_min(1e-3), black[None]]).clamp(0, 1)
    inks = F.interpolate(inks[None], scale_factor=fine, mode="bilinear", align_corners=False)[0]
    y, x = torch.meshgrid(torch.arange(height * fine) / fine, torch.arange(width * fine) / fine, indexing="ij")
    printed = torch.ones(3, *x.shape)
    for ink, screen_angle, colour in zip(inks, SCREEN_ANGLES, INK_COLOURS, strict=True):
        phase = (_uniform(generator, 0, 1), _uniform(generator, 0, 1))
        covered = _dots(ink, x, y, pitch, screen_angle + turn, phase, softness=0.5 / (fine * pitch))
        printed *= 1 - covered * (1 - torch.tensor(colour))[:, None, None]
    scanned = _round_blur(F.avg_pool2d(printed[None], fine)[0], scan_blur)
    lq = scanned * (1 - paper * torch.tensor([0.3, 0.6, 1.0]))[:, None, None]  # yellowed
    lq = image + min(1.0, strength) * (lq - image)
    return lq, {"pitch": pitch, "turn": turn, "scan_blur": scan_blur, "paper": paper}


def film_grain(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """An enlargement of fast film: soft, with clumped grain, strongest in the mid-tones and mostly without colour."""
    scale = _scale(image)
    softness = _uniform(generator, 0.4, 0.9) * scale * strength
    grain_size = _uniform(generator, 0.5, 1.0) * scale
    amount = _uniform(generator, 0.06, 0.11) * strength
    colour = _uniform(generator, 0.1, 0.4)

    soft = _round_blur(image, softness)
    kernel = _gaussian_kernel(grain_size, grain_size, 0)
    grain = convolved(torch.randn(4, *image.shape[-2:], generator=generator), kernel) / kernel.square().sum().sqrt()
    grain = math.sqrt(1 - colour**2) * grain[:1] + colour * grain[1:]
    light = luma(soft).clamp(0, 1)
    lq = soft + amount * (0.35 + 1.3 * (light * (1 - light)).sqrt()) * grain
    return lq, {"softness": softness, "grain_size": grain_size, "amount": amount, "colour": colour}


def faded(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """A print faded by light: blacks are lifted and whites dulled, most of all in blue, so that it turns yellow.

    No detail is lost.
    """
    drawn: Parameters = {}
    lq = image.clone()
    for channel, (name, share) in enumerate((("red", 0.6), ("green", 0.8), ("blue", 1.0))):
        black = min(0.45, share * _uniform(generator, 0.08, 0.25) * strength)
        white = max(0.55, 1 - share * _uniform(generator, 0.1, 0.3) * strength)
        lq[channel] = black + (white - black) * image[channel]
        drawn |= {f"{name}_black": black, f"{name}_white": white}
    return lq, drawn


def smeared(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """A phone's picture in the dark: fine detail was taken off with the noise, and edges were sharpened afterwards.

    The noise reduction is a guided filter (He et al., "Guided image filtering", 2010), twice, with Gaussian
    windows and itself as guide.
    """
    noise = _uniform(generator, 0.04, 0.08) * strength
    reach = _uniform(generator, 1.2, 2.2) * _scale(image)
    smooth = _uniform(generator, 0.08, 0.14) * strength
    sharpening = _uniform(generator, 0.4, 1.0) * strength
    quality = _quality(_uniform(generator, 55, 85), strength)
    lq = image + noise * torch.randn(image.shape, generator=generator)
    for _ in range(2):
        mean = _round_blur(lq, reach)
        variance = (_round_blur(lq.square(), reach) - mean.square()).clamp_min(0)
        kept = variance / (variance + smooth**2 + 1e-8)
        lq = _round_blur(kept, reach) * lq + _round_blur((1 - kept) * mean, reach)
    lq = lq + sharpening * (lq - _round_blur(lq, 0.8 * _scale(image)))
    drawn = {"noise": noise, "reach": reach, "smooth": smooth, "sharpening": sharpening, "quality": quality}
    return stored_as_jpeg(lq, quality), drawn


def tape(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """A frame of a home video on magnetic tape: fewer lines, which tremble, soft across, with colour that runs."""
    height, width = image.shape[-2:]
    unit = _scale(image) * strength
    fewer = 1 + _uniform(generator, 0.4, 1.2) * min(1.5, strength)
    soft, running = _uniform(generator, 0.5, 1.0) * unit, _uniform(generator, 2.0, 4.0) * unit
    late, tremble = _uniform(generator, 0.5, 2.0) * unit, _uniform(generator, 0.1, 0.3) * unit
    amount = _uniform(generator, 0.02, 0.05) * strength
    lines = max(8, round(height / fewer))

    seen = F.interpolate(image[None], (lines, width), mode="bilinear", antialias=True)[0]
    light = luma(seen)
    colour = _along_lines(seen - light, running) + 2 * amount * _streaks(seen.shape, generator, 3 * _scale(image))
    light = _along_lines(light, soft) + amount * _streaks(light.shape, generator, 0.5 * _scale(image))
    moves = tremble * torch.randn(lines, generator=generator)
    frame = _lines_moved(light, moves) + _lines_moved(colour, moves + late)
    lq = F.interpolate(frame[None], (height, width), mode="bilinear")[0]
    drawn = {"fewer": fewer, "soft": soft, "running": running, "late": late, "tremble": tremble, "amount": amount}
    return lq, drawn


def screen(image: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Parameters]:
    """Photographed off a screen: its red, green and blue stripes meet the camera's pixels in coloured waves."""
    height, width = image.shape[-2:]
    pitch = _uniform(generator, 1.3, 2.1) * _scale(image)
    turn = _uniform(generator, -0.12, 0.12)
    softness = pitch * _uniform(generator, 0.3, 0.45)
    haze = _uniform(generator, 0.02, 0.06) * strength
    quality = _quality(_uniform(generator, 60, 90), strength)
    fine = max(2, math.ceil(6 / pitch))  # two samples a stripe

    y, x = torch.meshgrid(torch.arange(height * fine) / fine, torch.arange(width * fine) / fine, indexing="ij")
    u, v = ((x * math.cos(turn) + y * math.sin(turn)) / pitch, (y * math.cos(turn) - x * math.sin(turn)) / pitch)
    middle_u, middle_v = (u.floor() + 0.5) * pitch, (v.floor() + 0.5) * pitch
    at = (middle_u * math.cos(turn) - middle_v * math.sin(turn), middle_v * math.cos(turn) + middle_u * math.sin(turn))
    grid = torch.stack([2 * at[0] / width - 1, 2 * at[1] / height - 1], -1)[None]
    light = _to_linear(_round_blur(image, 0.4 * pitch))  # shown with one value a pixel of the screen
    light = F.grid_sample(light[None], grid, "nearest", "border", align_corners=False)[0]
    stripe, gap = (3 * (u - u.floor())).long().clamp(0, 2), (v - v.floor()) < 0.12
    lit = 3 * F.one_hot(stripe, 3).permute(2, 0, 1) * (~gap).float() / 0.88
    shot = F.avg_pool2d(_round_blur(light * lit, fine * softness)[None], fine)[0]
    lq = image + min(1.0, strength) * (_to_display(haze + (1 - haze) * shot) - image)
    drawn = {"pitch": pitch, "turn": turn, "softness": softness, "haze": haze, "quality": quality}
    return stored_as_jpeg(lq, quality), drawn


DAMAGES: dict[str, Callable[[Tensor, torch.Generator, float], tuple[Tensor, Parameters]]] = {
    "blind": blind,
    "sensor": sensor,
    "motion_jpeg": motion_jpeg,
    "soft_focus": soft_focus,
    "heavy_jpeg": heavy_jpeg,
    "halftone": halftone,
    "film_grain": film_grain,
    "camera_x4": partial(camera, shrink=4),
    "camera_x8": partial(camera, shrink=8),
    **{
        published_kind(shrink, iso, reading): partial(published_camera, shrink=shrink, iso=iso, reading=reading)
        for reading in READINGS
        for shrink in (4, 8)
        for iso in SENSOR_NOISE
    },
    "blind_twice": blind_twice,
    "shared_online": shared_online,
    "video": video,
    "faded": faded,
    "smeared": smeared,
    "tape": tape,
    "screen": screen,
}

# A typical camera's colour matrix: rows sum to one, so white stays white, and it makes noise more colourful.
CAMERA_TO_SRGB = torch.tensor([[1.6, -0.45, -0.15], [-0.25, 1.5, -0.25], [0.0, -0.55, 1.55]])
SCREEN_ANGLES = tuple(math.radians(angle) for angle in (15, 75, 0, 45))  # cyan, magenta, yellow, black
INK_COLOURS = ((0.1, 0.95, 1.0), (0.97, 0.1, 0.95), (1.0, 0.97, 0.1), (0.08, 0.08, 0.08))  # a little impure


# ---------------------------------------------------------------- blur


def _gaussian_kernel(sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """(K, K) Gaussian, turned by `angle` radians, summing to one; K is odd and follows the larger sigma (pixels)."""
    radius = max(1, math.ceil(2.5 * max(sigma_x, sigma_y)))
    line = torch.arange(-radius, radius + 1.0)
    y, x = line[:, None], line[None]
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((u / max(sigma_x, 0.05)) ** 2 + (v / max(sigma_y, 0.05)) ** 2))
    return kernel / kernel.sum()


def _round_blur(image: Tensor, sigma: float) -> Tensor:
    """`image` (C, H, W) blurred alike in all directions, by `sigma` pixels; the edge pixels are repeated outwards."""
    return gaussian_blur(image[None], max(sigma, 0.05), max(1, math.ceil(2.5 * sigma)), "replicate")[0]


def motion_kernel(length: float, angle: float, bend: float = 0.0) -> Tensor:
    """(K, K) path of a moving camera: an arc `length` pixels long that turns by `bend` radians, drawn smoothly."""
    steps = max(2, math.ceil(length * 4))
    heading = angle + bend * torch.linspace(-0.5, 0.5, steps)
    path = torch.stack([heading.cos(), heading.sin()]).cumsum(1) * (length / steps)
    path = path.mean(1, keepdim=True) - path  # what is seen moves against the camera
    radius = max(1, math.ceil(length / 2))
    line = torch.arange(-radius, radius + 1.0)
    # Each point of the path covers the pixels around it in proportion to their distance (a tent of width one).
    x = (1 - (line[:, None] - path[0]).abs()).clamp_min(0)
    y = (1 - (line[:, None] - path[1]).abs()).clamp_min(0)
    kernel = y @ x.T
    return kernel / kernel.sum()


def disc_kernel(radius: float) -> Tensor:
    """(K, K) disc of `radius` pixels, what a point out of focus becomes, with a soft rim of one pixel."""
    reach = max(1, math.ceil(radius + 0.5))
    line = torch.arange(-reach, reach + 1.0)
    disc = (radius + 0.5 - torch.hypot(line[:, None], line[None])).clamp(0, 1)
    return disc / disc.sum()


# ---------------------------------------------------------------- lines of a tape


def _along_lines(image: Tensor, sigma: float) -> Tensor:
    """`image` (C, H, W) blurred along its rows by a Gaussian of `sigma` pixels."""
    return filtered(image, _gaussian_kernel(sigma, 0, 0))


def _streaks(shape: torch.Size, generator: torch.Generator, length: float) -> Tensor:
    """Noise of variance 1 that is alike over `length` pixels of a row."""
    noise = _along_lines(torch.randn(shape, generator=generator), length)
    return noise / noise.std().clamp_min(1e-6)


def _lines_moved(image: Tensor, moves: Tensor) -> Tensor:
    """`image` (C, H, W) with each row moved to the right by so many pixels, (H,)."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([2 * (x - moves[:, None]) / width - 1, 2 * y / height - 1], -1)[None]
    return F.grid_sample(image[None], grid, "bilinear", "border", align_corners=False)[0]


# ---------------------------------------------------------------- files, light and dots


def stored_as_jpeg(image: Tensor, quality: float, *, full_colour: bool = False) -> Tensor:
    """`image` (3, H, W) after being stored as JPEG, with halved colour resolution unless `full_colour` is asked for."""
    pixels = as_bytes(image).permute(1, 2, 0).numpy()
    stored = BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=int(quality), subsampling=0 if full_colour else 2)
    stored.seek(0)
    again = JpegImagePlugin.jpeg_factory(stored)  # Image.open refuses large photos
    return torch.from_numpy(np.array(again)).permute(2, 0, 1).float() / 255


def _to_linear(display: Tensor) -> Tensor:
    """sRGB values to linear light, both in [0, 1] (IEC 61966-2-1)."""
    return torch.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)


def _to_display(light: Tensor) -> Tensor:
    """Linear light to sRGB values, clipped to [0, 1]."""
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def _photographed(
    light: Tensor, shot: float, read: float, gains: tuple[float, float, float], generator: torch.Generator
) -> Tensor:
    """Linear sRGB light (3, H, W) as a camera renders it: noise of variance shot * signal + read^2 is on its mosaic."""
    gain = torch.tensor(gains)[:, None, None]
    raw = torch.einsum("ij,jhw->ihw", torch.linalg.inv(CAMERA_TO_SRGB), light) / gain * _bayer(light)
    noisy = raw + (shot * raw.clamp_min(0) + read**2).sqrt() * torch.randn(light.shape[-2:], generator=generator)
    return torch.einsum("ij,jhw->ihw", CAMERA_TO_SRGB, _demosaic(noisy * _bayer(light)) * gain)


def _bayer(image: Tensor) -> Tensor:
    """(3, H, W) ones where an RGGB sensor sees red, green, blue."""
    masks = torch.zeros_like(image)
    masks[0, 0::2, 0::2] = 1
    masks[1, 0::2, 1::2] = 1
    masks[1, 1::2, 0::2] = 1
    masks[2, 1::2, 1::2] = 1
    return masks


def _demosaic(mosaic: Tensor) -> Tensor:
    """Bilinear: each colour missing at a pixel is the mean of those around it."""
    kernel = torch.tensor([[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]])
    seen = F.conv2d(F.pad(_bayer(mosaic)[:, None], (1, 1, 1, 1)), kernel[None, None])
    seen = seen.clamp_min(1e-6)  # a picture of one row has no blue
    return (F.conv2d(F.pad(mosaic[:, None], (1, 1, 1, 1)), kernel[None, None]) / seen)[:, 0]


def _dots(
    ink: Tensor, x: Tensor, y: Tensor, pitch: float, angle: float, phase: tuple[float, float], softness: float
) -> Tensor:
    """Share of each fine sample that the dots of one ink cover: dots that grow, join at
    their corners, and leave holes."""
    u = (x * math.cos(angle) + y * math.sin(angle)) / pitch + phase[0]
    v = (y * math.cos(angle) - x * math.sin(angle)) / pitch + phase[1]
    # Distance from a dot's centre along each axis, 0...1, is spread evenly; so the distribution of the sum is known
    # and a threshold can be found for which the dots cover just the share that `ink` asks for.
    away = (2 * (u - u.floor()) - 1).abs() + (2 * (v - v.floor()) - 1).abs()
    share = torch.where(away < 1, away.square() / 2, 1 - (2 - away).square() / 2)
    return ((ink - share) / softness + 0.5).clamp(0, 1)


def _scale(image: Tensor) -> float:
    """Size of `image` in units of the faces the damages were designed on."""
    return math.sqrt(image.shape[-2] * image.shape[-1]) / DESIGN_SIZE


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _normal(generator: torch.Generator) -> float:
    return torch.randn((), generator=generator).item()


def _quality(quality: float, strength: float) -> float:
    """JPEG quality with its distance from 100 scaled by `strength`, as a whole number from 2 to 100."""
    return float(min(100, max(2, round(100 - (100 - quality) * strength))))
