"""Everything that one adaptation depends on, and the recipes for small and for published restorers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..diffusion.sampler import SamplerConfig
from ..faces.detect import check_detector
from ..restorers import Restorer
from ..training.config import FinetuneConfig
from .good_faces import AlbumConfig
from .target_checks import GateConfig
from .targets import TargetConfig


@dataclass(frozen=True)
class FaceConfig:
    """How faces are taken from photos.

    aligned: the photos are standard crops already. detector, threshold: see `faces.detect.load_detector`.
    min_face: narrowest face, in photo pixels of its crop, that is used.
    """

    aligned: bool = False
    detector: str = "auto"
    threshold: float = 0.5
    min_face: int = 32

    def __post_init__(self) -> None:
        check_detector(self.detector, self.threshold)
        if self.min_face < 1:
            raise ValueError(f"min_face is {self.min_face}; it must be 1 pixel or more")


@dataclass(frozen=True)
class AdaptConfig:
    """Everything one adaptation depends on. restorer, prior: "embedded" or a file or folder.

    recipe: name of what the settings started from, see `published`.
    """

    recipe: str = "recommended"
    restorer: str = "embedded"
    prior: str = "embedded"
    faces: FaceConfig = field(default_factory=FaceConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    album: AlbumConfig = field(default_factory=AlbumConfig)


# Recipe for small networks at 128 x 128, where a step takes a quarter of a second on a CPU; the dataclasses' own
# defaults are the paper's, for 512 x 512.
SMALL = AdaptConfig(
    targets=TargetConfig(
        sampler=SamplerConfig(t_start=16, t_constrain_end=2, factor=2, calls=3), t_clean="auto", detail=1.1
    ),
    finetune=FinetuneConfig(
        iterations=1800,
        batch_size=2,
        micro_batch=2,
        lr=8e-4,
        warmup=0.05,
        lr_end=2e-5,
        perceptual=0.0,
        adversarial=0.0,
        texture=0.8,
        anchor=0.5,
        transplant=0.5,
        ema=0.99,
        judged_on="transplanted",
        judge_every=200,
        checkpoint_seconds=20,
    ),
)


# CodeFormer is tuned by its codes; the figures are those of arXiv:2410.04618.
CODES = FinetuneConfig(iterations=40_000, batch_size=8, lr=1e-4, halve_at=(0.875, 0.95), ema=0.995)


# Settings, by dotted path, for a small graphics card; what the user sets by hand comes after them.
LOW_MEMORY = {
    "targets.batch_size": 1,
    "finetune.micro_batch": 1,
    "finetune.recompute": True,
    "finetune.trainable": "lora",
    "finetune.adversarial": 0.0,
}


def recipe(restorer: Restorer) -> AdaptConfig:
    """Default settings for tuning `restorer`: the paper's, or `SMALL` for small networks.

    Raises ValueError for several restorers in one.
    """
    if not restorer.can_be_tuned:
        raise ValueError(f"{restorer.name}: is several restorers in one; give the one to tune, or their base")
    if restorer.size <= 256:
        return SMALL
    default = AdaptConfig()
    if restorer.tuned_by_codes:
        return replace(default, finetune=CODES)
    if restorer.architecture == "SwinIR":
        return replace(default, targets=TargetConfig(sampler=replace(default.targets.sampler, factor=16)))
    return default
