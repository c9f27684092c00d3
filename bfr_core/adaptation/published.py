"""The recipe of arXiv:2410.04618 to the letter, as one preset: `--recipe published`, and the same on page and nodes.

Everything that this project added is off. Every setting is decided here, or left to the user by name: a setting that is
added later must be entered in one of the two tables, or a test fails.

Three things differ from the authors' code on purpose. The discriminator is frozen whenever the restorer's gradient is
taken; in their code only in the first part of a batch, and in the others a tenth of the restorer's adversarial gradient
is added to the discriminator's own. Where the low band is held down to the last index (L = 0), the level below that is
the clean image; in their code the index wraps round to the noisiest. The discriminator's spectral norms are renewed
once a step; in their code in each pass, so that its weights depend on how a batch is cut.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..restorers import Restorer
from ..settings import changed
from ..training.losses import find_vgg
from .config import PUBLISHED_RECIPE, RECIPES, RECOMMENDED, AdaptConfig, recipe, with_brought_targets
from .tuning import NO_LPIPS

log = logging.getLogger(__name__)

# For every restorer. Betas are Adam's; AdamW, which the paper names for SwinIR, is Adam where nothing decays.
PUBLISHED: dict[str, Any] = {
    "recipe": PUBLISHED_RECIPE,
    "targets.sampler.kind": "paper",
    "targets.sampler.num_steps": 250,
    "targets.sampler.t_start": 150,
    "targets.sampler.t_constrain_end": 90,
    "targets.sampler.factor": 16,
    "targets.sampler.calls": 10,  # of the other sampler
    "targets.sampler.eta": 1.0,  # of the other sampler
    "targets.reference": "restored",
    "targets.t_clean": 0,
    "targets.search": (),
    "targets.detail": 1.0,
    "targets.precision": "float32",
    "gate.limit": 0.0,
    "gate.tries": 0,
    "gate.least_score": 0.1,  # without effect, since no target is refused
    "gate.most_moved": 0.25,  # likewise
    "gate.likeness": False,
    "people.find": False,
    "people.limit": 0.5,  # without effect, since no people are looked for
    "album.find": False,
    "album.good": "",
    "album.least_sharpness": 0.9,  # without effect, since no good faces are looked for
    "album.most_noise": 0.6,  # likewise
    "album.least_kept": 35.0,  # likewise
    "finetune.iterations": 20_000,
    "finetune.batch_size": 16,
    "finetune.micro_batch": 4,
    "finetune.lr": 2e-5,
    "finetune.lr_end": 5e-6,
    "finetune.warmup": 0.0,
    "finetune.halve_at": (),
    "finetune.l1": 1.0,
    "finetune.perceptual": 0.4,  # an image: the authors sum 0.1 over each part of four
    "finetune.perceptual_by": "lpips",
    "finetune.adversarial": 0.1,
    "finetune.texture": 0.0,
    "finetune.hatching": 0.0,
    "finetune.shift": 0,
    "finetune.feature": 1.0,
    "finetune.code": 0.5,
    "finetune.anchor": 0.0,
    "finetune.transplant": 0.0,
    "finetune.sharp": 0.0,
    "finetune.betas": (0.9, 0.99),
    "finetune.critic_betas": (0.9, 0.999),
    "finetune.critic_lr": 2e-5,
    "finetune.clip": 0.0,
    "finetune.mirror": False,
    "finetune.stochastic_depth": True,
    "finetune.trainable": "full",
    "finetune.rank": 8,  # of low-rank changes
    "finetune.discriminator_features": 64,
    "finetune.ema": 0.0,
    "finetune.ema_warmup": False,
    "finetune.held_out": 0.0,
    "finetune.judged_on": "own",  # without effect, since no face is held out
    "finetune.judge_every": 500,  # likewise
    "finetune.precision": "float32",
}
# What differs for CodeFormer, which is tuned on codes, without the image losses.
PUBLISHED_BY_CODES: dict[str, Any] = {
    "targets.sampler.factor": 8,
    "finetune.iterations": 40_000,
    "finetune.batch_size": 8,
    "finetune.lr": 1e-4,
    "finetune.lr_end": 1e-4,  # without effect: it is halved twice instead
    "finetune.halve_at": (0.875, 0.95),
    "finetune.mirror": True,
    "finetune.ema": 0.995,
}
# Where things are, how faces are found, which seed is taken and how the work is cut up are no part of the method.
LEFT_TO_USER = frozenset(
    {
        "restorer",
        "prior",
        "faces.aligned",
        "faces.detector",
        "faces.threshold",
        "faces.min_face",
        "targets.batch_size",
        "targets.seed",
        "album.real",
        "finetune.minutes",
        "finetune.recompute",
        "finetune.checkpoint_seconds",
        "finetune.seed",
    }
)


def recipe_with(
    restorer: Restorer, name: str, values: Mapping[str, Any] | None = None, brought: bool = False
) -> AdaptConfig:
    """The settings of the recipe `name`, one of `RECIPES`, for `restorer`, with the user's `values` by dotted path.

    brought: whether the targets are made by another program, see `with_brought_targets`.

    For the published recipe, warnings say what the values change and whether the discriminator lacks real faces. Raises
    ValueError, in one line, for another name, for several restorers in one, for a value that is not allowed, and for
    the published recipe where LPIPS's file is missing.
    """
    own = recipe_of(restorer, name)
    config: AdaptConfig = changed(with_brought_targets(own) if brought else own, dict(values or {}))
    if name == RECOMMENDED:
        return config
    by_image = not restorer.tuned_by_codes
    if by_image and config.finetune.perceptual and config.finetune.perceptual_by == "lpips" and find_vgg() is None:
        raise ValueError(f"recipe {name}: {NO_LPIPS}")
    if changes := departures(config, published(restorer)):
        log.warning("the published recipe is changed: %s", "; ".join(changes))
    if by_image and config.finetune.adversarial and not config.album.real:
        log.warning("the discriminator has no real faces (real is not set) and takes the pseudo targets for real")
    return config


def recipe_of(restorer: Restorer, name: str) -> AdaptConfig:
    """The recipe `name` for `restorer`, unchanged. Raises ValueError for another name, or for several in one."""
    own = recipe(restorer)
    if name not in RECIPES:
        raise ValueError(f"recipe is {name!r}; it must be one of {', '.join(RECIPES)}")
    return own if name == RECOMMENDED else changed(AdaptConfig(), published(restorer))


def published(restorer: Restorer) -> dict[str, Any]:
    """What the published recipe decides for `restorer`, by dotted path; for networks that the paper did not tune, the
    values for SwinIR."""
    return PUBLISHED | (PUBLISHED_BY_CODES if restorer.tuned_by_codes else {})


def departures(config: AdaptConfig, decided: Mapping[str, Any]) -> list[str]:
    """The settings of `config` that differ from `decided`, by dotted path: "path value (decided value)" each."""
    return [
        f"{path} {value} ({decided[path]})"
        for path, value in leaves(config).items()
        if path in decided and value != decided[path]
    ]


def leaves(config: Any) -> dict[str, Any]:
    """Every setting of nested dataclasses by its dotted path."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        inner = leaves(value) if is_dataclass(value) else None
        found |= {field.name: value} if inner is None else {f"{field.name}.{path}": v for path, v in inner.items()}
    return found
