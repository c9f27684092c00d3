"""ComfyUI as thin as can be: enough of its modules to load the pack under another name and to run its nodes."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ALIAS = "any-name"


class Cancelled(Exception):
    """ComfyUI's InterruptProcessingException."""


class Host:
    """What the fakes share: folders, and what was asked of the host."""

    def __init__(self) -> None:
        self.root = Path()
        self.model_folders: dict[str, list[str]] = {}
        self.cancel_at = 0  # the how-many-eth look at whether the user has cancelled finds that so; 0 = none
        self.looks = 0
        self.asked: list[str] = []
        self.previews: list[Any] = []
        self.texts: list[str] = []

    def begin(self, root: Path) -> None:
        """A new, empty ComfyUI."""
        self.root = root
        self.model_folders = {}
        self.cancel_at = self.looks = 0
        self.asked, self.previews, self.texts = [], [], []
        for name in ("input", "output", "models/facerestore_models", "models/bfr_priors"):
            (root / name).mkdir(parents=True)
        for name in ("facerestore_models", "bfr_priors"):
            self.model_folders[name] = [str(root / "models" / name)]

    def look(self) -> None:
        self.looks += 1
        if self.looks == self.cancel_at:
            raise Cancelled


HOST = Host()


class Socket:
    """An input or output of a schema: what it was made with."""

    def __init__(self, kind: str, is_input: bool, id: str = "", **options: Any) -> None:
        self.kind, self.is_input, self.id = kind, is_input, id
        self.options = options


def kind_of(name: str) -> Any:
    def make(is_input: bool) -> Callable[..., Socket]:
        return lambda *args, **options: Socket(name, is_input, *args, **options)

    return SimpleNamespace(name=name, Input=make(True), Output=make(False))


@dataclasses.dataclass
class Schema:
    node_id: str
    display_name: str = ""
    category: str = ""
    description: str = ""
    inputs: list[Socket] = dataclasses.field(default_factory=list)
    outputs: list[Socket] = dataclasses.field(default_factory=list)
    hidden: list[str] = dataclasses.field(default_factory=list)
    is_output_node: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class PreviewImage:
    def __init__(self, image: torch.Tensor, cls: Any = None) -> None:
        assert image.ndim == 4 and image.shape[-1] == 3
        self.image = image

    def as_dict(self) -> dict[str, Any]:
        return {"images": [self.image]}


class ModelPatcher:
    def __init__(self, model: torch.nn.Module, load_device: Any, offload_device: Any) -> None:
        self.model = model

    def model_size(self) -> int:
        return sum(p.nbytes for p in self.model.parameters())


class ProgressBar:
    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int, preview: Any = None) -> None:
        assert 0 <= value <= total
        if preview is not None:
            HOST.previews.append(preview)


def tiled_scale(samples: torch.Tensor, function: Callable, **_: Any) -> torch.Tensor:
    return function(samples)


