"""Is each restored face still the person? What is said of it, and what is done about it.

The photo is compared with the restored face that has the photo's damage on it again. The blur is the one between the
two; the noise is measured with the embedded restorer's help, whichever restorer is judged. Damage makes all faces
alike: the nearer a damaged face lies to the average one, the less it says of who it is. The limits were measured on
known people under damage that leaves as much, see `tools/likeness_limits.py`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..damage.again import FaceDamage, blur_between, noise_between
from ..faces.align import Face
from ..faces.detect import load_detector
from ..faces.landmarks import LandmarkNet, load_landmark_net, read_aligned
from ..faces.likeness import (
    CANNOT_TELL,
    MAY_BE,
    OTHER,
    SAME,
    SAMPLES,
    Calibration,
    LikenessConfig,
    judge,
    likeness_distance,
)
from ..faces.people import Person, person_in, read_person
from ..faces.recognise import RecogniserNet, embed_faces, load_recogniser
from ..files.photos import printable
from ..files.tensors import sha256_of
from ..metrics.intervals import Interval
from ..pixels import resized
from ..randomness import keyed_generator
from ..restorers import Restorer, load_restorer
from ..restorers.load import EMBEDDED_SMALL
from .reference import LIMIT as REFERENCE_LIMIT
from .reference import STRENGTH, Lender, read_references

LIMITS = Path(__file__).parents[1] / "embedded" / "likeness_limits.json"
SIDE = 128  # pixels of the faces that are compared; a chip of the recogniser shows hardly more
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the restored face that "blend" tries, the largest first
LEFT_ALONE = "left alone"
WORDS = (SAME, MAY_BE, OTHER, CANNOT_TELL, LEFT_ALONE)
ACTIONS = ("off", "warn", "keep", "blend")
READABLE = 0.5  # score of a damaged face from which it is plainly a face
PERSON_LIMIT = 0.55  # distance up to which a restored face may be that of a sharp photo
FindFaces = Callable[[Tensor], list[Face]]


class Measured(NamedTuple):
    """Of B restored faces. distance: (B,) to the photo, like with like. photos: (B, D) embeddings of the photos."""

    distance: Tensor
    photos: Tensor


@dataclass(frozen=True)
class FaceLikeness:
    """What is said of one restored face.

    word: one of `WORDS`; `LEFT_ALONE` of a face that was judged, but of which nothing was put on the photo because that
    is no worse, and which therefore has no distance. distance: to the photo, like with like. same, other: up to the
    first it looks like the same person, beyond the second no longer. false_warnings, missed: the share of good
    restorations, and of other people, that such a limit judges wrongly. All four are None where nothing can be told.
    share: of the restored face that was put on the photo, 0 where the photo was kept. lent: how strongly detail of a
    reference was mixed in.
    """

    word: str
    distance: float | None = None
    same: float | None = None
    other: float | None = None
    false_warnings: float | None = None
    missed: float | None = None
    share: float = 1.0
    lent: float = 0.0

    @property
    def said(self) -> str:
        """In words: what it looks like, how sure that is, and what was done."""
        lent = f"; detail of the reference is lent ({self.lent:.0%})" if self.lent else ""
        if self.other is None or self.distance is None:
            return f"likeness: {self.word}{lent}"
        wrong = f"wrong of {self.false_warnings:.0%} of good faces, misses {self.missed:.0%} of other people"
        done = "" if self.share == 1 else "; the photo is kept" if not self.share else f"; blended to {self.share:.0%}"
        done += lent
        return f"likeness: {self.word} ({self.distance:.2f}, limit {self.other:.2f}: {wrong}){done}"

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: Any) -> FaceLikeness:
        """What a `record` says; whatever is no such record says that nothing can be told."""
        if not isinstance(record, dict) or record.get("word") not in WORDS:
            return cls(CANNOT_TELL)
        numbers = {name: record.get(name) for name in cls.__dataclass_fields__ if name != "word"}
        known = {name: float(n) for name, n in numbers.items() if isinstance(n, int | float)}
        return cls(record["word"], **known)


@dataclass(frozen=True)
class Limits:
    """Calibrations by what the damage has left of a face. average: (D,) embedding of the average face.

    upto: ascending distances from the average, one less than there are calibrations: the first serves damaged faces
    that are nearer than the first of these, and so on.
    """

    average: Tensor
    upto: tuple[float, ...]
    calibrations: tuple[Calibration, ...]

    def at(self, photo: Tensor) -> Calibration:
        """The calibration for a damaged face with this embedding, (D,)."""
        distance = float((photo - self.average).norm())
        return self.calibrations[sum(distance >= edge for edge in self.upto)]


def load_limits(path: Path = LIMITS) -> Limits:
    """The limits that ship. Raises FileNotFoundError if the file is missing, ValueError if it holds something else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the limits of likeness are missing; reinstall BFR Adapt")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        classes = tuple(_calibration(one) for one in kept["classes"])
        return Limits(torch.tensor(kept["average"]), tuple(map(float, kept["upto"])), classes)
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{path}: not the limits of likeness; reinstall BFR Adapt") from None


