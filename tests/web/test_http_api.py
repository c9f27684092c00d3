"""The page by HTTP; "embedded" are networks of a few thousand parameters here."""

from __future__ import annotations

import base64
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from bfr_core.files.ownership import LIST
from bfr_core.restorers.load import SHIPPED
from bfr_core.web.actions import Page
from bfr_core.web.host_service import HostService
from bfr_core.web.http_api import PREFIX, add_routes, logged_in

pytest.importorskip("fastapi", reason="fastapi, which comes with gradio, is not installed")
pytest.importorskip("httpx", reason="httpx, which fastapi's test client needs, is not installed")
testclient = pytest.importorskip("fastapi.testclient")


@pytest.fixture
def service(tmp_path, photos, tiny_restorer, tiny_prior, monkeypatch):
    monkeypatch.setitem(SHIPPED, "embedded", tiny_restorer)
    monkeypatch.setattr("bfr_core.diffusion.prior.EMBEDDED", tiny_prior)
    monkeypatch.setattr("bfr_core.restoration.same_person.EMBEDDED_SMALL", tiny_restorer)  # helps to tell people
    service = HostService(Page(tmp_path / "runs", [photos], "cpu"))
    yield service
    service.page.jobs.stop_all()


def client(service, logins=None, **more):
    import fastapi

    app = fastapi.FastAPI()
    add_routes(app, service, logins or {}, **more)
    return testclient.TestClient(app)


def test_a_run_from_its_folder_to_a_restored_picture(service, photos):
    web = client(service)
    body = {"folder": str(photos), "name": "album", "aligned": True}
    assert web.post(f"{PREFIX}/runs", json=body).json() == {"run": "album"}
    service.page.jobs.wait(service.page.run("album"))
    assert web.post(f"{PREFIX}/runs/album/stop").json()["state"] == "done"
    body = {"changes": {"finetune.iterations": 4.0}, "mixed": True}
    started = web.post(f"{PREFIX}/runs/album/adapt", json=body).json()
    assert started["kind"] == "adapt" and started["state"] in ("waiting", "running")
    service.page.jobs.wait(service.page.run("album"))
    assert service.page.choices_of("album").mixed and service.page.jobs.status(service.page.run("album")).notes
    [run] = web.get(f"{PREFIX}/runs").json()["runs"]
    assert run["state"] == "done" and run["adapted"] and run["verdict"]
    file = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(file, "JPEG")
    picture = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    answer = web.post(f"{PREFIX}/restore", json={"image": picture, "restorer": "album"}).json()
    assert Image.open(io.BytesIO(base64.b64decode(answer["image"]))).size == (40, 30)
    assert answer["info"] == "no face restored"
    assert list((service.page.cache / "api").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/runs", {"folder": "/etc"}, "may not be read"),
        ("/runs", {"folder": "{photos}/.."}, "may not be read"),
        ("/runs", {}, "name a folder"),
        ("/runs", {"folder": "{photos}", "minutes": "many"}, "minutes is 'many'; it must be a number"),
        ("/runs", {"folder": "{photos}", "aligned": "false"}, "aligned is 'false'; it must be true or false"),
        ("/runs", {"folder": ["{photos}"]}, "folder is ['{photos}']; it must be a text"),
        ("/runs/album/adapt", {"mixed": "no"}, "mixed is 'no'; it must be true or false"),
        ("/runs/album/adapt", {"changes": {"finetune.iterations": "2"}}, "finetune.iterations is '2'; it must be"),
        ("/restore", {"restorer": "album", "background": ["off"]}, "background is ['off']; it must be a text"),
        ("/restore", {"restorer": "album", "fidelity": "a"}, "fidelity is 'a'; it must be a number"),
        ("/restore", {"restorer": "album", "numbers": 1, "image": "?"}, "base64"),
        ("/runs", {"folder": "{photos}", "restorer": "/etc/passwd"}, "is not one of"),
        ("/runs/none/adapt", {}, "there is no such run"),
        ("/runs/..%2F../adapt", {}, None),
        ("/runs/album/adapt", {"changes": {"prior": "/etc"}}, "changes must be"),
        ("/restore", {}, "restorer is missing"),
        ("/restore", {"restorer": "album", "image": "?"}, "base64"),
        ("/restore", {"restorer": "album", "image": base64.b64encode(b"no").decode()}, "image: is not a JPEG"),
        ("/restore", {"restorer": "album"}, "image is missing"),
        ("/restore", {"restorer": "album", "image": "data:image/png;base64,"}, "image is missing"),
        ("/restore", {"restorer": "album", "visibility": 2, "image": "{picture}"}, "visibility is 2.0; it must be"),
        ("/restore", {"restorer": "album", "fidelity": -1, "image": "{picture}"}, "fidelity is -1.0; it must be"),
        ("/runs", {"folder": "{photos}", "minutes": -5}, "minutes is -5.0; it must be 0 or more"),
    ],
)
def test_what_cannot_be_done_is_one_line(service, photos, path, body, reason):
    (service.page.runs / "album").mkdir()
    (service.page.runs / "album" / "request.json").write_text("{}")
    picture = base64.b64encode(next(photos.glob("*.png")).read_bytes()).decode()
    body = {k: v.format(photos=photos, picture=picture) if isinstance(v, str) else v for k, v in body.items()}
    answer = client(service).post(PREFIX + path, json=body)
    assert answer.status_code in (400, 404)
    if reason:
        assert reason in answer.json()["detail"] and "\n" not in answer.json()["detail"]


