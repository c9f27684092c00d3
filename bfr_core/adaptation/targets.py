"""Stage 1: from a damaged face to a clean face that agrees with it. Source: arXiv:2410.04618, section 3.1."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..damage.grey import grey_like
from ..damage.transplant import transplanted
from ..device import PRECISIONS, Precision, autocast, in_batches
from ..diffusion.noise_level import estimate_noise_level
from ..diffusion.prior import Prior
from ..diffusion.sampler import Callback as SamplerCallback
from ..diffusion.sampler import LatentNoisePredictor, SamplerConfig, denoise_once, sample_constrained
from ..files.photos import to_signed, to_unit
from ..metrics.detail import DETAIL_SIGMA, high_band
from ..metrics.psnr import psnr
from ..pixels import resized
from ..randomness import keyed_noise
from ..restorers import Restorer
from ..settings import check_settings, setting
from ..spread import evenly

log = logging.getLogger(__name__)

# log10 of the energy of the high band (below 1.5 pixels at 128 x 128) over that of the band from there to 3 pixels:
# mean over the 944 faces that the embedded models were trained on; 0.21 for the portraits, 0.11 for the made-up faces.
FINE_OVER_COARSER = 0.173
MAX_GAIN = 1.3
# The values that are tried for a setting that is left to the faces, as multiples of the value given.
SEARCHED = {"t_start": (0.25, 0.5, 1.0, 2.0), "factor": (1.0, 2.0, 4.0)}
SEARCH_FACES = 8


@dataclass(frozen=True)
class TargetConfig:
    """How pseudo targets are made."""

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    reference: Literal["restored", "lq"] = setting(
        "restored",
        "The picture that the low band of a target is taken from: the restored face, or the damaged face itself (lq).",
        choices=("restored", "lq"),
    )
    t_clean: int | Literal["auto"] = setting(
        0,
        "Noise level at which one call of the prior cleans the damaged face before it is restored, so that noise which "
        "the restorer never saw does not reach the target. 0 does not clean, as in the paper; auto finds it by sharp "
        "faces under the folder's estimated damage where finetune.sharp is above 0, else by the noise of the faces.",
        low=0,
        auto=True,
    )
    search: tuple[str, ...] = setting(
        (),
        "The sampler's settings that are left to the faces: for each, some values around the one given are tried on "
        "known answers, and the best is taken. t_constrain_end then follows t_start.",
        choices=tuple(SEARCHED),
        kind=str,
    )
    detail: float | Literal["auto"] = setting(
        1.0,
        "Factor by which the high band of a target is multiplied, because the prior's answer is a mean and too smooth. "
        "1 keeps it as it is drawn, as in the paper; auto makes it as strong as in clean faces.",
        low=0,
        high=2,
        auto=True,
    )
    batch_size: int = setting(
        8,
        "How many faces are in the prior at once while targets are made. Fewer need less memory.",
        unit="faces",
        low=1,
        label="Faces at once while targets are made",
    )
    seed: int = setting(0, "Seed of the targets' random numbers, which are keyed by face.")
    precision: Precision = setting(
        "auto",
        "Number format in which restorer and prior compute while targets are made; auto chooses by the hardware.",
        choices=PRECISIONS,
    )

    def __post_init__(self) -> None:
        check_settings(self, "targets")
        last = self.sampler.num_steps - 1
        if self.t_clean != "auto" and not (isinstance(self.t_clean, int) and self.t_clean <= last):
            raise ValueError(
                f"targets.t_clean is {self.t_clean}; it must be auto, or 0 (not) to num_steps - 1 = {last}"
            )

    @property
    def is_resolved(self) -> bool:
        """Whether no setting is left to the faces."""
        return "auto" not in (self.t_clean, self.detail) and not self.search

    @property
    def network_calls(self) -> int:
        """Evaluations of the prior that one face takes, at most."""
        return self.sampler.network_calls + (self.t_clean != 0)


class Targets(NamedTuple):
    """restored, pseudo_target: (B, 3, S, S) RGB in [0, 1], both on the CPU.

    restored: what the restorer makes of the damaged faces themselves, also where they were cleaned for the target.
    """

    restored: Tensor
    pseudo_target: Tensor


@torch.no_grad()
def make_pseudo_targets(
    lq: Tensor,
    names: Sequence[str],
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: SamplerCallback | None = None,
) -> Targets:
    """Pseudo targets of damaged faces: clean faces that agree with them.

    lq: (B, 3, S, S) RGB in [0, 1], S the restorer's size. names: one a face; each keys its face's random numbers.
    config: where it says "auto", these faces alone decide; `resolved_settings` lets a sample of the folder decide once
    for all of it.
    callback: (network call, network calls, preview in [-1, 1]); what it raises ends the sampling.
    Faces are resized to the prior's size and back if it differs from S. If the memory is too small for all at once,
    fewer are taken at a time; the targets are the same. Raises as `sample_constrained`.
    """
    config = resolved_settings(config, lq, restorer, prior)

    def make(part: slice) -> Targets:
        return _make(lq[part], names[part], restorer, prior, config, callback)

    parts = list(in_batches(make, len(lq), len(lq)))
    return Targets(*(torch.cat(kind) for kind in zip(*parts, strict=True)))


def draw_in_batches(
    batches: Iterable[tuple[list[str], Tensor]],
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: SamplerCallback | None = None,
) -> Iterator[tuple[list[str], Targets]]:
    """`make_pseudo_targets` for any number of faces: the names and targets of a batch at a time.

    batches: names and damaged faces; one is read when the targets before it have been taken. callback: (network calls
    done for all faces so far, calls that one face takes, preview of the batch); what it raises ends the sampling.
    """
    done = 0
    for names, lq in batches:

        def step(call: int, calls: int, preview: Tensor, done: int = done, count: int = len(names)) -> None:
            if callback:
                callback(done * calls + call * count, calls, preview)

        yield names, make_pseudo_targets(lq, names, restorer, prior, config, step)
        done += len(names)


def _make(
    lq: Tensor,
    names: Sequence[str],
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: SamplerCallback | None,
) -> Targets:
    device = restorer.device
    with autocast(device, config.precision):
        restorer = restorer.at_precision(config.precision)
        restored = restorer.restore(lq)
        clearer, of_clearer = lq.to(device), restored
        if isinstance(config.t_clean, int) and config.t_clean:
            clearer = _cleaned(clearer, prior, config.sampler.num_steps, config.t_clean)
            of_clearer = restorer.restore(clearer)
        reference = resized(to_signed(of_clearer if config.reference == "restored" else clearer), prior.size)
        noise = keyed_noise(config.seed, "targets", names, device)
        target = sample_constrained(prior, reference, config.sampler, noise, callback)
    target = to_unit(resized(target, lq.shape[-1]))
    if isinstance(config.detail, float | int) and config.detail != 1:
        target = (target + (config.detail - 1) * high_band(target, _sigma(target))).clamp(0, 1)
    return Targets(restored.cpu(), grey_like(target.cpu(), lq))


@torch.no_grad()
def resolved_settings(
    config: TargetConfig,
    lq: Tensor,
    restorer: Restorer,
    prior: Prior,
    callback: Callable[[int, int], None] | None = None,
) -> TargetConfig:
    """`config` with numbers for what is left to the faces `lq`: t_clean, then the sampler's settings, then detail.

    lq: (B, 3, S, S) RGB in [0, 1]; a dozen faces of a folder are enough. callback: (step, steps) for each of these.
    """
    config = suited_to(config, prior)
    if config.t_clean == "auto":
        image = resized(to_signed(lq.to(prior.device)), prior.size)
        with autocast(prior.device, config.precision):
            level = estimate_noise_level(prior, image, config.sampler.num_steps, callback)
        config = replace(config, t_clean=level)
    if config.search:
        searched = lq[evenly(len(lq), SEARCH_FACES)]
        sampler = best_sampler(searched, restorer, prior, config, callback)
        config = replace(config, sampler=sampler, search=())
    if config.detail == "auto":
        config = replace(
            config, detail=detail_gain(_sample(lq, restorer, prior, replace(config, detail=1.0), callback))
        )
    return config


def suited_to(config: TargetConfig, prior: Prior) -> TargetConfig:
    """`config` with a factor that the latents of `prior` can hold, where it is a latent one; this is logged."""
    if not isinstance(prior, LatentNoisePredictor):
        return config
    side = prior.size // prior.shrinks
    least = min(side, max(2, math.ceil(config.sampler.factor / prior.shrinks)))
    factor = prior.shrinks * next(part for part in range(least, side + 1) if side % part == 0)
    if factor == config.sampler.factor:
        return config
    log.info(
        "sampler.factor is %d instead of %d: latents hold multiples of %d from %d up that divide %d",
        factor, config.sampler.factor, prior.shrinks, 2 * prior.shrinks, prior.size,
    )  # fmt: skip
    return replace(config, sampler=replace(config.sampler, factor=factor))


def _sample(
    lq: Tensor,
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Pseudo targets of some faces, from which settings are resolved. callback: (faces x calls done, in all)."""

    def batches() -> Iterator[tuple[list[str], Tensor]]:
        names = [f"settled {i}" for i in range(len(lq))]
        for start in range(0, len(lq), config.batch_size):
            part = slice(start, start + config.batch_size)
            yield names[part], lq[part]

    def step(done: int, calls: int, preview: Tensor) -> None:
        if callback:
            callback(done, len(lq) * calls)

    drawn = draw_in_batches(batches(), restorer, prior, config, step)
    return torch.cat([targets.pseudo_target for _, targets in drawn])