def modules() -> dict[str, ModuleType]:
    """The fakes, by module name."""

    def module(name: str, **names: Any) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(names)
        return made

    def listed(name: str) -> list[str]:
        return [p.relative_to(f).as_posix() for f in HOST.model_folders[name] for p in sorted(Path(f).rglob("*.*"))]

    kinds = ("Image", "Mask", "Int", "Float", "String", "Boolean", "Combo", "UpscaleModel")
    io = module(
        "comfy_api.latest.io",
        Schema=Schema,
        NodeOutput=NodeOutput,
        ComfyNode=type("ComfyNode", (), {"hidden": SimpleNamespace(unique_id="1")}),
        Hidden=SimpleNamespace(unique_id="UNIQUE_ID"),
        Custom=kind_of,
        **{name: kind_of(name.upper()) for name in kinds},
    )
    management = module(
        "comfy.model_management",
        get_torch_device=lambda: torch.device("cpu"),
        unet_offload_device=lambda: torch.device("cpu"),
        load_models_gpu=lambda models, **_: HOST.asked.append(f"load {len(models)}"),
        free_memory=lambda needed, device: HOST.asked.append(f"free {needed > 0}"),
        module_size=lambda model: 1,
        soft_empty_cache=lambda: HOST.asked.append("empty"),
        throw_exception_if_processing_interrupted=HOST.look,
        OOM_EXCEPTION=MemoryError,
    )
    patcher = module("comfy.model_patcher", ModelPatcher=ModelPatcher)
    utils = module("comfy.utils", ProgressBar=ProgressBar, tiled_scale=tiled_scale)
    send = SimpleNamespace(send_progress_text=lambda text, node: HOST.texts.append(text))
    made = [
        module(
            "folder_paths",
            models_dir="models",
            get_input_directory=lambda: str(HOST.root / "input"),
            get_output_directory=lambda: str(HOST.root / "output"),
            get_folder_paths=lambda name: HOST.model_folders[name],
            get_filename_list=listed,
            add_model_folder_path=lambda name, path: HOST.model_folders.setdefault(name, []).append(path),
        ),
        module("comfy", model_management=management, model_patcher=patcher, utils=utils),
        management,
        patcher,
        utils,
        module("comfy_api"),
        module(
            "comfy_api.latest", io=io, ui=module("ui", PreviewImage=PreviewImage), ComfyExtension=type("Ext", (), {})
        ),
        module("comfy_execution"),
        module("comfy_execution.graph", ExecutionBlocker=type("Blocker", (), {"__init__": lambda self, message: None})),
        module("server", PromptServer=SimpleNamespace(instance=send)),
        module("nodes"),  # ComfyUI has a module of this name
    ]
    return {module.__name__: module for module in made}


def load_pack() -> ModuleType:
    """The pack as ComfyUI loads it: a folder of any name, imported by path."""
    spec = spec_from_file_location(ALIAS, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    pack = module_from_spec(spec)
    sys.modules[ALIAS] = pack
    spec.loader.exec_module(pack)
    return pack


@pytest.fixture(scope="session")
def pack() -> Iterator[ModuleType]:
    """The pack, loaded among the fakes."""
    before = {name: sys.modules.get(name) for name in modules()}
    sys.modules.update(modules())
    try:
        yield load_pack()
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        for name in [name for name in sys.modules if name.split(".")[0] == ALIAS]:
            del sys.modules[name]


@pytest.fixture
def host(pack: ModuleType, tmp_path: Path) -> Host:
    """An empty ComfyUI for this test."""
    HOST.begin(tmp_path / "ComfyUI")
    return HOST


@pytest.fixture
def nodes(pack: ModuleType, host: Host) -> dict[str, type]:
    """The node classes, by id."""
    return {node.define_schema().node_id: node for node in sys.modules[f"{ALIAS}.nodes"].NODES}  # type: ignore[attr-defined]


@pytest.fixture
def run(nodes: dict[str, type]) -> Callable[..., tuple]:
    """Runs a node as ComfyUI does, in inference mode, widgets at their defaults; its outputs."""

    def run_node(node_id: str, **inputs: Any) -> tuple:
        node: Any = nodes[node_id]
        known = {socket.id: socket for socket in node.define_schema().inputs}
        assert set(inputs) <= set(known), f"{node_id} has no input {set(inputs) - set(known)}"
        defaults = {name: s.options["default"] for name, s in known.items() if "default" in s.options}
        missing = [name for name, s in known.items() if not s.options.get("optional") and name not in defaults | inputs]
        assert not missing, f"{node_id} needs {missing}"
        with torch.inference_mode():
            output = node.execute(**(defaults | inputs))
        assert len(output.args) == len(node.define_schema().outputs)
        assert all(isinstance(value, list) for value in output.ui.values())
        return output.args

    return run_node


@pytest.fixture
def models(host: Host, tiny_restorer: Path, tiny_prior: Path, run: Callable[..., tuple]) -> tuple[Any, Any]:
    """A tiny restorer and prior, loaded by the nodes."""
    shutil.copy(tiny_restorer, host.root / "models/facerestore_models/tiny.safetensors")
    shutil.copytree(tiny_prior, host.root / "models/bfr_priors/prior")
    return run("BFR_LoadRestorer", restorer="tiny.safetensors")[0], run("BFR_LoadPrior", prior="prior")[0]