def _calibration(kept: dict[str, Any]) -> Calibration:
    same, other = (math.nan if kept[name] is None else float(kept[name]) for name in ("same", "other"))
    return Calibration(
        same=same,
        other=other,
        false_warnings=Interval(*kept["false_warnings"]),
        missed=Interval(*kept["missed"]),
        comforted=Interval(*kept["comforted"]),
        false_comfort=Interval(*kept["false_comfort"]),
        genuine=int(kept["genuine"]),
        strangers=int(kept["strangers"]),
        reason=str(kept["reason"]),
        config=LikenessConfig(**kept["config"]),
    )


# ---------------------------------------------------------------- the measure


class LikenessMeter:
    """Compares restored faces with their photos. Each network is loaded when it is needed first.

    device: where they run. Whatever needs them raises FileNotFoundError or ValueError if an embedded file is missing or
    damaged.
    """

    def __init__(self, device: torch.device | str = "cpu", limits: Limits | None = None) -> None:
        self.device, self._limits = device, limits

    @cached_property
    def faces(self) -> LandmarkNet:
        """The network that says whether a damaged face is plainly one."""
        return load_landmark_net(device=self.device)

    @cached_property
    def net(self) -> RecogniserNet:
        """The recogniser."""
        return load_recogniser(device=self.device)

    @cached_property
    def helper(self) -> Restorer:
        """The small embedded restorer, by whose help the noise is measured, and the limits were."""
        return load_restorer(EMBEDDED_SMALL).to(self.device)

    @cached_property
    def helper_sha256(self) -> str:
        """SHA-256 of the helper's file."""
        return sha256_of(EMBEDDED_SMALL)

    @cached_property
    def limits(self) -> Limits:
        """What distances mean."""
        return self._limits or load_limits()

    @torch.no_grad()
    def readable(self, lq: Tensor) -> Tensor:
        """Whether damaged faces (B, 3, S, S) in [0, 1] are plainly faces: bool, (B,)."""
        return read_aligned(self.faces, at_side(lq)).score.cpu() > READABLE

    def noise_of(self, lq: Tensor, helped: Tensor | None = None) -> Tensor:
        """The noise of damaged faces, see `damage.again`: (B, 3, S, S) in [0, 1] -> (B, 3, P, P).

        helped: what the helper makes of them, where that is there already.
        """
        lq = at_side(lq)
        helped = self.helper.restore_each(lq) if helped is None else at_side(helped)
        return torch.stack([noise_between(*pair) for pair in zip(lq, helped, strict=True)])

    def says_who(self, lq: Tensor) -> list[bool]:
        """Whether damaged faces (B, 3, S, S) in [0, 1] are plainly faces, and not so damaged that all are alike."""
        photos = embed_faces(self.net, at_side(lq))
        return [bool(r) and self.limits.at(p).tells for r, p in zip(self.readable(lq), photos, strict=True)]

    @torch.no_grad()
    def measure(self, lq: Tensor, restored: Tensor, noise: Tensor) -> Measured:
        """lq, restored: (B, 3, S, S) RGB in [0, 1], crops cut by the same points; their sizes may differ.

        noise: by `noise_of`.
        """
        lq, restored, again = at_side(lq), at_side(restored), []
        for photo, new, own in zip(lq, restored, noise, strict=True):
            generator = keyed_generator(0, "likeness")  # the same for each: what is said of a face is its own
            again.append(FaceDamage(blur_between(photo, new), own).on(new, generator, SAMPLES))
        photos, drawn = embed_faces(self.net, torch.cat([lq, *again])).split([len(lq), SAMPLES * len(lq)])
        return Measured(likeness_distance(photos, drawn.view(len(lq), SAMPLES, -1).mean(1)), photos)

    def judge(self, lq: Tensor, *restored: Tensor, helped: Tensor | None = None) -> list[list[FaceLikeness]]:
        """What is said of each face of each of the restorations `restored` of the damaged faces `lq`.

        All (B, 3, S, S) RGB in [0, 1]; helped: see `noise_of`.
        """
        said = [[FaceLikeness(CANNOT_TELL)] * len(lq) for _ in restored]
        places = self.readable(lq).nonzero().flatten().tolist()
        if places:
            noise = self.noise_of(lq[places], None if helped is None else helped[places])
            for words, faces in zip(said, restored, strict=True):
                measured = self.measure(lq[places], faces[places], noise)
                for place, distance, photo in zip(places, *measured, strict=True):
                    words[place] = likeness_of(float(distance), self.limits.at(photo))
        return said


