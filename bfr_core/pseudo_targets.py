"""Stage 1: from a damaged face to a clean face that agrees with it. Source: arXiv:2410.04618, section 3.1."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .draws import keyed_noise
from .images import to_signed, to_unit
from .precision import Precision, autocast
from .prior import Prior
from .restorers import Restorer
from .sampler import Callback, SamplerConfig, denoise_once, sample_constrained

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetConfig:
    """How pseudo targets are made.

    sampler: see `SamplerConfig`. reference: what the low band is taken from, the restored face or the damaged one.
    t_clean: before it is restored, the damaged face is taken for a clean one under noise of this level, counted like
    t_start, and cleaned by one call of the prior: noise that the restorer never saw no longer reaches the reference.
    0 = not, as in the paper.
    batch_size: faces per network call. seed: of the draws, which are keyed by face.
    """

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    reference: Literal["restored", "lq"] = "restored"
    t_clean: int = 0
    batch_size: int = 8
    seed: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.t_clean < self.sampler.num_steps:
            last = self.sampler.num_steps - 1
            raise ValueError(f"t_clean is {self.t_clean}; it must be 0 (not) to num_steps - 1 = {last}")

    @property
    def network_calls(self) -> int:
        """Evaluations of the prior that one face takes."""
        return self.sampler.network_calls + (self.t_clean > 0)


class Targets(NamedTuple):
    """restored, pseudo_target: (B, 3, S, S) RGB in [0, 1], both on the CPU."""

    restored: Tensor
    pseudo_target: Tensor


@torch.no_grad()
def make_pseudo_targets(
    lq: Tensor,
    names: Sequence[str],
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: Callback | None = None,
) -> Targets:
    """Clean, consistent versions of damaged faces.

    lq: (B, 3, S, S) RGB in [0, 1], S the restorer's size. names: one a face; each keys its face's draws.
    callback: (network call, network calls, preview in [-1, 1]); what it raises ends the sampling.
    Faces are resized to the prior's size and back if it differs from S. Where the memory is too small for all at once,
    halves are taken; the targets are the same.
    """
    try:
        return _make(lq, names, restorer, prior, config, callback)
    except torch.cuda.OutOfMemoryError:
        if len(lq) == 1:
            raise
    log.warning("too little memory for %d faces at once; going on with half as many", len(lq))
    torch.cuda.empty_cache()
    parts = [
        make_pseudo_targets(lq[part], names[part], restorer, prior, config, callback)
        for part in (slice(0, len(lq) // 2), slice(len(lq) // 2, None))
    ]
    return Targets(*(torch.cat(kind) for kind in zip(*parts, strict=True)))


def _make(
    lq: Tensor,
    names: Sequence[str],
    restorer: Restorer,
    prior: Prior,
    config: TargetConfig,
    callback: Callback | None,
) -> Targets:
    device = restorer.device
    with autocast(device, config.precision):
        if config.t_clean:
            lq = _cleaned(lq.to(device), prior, config)
        restored = restorer.restore(lq)
        reference = to_signed(restored if config.reference == "restored" else lq.to(device))
        reference = _resized(reference, prior.size)
        noise = keyed_noise(config.seed, "targets", names, device)
        target = sample_constrained(prior, reference, config.sampler, noise, callback)
    return Targets(restored.cpu(), to_unit(_resized(target, lq.shape[-1])).cpu())


def _cleaned(lq: Tensor, prior: Prior, config: TargetConfig) -> Tensor:
    image = _resized(to_signed(lq), prior.size)
    return to_unit(_resized(denoise_once(prior, image, config.sampler.num_steps, config.t_clean), lq.shape[-1]))


def _resized(image: Tensor, size: int) -> Tensor:
    if image.shape[-1] == size:
        return image
    return F.interpolate(image, (size, size), mode="bicubic", antialias=True, align_corners=False)
