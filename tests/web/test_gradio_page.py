"""The page in gradio: what its server answers and refuses, and the way through it in a headless Chromium.

The handlers themselves are tested without gradio in test_actions.py.
"""

import asyncio
import contextlib
import http.client
import json
import os
import socket
import sys
import threading
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from bfr_core.adaptation.config import AdaptConfig
from bfr_core.cli.commands import main
from bfr_core.diffusion.prior import EMBEDDED as EMBEDDED_PRIOR
from bfr_core.files.photos import write_image
from bfr_core.reports.html import VERDICTS
from bfr_core.restorers.load import SHIPPED
from bfr_core.studies.demo import real_photos
from bfr_core.web import gradio_compat as compat
from bfr_core.web import jobs
from bfr_core.web.actions import Page
from bfr_core.web.choices import Choices
from bfr_core.web.gradio_compat import at_home
from bfr_core.web.gradio_page import build, read_logins, serve, words_of
from tests.free_port import free_port
from tests.tab import PATIENCE, Tab, until

FEW = Choices(aligned=True, changes={"finetune.iterations": 4, "finetune.sharp": 0.0})  # no damage is searched for


@pytest.fixture
def gradio():
    return pytest.importorskip("gradio", reason="gradio is not installed", exc_type=ImportError)


@pytest.fixture
def small(monkeypatch, tiny_restorer, tiny_prior):
    """ "embedded" are networks of a few thousand parameters, and what `serve` sets in the environment is taken back."""
    monkeypatch.setitem(SHIPPED, "embedded", tiny_restorer)
    monkeypatch.setattr("bfr_core.diffusion.prior.EMBEDDED", tiny_prior)
    monkeypatch.setattr("bfr_core.restoration.same_person.EMBEDDED_SMALL", tiny_restorer)  # helps to tell people
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_SHARE", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("finetune.minutes", "0 tunes until the steps are done."),  # its label is "Minutes of tuning at most"
        ("gate.limit", "0 refuses none. In robust standard deviations."),
    ],
)
def test_a_hint_names_the_unit_unless_the_label_does(path, end):
    assert words_of(AdaptConfig, path)["info"].endswith(end)


@contextlib.contextmanager
def served(runs, allowed=(), listen=False, auth=None):
    """(page, port) of a server that is up."""
    port = free_port()
    page, server, _ = serve(runs, allowed, port, listen, auth)
    try:
        yield page, port
    finally:
        page.jobs.stop_all()
        server.close()


def ask(port, path, headers=None, method="GET", body=None):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode(errors="replace")


def test_without_gradio_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["ui", "--runs", str(tmp_path)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bfr: ")]
    assert lines == ['bfr: the web page needs gradio: pip install "gradio>=6"']


def test_a_folder_to_allow_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main(["ui", "--runs", str(tmp_path), "--allow", str(tmp_path / "gone")]) == 2
    assert f"--allow {tmp_path / 'gone'}: no such folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["ui", "--runs", str(tmp_path), "--allow", str(tmp_path / "file")]) == 2
    assert f"--allow {tmp_path / 'file'}: is a file; name the folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--port 99999", "--port 0", "--port -1", "--port http", "--runs {file}"])
def test_a_wrong_port_or_place_of_the_runs_is_one_line(tmp_path, capsys, words):
    (tmp_path / "file").write_text("")
    flag, value = words.format(file=tmp_path / "file").split()
    with pytest.raises(SystemExit) as ended:
        main(["ui", "--runs", str(tmp_path), f"{flag}={value}"])
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and f"argument {flag}: " in said and "\n" not in said
    assert ("a number from 1 to 65535" if flag == "--port" else "is a file; name a folder") in said


def test_logins_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("BFR_UI_AUTH", raising=False)
    assert read_logins(None) == []
    monkeypatch.setenv("BFR_UI_AUTH", "eva:a:b")
    assert read_logins(None) == [("eva", "a:b")]
    (tmp_path / "logins").write_text("ada:x\n\nbo:y\n")
    assert read_logins(tmp_path / "logins") == [("ada", "x"), ("bo", "y")]
    for wrong in ("ada", ":x", "", "ada:"):
        (tmp_path / "logins").write_text(wrong)
        with pytest.raises(ValueError, match="each line must be user:password"):
            read_logins(tmp_path / "logins")