def likeness_of(distance: float, limits: Calibration) -> FaceLikeness:
    """What a distance, like with like, means."""
    (word,) = judge([distance], limits)
    if word == CANNOT_TELL:
        return FaceLikeness(word)
    numbers = (distance, limits.same, limits.other, limits.false_warnings.mean, limits.missed.mean)
    return FaceLikeness(word, *(round(float(number), 4) for number in numbers))


def at_side(faces: Tensor) -> Tensor:
    """Faces (B, 3, S, S) at the size that they are compared at, on the CPU."""
    return resized(faces.detach().float().cpu(), SIDE).clamp(0, 1)


# ---------------------------------------------------------------- what is done


@dataclass(frozen=True)
class Acted:
    """What became of the faces of a photo. kept: places of those that are pasted. restored: of all, as they are pasted.

    likeness: of those that were judged. judged: their places. reasons: why others are left alone, or nothing was lent
    to any.
    """

    kept: list[int]
    restored: list[Tensor | str]
    likeness: tuple[FaceLikeness, ...]
    judged: list[int]
    reasons: list[str]


@dataclass(frozen=True, eq=False)
class LikenessCheck:
    """Judges restored crops, and acts as set.

    action: one of `ACTIONS`; a face that is lent detail is judged in any case. sha256: of the restorer whose faces are
    judged. person: whose faces alone are restored, if that was asked for, with the distance up to which a restored face
    is theirs. lender: of references' detail.
    """

    meter: LikenessMeter
    action: str
    sha256: str = ""
    person: Person | None = None
    person_limit: float = PERSON_LIMIT
    lender: Lender | None = None

    def __call__(self, crops: Sequence[Tensor], restored: Sequence[Tensor | str], widths: Sequence[float]) -> Acted:
        """crops, restored: as in `restore_crops`. widths: of the faces in the photo, for what is said."""
        kept, pasted, likeness, judged, reasons = [], list(restored), [], [], []
        lent, reason = self.lender(restored, widths) if self.lender else ({}, "")
        reasons += [reason] if reason else []
        for i, (crop, new) in enumerate(zip(crops, restored, strict=True)):
            if isinstance(new, Tensor):
                if reason := self._somebody_else(new):
                    reasons.append(f"a face {widths[i]:.0f} pixels wide is left alone: {reason}")
                    continue
                detailed = self._with_lent(crop, new, *lent[i]) if i in lent else None
                if i in lent and not detailed:
                    reasons.append(f"a face {widths[i]:.0f} pixels wide is lent no detail: with it, it {OTHER}")
                said, pasted[i] = detailed or self._acted(crop, new)
                if said:
                    likeness.append(said)
                    judged.append(i)
                if said and not said.share:
                    reasons.append(f"a face {widths[i]:.0f} pixels wide is left alone: {said.said}")
                    continue
            kept.append(i)
        return Acted(kept, pasted, tuple(likeness), judged, reasons)

    def _somebody_else(self, new: Tensor) -> str:
        """Why a restored face is not that of the person who is looked for; "" if it may be."""
        if self.person is None:
            return ""
        distance = float(self.person.distances(embed_faces(self.meter.net, at_side(new[None])))[0])
        if distance <= self.person_limit:
            return ""
        name = printable(self.person.name)
        return f"it is not like the person in {name} (distance {distance:.2f}, limit {self.person_limit:.2f})"

    def _with_lent(self, crop: Tensor, own: Tensor, new: Tensor, strength: float) -> tuple[FaceLikeness, Tensor] | None:
        """What is said of `new`, the restored face `own` with lent detail; None if that makes another person of it."""
        ((said,),) = self.meter.judge(crop[None].cpu(), new[None].cpu(), helped=self._helped(own))
        return None if said.word == OTHER else (replace(said, lent=strength), new)

    def _helped(self, own: Tensor) -> Tensor | None:
        """What the restorer made of a face, (1, 3, S, S), if it is the one by whose help the noise is measured."""
        return own[None].cpu() if self.sha256 and self.sha256 == self.meter.helper_sha256 else None

    def _acted(self, crop: Tensor, new: Tensor) -> tuple[FaceLikeness | None, Tensor]:
        """What is said of a restored face, and what is pasted of it."""
        if self.action == "off":
            return None, new
        lq, face = crop[None].cpu(), new[None].cpu()
        helped = self._helped(new)
        ((said,),) = self.meter.judge(lq, face, helped=helped)
        if said.word == OTHER and self.action != "warn":
            said = self._milder(lq, face, said, helped)
            new = torch.lerp(lq[0], face[0], said.share).to(new)
        return said, new

    def _milder(self, lq: Tensor, face: Tensor, said: FaceLikeness, helped: Tensor | None) -> FaceLikeness:
        """The most of the restored face that is not another person's, never less than half; else none of it."""
        for share in SHARES if self.action == "blend" else ():
            ((blended,),) = self.meter.judge(lq, torch.lerp(lq, face, share), helped=helped)
            if blended.word in (SAME, MAY_BE):
                return replace(blended, share=share)
        return replace(said, share=0.0)


