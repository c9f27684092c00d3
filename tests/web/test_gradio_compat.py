"""The page's handlers in the gradio of each host, 3.41.2 of A1111 and 4.40 of Forge, in environments of their own.

These hold what that gradio needs, and take all else, PyTorch first, from the Python of the tests. They are made once,
in the folder `build`.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bfr_core.files.records import fingerprint
from tests.free_port import free_port
from tests.gradio_page import Gradio, multipart, strings

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240.0
# What the hosts pin, and the last versions of the rest that go with it.
BOTH = (
    "httpx==0.24.1", "numpy==1.26.4", "pillow==10.4.0", "pandas==2.3.3", "anyio==3.7.1", "huggingface-hub==0.36.2",
    "diffusers==0.37.1", "transformers==4.57.1",
)  # fmt: skip
PINS = {
    "3.41.2": ("fastapi==0.94.0", "pydantic==1.10.27", "altair==5.5.0", "websockets==11.0.3", *BOTH),
    "4.40.0": ("fastapi==0.104.1", "pydantic==2.8.2", "websockets==12.0", *BOTH),
}
SERVER = """
import sys
from pathlib import Path
import bfr_core.diffusion.prior, bfr_core.restorers.load
from bfr_core.web.gradio_page import serve
runs, photos, restorer, prior, port = sys.argv[1:]
bfr_core.restorers.load.SHIPPED["embedded"], bfr_core.diffusion.prior.EMBEDDED = Path(restorer), Path(prior)
serve(Path(runs), [Path(photos)], int(port), False, None)
print("the page is up", flush=True)
sys.stdin.read()
"""


class Standalone:
    """A server of the page. log: what it wrote, for when it fails."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self.log = port, log

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def right(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        status, content = self.ask(method, path, body, **headers)
        assert status == 200, f"{path}: {status}: {content[:300]!r}\n{self.log.read_text()[-3000:]}"
        return content

    def get(self, path: str) -> Any:
        return json.loads(self.right("GET", path))

    def post(self, path: str, body: Any) -> Any:
        return json.loads(self.right("POST", path, json.dumps(body).encode(), **{"Content-Type": "application/json"}))

    def file(self, path: str) -> bytes:
        return self.right("GET", f"/file={quote(path)}")


def python_with(version: str) -> Path:
    """The Python of an environment with this gradio, made if it is not there yet."""
    if sys.version_info >= (3, 13):
        pytest.skip(f"gradio {version} wants NumPy 1, which was never built for Python 3.13")
    rest = sysconfig.get_path("purelib")
    key = fingerprint(PINS[version], rest, sys.version)[:8]
    folder = ROOT / "build" / f"gradio-{version}-{key}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / "complete").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    Path(own, "zz_rest.pth").write_text(rest)  # pip comes from there, too, and adds only what must be another version
    command = [str(python), "-m", "pip", "install", "-q", f"gradio=={version}", *PINS[version]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=plain())
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "complete").write_text("")
    return python


def plain() -> dict[str, str]:
    """The environment without what would lead to other packages or to another cache."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "GRADIO_"))}


@pytest.fixture(params=PINS)
def server(
    request: pytest.FixtureRequest, tmp_path: Path, photos: Path, tiny_restorer: Path, tiny_prior: Path
) -> Iterator[Standalone]:
    python = python_with(request.param)
    port = free_port()
    log = tmp_path / "log"
    words = [str(path) for path in (tmp_path / "runs", photos, tiny_restorer, tiny_prior)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(python), "-c", SERVER, *words, str(port)],
            cwd=ROOT, env=plain(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    try:
        lines = iter(process.stdout.readline, "")
        assert any("the page is up" in line for line in lines), log.read_text()[-3000:]
        made = Standalone(port, log)
        assert made.get("/config")["version"] == request.param
        yield made
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(SECONDS)


def followed(page: Gradio, run: str) -> str:
    """All that the page shows once the run's job is over, as its own polling hears of it."""
    tick = page.events(None, "tick") or page.events(page.part("bfr-refresh", key="elem_id"), "click")
    page.session = f"{run} {time.monotonic()}"
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        shown = page.shown(page.call(tick[0], {page.part("Run"): run}))
        # whole attributes: "bar" alone stands by chance in the letters of some pictures
        said = ("found. ", "Adapted. ", "Repaired. ", r"role=\"alert\"")
        if r"class=\"bar\"" not in shown and any(word in shown for word in said):
            return shown
        time.sleep(0.5)
        page.session = f"{run} {time.monotonic()}"
    pytest.fail(f"the run is not over in {SECONDS} s: {shown}")


@pytest.mark.slow
def test_the_handlers_in_the_gradio_of_a_host(server: Standalone, photos: Path, tmp_path: Path) -> None:
    page = Gradio(server)
    assert "may not be read" in page.shown(page.press("Find the faces", or_name_a_folder="/etc"))
    crops = {"The_pictures_are_cut-out,_square_faces_already": True}
    answer = page.press("Find the faces", or_name_a_folder=str(photos), Name_of_the_run="<b>album", **crops)
    run = "-b-album"
    assert run in page.shown(answer)
    shown = followed(page, run)
    assert "Faces found. " in shown and "10 faces found, 0 left out" in shown
    [select] = page.events(page.part("Faces"), "select")
    clicked = page.shown(page.call(select, {page.part("Run"): run}, event_data={"index": 1, "value": ""}))
    assert "10 faces found, 1 left out" in clicked
    page.press("Adapt", Run=run, Tuning_steps=2, Faces_per_step=2, **crops)
    shown = followed(page, run)
    assert "Adapted. " in shown and 'class=\\"verdict ' in shown and "polyline" in shown

    both = strings(page.press("Show before and after", Run=run, Photo="face 0.png"))
    inside = {text for text in both if text.startswith("data:image/png;base64,")}  # gradio 3
    files = {server.file(text) for text in both if os.path.isabs(text) and text.endswith(".png")}
    assert len(inside | files) == 2 and all(file.startswith(b"\x89PNG") for file in files)
    kept = {path for path in strings(page.press("Save the restorer", Run=run)) if path.endswith(".safetensors")}
    original = (tmp_path / "runs" / run / "restorer.safetensors").read_bytes()
    assert original in [server.file(path) for path in kept if os.path.isabs(path)]

    body, kind = multipart("b.png", (photos / "face 0.png").read_bytes())
    [uploaded] = json.loads(server.right("POST", "/upload", body, **kind))
    page.press("Repair", Run=run, Drop_the_photos_to_repair_here=[page.dropped(uploaded)], **crops)
    shown = followed(page, run)
    assert "Repaired. " in shown and "1 restored" in shown
    archive = next(text for text in strings(json.loads(shown)) if os.path.isabs(text) and text.endswith(".zip"))
    assert zipfile.ZipFile(io.BytesIO(server.file(archive))).namelist() == ["b.png"]
    for path in (tmp_path / "runs" / run / "request.json", Path("/etc/passwd")):
        assert server.ask("GET", f"/file={quote(str(path))}")[0] in (403, 404)
    assert server.ask("GET", "/config", Origin="http://evil.example")[0] == 403

    [opened] = [event for event in page.events(None, "load") if event["outputs"]]
    page = Gradio(server)
    assert run in page.shown(page.call(opened, {}))
    assert "tick the box" in page.shown(page.press("Delete", Run=run))
    page.open(run)
    [remove] = page.events(page.part("Delete", key="value"), "click")
    gone = page.call(remove, {page.part("Run"): run, remove["inputs"][1]: True})
    assert "is deleted" in page.shown(gone) and not (tmp_path / "runs" / run).exists()
