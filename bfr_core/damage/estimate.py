"""The damage of a folder, estimated over all of its faces: what its photos lost and what they gained.

A damaged face is taken for lq = h * clean + rest: the filter h took detail away, the rest is noise and pattern. Of one
face alone neither is known, because its clean copy is not. But what the base restorer makes of it shows much of the
same, and aligned faces have nearly the same mean power spectrum, so that of sharp faces stands for the clean copies'.

At each frequency, with means over faces and directions, S_lq the power of the damaged faces, S_y that of the restored
ones, C their cross-power, and S_x the power of sharp faces:

    share  = |C|^2 / (S_y S_lq)      the part of S_lq that the restored faces show too: their coherence
    noise  = (1 - share) S_lq
    |H|^2  = share S_lq / S_x        what is left of the power of a sharp face

The coherence of two pictures (Bendat and Piersol, "Random Data", chapter 6) is the same whatever filter the restorer
amounts to. Noise that the restorer lets through counts as signal, though, which is why the prior should take off what
it knows for noise before the base sees the faces. At the lowest frequencies no restorer takes off any; there the noise
is taken to be at least as strong as in the octave above.

|H| has no phase: a blur that moves or doubles edges, as motion does, becomes one that does neither. Colour is never
taken to be sharper than lightness.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..randomness import keyed_generator
from .family import Photographed
from .spectra import (
    MIN_SIZE,
    at_frequencies,
    over_rings,
    radius,
    ring_middles,
    spectra,
    to_opponent,
    to_rgb,
    with_response,
)

PLAIN_RINGS = 2  # the coarsest, where a face is kept whole, which gives H its scale
LOW = 0.1  # cycles a pixel of a face 128 pixels wide: below, noise is taken from the octave above it
MAX_NOISE = 0.5  # of the power of the faces at such a frequency
MAX_EXPLAINED = 1.5  # where a restored face has next to nothing, the ratio is chance
MAX_GAIN = 4.0  # of the rest, where a donor's rest is weaker than the folder's noise
TINY = 1e-14


@dataclass(frozen=True, eq=False)
class FolderDamage:
    """What a folder's faces lost and gained, over spatial frequency; float64 on the CPU.

    transfer: (3, R) |H| in [0, 1] of lightness and two chromas. noise: (3, R) power of what H leaves unexplained, of
    values in [0, 1]; its mean over all frequencies is a variance. size: side of the faces in pixels, which says where
    the rings are, see `spectra.ring_middles`. photographed: the damage in the family of `family` that is most like the
    folder's, or None where none was searched for, or the filter with the faces' rests is clearly more like it. in_turn:
    whether neither of the two is clearly more like it, so that faces are given the one or the other.
    """

    transfer: Tensor
    noise: Tensor
    size: int
    photographed: Photographed | None = None
    in_turn: bool = False

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold of it, rounded to six digits."""
        values = {name: getattr(self, name).tolist() for name in ("transfer", "noise")}
        found: dict[str, Any] = {
            name: [[float(f"{v:.6g}") for v in row] for row in rows] for name, rows in values.items()
        }
        found |= {"size": self.size, "photographed": self.photographed and asdict(self.photographed)}
        return found | ({"in_turn": True} if self.in_turn else {})  # the rest is as it was: what has begun goes on

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FolderDamage:
        """The inverse of `as_json`. Raises ValueError if `values` are not of one."""
        try:
            parts = [torch.tensor(values[name], dtype=torch.float64) for name in ("transfer", "noise")]
            size = int(values["size"])
            found = values.get("photographed")
            family = Photographed(**{name: float(value) for name, value in found.items()}) if found else None
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            parts, size, family = [], 0, None
        expected = (3, len(ring_middles(size))) if size >= MIN_SIZE else ()
        if not parts or any(part.shape != expected or not part.isfinite().all() for part in parts):
            raise ValueError("holds no estimate of a folder's damage")
        in_turn = family is not None and values.get("in_turn") is True
        return cls(transfer=parts[0], noise=parts[1], size=size, photographed=family, in_turn=in_turn)

    def transfer_at(self, frequency: Tensor) -> Tensor:
        """|H| of the lightness at `frequency` (any shape), in cycles a pixel."""
        return at_frequencies(frequency, self.transfer[:1], self.size)[0]

    @property
    def noise_level(self) -> float:
        """Standard deviation of the noise of the lightness."""
        grid = at_frequencies(radius(self.size), self.noise[:1], self.size)
        return float(grid.mean().clamp_min(0).sqrt())

    def kept_to(self, share: float = 0.5) -> float:
        """The frequency, in cycles a pixel, from which on less than `share` of a sharp face's amplitude is left."""
        low = (self.transfer[0] < share).nonzero()
        return float(ring_middles(self.size)[low[0, 0]]) if len(low) else 0.5


