import hashlib
import importlib.util
import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOOL = Path(__file__).resolve().parents[2] / "tools" / "get_faces.py"
_spec = importlib.util.spec_from_file_location("get_faces", TOOL)
assert _spec and _spec.loader
tool = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = tool  # where dataclasses look for their module
_spec.loader.exec_module(tool)

FILES = {f"face {i}.jpg": bytes([i]) * (1000 + i) for i in range(20)}
CHECKSUMS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


class Site(ThreadingHTTPServer):
    """Serves FILES; `faults` says what goes wrong with the first so many requests for a name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}/images/"


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        name = self.path.removeprefix("/images/").replace("%20", " ")
        self.server.asked[name] += 1
        fault = self.server.faults[name].pop(0) if self.server.faults.get(name) else ""
        content = FILES.get(name, b"")
        if fault.isdigit() or not content:
            self.send_error(int(fault or 404))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        sent = {"cut": content[:100], "corrupt": b"!" + content[1:]}.get(fault, content)
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "FIRST_WAIT_SECONDS", 0.01)


def get(folder: Path, url: str) -> int:
    return tool.get_faces(folder, CHECKSUMS, url, jobs=4)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_files_arrive_and_a_second_run_asks_for_nothing(tmp_path: Path, site: Site):
    assert get(tmp_path, site.url) == 20 and contents(tmp_path) == FILES
    assert get(tmp_path, site.url) == 0 and set(site.asked.values()) == {1}


def test_only_what_is_missing_or_changed_is_fetched_again(tmp_path: Path, site: Site):
    get(tmp_path, site.url)
    (tmp_path / "face 3.jpg").unlink()
    (tmp_path / "face 4.jpg").write_bytes(b"changed")
    site.asked.clear()
    assert get(tmp_path, site.url) == 2 and contents(tmp_path) == FILES
    assert site.asked == {"face 3.jpg": 1, "face 4.jpg": 1}


@pytest.mark.parametrize("fault", ["cut", "corrupt", "503", "429"])
def test_passing_faults_are_tried_again(tmp_path: Path, site: Site, fault: str):
    site.faults = {"face 7.jpg": [fault, fault], "face 0.jpg": [fault]}
    get(tmp_path, site.url)
    assert contents(tmp_path) == FILES and site.asked["face 7.jpg"] == 3


@pytest.mark.parametrize(
    ("fault", "reason"), [("cut", "cut short"), ("corrupt", "checksum differs"), ("503", "503"), ("404", "404")]
)
def test_lasting_faults_end_in_one_line_and_keep_no_bad_file(tmp_path: Path, site: Site, fault: str, reason: str):
    site.faults = {"face 7.jpg": [fault] * 9}
    with pytest.raises(OSError, match=reason) as error:
        get(tmp_path, site.url)
    assert "\n" not in str(error.value) and "face%207.jpg" in str(error.value)
    kept = contents(tmp_path)
    assert "face 7.jpg" not in kept and all(FILES[name] == content for name, content in kept.items())
    assert site.asked["face 7.jpg"] == (1 if fault == "404" else 3)
    site.faults = {}
    get(tmp_path, site.url)
    assert contents(tmp_path) == FILES


def test_offline_is_one_line_soon_and_exit_2(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tool, "read_checksums", lambda: CHECKSUMS)
    with socket.socket() as unused:  # bound but not listening: refused at once
        unused.bind(("127.0.0.1", 0))
        assert tool.main([str(tmp_path), "--base-url", f"http://127.0.0.1:{unused.getsockname()[1]}/"]) == 2
    (line,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "refused" in line and "run the same command" in line and "\n" not in line
    assert not list(tmp_path.iterdir())


def test_whole_command(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tool, "read_checksums", lambda: CHECKSUMS)
    assert tool.main([str(tmp_path), "--base-url", site.url]) == 0
    assert contents(tmp_path) == {**FILES, "landmarks.json": tool.LANDMARKS.read_bytes()}


def test_committed_lists_agree_and_are_small():
    checksums = tool.read_checksums()
    landmarks = json.loads(tool.LANDMARKS.read_text())
    assert len(checksums) == 750 and set(landmarks) == set(checksums)
    assert all(len(sha256) == 64 for sha256 in checksums.values())
    for entry in landmarks.values():
        assert len(entry["landmarks"]) == 5 and all(0 <= x < 225 and 0 <= y < 275 for x, y in entry["landmarks"])
    assert tool.CHECKSUMS.stat().st_size + tool.LANDMARKS.stat().st_size < 200_000
    assert len(tool.COMMIT) == 40 and tool.COMMIT in tool.BASE_URL and tool.BASE_URL.startswith("https://")


def test_list_agrees_with_the_files_themselves(shared: Path):
    checksums = tool.read_checksums()
    for name in sorted(checksums)[::50]:
        assert tool.is_here(shared / "portraits" / name, checksums[name])


def test_faces_are_cut_from_checked_pictures_once(tmp_path: Path):
    pictures = tmp_path / "site"
    drawn = np.random.default_rng(0).integers(0, 256, (14, 18), np.uint8)
    noise = Image.fromarray(drawn).resize((90, 70), Image.Resampling.BICUBIC)
    (pictures / "sheets").mkdir(parents=True)
    Image.merge("RGB", [noise, noise.rotate(180), noise]).save(pictures / "sheets" / "a b.png")
    noise.save(pictures / "old.png")
    sums = {name: hashlib.sha256((pictures / name).read_bytes()).hexdigest() for name in ("sheets/a b.png", "old.png")}
    points = [30.5, 40.25, 50.5, 41.0, 40.0, 50.0, 32.0, 60.0, 48.0, 61.5]
    faces = {"one.jpg": [0, [5, 7, 60, 50], 0, points], "clean/two.jpg": [1, [0, 0, 90, 70], 1, points]}
    (tmp_path / "cuts.json").write_text(
        json.dumps({"drawn": {"repository": "r", "commit": "c", "pictures": sums, "faces": faces}})
    )
    (cuts,) = tool.read_cuts(tmp_path / "cuts.json")
    assert cuts.base_url == f"{tool.HOST}r/c/"
    out = tmp_path / "drawn"
    assert tool.get_faces(tmp_path / "kept", cuts.pictures, pictures.as_uri() + "/", jobs=2) == 2
    assert tool.cut_faces(out, tmp_path / "kept", cuts) == 2 and tool.cut_faces(out, tmp_path / "kept", cuts) == 0
    one, two = Image.open(out / "one.jpg"), Image.open(out / "clean/two.jpg")
    assert (one.mode, one.size, two.mode, two.size) == ("RGB", (60, 50), "L", (90, 70))
    cut = np.asarray(noise, float)
    assert np.corrcoef(np.asarray(two, float).ravel(), cut.ravel())[0, 1] > 0.99
    green = np.asarray(noise.rotate(180), float)[7:57, 5:65]
    assert np.corrcoef(np.asarray(one, float)[..., 1].ravel(), green.ravel())[0, 1] > 0.95
    listed = json.loads((out / "landmarks.json").read_text())
    assert listed["one.jpg"]["landmarks"][1] == [50.5, 41.0] and listed["clean/two.jpg"]["grey"] is True
    assert listed["one.jpg"]["sheet"] == "sheets/a b.png"


def test_the_list_of_cuts_has_every_face_within_its_picture_and_no_picture_in_vain():
    folders = {cuts.name: cuts for cuts in tool.read_cuts()}
    assert {name: len(cuts.faces) for name, cuts in folders.items()} == {"faces_t2i": 976, "historic": 661}
    for cuts in folders.values():
        assert {cut.picture for cut in cuts.faces.values()} == set(cuts.pictures)
        assert all(len(sha256) == 64 for sha256 in cuts.pictures.values())
        for cut in cuts.faces.values():
            width, height = cut.box[2:]
            assert len(cut.landmarks) == 5 and all(0 < x < width and 0 < y < height for x, y in cut.landmarks)


def test_the_cuts_are_the_faces_that_were_trained_on(shared: Path):
    for cuts in tool.read_cuts():
        known = json.loads((shared / cuts.name / "landmarks.json").read_text())
        assert set(known) == set(cuts.faces)
        for name, cut in list(cuts.faces.items())[::50]:
            assert Image.open(shared / cuts.name / name).size == cut.box[2:]
            assert [list(point) for point in cut.landmarks] == known[name]["landmarks"]
