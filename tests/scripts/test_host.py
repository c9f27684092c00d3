"""The extension in real WebUIs: started with a login and without gradio's queue, then driven by HTTP.

WebUIs are looked for in $BFR_A1111, $BFR_FORGE and $BFR_NEO, or in ~/.cache/bfr-hosts/a1111, .../forge and .../neo
(Forge Neo); their Python in `venv` there. All that they read and write lies in a folder of the test's own; no Stable
Diffusion model is needed.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from bfr_core.files.photos import write_image
from bfr_core.restoration.restore import NO_WORSE
from tests.checkpoint_layouts import FAMILIES, layout_of, write_checkpoint
from tests.free_port import free_port
from tests.gradio_page import Gradio, multipart, strings
from tests.short_search import write_sitecustomize
from tests.tab import Tab, until

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]
START_SECONDS, RUN_SECONDS = 400.0, 1800.0  # so long only where many work on the machine
LOGIN = ("ada", "lovelace")
# What keeps each host off graphics cards, and its option for a folder of checkpoints, which comes last.
HOSTS = {"a1111": "--use-cpu all --ckpt-dir", "forge": "--always-cpu --ckpt-dir", "neo": "--always-cpu --ckpt-dirs"}
CHECKPOINT = "narrow.safetensors"
API = "/bfr-adapt/v1"
# What txt2img and img2img call on every picture, with the model that Settings names.
PROBE = """
import numpy as np
from modules import face_restoration, script_callbacks, shared

def add(demo, app):
    def probe(body: dict):
        shared.opts.data["face_restoration_model"] = body["model"]
        made = face_restoration.restore_faces(np.array(body["pixels"], dtype=np.uint8))
        return {"pixels": made.tolist()}
    app.add_api_route("/probe", probe, methods=["POST"])

