"""Likeness over a folder: are its faces, by base and by adapted restorer, still the people in the photos?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..faces.likeness import OTHER, LikenessConfig
from ..metrics.intervals import bootstrap_difference
from ..restoration.same_person import FaceLikeness, LikenessMeter, counted, counts_of
from ..restorers import Restorer
from ..spread import evenly
from .faces import FaceSet, StageCallback

MAX_FACES = 128  # faces of a folder that are measured
BATCH = 8
EXPLAINED = 0.05  # chance from which on so many warnings are taken for more than false ones
NOT_MEASURED = "Likeness was not measured: look yourself whether each face is still the person."


@dataclass(frozen=True)
class FolderLikeness:
    """What is said of each face as base and adapted restorer leave it, by name. of: faces there are in the folder."""

    base: dict[str, FaceLikeness] = field(default_factory=dict)
    adapted: dict[str, FaceLikeness] = field(default_factory=dict)
    of: int = 0

    @property
    def told(self) -> list[str]:
        """Names of the faces of which both restorations could be judged, in their order."""
        both = zip(self.base.items(), self.adapted.values(), strict=True)
        return [name for (name, one), other in both if None not in (one.distance, other.distance)]

    def distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the faces that are `told`, like with like, by base and by adapted restorer."""
        pairs = [(self.base[name].distance, self.adapted[name].distance) for name in self.told]
        base, adapted = np.array(pairs, np.float64).reshape(-1, 2).T
        return base, adapted

    @property
    def said(self) -> str:
        """In a few sentences for a layman; "" if nothing was measured."""
        if not self.adapted:
            return ""
        said = (
            f"Adapted restorer, {counted([*self.adapted.values()])}. Base restorer, {counted([*self.base.values()])}."
        )
        if told := len(self.told):
            base, adapted = self.distances()
            change = bootstrap_difference(adapted, base)
            details = f"{change.mean:+.3f}"
            if told > 1:  # one face tells neither an interval nor a spread
                low, high = np.quantile(adapted, (0.05, 0.95))
                details += (
                    f", {change.low:+.3f} to {change.high:+.3f}; nine of ten lie between {low:.2f} and {high:.2f}"
                )
            said += (
                f" Distance to the photo, like with like, of {told} face{'s' * (told > 1)}: {base.mean():.2f} by the "
                f"base, {adapted.mean():.2f} by the adapted restorer ({details})."
            )
        return said + (f" Measured on {len(self.adapted)} of {self.of} faces." if len(self.adapted) < self.of else "")

    @property
    def unlike(self) -> list[str]:
        """Names of the faces that the adapted restorer makes another person of."""
        return [name for name, one in self.adapted.items() if one.word == OTHER]

    def renamed(self, names: Mapping[str, str]) -> FolderLikeness:
        """The same, each face under the name that `names` gives it."""
        base, adapted = ({names[name]: one for name, one in said.items()} for said in (self.base, self.adapted))
        return FolderLikeness(base, adapted, self.of)

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        faces = {name: {"base": self.base[name].record(), "adapted": self.adapted[name].record()} for name in self.base}
        counts = {"base": counts_of([*self.base.values()]), "adapted": counts_of([*self.adapted.values()])}
        return counts | {"said": self.said, "unlike": self.unlike, "of": self.of, "faces": faces}


def measure_likeness(
    faces: FaceSet,
    base: Restorer,
    adapted: Restorer,
    names: Sequence[str] | None = None,
    callback: StageCallback | None = None,
) -> FolderLikeness:
    """The likeness of the faces of these names, of all if left out, but of `MAX_FACES` at most, evenly chosen."""
    names = list(faces.names if names is None else names)
    chosen = [names[i] for i in evenly(len(names), MAX_FACES)]
    if not chosen:
        return FolderLikeness()
    meter = LikenessMeter(base.device)
    found = FolderLikeness(of=len(names))
    for step, (batch, lq) in enumerate(faces.batches(BATCH, chosen)):
        by_base = base.restore_without_colour(lq)
        helped = by_base if base.sha256 == meter.helper_sha256 else None
        judged = meter.judge(lq, by_base, adapted.restore_without_colour(lq), helped=helped)
        for said, words in zip((found.base, found.adapted), judged, strict=True):
            said.update(zip(batch, words, strict=True))
        if callback:
            callback("likeness", min((step + 1) * BATCH, len(chosen)), len(chosen), None)
    return found


def likeness_vetoes(base: Sequence[FaceLikeness], adapted: Sequence[FaceLikeness]) -> list[str]:
    """What speaks against an adapted restorer: it makes other people of faces that the base does not, of more of them
    than false warnings explain. base, adapted: what is said of the same faces."""
    from scipy.stats import binom

    pairs = [(one, other) for one, other in zip(base, adapted, strict=True) if other.distance is not None]
    lost = sum(other.word == OTHER and one.word != OTHER for one, other in pairs)
    chance = float(binom.sf(lost - 1, max(1, len(pairs)), LikenessConfig().error_rate)) if lost else 1.0
    if chance >= EXPLAINED:
        return []
    return [f"the faces it restores: {lost} of {len(pairs)} no longer look like the same person"]
