"""Everything that one adaptation depends on, and the recipes for small and for published restorers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..diffusion.sampler import SamplerConfig
from ..faces.detect import DETECTOR_TEXT, DETECTORS, THRESHOLD_TEXT
from ..restorers import Restorer
from ..settings import check_settings, setting
from ..training.config import FinetuneConfig
from .good_faces import AlbumConfig
from .people import PeopleConfig
from .target_checks import TargetCheckConfig
from .targets import TargetConfig

RECOMMENDED, PUBLISHED_RECIPE = "recommended", "published"
RECIPES = (RECOMMENDED, PUBLISHED_RECIPE)
# What switches do that are no settings themselves, in the words of command line, page and nodes.
LOW_MEMORY_TEXT = (
    "Whether less memory is used and more time taken: low-rank changes are tuned, one face a pass, with recomputed "
    "activations and without the adversarial loss."
)
MIXED_TEXT = (
    "Whether groups of faces that share a damage are found, and each gets an adaptation of its own. When photos are "
    "restored, each face goes to the restorer for its damage, or to the base if it belongs to no group."
)
FIRST_LOOK_TEXT = (
    "A first look adapts to three faces in a few minutes, shows them before and after, says how long all faces "
    "will take, and stops there."
)


@dataclass(frozen=True)
class FaceConfig:
    """How faces are taken from photos."""

    aligned: bool = setting(
        False,
        "Whether the pictures, also the good ones that are given, are aligned square faces already, so that no faces "
        "are looked for.",
        label="The pictures are cut-out, square faces already",
    )
    detector: str = setting(
        "auto",
        DETECTOR_TEXT,
        choices=DETECTORS,
        label="Face detector",
    )
    threshold: float = setting(0.5, THRESHOLD_TEXT, low=0, high=1, label="Detector threshold")
    min_face: int = setting(
        32,
        "The narrowest face that is used, measured in the photo.",
        unit="pixels",
        low=1,
        label="Smallest face",
    )

    def __post_init__(self) -> None:
        check_settings(self, "faces")


@dataclass(frozen=True)
class AdaptConfig:
    """Everything that one adaptation depends on."""

    recipe: str = setting(
        RECOMMENDED,
        "The settings to start from: recommended suits the restorer's size and kind, and published is "
        "arXiv:2410.04618 to the letter. Settings that are given change it.",
        choices=RECIPES,
        label="Recipe",
    )
    restorer: str = setting(
        "embedded",
        "The restorer to tune: a file, or embedded for the built-in one of 256 pixels.",
        label="Restorer to tune",
    )
    prior: str = setting(
        "embedded",
        "The diffusion prior: a file, a diffusers folder, or embedded for the built-in one of 256 pixels.",
        label="Prior",
    )
    faces: FaceConfig = field(default_factory=FaceConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    gate: TargetCheckConfig = field(default_factory=TargetCheckConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    album: AlbumConfig = field(default_factory=AlbumConfig)
    people: PeopleConfig = field(default_factory=PeopleConfig)


# Recipe for small networks of up to 256 x 256 pixels, where a step takes half a second of a CPU; the dataclasses' own
# defaults are for 512 x 512, where they follow the paper more closely; its own settings are in `published`.
SMALL = AdaptConfig(
    targets=TargetConfig(
        sampler=SamplerConfig(t_start=16, t_constrain_end=2, factor=2, calls=3), t_clean="auto", detail=1.1
    ),
    finetune=FinetuneConfig(
        iterations=1000,
        batch_size=2,
        micro_batch=2,
        lr=8e-4,
        warmup=0.05,
        lr_end=2e-5,
        perceptual=0.3,
        adversarial=0.0,
        hatching=5.0,
        shift=4,
        anchor=1.0,
        transplant=0.5,
        sharp=1.0,
        ema=0.99,
        judged_on="sharp",
        judge_every=200,
        checkpoint_seconds=20,
    ),
)


# Beside the embedded prior's targets, which are soft, sharp faces alone teach most; but targets that somebody brings
# from another teacher are to be learned from.
MOST_SHARP_BESIDE_BROUGHT = 0.5

# CodeFormer is tuned on codes; the values are those of arXiv:2410.04618.
CODES = FinetuneConfig(iterations=40_000, batch_size=8, lr=1e-4, halve_at=(0.875, 0.95), ema=0.995)


# Settings, by dotted path, for a small graphics card; settings that the user gives override them.
LOW_MEMORY = {
    "targets.batch_size": 1,
    "finetune.micro_batch": 1,
    "finetune.recompute": True,
    "finetune.trainable": "lora",
    "finetune.adversarial": 0.0,
}


def recipe(restorer: Restorer) -> AdaptConfig:
    """Default settings for tuning `restorer`: those of `AdaptConfig()`, or `SMALL` for networks of up to 256 pixels.

    Raises ValueError for a restorer that cannot be tuned: several in one, or an ONNX file.
    """
    if restorer.not_tuned_because:
        raise ValueError(f"{restorer.name}: {restorer.not_tuned_because}")
    if restorer.size <= 256:
        return SMALL
    default = AdaptConfig()
    if restorer.tuned_by_codes:
        return replace(default, finetune=CODES)
    if restorer.architecture == "SwinIR":
        return replace(default, targets=TargetConfig(sampler=replace(default.targets.sampler, factor=16)))
    return default


def with_brought_targets(config: AdaptConfig) -> AdaptConfig:
    """`config` for targets that another program made: they are at least half of the answers that are learned."""
    sharp = min(config.finetune.sharp, MOST_SHARP_BESIDE_BROUGHT)
    return replace(config, finetune=replace(config.finetune, sharp=sharp))