def test_a_full_card_and_a_folder_that_is_a_file_are_one_line_and_memory_is_given_back(service, photos, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    called = []
    web = client(service, restored_one=lambda: called.append("restored"))
    monkeypatch.setattr(service, "restored", full)
    monkeypatch.setattr(service, "forget", lambda: called.append("forgotten"))
    picture = base64.b64encode(next(photos.glob("*.png")).read_bytes()).decode()
    answer = web.post(f"{PREFIX}/restore", json={"image": picture, "restorer": "album"})
    assert answer.status_code == 400 and "out of memory" in answer.json()["detail"]
    assert called == ["forgotten", "restored"]
    monkeypatch.setattr(service.page, "names", lambda: os.listdir(service.page.cache / "gone"))
    answer = web.get(f"{PREFIX}/runs")
    assert answer.status_code == 400 and "No such file" in answer.json()["detail"]


def test_behind_a_login_nothing_is_answered_without_it(service):
    web = client(service, {"ada": "love:lace"})
    assert web.get(f"{PREFIX}/runs").status_code == 401
    assert web.get(f"{PREFIX}/runs", auth=("ada", "wrong")).status_code == 401
    assert web.get(f"{PREFIX}/runs", auth=("ada", "love:lace")).json() == {"runs": []}
    assert web.post(f"{PREFIX}/runs", json={"folder": "/"}).status_code == 401
    assert not logged_in("Basic ???", {"": ""}) and not logged_in("", {"ada": ""})


def test_pictures_of_a_stranger_stay_in_the_cache(service, tmp_path: Path):
    shutil.rmtree(service.page.cache)
    service.page.cache.mkdir()
    client(service).post(f"{PREFIX}/restore", json={"restorer": "x", "image": base64.b64encode(b"no").decode()})
    assert {path.name for path in service.page.cache.rglob("*")} <= {"api", LIST}


@pytest.mark.parametrize("code", ["Zoë", "é", "\ud800", "4pyTOvCfmIA=", "YTpi\xa0"])
def test_a_header_that_is_no_login_is_refused_in_any_letters(service, code):
    assert not logged_in(f"Basic {code}", {"ada": "love:lace"})
    web = client(service, {"ada": "love:lace"})
    header = f"Basic {code}".encode("latin-1", "replace")
    assert web.get(f"{PREFIX}/runs", headers={"Authorization": header}).status_code == 401


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/restore", '{"restorer": "album", "image": "Zoë"}', "base64"),
        (
            "/runs/album/adapt",
            '{"changes": {"finetune.iterations": Infinity}}',
            "iterations is inf; it must be a whole number",
        ),
        ("/runs/album/adapt", '{"changes": {"finetune.anchor": NaN}}', "anchor is nan"),
    ],
)
def test_letters_and_numbers_of_any_kind_are_one_line(service, path, body, reason):
    (service.page.runs / "album").mkdir()
    (service.page.runs / "album" / "request.json").write_text("{}")
    answer = client(service).post(PREFIX + path, content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and reason in answer.json()["detail"]


def test_a_damaged_run_hides_no_other(service):
    for name, file in (("a", "job.json"), ("b", "config.json"), ("c", "report.json"), ("whole", "none.json")):
        (service.page.runs / name).mkdir()
        (service.page.runs / name / "request.json").write_text("{}")
        (service.page.runs / name / file).write_text("[1]")
    runs = {run["name"]: run for run in client(service).get(f"{PREFIX}/runs").json()["runs"]}
    assert all("is damaged" in runs[name]["error"] for name in "abc") and runs["whole"]["error"] == ""
