"""A good photograph of a person, the reference, lends a restored face the detail that its own photo lost.

The reference is shifted to where it agrees best with the restored face, and what is finer than the parts of a face is
mixed in: around eyes, nose and mouth, and only where the two agree in what is coarser. Where they do not, because the
head is turned or the mouth is open in one of them, the restored face stays as it is.

Nothing is lent to a face that is not like the person of the reference, nor to one that is so like the reference that
its photo cannot have lost much; and never so much that the face comes nearer to the reference than two photographs of
one person are to each other: that would be a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..faces.align import Face, crop_face
from ..faces.people import Person, largest_face, person_of
from ..faces.recognise import RecogniserNet, embed_faces
from ..files.photos import printable, read_image
from ..pixels import gaussian_blur, luma, resized

SIDE = 128  # pixels at which the two faces are compared
CENTRE, RADII = (0.5, 0.6), (0.23, 0.28)  # of eyes, nose and mouth in a standard crop, in crop widths
# In pixels of a face of `SIDE`; all but the last are standard deviations of a Gaussian:
COARSE = 4.0  # what is finer is mixed in
PARTS = 2.5, 10.0  # between these lies what the two must agree in
AROUND = 5.0  # a place is as far as this around it
EVENED = 1.5, 16.0  # noise below the first and shading above the second count for nothing when they are compared
MAX_SHIFT = 5  # that a reference is shifted, along each axis
SHIFT_COST = 0.002  # of the correlation, for a pixel of shift
TINY = 1e-4  # power of structure in a place that has none

STRENGTH = 0.6  # of the reference, where the two agree fully
LIMIT = 0.65  # distance of a restored face from the reference up to which it may be that person's
ENOUGH = 0.45  # distance of a restored face from the reference up to which lent detail makes it no more like the person
COPY = 0.35  # distance of two real photographs of one person
SHARES = (1.0, 2 / 3, 1 / 3)  # of the strength that are tried, the largest first


# ---------------------------------------------------------------- one face


def with_reference(restored: Tensor, reference: Tensor, strength: float) -> Tensor:
    """`restored` with detail of `reference`, another photograph of the same person: (3, S, S) RGB in [0, 1] all three.

    Both are standard crops. strength: of the reference's share where the two agree fully; 0 changes nothing.
    Raises ValueError if they are not of one size or the strength is not in [0, 1].
    """
    if restored.shape != reference.shape or restored.ndim != 3 or restored.shape[1] != restored.shape[2]:
        raise ValueError(
            f"the restored face is {tuple(restored.shape)} and the reference {tuple(reference.shape)}; both must be "
            "(3, S, S)"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"the strength of the reference is {strength}; it must lie between 0 and 1")
    face, other = (image.detach().float().cpu()[None] for image in (restored, reference))
    size = face.shape[-1]
    small, small_other = (resized(luma(image), SIDE).clamp(0, 1) for image in (face, other))
    shift = shift_between(small, small_other)
    share = strength * inner_part() * agreement(small, shifted(small_other, shift))
    lent = finer(luma(shifted(other, shift))) - finer(luma(face))  # of brightness, so that the colours stay the photo's
    return (face + F.interpolate(share, (size, size), mode="bilinear") * lent).clamp(0, 1)[0].to(restored)


def inner_part() -> Tensor:
    """Where eyes, nose and mouth are in a standard crop: (1, 1, SIDE, SIDE) in [0, 1], soft at its rim."""
    line = (torch.arange(SIDE) + 0.5) / SIDE
    y, x = torch.meshgrid(line, line, indexing="ij")
    distance = (((x - CENTRE[0]) / RADII[0]) ** 2 + ((y - CENTRE[1]) / RADII[1]) ** 2).sqrt()
    return ((1.15 - distance) / 0.3).clamp(0, 1)[None, None]


def shift_between(face: Tensor, other: Tensor) -> tuple[int, int]:
    """How far down and to the right `other` must be moved to agree best with `face`; both (1, 1, SIDE, SIDE).

    In pixels. The best is the highest correlation of the inner part, less a little for every pixel, so that a flat
    face moves nothing.
    """
    mask, one, two = inner_part(), evened(face), evened(other)
    own = (mask * one.square()).sum().clamp_min(TINY)
    best, found = -1.0, (0, 0)
    for down in range(-MAX_SHIFT, MAX_SHIFT + 1):
        for right in range(-MAX_SHIFT, MAX_SHIFT + 1):
            moved = torch.roll(two, (down, right), (-2, -1))
            power = (own * (mask * moved.square()).sum().clamp_min(TINY)).sqrt()
            score = float((mask * one * moved).sum() / power) - SHIFT_COST * (down**2 + right**2) ** 0.5
            if score > best:
                best, found = score, (down, right)
    return found


def evened(grey: Tensor) -> Tensor:
    """(1, 1, SIDE, SIDE) without noise and shading and of about the same contrast everywhere."""
    image = gaussian_blur(grey, EVENED[0], edges="replicate")
    rest = image - gaussian_blur(image, EVENED[1], edges="replicate")
    return rest / (gaussian_blur(rest.square(), EVENED[1], edges="replicate").sqrt() + 0.02)


def shifted(image: Tensor, shift: tuple[int, int]) -> Tensor:
    """`image` (1, C, S, S) moved down and to the right, in pixels of a face of `SIDE`; its edges are repeated."""
    size = image.shape[-1]
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line - shift[0] * 2 / SIDE, line - shift[1] * 2 / SIDE, indexing="ij")
    grid = torch.stack([x, y], -1)[None]
    return F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def finer(image: Tensor) -> Tensor:
    """What of `image` (1, C, S, S) is finer than the parts of a face."""
    return image - gaussian_blur(image, COARSE * image.shape[-1] / SIDE, edges="replicate")


def agreement(face: Tensor, other: Tensor) -> Tensor:
    """How well two faces (1, 1, SIDE, SIDE) agree around each place: their correlation where it is positive, else 0."""
    one, two = (
        gaussian_blur(image, PARTS[0], edges="replicate") - gaussian_blur(image, PARTS[1], edges="replicate")
        for image in (face, other)
    )
    both, own, others = (
        gaussian_blur(product, AROUND, edges="replicate") for product in (one * two, one * one, two * two)
    )
    return (both / ((own + TINY) * (others + TINY)).sqrt()).clamp(0, 1)


# ---------------------------------------------------------------- the faces of a photo


@dataclass(frozen=True, eq=False)
class Reference:
    """A good photograph of somebody. face: (3, S, S) standard crop of the restorer's size, RGB in [0, 1]."""

    face: Tensor
    person: Person


