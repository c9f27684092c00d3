"""The page in gradio: what its server answers and refuses, and the way through it in a headless Chromium.

The handlers themselves are tested without gradio in test_page.py.
"""

import contextlib
import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest
import torch

from bfr_core import gradio_compat as compat
from bfr_core.cli import main
from bfr_core.gradio_compat import at_home
from bfr_core.images import write_image
from bfr_core.page import Choices, Page
from bfr_core.ui import build, read_logins, serve

FEW = Choices(aligned=True, changes={"finetune.iterations": 4})


@pytest.fixture
def gradio():
    return pytest.importorskip("gradio", reason="gradio is not installed", exc_type=ImportError)


@pytest.fixture
def small(monkeypatch, tiny_restorer, tiny_prior):
    """ "embedded" are networks of a few thousand parameters, and what `serve` sets in the environment is taken back."""
    monkeypatch.setattr("bfr_core.restorers.load.EMBEDDED", tiny_restorer)
    monkeypatch.setattr("bfr_core.prior.EMBEDDED", tiny_prior)
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_SHARE", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@contextlib.contextmanager
def served(runs, allowed=(), listen=False, auth=None):
    """(page, port) of a server that is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page, server, _ = serve(runs, allowed, port, listen, auth)
    try:
        yield page, port
    finally:
        page.jobs.stop_all()
        server.close()


def ask(port, path, headers=None, method="GET", body=None):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
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
    assert "gone" in capsys.readouterr().err


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


def test_every_event_stays_out_of_the_queue_and_of_the_public_interface(gradio, small, tmp_path):
    page = Page(tmp_path / "runs")
    compat.prepare(page.cache)
    config = build(page).get_config_file()
    assert len(config["dependencies"]) > 10
    for event in config["dependencies"]:
        assert event["queue"] is False and event.get("api_visibility", "private") == "private"


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
        assert main(["ui", "--runs", str(tmp_path / "runs"), "--port", str(taken.getsockname()[1])]) == 2
    assert "port" in capsys.readouterr().err


# ---------------------------------------------------------------- in a browser


def until(look, seconds=60):
    """What `look` gives, once that is something; what is not there yet may fail."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):
            if found := look():
                return found
        assert time.monotonic() < end, look()
        time.sleep(0.2)


def test_the_way_through_the_page(gradio, small, browser, photos, tmp_path):
    def button(text):
        found = browser.find_elements("css selector", "button")
        return next(b for b in found if b.text.strip() == text and b.is_displayed() and b.is_enabled())

    def field(label):
        found = browser.find_elements("xpath", f"//label[.//*[normalize-space(text())='{label}']]//input")
        found += browser.find_elements("xpath", f"//label[.//*[normalize-space(text())='{label}']]//textarea")
        return next(f for f in found if f.is_displayed())

    def says(text):
        return text in browser.find_element("tag name", "body").text

    with served(tmp_path / "runs", [photos]) as (page, port):
        browser.get(f"http://127.0.0.1:{port}/")
        until(lambda: button("Find the faces"))
        button("Find the faces").click()
        until(lambda: says("drop some photos first"))
        field("or name a folder").send_keys(str(photos))
        field("Name of the run").send_keys("<b>album")
        browser.find_element("xpath", "//label[contains(., 'cut-out')]//input").click()
        button("Find the faces").click()
        until(lambda: says("10 faces found, 0 left out"))
        name = page.names()[0]
        until(lambda: browser.find_elements("css selector", "button.thumbnail-item, .gallery-item button"))[1].click()
        until(lambda: says("10 faces found, 1 left out"))
        button("2. Adapt").click()
        until(lambda: button("Adapt"))
        page.remember(page.run(name), Choices(aligned=True, changes={"finetune.iterations": 3000}))
        browser.refresh()
        until(lambda: button("2. Adapt")).click()
        until(lambda: button("Adapt")).click()
        until(lambda: says("Teaching the restorer"))
        until(lambda: len(browser.find_elements("css selector", ".bfr .faces img")) == 12)
        browser.refresh()  # the run does not mind
        until(lambda: says("Teaching the restorer"))
        button("2. Adapt").click()
        until(lambda: button("Stop")).click()
        until(lambda: says("Stopped by you"))
        page.remember(page.run(name), FEW)
        browser.refresh()
        until(lambda: button("2. Adapt")).click()
        until(lambda: button("Go on")).click()
        until(lambda: says("Adapted. The verdict is under Result."))
        button("3. Result").click()
        until(lambda: button("Show before and after")).click()
        until(lambda: browser.find_elements("css selector", "img[src*='compare'], img[src*='damaged']"))
        button("4. Repair photos").click()
        until(lambda: field("or name a folder")).send_keys(str(photos))
        browser.find_elements("xpath", "//label[contains(., 'cut-out')]//input")[1].click()
        button("Repair").click()
        until(lambda: says("repaired 1"))
        button("All runs").click()
        until(lambda: button("Delete")).click()
        until(lambda: says("tick the box beside the button first"))
        log = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in log if m["method"] == "Network.requestWillBeSent"]
        foreign = [url for url in asked if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))]
        assert asked and not foreign
        page.run(name)
