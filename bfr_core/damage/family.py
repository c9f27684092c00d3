"""A family of damages with few parameters: a picture that was shaken, out of focus, small, taken in poor light,
developed, stored as JPEG and enlarged.

The order is that of a camera (Brooks et al., "Unprocessing images for learned raw denoising", arXiv:1811.11127): the
noise is added to light, not to what the screen shows, before the colours are made strong and cut off at black. That
is why it is stronger in some tones than in others, coloured, and lifts the shadows; a filter and noise of a known
spectrum, as `estimate` finds them, have none of this, nor a direction in which a camera moved. Scans and films pass
much the same stations. JPEG comes before the enlargement, as in the blind damage of the literature (arXiv:2101.04061),
since photos are stored as they are and a face is enlarged when it is cut out: the blocks grow with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..pixels import gaussian_blur
from ..randomness import keyed_generator
from .grey import greyed, is_grey
from .light import with_light_of
from .synthetic import DESIGN_SIZE, disc_kernel, motion_kernel, stored_as_jpeg
from .transplant import filtered

MIN_BLUR, MIN_SMALL, MIN_COLOUR = 0.15, 8, 0.5
MIN_SHAKE = 0.5  # pixels: a shorter way is none
MIN_SHAPED = 0.5  # pixels: below, a disc and a bell are the same
MIN_SHRINK = 1.2  # that is worth a word
RANGES = {
    "blur": (0.0, 3.5),
    "shrink": (1.0, 9.0),
    "gamma": (1.0, 2.4),
    "shot": (-4.0, -1.0),
    "read": (-3.0, -0.7),
    "red": (-0.6, 0.6),
    "blue": (-0.6, 0.6),
    "colour": (0.0, 4.0),
    "lightness_blur": (0.0, 1.5),
    "colour_blur": (0.0, 3.0),
    "quality": (10.0, 105.0),
    "spread": (0.0, 0.6),
    "shake": (0.0, 16.0),
    "mosaic": (0.0, 1.0),
}


@dataclass(frozen=True)
class Photographed:
    """How a clean face became a damaged one; each within `RANGES`.

    blur: how far a point spreads, sigma in pixels of a face 128 wide, see `put_on`. shrink: times. gamma: light is the
    picture to this power. shot, read: the variance of the noise is 10^shot times the light, plus 10^read squared, for
    green; 10^red and 10^blue times as strong in the other colours. colour: how much stronger developing made the
    colours.
    lightness_blur, colour_blur: of developing, of green and of how red and blue differ from it, sigma in pixels of the
    small picture. quality: of JPEG, in which the small picture was stored; from 100 on it was not. spread: how much the
    noise differs from photo to photo, as the deviation of its logarithm. shake: the longest way that a camera moved
    during a shot, in pixels of a face 128 wide; each photo has a way and a direction of its own. mosaic: how far the
    sensor saw green at every other place only; 0 is a film or a scanner, 1 a camera that takes the mean of the
    neighbours for the rest.
    """

    blur: float
    shrink: float
    gamma: float
    shot: float
    read: float
    red: float
    blue: float
    colour: float
    lightness_blur: float
    colour_blur: float
    quality: float
    spread: float
    shake: float = 0.0
    mosaic: float = 0.0

    @classmethod
    def at(cls, place: Sequence[float]) -> Photographed:
        """The damage at `place`, whose numbers from 0 to 1 say where in `RANGES` each parameter is."""
        pairs = zip(place, RANGES.values(), strict=True)
        return cls(*(round(low + (high - low) * min(1.0, max(0.0, float(share))), 6) for share, (low, high) in pairs))

    def in_words(self, size: int) -> str:
        """What happened to faces `size` pixels wide, but for noise and colours, in a few words."""
        scale = size / DESIGN_SIZE
        said = []
        if self.shake * scale >= 2 * MIN_SHAKE:
            said.append(f"shaken by up to {self.shake * scale:.0f} pixels, each along a line of its own")
        if self.blur * scale >= 2 * MIN_BLUR:
            said.append(f"out of focus by {self.blur * scale:.1f} pixels")
        if self.shrink >= MIN_SHRINK:
            said.append(f"shrunk {self.shrink:.1f} times")
        if self.quality < 100:
            said.append(f"stored as JPEG of quality {self.quality:.0f}")
        return ", ".join(said) or "noise and colours alone"

    def put_on(self, face: Tensor, donor_lq: Tensor, donor_restored: Tensor, *key: int | str) -> Tensor:
        """`face` (3, S, S) with this damage, as light and as dark as it was. key: of the noise. The donor is not looked
        at.

        Half of the faces, by lot, are out of focus as by a lens, which makes a disc of a point, the rest as prints and
        scans are, where it becomes a bell: by their looks sets of faces do not tell which it was (see docs/method.md),
        and what is learned from the wrong one alone costs detail.
        """
        generator = keyed_generator("photographed", *key)
        shaped = self.blur * face.shape[-1] / DESIGN_SIZE >= MIN_SHAPED
        by_lens = shaped and bool(torch.rand((), generator=generator) < 0.5)
        made = photographed(face[None], self, generator, by_lens)
        return with_light_of(made, face[None].cpu().float())[0]


@torch.no_grad()
def photographed(faces: Tensor, how: Photographed, generator: torch.Generator, by_lens: bool = False) -> Tensor:
    """`faces` (B, 3, S, S) in [0, 1] with this damage; generator: on the CPU, draws the noise. float32 on the CPU.

    by_lens: a point out of focus becomes an even disc, else a bell of the same spread.

    A grey face stays grey: it was taken on a film that sees no colour, or printed without.
    """
    size = faces.shape[-1]
    small = max(MIN_SMALL, round(size / how.shrink))
    seen = _shaken(faces.cpu().float(), how.shake * size / DESIGN_SIZE, generator)
    seen = _out_of_focus(seen, how.blur * size / DESIGN_SIZE, by_lens)
    seen = F.interpolate(seen, (small, small), mode="area")
    stored = _developed(_with_noise(_to_light(seen, how), how, generator), how)
    if round(how.quality) < 100:
        stored = torch.stack([stored_as_jpeg(face, round(how.quality)) for face in stored])
    shown = F.interpolate(stored, (size, size), mode="bilinear", align_corners=False).clamp(0, 1)
    return torch.stack([greyed(made) if is_grey(face) else made for made, face in zip(shown, faces, strict=True)])


def _shaken(faces: Tensor, longest: float, generator: torch.Generator) -> Tensor:
    """Each face (B, 3, S, S) moved along a line during its shot, by up to `longest` pixels.

    Ways and directions are spread evenly over the faces, so that a few show what many would.
    """
    if longest < MIN_SHAKE:
        return faces
    count = len(faces)
    turns, ways = torch.rand(2, count, generator=generator)
    angles = math.pi * (torch.arange(count) + turns) / count
    lengths = longest * (torch.randperm(count, generator=generator) + ways) / count
    moves = zip(faces, lengths.tolist(), angles.tolist(), strict=True)
    return torch.stack(
        [face if way < MIN_SHAKE else filtered(face, motion_kernel(way, turn)) for face, way, turn in moves]
    )


def _out_of_focus(faces: Tensor, sigma: float, by_lens: bool) -> Tensor:
    """Faces (B, 3, S, S) of which each point spreads by `sigma` pixels, to an even disc or to a bell."""
    if not by_lens:
        return _blurred(faces, sigma)
    return torch.stack([filtered(face, disc_kernel(2 * sigma)) for face in faces])


def _to_light(seen: Tensor, how: Photographed) -> Tensor:
    """What the sensor sees: light, of weaker colours than it is shown in."""
    light = seen.clamp_min(0) ** how.gamma  # what wide kernels make of black is nearly 0, and may be below it
    grey = light.mean(1, keepdim=True)
    return (grey + (light - grey) / max(MIN_COLOUR, how.colour)).clamp_min(0)


def _with_noise(light: Tensor, how: Photographed, generator: torch.Generator) -> Tensor:
    noise = torch.randn(light.shape, generator=generator)
    strength = torch.exp(how.spread * torch.randn((len(light), 1, 1, 1), generator=generator))
    gain = torch.tensor([10**how.red, 1.0, 10**how.blue]).view(1, 3, 1, 1)
    deviation = (10**how.shot * light * gain + (10**how.read * gain).square()).sqrt()
    return (light + noise * deviation * strength).clamp_min(0)


def _developed(light: Tensor, how: Photographed) -> Tensor:
    """`light` with its noise as it is shown.

    A sensor sees green at every other place and red and blue at every fourth, so red and blue are known by how they
    differ from the green around them, and that is smooth: green lends its detail and its noise to all colours.
    """
    green = light[:, 1:2]
    colours = _blurred(light - green, how.colour_blur)
    light = _blurred(_through_mosaic(green, how.mosaic), how.lightness_blur) + colours
    grey = light.mean(1, keepdim=True)
    return (grey + max(MIN_COLOUR, how.colour) * (light - grey)).clamp(0, 1) ** (1 / how.gamma)


def _through_mosaic(green: Tensor, share: float) -> Tensor:
    """`green` (B, 1, H, W), at every other place mixed with so much of the mean of its four neighbours."""
    if share <= 0:
        return green
    around = F.pad(green, (1, 1, 1, 1), mode="replicate")
    level, upright = around[..., 1:-1, :], around[..., 1:-1]
    mean = (level[..., :-2] + level[..., 2:] + upright[..., :-2, :] + upright[..., 2:, :]) / 4
    unseen = torch.ones_like(green[:1])
    unseen[..., 0::2, 0::2] = unseen[..., 1::2, 1::2] = 0
    return green + share * unseen * (mean - green)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    if sigma < MIN_BLUR:
        return image
    radius = min(math.ceil(3 * sigma), 4 * image.shape[-1])
    blurred = gaussian_blur(image.contiguous(memory_format=torch.channels_last), sigma, radius, "replicate")
    return blurred.contiguous()  # the same numbers, in a half to a seventh of the time
