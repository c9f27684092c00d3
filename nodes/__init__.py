"""The ComfyUI nodes of this pack, listed one by one. Tested with ComfyUI 0.3.48, the oldest with this kind of nodes."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension

from . import host
from .adapt import FinetuneRestorer, MakePseudoTargets, SaveRestorer
from .compare import Compare, Degrade, DrawFaces
from .faces import FacesFromFolder, FacesFromImages, TargetsFromImages
from .low_band import HoldLowBand, LowBandFix
from .restore import LoadPrior, LoadRestorer, RestoreFaces

NODES: list[type[host.Node]] = [
    LoadRestorer,
    LoadPrior,
    FacesFromFolder,
    FacesFromImages,
    MakePseudoTargets,
    TargetsFromImages,
    FinetuneRestorer,
    SaveRestorer,
    RestoreFaces,
    Compare,
    Degrade,
    DrawFaces,
    HoldLowBand,
    LowBandFix,
]


class Extension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[host.Node]]:
        return NODES


async def comfy_entrypoint() -> Extension:
    """Called by ComfyUI once, when it has loaded the pack."""
    host.register_folders()
    if missing := host.missing_packages():
        logging.getLogger(__name__).warning("%s", missing)
    return Extension()
