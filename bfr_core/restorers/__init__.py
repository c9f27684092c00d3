"""Networks that restore faces, behind one class; `load_restorer` opens a file, `ADAPTERS` lists the known kinds."""

from .base import Restorer
from .load import ADAPTERS, export_pth, load_restorer, save_change, save_restorer

__all__ = ["ADAPTERS", "Restorer", "export_pth", "load_restorer", "save_change", "save_restorer"]
