"""Work that is long for a user's sake and short for tests: the search for a folder's damage, the faces of a folder that
are examined before, the verdict's trials, the size at which faces are checked, and the sharp faces of a benchmark's
control.

A program that a test starts is short, too, if a folder with `write_sitecustomize` is on its path. The pack has another
name in each host, so its modules are told by the end of their names when they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

# By module: what is set in it.
SHORT = {
    "bfr_core.damage.search": {"POPULATION": 6},
    "bfr_core.adaptation.folder_damage": {
        "TRIALS": 12, "AT_ONCE_SMALL": 4, "COMPARED": 12, "ESTIMATED_FACES": 4, "SHARP_COMPARED": 12,
    },
    "bfr_core.adaptation.forecast": {
        "TRIALS": 12, "POPULATION": 6, "COMPARED": 12, "ESTIMATED_FACES": 4, "EXAMINED_FACES": 4,
        "SEARCH_FACES": 4,
    },
    "bfr_core.adaptation.target_stage": {"EXAMINED_FACES": 4},
    "bfr_core.adaptation.targets": {"SEARCH_FACES": 4},
    "bfr_core.adaptation.tuning": {"ESTIMATED_FACES": 4},
    "bfr_core.adaptation.cleaning": {"KNOWN": 2},
    "bfr_core.adaptation.target_checks": {"CHECKED_SIZE": 64},  # the faces of most tests have 32 pixels a side
    "bfr_core.adaptation.verdict": {"TRIED": 4},
    "bfr_core.faces.sharp_faces": {"KEPT_APART": 4},
    "bfr_core.studies.benchmark": {"GENERIC_PAIRS": 8},
}  # fmt: skip

SHORTENING = f"""
import importlib.machinery

short = {SHORT!r}
loader = importlib.machinery.SourceFileLoader
in_full = loader.exec_module

def exec_module(self, module):
    in_full(self, module)
    for name, values in short.items():
        if module.__name__.endswith(name):
            vars(module).update(values)

loader.exec_module = exec_module
"""


def shorten(put: Callable[[str, str, int], None]) -> None:
    """Call `put`(module, name, value) for all that is set."""
    for module, values in SHORT.items():
        for name, value in values.items():
            put(module, name, value)


def write_sitecustomize(folder: Path, more: str = "") -> Path:
    """`folder`, on PYTHONPATH, then shortens that work, and runs `more` when Python starts."""
    (folder / "sitecustomize.py").write_text(SHORTENING + more)
    return folder