def best_sampler(
    lq: Tensor,
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: Callable[[int, int], None] | None = None,
) -> SamplerConfig:
    """The sampler, among those that `config.search` asks for, whose targets come nearest to known answers.

    Each face's damage is put on the target of the next, which was drawn with the settings given, so that the face under
    the damage is known. lq: (B, 3, S, S) RGB in [0, 1]. With one face, or where no damage is found, the first sampler
    is as good as any. callback: as in `resolved_settings`, anew for each sampler.
    """
    plain = replace(config, search=(), detail=1.0)
    targets = _sample(lq, restorer, prior, plain, callback)
    known = targets.roll(1, 0)
    damaged = torch.stack([transplanted(*faces) for faces in zip(known, lq, targets, strict=True)])

    def score(sampler: SamplerConfig) -> float:
        made = _sample(damaged, restorer, prior, replace(plain, sampler=sampler), callback)
        return float(psnr(made, known).mean())

    return max(samplers_to_try(config.sampler, config.search, prior.size), key=score)


def samplers_to_try(sampler: SamplerConfig, search: Sequence[str], size: int) -> list[SamplerConfig]:
    """`sampler` with each combination of the settings named in `search`; factors divide `size`, the prior's."""
    starts = [sampler.t_start * x for x in SEARCHED["t_start"]] if "t_start" in search else [sampler.t_start]
    factors = [sampler.factor * x for x in SEARCHED["factor"]] if "factor" in search else [sampler.factor]
    found = []
    for start, factor in product(starts, factors):
        start, factor = max(1, min(round(start), sampler.num_steps - 1)), round(factor)
        end = round(sampler.t_constrain_end * start / sampler.t_start)
        if size % factor == 0:
            found.append(
                replace(sampler, t_start=start, t_constrain_end=end, factor=factor, calls=min(sampler.calls, start))
            )
    return found


