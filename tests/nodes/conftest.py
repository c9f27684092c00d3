"""ComfyUI as thin as can be: enough of its modules to load the pack under another name and to run its nodes.

At the end, the real one, for the tests marked `host`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
import torch
from torch.nn import functional as F

from bfr_core.files.photos import write_image
from tests.free_port import free_port
from tests.short_search import shorten, write_sitecustomize

ROOT = Path(__file__).resolve().parents[2]
ALIAS = "any-name"
PACK = "bfr-adapt"  # the pack's folder in the real ComfyUI
START_SECONDS, RUN_SECONDS = 240.0, 1800.0  # so long only where many work on the machine
ENDS = ("execution_success", "execution_error", "execution_interrupted")
IDLE_SECONDS, GIVE_BACK_SECONDS = 12.0, 3.0  # ComfyUI collects garbage ten seconds after a run
# On the signal, the C library gives back what it holds free: hundreds of megabytes, more or less of them by chance.
GIVE_BACK = """
import ctypes, signal
trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if hasattr(signal, "SIGUSR1") else None
if trim:
    signal.signal(signal.SIGUSR1, lambda *_: trim(0))
"""


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
        self.short = False  # memory is: whatever is loaded is taken apart whenever room is asked for
        self.loaded: list[Any] = []

    def begin(self, root: Path) -> None:
        """A new, empty ComfyUI."""
        self.root = root
        self.model_folders = {}
        self.cancel_at = self.looks = 0
        self.asked, self.previews, self.texts = [], [], []
        self.short, self.loaded = False, []
        models = ("facerestore_models", "bfr_priors", "upscale_models", "facedetection")
        for name in ("input", "output", "temp", *(f"models/{kind}" for kind in models)):
            (root / name).mkdir(parents=True)
        for name in (*models, "checkpoints"):
            self.model_folders[name] = [str(root / "models" / name)]

    def load(self, models: list[Any], **_: Any) -> None:
        self.asked.append(f"load {len(models)}")
        self.loaded = [*models, *(one for one in self.loaded if not self.short and one not in models)]

    def free(self, needed: int, device: Any) -> None:
        self.asked.append(f"free {needed > 0}")
        self.loaded = [] if self.short else self.loaded

    def look(self) -> None:
        self.looks += 1
        if self.looks == self.cancel_at:
            raise Cancelled


HOST = Host()


WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
# What the oldest ComfyUI's sockets can be made with; only those that are no widgets take `extra_dict` as well.
TAKEN = {"display_name", "tooltip", "optional", "default", "min", "max", "step", "round", "options", "lazy"}
TAKEN |= {"control_after_generate", "multiline", "force_input", "socketless"}


class Socket:
    """An input or output of a schema: what it was made with."""

    def __init__(self, kind: str, is_input: bool, id: str = "", **options: Any) -> None:
        unknown = set(options) - TAKEN - (set() if kind in WIDGETS else {"extra_dict"})
        if unknown:
            raise TypeError(f"{kind} of the oldest ComfyUI takes no {sorted(unknown)}")
        self.kind, self.is_input, self.id = kind, is_input, id
        self.options = options
        self.extra_dict: dict[str, Any] = options.get("extra_dict", {})


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
    is_input_list: bool = False


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


def modules() -> dict[str, ModuleType]:
    """The fakes, by module name."""

    def module(name: str, **names: Any) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(names)
        return made

    def listed(name: str) -> list[str]:
        return [p.relative_to(f).as_posix() for f in HOST.model_folders[name] for p in sorted(Path(f).rglob("*.*"))]

    kinds = ("Image", "Mask", "Int", "Float", "String", "Boolean", "Combo", "UpscaleModel", "Model", "Vae")
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
        load_models_gpu=HOST.load,
        free_memory=HOST.free,
        module_size=lambda model: 1,
        soft_empty_cache=lambda: HOST.asked.append("empty"),
        throw_exception_if_processing_interrupted=HOST.look,
        OOM_EXCEPTION=MemoryError,
    )
    patcher = module("comfy.model_patcher", ModelPatcher=ModelPatcher)
    utils = module("comfy.utils", ProgressBar=ProgressBar)
    send = SimpleNamespace(send_progress_text=lambda text, node: HOST.texts.append(text))
    made = [
        module(
            "folder_paths",
            models_dir="models",
            get_input_directory=lambda: str(HOST.root / "input"),
            get_output_directory=lambda: str(HOST.root / "output"),
            get_temp_directory=lambda: str(HOST.root / "temp"),
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
    shorten(lambda module, name, value: setattr(import_module(f"{ALIAS}.{module}"), name, value))  # as in `few_trials`
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
        given = defaults | inputs
        if node.define_schema().is_input_list:  # of each a list, of one where the socket has no list
            given = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
        with torch.inference_mode():
            output = node.execute(**given)
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


# ---------------------------------------------------------------- the real one


class ComfyUI:
    """A running server. base: its own folder of inputs, outputs, models and nodes. pid: of its process."""

    def __init__(self, url: str, base: Path, log: Path, pid: int) -> None:
        self.url, self.base, self.log, self.pid = url, base, log, pid

    def get(self, path: str) -> Any:
        with urlopen(self.url + path, timeout=START_SECONDS) as answer:
            return json.load(answer)

    def post(self, path: str, content: Any) -> Any:
        request = Request(self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=START_SECONDS) as answer:
            return json.loads(answer.read() or b"null")

    def queue(self, graph: dict[str, Any], client: str = "test") -> str:
        return self.post("/prompt", {"prompt": graph, "client_id": client})["prompt_id"]

    def wait(self, prompt: str, seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """What became of a prompt; its messages by kind under "messages"."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.get(f"/history/{prompt}").get(prompt)
            if found:
                return found | {"messages": dict(found["status"]["messages"])}
            time.sleep(0.1)
        pytest.fail(f"ComfyUI did not finish in {seconds} s:\n{self.log.read_text()[-3000:]}")

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        return self.wait(self.queue(graph))

    def memory_in_use(self) -> int:
        """Bytes that the idle server holds and cannot give back. Skips where that is not told."""
        status = Path(f"/proc/{self.pid}/status")
        if not status.is_file() or platform.libc_ver()[0] != "glibc":
            pytest.skip("the memory in use is told by Linux's /proc and glibc")
        time.sleep(IDLE_SECONDS)
        os.kill(self.pid, signal.SIGUSR1)
        time.sleep(GIVE_BACK_SECONDS)
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]

    def cancelled(self, graph: dict[str, Any], run: Path) -> tuple[dict[str, Any], float]:
        """What became of a graph that was cancelled while it was tuning in the folder `run`, and the seconds it took.

        Where the machine is busy, the first steps of the tuning take longer: it is tried again with more patience.
        """
        for patience in (3, 6, 12, 24, 48):
            prompt, end = self.queue(graph), time.monotonic() + RUN_SECONDS
            while not (run / "gate.json").exists() and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(patience)
            started = time.monotonic()
            self.post("/interrupt", {})
            result = self.wait(prompt)
            if (run / "checkpoints/last.pt").is_file():
                break
        return result, time.monotonic() - started

    def watch(self, graph: dict[str, Any]) -> list[Any]:
        """What the server says over /ws while it runs `graph`, to the end: dicts, and bytes for previews and texts."""
        client = uuid.uuid4().hex
        said: list[Any] = []
        with socket.create_connection(
            (urlsplit(self.url).hostname, urlsplit(self.url).port), RUN_SECONDS
        ) as connection:
            for message in messages(connection, f"/ws?clientId={client}"):
                if not said:
                    prompt = self.queue(graph, client)
                said.append(message)
                if isinstance(message, dict) and message["type"] in ENDS and message["data"]["prompt_id"] == prompt:
                    break
        return said


