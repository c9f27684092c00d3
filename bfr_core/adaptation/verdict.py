"""The verdict: whether tuning helped, judged without clean copies on faces that neither restorer was tuned on.

Two tests with known answers decide. In the first, the damage of each face, as its pseudo target shows it, is put on the
pseudo target of another face. A restorer that learned blurred, shifted or foreign targets would pass this test, too. In
the second, the damage that the tuned restorer sees in each face is put on sharp faces that come neither from the folder
nor from the prior's targets, so a restorer fails that takes something else for damage, or that blurs. Even if both
tests are passed, the tuned restorer is not adopted where the restored faces or the targets look wrong, or where the
restored faces are no longer the people in the photos.

A restorer that also learned from sharp faces under the folder's damage becomes sharper than its pseudo targets, so that
these are no longer the right answer. The first test then puts the folder's damage, as it was estimated before the
tuning, on the sharp faces, and is the better witness of the two as long as those then look like the folder's faces and
the base changes them no more than these: its answers do not rest on what the tuned restorer takes for damage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..damage.grey import grey_like
from ..damage.light import lit_like
from ..damage.statistics import Looks
from ..damage.statistics import statistics as looks_of
from ..damage.transplant import damage_filter, transplanted, without_sharpening
from ..diffusion.low_pass import low_pass
from ..faces.landmarks import LandmarkNet, landmark_distance, read_aligned
from ..faces.sharp_faces import SharpFaces
from ..files.tensors import load_tensors
from ..metrics.detail import high_band, high_band_correlation
from ..metrics.intervals import Interval, student_difference, welch_difference
from ..metrics.kid import kid_features
from ..metrics.psnr import psnr
from ..pixels import resized
from ..spread import donors_of
from ..training.batches import DamageModel
from .target_checks import CHECKED_SIZE, at_checked_size

CONSISTENT_AT = 8  # factor of the low band that survives most damage in a 128-pixel face
STATISTICS_FILE = Path(__file__).parents[1] / "embedded" / "usual.safetensors"
MIN_JUDGED = 2  # faces; the damage of a single one cannot be put on another
TRIED = 12  # the fewest clean faces that are given the damage of the judged ones
Restore = Callable[[Tensor], Tensor]


class FaceStatistics(NamedTuple):
    """What clean faces of `target_checks.CHECKED_SIZE` look like, in features that took no part in any training.

    mean, spread: of `metrics.kid_features`, (D,). energy: of the high band, log10, mean over faces.
    known: sharp faces that no tuning learns from, (M, 3, S, S) RGB in [0, 1]: answers that owe nothing to the folder
    or its teacher.
    """

    mean: Tensor
    spread: Tensor
    energy: Tensor
    known: Tensor


class Appearance(NamedTuple):
    """How faces look next to their damaged copies; each (B,), better when higher except `energy`.

    consistency: how well the low band agrees with the damaged face, in dB. landmarks: minus the distance from the
    damaged face's landmarks, in eye distances. realism: see `realism`. kept: correlation of the detail with the damaged
    face's. energy: log10 of the detail's energy, over clean faces'.
    """

    consistency: Tensor
    landmarks: Tensor
    realism: Tensor
    kept: Tensor
    energy: Tensor


class Agreement(NamedTuple):
    """How near restored faces come to what is wanted; each (B,). fidelity: PSNR in dB. detail: correlation."""

    fidelity: Tensor
    detail: Tensor


class Cues(NamedTuple):
    """What is measured of one restorer on the judged faces. teacher: agreement with their pseudo targets. transfer:
    with the targets of other faces that were given these faces' damage, so that the answer is known. known: with clean
    faces, see `KnownAnswers`. folder: with clean faces that were given the folder's estimated damage, if there is one.
    """

    looks: Appearance
    teacher: Agreement
    transfer: Agreement
    known: Agreement
    folder: Agreement | None = None

    def measured(self) -> dict[str, float]:
        """The mean of everything, by part and name."""
        parts = {part: values for part, values in self._asdict().items() if values is not None}
        return {
            f"{part} {name}": round(float(value.mean()), 5)
            for part, values in parts.items()
            for name, value in values._asdict().items()
        }


def face_statistics_of(faces: Tensor, known: Tensor) -> FaceStatistics:
    """The statistics of clean faces (N, 3, S, S), some hundreds at least. known: see `FaceStatistics`."""
    parts = [(kid_features(some), _energy(some)) for some in at_checked_size(faces).split(64)]
    features = torch.cat([part[0] for part in parts])
    return FaceStatistics(
        features.mean(0), features.std(0).clamp_min(1e-6), torch.cat([part[1] for part in parts]).mean(), known
    )


def load_face_statistics(size: int = CHECKED_SIZE) -> FaceStatistics:
    """The statistics of faces that the embedded models were trained on, and sharp faces of `size` pixels."""
    tensors, _ = load_tensors(STATISTICS_FILE)
    known = SharpFaces(size).kept_apart()
    return FaceStatistics(**{name: tensors[name].float() for name in ("mean", "spread", "energy")}, known=known)


class KnownAnswers(NamedTuple):
    """Clean faces that a restorer must recover. clean: faces of nobody in the folder. given: the same faces with the
    folder's damage. (M, 3, S, S) both, as many as there are clean faces."""

    clean: Tensor
    given: Tensor

    @classmethod
    def of(cls, lq: Tensor, restored: Tensor, statistics: FaceStatistics) -> KnownAnswers:
        """Sharp faces with the damage that makes `lq` of `restored`; (B, 3, S, S) in [0, 1] both.

        There are R * B of them, the B damages in turn. Frequencies are never amplified; otherwise a restorer that only
        blurs would score well.
        """
        rounds = -(-TRIED // len(lq))
        known = resized(statistics.known, lq.shape[-2:]).clamp(0, 1).to(lq.device)
        clean = grey_like(known[torch.arange(rounds * len(lq)) % len(known)], lq)
        damages = [without_sharpening(damage_filter(*faces)) for faces in zip(restored, lq, strict=True)] * rounds
        donors = zip(clean, lq.repeat(rounds, 1, 1, 1), restored.repeat(rounds, 1, 1, 1), damages, strict=True)
        return cls(clean, torch.stack([transplanted(*faces) for faces in donors]))

    @classmethod
    def under(cls, damage: DamageModel, lq: Tensor, targets: Tensor, statistics: FaceStatistics) -> KnownAnswers:
        """Sharp faces with the folder's damage; `lq` and `targets` (B, 3, S, S) are its donors."""
        known = grey_like(resized(statistics.known, lq.shape[-2:]).clamp(0, 1), lq)
        pairs = zip(known.cpu(), donors_of(len(known), len(lq)), strict=True)
        own = [damage.put_on(face, lq[i], targets[i], key) for key, (face, i) in enumerate(pairs)]
        return cls(known.to(lq.device), torch.stack(own).to(lq.device))

    def agreement(self, restore: Restore, damages: int, restored: Tensor | None = None) -> Agreement:
        """How near `restore` comes to the clean faces: the mean for each of the damages. restored: `restore(given)`, if
        it is known already."""
        found = agreement(restore(self.given) if restored is None else restored, self.clean)
        return Agreement(*(value.view(-1, damages).mean(0) for value in found))


@torch.no_grad()
def gather(
    restore: Restore,
    lq: Tensor,
    targets: Tensor,
    known_answers: KnownAnswers,
    statistics: FaceStatistics,
    net: LandmarkNet,
    folder: KnownAnswers | None = None,
    restored: Tensor | None = None,
    answered: Tensor | None = None,
) -> Cues:
    """Cues for `restore` on damaged faces `lq` with their pseudo targets, (B, 3, S, S) RGB in [0, 1] both, B >= 2.

    restored, answered: `restore(lq)` and `restore(folder.given)`, if they are known already.
    """
    restored = restore(lq) if restored is None else restored
    others = grey_like(targets.roll(1, 0), lq)  # as in the tuning: what gets a grey face's damage is grey
    again = restore(torch.stack([transplanted(*faces) for faces in zip(others, lq, targets, strict=True)]))
    return Cues(
        appearance_of(restored, lq, statistics, net),
        agreement(restored, targets),
        agreement(again, others),
        known_answers.agreement(restore, len(lq)),
        folder.agreement(restore, len(folder.clean), answered) if folder else None,
    )


@torch.no_grad()
def appearance_of(faces: Tensor, lq: Tensor, statistics: FaceStatistics, net: LandmarkNet) -> Appearance:
    """Appearance of `faces`, restored or pseudo targets, next to their damaged copies `lq`: (B, 3, S, S) in [0, 1]."""
    faces, lq = at_checked_size(faces), at_checked_size(lq)
    error = (low_pass(faces, CONSISTENT_AT) - low_pass(lq, CONSISTENT_AT)).square().mean((1, 2, 3))
    return Appearance(
        consistency=-10 * error.clamp_min(1e-8).log10(),
        landmarks=-landmark_distance(read_aligned(net, faces).points, read_aligned(net, lq).points),
        realism=realism(faces, statistics),
        kept=high_band_correlation(faces, lq),
        energy=_energy(faces) - statistics.energy,
    )


def realism(faces: Tensor, statistics: FaceStatistics) -> Tensor:
    """What each of `faces` (B, 3, S, S) in [0, 1] takes from their likeness to clean ones, (B,); of clean ones about 0.

    The mean over the faces is minus the squared distance, in spreads, of their mean random-convolution features from
    those of clean faces, without the part that is there only because the faces are few: the unbiased maximum mean
    discrepancy (Gretton et al., JMLR 13, 2012, eq. 3) with a linear kernel, the mean of clean faces being known. The
    distance of each face by itself would say less: people differ from one another more than restorers do. A single face
    has no others to be compared with: 0.
    """
    unlike = (kid_features(at_checked_size(faces)) - statistics.mean) / statistics.spread
    others = (unlike.sum(0) - unlike) / max(1, len(faces) - 1)
    return -(unlike * others).mean(1)


def agreement(restored: Tensor, wanted: Tensor) -> Agreement:
    """How near `restored` faces come to the `wanted` ones, both (B, 3, S, S) RGB in [0, 1]."""
    restored, wanted = at_checked_size(restored), at_checked_size(wanted)
    return Agreement(psnr(restored, wanted), high_band_correlation(restored, wanted))


class Belief(NamedTuple):
    """What speaks for and against the damage that was estimated over the folder.

    unlike: how unlike the judged faces sharp faces are that were given it, see `damage.statistics.Looks`; in short
    adaptations 0.20 to 0.28 where it is right, 0.46 to 0.63 where it is not. overdone: dB by which the base changes
    those sharp faces more than the judged ones at least (the lower end of the interval): above 0 where the damage is
    milder than was estimated, which `unlike` does not show where photos are hardly damaged.
    """

    unlike: float = math.inf
    overdone: float = 0.0

    @classmethod
    def of(
        cls,
        damage: DamageModel,
        answers: KnownAnswers,
        by_base: tuple[Tensor, Tensor],
        lq: Tensor,
        targets: Tensor,
        statistics: FaceStatistics,
    ) -> Belief:
        """Of `damage`, with the sharp faces `answers` under it. by_base: what the base makes of `lq` and of
        `answers.given`. lq, targets: as in `judge`, S at least 32."""
        lit = statistics._replace(known=lit_like(statistics.known, lq))
        unlike = Looks(looks_of(lq)).distance(looks_of(KnownAnswers.under(damage, lq, targets, lit).given))
        changes = [psnr(*pair).cpu() for pair in zip(by_base, (lq, answers.given), strict=True)]
        return cls(unlike, welch_difference(*changes).low)

    def holds(self, limits: Limits) -> bool:
        return self.unlike < limits.unlike and self.overdone <= 0

    def measured(self) -> dict[str, float]:
        """Both by name; nothing where no damage of the folder is known."""
        known = math.isfinite(self.unlike)
        return {"folder unlike": round(self.unlike, 5), "folder overdone": round(self.overdone, 5)} if known else {}


@dataclass(frozen=True)
class Judgement:
    """verdict, and why in a sentence. gain: PSNR (dB) won on clean faces that were given the damage, or None; the
    damage is that of the folder where its model is believed, else that of each judged face.

    measures: the figures that were weighed, by name. vetoes: what spoke against the tuned restorer, in words.
    """

    verdict: Literal["adopt", "keep_base", "cannot_tell", "not_judged"]
    sentence: str
    gain: Interval | None = None
    measures: dict[str, float] = field(default_factory=dict)
    vetoes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The sentence, with a capital and a full stop."""
        return f"{self.sentence[:1].upper()}{self.sentence[1:]}."


@dataclass(frozen=True)
class Limits:
    """Limits that restored faces and targets must keep, on average, where they do worse than the base's faces.

    consistency: dB, in the low band. landmarks: eye distances from the damaged face's. realism: how much further from
    clean faces than the base's, as a squared distance, see `realism`. energy: log10, how far the detail's energy may be
    from that of clean faces.
    gain: dB on clean faces up to which a gain proves nothing, since the tuned restorer itself says what the damage is.
    transfer: dB by the other known answers up to which a gain proves nothing, since tuning practises that task.
    unlike: distance from the judged faces up to which sharp faces show that the folder's damage is known, see `Belief`.
    """

    consistency: float = 24.0
    landmarks: float = 0.1
    realism: float = 0.2
    energy: float = 0.3
    gain: float = 0.1
    transfer: float = 0.0
    unlike: float = 0.32


def judge(
    base: Restore,
    tuned: Restore,
    lq: Tensor,
    targets: Tensor,
    statistics: FaceStatistics,
    net: LandmarkNet,
    limits: Limits | None = None,
    likeness: Callable[[Tensor, Tensor, Tensor], Sequence[str]] | None = None,
    damage: DamageModel | None = None,
) -> Judgement:
    """The verdict on damaged faces `lq` with their pseudo targets, (N, 3, S, S), which were not tuned on.

    damage: of the folder, where the tuned restorer learned from sharp faces that were given it.
    likeness: (lq, restored by the base, restored by the tuned one) -> further vetoes, where likeness is measured.
    """
    if len(lq) < MIN_JUDGED:
        return Judgement("keep_base", "too few faces to hold any out, so nothing shows that tuning helped")
    base, tuned = as_photos_are_restored(base), as_photos_are_restored(tuned)
    by_base, by_tuned = base(lq), tuned(lq)
    known_answers = KnownAnswers.of(lq, by_tuned, statistics)
    folder = KnownAnswers.under(damage, lq, targets, statistics) if damage else None
    answered = base(folder.given) if folder else None
    before = gather(base, lq, targets, known_answers, statistics, net, folder, by_base, answered)
    after = gather(tuned, lq, targets, known_answers, statistics, net, folder, by_tuned)
    further = likeness(lq, by_base, by_tuned) if likeness else ()
    belief = None
    if damage and folder and answered is not None:
        belief = Belief.of(damage, folder, (by_base, answered), lq, targets, statistics)
    return decide(before, after, appearance_of(targets, lq, statistics, net), limits or Limits(), further, belief)


def restorations(faces: int, known: int) -> int:
    """How many faces `judge` restores. faces: judged ones. known: sharp faces under the folder's damage, 0 without."""
    rounds = -(-TRIED // faces) if faces >= MIN_JUDGED else 0
    return 2 * ((2 + rounds) * faces + known) if rounds else 0


def as_photos_are_restored(restore: Restore) -> Restore:
    """`restore` without the colours that it gives to grey faces: (B, 3, S, S) in [0, 1] to the same."""
    return lambda faces: grey_like(restore(faces), faces)


def decide(
    base: Cues,
    tuned: Cues,
    targets: Appearance,
    limits: Limits,
    further_vetoes: Sequence[str] = (),
    belief: Belief | None = None,
) -> Judgement:
    """The verdict on what was gathered of the base, the tuned restorer and the pseudo targets.

    belief: in the folder's damage, where one is known.
    """
    belief = belief or Belief()
    gains = Gains.of(base, tuned, belief, limits)
    vetoes = [
        f"{who} {said}"
        for who, looks in (("the faces it restores", tuned.looks), ("the pseudo targets", targets))
        for said in worse(looks, base.looks, limits)
    ]
    vetoes += further_vetoes
    measures = {
        f"{who} {name}": value
        for who, cues in (("base", base), ("adapted", tuned))
        for name, value in cues.measured().items()
    }
    measures |= {f"targets {name}": round(float(value.mean()), 5) for name, value in targets._asdict().items()}
    measures |= belief.measured()
    shown, other = gains.in_words()

    def said(verdict: Literal["adopt", "keep_base", "cannot_tell"], sentence: str) -> Judgement:
        return Judgement(verdict, sentence, gains.first, measures, tuple(vetoes))

    if vetoes:
        return said("keep_base", f"{shown}, but {'; '.join(vetoes)}")
    if gains.passed(limits):
        agree = "" if gains.second.mean > 0 else f", though {other}"
        return said("adopt", f"the adapted restorer undoes this damage better: {shown}{agree}")
    if gains.first.high < 0:
        return said("keep_base", f"the adapted restorer undoes this damage worse: {shown}")
    if gains.second.high < 0:
        return said("keep_base", f"the adapted restorer undoes this damage worse, {other}")
    if gains.spoils_detail:
        lost = f"{gains.detail.mean:+.3f} ({gains.detail.low:+.3f} to {gains.detail.high:+.3f})"
        return said(
            "keep_base", f"{shown}, but detail is further from the truth there: its correlation changes by {lost}"
        )
    if gains.first.low > limits.gain:
        return said("cannot_tell", f"{shown}, but too little, {other}")
    if gains.first.low > 0:
        return said("cannot_tell", f"less is gained than the {limits.gain:g} dB that count: {shown}")
    return said("cannot_tell", f"too little is gained to tell it from chance: {shown}")


FOLDER_WEIGHT = 2 / 3  # of the folder's answers next to those by each judged face, where its damage is known


class Gains(NamedTuple):
    """PSNR (dB) won by the two kinds of known answers, the better witness first.

    detail: won in correlation of the detail with that of the truth, on the kind that is not of the judged faces.
    by_folder: whether the first are the sharp faces under the folder's damage. with_folder: whether these are among the
    two at all. faces: how many were judged.
    """

    first: Interval
    second: Interval
    detail: Interval
    by_folder: bool
    with_folder: bool
    faces: int

    @classmethod
    def of(cls, base: Cues, tuned: Cues, belief: Belief, limits: Limits) -> Gains:
        known = student_difference(tuned.known.fidelity, base.known.fidelity)
        with_folder = bool(tuned.folder and base.folder)
        own, of_base = (cues.folder or cues.transfer for cues in (tuned, base))
        other = student_difference(own.fidelity, of_base.fidelity)
        by_folder = with_folder and belief.holds(limits)
        first, second = (other, known) if by_folder else (known, other)
        detail = student_difference(own.detail, of_base.detail)
        return cls(first, second, detail, by_folder, with_folder, len(tuned.known.fidelity))

    @property
    def spoils_detail(self) -> bool:
        """Whether surely less of the detail is true on sharp faces under the folder's damage: noise that is taken off a
        picture that stays blurred, or detail that is made up, can win PSNR all the same.

        The known answers by each judged face hold too little detail to say so: good ones lose a trifle there.
        """
        return self.by_folder and self.detail.high < 0

    def passed(self, limits: Limits) -> bool:
        """Whether they show that tuning helped.

        Where the folder's damage is known, its answers must gain with the whole interval and both together by more
        than the limit; the others need not gain, but must not be sure of a loss; and no detail may be lost. Elsewhere
        each must gain by more than its own limit, with the whole interval.
        """
        if self.spoils_detail:
            return False
        if not self.by_folder:
            return self.first.low > limits.gain and self.second.low > limits.transfer
        together = FOLDER_WEIGHT * self.first.mean + (1 - FOLDER_WEIGHT) * self.second.mean
        return self.first.low > limits.transfer and self.second.high > 0 and together > limits.gain

    def in_words(self) -> tuple[str, str]:
        """Both gains, and on what."""
        by_faces = f"on clean faces that were given the damage of {self.faces} faces that were not trained on"
        by_folder = "on sharp faces that were given the damage that was estimated over the folder"
        by_targets = "on the pseudo targets of other faces that were given it"
        other = by_folder if self.with_folder else by_targets
        first, second = (by_folder, by_faces) if self.by_folder else (by_faces, other)
        return f"{_shown(self.first)} {first}", f"{_shown(self.second)} {second}"


def _shown(gain: Interval) -> str:
    return f"{gain.mean:+.2f} dB ({gain.low:+.2f} to {gain.high:+.2f})"


class Chance(NamedTuple):
    """How much worse than the base's faces others may be by chance, in what `Limits` says."""

    consistency: float = 0.5
    landmarks: float = 0.01
    energy: float = 0.05


CHANCE = Chance()


def worse(looks: Appearance, base: Appearance, limits: Limits) -> list[str]:
    """In words, in what faces do worse than those of the base and worse than the limits allow."""
    own, of_base = ({name: float(value.mean()) for name, value in x._asdict().items()} for x in (looks, base))
    found = []
    if own["consistency"] < min(limits.consistency, of_base["consistency"] - CHANCE.consistency):
        found.append(f"disagree with the damaged faces ({own['consistency']:.1f} dB in the low band)")
    if own["landmarks"] < min(-limits.landmarks, of_base["landmarks"] - CHANCE.landmarks):
        found.append(f"move eyes, nose or mouth (by {-own['landmarks']:.2f} eye distances)")
    if own["realism"] < of_base["realism"] - limits.realism:
        found.append("look less like clean faces")
    if abs(own["energy"]) > max(limits.energy, abs(of_base["energy"]) + CHANCE.energy):
        found.append("are too smooth" if own["energy"] < 0 else "have too much texture or noise")
    return found


def _energy(faces: Tensor) -> Tensor:
    return high_band(faces).square().mean((1, 2, 3)).clamp_min(1e-12).log10()