@dataclass(frozen=True, eq=False)
class Lender:
    """Lends the detail of references, all of one person, to that person's face in each photo.

    strength: see `with_reference`. limit: distance from a reference up to which a restored face may be that person's.
    """

    references: tuple[Reference, ...]
    net: RecogniserNet
    strength: float = STRENGTH
    limit: float = LIMIT

    def __call__(
        self, restored: Sequence[Tensor | str], widths: Sequence[float]
    ) -> tuple[dict[int, tuple[Tensor, float]], str]:
        """The face that is lent detail and how strongly, by its place among the faces of one photo; or none, and why.

        restored: (3, S, S) each, or why there is none. widths: in the photo, for what is said. It is the face that is
        nearest to a reference, if it is within the limit, further than `ENOUGH`, and a share of the detail makes no
        copy of it.
        """
        places = [i for i, face in enumerate(restored) if isinstance(face, Tensor)]
        faces = [face.float().cpu() for face in restored if isinstance(face, Tensor)]
        if not faces or not self.strength:
            return {}, ""
        embeddings = embed_faces(self.net, torch.stack(faces))
        distances = torch.stack([one.person.distances(embeddings) for one in self.references])
        which, nearest = divmod(int(distances.argmin()), len(faces))
        reference, distance = self.references[which], float(distances[which, nearest])
        name, wide = printable(reference.person.name), f"{widths[places[nearest]]:.0f} pixels wide"
        if distance > self.limit:
            return {}, f"no face is lent detail: none is like {name} (distance {distance:.2f}, limit {self.limit:.2f})"
        if distance < ENOUGH:
            return {}, f"a face {wide} is lent no detail: without it, it is as like {name} as detail would make it"
        strengths = [share * self.strength for share in SHARES]
        tried = torch.stack([with_reference(faces[nearest], reference.face, strength) for strength in strengths])
        apart = reference.person.distances(embed_faces(self.net, tried)).tolist()
        for strength, face, left in zip(strengths, tried, apart, strict=True):
            if left >= COPY:
                return {places[nearest]: (face, strength)}, ""
        return {}, f"a face {wide} is lent no detail: it is as near to {name} as two photos of one person are"


def read_references(
    photos: Sequence[Path | Tensor], find: Callable[[Tensor], list[Face]], net: RecogniserNet, size: int
) -> tuple[Reference, ...]:
    """The largest face of each photo, at `size` pixels. photos: files, or pixels (3, H, W) in [0, 1].

    Raises FileNotFoundError or ValueError for a photo that cannot be read or has no face.
    """
    found = []
    for photo in photos:
        pixels, name = (photo, "photo") if isinstance(photo, Tensor) else (read_image(photo), photo.name)
        face = largest_face(pixels, find, name)
        found.append(Reference(crop_face(pixels, face, size).clamp(0, 1).cpu(), person_of(pixels, face, net, name)))
    return tuple(found)
