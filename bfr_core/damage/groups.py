"""Which faces of a folder share a damage: descriptions of damage are clustered, and each face is assigned to a cluster.

A face's damage is described by the power spectra of the damaged face and of what the base restorer removes from it.
What counts as a difference is learned from the folder itself: its restored faces are damaged in known ways, and
directions in which descriptions vary under one damage weigh less. Two groups are told apart where the shortest distance
between them clearly exceeds the distance between neighbours within each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..randomness import keyed_generator
from .spectra import OPPONENT
from .synthetic import degrade

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import ClusterNode

MIN_FACES = 15  # faces of a group; fewer are too few to adapt to
GAP = 1.25  # distance between two groups over that of neighbours within them, from which they are kept apart
BEYOND = 2.0  # distance from a group's centre over its own faces' median distance, up to which a face belongs to it
KNOWN = ("sensor", "halftone", "motion_jpeg", "blind")  # damages that are put on the folder's restored faces
KNOWN_FACES = 32  # how many faces of the folder get them
SHRINK = 0.3  # shrinkage of the correlation matrix towards uncorrelated features
BANDS = torch.linspace(0.03, 0.5, 11)  # cycles a pixel
AXES = ((0.1, 0.3), (0.3, 0.5))  # bands in which lines along the axes are looked for: blocks, mosaics
FLOOR = 1e-6  # power that rounding to 8 bits adds to a spectrum
FEATURES = 2 * 3 * (len(BANDS) + len(AXES))  # the length D of a description
Restore = Callable[[Tensor], Tensor]


@torch.no_grad()
def describe(lq: Tensor, restored: Tensor) -> Tensor:
    """(B, D) descriptions of the damage of faces `lq`; restored: what the base makes of them.

    Both are (B, 3, S, S) RGB in [0, 1]. D is `FEATURES`; the result is on the CPU.
    """
    both = torch.cat([lq, lq - restored], 1).float().unflatten(1, (2, 3))
    channels = torch.einsum("ij,bpjhw->bpihw", torch.tensor(OPPONENT, device=lq.device), both).flatten(1, 2)
    side = lq.shape[-1]
    window = torch.hann_window(side, periodic=False, device=lq.device)
    window = window[:, None] * window
    spectrum = torch.fft.fft2((channels - channels.mean((2, 3), keepdim=True)) * window).abs().square()
    spectrum = spectrum / window.square().sum() + FLOOR
    f = torch.fft.fftfreq(side, device=lq.device)
    radius = (f[:, None].square() + f.square()).sqrt()
    along = torch.minimum(f[:, None].abs(), f.abs()) < 0.02

    def mean(low: float, high: float, where: Tensor) -> Tensor:
        return spectrum[..., (radius >= low) & (radius < high) & where].mean(-1).log()

    everywhere, bounds = torch.ones_like(along), [*BANDS.tolist(), 1.0]
    parts = [mean(low, high, everywhere) for low, high in pairwise(bounds)]
    parts += [mean(*band, along) - mean(*band, ~along) for band in AXES]
    return torch.stack(parts, -1).flatten(1).cpu()


def known_descriptions(restored: Tensor, base: Restore, seed: int = 0) -> Tensor:
    """(len(KNOWN), B, D) descriptions of `restored` faces (B, 3, S, S) under known damages.

    base: the restorer, (B, 3, S, S) -> the same.
    """
    found = []
    for kind in KNOWN:
        lq = degrade(restored.cpu(), kind, keyed_generator(seed, "known damage", kind)).lq
        found.append(describe(lq, base(lq).cpu()))
    return torch.stack(found)


def units_of(known: Tensor) -> Tensor:
    """The (D, D) matrix that whitens descriptions: times it, they vary alike in all directions under one damage.

    known: what `known_descriptions` returns, of several damages and faces.
    """
    within = (known - known.mean(1, keepdim=True)).flatten(0, 1).double()
    spread = within.std(0).clamp_min(1e-6)
    correlation = (within / spread).T @ (within / spread) / max(1, len(within) - 1)
    correlation = torch.lerp(correlation, torch.eye(len(spread), dtype=torch.float64), SHRINK)
    whiten = torch.linalg.inv(torch.linalg.cholesky(correlation)).T / len(spread) ** 0.5
    return (whiten / spread[:, None]).float()


def find_groups(points: Tensor, least: int = MIN_FACES) -> list[list[int]]:
    """Groups of `points` (N, D), whitened by `units_of`: lists of at least `least` indices, the largest first.

    There is one group if no two differ. Single linkage: the longest links are cut, one after the other. A piece that is
    too small for a group is dropped; two pieces that are large enough are two groups if the link between them is at
    least GAP times the median link within the looser of them.
    """
    from scipy.cluster.hierarchy import linkage, to_tree

    if len(points) < 2 * least:
        return [list(range(len(points)))]

    def parts(whole: ClusterNode) -> list[list[int]]:
        piece = whole
        while piece.count >= 2 * least:
            smaller, larger = sorted((piece.left, piece.right), key=lambda part: part.count)
            if smaller.count < least:
                piece = larger
            elif piece.dist >= GAP * max(_median_link(smaller), _median_link(larger)):
                return parts(smaller) + parts(larger)
            else:
                break
        return [sorted(whole.pre_order())]

    groups = parts(to_tree(linkage(points.double().cpu().numpy(), "single")))
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def _median_link(piece: ClusterNode) -> float:
    """The median length of the links within a piece of the tree, but for those to copies; 0 for a single point."""
    lengths, todo = [], [piece]
    while todo:
        if not (part := todo.pop()).is_leaf():
            lengths += [part.dist] if part.dist else []
            todo += [part.left, part.right]
    return statistics.median_low(lengths) if lengths else 0.0


@dataclass(frozen=True, eq=False)
class DamageGroups:
    """Groups of damages. units: the (D, D) matrix of `units_of`. centres: (G, D), the centre of each group, whitened by
    it. typical: (G,), the median distance of a group's faces from its centre."""

    units: Tensor
    centres: Tensor
    typical: Tensor

    @classmethod
    def of(cls, descriptions: Tensor, units: Tensor, least: int = MIN_FACES) -> DamageGroups:
        """The groups among `descriptions` (N, D)."""
        points = descriptions @ units
        groups = [points[group] for group in find_groups(points, least)]
        centres = torch.stack([group.mean(0) for group in groups])
        away = [(group - centre).norm(dim=1).median() for group, centre in zip(groups, centres, strict=True)]
        return cls(units, centres, torch.stack(away))

    def __len__(self) -> int:
        return len(self.centres)

    def route(self, descriptions: Tensor) -> list[int]:
        """The group of each of `descriptions` (B, D), or -1 if it belongs to none."""
        away = torch.cdist(descriptions @ self.units, self.centres)
        nearest = away.argmin(1)
        found = torch.where(away.gather(1, nearest[:, None])[:, 0] <= BEYOND * self.typical[nearest], nearest, -1)
        return found.tolist()


def one_damage(groups: DamageGroups) -> bool:
    """Whether only one damage was found, so that one adaptation serves all faces."""
    return len(groups) == 1
