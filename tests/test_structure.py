"""The shape of the project: which module may import which, and what must not be written anywhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from installation.packages import canonical, read_requirements

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "bfr_core"

# A module may import from its own layer and from those above it in this list, never from below.
LAYERS = (
    (
        "images",
        "provenance",
        "tone",
        "lowpass",
        "schedule",
        "draws",
        "precision",
        "unet",
        "checkpoints",
        "weights",
        "runs",
    ),
    (
        "restorers",
        "lowrank",
        "prior",
        "sampler",
        "noise_level",
        "losses",
        "faces",
        "degradations",
        "damage_groups",
        "transplant",
        "metrics",
        "optional_metrics",
        "pictures",
    ),
    (
        "restore",
        "pseudo_targets",
        "objectives",
        "finetuning",
        "gate",
        "album",
        "adaptation",
        "ablation",
        "benchmark",
        "paper_table",
        "evaluate",
        "inspection",
        "verdict",
        "report",
        "summary",
        "vote",
        "mixed",
        "jobs",
    ),
    (
        "cli",
        "page",
        "hosted",
        "http_api",
        "ui",
        "gradio_compat",
        "demo",
        "verification",
        "__init__",
        "__main__",
    ),
)
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}
# Slow to import, or absent in some hosts: imported inside the function that uses them.
HEAVY = {
    "facexlib",
    "lpips",
    "diffusers",
    "spandrel",
    "spandrel_extra_arches",
    "gradio",
    "skimage",
    "matplotlib",
    "cv2",
    "av",
    "pyiqa",
}
# Host and page packages -> the only places that may import them.
KEPT_TO = {
    "comfy": ("nodes",),
    "comfy_api": ("nodes",),
    "comfy_execution": ("nodes",),
    "server": ("nodes",),
    "folder_paths": ("nodes",),
    "modules": ("scripts",),
    "gradio": ("bfr_core/ui.py", "bfr_core/gradio_compat.py"),
    "fastapi": ("bfr_core/http_api.py",),
    "starlette": ("bfr_core/gradio_compat.py",),
}
PACKAGE_OF = {"PIL": "pillow", "skimage": "scikit-image", "cv2": "opencv-python-headless"}
OWN = {"bfr_core", "nodes", "installation", "install", "tools", "tests"}
OWN |= {
    "train_embedded",
    "train_landmarks",
    "published_shapes",
    "api_graph",
    "node_help",
}  # in tools/, which the tests can import
FOLDERS = (
    "bfr_core",
    "installation",
    "nodes",
    "scripts",
    "tools",
    "tests",
    "benchmarks",
    "workflows",
    "locales",
    "web",
)
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ".sh", ".js"}


def text_files() -> list[Path]:
    """Every text file of the project; what git ignores is in none of these places."""
    inside = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    files = [path for path in [*sorted(ROOT.glob("*")), *inside] if path.suffix in TEXT and path.is_file()]
    return [*files, ROOT / ".ci" / "run"]


def modules(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if "third_party" not in path.parts]


def imports(node: ast.AST, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements below `node`: all of them, or only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (runs_later(child) and not everywhere):
            yield from imports(child, everywhere)


def runs_later(node: ast.AST) -> bool:
    """Whether what is below `node` does not run at import."""
    only_for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    return only_for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def absolute_names(path: Path, everywhere: bool) -> set[str]:
    """Top-level packages that a file imports by absolute name."""
    names = set()
    for statement in imports(ast.parse(path.read_text(encoding="utf-8")), everywhere):
        if isinstance(statement, ast.Import):
            names |= {alias.name.split(".")[0] for alias in statement.names}
        elif not statement.level and statement.module:
            names.add(statement.module.split(".")[0])
    return names


def core_imports(path: Path) -> set[str]:
    """Modules directly below bfr_core that a file of bfr_core imports, wherever in the file."""
    package = path.relative_to(CORE).parts[:-1]
    names = set()
    for statement in imports(ast.parse(path.read_text(encoding="utf-8")), everywhere=True):
        if isinstance(statement, ast.ImportFrom) and statement.level:
            above = package[: len(package) - statement.level + 1]
            module = (*above, *(statement.module.split(".") if statement.module else ()))
            names |= {module[0]} if module else {alias.name for alias in statement.names}
    return names


def unit(path: Path) -> str:
    """The module or folder directly below bfr_core that a file belongs to."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def test_relative_imports_are_understood() -> None:
    assert {"images", "finetuning"} <= core_imports(CORE / "adaptation.py")
    assert "checkpoints" in core_imports(CORE / "restorers" / "load.py")
    assert core_imports(CORE / "lowpass.py") == set()


