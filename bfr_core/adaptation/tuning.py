"""The tuning stage: a restorer learns from the faces and targets of a run, is judged on faces held out, and saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..damage.estimate import FolderDamage
from ..device import default_precision
from ..diffusion.prior import Prior
from ..faces.landmarks import load_landmark_net
from ..faces.sharp_faces import KEPT_APART
from ..faces.sharp_faces import SharpFaces as EmbeddedFaces
from ..files.ownership import sha256_of
from ..files.photos import read_image
from ..files.records import fingerprint
from ..files.stages import remove
from ..pixels import as_bytes
from ..restoration.same_person import LikenessMeter
from ..restorers import Restorer, save_change, save_restorer
from ..spread import evenly
from ..training.batches import DamageModel, Pairs, SharpFaces
from ..training.config import FinetuneConfig
from ..training.finetune import TuningProgress, Watch, finetune, split
from ..training.losses import ImageLoss, find_vgg, lpips_loss, perceptual_loss
from ..training.team import ALONE, Team
from .faces import FaceSet, StageCallback, resize_square
from .folder_damage import ESTIMATED_FACES, folder_damage, model_of, read_damage
from .good_faces import MAX_EXAMPLES, Examples
from .run import Run
from .same_person import likeness_vetoes
from .target_stage import origin_of
from .verdict import Judgement, judge, load_face_statistics, restorations

log = logging.getLogger(__name__)

NO_LPIPS = (
    "perceptual must be LPIPS here, which takes the package lpips and, in torch's folder of checkpoints, its VGG file "
    "vgg16-397923af.pth; add what is missing (pip install lpips; torchvision fetches the file by "
    "models.vgg16(weights='IMAGENET1K_V1')), or set perceptual to 0"
)
NOT_JUDGED = Judgement("not_judged", "no face was held out of the tuning, as set, so nothing shows whether it helped")
NONE_BETTER = (
    "no state of the tuning was better than the base on the faces held out, so what was saved is the base itself"
)
CACHED_BYTES = 1 << 30
MAX_JUDGED = 64  # held-out faces that the verdict looks at


class FolderFaces:
    """Faces that are read from disk when needed, (3, S, S) RGB in [0, 1], and cached as uint8, up to `room` bytes."""

    def __init__(self, files: Sequence[Path], size: int, room: int = CACHED_BYTES) -> None:
        self.files, self.size = files, size
        self._kept: dict[int, Tensor] = {}
        self._room = room // max(1, 3 * size * size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        face = self._kept.get(index)
        if face is None:
            file = self.files[index]
            face = as_bytes(resize_square(read_image(file), self.size, file))
            if len(self._kept) < self._room:
                self._kept[index] = face
        return face.float() / 255


class FolderPairs:
    """(lq, pseudo_target) pairs read from disk, see `FolderFaces`."""

    def __init__(self, lq: list[Path], targets: list[Path], size: int) -> None:
        self.files = list(zip(lq, targets, strict=True))
        self._lq, self._targets = (FolderFaces(files, size, CACHED_BYTES // 2) for files in (lq, targets))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._lq[index], self._targets[index]


def tune(
    run: Run,
    faces: FaceSet,
    targets: dict[str, Path],
    made_from: str,
    restorer: Restorer,
    config: FinetuneConfig,
    prior: Prior | None = None,
    callback: StageCallback | None = None,
    watch: Watch | None = None,
    pause_after: float = 0.0,
    good: Examples | None = None,
    team: Team = ALONE,
) -> tuple[Restorer, TuningProgress]:
    """A copy of `restorer` that has learned from the run's faces and targets, and how the tuning went.

    targets: file by face name; faces without one are left out. made_from: fingerprint of the targets. prior: its
    encoder gives the perceptual term where LPIPS is not at hand. watch, pause_after: see `finetune`; a paused tuning
    returns the best so far. good: see `take_good_faces`. team: see `finetune`; only its first process writes.
    """
    names, pairs = learned_from(faces, targets), pairs_of(faces, targets, restorer.size)
    computed = default_precision(restorer.device) if config.precision == "auto" else config.precision
    made_with = {"restorer": restorer.name, "prior": prior.name if prior else None, "computed_in": computed}
    if team.is_first:
        run.record("finetune", asdict(config) | made_with)

    def step(done: int, total: int, progress: TuningProgress) -> None:
        if callback:
            callback("finetune", done, total, progress)

    good = good or Examples()
    shown_files = [good.files[i] for i in evenly(len(good.files), MAX_EXAMPLES)]
    examples = [resize_square(read_image(file), restorer.size, file) for file in shown_files]
    real = good.real if config.adversarial and not restorer.tuned_by_codes else ()
    if good.real and not real:
        log.warning("the real faces have no effect: with these settings there is no discriminator to show them to")
    held = split(len(pairs), config)[1]
    perceptual = None if restorer.tuned_by_codes else perceptual_term(config, prior, restorer.device)
    shown = [good.fingerprint] if examples else []
    shown += [good.real_fingerprint] if real else []
    redrawn = [[name, sha256_of(targets[name])] for name in names if targets[name].parent == run.redrawn]
    shown += [fingerprint(redrawn)] if redrawn else []
    shown += [perceptual_by(config, prior)] if perceptual else []
    sharp = None
    if config.sharp:
        with team.first_goes_first():
            damage = folder_damage(run, faces, restorer, callback=callback)
        sharp = sharp_faces(damage, pairs, len(held))
        shown += [fingerprint(damage.as_json(), EmbeddedFaces(restorer.size).fingerprint)]
    return finetune(
        restorer,
        pairs,
        config,
        checkpoint=run.checkpoint,
        fingerprint=fingerprint(made_from, names, restorer.sha256, config.lasting, held, *shown),
        examples=torch.stack(examples) if examples else None,
        real=FolderFaces(real, restorer.size) if real else None,
        sharp=sharp,
        perceptual=perceptual,
        callback=step,
        watch=watch,
        pause_after=pause_after,
        team=team,
    )


def sharp_faces(damage: FolderDamage, pairs: Pairs, held: int) -> SharpFaces:
    """The sharp faces that come with the program, to be given `damage`.

    held: on how many of them checkpoints are compared, at most; at least those that the verdict asks about.
    """
    faces = EmbeddedFaces(damage.size)
    return SharpFaces(faces, model_for(damage, pairs), max(KEPT_APART, min(held, len(faces) // 4)))


def model_for(damage: FolderDamage, pairs: Pairs) -> DamageModel:
    """What puts the folder's damage on a sharp face, with some of the pairs as donors."""
    some = [pairs[i] for i in evenly(len(pairs), ESTIMATED_FACES)]
    return model_of(damage, *(torch.stack([pair[k] for pair in some]) for k in (0, 1)))