def load_check(
    action: str,
    restorer: Restorer,
    find: FindFaces | None = None,
    person: Path | Tensor | None = None,
    limit: float = PERSON_LIMIT,
    references: Sequence[Path | Tensor] = (),
    strength: float = STRENGTH,
    reference_limit: float = REFERENCE_LIMIT,
    name: str = "photo",
) -> LikenessCheck | None:
    """The check that the settings ask for; None if nothing is to be looked at.

    action: the setting `likeness`. restorer: whose faces are judged. find: finds the face of the person who is looked
    for. person: a photo's file, or its pixels (3, H, W) in [0, 1]. limit: see `LikenessCheck.person_limit`.
    references: good photos of one person, of either form. strength, reference_limit: see `reference.Lender`.
    name: of the photo of which the pixels are given, for what is said.
    Raises ValueError if a photo of the person cannot be read or has no face.
    """
    if action == "off" and person is None and not references:
        return None
    meter = LikenessMeter(restorer.device)
    known = lender = None
    if person is not None or references:
        find = find or load_detector(device=restorer.device)
    if person is not None and find:
        known = (
            person_in(person, find, meter.net, name)
            if isinstance(person, Tensor)
            else read_person(person, find, meter.net)
        )
    if references and find:
        found = read_references(references, find, meter.net, restorer.size)
        lender = Lender(found, meter.net, strength, reference_limit)
    return LikenessCheck(meter, action, restorer.sha256, known, limit, lender)


# ---------------------------------------------------------------- words


def counts_of(likeness: Sequence[FaceLikeness]) -> dict[str, int]:
    """How many faces each word was said of, in the order of `WORDS`, without those of none."""
    counts = Counter(one.word for one in likeness)
    return {word: counts[word] for word in WORDS if counts[word]}


def with_left_alone(
    likeness: Sequence[FaceLikeness], judged: Sequence[object], made: Sequence[object]
) -> tuple[FaceLikeness, ...]:
    """`likeness` of the faces `judged`, where of those that are not among `made` it is said that they are left alone.

    Those that were left alone for the sake of likeness keep their word.
    """
    return tuple(
        one if not one.share or any(face is other for other in made) else FaceLikeness(LEFT_ALONE, share=0.0)
        for one, face in zip(likeness, judged, strict=True)
    )


def counted(likeness: Sequence[FaceLikeness]) -> str:
    """ "3 faces: looks like the same person; 1 face: cannot tell"; "" without faces."""
    named = counts_of(likeness).items()
    return "; ".join(f"{count} face{'' if count == 1 else 's'}: {word}" for word, count in named)


def warnings_of(likeness: Sequence[FaceLikeness]) -> list[str]:
    """A line for each face that no longer looks like the same person, or did not before something was done."""
    return [one.said for one in likeness if one.word == OTHER or (one.share < 1 and one.word != LEFT_ALONE)]
