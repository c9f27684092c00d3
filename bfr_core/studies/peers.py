"""Restorers against one another, on the same damaged faces: which one is nearest to the clean face and the person.

The damage is the ordinary one of the literature, which every published restorer was trained for. All restorers get the
same pixels, enlarged to their own sizes, and are measured at one size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .. import metrics
from ..metrics.intervals import Interval
from ..pixels import resized
from ..reports.html import Table
from ..restorers import Restorer
from .benchmark import damaged, restored_by
from .evaluate import MEASURES, face_measures, format_interval, summarise

SIZE = 256  # pixels a side at which faces are damaged and measured
COMPARED = ("psnr", "gmsd", "detail_correlation", "feature_distance", "likeness_distance", "landmarks")
SHOWN = 6  # faces of a picture
DAMAGED = "damaged"


@dataclass(frozen=True, eq=False)
class Peer:
    """What one restorer made of the faces: key of `MEASURES` -> mean and interval, and some of the faces.

    kid: of all faces, against the clean ones. shown: (n, 3, SIZE, SIZE) RGB in [0, 1].
    """

    name: str
    values: dict[str, Interval]
    kid: float
    shown: Tensor


def compare_restorers(
    clean: Tensor, restorers: Mapping[str, Callable[[], Restorer]], seed: int = 0, kind: str = "blind"
) -> list[Peer]:
    """The damaged faces, and after them what each restorer makes of these, in the order of `restorers`.

    clean: (N, 3, SIZE, SIZE) RGB in [0, 1], aligned; two faces at least. restorers: by name what loads them; each is
    loaded when it is its turn, so that only one is in memory. kind: of damage, see `damage.synthetic.DAMAGES`; seed: of
    its random draws. Raises ValueError for fewer faces or another size.
    """
    if len(clean) < 2 or clean.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"faces of the shape {tuple(clean.shape)}; at least 2 of 3 x {SIZE} x {SIZE} are needed")
    lq = damaged(clean, kind, seed, "peers")
    of_clean = metrics.kid_features(clean)

    def measured(name: str, faces: Tensor) -> Peer:
        values = summarise(face_measures(faces, clean, COMPARED))
        return Peer(name, values, metrics.paired_kid(metrics.kid_features(faces), of_clean)[0], faces[:SHOWN].clone())

    found = [measured(DAMAGED, lq)]
    for name, load in restorers.items():
        restorer = load()
        restored = restored_by(restorer, resized(lq, restorer.size).clamp(0, 1))
        found.append(measured(name, resized(restored, SIZE).clamp(0, 1)))
    return found


def table_of(peers: Sequence[Peer], faces: int) -> Table:
    """The measures of all, a row each."""
    keys = [key for key in COMPARED if all(key in peer.values for peer in peers)]
    rows = [
        [peer.name, *(format_interval(peer.values[k], MEASURES[k].decimals) for k in keys), f"{peer.kid:.3f}"]
        for peer in peers
    ]
    note = f"{faces} faces under the ordinary blind damage of the literature, measured at {SIZE} x {SIZE} pixels"
    return Table("Restorers against one another", note, ["", *(MEASURES[k].title for k in keys), "KID"], rows)


def as_markdown(table: Table) -> str:
    """The table for a document."""
    lines = [list(table.columns), ["---"] * len(table.columns), *(list(row) for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