def judge_tuning(
    run: Run,
    base: Restorer,
    tuned: Restorer,
    faces: FaceSet,
    targets: dict[str, Path],
    config: FinetuneConfig,
    progress: TuningProgress,
    callback: StageCallback | None = None,
) -> Judgement:
    """The verdict on a tuning by `tune`, on the faces that it held out; "not_judged" where it held none out.

    Where no state of the tuning was better than the base on these, `tuned` is the base, and the verdict to keep it.
    """
    judgement = NOT_JUDGED
    if config.held_out:
        pairs = pairs_of(faces, targets, base.size)
        apart = split(len(pairs), config)[1]
        held = [pairs[apart[i]] for i in evenly(len(apart), MAX_JUDGED)]
        damage = read_damage(run) if config.sharp and held else None
        judgement = judged_on_faces(base, tuned, held, model_for(damage, pairs) if damage else None, callback)
        if progress.held_out and not progress.best_step and judgement.verdict == "cannot_tell":
            judgement = replace(judgement, verdict="keep_base", sentence=NONE_BETTER)
    log.info("verdict: %s: %s", judgement.verdict, judgement.sentence)
    return judgement


def save_tuned(
    run: Run,
    base: Restorer,
    tuned: Restorer,
    prior: Prior | None,
    config: FinetuneConfig,
    progress: TuningProgress,
    judgement: Judgement,
    faces: int,
    teacher: Mapping[str, str] | None = None,
) -> None:
    """Save `tuned` as the run's restorer.safetensors, with what it was made from; low-rank changes also by themselves.

    faces: the number of faces that it learned from. teacher: of the prior that drew the targets, see `origin_of`; by
    default of `prior`.
    """
    origin = {"base": base.name, "base_sha256": base.sha256, "base_licence": base.licence}
    teacher = dict(teacher or (origin_of(prior) if prior else {}))
    made = {"finetune": asdict(config), "steps": progress.step, "best_step": progress.best_step, "faces": faces}
    made |= {"verdict": judgement.verdict, "verdict_sentence": judgement.sentence}
    before = sha256_of(run.restorer) if run.restorer.is_file() else ""
    save_restorer(run.restorer, tuned, origin | teacher | made)
    exported = {run.exported(architecture) for architecture in ("CodeFormer", tuned.architecture)}
    changed = sha256_of(run.restorer) != before
    remove([run.groups, run.change, *(exported if changed else ())])  # left from an earlier adaptation
    if config.trainable == "lora":
        save_change(run.change, base, tuned, config.rank, teacher | made)


