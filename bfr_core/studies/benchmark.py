"""One cell of a benchmark: faces under one damage, restored by the base, by controls, adapted, and by an oracle.

Every method that is tuned is tuned with the same recipe and differs only in its targets; only the oracle sees the clean
copies of the faces that are tuned on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..adaptation.cleaning import level_by_known_answers
from ..adaptation.config import AdaptConfig
from ..adaptation.folder_damage import estimated, restored_for_estimate
from ..adaptation.targets import TargetConfig, draw_in_batches, resolved_settings
from ..adaptation.tuning import sharp_faces
from ..damage.estimate import FolderDamage
from ..damage.synthetic import degrade
from ..diffusion.low_pass import low_pass
from ..diffusion.prior import Prior
from ..faces.sharp_faces import SharpFaces
from ..randomness import keyed_generator
from ..restorers import Restorer
from ..training.batches import split
from ..training.config import FinetuneConfig
from ..training.finetune import finetune
from ..training.losses import ImageLoss
from .evaluate import face_measures

GENERIC = "tuned on generic damage"  # of the same sharp faces that the adapted restorer learns from
ALONE = "tuned on pseudo targets alone"  # the paper's pairs, without sharp faces under the folder's damage
FORMER = "tuned as in version 0.1"  # on the same targets, with that version's losses and without sharp faces
TEACHER = "prior, then base"  # what the targets are drawn from; as a restorer it would need the diffusion network
ROWS = (
    "damaged",
    "denoiser",
    "base",
    "denoiser, then base",
    TEACHER,
    "tuned on own outputs",
    "tuned on low-pass targets",
    GENERIC,
    ALONE,
    FORMER,
    "adapted",
    "oracle",
)
FORMER_LOSSES: dict[str, Any] = {
    "texture": 0.8,
    "perceptual": 0.0,
    "hatching": 0.0,
    "anchor": 0.5,
    "sharp": 0.0,
    "judged_on": "transplanted",
}
GENERIC_STRENGTH, GENERIC_PAIRS = 1.5, 300  # of the blind damage of that control: stronger than the base has seen
EXAMINED = 15  # faces from which the settings that are left to them ("auto") are resolved
Keep = Callable[[str, Tensor, dict[str, Any]], None]
Denoise = Callable[[np.ndarray], np.ndarray]


class CellFaces(NamedTuple):
    """Faces of one cell, (N, 3, S, S) RGB in [0, 1]: to adapt to, and others to measure on; hq is clean, lq damaged.

    blind: the faces that are measured on, under ordinary blind damage.
    """

    adapt_hq: Tensor
    adapt_lq: Tensor
    hq: Tensor
    lq: Tensor
    blind: Tensor


def make_cell_faces(adapt_hq: Tensor, hq: Tensor, kind: str, seed: int) -> CellFaces:
    """The faces `adapt_hq` and `hq` under damage `kind`."""
    lq, adapt_lq = damaged(hq, kind, seed, "measure"), damaged(adapt_hq, kind, seed, "adapt")
    return CellFaces(adapt_hq, adapt_lq, hq, lq, damaged(hq, "blind", seed, "measure"))


def damaged(faces: Tensor, kind: str, seed: int, part: str, strength: float = 1.0) -> Tensor:
    """`faces` (N, 3, S, S) under damage `kind`; each face's random numbers are keyed by seed, part and place."""
    keys = [keyed_generator(seed, kind, part, i) for i in range(len(faces))]
    return torch.cat([degrade(f[None], kind, key, strength).lq for f, key in zip(faces, keys, strict=True)])


# ---------------------------------------------------------------- classical denoisers


def denoisers() -> dict[str, Denoise]:
    """The classical denoisers that are tried, one for each setting, by name; each maps (H, W, 3) to (H, W, 3)."""
    from scipy.ndimage import gaussian_filter
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    def gaussian(sigma: float) -> Denoise:
        return lambda x: gaussian_filter(x, (sigma, sigma, 0))

    def total_variation(weight: float) -> Denoise:
        return lambda x: denoise_tv_chambolle(x, weight, channel_axis=-1)

    def non_local_means(h: float) -> Denoise:
        return lambda x: denoise_nl_means(x, patch_size=5, patch_distance=6, h=h, sigma=h, channel_axis=-1)

    found = {f"Gaussian {sigma}": gaussian(sigma) for sigma in (0.5, 0.8, 1.2, 1.6)}
    found |= {f"total variation {weight}": total_variation(weight) for weight in (0.04, 0.08, 0.12, 0.2)}
    return found | {f"non-local means {h}": non_local_means(h) for h in (0.04, 0.07, 0.1, 0.15)}


