"""The noise level at which the prior cleans a folder's faces, chosen on faces whose answer is known.

`diffusion.noise_level` reads the level off the noise itself. It finds none where the noise is coarser than single
pixels, as in a photo that was enlarged. Here sharp faces are given the folder's estimated damage, cleaned at several
levels, and restored by the base. The level is taken at which they come nearest to the truth by PSNR, among those at
which their edges are no further from it: a prior that cleans too much draws wisps, for which PSNR has no eye.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..damage.estimate import FolderDamage
from ..damage.grey import grey_like
from ..diffusion.prior import Prior
from ..faces.sharp_faces import SharpFaces
from ..metrics.gmsd import gmsd
from ..metrics.psnr import psnr
from ..restorers import Restorer
from ..spread import donors_of
from .folder_damage import model_of, restored_for_estimate
from .targets import TargetConfig

log = logging.getLogger(__name__)

KNOWN = 8  # sharp faces that are tried
LEVELS = (0, 4, 8, 16, 32)  # of `LEVELS_OF` steps
LEVELS_OF = 250
LEAST_GAIN = 0.05  # dB: another level that is better by less is as good as the one that was read off the noise


class Answer(NamedTuple):
    """Means over the known faces: psnr in dB, higher is better; gmsd, see there, lower is better."""

    psnr: float
    gmsd: float


def level_by_known_answers(
    damage: FolderDamage,
    lq: Tensor,
    base: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: Callable[[int, int], None] | None = None,
) -> int:
    """The best `t_clean`, an index below a quarter of `config.sampler.num_steps`.

    damage: of the folder. lq: (B, 3, S, S) RGB in [0, 1], some of its faces, S = base.size. config: `t_clean` is the
    level that was read off the noise. callback: (level tried, of so many).
    """
    sharp = grey_like(SharpFaces(base.size).stacked(KNOWN), lq)
    restored = restored_for_estimate(lq, base, prior, config)
    model = model_of(damage, lq, restored)
    pairs = zip(sharp, donors_of(len(sharp), len(lq)), strict=True)
    given = torch.stack([model.put_on(face, lq[i], restored[i], seed) for seed, (face, i) in enumerate(pairs)])

    def answer(level: int) -> Answer:
        found = restored_for_estimate(given, base, prior, replace(config, t_clean=level))
        return Answer(float(psnr(found, sharp).mean()), float(gmsd(found, sharp).mean()))

    assert isinstance(config.t_clean, int)
    return _best_level(answer, config.t_clean, config.sampler.num_steps, callback)


def _best_level(
    answer: Callable[[int], Answer], own: int, num_steps: int, callback: Callable[[int, int], None] | None = None
) -> int:
    """The level of the highest PSNR among some, and between the best of them and its neighbours, whose GMSD is no
    worse than at level 0 and at `own`; `own` if it is one of them and nearly as good."""
    coarse = {0, own, *(round(level * num_steps / LEVELS_OF) for level in LEVELS)}
    levels = sorted(level for level in coarse if level in (0, own) or level < num_steps // 4)
    answers: dict[int, Answer] = {}

    def harmless(level: int) -> bool:
        return answers[level].gmsd <= min(answers[0].gmsd, answers[own].gmsd)

    def tried(some: list[int], total: int) -> int:
        for level in some:
            answers[level] = answer(level)
            if callback:
                callback(min(len(answers), total), total)
        return max(filter(harmless, answers), key=lambda level: answers[level].psnr)

    total = len(levels) + 2
    best = tried(levels, total)
    place = levels.index(best)
    between = {(best + levels[i]) // 2 for i in (place - 1, place + 1) if 0 <= i < len(levels)}
    best = tried(sorted(between - answers.keys()), total)
    log.info("sharp faces with the folder's damage, cleaned at some levels and restored: %s", _shown(answers))
    if callback:
        callback(total, total)
    nearly = harmless(own) and answers[best].psnr - answers[own].psnr < LEAST_GAIN
    return own if nearly else best


def _shown(answers: dict[int, Answer]) -> str:
    return ", ".join(
        f"{level}: {answers[level].psnr:.2f} dB, GMSD {answers[level].gmsd:.4f}" for level in sorted(answers)
    )
