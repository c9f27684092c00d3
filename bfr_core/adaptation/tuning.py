"""The tuning stage: a restorer learns from the faces and targets of a run, is judged on faces held out, and saved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..device import usual_precision
from ..diffusion.prior import Prior
from ..faces.landmarks import load_landmark_net
from ..files.photos import read_image
from ..files.records import fingerprint
from ..files.stages import remove
from ..restorers import Restorer, save_change, save_restorer
from ..training.config import FinetuneConfig
from ..training.finetune import Progress, Watch, finetune, split
from ..training.losses import ImageLoss, find_vgg, lpips_loss, perceptual_loss
from .faces import FaceSet, StageCallback, resize_square
from .good_faces import MOST_EXAMPLES, Examples
from .run import Run
from .verdict import Judgement, judge, load_usual

log = logging.getLogger(__name__)

NO_LPIPS = (
    "perceptual must be LPIPS here, whose VGG file vgg16-397923af.pth is not in torch's folder of checkpoints; put it "
    "there (torchvision fetches it by models.vgg16(weights='IMAGENET1K_V1')), or set perceptual to 0"
)
NOT_JUDGED = Judgement("not_judged", "no face was held out of the tuning, as set, so nothing shows whether it helped")
CACHED_BYTES = 1 << 30
MOST_JUDGED = 64  # held-out faces that the verdict looks at


class FolderPairs:
    """(lq, pseudo_target) pairs read from disk, kept as bytes up to `CACHED_BYTES`."""

    def __init__(self, lq: list[Path], targets: list[Path], size: int) -> None:
        self.files, self.size = list(zip(lq, targets, strict=True)), size
        self._kept: dict[int, Tensor] = {}
        self._room = CACHED_BYTES // max(1, 2 * 3 * size * size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self._kept.get(index)
        if pair is None:
            pair = torch.stack([resize_square(read_image(f), self.size, f) for f in self.files[index]])
            pair = pair.mul(255).round().byte()
            if len(self._kept) < self._room:
                self._kept[index] = pair
        lq, target = pair.float() / 255
        return lq, target


class FolderFaces:
    """Faces read from disk, kept as bytes up to `CACHED_BYTES`."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = files, size
        self._kept: dict[int, Tensor] = {}
        self._room = CACHED_BYTES // max(1, 3 * size * size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        face = self._kept.get(index)
        if face is None:
            file = self.files[index]
            face = resize_square(read_image(file), self.size, file).mul(255).round().byte()
            if len(self._kept) < self._room:
                self._kept[index] = face
        return face.float() / 255


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
) -> tuple[Restorer, Progress, Judgement]:
    """Tune `restorer` on the run's faces, judge it, and save it as restorer.safetensors; low-rank changes also alone.

    made_from: fingerprint of the targets. prior: its encoder is the perceptual term where LPIPS is not at hand.
    watch, pause_after: see `finetune`; a paused tuning saves the best so far. good: see `take_good_faces`.
    """
    names = [name for name in faces.names if name in targets]
    pairs = FolderPairs([faces.folder / f"{n}.png" for n in names], [targets[n] for n in names], restorer.size)
    computed = usual_precision(restorer.device) if config.precision == "auto" else config.precision
    made_with = {"restorer": restorer.name, "prior": prior.name if prior else None, "computed_in": computed}
    run.record("finetune", asdict(config) | made_with)

    def step(done: int, total: int, progress: Progress) -> None:
        if callback:
            callback("finetune", done, total, progress)

    files = good.files[:MOST_EXAMPLES] if good else ()
    examples = [resize_square(read_image(file), restorer.size, file) for file in files]
    held = split(len(pairs), config)[1]
    shown = [good.fingerprint] if good and examples else []
    shown += [good.real_fingerprint] if good and good.real else []
    tuned, progress = finetune(
        restorer,
        pairs,
        config,
        checkpoint=run.checkpoint,
        fingerprint=fingerprint(made_from, names, restorer.sha256, config.lasting, held, *shown),
        examples=torch.stack(examples) if examples else None,
        real=FolderFaces(good.real, restorer.size) if good and good.real else None,
        perceptual=None if restorer.tuned_by_codes else perceptual_term(config, prior, restorer.device),
        callback=step,
        watch=watch,
        pause_after=pause_after,
    )
    judged = [pairs[i] for i in held[:MOST_JUDGED]]
    judgement = judged_on_faces(restorer, tuned, judged) if config.held_out else NOT_JUDGED
    log.info("verdict: %s: %s", judgement.verdict, judgement.sentence)
    base = {"base": restorer.name, "base_sha256": restorer.sha256, "base_licence": restorer.licence}
    teacher = {"prior": prior.name, "prior_sha256": prior.sha256, "prior_licence": prior.licence} if prior else {}
    made = {"finetune": asdict(config), "steps": progress.step, "best_step": progress.best_step, "faces": len(names)}
    made |= {"verdict": judgement.verdict, "verdict_sentence": judgement.sentence}
    save_restorer(run.restorer, tuned, base | teacher | made)
    remove([run.groups])  # of an earlier time, when the faces were adapted to in groups
    if config.trainable == "lora":
        save_change(run.change, restorer, tuned, config.rank, teacher | made)
    return tuned, progress, judgement


def judged_on_faces(base: Restorer, tuned: Restorer, pairs: list[tuple[Tensor, Tensor]]) -> Judgement:
    """The verdict on (lq, pseudo target) pairs that were held out of the tuning."""
    lq, targets = (torch.stack([pair[k] for pair in pairs]) if pairs else torch.empty(0) for k in (0, 1))
    return judge(base.restore_each, tuned.restore_each, lq, targets, load_usual(), load_landmark_net())


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
        raise ValueError("the perceptual term needs LPIPS's VGG file or a prior; give --prior, or set perceptual to 0")
    log.info("perceptual term: features of the prior's encoder, since LPIPS's VGG file is not on this machine")
    return perceptual_loss(partial(prior.encoder_to(device).features, recompute=config.recompute))
