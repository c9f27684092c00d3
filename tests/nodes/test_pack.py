"""The pack as ComfyUI loads it: a folder of any name, imported by path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import sys, types
from importlib.util import module_from_spec, spec_from_file_location

class Absent:  # a host in which nothing of ours could be installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "numpy", "PIL", "diffusers", "spandrel", "safetensors", "skimage"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
root, in_comfy = sys.argv[1], sys.argv[2] == "comfy"
if in_comfy:
    sys.modules["folder_paths"] = types.ModuleType("folder_paths")
sys.modules["nodes"] = types.ModuleType("nodes")  # ComfyUI has a module of this name
spec = spec_from_file_location("any-name", root + "/__init__.py", submodule_search_locations=[root])
pack = module_from_spec(spec)
sys.modules["any-name"] = pack
spec.loader.exec_module(pack)
print(sorted(name for name in vars(pack) if name.startswith("NODE_")))
"""


def load(host: str) -> str:
    command = [sys.executable, "-I", "-c", LOAD, str(ROOT), host]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_pack_loads_in_a_bare_host() -> None:
    assert load("comfy") == "['NODE_CLASS_MAPPINGS', 'NODE_DISPLAY_NAME_MAPPINGS']"


def test_pack_is_nothing_outside_comfyui() -> None:
    assert load("no host") == "[]"