script_callbacks.on_app_started(add)
"""
Answer = tuple[int, dict[str, str], bytes]


def home_of(name: str) -> Path:
    home = Path(os.environ.get(f"BFR_{name.upper()}", Path.home() / ".cache/bfr-hosts" / name)).resolve()
    if not (home / "webui.py").is_file():
        pytest.skip(f"no {name} in {home}; set BFR_{name.upper()} to one")
    if not python_of(home).is_file():
        pytest.skip(f"no Python for {name} at {python_of(home)}")
    return home


def python_of(home: Path) -> Path:
    return home / ("venv/Scripts/python.exe" if os.name == "nt" else "venv/bin/python")


def requirements_of(home: Path) -> str:
    """The packages that the host pins, one a line."""
    return next(home.glob("requirements_versions.txt"), home / "requirements.txt").read_text()


class WebUI:
    """A running server. data: its folder of models, extensions and outputs."""

    def __init__(self, name: str, port: int, data: Path, log: Path, photos: Path) -> None:
        self.name, self.port, self.data, self.log, self.photos = name, port, data, log, photos
        self.cookie = ""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=RUN_SECONDS)
        if self.cookie:
            headers.setdefault("Cookie", self.cookie)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self._right(self.ask("GET", path, Authorization=basic(*LOGIN))))

    def post(self, path: str, body: Any) -> Any:
        return json.loads(self._right(self.ask("POST", path, body, Authorization=basic(*LOGIN))))

    def file(self, path: str) -> bytes:
        return self._right(self.ask("GET", f"/file={quote(path)}"))

    def _right(self, answer: Answer) -> bytes:
        assert answer[0] == 200, f"{answer[0]}: {answer[2][:500]!r}\n{self.log.read_text()[-2000:]}"
        return answer[2]

    def log_in(self) -> None:
        form = urlencode({"username": LOGIN[0], "password": LOGIN[1]}).encode()
        answer = self.ask("POST", "/login", form, **{"Content-Type": "application/x-www-form-urlencoded"})
        self._right(answer)
        self.cookie = "; ".join(c.split(";")[0] for c in answer[1]["set-cookie"].split(", ") if "access-token" in c)

    def up(self) -> bool:
        try:
            return self.ask("GET", "/login_check")[0] in (200, 401)
        except OSError:
            return False

    def wait(self, run: str) -> dict[str, Any]:
        """The run, once its job is over."""
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            found = next(one for one in self.get(f"{API}/runs")["runs"] if one["name"] == run)
            if found["state"] not in ("waiting", "running"):
                return found
            time.sleep(0.3)
        pytest.fail(f"the run is not over in {RUN_SECONDS} s: {found}")

    def face_restorers(self) -> list[str]:
        return [one["name"] for one in self.get("/sdapi/v1/face-restorers")]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module", params=HOSTS)
def webui(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    home = home_of(request.param)
    data = tmp_path_factory.mktemp(request.param)
    (data / "extensions").mkdir()
    (data / "extensions" / "bfr-adapt").symlink_to(ROOT)
    probe = data / "extensions" / "probe" / "scripts" / "probe.py"
    probe.parent.mkdir(parents=True)
    probe.write_text(PROBE)
    photos = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for i in range(10):
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        write_image(photos / f"{i}.png", F.interpolate(coarse, (128, 128), mode="bicubic")[0].clamp(0, 1))
    port = free_port()
    flags = f"--ui-debug-mode --skip-prepare-environment --skip-torch-cuda-test --no-gradio-queue --api --port {port}"
    login = ":".join(LOGIN)
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    small = replace(FAMILIES["sd15"], widths=(32, 32, 32, 32), context=32, vae=32, texts=(), vocabulary=64)
    write_checkpoint(checkpoints / CHECKPOINT, layout_of(small))
    command = [str(python_of(home)), "launch.py", *flags.split(), *HOSTS[request.param].split(), str(checkpoints)]
    command += ["--data-dir", str(data), "--bfr-allow", str(photos), "--gradio-auth", login, "--api-auth", login]
    environment = {k: v for k, v in os.environ.items() if k != "COMMANDLINE_ARGS"}
    environment["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    environment["PYTHONPATH"] = str(site := tmp_path_factory.mktemp("site"))
    write_sitecustomize(site)
    log = data / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    server = WebUI(request.param, port, data, log, photos)
    try:
        wait_for(server, process)
        server.log_in()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(server: WebUI, process: subprocess.Popen[bytes] | None = None, starts: int = 1) -> None:
    """Until it has said so many times that it has started, and answers."""
    end = time.monotonic() + START_SECONDS
    while server.log.read_text(errors="replace").count("Startup time: ") < starts or not server.up():
        if (process and process.poll() is not None) or time.monotonic() > end:
            pytest.fail(f"{server.name} did not start:\n{server.log.read_text()[-3000:]}")
        time.sleep(0.5)


@pytest.fixture(scope="module")
def album(webui: WebUI) -> str:
    """A run that was adapted by the API, the only one for which the damage of the faces is searched for."""
    body = {"folder": str(webui.photos), "name": "<i>album", "aligned": True}
    run = webui.post(f"{API}/runs", body)["run"]
    assert webui.wait(run)["kind"] == "faces"
    changes = {"finetune.iterations": 2, "finetune.batch_size": 2}
    assert webui.post(f"{API}/runs/{quote(run)}/adapt", {"changes": changes})["kind"] == "adapt"
    done = webui.wait(run)
    assert done["state"] == "done" and done["adapted"], done
    return run


def portrait() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.astronaut())


def differing(a: Image.Image, b: Image.Image) -> tuple[int, int, int, int] | None:
    """The box (left, top, right, bottom) outside of which both pictures are the same."""
    rows, columns = np.nonzero((np.asarray(a.convert("RGB")) != np.asarray(b.convert("RGB"))).any(2))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


# ---------------------------------------------------------------- the tab


def test_the_tab_is_there_once_and_nothing_failed(webui: WebUI) -> None:
    page = Gradio(webui)
    assert [p["type"] for p in page.parts.values() if p["props"].get("label") == "BFR Adapt"].count("tabitem") == 1
    for event in page.events(page.part("Find the faces", key="value"), "click"):
        assert event["queue"] is False and event["api_name"] is False
    log = webui.log.read_text()
    assert 'bfr_adapt.py", line' not in log and "Error loading script: bfr" not in log


def test_nothing_is_answered_without_a_login(webui: WebUI, album: str) -> None:
    stranger = WebUI(webui.name, webui.port, webui.data, webui.log, webui.photos)
    cached = webui.data / "outputs/bfr_runs/_page/shown.txt"
    cached.write_text("shown")
    assert webui.file(str(cached)) == b"shown"
    for method, path in (("GET", "/config"), ("GET", f"{API}/runs"), ("POST", f"{API}/restore"),
                         ("GET", f"/file={quote(str(cached))}")):  # fmt: skip
        assert stranger.ask(method, path)[0] == 401, path
    assert stranger.ask("GET", f"{API}/runs", Authorization=basic("ada", "byron"))[0] == 401


def test_the_way_through_the_page(webui: WebUI) -> None:
    page = Gradio(webui)
    refused = page.press("Find the faces", or_name_a_folder="/etc")
    assert "may not be read" in page.shown(refused)
    answer = page.press(
        "Find the faces",
        or_name_a_folder=str(webui.photos),
        Name_of_the_run="way",
        **{"The_pictures_are_cut-out,_square_faces_already": True},
    )
    assert "way" in page.shown(answer)
    assert webui.wait("way")["state"] == "done"
    run = page.part("Run")
    gallery = page.part("Faces")
    [opened] = page.events(run, "change")
    page.call(opened, {run: "way"})  # a browser does by itself
    [event] = page.events(gallery, "select")
    clicked = page.call(event, {run: "way"}, event_data={"index": 1, "value": ""})
    assert "10 faces found, 1 left out" in page.shown(clicked)
    files = [path for path in strings(clicked[gallery]) if path.endswith(".png") and os.path.isabs(path)]
    assert len(set(files)) == 10
    for path in files:
        assert "bfr_runs/_page" in path, "what is shown lies in the page's own cache"
        assert Image.open(io.BytesIO(webui.file(path))).size == (256, 256), "the size of the restorer"
    fields = {"Tuning_steps": 2, "Faces_per_step": 2, "Learn_from_sharp_faces": 0}
    fields |= {"The_pictures_are_cut-out,_square_faces_already": True}
    page.press("Adapt", Run="way", **fields)
    assert webui.wait("way")["state"] == "done" and "way (BFR Adapt)" in webui.face_restorers()
    assert "Adapted. The verdict is under Result." in page.shown(page.call(opened, {run: "way"}))
    both = page.press("Show before and after", Run="way", Photo="0.png")
    assert not any("alert" in str(value) for value in both.values())
    kept = [path for path in strings(page.press("Save the restorer", Run="way")) if path.endswith(".safetensors")]
    original = webui.data / "outputs/bfr_runs/way/restorer.safetensors"
    assert any(os.path.isabs(path) and webui.file(path) == original.read_bytes() for path in kept)
    page.press("Repair", Run="way", or_name_a_folder=str(webui.photos))
    assert webui.wait("way")["kind"] == "repair"
    assert webui.ask("GET", f"/file={quote('/etc/passwd')}")[0] in (403, 404)


def test_the_tab_in_a_browser(webui: WebUI, browser: Any, screenshots: Path) -> None:
    """What HTTP alone does not show: that the page loads, looks on by itself, and shows its pictures."""
    tab = Tab(browser, screenshots, "#tab_bfr_adapt")
    browser.get(f"http://127.0.0.1:{webui.port}/")
    for label, text in zip(("username", "password"), LOGIN, strict=True):
        tab.type(label, text)
    tab.press("Login")
    tab.press("BFR Adapt")
    tab.button("Find the faces")
    time.sleep(3)  # in gradio 3 an upload is lost if what the page is filled with arrives meanwhile
    tab.picture(f"{webui.name}_1_opened")
    tab.drop(sorted(webui.photos.iterdir()))
    tab.type("Name of the run", "seen")
    tab.tick("cut-out")
    tab.press("Find the faces")
    tab.wait_for("10 faces found, 0 left out")
    tab.faces()[1].click()
    tab.wait_for("10 faces found, 1 left out")
    tab.picture(f"{webui.name}_2_faces")
    tab.press("2. Adapt")
    tab.open("Advanced")
    tab.type("Tuning steps", "2")
    tab.type("Faces per step", "2")
    tab.type("Learn from sharp faces", "0")
    tab.open("Advanced")
    tab.press("Adapt")
    tab.wait_for("Adapted. The verdict is under Result.", RUN_SECONDS)
    assert tab.images(".bfr .faces img") and webui.wait("seen")["adapted"]
    tab.press("3. Result")
    tab.press("Show before and after")
    until(lambda: tab.images(f"{tab.inside} img:not(.bfr img)") == [[256, 256]] * 2)
    tab.picture(f"{webui.name}_3_result")


def test_a_checkpoint_of_the_host_is_offered_as_a_prior(webui: WebUI) -> None:
    page = Gradio(webui)
    offered = strings(page.parts[page.part("Prior")]["props"]["choices"])
    assert "embedded" in offered and CHECKPOINT in offered


def test_pictures_are_dropped_and_no_other_file_comes_in(webui: WebUI) -> None:
    page = Gradio(webui)
    drop = page.part("Drop damaged photos here")
    [event] = page.events(page.part("Find the faces", key="value"), "click")
    title = page.part("Name of the run")

    def begin(name: str, path: str) -> None:
        body = {"fn_index": event["index"], "session_hash": "drop", "data": [
            {drop: [page.dropped(path)], title: name}.get(i, page.parts[i]["props"].get("value"))
            for i in event["inputs"]
        ]}  # fmt: skip
        webui.ask("POST", "/run/predict", body)

    secret = webui.data / "secret.png"
    portrait().save(secret)
    begin("stolen", str(secret))
    assert not list((webui.data / "outputs").rglob("secret*"))
    assert "stolen" not in [run["name"] for run in webui.get(f"{API}/runs")["runs"]]
    body, kind = multipart("b.png", secret.read_bytes())
    [uploaded] = json.loads(webui._right(webui.ask("POST", "/upload", body, **kind)))
    begin("dropped", uploaded)
    assert webui.wait("dropped")["state"] == "done"
    assert (webui.data / "outputs/bfr_runs/dropped/photos/b.png").is_file()
    assert Path(uploaded).is_file(), "another tab may show the same photo"
    sure = page.part("Delete the open run, with its faces, its restorer and its repaired photos")
    [remove] = [event for event in page.events(None, "click") if sure in event["inputs"]]
    page.open("dropped")
    page.call(remove, {page.part("Run"): "dropped", sure: True})
    assert not (webui.data / "outputs/bfr_runs/dropped").exists() and not Path(uploaded).exists()


# ---------------------------------------------------------------- restorer, Extras, API


def test_the_restorer_is_listed_once(webui: WebUI, album: str) -> None:
    assert album == "-i-album"
    assert webui.face_restorers().count(f"{album} (BFR Adapt)") == 1
    assert {"CodeFormer", "GFPGAN"} <= set(webui.face_restorers())
    found = [path for path in (webui.data / "models").rglob("*") if path.is_file() and "bfr" in path.name.lower()]
    assert not found, "nothing of ours lies among WebUI's models"


def test_face_restoration_of_txt2img_uses_it(webui: WebUI, album: str) -> None:
    before = portrait().crop((128, 0, 384, 256))
    body = {"model": f"{album} (BFR Adapt)", "pixels": np.asarray(before).tolist()}
    made = Image.fromarray(np.array(webui.post("/probe", body)["pixels"], dtype=np.uint8))
    box = differing(made, before)
    assert box and box[0] > 0 and box[1] >= 0 and box[3] < 250, "only around the face"


def run_extras(webui: WebUI, album: str, folder: Path, out: Path, **settings: Any) -> None:
    """Extras, "Batch from Directory", as its button does."""
    page = Gradio(webui)
    [event] = [e for e in page.events(page.part("extras_generate", key="elem_id"), "click") if e["inputs"]]
    inputs = event["inputs"]
    page.session = f"extras {time.monotonic()}"
    which = inputs[1]
    for select in page.config["dependencies"]:  # the third of its tabs; where gradio keeps that to itself, it is told
        if select["outputs"] == [which]:
            index = select.get("id", page.config["dependencies"].index(select))
            last = {"inputs": [], "outputs": [which], "index": index}
    page.call(last, {})
    names = ("enable", "restorer", "visibility", "fidelity", "faces", "numbers", "background", *NO_WORSE)
    ours = inputs[inputs.index(page.part("extras_bfr_adapt-checkbox", key="elem_id")) :][: len(names)]
    wanted = {"enable": True, "restorer": album} | settings
    values = {i: wanted[name] for i, name in zip(ours, names, strict=True) if name in wanted}
    values[page.part("extras_upscale-checkbox", key="elem_id")] = False
    values |= {inputs[0]: "task(x)", which: 2, inputs[4]: str(folder), inputs[5]: str(out)}
    page.call(event, values)


def test_extras_batch_keeps_names_and_changes_faces_alone(webui: WebUI, album: str, tmp_path: Path) -> None:
    before = portrait()
    for name in ("first photo.png", "b.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        before.save(tmp_path / "in" / name)
    run_extras(webui, album, tmp_path / "in", tmp_path / "off", enable=False)
    assert differing(Image.open(tmp_path / "off" / "b.png"), before) is None
    run_extras(webui, album, tmp_path / "in", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"first photo.png", "b.png"}
    for path in (tmp_path / "out").iterdir():
        made = Image.open(path)
        box = differing(made, before)
        assert box and 100 < box[0] < box[2] < 350 and box[3] < 250, "only around the face"
        assert "1 of 1 faces restored; their details are generated" in str(made.info)
    plain = {"keep_detail": False}  # what detail a face lacks hangs on how much of the photo is left in it
    run_extras(webui, album, tmp_path / "in", tmp_path / "full", **plain)
    run_extras(webui, album, tmp_path / "in", tmp_path / "half", visibility=0.5, **plain)
    full, half = (
        np.asarray(Image.open(tmp_path / folder / "b.png").convert("RGB")).astype(int) - np.asarray(before)
        for folder in ("full", "half")
    )
    assert abs(half - full / 2).max() <= 1
    run_extras(webui, album, tmp_path / "in", tmp_path / "numbered", faces="numbered", numbers="2")
    assert differing(Image.open(tmp_path / "numbered" / "b.png"), before) is None


def test_extras_of_the_api_are_left_alone(webui: WebUI, album: str) -> None:
    file = io.BytesIO()
    portrait().save(file, "PNG")
    code = base64.b64encode(file.getvalue()).decode()
    answer = webui.post("/sdapi/v1/extra-single-image", {"image": code, "upscaling_resize": 1})
    made = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert made.size == (512, 512) and differing(made, portrait()) is None


def test_a_picture_is_restored_by_the_api(webui: WebUI, album: str) -> None:
    file = io.BytesIO()
    portrait().save(file, "PNG")
    code = base64.b64encode(file.getvalue()).decode()
    answer = webui.post(f"{API}/restore", {"image": code, "restorer": album})
    made = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    box = differing(made, portrait())
    assert box and 100 < box[0] < box[2] < 350
    assert "1 of 1 faces restored" in answer["info"] and "compositeWithTrainedAlgorithmicMedia" in str(made.info)


def test_reload_doubles_nothing_and_all_still_works(webui: WebUI, album: str, tmp_path: Path) -> None:
    page = Gradio(webui)
    before = webui.face_restorers()
    starts = webui.log.read_text().count("Startup time: ")
    page.press("Reload UI")
    wait_for(webui, starts=starts + 1)
    webui.log_in()
    assert webui.face_restorers() == before
    page = Gradio(webui)
    setting = page.parts[page.part("setting_face_restoration_model", key="elem_id")]["props"]
    assert strings(setting["choices"]).count(f"{album} (BFR Adapt)") in (1, 2), "name and value of one choice"
    test_the_tab_is_there_once_and_nothing_failed(webui)
    (tmp_path / "in").mkdir()
    portrait().save(tmp_path / "in" / "a.png")
    run_extras(webui, album, tmp_path / "in", tmp_path / "out")
    assert differing(Image.open(tmp_path / "out" / "a.png"), portrait())
    assert webui.wait(album)["adapted"]


# ---------------------------------------------------------------- install.py


@pytest.mark.parametrize("name", HOSTS)
def test_installing_changes_no_package_of_the_host(name: str) -> None:
    """In a copy of the host's environment, of hard links, without what was added to it before."""
    home = home_of(name)
    pinned = requirements_of(home)
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        copy, pack = Path(folder) / "venv", Path(folder) / "pack"
        try:
            shutil.copytree(home / "venv", copy, copy_function=os.link, symlinks=True)
        except (OSError, shutil.Error) as error:
            pytest.skip(f"the environment cannot be copied by links: {str(error)[:100]}")
        pack.mkdir()
        shutil.copytree(ROOT / "installation", pack / "installation")
        for file in ("install.py", "requirements.txt", "requirements-optional.txt"):
            shutil.copy(ROOT / file, pack)
        python = str(copy / python_of(home).relative_to(home / "venv"))
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}

        def freeze() -> set[str]:
            command = [python, "-m", "pip", "freeze", "--all"]
            return set(
                subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stdout.split("\n")
            )

        def install(flags: str) -> str:
            done = subprocess.run(
                [python, str(pack / "install.py")], env=plain | {"COMMANDLINE_ARGS": flags},
                capture_output=True, text=True, check=False, cwd=home,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout

        own = [package for package in ("diffusers", "lpips") if f"\n{package}==" not in pinned]
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *own], env=plain, check=True)
        before = freeze()
        assert "skip" in install("--api --skip-install") and freeze() == before
        install("--api")
        after = freeze()
        assert before <= after, f"changed or gone: {sorted(before - after)}"
        assert {line.split("==")[0] for line in after - before} >= set(own)
        assert "every package is here already" in install("--api")