def best_denoiser(
    lq: Tensor, hq: Tensor, then: Callable[[Tensor], Tensor] = lambda faces: faces
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The setting with the highest mean PSNR on a fifth of the measured faces: chosen in the control's favour.

    then: what is done to the denoised faces before they are measured.
    """

    def batch(function: Denoise) -> Callable[[Tensor], Tensor]:
        def apply(images: Tensor) -> Tensor:
            results = [function(x.permute(1, 2, 0).numpy().astype(np.float64)) for x in images]
            return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).float().clamp(0, 1)

        return apply

    tried = {name: batch(function) for name, function in denoisers().items()}
    score = {name: metrics.psnr(then(function(lq[::5])), hq[::5]).mean().item() for name, function in tried.items()}
    best = max(score, key=score.__getitem__)
    return best, tried[best]


# ---------------------------------------------------------------- methods


def restored_by(restorer: Restorer, lq: Tensor) -> Tensor:
    """`lq` (N, 3, S, S) restored, on the CPU."""
    return torch.cat([restorer.restore(some).cpu() for some in lq.split(16 if restorer.size <= 256 else 1)])


def tuned(
    restorer: Restorer, lq: Tensor, targets: Tensor, config: FinetuneConfig, perceptual: ImageLoss | None = None
) -> Restorer:
    """`restorer` tuned on the pairs of `lq` and `targets`, both (N, 3, S, S)."""
    return finetune(restorer, list(zip(lq, targets, strict=True)), config, perceptual=perceptual)[0]


def tuned_under(
    damage: FolderDamage | None,
    restorer: Restorer,
    pairs: list[tuple[Tensor, Tensor]],
    config: FinetuneConfig,
    perceptual: ImageLoss | None = None,
    **more: Any,
) -> Restorer:
    """`restorer` tuned as an adaptation does, on sharp faces under the folder's damage where `config` says so.

    pairs: (lq, pseudo target). more: further arguments of `finetune`.
    """
    sharp = sharp_faces(damage, pairs, len(split(len(pairs), config)[1])) if damage and config.sharp else None
    return finetune(restorer, pairs, config, perceptual=perceptual, sharp=sharp, **more)[0]


def drawn_targets(lq: Tensor, restorer: Restorer, prior: Prior, config: TargetConfig) -> Tensor:
    """Pseudo targets of all faces, named by their place."""
    names = [str(i) for i in range(len(lq))]
    parts = (slice(start, start + config.batch_size) for start in range(0, len(lq), config.batch_size))
    drawn = draw_in_batches(((names[part], lq[part]) for part in parts), restorer, prior, config)
    return torch.cat([targets.pseudo_target for _, targets in drawn])


def settled_for(
    lq: Tensor, restorer: Restorer, prior: Prior, config: AdaptConfig
) -> tuple[TargetConfig, FolderDamage | None]:
    """As `adaptation.target_stage.settled_target_config` does for the faces `lq`, and their damage if it is needed."""
    some = lq[:: max(1, len(lq) // EXAMINED)]
    clear = resolved_settings(config.targets, some, restorer, prior)
    if not config.finetune.sharp:
        return clear, None
    damage = estimated(lq, restored_for_estimate(lq, restorer, prior, clear), restorer.size)
    if config.targets.t_clean == "auto":
        clear = replace(clear, t_clean=level_by_known_answers(damage, some, restorer, prior, clear))
    return clear, damage


def tuned_on_generic_damage(restorer: Restorer, config: AdaptConfig, perceptual: ImageLoss | None = None) -> Restorer:
    """`restorer` tuned with the recipe on sharp faces under ordinary damage: what tuning brings without the folder.

    There are more pairs than faces; no face of those by which the best state is chosen is also learned from.
    """
    faces = SharpFaces(restorer.size).stacked(GENERIC_PAIRS)
    known = faces[faces_of_pairs(GENERIC_PAIRS, len(faces), config.finetune)]
    given = damaged(known, "blind", config.finetune.seed, "generic", GENERIC_STRENGTH)
    alone = replace(config.finetune, sharp=0.0, transplant=0.0, judged_on="own")
    return tuned(restorer, given, known, alone, perceptual)


def faces_of_pairs(pairs: int, faces: int, config: FinetuneConfig) -> list[int]:
    """Which of so many faces each of so many pairs shows; those of pairs held out by `split` are in no other pair."""
    learned, held = split(pairs, config)
    apart = min(len(held), faces // 4)
    shown = {pair: i % apart for i, pair in enumerate(held)}
    shown |= {pair: apart + i % (faces - apart) for i, pair in enumerate(learned)}
    return [shown[pair] for pair in range(pairs)]


def run_cell(
    cell_faces: CellFaces,
    restorer: Restorer,
    prior: Prior,
    config: AdaptConfig,
    done: Container[str],
    keep: Keep,
    perceptual: ImageLoss | None = None,
    adapted_to: Callable[[Restorer], None] | None = None,
    generic: Callable[[], Restorer] | None = None,
) -> None:
    """Restore the measured faces by every method not yet in `done`, and hand each to keep(row of `ROWS`, faces, more).

    perceptual: see `finetune`. adapted_to: called with the adapted restorer. generic: gives what
    `tuned_on_generic_damage` would, which is the same whatever the damage of the cell.
    """
    _, adapt_lq, hq, lq, _ = cell_faces
    plain = replace(config.finetune, sharp=0.0)  # the clean answers of the controls are their targets alone
    generic = generic or partial(tuned_on_generic_damage, restorer, config, perceptual)

    def tuned_on(targets: Tensor) -> Restorer:
        return tuned(restorer, adapt_lq, targets, plain, perceptual)

    @cache
    def settled() -> tuple[TargetConfig, FolderDamage | None]:
        return settled_for(adapt_lq, restorer, prior, config)

    @cache
    def own_outputs() -> Tensor:
        return restored_by(restorer, adapt_lq)

    @cache
    def targets() -> Tensor:
        return drawn_targets(adapt_lq, restorer, prior, settled()[0])

    def adapt() -> Restorer:
        damage = settled()[1]
        if damage is None:
            return tuned_on(targets())
        return tuned_under(damage, restorer, list(zip(adapt_lq, targets(), strict=True)), config.finetune, perceptual)

    def tuned_as_formerly() -> Restorer:
        return tuned(restorer, adapt_lq, targets(), replace(config.finetune, **FORMER_LOSSES))

    rows: dict[str, Callable[[], Tensor]] = {
        "damaged": lambda: lq,
        "base": lambda: restored_by(restorer, lq),
        TEACHER: lambda: restored_for_estimate(lq, restorer, prior, settled()[0]),
        "tuned on own outputs": lambda: restored_by(tuned_on(own_outputs()), lq),
        "tuned on low-pass targets": lambda: restored_by(
            tuned_on(low_pass(own_outputs(), settled()[0].sampler.factor).clamp(0, 1)), lq
        ),
        GENERIC: lambda: restored_by(generic(), lq),
        ALONE: lambda: restored_by(tuned_on(targets()), lq),
        FORMER: lambda: restored_by(tuned_as_formerly(), lq),
        "oracle": lambda: restored_by(tuned_on(cell_faces.adapt_hq), lq),
    }
    if "adapted" not in done:
        adapted = adapt()
        if adapted_to:
            adapted_to(adapted)
        old = [metrics.psnr(restored_by(r, cell_faces.blind), hq).tolist() for r in (restorer, adapted)]
        teacher = {k: v.tolist() for k, v in face_measures(targets(), cell_faces.adapt_hq).items()}
        extra = {"old damage": old, "targets": teacher, "noise level": settled()[0].t_clean}
        keep("adapted", restored_by(adapted, lq), extra)
    for name, make in rows.items():
        if name not in done:
            keep(name, make(), {})
    for name, then in (("denoiser", torch.clone), ("denoiser, then base", partial(restored_by, restorer))):
        if name not in done:
            setting, denoise = best_denoiser(lq, hq, then)
            keep(name, then(denoise(lq)), {"setting": setting})


# ---------------------------------------------------------------- kept results


def own_settings(config: Any) -> dict[str, Any]:
    """The settings of a dataclass that are not its defaults: a setting added later changes nothing that was made."""
    found = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if is_dataclass(value):
            if inner := own_settings(value):
                found[field.name] = inner
        elif value != default:
            found[field.name] = value
    return found


def read_cell(path: Path, made_from: str) -> dict[str, Any]:
    """The rows kept in a cell's file, if it was made from these networks and this recipe; else none."""
    cell = json.loads(path.read_text()) if path.exists() else {}
    return cell.get("rows", {}) if cell.get("made_from") == made_from else {}
