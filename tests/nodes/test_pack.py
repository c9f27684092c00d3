"""The pack as ComfyUI loads it: a folder of any name, imported by path."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from dataclasses import field, make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
IDS = {
    "BFR_LoadRestorer",
    "BFR_LoadPrior",
    "BFR_FacesFromFolder",
    "BFR_FacesFromImages",
    "BFR_MakePseudoTargets",
    "BFR_TargetsFromImages",
    "BFR_FinetuneRestorer",
    "BFR_SaveRestorer",
    "BFR_RestoreFaces",
    "BFR_Compare",
    "BFR_Degrade",
    "BFR_DrawFaces",
    "BFR_HoldLowBand",
    "BFR_LowBandFix",
}
LOAD = """
import asyncio, logging, runpy, sys, tempfile
sys.path.insert(0, sys.argv[1] + "/tests/nodes")
logging.basicConfig(format="%(message)s", stream=sys.stdout)
import conftest
conftest.ROOT = conftest.Path(sys.argv[3])
sys.modules.update(conftest.modules())
for blocked in sys.argv[2].split(";"):
    for name in blocked.split():
        sys.modules[name] = None  # importing it fails
    before = set(sys.path)
    pack = conftest.load_pack()
    conftest.HOST.begin(conftest.Path(tempfile.mkdtemp()) / "ComfyUI")
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    print(len(nodes), "nodes,", sys.modules["nodes"].__dict__.get("NODES"), before == set(sys.path))
    own = [name for name in sys.modules if name.split(".")[0] == conftest.ALIAS]
    for name in [*own, *blocked.split()]:
        del sys.modules[name]
    print("loaded")
"""


def load(*blocked: str, pack: Path = ROOT) -> list[list[str]]:
    """What loading the pack prints, for each of `blocked`, names of packages that are not there; once without any.

    It is loaded anew each time, all in one process.
    """
    command = [sys.executable, "-c", LOAD, str(ROOT), ";".join(blocked), str(pack)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [said.strip().splitlines() for said in done.stdout.split("\nloaded\n")[:-1]]


def test_pack_loads_without_a_package_and_says_so_in_one_line() -> None:
    absent = ("facexlib", "diffusers", "spandrel")
    said = load(*(f"{name} skimage cv2 matplotlib piq" for name in absent))
    for name, (first, *_, last) in zip(absent, said, strict=True):
        assert name in first and first.startswith("BFR Adapt: not installed: ")
        assert not any(other in first for other in absent if other != name)
        assert last == "14 nodes, None True", "ComfyUI's own module 'nodes' and sys.path are left alone"


def packed() -> list[str]:
    """The files of the package for ComfyUI's registry: what git has, less what .comfyignore names."""

    def listed(*options: str) -> list[str]:
        command = ["git", "ls-files", "-z", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip("the files of the package are those that git has, and this is no git checkout")
        return done.stdout.split("\0")[:-1]

    left_out = listed("--cached", "--ignored", "--exclude-from", ".comfyignore")
    return sorted(set(listed()) - set(left_out))


def test_what_experts_use_is_shown_on_demand_only(nodes: dict[str, Any]) -> None:
    hidden = {
        name: {s.id for s in node.define_schema().inputs if s.extra_dict.get("advanced")}
        for name, node in nodes.items()
    }
    assert {"threshold", "min_face", "batch_size", "smooth"} <= hidden["BFR_RestoreFaces"]
    assert {"faces", "numbers", "order", "blend", "fidelity", "video"}.isdisjoint(hidden["BFR_RestoreFaces"])
    assert {"calls", "factor"} <= hidden["BFR_MakePseudoTargets"] and "settings" not in hidden["BFR_MakePseudoTargets"]
    assert {"lr", "iterations"} <= hidden["BFR_FinetuneRestorer"] and "half" in hidden["BFR_SaveRestorer"]


def test_the_package_for_the_registry_loads_and_runs_no_pip(tmp_path: Path) -> None:
    for file in packed():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    assert {p.name for p in tmp_path.iterdir()} == {
        "__init__.py", "bfr_core", "nodes", "subgraphs", "workflows", "web", "locales", "requirements.txt",
        "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE",
    }  # fmt: skip
    assert (tmp_path / "web/docs/BFR_Compare.md").is_file()
    assert load(pack=tmp_path)[0][-1] == "14 nodes, None True"
    for code in tmp_path.rglob("*.py"):
        text = code.read_text(encoding="utf-8")
        assert "subprocess" not in text and '"pip"' not in text, f"{code.relative_to(tmp_path)} may run pip"


def test_the_registry_reads_its_section() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[tool.comfy]")[1].split("\n[")[0]
    keys = {line.split(" =")[0] for line in section.splitlines() if " = " in line}
    assert keys == {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"}
    assert "0.3.48" in section and "0.3.48" in (ROOT / "nodes/__init__.py").read_text(encoding="utf-8")


def test_pack_is_nothing_outside_comfyui() -> None:
    code = "import runpy, sys; print('comfy_entrypoint' in runpy.run_path(sys.argv[1]))"
    command = [sys.executable, "-I", "-c", code, str(ROOT / "__init__.py")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "False"


def test_ids_are_stable(nodes: dict[str, Any], pack: Any) -> None:
    assert set(nodes) == IDS, "a workflow finds its nodes by these"
    extension = asyncio.run(pack.comfy_entrypoint())
    assert {n.define_schema().node_id for n in asyncio.run(extension.get_node_list())} == IDS


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_every_socket_is_explained(nodes: dict[str, Any], node_id: str) -> None:
    schema = nodes[node_id].define_schema()
    assert schema.display_name.endswith("(BFR)") and schema.description and nodes[node_id].__doc__
    for socket in [*schema.inputs, *schema.outputs]:
        assert socket.options.get("tooltip", "").endswith("."), f"{node_id}: {socket.id or socket.options}"
    for widget in schema.inputs:
        if "options" in widget.options:
            assert widget.options["default"] in widget.options["options"]


def test_search_aliases_only_where_the_host_knows_them(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    node = nodes["BFR_RestoreFaces"]
    assert not hasattr(node.define_schema(), "search_aliases")
    io = sys.modules[node.__module__].io  # type: ignore[attr-defined]
    newer = make_dataclass("Schema", [("search_aliases", list, field(default_factory=list))], bases=(io.Schema,))
    monkeypatch.setattr(io, "Schema", newer)
    assert "codeformer" in node.define_schema().search_aliases


def test_seeds_begin_fixed_where_the_host_can_say_so(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    node = nodes["BFR_MakePseudoTargets"]

    def control() -> Any:
        (seed,) = (s for s in node.define_schema().inputs if s.id == "seed")
        return seed.options["control_after_generate"]

    assert control() is True
    io = sys.modules[node.__module__].io  # type: ignore[attr-defined]
    monkeypatch.setattr(io, "ControlAfterGenerate", SimpleNamespace(fixed="fixed"), raising=False)
    assert control() == "fixed"


def test_the_menu_opens_no_file(nodes: dict[str, Any], host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.root / "models/facerestore_models/broken.pth").write_bytes(b"not a checkpoint")
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a checkpoint was opened"))
    options = nodes["BFR_LoadRestorer"].define_schema().inputs[0].options["options"]
    assert options == ["embedded", "embedded128", "broken.pth"]
