"""The pack in a real ComfyUI: started, asked what there is, given a graph, cancelled, gone on with.

ComfyUI is looked for in $BFR_COMFYUI, or in ~/.cache/bfr-hosts/ComfyUI; its Python in .venv there, or it is
$BFR_COMFYUI_PYTHON.
Everything it reads and writes lies in a folder of the test's own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch
from torch.nn import functional as F

from bfr_core.images import write_image

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]
START_SECONDS, RUN_SECONDS = 240.0, 400.0
CANCEL_SECONDS = 20.0  # one network call on a busy machine is well below it


class ComfyUI:
    """A running server. base: its own folder of inputs, outputs, models and nodes."""

    def __init__(self, url: str, base: Path, log: Path) -> None:
        self.url, self.base, self.log = url, base, log

    def get(self, path: str) -> Any:
        with urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, content: Any) -> Any:
        request = Request(self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def queue(self, graph: dict[str, Any]) -> str:
        return self.post("/prompt", {"prompt": graph, "client_id": "test"})["prompt_id"]

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


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    home = Path(os.environ.get("BFR_COMFYUI", Path.home() / ".cache/bfr-hosts/ComfyUI"))
    python = os.environ.get("BFR_COMFYUI_PYTHON", str(home / ".venv/bin/python"))
    if not (home / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {home}; set BFR_COMFYUI to one")
    if not Path(python).is_file():
        pytest.skip(f"no Python for ComfyUI at {python}; set BFR_COMFYUI_PYTHON to its Python")
    base = tmp_path_factory.mktemp("comfy")
    for name in ("custom_nodes", "input/faces", "output", "models"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes/a pack-of.any name").symlink_to(ROOT)
    generator = torch.Generator().manual_seed(0)
    for i in range(10):
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        write_image(base / f"input/faces/{i}.png", F.interpolate(coarse, (128, 128), mode="bicubic")[0].clamp(0, 1))
    from skimage import data

    portrait = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    write_image(base / "input/portrait.png", portrait)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    log = base / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=home, stdout=stream, stderr=subprocess.STDOUT)
    server = ComfyUI(f"http://127.0.0.1:{port}", base, log)
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
        process.wait(30)


def graph(run: str, iterations: int = 6, **tuning: Any) -> dict[str, Any]:
    """The tour: embedded models, a folder of ten faces, tuned, saved, used on a portrait."""
    tuned = {
        "pairs": ["targets", 0], "restorer": ["restorer", 0], "minutes_this_run": 0.0, "seed": 0, "low_memory": False,
        "settings": "as set below", "iterations": iterations, "batch_size": 2, "micro_batch": 2, "lr": 1e-4,
        "perceptual": 0.0, "adversarial": 0.0, "anchor": 0.0, "transplant": 0.0,
    }  # fmt: skip
    faces = {
        "restorer": ["restorer", 0], "place": "input", "folder": "faces", "run": run, "aligned": True,
        "detector": "embedded", "threshold": 0.5, "min_face": 32, "first": 0, "count": 4,
    }  # fmt: skip
    targets = {
        "faces": ["faces", 0], "restorer": ["restorer", 0], "prior": ["prior", 0], "seed": 0, "gate": 0.0,
        "settings": "recommended", "sampler": "fast", "calls": 3, "start": 16, "hold_until": 2, "factor": 2,
        "batch_size": 8,
    }  # fmt: skip
    restore = {
        "restorer": ["tune", 0], "images": ["photo", 0], "detector": "embedded", "threshold": 0.5, "faces": "largest",
        "numbers": "1", "min_face": 16, "skip_sharp": 0.0, "fidelity": 0.5, "blend": 1.0, "mask": "square",
        "batch_size": 8,
    }  # fmt: skip
    nodes = {
        "restorer": ("BFR_LoadRestorer", {"restorer": "embedded"}),
        "prior": ("BFR_LoadPrior", {"prior": "embedded"}),
        "faces": ("BFR_FacesFromFolder", faces),
        "targets": ("BFR_MakePseudoTargets", targets),
        "tune": ("BFR_FinetuneRestorer", tuned | tuning),
        "save": ("BFR_SaveRestorer", {"restorer": ["tune", 0], "name": run, "half": False, "also_pth": False}),
        "photo": ("LoadImage", {"image": "portrait.png"}),
        "restore": ("BFR_RestoreFaces", restore),
        "shown": ("PreviewImage", {"images": ["restore", 0]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_every_node_is_there(comfy: ComfyUI) -> None:
    found = {name: info for name, info in comfy.get("/object_info").items() if name.startswith("BFR_")}
    assert len(found) == 12
    for info in found.values():
        sockets = [*info["input"].get("required", {}).values(), *info["input"].get("optional", {}).values()]
        assert all(options["tooltip"] for _, options in sockets)
        assert info["category"] == "BFR Adapt" and info["display_name"].endswith("(BFR)")
    assert "IMPORT FAILED" not in comfy.log.read_text()


def test_a_graph_runs_and_an_unchanged_one_runs_nothing_again(comfy: ComfyUI) -> None:
    result = comfy.run(graph("whole"))
    assert result["status"]["status_str"] == "success", result["messages"]
    outputs = result["outputs"]
    assert outputs["tune"]["text"][0].startswith(("Adopt", "Keep the base", "Cannot tell"))
    assert outputs["targets"]["text"][0].startswith("10 targets are fit to learn from, 0 are refused")
    assert outputs["restore"]["text"] == ["1 faces found, 1 restored, 0 skipped"]
    folder = comfy.base / "output/bfr_runs/whole"
    assert json.loads((folder / "report.json").read_text())["verdict"] in ("adopt", "keep_base", "cannot_tell")
    assert (comfy.base / "models/facerestore_models/whole.safetensors").is_file()
    again = comfy.run(graph("whole"))
    assert set(again["messages"]["execution_cached"]["nodes"]) == set(graph("whole"))
    listed = comfy.get("/object_info/BFR_LoadRestorer")["BFR_LoadRestorer"]["input"]["required"]["restorer"]
    assert "whole.safetensors" in json.dumps(listed), "the saved restorer can be chosen"


def test_cancelled_midway_the_same_graph_goes_on(comfy: ComfyUI) -> None:
    folder = comfy.base / "output/bfr_runs/cancelled"
    prompt = comfy.queue(graph("cancelled", iterations=30))
    end = time.monotonic() + RUN_SECONDS
    while not (folder / "gate.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(3)  # some steps of tuning
    started = time.monotonic()
    comfy.post("/interrupt", {})
    result = comfy.wait(prompt)
    assert "execution_interrupted" in result["messages"] and time.monotonic() - started < CANCEL_SECONDS
    assert (folder / "checkpoints/last.pt").is_file() and not (folder / "report.json").exists()
    result = comfy.run(graph("cancelled", iterations=30))
    assert result["status"]["status_str"] == "success", result["messages"]
    assert "resumed at step" in (folder / "log.txt").read_text()


def test_a_pause_goes_on_when_queued_again(comfy: ComfyUI) -> None:
    paused = graph("paused", iterations=24, minutes_this_run=0.03)
    steps = []
    for _ in range(30):
        result = comfy.run(paused)
        assert result["status"]["status_str"] == "success", result["messages"]
        text = result["outputs"]["tune"]["text"][0]
        if not text.startswith("Paused at step "):
            break
        steps.append(int(text.split()[3]))
    assert steps and steps == sorted(set(steps)), "each queueing went on"
    assert text.startswith(("Adopt", "Keep the base", "Cannot tell"))


def test_a_strangers_workflow_reads_nothing_outside(comfy: ComfyUI) -> None:
    for folder in ("/etc", "../..", "C:\\Windows"):
        bad = graph("stranger")
        bad["faces"]["inputs"]["folder"] = folder
        error = comfy.run(bad)["messages"]["execution_error"]
        assert error["node_type"] == "BFR_FacesFromFolder" and error["exception_type"] == "ValueError"
        assert "path" in error["exception_message"] or "leads out" in error["exception_message"]
    assert not (comfy.base / "output/bfr_runs/stranger").exists()