@torch.no_grad()
def estimate_damage(lq: Tensor, restored: Tensor, sharp: Tensor) -> FolderDamage:
    """The damage of the faces `lq`, by what the base makes of them and by what sharp faces are like.

    lq, restored: (N, 3, S, S) RGB in [0, 1], the same faces. sharp: (M, 3, S, S), clean faces of any people, aligned
    alike. A dozen of each are enough for a rough answer, some fifty for a good one. Raises ValueError below 16 pixels.
    """
    size = lq.shape[-1]
    if size < MIN_SIZE:
        raise ValueError(f"faces of {size} pixels are too small to estimate their damage; {MIN_SIZE} are needed")
    seen = to_opponent(lq)
    power, of_sharp = (over_rings(spectra(x).abs().square()).clamp_min(TINY) for x in (seen, to_opponent(sharp)))
    noise = with_low_noise((1 - coherence(seen, to_opponent(restored))) * power, power, size)
    contrast = power[0, :PLAIN_RINGS].sum() / of_sharp[0, :PLAIN_RINGS].sum()  # less of it is not blur
    return FolderDamage(plausible(((power - noise) / (of_sharp * contrast)).sqrt()), noise, size)


def coherence(channels: Tensor, restored: Tensor) -> Tensor:
    """(C, R) in [0, 1]: the part of the power of `channels` (B, C, S, S) that `restored`, the same faces, shows too."""
    a, b = spectra(channels), spectra(restored)
    cross = over_rings((a * b.conj()).real).clamp_min(0)
    powers = [over_rings(x.abs().square()).clamp_min(TINY) for x in (a, b)]
    return (cross.square() / (powers[0] * powers[1])).clamp(0, 1)


def with_low_noise(noise: Tensor, power: Tensor, size: int) -> Tensor:
    """`noise` (C, R), at the lowest frequencies no weaker than in the octave above; `power`: of the faces."""
    frequency = ring_middles(size) * size / 128
    low = frequency < min(LOW, float(frequency[-1]))  # of very small faces, all but the finest ring
    above = noise[:, ~low & (frequency < 2 * LOW)].mean(1, keepdim=True)
    least = torch.minimum(above, MAX_NOISE * power)
    return torch.where(low, torch.maximum(noise, least), noise)


def plausible(transfer: Tensor) -> Tensor:
    """`transfer` (3, R) without what no damage does: nothing is amplified, what grows again towards fine detail is
    noise that was taken for a face, and colour is no sharper than lightness."""
    transfer = torch.cat([torch.ones_like(transfer[:, :1]), transfer[:, 1:]], 1)  # the coarsest are kept whole
    falling = torch.cummin(transfer.clamp(0, 1), 1).values
    return torch.cat([falling[:1], torch.minimum(falling[1:], falling[:1])])


@dataclass(frozen=True, eq=False)
class KnownDamage:
    """A folder's damage, ready to be put on sharp faces: (3, S, S) RGB in [0, 1] each.

    transfer: (3, R) as in `FolderDamage`. explained: (3, R), what of a donor's restored face is in the damaged one; the
    remainder is its rest. gain: (3, R), that gives the rests of all donors the power of the folder's noise: what the
    restored faces hold of the noise would be missing from it.
    """

    transfer: Tensor
    explained: Tensor
    gain: Tensor

    @classmethod
    def of(cls, damage: FolderDamage, lq: Tensor, restored: Tensor) -> KnownDamage:
        """lq, restored: (N, 3, S, S), faces that will be donors, and what is to be told apart from their noise: what
        the base makes of them, or better their pseudo targets."""
        a, b = to_opponent(lq), to_opponent(restored)
        cross = over_rings((spectra(a) * spectra(b).conj()).real)
        explained = (cross / over_rings(spectra(b).abs().square()).clamp_min(TINY)).clamp(0, MAX_EXPLAINED)
        power = over_rings(spectra(a - with_response(b, explained)).abs().square())
        gain = (damage.noise / power.clamp_min(TINY)).sqrt().clamp(1, MAX_GAIN)
        return cls(damage.transfer, explained, gain)

    def put_on(self, face: Tensor, donor_lq: Tensor, donor_restored: Tensor, *key: int | str) -> Tensor:
        """`face` as it would look in this folder, with the noise and pattern of one of its faces, the donor.

        key: without effect, since the donor's noise is no matter of chance.
        """
        clean, seen, explained = to_opponent(torch.stack([face, donor_lq, donor_restored])).split(1)
        rest = with_response(seen - with_response(explained, self.explained), self.gain)
        rest += (seen - explained - rest).mean((2, 3), keepdim=True)  # the mean is no noise, and is not made stronger
        return to_rgb(with_response(clean, self.transfer) + rest)[0].clamp(0, 1).float()


@dataclass(frozen=True)
class InTurn:
    """Two models of a folder's damage, of which a sharp face is given the one or the other, by chance."""

    known: KnownDamage
    photographed: Photographed

    def put_on(self, face: Tensor, donor_lq: Tensor, donor_restored: Tensor, *key: int | str) -> Tensor:
        """`face` under one of the two, see there. key: of which it is, and of its noise."""
        heads = bool(torch.rand(1, generator=keyed_generator("which of two damages", *key)) < 0.5)
        return (self.known if heads else self.photographed).put_on(face, donor_lq, donor_restored, *key)
