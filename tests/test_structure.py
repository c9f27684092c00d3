"""The shape of the project: which module may import which, and what must not be written anywhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from installation.packages import canonical, read_requirements
from tests.conftest import LONGEST

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "bfr_core"

# A room may import from its own layer and from those above it in this list, never from below; no circles anywhere.
LAYERS = (
    ("device", "errors", "pixels", "randomness", "settings", "spread", "threads"),
    ("files",),
    ("restorers", "diffusion", "faces", "damage", "metrics"),
    ("restoration", "training", "reports"),
    ("adaptation",),
    ("studies", "cluster"),
    ("web", "cli"),
    ("__init__", "__main__"),
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
    "pillow_heif",
    "timm",
    "einops",
    "jinja2",
    "scipy",
    "cma",
    "markupsafe",
    "platformdirs",
    "ray",
    "accelerate",
    "pyarrow",
}
# Host and page packages -> the only places that may import them.
KEPT_TO = {
    "comfy": ("nodes",),
    "comfy_api": ("nodes",),
    "comfy_execution": ("nodes",),
    "server": ("nodes",),
    "folder_paths": ("nodes",),
    "modules": ("scripts",),
    "gradio": ("bfr_core/web/gradio_page.py", "bfr_core/web/gradio_compat.py"),
    "fastapi": ("bfr_core/web/http_api.py",),
    "starlette": ("bfr_core/web/gradio_compat.py",),
    "ray": ("bfr_core/cluster",),
    "accelerate": ("bfr_core/cluster",),
    "pyarrow": ("bfr_core/cluster",),
}
PACKAGE_OF = {"PIL": "pillow", "markupsafe": "jinja2", "skimage": "scikit-image", "cv2": "opencv-python-headless"}
OWN = {"bfr_core", "nodes", "installation", "install", "tools", "tests", "benchmarks"}
OWN |= {path.stem for path in (ROOT / "tools").glob("*.py")}  # which the tests can import
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
TEXT = {".html", ".css", ".py", ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ".sh", ".js"}


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


@cache
def absolute_names(path: Path, everywhere: bool) -> set[str]:
    """Top-level packages that a file imports by absolute name."""
    names = set()
    for statement in imports(ast.parse(path.read_text(encoding="utf-8")), everywhere):
        if isinstance(statement, ast.Import):
            names |= {alias.name.split(".")[0] for alias in statement.names}
        elif not statement.level and statement.module:
            names.add(statement.module.split(".")[0])
    return names


@cache
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
    assert {"files", "training"} <= core_imports(CORE / "adaptation" / "tuning.py")
    assert "files" in core_imports(CORE / "restorers" / "load.py")
    assert core_imports(CORE / "diffusion" / "schedule.py") == set()


def test_every_room_says_what_may_live_there() -> None:
    for room in (path for path in CORE.iterdir() if any(path.glob("*.py"))):
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
        assert said and said.endswith("."), f"{room.name}/__init__.py: needs a sentence that says what may live there"


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
    elsewhere = set(KEPT_TO) | {"spandrel_extra_arches", "pip", "pyiqa", "timm", "psutil"}  # the last by accelerate
    for folder in ("bfr_core", "nodes", "scripts", "tools", "tests", "benchmarks"):
        files = modules(ROOT / folder)
        local = OWN | elsewhere | {path.stem for path in files}
        for path in files:
            used = absolute_names(path, everywhere=True) - set(sys.stdlib_module_names) - local
            foreign = {PACKAGE_OF.get(name, canonical(name)) for name in used} - declared
            assert not foreign, (
                f"{path.relative_to(ROOT)} uses {foreign}: declare it in requirements.txt or pyproject.toml"
            )


def names_nothing(dotted: str) -> bool:
    """Whether no module, and no name that a package gives, is called so; such as "bfr_core.files.photos.read_image"."""
    place = ROOT
    for part in dotted.split("."):
        if (place / part).is_dir():
            place = place / part
            continue
        about = place / "__init__.py"
        inside = about.is_file() and re.search(rf"\b{part}\b", about.read_text(encoding="utf-8"))
        return not ((place / f"{part}.py").is_file() or inside)
    return False


@pytest.mark.parametrize(
    ("dotted", "nothing"),
    [
        ("bfr_core.files.photos.read_image", False), ("bfr_core.restorers.load_restorer", False),
        ("bfr_core.adapt", False), ("bfr_core.images.read_image", True), ("bfr_core.files.nothing", True),
    ],
)  # fmt: skip
def test_a_name_of_nothing_is_known(dotted: str, nothing: bool) -> None:
    assert names_nothing(dotted) is nothing


def test_modules_are_called_by_the_names_they_have() -> None:
    """Also in texts, where no linter looks: what is patched, what another process runs, what a docstring speaks of."""
    gone: dict[str, set[str]] = {}
    for path in text_files():
        if path.name == "CHANGELOG.md" or path == Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8")
        dotted = set(re.findall(r"\bbfr_core(?:\.[A-Za-z_]\w*)+", text))
        files = set(re.findall(r"\bbfr_core(?:/\w+)+\.py\b", text))
        absent = {*filter(names_nothing, dotted), *(name for name in files if not (ROOT / name).is_file())}
        if absent:
            gone[path.relative_to(ROOT).as_posix()] = absent
    assert not gone, "they speak of what is not there"


def test_files_know_how_deep_they_lie() -> None:
    for path in (path for folder in ("tests", "tools", "benchmarks") for path in modules(ROOT / folder)):
        depth = len(path.relative_to(ROOT).parts) - 1
        for said in re.findall(r"^ROOT = Path\(__file__\)\S*parents\[(\d)\]", path.read_text(encoding="utf-8"), re.M):
            assert int(said) == depth, f"{path.relative_to(ROOT)}: its ROOT is not the project's folder"


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


DELETES = {"unlink", "rmtree", "rmdir", "removedirs", "truncate", "rename", "renames", "TemporaryDirectory"}
DELETES_OF = {("os", "remove"), ("os", "replace"), ("shutil", "move")}
WRITES = {"write_text", "write_bytes", "copyfile", "copy", "copy2", "copytree", "save", "save_file", "savefig"}
WRITES_OF = {"shutil", "torch", "Path", "path", "part", "temporary", "figure"}
# What writes without `replace_atomically`, and why nothing of others can be lost by it.
WRITES_ITSELF = {
    ("bfr_core/files/ownership.py", "_add"): "the lists themselves, which only grow",
    ("bfr_core/files/photos.py", "replace_atomically"): "the scratch file",
    ("bfr_core/damage/synthetic.py", "video"): "in memory",
    ("bfr_core/files/tensors.py", "_pickled"): "is given the scratch file by replace_atomically",
    ("bfr_core/files/tensors.py", "write"): "is given the scratch file by replace_atomically",
    ("bfr_core/files/tensors.py", "_sort_contents"): "is given the scratch file by replace_atomically",
    ("bfr_core/files/photos.py", "_write_bytes"): "is given the scratch file by replace_atomically",
    ("bfr_core/web/jobs.py", "zip_files"): "is given the scratch file by replace_atomically",
    ("bfr_core/metrics/optional.py", "write"): "is given the scratch file by replace_atomically",
    ("bfr_core/files/weights.py", "_fetch_rest"): "a part whose name no other program gives",
    ("bfr_core/web/http_api.py", "restored"): "a scratch file",
    ("bfr_core/adaptation/adapt.py", "collect_faces"): "adds lines to a file that `growing` answers for",
    ("bfr_core/restoration/record.py", "add"): "adds lines to a file whose name no other program gives",
    ("bfr_core/adaptation/faces.py", "_examine"): "adds lines to a file that `growing` answers for",
}


def calls_by_function(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call, bool]]:
    """Every call below `tree`, with the function it is in, and whether it is an argument of `replace_atomically`."""
    for child in ast.iter_child_nodes(tree):
        name = child.name if isinstance(child, ast.FunctionDef) else function
        if isinstance(child, ast.Call):
            atomic = isinstance(child.func, ast.Name) and child.func.id == "replace_atomically"
            yield function, child, False
            yield from ((f, call, atomic or inner) for f, call, inner in calls_by_function(child, function))
        else:
            yield from calls_by_function(child, name)


def product_files() -> list[Path]:
    return [path for folder in ("bfr_core", "nodes", "scripts") for path in modules(ROOT / folder)]


def deletes(call: ast.Call) -> bool:
    """Whether a call deletes, moves or replaces a file; `text.replace(a, b)` and `names.remove(a)` do not."""
    if not isinstance(call.func, ast.Attribute):
        return isinstance(call.func, ast.Name) and call.func.id in DELETES
    owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
    moves = call.func.attr == "replace" and len(call.args) == 1 and not call.keywords
    return call.func.attr in DELETES or (owner, call.func.attr) in DELETES_OF or moves


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file over what may be there."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "open":
        modes = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        return any(isinstance(mode, str) and re.fullmatch("[rwaxbt+]*[wax+][rwaxbt+]*", mode) for mode in modes)
    if name == "ZipFile":
        return any(isinstance(arg, ast.Constant) and arg.value == "w" for arg in call.args)
    owner = call.func.value.id if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) else ""
    return name in WRITES and (owner in WRITES_OF or name.startswith("write_") or name == "save_file")


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_one_function_deletes(path: Path) -> None:
    name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
    found = {(function, ast.unparse(call)) for function, call, _ in calls_by_function(tree) if deletes(call)}
    if name == "bfr_core/files/ownership.py":
        assert {function for function, _ in found} == {"delete", "move"}
    else:
        assert not found, f"{name}: delete by `files.ownership.delete`, move by `move`"
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    own = ("images", "ownership")
    assert not imported & (DELETES | {"rmtree"}), name
    assert "move" not in imported or any(word in path.read_text(encoding="utf-8") for word in own)


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_written_by_replace_atomically(path: Path) -> None:
    name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
    for function, call, atomic in calls_by_function(tree):
        known = atomic or (name, function) in WRITES_ITSELF
        assert known or not writes(call), f"{name}, {function}: {ast.unparse(call)} may write over a file of others"


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("path.unlink()", True), ("shutil.rmtree(x)", True), ("os.remove(x)", True), ("part.replace(place)", True),
        ("os.replace(a, b)", True), ("shutil.move(a, b)", True), ("a.rename(b)", True), ("rmtree(a)", True),
        ("text.replace('a', 'b')", False), ("names.remove(a)", False), ("replace(a, b=1)", False),
    ],
)  # fmt: skip
def test_what_counts_as_deleting(code: str, is_one: bool) -> None:
    assert deletes(ast.parse(code, mode="eval").body) == is_one  # type: ignore[arg-type]


def test_the_test_files_that_begin_first_are_there() -> None:
    assert [file for file in LONGEST if not (ROOT / "tests" / file).is_file()] == []
