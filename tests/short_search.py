"""A program that a test starts searches for a folder's damage only briefly, if a folder with this is on its path.

The pack has another name in each host, so it is told by the end of its module's name when that is loaded.
"""

from __future__ import annotations

from pathlib import Path

SHORT_SEARCH = """
import importlib.machinery

loader = importlib.machinery.SourceFileLoader
in_full = loader.exec_module

def exec_module(self, module):
    in_full(self, module)
    if module.__name__.endswith("bfr_core.adaptation.folder_damage"):
        module.TRIALS = 24  # as in `few_trials`

loader.exec_module = exec_module
"""


def write_sitecustomize(folder: Path, more: str = "") -> None:
    """`folder`, on PYTHONPATH, then shortens the search, and runs `more` when Python starts."""
    (folder / "sitecustomize.py").write_text(SHORT_SEARCH + more)