def test_a_login_file_is_read_as_windows_writes_it_or_refused_by_name(tmp_path):
    file = tmp_path / "logins"
    file.write_text("ada:x\n", encoding="utf-8-sig")
    assert read_logins(file) == [("ada", "x")]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        file.write_text("ada:xé\n", encoding=encoding)
        with pytest.raises(ValueError, match=r"^--auth .*logins: .*save it as UTF-8$"):
            read_logins(file)
    for place, says in ((tmp_path / "gone", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=f"^--auth .*: {says}; .*user:password"):
            read_logins(place)


@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("127.0.0.1:7860", "", True),
        ("localhost:7860", "http://localhost:7860", True),
        ("[::1]:7860", "", True),
        ("rebound.example:7860", "", False),
        ("", "", False),
        ("127.0.0.1:7860", "http://evil.example", False),
        ("127.0.0.1:7860", "http://127.0.0.1:8000", False),
        ("127.0.0.1:7860", "null", False),
    ],
)
def test_only_requests_of_this_machine_are_answered(host, origin, answered):
    assert at_home(host, origin) is answered


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("192.168.1.5:7860", "", 200),
        ("192.168.1.5:7860", "http://192.168.1.5:7860", 200),
        ("192.168.1.5:7860", "http://evil.example", 403),
        ("192.168.1.5:7860", "null", 403),
    ],
)
def test_pages_of_other_sites_are_refused_also_where_all_machines_are_answered(host, origin, status):
    answers = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        answers.append(message)

    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    asyncio.run(compat.Doorkeeper(app, loopback=False)({"type": "http", "headers": headers}, None, send))
    assert answers[0]["status"] == status


def test_every_event_stays_out_of_the_queue_and_of_the_public_interface(gradio, small, tmp_path):
    page = Page(tmp_path / "runs")
    compat.prepare(page.cache)
    config = build(page).get_config_file()
    assert len(config["dependencies"]) > 10
    for event in config["dependencies"]:
        assert event["queue"] is False and event.get("api_visibility", "private") == "private"


def test_the_page_is_built_without_loading_a_network(gradio, small, tmp_path, monkeypatch):
    page = Page(tmp_path / "runs")
    monkeypatch.setattr("bfr_core.web.runs.load_restorer", None)
    build(page)


def test_a_photo_that_is_looked_at_stays_when_the_run_changes(gradio, small, photos, tmp_path):
    page = Page(tmp_path / "runs", [photos])
    demo = build(page)
    name, _ = page.new_run("", [], str(photos), Choices(aligned=True))
    page.jobs.wait(page.run(name))
    look = next(one.fn for one in demo.fns.values() if "tick" in str(one.targets))

    def shown(*given):
        found = look(*given)
        by_label = {one.label: value for one, value in found.items() if getattr(one, "label", None)}
        return by_label, next(value for one, value in found.items() if type(one).__name__ == "State")

    first, stamp = shown(name, "another", None)
    others = page.photos(name)
    assert first["Photo"]["value"] == others[0] and first["Files to download"]["visible"] is False
    page.toggle(name, 0)  # as anything else that changes the run
    second, _ = shown(name, stamp, others[5])
    assert second["Photo"]["value"] == others[5] and "Files to download" not in second
    assert shown(name, stamp, "of another run")[0]["Photo"]["value"] == others[0]


class Handlers:
    """The page's handlers, called with the values of their inputs by label; the rest are as the page was built."""

    def __init__(self, demo):
        self.demo = demo

    def event(self, trigger, label=None):
        """The handler of this event, of the component with this label, or this text."""
        blocks = self.demo.blocks

        def named(place):
            block = blocks.get(place)
            return label in (None, getattr(block, "label", None), getattr(block, "value", None))

        fns = [f for f in self.demo.fns.values() for place, kind in f.targets if kind == trigger and named(place)]
        return next(fn for fn in fns if fn.fn and fn.outputs)

    def call(self, trigger, label=None, /, seen="", **given):
        """Answer by label, "State" for the stamp and "ImageSlider" for the comparison; "said" is all text of it."""
        event = self.event(trigger, label)
        values = {name.replace("_", " "): value for name, value in given.items()} | {"State": seen}
        own = [(getattr(one, "label", None) or type(one).__name__, one.value) for one in event.inputs]
        answer = event.fn(*(values.get(name, value) for name, value in own))
        found = {getattr(one, "label", None) or type(one).__name__: value for one, value in answer.items()}
        return found | {"said": str(list(answer.values()))}


