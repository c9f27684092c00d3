"""The objectives of the tuning: a restorer is to match the pixels of the pseudo targets, or their codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..damage.grey import is_grey
from ..device import full_precision
from ..restorers import Restorer
from ..restorers.codeformer import CodeFormer, code_losses
from .losses import ImageLoss, hatching_loss, pixel_loss, texture_loss


class Batch(NamedTuple):
    """lq, target: (B, 3, S, S) RGB in [0, 1]. keys: (face, mirrored) of each, by which computed codes are kept.

    seen: rows and columns of the faces that the perceptual loss sees.
    """

    lq: Tensor
    target: Tensor
    keys: list[tuple[int, bool]]
    seen: tuple[slice, slice] = (slice(None), slice(None))

    def placed(self, restorer: Restorer) -> Batch:
        """This batch on the device and in the memory format of `restorer`."""
        return self._replace(lq=restorer.placed(self.lq), target=self.target.to(restorer.device))


class Terms(NamedTuple):
    """losses: unweighted, by the name of their weight in the settings. restored: for the discriminator, or None."""

    losses: dict[str, Tensor]
    restored: Tensor | None


class Objective(Protocol):
    """What a tuning minimises."""

    def terms(self, student: Restorer, batch: Batch) -> Terms:
        """The losses of the student on a batch, with their gradients."""
        ...

    def anchor(self, student: Restorer, lq: Tensor) -> dict[str, Tensor]:
        """Terms that hold the student to what the base makes of `lq`."""
        ...


class Pixels:
    """Image losses, for SwinIR, GFPGAN, RestoreFormer and the embedded restorer. Terms of weight 0 are not computed."""

    def __init__(self, base: Restorer, weights: Mapping[str, float], perceptual: ImageLoss | None) -> None:
        self.base, self.weights, self.perceptual = base, weights, perceptual

    def terms(self, student: Restorer, batch: Batch) -> Terms:
        restored = student(batch.lq)
        losses = self._compare(at_least_float32(restored), batch.target)
        if self.weights["perceptual"] and self.perceptual is not None:
            rows, columns = batch.seen
            images = at_least_float32(restored), batch.target
            losses["perceptual"] = self.perceptual(*(image[:, :, rows, columns] for image in images))
        return Terms(losses, restored)

    def anchor(self, student: Restorer, lq: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = at_least_float32(self.base(lq)).clamp(0, 1)
        return self._compare(at_least_float32(student(lq)), wanted)

    def _compare(self, restored: Tensor, target: Tensor) -> dict[str, Tensor]:
        losses = {"l1": pixel_loss(restored, target)}
        if self.weights["texture"]:
            losses["texture"] = texture_loss(restored, target)
        if self.weights["hatching"]:
            losses["hatching"] = hatching_loss(restored, target)
        return losses


class Codes:
    """Code losses, for CodeFormer. The base computes the codes of a pseudo target once, and they are kept.

    A target with the damage of a grey face is grey, and has codes of its own.
    """

    def __init__(self, base: CodeFormer) -> None:
        self.base = base
        self._kept: dict[tuple[int, bool, bool], Tensor] = {}

    def terms(self, student: Restorer, batch: Batch) -> Terms:
        keys = [(*key, is_grey(target)) for key, target in zip(batch.keys, batch.target, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self._kept]
        if missing:
            for i, codes in zip(missing, self.base.target_codes(batch.target[missing]).cpu(), strict=True):
                self._kept[keys[i]] = codes.short()
        codes = torch.stack([self._kept[key] for key in keys]).to(batch.lq.device).long()
        return Terms(code_losses(_codeformer(student).codes(batch.lq), codes, self.base.codebook), None)

    def anchor(self, student: Restorer, lq: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), full_precision(lq.device):  # rounding would choose other codes
            codes = self.base.codes(lq).logits.argmax(2)
        return code_losses(_codeformer(student).codes(lq), codes, self.base.codebook)


def objective_of(base: Restorer, weights: Mapping[str, float], perceptual: ImageLoss | None) -> Objective:
    """The objective that fits the restorer. weights: of the terms, by name."""
    return Codes(base) if isinstance(base, CodeFormer) else Pixels(base, weights, perceptual)


def at_least_float32(image: Tensor) -> Tensor:
    """`image` in float32, or in float64 if it is."""
    return image.to(torch.promote_types(image.dtype, torch.float32))


def weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of the terms."""
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


def _codeformer(restorer: Restorer) -> CodeFormer:
    assert isinstance(restorer, CodeFormer)  # a student is a copy of its base
    return restorer
