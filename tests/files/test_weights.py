"""The table of published files, and fetching from a server on loopback that cuts, corrupts and stalls."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

import pytest

from bfr_core.files import weights
from bfr_core.files.weights import (
    TABLE,
    Weights,
    fetch,
    find_entry,
    licence_of,
    locate,
    resolve,
    search_folders,
    verify,
    weights_folder,
)

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `plan` says, request by request, what goes wrong."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[str] = []
        self.ranges: list[str] = []
        self.over = threading.Event()

    def patience(self, seconds: float) -> float:
        """The client's, which is short only where the answer will stall; a slow machine must not look stalled."""
        assert seconds == weights.TIMEOUT
        return 1.5 if self.plan[:1] == ["stall"] else seconds


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.ranges.append(wanted)
        fault = self.server.plan.pop(0) if self.server.plan else ""
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault != "no ranges" else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        if fault == "corrupt":
            body = bytes(len(body))
        if fault == "missing":
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(body[:300_000])
            self.wfile.flush()
            if fault == "stall":
                self.server.over.wait()
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(weights, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(weights, "TIMEOUT", 300.0)
    server = Server()
    monkeypatch.setattr(weights, "urlopen", lambda request, timeout: urlopen(request, timeout=server.patience(timeout)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def entry(server):
    url = f"http://127.0.0.1:{server.server_port}/net.pth"
    return Weights("net.pth", "test", url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "MIT", True)


def test_the_table_is_sound():
    assert len({w.name for w in TABLE}) == len(TABLE)
    hashes = [w.sha256 for w in TABLE if w.sha256]
    assert len(set(hashes)) == len(hashes) and all(len(h) == 64 and int(h, 16) for h in hashes)
    assert all(w.url.startswith("https://") and w.licence and w.what for w in TABLE)
    assert all(w.commercial is not True or "non-commercial" not in w.licence for w in TABLE)


def test_entries_agree_with_the_facts(shared):
    import json

    facts = json.loads((shared / "facts" / "weights.json").read_text())
    added = [w for w in TABLE if w.name not in facts]
    assert set(facts) < {w.name for w in TABLE} and not any(w.sha256 for w in added)  # placed by hand only
    for w in (w for w in TABLE if w not in added):
        assert (w.sha256 or None) == facts[w.name]["sha256"]
        assert w.size == facts[w.name].get("bytes", 0)


def test_found_by_name_with_or_without_suffix():
    assert find_entry("codeformer") is find_entry("CodeFormer.pth") is not None
    assert getattr(find_entry("gfpganv1.4"), "name", "") == "GFPGANv1.4.pth"
    assert find_entry("nothing") is None


def test_licences_are_known_by_content():
    assert "non-commercial" in licence_of(next(w.sha256 for w in TABLE if w.name == "codeformer.pth"))
    assert licence_of("") == licence_of("0" * 64) == "unknown"


def there(folder):
    """The files in a folder but for the lock of fetching."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_a_whole_file_comes_under_its_name(entry, tmp_path, server):
    seen = []
    path = fetch(entry, tmp_path, lambda have, total: seen.append((have, total)))
    assert path == tmp_path / "net.pth" and path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and there(tmp_path) == ["net.pth"]
    fetch(entry, tmp_path)
    assert len(server.ranges) == 1, "a good file is not fetched again"


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_broken_connection_is_taken_up_where_it_ended(entry, tmp_path, server, fault):
    server.plan = [fault, fault]
    assert fetch(entry, tmp_path).read_bytes() == CONTENT
    assert server.ranges[0] == "" and all(r.startswith("bytes=") for r in server.ranges[1:])
    assert len(server.ranges) == 3


def test_a_full_disk_is_no_broken_connection(entry, tmp_path, server, monkeypatch):
    monkeypatch.setattr(weights, "_fetch_rest", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        fetch(entry, tmp_path)
    assert error.value.errno == errno.ENOSPC and not server.ranges


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_cancelled_and_gone_on_with(entry, tmp_path, server):
    def cancel(have, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(entry, tmp_path, cancel)
    assert (tmp_path / "net.pth.bfr-part").stat().st_size > 0 and not (tmp_path / "net.pth").exists()
    assert fetch(entry, tmp_path).read_bytes() == CONTENT
    assert server.ranges[1].startswith("bytes=")


def test_two_who_fetch_the_same_do_not_spoil_each_others_part(entry, tmp_path, server):
    from filelock import FileLock

    (tmp_path / "net.pth.bfr-part").write_bytes(CONTENT[:1000])
    with FileLock(tmp_path / ".bfr-net.pth.lock"), pytest.raises(ValueError, match=r"^net.pth: another process is"):
        fetch(entry, tmp_path)
    assert (tmp_path / "net.pth.bfr-part").read_bytes() == CONTENT[:1000] and not server.ranges
    assert fetch(entry, tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(entry, tmp_path, server):
    server.plan = ["cut", "no ranges"]
    assert fetch(entry, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_already(entry, tmp_path):
    (tmp_path / "net.pth.bfr-part").write_bytes(CONTENT)
    assert fetch(entry, tmp_path).read_bytes() == CONTENT


def test_what_is_not_the_published_file_is_refused_and_removed(entry, tmp_path, server):
    server.plan = ["corrupt"]
    with pytest.raises(ValueError, match=r"net.pth: .* is not the published file \(wrong SHA-256") as error:
        fetch(entry, tmp_path)
    assert "\n" not in str(error.value) and not there(tmp_path)


def test_more_than_the_published_size_is_refused(entry, tmp_path):
    with pytest.raises(ValueError, match="more than"):
        fetch(replace(entry, size=1000), tmp_path)


def test_a_file_whose_size_is_not_known_may_not_fill_the_disk(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_BYTES", 300_000)
    with pytest.raises(ValueError, match="more than the published file's 300000 bytes"):
        fetch(replace(entry, size=0), tmp_path)


def test_a_file_of_the_host_is_not_fetched_once_more(entry, tmp_path, server, monkeypatch, capsys):
    from bfr_core.cli.commands import main

    monkeypatch.setattr(weights, "TABLE", (entry,))
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setenv("BFR_WEIGHTS_ALSO", str(tmp_path / "host"))
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "net.pth").write_bytes(b"damaged")
    assert main(["weights", "get", "net"]) == 0
    said = capsys.readouterr().err
    assert said.index("licence: MIT") < said.index("checked:") and len(server.ranges) == 1
    (tmp_path / "host" / "net.pth").write_bytes(CONTENT)
    (tmp_path / "own" / "net.pth").unlink()
    assert main(["weights", "get", "net"]) == 0
    assert f"used where it lies: {tmp_path / 'host' / 'net.pth'}" in capsys.readouterr().err
    assert len(server.ranges) == 1 and not (tmp_path / "own" / "net.pth").exists()


@pytest.mark.parametrize("how", ["missing", "offline"])
def test_unreachable_is_one_line_with_address_and_place(entry, tmp_path, server, how):
    server.plan = ["missing"] * 20
    wanted = entry if how == "missing" else replace(entry, url="http://127.0.0.1:9/net.pth")
    with pytest.raises(OSError, match="cannot be fetched") as error:
        fetch(wanted, tmp_path)
    text = str(error.value)
    assert wanted.url in text and str(tmp_path / "net.pth") in text and "\n" not in text


def test_without_a_hash_only_the_user_places_it(tmp_path):
    with pytest.raises(ValueError, match=r"SHA-256 is not known.*put it at"):
        fetch(next(w for w in TABLE if not w.sha256), tmp_path)


def test_verify_tells_what_is_wrong(entry, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(CONTENT)
    assert verify(entry, path) == "ok"
    path.write_bytes(CONTENT[:-1])
    assert verify(entry, path).startswith("wrong size")
    path.write_bytes(bytes(len(CONTENT)))
    assert verify(entry, path).startswith("wrong SHA-256")
    assert verify(replace(entry, sha256=""), path).startswith("not checkable")


@pytest.mark.parametrize(
    ("packs", "file", "name"),
    [
        ("custom_nodes", "facerestore_models/codeformer.pth", "codeformer"),
        ("custom_nodes", "facerestore_models/GFPGANv1.4.pth", "GFPGANv1.4.pth"),
        ("custom_nodes", "facedetection/detection_Resnet50_Final.pth", "detection_Resnet50_Final"),
        ("custom_nodes", "facedetection/parsing_parsenet.pth", "parsing_parsenet.pth"),
        ("extensions", "Codeformer/codeformer-v0.1.0.pth", "codeformer"),
        ("extensions", "Codeformer/codeformer-v0.1.0.pth", "codeformer-v0.1.0.pth"),
        ("extensions", "GFPGAN/GFPGANv1.4.pth", "gfpganv1.4"),
        ("extensions", "GFPGAN/detection_Resnet50_Final.pth", "detection_Resnet50_Final.pth"),
    ],
)
def test_files_of_the_host_are_found_and_stay_where_they_are(tmp_path, monkeypatch, packs, file, name):
    pack = tmp_path / "host" / packs / "bfr-adapt"
    there = tmp_path / "host" / "models" / file
    there.parent.mkdir(parents=True)
    there.write_bytes(b"x")
    monkeypatch.setattr(weights, "__file__", str(pack / "bfr_core" / "files" / "weights.py"))
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path / "own"))
    assert search_folders()[0] == tmp_path / "own"
    assert locate(name) == resolve(name) == there and there.read_bytes() == b"x"


@pytest.mark.skipif(sys.platform != "linux", reason="the cache of other systems is elsewhere")
def test_without_a_variable_weights_lie_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("BFR_WEIGHTS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    earlier = tmp_path / ".cache/bfr-adapt/weights"
    assert weights_folder() == earlier and search_folders()[0] == earlier
    earlier.mkdir(parents=True)
    assert search_folders().count(earlier) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert search_folders()[:2] == [tmp_path / "other/bfr-adapt/weights", earlier]


def test_without_platformdirs_the_other_folders_are_searched(tmp_path, monkeypatch):
    monkeypatch.delenv("BFR_WEIGHTS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BFR_WEIGHTS_ALSO", str(tmp_path / "also"))
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert search_folders()[0] == tmp_path / "also"
    with pytest.raises(ValueError, match="pip install platformdirs"):
        resolve("codeformer")


def test_a_known_file_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"bfr weights get codeformer.pth.*put it at"):
        resolve("codeformer")
    with pytest.raises(FileNotFoundError, match="no such file"):
        resolve("nothing.pth")