@pytest.fixture
def two_runs(gradio, small, photos, tmp_path):
    """A page with the runs "A" and "B", and its handlers."""
    page = Page(tmp_path / "runs", [photos])
    for name in ("A", "B"):
        page.new_run(name, [], str(photos), Choices(aligned=True))
        page.jobs.wait(page.run(name))
    yield page, Handlers(build(page))
    page.jobs.stop_all()


def test_nothing_is_done_to_a_run_with_the_boxes_of_the_one_before(two_runs):
    page, handlers = two_runs
    box = next(one.label for one in handlers.event("click", "Delete").inputs if type(one).__name__ == "Checkbox")
    of_a = handlers.call("change", "Run", Run="A")["State"]
    before = page.stamp("B")
    for button in ("Adapt", "First look", "Repair", "Delete"):
        answer = handlers.call("click", button, seen=of_a, Run="B", **{box: True})
        assert "this run is still being opened; try again in a moment" in answer["said"]
    assert page.stamp("B") == before and page.names() == ["B", "A"]
    of_b = handlers.call("tick", seen=of_a, Run="B")
    assert of_b["State"] == before and "Learning rate" in of_b, "never opened without its own boxes"
    assert "B is deleted" in handlers.call("click", "Delete", seen=of_b["State"], Run="B", **{box: True})["said"]
    assert page.names() == ["A"]


def test_a_damaged_run_can_be_deleted_from_the_page(two_runs):
    page, handlers = two_runs
    (page.run("B").faces / "faces.json").write_text("{")
    box = next(one.label for one in handlers.event("click", "Delete").inputs if type(one).__name__ == "Checkbox")
    opened = handlers.call("change", "Run", Run="B")
    assert "is damaged" in opened["said"] and "Learning rate" in opened and opened["Faces"]["value"] == []
    assert "B is deleted" in handlers.call("click", "Delete", seen=opened["State"], Run="B", **{box: True})["said"]


def test_what_was_made_with_a_restorer_goes_with_it(two_runs):
    page, handlers = two_runs
    opened = handlers.call("change", "Run", Run="A")
    compared = ("Files to download", "Before | after")
    assert opened[compared[0]]["visible"] is False and opened[compared[1]] is None
    page.toggle("A", 0)
    assert not {*compared} & {*handlers.call("tick", seen=opened["State"], Run="A")}
    page.run("A").report.write_text("of another restorer")
    later = handlers.call("tick", seen=opened["State"], Run="A")
    assert later[compared[0]]["value"] is None and later[compared[1]] is None


def test_what_arrives_while_the_page_runs_is_offered(two_runs, tmp_path, monkeypatch):
    _, handlers = two_runs
    weights = tmp_path / "weights"
    (weights / "upscale_models").mkdir(parents=True)
    monkeypatch.setenv("BFR_WEIGHTS", str(weights))
    monkeypatch.setattr("bfr_core.web.gradio_page.priors", lambda: {"embedded": "embedded", "sd.safetensors": "x"})
    monkeypatch.setattr("bfr_core.web.gradio_page.offered_backgrounds", lambda: {"off": "off", "new.pth": "x"})
    (weights / "GFPGANv1.4.pth").write_text("")
    for answer in (handlers.call("change", "Run", Run="A"), handlers.call("load")):
        choices = [value["choices"] for value in answer.values() if isinstance(value, dict) and "choices" in value]
        assert {"GFPGANv1.4.pth", "sd.safetensors", "new.pth"} <= {name for names in choices for name in names}


