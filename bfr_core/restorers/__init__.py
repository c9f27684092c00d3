"""Networks that restore faces, behind one class; `load_restorer` opens a file, `ADAPTERS` lists the known kinds."""

from .base import Restorer
from .load import ADAPTERS, load_restorer, save_restorer

__all__ = ["ADAPTERS", "Restorer", "load_restorer", "save_restorer"]
