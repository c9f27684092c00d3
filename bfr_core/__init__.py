"""BFR Adapt: tune a blind face restorer to damage it has never seen, with a diffusion prior and no clean photos."""

from .adaptation import AdaptConfig, adapt
from .finetuning import FinetuneConfig, finetune
from .lowpass import low_pass
from .prior import load_prior
from .pseudo_targets import TargetConfig, make_pseudo_targets
from .restore import RestoreConfig, restore_photo
from .restorers import load_restorer
from .sampler import SamplerConfig, sample_constrained

__version__ = "0.1.0"
__all__ = [
    "AdaptConfig",
    "FinetuneConfig",
    "RestoreConfig",
    "SamplerConfig",
    "TargetConfig",
    "adapt",
    "finetune",
    "load_prior",
    "load_restorer",
    "low_pass",
    "make_pseudo_targets",
    "restore_photo",
    "sample_constrained",
]
