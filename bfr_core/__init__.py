"""BFR Adapt: tune a blind face restorer to damage it has never seen, with a diffusion prior and no clean photos.

The names below are loaded when they are first used, so that the command line can prepare the threads before torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adaptation.adapt import adapt
    from .adaptation.config import AdaptConfig, recipe
    from .adaptation.targets import TargetConfig, make_pseudo_targets
    from .diffusion.low_pass import low_pass
    from .diffusion.prior import load_prior
    from .diffusion.sampler import SamplerConfig, sample_constrained
    from .restoration.restore import RestoreConfig, restore_photo
    from .restoration.video import restore_frames
    from .restorers import load_restorer
    from .training.config import FinetuneConfig
    from .training.finetune import finetune

__version__ = "0.2.0"
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
    "recipe",
    "restore_frames",
    "restore_photo",
    "sample_constrained",
]
_PLACES = {
    "AdaptConfig": "adaptation.config",
    "FinetuneConfig": "training.config",
    "RestoreConfig": "restoration.restore",
    "SamplerConfig": "diffusion.sampler",
    "TargetConfig": "adaptation.targets",
    "adapt": "adaptation.adapt",
    "finetune": "training.finetune",
    "load_prior": "diffusion.prior",
    "load_restorer": "restorers",
    "low_pass": "diffusion.low_pass",
    "make_pseudo_targets": "adaptation.targets",
    "recipe": "adaptation.config",
    "restore_frames": "restoration.video",
    "restore_photo": "restoration.restore",
    "sample_constrained": "diffusion.sampler",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