def messages(connection: socket.socket, path: str) -> Iterator[Any]:
    """Texts (JSON, decoded) and binary messages (bytes) of a web socket that only listens. Source: RFC 6455, 5.2."""
    asked = ("Host: localhost", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    connection.sendall("\r\n".join([f"GET {path} HTTP/1.1", *asked, key, "", ""]).encode())
    stream = connection.makefile("rb")
    while stream.readline().strip():
        pass
    while True:
        kind, length = stream.read(2)
        if length > 125:
            (length,) = struct.unpack(*((">H", stream.read(2)) if length == 126 else (">Q", stream.read(8))))
        content = stream.read(length)
        if kind & 15 in (1, 2):
            yield json.loads(content) if kind & 15 == 1 else content


def folders(base: Path) -> None:
    """Everything that a ComfyUI reads and writes: the pack, faces, photos of one face."""
    for name in ("custom_nodes", "input/faces", "input/old_photos", "output", "models"):
        (base / name).mkdir(parents=True)
    (base / f"custom_nodes/{PACK}").symlink_to(ROOT)
    generator = torch.Generator().manual_seed(0)
    for i in range(10):
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        write_image(base / f"input/faces/{i}.png", F.interpolate(coarse, (128, 128), mode="bicubic")[0].clamp(0, 1))
    from skimage import data

    portrait = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255

    def with_noise() -> torch.Tensor:  # a clean face is left alone
        return (portrait + 0.1 * torch.randn(portrait.shape, generator=generator)).clamp(0, 1)

    for name in ("portrait", "example"):
        write_image(base / f"input/{name}.png", with_noise())
    for i in range(6):
        noisy = with_noise()
        write_image(base / f"input/old_photos/{i}.png", (noisy.flip(-1) if i % 2 else noisy).clamp(0, 1))


def comfyui_at() -> tuple[Path, str]:
    """The folder of the real ComfyUI and its Python: that of $BFR_COMFYUI, or ~/.cache/bfr-hosts/ComfyUI, with the
    Python of its .venv or that of $BFR_COMFYUI_PYTHON. Skips without one."""
    home = Path(os.environ.get("BFR_COMFYUI", Path.home() / ".cache/bfr-hosts/ComfyUI"))
    python = os.environ.get("BFR_COMFYUI_PYTHON", str(home / ".venv/bin/python"))
    if not (home / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {home}; set BFR_COMFYUI to one")
    if not Path(python).is_file():
        pytest.skip(f"no Python for ComfyUI at {python}; set BFR_COMFYUI_PYTHON to its Python")
    return home, python


@contextmanager
def started(base: Path, blocked: Sequence[str] = ()) -> Iterator[ComfyUI]:
    """The real ComfyUI of `comfyui_at`. It works in `base`, and importing the packages `blocked` fails there."""
    home, python = comfyui_at()
    folders(base)
    block = f"import sys\nfor name in {list(blocked)!r}: sys.modules[name] = None\n"
    write_sitecustomize(base, block + GIVE_BACK)
    port = free_port()
    command = [python, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    log, environment = base / "log", os.environ | {"PYTHONPATH": str(base)}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    server = ComfyUI(f"http://127.0.0.1:{port}", base, log, process.pid)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                server.get("/queue")
                break
            except (URLError, OSError):
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"ComfyUI did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait(START_SECONDS)


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """One real ComfyUI for all tests."""
    with started(tmp_path_factory.mktemp("comfy") / "base") as server:
        yield server


@pytest.fixture
def bare_comfy(tmp_path: Path) -> Iterator[ComfyUI]:
    """A real ComfyUI without the packages that the pack can load without."""
    with started(tmp_path / "base", ("facexlib", "diffusers", "spandrel")) as server:
        yield server
