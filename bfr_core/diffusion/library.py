"""Classes of diffusers, where the diffusers that is installed goes with the PyTorch that is."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

import torch


def from_diffusers(*names: str, module: str = "diffusers") -> list[Any]:
    """The classes or functions of these names. Raises ImportError if diffusers is not installed, and ValueError if it
    asks of PyTorch, while it is loaded, what this one does not have: diffusers 0.36 does so of a PyTorch before 2.3."""
    try:
        library = import_module(module)
        return [getattr(library, name) for name in names]
    except (AttributeError, RuntimeError) as error:  # the latter is what diffusers makes of errors in parts of itself
        if hasattr(torch, "xpu"):  # it is something else
            raise
        raise ValueError(
            f"diffusers {metadata.version('diffusers')} does not load with torch {torch.__version__} ({error}); "
            "install one that is older: pip install 'diffusers<0.36'"
        ) from error
