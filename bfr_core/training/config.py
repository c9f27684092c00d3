"""The settings of the tuning: its losses, how it learns, and how its states are compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..device import PRECISIONS, Precision
from ..settings import check_settings, setting

TERMS = ("l1", "perceptual", "adversarial", "texture", "hatching", "feature", "code")


# Settings that may change while a tuning is under way: how far it goes, how often it is judged and saved, and how much
# memory a pass takes, which changes its sums by rounding only (with stochastic depth also which parts are left out of
# the network). A change of any other starts the tuning anew.
FREE = ("iterations", "minutes", "judge_every", "checkpoint_seconds", "micro_batch", "recompute")


@dataclass(frozen=True)
class FinetuneConfig:
    """Recipe of the fine-tuning; the defaults are for restorers of 512 x 512 pixels, see `adaptation.published`."""

    iterations: int = setting(
        20_000, "How many steps the restorer is tuned for.", unit="steps", low=1, label="Tuning steps"
    )
    minutes: float = setting(
        0.0,
        "How long the restorer is tuned at most, over all sessions of the run; 0 tunes until the steps are done.",
        unit="minutes",
        low=0,
        label="Minutes of tuning at most",
    )
    batch_size: int = setting(
        16, "How many faces one step of the tuning learns from.", unit="faces", low=1, label="Faces per step"
    )
    micro_batch: int = setting(
        4,
        "How many faces are in the network at once while it is tuned. Fewer need less memory.",
        unit="faces",
        low=1,
        label="Faces at once while tuning",
    )
    lr: float = setting(
        2e-5,
        "The highest learning rate, from which it falls to the end of the tuning.",
        above=0,
        label="Learning rate",
    )
    lr_end: float = setting(5e-6, "The learning rate at the end of the tuning, reached along a cosine.", low=0)
    warmup: float = setting(
        0.0,
        "Share of the tuning in which the learning rate rises from 0, so that its ill-informed first steps do no harm.",
        low=0,
        high=1,
    )
    l1: float = setting(
        1.0,
        "Weight of the pixel loss (L1). A loss of weight 0 is not computed.",
        low=0,
        label="Pixel loss",
    )
    perceptual: float = setting(
        0.1,
        "Weight of the perceptual loss, which keeps faces from growing soft; a mean over the faces. The authors sum "
        "LPIPS over parts of four faces, which makes their weight 0.4.",
        low=0,
        label="Perceptual loss",
    )
    adversarial: float = setting(0.1, "Weight of the adversarial loss.", low=0, label="Adversarial loss")
    texture: float = setting(
        0.0, "Weight of the texture loss, which works against plastic skin; 0 leaves it out.", low=0, label="Texture"
    )
    hatching: float = setting(
        0.0,
        "Weight of the hatching loss, which works against regular patterns of two pixels that are stronger than in the "
        "target; 0 leaves it out.",
        low=0,
        label="Hatching",
    )
    feature: float = setting(
        1.0, "Weight of the code feature loss, which CodeFormer is tuned by in place of the image losses.", low=0
    )
    code: float = setting(
        0.5, "Weight of the code prediction loss, which CodeFormer is tuned by in place of the image losses.", low=0
    )
    halve_at: tuple[float, ...] = setting(
        (),
        "Shares of the tuning at which the learning rate is halved, in place of the cosine, as CodeFormer's is.",
        above=0,
        below=1,
        kind=float,
    )
    betas: tuple[float, float] = setting((0.9, 0.999), "Adam's betas for the restorer.", low=0, below=1, count=2)
    critic_betas: tuple[float, float] = setting(
        (0.9, 0.99), "Adam's betas for the discriminator.", low=0, below=1, count=2
    )
    critic_lr: float = setting(
        0.0, "Learning rate of the discriminator throughout; 0 takes that of the restorer.", low=0
    )
    clip: float = setting(1.0, "Largest norm of the restorer's gradient; 0 does not limit it.", low=0)
    mirror: bool = setting(True, "Whether half of the faces are mirrored.")
    stochastic_depth: bool = setting(
        False,
        "Whether parts of the network are left out at random, as in its first training, where it has such parts.",
    )
    perceptual_by: Literal["any", "lpips"] = setting(
        "any",
        "The network of the perceptual loss: any takes LPIPS if its file is there, else the prior's encoder; lpips "
        "takes LPIPS only.",
        choices=("any", "lpips"),
    )
    shift: int = setting(
        0,
        "The perceptual loss sees the faces without this many rows and columns, some of them at the upper left, drawn "
        "for every step, so that no pattern in step with the strides of its network is rewarded.",
        unit="pixels",
        low=0,
        high=15,
    )
    trainable: Literal["full", "lora"] = setting(
        "full",
        "Which part of the restorer is tuned: full tunes all of it, lora low-rank changes only, which need less memory "
        "and are saved as a small file as well.",
        choices=("full", "lora"),
    )
    rank: int = setting(8, "Rank of the low-rank changes.", low=1)
    recompute: bool = setting(
        False,
        "Whether the network's inner values (activations) are computed again instead of being kept, which is slower "
        "and needs less memory.",
    )
    anchor: float = setting(
        0.0,
        "How many faces with ordinary blind damage each step sees besides its own, as a share of the batch, and the "
        "weight of their loss; 1 adds as many again. On them the restorer is held to what the base makes of them, so "
        "that it stays good at what the base could do.",
        low=0,
        high=1,
        label="Keep old skills",
    )
    transplant: float = setting(
        0.0,
        "Share of the faces that get the damage of any face of the folder, put on their own target.",
        low=0,
        high=1,
        label="Mix damages",
    )
    sharp: float = setting(
        0.0,
        "Share of the faces that are sharp faces of other people, given the damage of the whole folder, so that their "
        "true answer is known; the others are the folder's own, whose answers are pseudo targets. To find that damage "
        "takes minutes on a CPU; 0 does without both, as the paper does.",
        low=0,
        high=1,
        label="Learn from sharp faces",
    )
    discriminator_features: int = setting(64, "Width of the discriminator.", unit="channels", low=1)
    ema: float = setting(
        0.995, "Decay of the moving average of the weights that becomes the result; 0 takes none.", low=0, below=1
    )
    ema_warmup: bool = setting(True, "Whether the decay of the moving average is lower in the first steps.")
    held_out: float = setting(
        0.1,
        "Share of the faces that are never trained on; the states of the tuning are compared on them.",
        low=0,
        below=1,
    )
    judged_on: Literal["own", "transplanted", "sharp"] = setting(
        "own",
        "The damage that the held-out faces have when they are judged: own is their own, whose target is the base's "
        "work and favours it; transplanted gives each the damage of the next; sharp puts their damage on sharp faces "
        "of other people, whose answer is known, and is transplanted where there are none.",
        choices=("own", "transplanted", "sharp"),
    )
    judge_every: int = setting(
        500, "How many steps lie between two comparisons on the held-out faces.", unit="steps", low=1
    )
    checkpoint_seconds: float = setting(
        300.0, "How long the tuning goes on between two saved states.", unit="seconds", low=0
    )
    seed: int = setting(0, "Seed of the tuning's random numbers; another seed gives others.", label="Seed")
    precision: Precision = setting(
        "auto",
        "Number format in which the restorer computes while it is tuned; auto chooses by the hardware.",
        choices=PRECISIONS,
    )

    def __post_init__(self) -> None:
        check_settings(self, "finetune")

    @property
    def lasting(self) -> dict[str, Any]:
        """The settings that a tuning under way depends on, by name: all but `FREE`."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every loss term, by name."""
        return {name: getattr(self, name) for name in TERMS}