def learned_from(faces: FaceSet, targets: dict[str, Path]) -> list[str]:
    """Names of the faces that have a target, in the order in which a tuning counts them."""
    return [name for name in faces.names if name in targets]


def pairs_of(faces: FaceSet, targets: dict[str, Path], size: int) -> FolderPairs:
    """(lq, pseudo_target) of each face that has a target, at this size."""
    names = learned_from(faces, targets)
    return FolderPairs([faces.crop(name) for name in names], [targets[name] for name in names], size)


def judged_on_faces(
    base: Restorer,
    tuned: Restorer,
    pairs: list[tuple[Tensor, Tensor]],
    damage: DamageModel | None = None,
    callback: StageCallback | None = None,
) -> Judgement:
    """The verdict on (lq, pseudo target) pairs that were held out of the tuning. damage: see `verdict.judge`."""
    statistics = load_face_statistics(base.size)
    done, total = 0, restorations(len(pairs), len(statistics.known) if damage else 0)

    def one_by_one(restorer: Restorer, faces: Tensor) -> Tensor:
        nonlocal done
        restored = []
        for face in faces.split(1):
            restored.append(restorer.restore_each(face))
            done += 1
            if callback:
                callback("judge", done, total, None)
        return torch.cat(restored)

    lq, targets = (torch.stack([pair[k] for pair in pairs]) if pairs else torch.empty(0) for k in (0, 1))
    meter = LikenessMeter(base.device)

    def likeness(lq: Tensor, before: Tensor, after: Tensor) -> list[str]:
        helped = before if base.sha256 == meter.helper_sha256 else None
        return likeness_vetoes(*meter.judge(lq, before, after, helped=helped))

    return judge(
        partial(one_by_one, base), partial(one_by_one, tuned), lq, targets, statistics, load_landmark_net(),
        likeness=likeness, damage=damage,
    )  # fmt: skip


def perceptual_by(config: FinetuneConfig, prior: Prior | None) -> str:
    """By which network `perceptual_term` measures, for fingerprints; "" if by none."""
    if not config.perceptual:
        return ""
    return "LPIPS" if find_vgg() else getattr(prior, "sha256", "")


def perceptual_term(config: FinetuneConfig, prior: Prior | None, device: torch.device) -> ImageLoss | None:
    """LPIPS where its VGG file is on disk, else distance in the prior's own encoder; which one is logged."""
    if not config.perceptual:
        return None
    vgg = find_vgg()
    if vgg is not None:
        log.info("perceptual term: LPIPS (VGG)")
        return lpips_loss(vgg, device)
    if config.perceptual_by == "lpips":
        raise ValueError(NO_LPIPS)
    if prior is None:
        raise ValueError(
            "the perceptual term needs LPIPS with its VGG file or a prior; give a prior, or set perceptual to 0"
        )
    log.info("perceptual term: features of the prior's encoder, since LPIPS or its VGG file is not on this machine")
    return perceptual_loss(partial(prior.encoder_to(device).features, recompute=config.recompute))
