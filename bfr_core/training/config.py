"""The settings of the tuning: what is asked of a restored face, how it is learned, and how it is judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..device import Precision, check_precision

TERMS = ("l1", "perceptual", "adversarial", "texture", "feature", "code")


# Settings that a tuning under way may change: how far it goes, how often it is looked at, and how much memory a pass
# takes, which changes its sums by rounding only. Any other starts it anew.
FREE = ("iterations", "minutes", "judge_every", "checkpoint_seconds", "micro_batch", "recompute")


@dataclass(frozen=True)
class FinetuneConfig:
    """Recipe of the fine-tuning; the defaults are the paper's for 512 x 512 restorers.

    iterations: optimizer steps. minutes: stop after so many minutes of tuning, over all sessions of the run; 0 = never.
    batch_size, micro_batch: faces per optimizer step and per pass through the network.
    lr, lr_end: Adam's learning rate at the start and at the end of a cosine. warmup: share of the tuning in which it
    rises from 0, so that the first, ill-informed steps of Adam undo little. halve_at: instead of the cosine, halve it
    at these shares of the tuning, as CodeFormer does.
    l1, perceptual, adversarial, texture: weights of the image losses; a term of weight 0 is not computed. The authors
    sum LPIPS over micro-batches of 4, which makes its weight 0.4 an image; here it is a mean, at the written weight.
    feature, code: weights of the code losses, which take the place of the image losses for CodeFormer.
    anchor: faces a step, as a share of batch_size, on which the restorer is held to what the base makes of ordinary
    blind damage, so that it stays good at what the base could do.
    transplant: share of the faces that get the damage of any face of the folder, put on their own target, see
    `transplant`.
    betas, critic_betas: Adam's, for the restorer and for the discriminator. critic_lr: learning rate of the
    discriminator throughout; 0 = that of the restorer. clip: largest norm of the restorer's gradient; 0 = any.
    mirror: whether half of the faces are mirrored. stochastic_depth: leave out parts of the network at random where it
    has such parts, as in its first training. perceptual_by: "any" measures the perceptual term by LPIPS where its file
    is, else by the prior's encoder; "lpips" takes nothing else.
    trainable: "full", or "lora" for low-rank changes of `rank` only, which need less memory and make a small file.
    recompute: keep only what passes between the network's blocks and compute the rest again; slower, less memory.
    discriminator_features: width of the discriminator. ema: decay of the moving average that becomes the result,
    0 = none; with ema_warmup it is less in the first steps.
    held_out: share of the faces on which checkpoints are compared and which are never trained on.
    judged_on: the damage that these have then: their "own", whose target is the base's work, which favours the base, or
    "transplanted", each the damage of the next, see `transplant`.
    judge_every: steps between comparisons. checkpoint_seconds: time between saved states.
    """

    iterations: int = 20_000
    minutes: float = 0.0
    batch_size: int = 16
    micro_batch: int = 4
    lr: float = 2e-5
    lr_end: float = 5e-6
    warmup: float = 0.0
    l1: float = 1.0
    perceptual: float = 0.1
    adversarial: float = 0.1
    texture: float = 0.0
    feature: float = 1.0
    code: float = 0.5
    halve_at: tuple[float, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    critic_betas: tuple[float, float] = (0.9, 0.99)
    critic_lr: float = 0.0
    clip: float = 1.0
    mirror: bool = True
    stochastic_depth: bool = False
    perceptual_by: Literal["any", "lpips"] = "any"
    trainable: Literal["full", "lora"] = "full"
    rank: int = 8
    recompute: bool = False
    anchor: float = 0.0
    transplant: float = 0.0
    discriminator_features: int = 64
    ema: float = 0.995
    ema_warmup: bool = True
    held_out: float = 0.1
    judged_on: Literal["own", "transplanted"] = "own"
    judge_every: int = 500
    checkpoint_seconds: float = 300.0
    seed: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; it must be 1 or more")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        for name in ("minutes", "lr_end", "checkpoint_seconds", *TERMS):
            if not getattr(self, name) >= 0:  # also where it is not a number
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.trainable not in ("full", "lora"):
            raise ValueError(f"trainable is {self.trainable!r}; it must be 'full' or 'lora'")
        for name in ("batch_size", "micro_batch", "judge_every", "rank", "discriminator_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("critic_lr", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.perceptual_by not in ("any", "lpips"):
            raise ValueError(f"perceptual_by is {self.perceptual_by!r}; it must be 'any' or 'lpips'")
        for name in ("anchor", "warmup", "transplant"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 to 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be 0 to less than 1")
        if not all(0 < share < 1 for share in self.halve_at):
            raise ValueError(f"halve_at is {self.halve_at}; each must be a share of the tuning between 0 and 1")
        check_precision(self.precision)
        if self.judged_on not in ("own", "transplanted"):
            raise ValueError(f"judged_on is {self.judged_on!r}; it must be 'own' or 'transplanted'")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; it must be 0 to less than 1")

    @property
    def lasting(self) -> dict[str, Any]:
        """The settings that a tuning under way depends on, by name: all but `FREE`."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every loss term, by name."""
        return {name: getattr(self, name) for name in TERMS}