def test_every_module_has_a_layer() -> None:
    unknown = {unit(path) for path in modules(CORE)} - set(LAYER)
    assert not unknown, f"add {sorted(unknown)} to LAYERS"


@pytest.mark.parametrize("path", modules(CORE), ids=lambda path: path.relative_to(CORE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    above = [name for name in core_imports(path) if LAYER.get(name, 0) > LAYER[unit(path)]]
    assert not above, f"{path.name} imports from a layer that is built on it: {above}"


def test_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules(CORE):
        graph.setdefault(unit(path), set()).update(core_imports(path) - {unit(path)})
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_core_imports_itself_relatively() -> None:
    for path in modules(CORE):
        absolute = absolute_names(path, everywhere=True) & OWN
        assert not absolute, f"{path.name} imports {absolute} absolutely: in ComfyUI the pack has another name"


@pytest.mark.parametrize("package", KEPT_TO)
def test_hosts_stay_in_their_folders(package: str) -> None:
    for folder in ("bfr_core", "nodes", "scripts", "tools", "installation"):
        for path in modules(ROOT / folder):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(KEPT_TO[package]):
                assert package not in absolute_names(path, everywhere=True), f"{name} imports {package}"


def test_heavy_packages_are_imported_where_used() -> None:
    for path in [*modules(CORE), *modules(ROOT / "nodes"), *modules(ROOT / "scripts"), ROOT / "__init__.py"]:
        heavy = absolute_names(path, everywhere=False) & HEAVY
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy} at its top"


def test_core_loads_where_heavy_packages_are_missing() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules(CORE)]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = f"import sys\nfor name in {sorted(HEAVY)}: sys.modules[name] = None\nimport {', '.join(names)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_package_used_is_declared() -> None:
    files = [ROOT / "requirements.txt", ROOT / "requirements-optional.txt"]
    declared = {requirement.name for file in files for requirement in read_requirements(file)}
    extras = re.findall(
        r"^(?:run|test) = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(extras) == 2
    declared |= {canonical(name) for line in extras for name in re.findall(r'"([A-Za-z0-9_-]+)', line)}
    elsewhere = set(KEPT_TO) | {"spandrel_extra_arches", "pip", "pyiqa"}
    for folder in ("bfr_core", "nodes", "scripts", "tools", "tests", "benchmarks"):
        files = modules(ROOT / folder)
        local = OWN | elsewhere | {path.stem for path in files}
        for path in files:
            used = absolute_names(path, everywhere=True) - set(sys.stdlib_module_names) - local
            foreign = {PACKAGE_OF.get(name, canonical(name)) for name in used} - declared
            assert not foreign, (
                f"{path.relative_to(ROOT)} uses {foreign}: declare it in requirements.txt or pyproject.toml"
            )


def test_no_drawer_files() -> None:
    drawers = {"utils.py", "misc.py", "common.py", "helpers.py"}
    assert not [path for path in text_files() if path.name in drawers and "third_party" not in path.parts]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of one machine", r"(?<![\w.:/-])/(?:work|home|Users|root)/\w|\b[A-Z]:\\\\?Users\b"),
        ("a package index", r"pypi\.org/simple|pythonhosted\.org|pytorch\.org/whl|--(?:extra-)?index-url|--find-links"),
    ],
)
def test_nothing_of_one_machine_is_written_down(what: str, pattern: str) -> None:
    for path in text_files():
        if path != Path(__file__).resolve():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not re.search(pattern, line), f"{path.relative_to(ROOT)}:{number} names {what}: {line.strip()}"