def test_a_search_that_was_stopped_goes_on_by_its_button(two_runs, monkeypatch):
    page, handlers = two_runs
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "collect_faces", lambda *_: 1 / 0)
        page.look_for_faces("A", Choices(aligned=True))
        assert page.jobs.wait(page.run("A")).state == "failed"
    seen = handlers.call("change", "Run", Run="A")["State"]
    assert "drop some photos first" in handlers.call("click", "Find the faces", seen="", Run="A")["said"]
    crops = {words_of(AdaptConfig, "faces.aligned")["label"]: True}
    again = handlers.call("click", "Find the faces", seen=seen, Run="A", **crops)
    assert "Faces are looked for again" in again["said"]
    assert page.jobs.wait(page.run("A")).state == "done"
    assert "drop some photos first" in handlers.call("click", "Find the faces", seen=seen, Run="A")["said"]


def test_the_arrows_of_an_input_go_in_steps_that_suit_its_value(gradio, small, tmp_path):
    inputs = build(Page(tmp_path / "runs")).blocks.values()
    steps = {one.label: one.step for one in inputs if type(one).__name__ == "Number"}
    assert steps["Learning rate"] == pytest.approx(1e-4)
    assert steps["Learn from sharp faces"] == steps["Hatching"] == 0.1
    assert steps["Tuning steps"] == steps["Seed"] == 1


def test_what_the_server_answers_and_refuses(gradio, small, tmp_path):
    runs = tmp_path / "runs"
    secret = tmp_path / "secret.png"
    write_image(secret, torch.rand(3, 8, 8))
    (runs / "a run").mkdir(parents=True)
    (runs / "a run" / "request.json").write_text("{}")
    with served(runs) as (page, port):
        status, headers, text = ask(port, "/")
        assert status == 200 and "BFR Adapt" in text
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "http" not in policy
        assert "fonts.googleapis" not in text
        assert json.loads(ask(port, "/config")[2])["analytics_enabled"] is False
        for path in (secret, runs / "a run" / "request.json", Path("/etc/passwd")):
            assert ask(port, f"/gradio_api/file={quote(str(path))}")[0] in (403, 404)
        (page.cache / "shown.txt").write_text("shown")
        assert ask(port, f"/gradio_api/file={page.cache / 'shown.txt'}")[2] == "shown"
        assert ask(port, "/", {"Host": "evil.example"})[0] == 403
        assert ask(port, "/gradio_api/upload", {"Origin": "http://evil.example"}, "POST", "x")[0] == 403


def test_behind_a_login_nothing_is_answered_without_it(gradio, small, tmp_path):
    (tmp_path / "logins").write_text("ada:lovelace\n")
    with served(tmp_path / "runs", auth=tmp_path / "logins") as (page, port):
        (page.cache / "shown.txt").write_text("shown")
        assert ask(port, "/config")[0] == 401
        assert ask(port, f"/gradio_api/file={page.cache / 'shown.txt'}")[0] == 401
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert ask(port, "/login", form, "POST", "username=ada&password=wrong")[0] == 400
        status, headers, _ = ask(port, "/login", form, "POST", "username=ada&password=lovelace")
        assert status == 200
        cookie = headers["set-cookie"].split(";")[0]
        assert ask(port, "/config", {"Cookie": cookie})[0] == 200


def test_a_port_that_is_taken_is_one_line(gradio, small, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--runs", str(tmp_path / "runs"), "--port", str(port)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bfr: ")]
    assert lines == [f"bfr: port {port} is taken; choose another with --port"]


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def tab(browser, screenshots):
    return Tab(browser, screenshots)


def asked_elsewhere(browser, port):
    """Addresses of other servers that the browser asked for something."""
    log = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in log if m["method"] == "Network.requestWillBeSent"]
    assert asked
    return [url for url in asked if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))]