def detail_gain(faces: Tensor) -> float:
    """What the high band of `faces` must be multiplied by to be as strong as in clean ones, next to the coarser band.

    faces: (B, 3, S, S) RGB in [0, 1]. Returns 1 if it is strong enough, at most `MAX_GAIN`. In natural images the
    energies of neighbouring bands are related (D. J. Field, 1987), much alike from face to face, at any contrast.
    """
    fine = high_band(faces, _sigma(faces))

    def ratio(gain: float) -> float:
        made = faces + (gain - 1) * fine
        high = high_band(made, _sigma(faces))
        coarser = high_band(made, 2 * _sigma(faces)) - high
        energy = (band.square().mean((1, 2, 3)).clamp_min(1e-12) for band in (high, coarser))
        return float((next(energy) / next(energy)).log10().mean())

    low, high = 1.0, MAX_GAIN
    if ratio(low) >= FINE_OVER_COARSER or float(fine.abs().max()) < 1e-4:
        return low
    for _ in range(8):  # the coarser band grows with it a little, so it is searched for, not computed
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < FINE_OVER_COARSER else (low, middle)
    return round(high, 2)


def _sigma(faces: Tensor) -> float:
    """Where detail begins: 1.5 pixels of a face 128 pixels wide."""
    return DETAIL_SIGMA * faces.shape[-1] / 128


def _cleaned(lq: Tensor, prior: Prior, num_steps: int, level: int) -> Tensor:
    image = resized(to_signed(lq), prior.size)
    return to_unit(resized(denoise_once(prior, image, num_steps, level), lq.shape[-1]))
