"""BFR Adapt as a ComfyUI node pack. Outside ComfyUI this file does nothing: use the package bfr_core."""

import sys
from importlib.util import find_spec

if "folder_paths" in sys.modules or find_spec("folder_paths") is not None:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"  # the nodes' help pages, and what shows their texts

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