def test_stopping_reloading_and_going_on(gradio, small, tab, photos, tmp_path):
    with served(tmp_path / "runs", [photos]) as (page, port):
        tab.browser.get(f"http://127.0.0.1:{port}/")
        tab.press("Find the faces")
        tab.wait_for("drop some photos first")
        tab.type("or name a folder", str(photos))
        tab.type("Name of the run", "<b>album")
        tab.tick("cut-out")
        tab.press("Find the faces")
        tab.wait_for("10 faces found, 0 left out")
        name = page.names()[0]
        page.remember(page.run(name), Choices(aligned=True, changes={**FEW.changes, "finetune.iterations": 3000}))
        tab.browser.refresh()
        tab.press("2. Adapt")
        tab.press("Adapt")
        tab.wait_for("Tuning the restorer")
        until(lambda: len(tab.images(".bfr .faces img")) == 12)
        tab.browser.refresh()  # the run does not mind
        tab.wait_for("Tuning the restorer")
        tab.press("2. Adapt")
        tab.picture("page_adapting")
        tab.press("Stop")
        tab.wait_for("Stopped by you")
        page.remember(page.run(name), FEW)
        tab.browser.refresh()
        tab.press("2. Adapt")
        tab.press("Go on")
        tab.wait_for("Adapted. The verdict is under Result.")
        tab.press("4. Repair photos")
        tab.type("or name a folder", str(photos))
        tab.tick("cut-out")
        tab.press("Repair")
        tab.wait_for("repaired 1")
        assert len(zipfile.ZipFile(page.repaired(name)).namelist()) == 10
        tab.press("All runs")
        tab.press("Delete")
        tab.wait_for("tick the box beside the button first")
        tab.tick("Delete -b-album")
        tab.press("Delete")
        tab.wait_for("-b-album is deleted.")
        assert page.names() == [] and not asked_elsewhere(tab.browser, port)


@pytest.mark.slow
def test_photos_with_different_kinds_of_damage(gradio, small, tab, mixed_photos, verdicts, tmp_path):
    with served(tmp_path / "runs", [mixed_photos]) as (_, port):
        tab.browser.get(f"http://127.0.0.1:{port}/")
        tab.press("Find the faces")
        tab.wait_for("drop some photos first")  # what is typed while the page still loads may be lost
        tab.type("or name a folder", str(mixed_photos))
        tab.type("Name of the run", "Mixed")
        tab.tick("cut-out")
        tab.press("Find the faces")
        tab.wait_for("34 faces found")
        tab.press("2. Adapt")
        tab.tick("different kinds of damage")
        tab.open("Advanced")
        tab.type("Tuning steps", "60")
        tab.type("Learn from sharp faces", "0")  # so that no damage is searched for
        tab.open("Advanced")
        tab.press("Adapt")
        tab.wait_for("Group 2 of 2: Tuning the restorer")
        until(lambda: tab.says("Telling kinds of damage apart"))
        tab.picture("page_mixed_1_adapting")
        tab.wait_for("Adapted. The verdict is under Result.")
        tab.browser.refresh()
        tab.press("2. Adapt")
        until(lambda: tab.field("My photos have different kinds of damage").is_selected())
        tab.picture("page_mixed_2_adapted")
        tab.press("3. Result")
        tab.wait_for("2 groups of damages were found")
        tab.picture("page_mixed_3_result")
        tab.press("Save the restorer")
        tab.press_link("Mixed.zip")
        archive = until(lambda: zipfile.ZipFile(next((tmp_path / "downloads").glob("*.zip"))))
        assert {"groups.safetensors", "groups/base.safetensors"} < set(archive.namelist())


def damaged_copies(folder):
    """Eight photos, each with one real face and a sensor's noise: two portraits in four sizes."""
    for n, (name, photo) in enumerate(real_photos().items()):
        for i in range(4):
            size = [round(side * (0.6 + 0.1 * i)) for side in photo.shape[-2:]]
            smaller = torch.nn.functional.interpolate(photo[None], size, mode="bilinear", antialias=True)
            noise = torch.randn(smaller.shape, generator=torch.Generator().manual_seed(10 * n + i))
            write_image(folder / f"{name.split()[0]} {i}.png", (smaller + 0.1 * noise).clamp(0, 1)[0])
    return sorted(folder.iterdir())


@pytest.fixture(params=["small", pytest.param("embedded", marks=pytest.mark.slow)])
def networks(request):
    """The networks of `small`, or the embedded ones, of which the smaller restorer."""
    shipped = SHIPPED["embedded128"]
    request.getfixturevalue("small")
    if request.param == "embedded":
        patch = request.getfixturevalue("monkeypatch")
        patch.setitem(SHIPPED, "embedded", shipped)
        patch.setattr("bfr_core.diffusion.prior.EMBEDDED", EMBEDDED_PRIOR)
        patch.setattr("bfr_core.restoration.same_person.EMBEDDED_SMALL", shipped)


@pytest.fixture
def seen(monkeypatch):
    """Until this is set, an adaptation waits at its second step: a page that asks now and then may miss a short one."""
    seen = threading.Event()

    def adapt(photos, run, config, callback, *more, **options):
        def told(stage, step, steps, detail):
            callback(stage, step, steps, detail)
            if (stage, step) == ("finetune", 2):
                seen.wait(PATIENCE)

        return real(photos, run, config, told, *more, **options)

    real = jobs.adapt
    monkeypatch.setattr(jobs, "adapt", adapt)
    yield seen
    seen.set()


def test_from_dropped_photos_to_a_repaired_one(gradio, tab, networks, seen, tmp_path):
    """All of it, on real faces that have to be found first."""
    photos = damaged_copies(tmp_path / "noisy")
    downloads = tmp_path / "downloads"
    with served(tmp_path / "runs") as (page, port):
        tab.browser.get(f"http://127.0.0.1:{port}/")
        tab.button("Find the faces")
        tab.picture("page_1_opened")
        tab.drop(photos)
        tab.type("Name of the run", "Noisy portraits")
        tab.press("Find the faces")
        tab.wait_for("8 faces found, 0 left out")
        for left_out in (1, 0, 1):  # whatever the run is still doing with its faces
            tab.faces()[2].click()
            tab.wait_for(f"8 faces found, {left_out} left out")
        for face in tab.faces()[3:6]:  # at once: none waits for the answer to the one before
            face.click()
        tab.wait_for("8 faces found, 4 left out")
        for face in tab.faces()[3:6]:
            face.click()
        tab.wait_for("8 faces found, 1 left out")
        tab.picture("page_2_faces")
        tab.press("2. Adapt")
        tab.open("Advanced")
        tab.type("Tuning steps", "3")
        tab.type("Faces per step", "2")
        tab.open("Advanced")
        tab.press("Adapt")
        tab.wait_for("left in this stage")
        seen.set()
        tab.wait_for("Adapted. The verdict is under Result.")
        tab.picture("page_3_adapted")
        tab.press("3. Result")
        until(lambda: any(tab.says(f"{verdict}.") for verdict in VERDICTS.values()))
        tab.press("Show before and after")
        width, height = Image.open(photos[0]).size
        until(lambda: tab.images("img[src*='compare']") == [[width, height]] * 2)
        tab.picture("page_4_result")
        tab.press("Save the restorer")
        tab.press_link("Noisy portraits.safetensors")
        kept = until(lambda: next(downloads.glob("*.safetensors")))
        run = page.run("Noisy portraits")
        until(lambda: kept.read_bytes() == run.restorer.read_bytes())
        tab.press("4. Repair photos")
        tab.drop([photos[0]], -1)
        tab.press("Repair")
        tab.wait_for("1 restored")
        tab.press_link("repaired 1.zip")
        tab.picture("page_5_repaired")
        archive = until(lambda: zipfile.ZipFile(next(downloads.glob("*.zip"))))
        assert archive.namelist() == [photos[0].name]
        with archive.open(photos[0].name) as file:
            made = np.asarray(Image.open(file).convert("RGB"))
        changed = (made != np.asarray(Image.open(photos[0]).convert("RGB"))).any(2)
        assert 0.02 < changed.mean() < 0.8 and not changed[-20:].any(), "the face, and nothing but the face"
        tab.press("All runs")
        tab.picture("page_6_runs")
        assert not asked_elsewhere(tab.browser, port)


def test_an_event_may_name_files_of_our_cache_and_no_others(tmp_path, monkeypatch):
    """Of gradio 4, made up: what it would refuse."""
    asked: list[object] = []
    utils = SimpleNamespace(check_all_files_in_cache=asked.append)
    gradio = ModuleType("gradio")
    vars(gradio)["processing_utils"] = utils
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    cache = tmp_path / "runs/_page"
    for _ in range(2):
        compat.confine(SimpleNamespace(blocks={}), cache)
    check = utils.check_all_files_in_cache
    check({"index": 1, "value": {"image": {"path": f"{cache}/faces/a.png"}}})
    assert not asked
    others = [
        {"path": f"{cache}/../run/a.png"},
        {"path": f"{cache}/a.png", "more": [{"path": "/etc/passwd"}]},
        {"index": 1},
    ]
    for data in others:
        check(data)
    assert asked == others
