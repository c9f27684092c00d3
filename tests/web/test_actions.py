"""What the web page does and says, called directly; "embedded" are networks of a few thousand parameters here."""

import json
import os
import shutil
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from bfr_core.adaptation.faces import left_out_of
from bfr_core.adaptation.forecast import duration
from bfr_core.adaptation.run import Run
from bfr_core.cli.commands import main
from bfr_core.faces.align import Face, template
from bfr_core.files.ownership import LIST, claim_results
from bfr_core.files.photos import read_image, read_photo, write_image
from bfr_core.files.records import write_json
from bfr_core.reports.html import VERDICTS
from bfr_core.restoration.restore import RestoreConfig
from bfr_core.restorers import load_restorer
from bfr_core.restorers.load import SHIPPED
from bfr_core.restorers.routed import Routed
from bfr_core.web import host_service as host_service_module
from bfr_core.web import jobs, runs, views
from bfr_core.web.actions import Page
from bfr_core.web.choices import ADVANCED, Choices, changes_of
from bfr_core.web.host_service import HostService, RestoreRequest
from bfr_core.web.pieces import failed, said
from bfr_core.web.runs import priors, restorers
from tests.checkpoint_layouts import write_checkpoint
from tests.diffusion.test_latent_prior import narrow

QUICK = {"finetune.iterations": 4, "finetune.batch_size": 2}
FEW = Choices(aligned=True, changes=QUICK)
MIXED = replace(FEW, mixed=True)
HOSTILE = '<img src=x onerror=alert(1)>"'


@contextmanager
def page_of_toys(runs, photos, tiny_restorer, tiny_prior):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHIPPED, "embedded", tiny_restorer)
        patch.setattr("bfr_core.diffusion.prior.EMBEDDED", tiny_prior)
        patch.setattr("bfr_core.restoration.same_person.EMBEDDED_SMALL", tiny_restorer)  # helps to tell people
        page = Page(runs, [photos], "cpu")
        yield page
        page.jobs.stop_all()


@pytest.fixture
def page(tmp_path, photos, tiny_restorer, tiny_prior):
    with page_of_toys(tmp_path / "runs", photos, tiny_restorer, tiny_prior) as page:
        yield page


def upload(page, name, size=(32, 32)):
    """A file as gradio leaves it in its cache."""
    path = page.cache / "abc" / name
    path.parent.mkdir(exist_ok=True)
    Image.effect_noise(size, 60).convert("RGB").save(path, "PNG")
    return str(path)


def finished(page, name, seconds=600):
    status = page.jobs.wait(page.run(name), seconds)
    assert status.state == "done", status.error
    return status


@pytest.fixture(scope="module")
def album(tmp_path_factory, photos, tiny_restorer, tiny_prior):
    """The folder of a finished run of the page, made once."""
    with page_of_toys(tmp_path_factory.mktemp("runs"), photos, tiny_restorer, tiny_prior) as page:
        name, _ = page.new_run("old album", [], str(photos), FEW)
        finished(page, name)
        page.adapt(name, FEW)
        finished(page, name)
        return page.run(name).folder


@pytest.fixture
def adapted(page, album):
    """A finished run of the page, for this test alone; the server has been started again since."""
    shutil.copytree(album, page.runs / album.name)
    return album.name


def judged(shown):
    return any(verdict in shown for verdict in VERDICTS.values())


def test_a_card_that_is_full_hides_nothing_else_of_a_run(page, adapted, monkeypatch):
    def full(self, lq):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("bfr_core.restorers.base.Restorer.restore", full)
    shown = page.details(adapted)
    assert "No faces can be shown now: CUDA out of memory" in shown and "tuning steps" in shown


def test_from_photos_to_a_zip(page, adapted, photos, tmp_path):
    assert adapted == "old album" and page.names() == ["old album"] and page.latest() == "old album"
    assert "Adapted" in page.state(adapted) and page.progress(adapted).count("<img") == 12
    assert "polyline" in page.progress(adapted) and judged(page.verdict(adapted))
    assert page.photos(adapted)[0] == "below/face 1.png"
    assert page.details(adapted).count("<img") == 18 and "tuning steps" in page.details(adapted)
    before, after = page.before_after(adapted, "face 0.png")
    assert Image.open(before).size == Image.open(after).size == (32, 32)
    assert page.cache in before.parents and before != after
    assert page.before_after(adapted, "face 0.png", "base")[0] not in (before, after)
    assert [path.name for path in page.save(adapted)] == ["old album.safetensors", "old album report.html"]
    assert page.repaired(adapted) is None
    page.repair(adapted, [], str(photos), aligned=True)
    finished(page, adapted)
    first = page.repaired(adapted)
    assert len(zipfile.ZipFile(first).namelist()) == 10
    written = first.stat().st_mtime_ns
    assert page.repaired(adapted) == first and first.stat().st_mtime_ns == written  # copied once
    assert "polyline" in page.progress(adapted)  # still there, although the last job was another
    problems = page.repair(adapted, [upload(page, "a.png"), upload(page, "b.txt")], "", with_base=True, aligned=True)
    assert len(problems) == 1 and "b.txt: is not a picture" in problems[0]
    finished(page, adapted)
    assert zipfile.ZipFile(page.repaired(adapted)).namelist() == ["a.png"]
    assert "old album" in page.table() and judged(page.table())


def test_files_of_others_stay_whatever_the_page_does(page, adapted, photos):
    run = page.run(adapted).folder

    def everything(seed):
        page.faces(adapted)
        shown = [*page.before_after(adapted, "face 0.png"), *page.save(adapted)]
        for files in ([], [upload(page, "a.png")]):
            page.repair(adapted, files, "" if files else str(photos), with_base=True, aligned=True)
            finished(page, adapted)
        page.toggle(adapted, seed)
        page.adapt(adapted, replace(FEW, changes=QUICK | {"finetune.seed": seed}))
        finished(page, adapted)
        return [*shown, page.repaired(adapted)]

    made = everything(1)
    folders = {path.parent for path in page.runs.rglob("*") if path.is_file()} | {run / "repaired/under way"}
    strangers = [folder / name for folder in folders for name in ("holiday.png", "letter.txt")]
    for path in [*strangers, *made]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"precious")
    again = everything(2)
    assert not set(again) & set(made), "a taken name gets a number"
    kept = page.delete(adapted)
    assert sorted(kept) == sorted(p.relative_to(run).as_posix() for p in strangers if run in p.parents)
    assert all(path.read_bytes() == b"precious" for path in [*strangers, *made])
    assert adapted not in page.names()


def test_a_first_look_is_shown_and_the_adaptation_is_still_to_come(page, photos):
    name, _ = page.new_run("album", [], str(photos), FEW)
    assert "10 faces will take" in page.state(name) if finished(page, name) else ""
    assert page.first_look(name) == ""
    before = page.stamp(name)
    page.look_first(name, FEW)
    status = finished(page, name)
    assert (status.kind, status.file) == ("look", "first_look/report.html")
    shown = page.first_look(name)
    assert shown.count("<img") == 12 and "3 faces and 4 of 4 steps" in shown and "10 faces will take" in shown
    assert page.stamp(name) != before and page.verdict(name) == "" and page.names() == ["album"]
    with pytest.raises(ValueError, match="adapt first"):
        page.save(name)
    page.adapt(name, FEW)
    finished(page, name)
    assert judged(page.verdict(name)) and page.first_look(name) == shown


def test_the_first_look_knows_the_photos_of_its_run(page, photos, monkeypatch):
    """They are wanted if another restorer was chosen, for which the faces have to be cut anew."""
    name, _ = page.new_run("album", [], str(photos), FEW)
    finished(page, name)
    asked = []

    def spied(run, given, *_):
        asked.append(given)

    monkeypatch.setattr("bfr_core.web.actions.look_first", spied)
    monkeypatch.setattr(page.jobs, "start", lambda *_: None)
    page.look_first(name, FEW)
    assert asked == [photos]


@pytest.mark.parametrize("lock", [".bfr-shard-1-of-2.lock", "first_look/.lock"])
def test_a_run_on_which_a_command_is_at_work_in_part_is_not_deleted(page, adapted, lock):
    from filelock import FileLock

    held = page.run(adapted).folder / lock
    held.parent.mkdir(exist_ok=True)
    with FileLock(held), pytest.raises(ValueError, match="is at work; stop it first"):
        page.delete(adapted)
    assert page.delete(adapted) is not None and adapted not in page.names()


@pytest.mark.parametrize("named", [True, False])
def test_a_stopped_repair_goes_on_with_its_photos(page, adapted, photos, named, monkeypatch):
    with pytest.raises(ValueError, match="drop the photos"):
        page.repair(adapted, [], "", aligned=True)
    real, tell = jobs.restore_folder, []

    def stops(*given, callback, **how):
        def once(step, steps, preview):
            tell.append(step)
            if len(tell) == 1:
                page.stop(adapted)
            callback(step, steps, preview)

        return real(*given, callback=once, **how)

    monkeypatch.setattr(jobs, "restore_folder", stops)
    bad = upload(page, "b.txt")
    given = [upload(page, f"{i}.png") for i in range(10)] if not named else []
    page.repair(adapted, given, str(photos) if named else "", aligned=True)
    assert page.jobs.wait(page.run(adapted)).state == "cancelled"
    with pytest.raises(ValueError, match="none of the files can be used"):
        page.repair(adapted, [bad], "", aligned=True)
    page.repair(adapted, [], "", aligned=True)
    status = finished(page, adapted)
    assert "done before it was stopped" in status.notes[0]
    assert len(zipfile.ZipFile(page.repaired(adapted)).namelist()) == 10
    with pytest.raises(ValueError, match="drop the photos"):
        page.repair(adapted, [], "", aligned=True)


def test_a_face_is_left_out_and_taken_back(page, photos):
    name, _ = page.new_run("", [], str(photos), FEW)
    assert name == photos.name
    finished(page, name)
    pictures = [read_image(file) for file, _ in page.faces(name)]
    stamp = page.stamp(name)
    page.toggle(name, 2)
    assert left_out_of(page.run(name)) == ["below__face 5"] and page.stamp(name) != stamp
    assert "10 faces found, 1 left out" in page.faces_said(name)
    assert [caption for _, caption in page.faces(name)].count("left out") == 1
    assert read_image(page.faces(name)[2][0]).mean() < pictures[2].mean()
    page.toggle(name, 2)
    assert left_out_of(page.run(name)) == [] and all(
        torch.equal(a, read_image(b)) for a, (b, _) in zip(pictures, page.faces(name), strict=True)
    )


@pytest.mark.parametrize(("stage", "function"), [("people", "find_people"), ("forecast", "forecast_run")])
def test_a_face_is_left_out_as_soon_as_they_are_shown(page, photos, monkeypatch, stage, function):
    begun, go_on = threading.Event(), threading.Event()
    real = getattr(jobs, function)

    def slow(*arguments):
        begun.set()
        assert go_on.wait(600)
        return real(*arguments)

    monkeypatch.setattr(jobs, function, slow)
    name, _ = page.new_run("", [], str(photos), FEW)
    assert begun.wait(600) and page.status(page.run(name)).stage == stage
    page.toggle(name, 2)
    assert "10 faces found, 1 left out" in page.faces_said(name)
    go_on.set()
    assert finished(page, name).notes[0].startswith("10 faces will take")
    assert left_out_of(page.run(name)) == ["below__face 5"]


def test_clicks_that_come_at_once_all_count(page, photos):
    name, _ = page.new_run("", [], str(photos), FEW)
    finished(page, name)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(partial(page.toggle, name), range(10)))
    assert len(left_out_of(page.run(name))) == 10


def test_a_click_does_not_hide_the_end_of_a_job(page, photos):
    name, _ = page.new_run("", [], str(photos), FEW)
    finished(page, name)
    before = page.stamp(name)
    running = before.replace(" done ", " running ")
    page.toggle(name, 2)
    after = page.stamp(name)
    assert running != before != after and page.only_files_changed(before, before, after)
    assert not page.only_files_changed(running, before, after), "the page has not shown the end yet"
    assert not page.only_files_changed(running, running, after), "the job ended during the click"


def test_no_face_is_left_out_while_they_are_looked_for(page, photos, monkeypatch):
    name, _ = page.new_run("", [], str(photos), FEW)
    finished(page, name)
    begun, go_on = threading.Event(), threading.Event()
    real = jobs.collect_faces

    def collect_faces(*arguments):
        begun.set()
        assert go_on.wait(600)
        return real(*arguments)

    monkeypatch.setattr(jobs, "collect_faces", collect_faces)
    page.look_for_faces(name, FEW)
    assert begun.wait(600)
    with pytest.raises(ValueError, match="stop the run"):
        page.toggle(name, 2)
    go_on.set()
    finished(page, name)


def test_a_run_goes_on_with_its_own_choices_after_a_restart(page, photos):
    name, _ = page.new_run("x", [], str(photos), FEW)
    finished(page, name)
    many = replace(FEW, minutes=5, changes=QUICK | {"finetune.iterations": 5000})
    page.adapt(name, many)
    assert page.adapt(name, FEW).active  # the other tab
    page.jobs.stop_all()
    assert page.jobs.status(page.run(name)).state == "cancelled" and "it goes on" in page.state(name)
    again = Page(page.runs, page.allowed, "cpu")
    choices = again.choices_of(name)
    assert (choices.minutes, choices.aligned, choices.changes["finetune.iterations"]) == (5, True, 5000)
    again.adapt(name, replace(choices, changes=dict(choices.changes) | {"finetune.iterations": 4}))
    finished(again, name)


def test_uploads_become_a_run(page):
    files = [upload(page, f"p{i}.png") for i in range(2)] + [upload(page, "p.svg")]
    Path(upload(page, "broken.jpg")).write_bytes(b"\xff\xd8\xff no")
    name, problems = page.new_run("a/../b", [*files, str(page.cache / "abc" / "broken.jpg")], "", FEW)
    assert name == "a-..-b" and len(problems) == 2
    finished(page, name)
    assert sorted(p.name for p in (page.run(name).folder / "photos").glob("[!.]*")) == ["p0.png", "p1.png"]
    assert page.new_run("A<..>/b", files[:1], "", FEW)[0] == "A-..-b 2"


def test_uploads_that_are_refused(page, tmp_path, monkeypatch):
    outside = tmp_path / "outside.png"
    write_image(outside, torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="was not uploaded here"):
        page.new_run("x", [str(outside)], "", FEW)
    monkeypatch.setattr(runs, "MAX_UPLOAD_BYTES", 10)
    with pytest.raises(ValueError, match="is larger than"):
        page.new_run("x", [upload(page, "a.png")], "", FEW)
    monkeypatch.setattr(runs, "MAX_UPLOADS", 0)
    with pytest.raises(ValueError, match="too many"):
        page.new_run("x", [upload(page, "a.png")], "", FEW)
    assert page.names() == [] and [p.name for p in page.runs.iterdir()] == [page.cache.name]


@pytest.mark.parametrize("typed", ["/", "..", "{photos}/..", "{photos}/../other", "\0", "{link}", ""])
def test_folders_outside_the_allowed_ones_are_refused(page, photos, tmp_path, typed):
    (tmp_path / "link").symlink_to("/", target_is_directory=True)
    with pytest.raises(ValueError) as error:
        page.typed_folder(typed.format(photos=photos, link=tmp_path / "link"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("typed", ['"{photos}"', " '{photos}' ", "  {photos}", '" {photos} "', "~/{photos.name}"])
def test_a_folder_may_be_pasted_with_quotes_and_spaces_or_named_from_home(page, photos, monkeypatch, typed):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(photos.parent))
    typed = typed.format(photos=photos)
    assert page.typed_folder(typed) == photos
    assert replace(FEW, real=typed).settings()["album.real"] == str(photos)


def test_what_is_wrong_with_a_typed_folder_is_said(page, photos, tmp_path):
    mine, secret = tmp_path / "mine", tmp_path / "secret"
    mine.mkdir()
    secret.mkdir()
    (mine / "link").symlink_to(secret, target_is_directory=True)
    (tmp_path / "other").symlink_to(secret, target_is_directory=True)
    page.allowed.append(mine)
    for typed in ("album", "./album", '"album"', ""):
        with pytest.raises(ValueError, match=f"give the whole path of the folder, such as {photos}"):
            page.typed_folder(typed)
    with pytest.raises(ValueError, match=f"{mine}/link: leads to {secret}, which may not be read; allowed folders: "):
        page.typed_folder(str(mine / "link"))
    with pytest.raises(ValueError, match=f"{tmp_path}/other: may not be read; allowed folders: "):
        page.typed_folder(str(tmp_path / "other"))


def test_the_hosts_checkpoints_are_offered_as_priors(page, photos, tmp_path, monkeypatch):
    host = tmp_path / "models"
    (host / "people").mkdir(parents=True)
    checkpoint = write_checkpoint(host / "people" / "sd15.safetensors", narrow("sd15")[0])
    (host / "vae.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    monkeypatch.setenv("BFR_WEIGHTS_ALSO", str(host))
    assert priors() == {"embedded": "embedded", "sd15.safetensors": checkpoint}
    chosen = replace(FEW, prior="sd15.safetensors")
    assert page.settings_of(chosen)["prior"] == str(checkpoint) and "prior" not in page.settings_of(FEW)
    for bad in ("/etc/passwd", str(checkpoint), "../sd15.safetensors"):
        with pytest.raises(ValueError, match="is not one of embedded, sd15.safetensors"):
            page.new_run("other", [], str(photos), replace(FEW, prior=bad))
    page.remember(page.run(page.new_run("taught", [], str(photos), chosen)[0]), chosen)
    assert page.choices_of("taught").prior == "sd15.safetensors"
    checkpoint.unlink()
    assert page.choices_of("taught").prior == "embedded", "one that is gone cannot be chosen"


def test_what_a_run_folder_says_is_not_trusted(page, adapted, photos, tmp_path):
    run = page.run(adapted).folder
    kept = json.loads((run / "request.json").read_text())
    changes = {"finetune.iterations": 3, "__class__": 1, "prior": "/etc"}
    write_json(run / "request.json", kept | {"photos": "/etc", "restorer": "/etc/passwd", "changes": changes})
    assert page.choices_of(adapted).restorer == "embedded"
    assert page.choices_of(adapted).changes.keys() == set(ADVANCED)
    with pytest.raises(ValueError, match="its restorer, /etc/passwd, is not among those here"):
        page.adapt(adapted, FEW)
    with pytest.raises(ValueError, match="may not be read"):
        page.before_after(adapted, "passwd")
    write_json(run / "request.json", kept)
    for photo in ("../../x.png", "/etc/passwd", None):
        with pytest.raises(ValueError, match="is not one of the run's photos"):
            page.before_after(adapted, photo)
    index = json.loads((run / "faces" / "faces.json").read_text())
    names = ["../../../secret", "..", str(tmp_path / "secret"), "a\\b", index["faces"][0]["name"]]
    write_json(run / "faces" / "faces.json", index | {"faces": [{"name": n, "photo": HOSTILE} for n in names]})
    assert len(page.faces(adapted)) == 1 and page.photos(adapted) == [HOSTILE]
    report = {"verdict": HOSTILE, "verdict_sentence": HOSTILE, "figures": [{"label": HOSTILE}], "notes": [HOSTILE]}
    write_json(run / "report.json", report)
    write_json(run / "job.json", {"kind": HOSTILE, "state": "failed", "error": HOSTILE, "notes": [HOSTILE]})
    for shown in (
        page.verdict(adapted),
        page.details(adapted),
        page.state(adapted),
        page.table(),
        said(HOSTILE),
        failed(OSError(HOSTILE)),
    ):
        assert "<img src=x" not in shown
    (run / "report.json").write_text("{")
    assert "report damaged" in page.table()


@pytest.mark.parametrize("name", ["..", "../runs", "_page", "", None, "/", "none", "old album/faces"])
def test_only_runs_are_opened(page, photos, name):
    (page.cache / "x").write_text("")
    for act in (page.run, page.delete, page.verdict, page.stop, page.save):
        with pytest.raises(ValueError):
            act(name)
    assert page.cache.exists() and page.stamp(name) == ""


def test_a_run_is_deleted_but_not_while_it_is_at_work(page, photos):
    name, _ = page.new_run("x", [], str(photos), FEW)
    finished(page, name)
    page.adapt(name, replace(FEW, changes=QUICK | {"finetune.iterations": 5000}))
    for act in (lambda: page.delete(name), lambda: page.toggle(name, 0), lambda: page.repair(name, [], str(photos))):
        with pytest.raises(ValueError, match="stop"):
            act()
    page.stop(name)
    page.jobs.wait(page.run(name))
    page.delete(name)
    assert page.names() == [] and page.latest() is None and photos.exists()


def test_a_run_of_the_command_line_is_shown_and_gone_on_with(page, photos, tiny_restorer, monkeypatch):
    monkeypatch.setitem(SHIPPED, "embedded", tiny_restorer)

    def act(*words):
        assert main([*words, "--run", str(page.runs / "shell")]) == 0

    common = ("--restorer", "embedded", "--prior", "embedded")
    act("faces", str(photos), "--aligned", "--restorer", "embedded")
    assert "Faces found" in page.state("shell") and len(page.faces("shell")) == 10
    act("targets", *common)
    assert "goes on" in page.state("shell") and page.progress("shell").count("<img") == 12
    act("adapt", str(photos), "--aligned", "--iterations", "3", *common)
    assert "Adapted" in page.state("shell") and judged(page.verdict("shell")) and judged(page.table())
    assert "polyline" in page.progress("shell") and "1970" not in page.table()
    choices = page.choices_of("shell")
    assert (choices.aligned, choices.restorer, choices.changes["finetune.iterations"]) == (True, "embedded", 3)
    before, after = page.before_after("shell", "face 0.png", "base")
    assert before != after
    with page.run("shell").locked():
        assert "Another program" in page.state("shell") and page.adapt("shell", FEW).state == "elsewhere"
        with pytest.raises(ValueError, match="stop it there"):
            page.stop("shell")
    page.allowed = []
    with pytest.raises(ValueError, match=f'"{photos.name}" of its photos is not known here'):
        page.before_after("shell", "face 0.png")
    page.allowed = [photos.parent]
    page.adapt("shell", replace(FEW, changes={"finetune.iterations": 5}))
    finished(page, "shell")
    assert "finetune" in page.run("shell").config()
    page.repair("shell", [], str(photos), aligned=True)
    finished(page, "shell")
    assert "Repaired" in page.state("shell")


def test_photos_of_two_damages_get_a_restorer_for_each(page, mixed_photos, verdicts, tmp_path, monkeypatch):
    page.allowed.append(mixed_photos)
    name, _ = page.new_run("two", [], str(mixed_photos), MIXED)
    finished(page, name)
    page.adapt(name, MIXED)
    assert finished(page, name).file == "groups.safetensors"
    run = page.run(name)
    assert page.choices_of(name).mixed and page.adapted() == [name] and not run.restorer.exists()
    assert "<b>Adopt.</b> 2 groups of damages were found. Restorers of their own serve 1" in page.verdict(name)
    details = page.details(name)
    assert details.count("<img") == 18 and "<td>group 2</td><td>16</td><td>Keep the base</td>" in details
    progress = page.progress(name)
    assert progress.count("<img") == 24 and "group 2: distance to the clean faces" in progress
    assert page.before_after(name, "sensor 0.png", "base")[0].exists() and page.compare(name, name)
    [archive] = page.save(name)
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "taken away")
    for folder in (run.folder, tmp_path / "taken away"):
        routed = load_restorer(folder / "groups.safetensors")
        assert isinstance(routed, Routed) and [member is None for member in routed.members] == [False, False, True]
        assert (folder / "report.html").is_file() and (folder / "groups/2/report.html").is_file()
    page.repair(name, [], str(mixed_photos), aligned=True)
    finished(page, name)
    with zipfile.ZipFile(page.repaired(name)) as file:
        file.extractall(tmp_path / "repaired")
    photos = [read_photo(tmp_path / f"repaired/{kind} 0.png") for kind in ("sensor", "motion_jpeg")]
    assert [photo.record.steps[-1].settings["served_by"] for photo in photos] == ["group 1", "base"]
    monkeypatch.setattr(host_service_module, "load_detector", lambda *_: lambda photo: [Face(template(32))])
    _, restored = HostService(page).restore_file(read_photo(mixed_photos / "sensor 0.png"), RestoreRequest(name))
    assert restored.step.restorer == "groups.safetensors"
    page.adapt(name, FEW)
    assert finished(page, name).file == "restorer.safetensors", "the box was unticked"
    assert not page.choices_of(name).mixed and run.result == run.restorer and page.progress(name).count("<img") == 12


def test_a_run_by_groups_is_stopped_and_goes_on_by_groups_after_a_restart(page, mixed_photos, verdicts):
    page.allowed.append(mixed_photos)
    name, _ = page.new_run("two", [], str(mixed_photos), FEW)
    finished(page, name)
    page.adapt(name, replace(MIXED, changes=QUICK | {"finetune.iterations": 3000}))
    end = time.monotonic() + 600
    while "Group 1 of 2: Tuning the restorer" not in page.state(name):
        assert time.monotonic() < end, page.state(name)
        time.sleep(0.05)  # else the asking itself keeps the run waiting
    assert "Telling kinds of damage apart" in page.progress(name) and page.progress(name).count("<img") == 12
    page.jobs.stop_all()
    assert page.jobs.status(page.run(name)).state == "cancelled" and not page.adapted()
    again = Page(page.runs, page.allowed, "cpu")
    choices = again.choices_of(name)
    again.adapt(name, replace(choices, changes=dict(choices.changes) | {"finetune.iterations": 4}))
    assert finished(again, name).file == "groups.safetensors" and again.adapted() == [name]


def test_a_run_by_groups_of_the_command_line_goes_on_by_groups(
    page, mixed_photos, verdicts, tiny_restorer, monkeypatch
):
    monkeypatch.setitem(SHIPPED, "embedded", tiny_restorer)
    command = ["adapt", str(mixed_photos), "--run", str(page.runs / "shell"), "--aligned", "--iterations", "3"]
    assert main([*command, "--mixed"]) == 0
    choices = page.choices_of("shell")
    assert choices.mixed and choices.changes["finetune.iterations"] == 3 and choices.aligned
    assert "Adapted" in page.state("shell") and "2 groups" in page.verdict("shell") and page.adapted() == ["shell"]
    page.run("shell").groups.unlink()  # as if it had been stopped on the way
    assert "it goes on" in page.state("shell")
    assert main(command) == 0 and not page.choices_of("shell").mixed


def test_two_runs_are_compared(page, adapted):
    other = page.runs / HOSTILE.replace("/", "")
    shutil.copytree(page.run(adapted).folder, other)
    shown = page.compare(adapted, other.name)
    assert shown.count("data:image") == 3 * views.COMPARED_FACES and "<img src=x" not in shown
    (other / "restorer.safetensors").unlink()
    with pytest.raises(ValueError, match="no adapted restorer yet"):
        page.compare(adapted, other.name)


def test_bad_choices_are_said_at_once(page, photos):
    name, _ = page.new_run("x", [], str(photos), FEW)
    finished(page, name)
    with pytest.raises(ValueError, match="iterations is 0"):
        page.adapt(name, replace(FEW, changes={"finetune.iterations": 0}))
    with pytest.raises(ValueError, match="is not one of"):
        page.adapt(name, replace(FEW, restorer="/etc/passwd"))
    with pytest.raises(ValueError, match="no adapted restorer yet"):
        page.save(name)
    with pytest.raises(ValueError, match="drop some photos first"):
        page.new_run("x", [], " ", FEW)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"minutes": -5.0}, "minutes is -5.0; it must be 0 or more"),
        ({"min_face": 0}, "min_face is 0; it must be"),
        ({"changes": {"finetune.iterations": 0}}, "iterations is 0"),
        ({"real": "{photos}/gone"}, "gone: no such folder"),
        ({"real": "gone"}, "give the whole path of the folder"),
        ({"real": "/"}, "may not be read"),
    ],
)
@pytest.mark.parametrize("dropped", [True, False])
def test_bad_choices_leave_no_run(page, photos, wrong, said, dropped):
    wrong = {name: value.format(photos=photos) if isinstance(value, str) else value for name, value in wrong.items()}
    given = ([upload(page, "a.png")], "") if dropped else ([], str(photos))
    with pytest.raises(ValueError, match=said):
        page.new_run("album", *given, replace(FEW, **wrong))
    assert [path.name for path in page.runs.iterdir()] == [page.cache.name]


def test_photos_that_were_moved_are_named_with_advice(page, adapted, photos):
    chosen = page.run(adapted).folder / "request.json"
    chosen.write_text(json.dumps(json.loads(chosen.read_text()) | {"photos": str(photos / "gone")}))
    moved = f"{adapted}: the folder of its photos, {photos}/gone, is not there; put it back, or make a new run"
    for act in (lambda: page.adapt(adapted, FEW), lambda: page.before_after(adapted, "face 0.png")):
        with pytest.raises(FileNotFoundError, match=moved):
            act()


def test_the_box_before_a_run_is_deleted_names_all_that_goes(page, adapted):
    assert page.to_delete(adapted) == "Delete old album, with its faces and its restorer"
    run = page.run(adapted).folder
    for folder in ("repaired", "to_repair"):
        (run / folder).mkdir()
    (run / "repaired/repaired 1.zip").write_text("")
    dropped = "Delete old album, with its faces, its restorer, its copies of the photos that were dropped and "
    assert page.to_delete(adapted) == f"{dropped}the zip of repaired photos"
    (run / "repaired/repaired 2.zip").write_text("")
    assert page.to_delete(adapted) == f"{dropped}2 zips of repaired photos"


def test_what_is_said():
    assert said("") == "" and "2 files cannot be used:<br>a&lt;<br>b" in said("", ["a<", "b"])
    assert said("done") == '<div class="bfr"><p class="said" role="status">done</p></div>'


def test_settings_are_read_in_their_own_types():
    defaults = dict.fromkeys(ADVANCED, 0.5) | {"finetune.iterations": 100}
    values: list[float | None] = [None] * len(ADVANCED)
    assert changes_of(values, defaults) == {}
    values[list(ADVANCED).index("finetune.iterations")] = 7.0
    assert changes_of(values, defaults) == {"finetune.iterations": 7}


def test_a_run_of_before_has_the_restorer_that_was_embedded_then_as_its_base(page, monkeypatch):
    monkeypatch.setattr(runs, "chosen_for", lambda run: {"restorer": "embedded"})
    former = load_restorer("embedded128")
    tuned = replace(former, metadata={"base": former.name, "base_sha256": former.sha256})
    assert page.base_of(Run(page.runs / "old"), tuned).sha256 == former.sha256
    foreign = replace(former, metadata={"base": former.name, "base_sha256": "0" * 64})
    with pytest.raises(ValueError, match="is not among the restorers here"):
        page.base_of(Run(page.runs / "old"), foreign)


def test_restorers_are_those_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    (tmp_path / "GFPGANv1.4.pth").write_text("")
    (tmp_path / "parsing_parsenet.pth").write_text("")
    assert restorers() == ["embedded", "embedded128", "GFPGANv1.4.pth"]


def test_time_left_in_words():
    seconds = (0, 61, 3599, 7300, float("inf"))
    assert [duration(s) for s in seconds] == [
        "less than a minute", "about 2 min", "about 1 h 0 min", "about 2 h 2 min", "unknown"
    ]  # fmt: skip


BROKEN = (
    "{", "[1]", "3", '{"faces": 3}', '{"faces": [3, {}]}', '{"figures": 3}', '{"figures": [3]}',
    '{"tables": [{"title": "Groups"}]}', '{"verdict": []}', '{"loss_curves": {"l1": 3}}', '{"curves": 3}',
    '{"changes": 3, "minutes": "many"}', '{"photos": []}', '{"finetune": []}', '{"finetune": {"groups": "x"}}',
)  # fmt: skip
RECORDS = ("job.json", "report.json", "request.json", "config.json", "faces/faces.json", "left_out.json")


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("record", RECORDS)
def test_a_damaged_run_hides_no_other_and_can_be_deleted(page, record, content):
    for name in ("whole", "damaged"):
        Run(page.runs / name).claim()
        for other in ("request.json", "config.json"):
            write_json(page.runs / name / other, {})
    write_json(page.runs / "whole/report.json", {"verdict": "adopt"})
    (page.runs / "damaged" / record).parent.mkdir(exist_ok=True)
    (page.runs / "damaged" / record).write_text(content)
    assert set(page.names()) == {"whole", "damaged"} and page.latest() in page.names()
    assert "Adopt" in page.table() and "damaged" in page.table()
    for act in (
        page.choices_of, page.state, page.progress, page.verdict, page.details, page.faces, page.faces_said,
        page.photos, page.stamp, page.repaired, lambda name: page.adapt(name, FEW), page.stop,
    ):  # fmt: skip
        with suppress(ValueError):  # in one line, which the page shows
            act("damaged")
    assert page.delete("damaged") == [record], "what is not as it was written is kept, and named"
    assert [path.name for path in (page.runs / "damaged").rglob("[!.]*") if path.is_file()] == [Path(record).name]
    assert "whole" in page.names()


def test_a_damaged_report_is_said_beside_the_rest(page, adapted):
    (page.run(adapted).folder / "report.json").write_text("[]")
    assert "report.json: is damaged" in page.verdict(adapted) and "Adapted" in page.state(adapted)
    assert "<img" in page.details(adapted) and page.faces(adapted)


def test_runs_that_are_made_at_once_get_names_of_their_own(page, monkeypatch):
    together = threading.Barrier(4)
    listed = Path.iterdir

    def iterdir(self):
        found = list(listed(self))
        with suppress(threading.BrokenBarrierError):
            together.wait(1)  # all have looked before any goes on
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(page._new_folder, ["album"] * 4))
    assert {path.name for path in made} == {"album", "album 2", "album 3", "album 4"}


def test_networks_are_kept_and_let_go_of_by_several_threads(page, tiny_restorer, tmp_path, monkeypatch):
    files = [Path(shutil.copyfile(tiny_restorer, tmp_path / f"{i}.safetensors")) for i in range(4)]
    opened, at_work = [], threading.Lock()

    def load(source):
        assert at_work.acquire(blocking=False), "two threads load at once"
        opened.append(source)
        time.sleep(0.01)
        at_work.release()
        return load_restorer(source)

    monkeypatch.setattr(runs, "load_restorer", load)
    with ThreadPoolExecutor(8) as pool:
        same = list(pool.map(page.loaded, files[:1] * 8))
        assert len(opened) == 1 and len({id(net) for net in same}) == 1
        asked = [pool.submit(page.loaded, file) for file in files * 4]
        asked += [pool.submit(page.forget) for _ in range(8)]
        for future in asked:
            future.result()
    assert len(page._loaded) <= 3


def test_a_zip_takes_the_name_of_no_other(page, adapted, photos):
    folder = page.run(adapted).folder / "repaired"
    for _ in range(2):
        page.repair(adapted, [], str(photos), aligned=True)
        finished(page, adapted)
    second = (folder / "repaired 2.zip").read_bytes()
    (folder / "repaired 1.zip").unlink()
    page.repair(adapted, [], str(photos), with_base=True, aligned=True)
    finished(page, adapted)
    assert (folder / "repaired 2.zip").read_bytes() == second and (folder / "repaired 1.zip").is_file()


def test_what_was_repaired_stays_if_the_disk_refuses_the_zip(page, adapted, photos, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "zip_files", full)
    page.repair(adapted, [], str(photos), aligned=True)
    assert page.jobs.wait(page.run(adapted)).state == "failed"
    monkeypatch.undo()
    made = list((page.run(adapted).folder / "repaired/under way").rglob("*.png"))
    assert len(made) == 10
    page.repair(adapted, [], str(photos), aligned=True)
    notes = finished(page, adapted).notes
    assert "10 done before it was stopped" in notes[0] and not list(made[0].parent.glob("*.png"))
    assert len(zipfile.ZipFile(page.repaired(adapted)).namelist()) == 10


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 elsewhere")
def test_names_that_are_not_utf8_are_zipped_and_none_is_lost(tmp_path):
    names = [b"caf\xe9.png", b"caf\xe8.png", "caf\N{REPLACEMENT CHARACTER}_2.png".encode(), b"plain.png"]
    paths = [Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)) for name in names]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    jobs.zip_files(tmp_path, paths, tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as file:
        kept = {name: file.read(name) for name in file.namelist()}
    assert sorted(kept.values()) == [b"\0", b"\1", b"\2", b"\3"] and "plain.png" in kept


def test_photos_of_one_name_are_all_kept(page, tmp_path):
    """As two cameras' IMG_0001.png, which gradio keeps in different folders."""
    places = [page.cache / folder / "IMG_0001.png" for folder in ("abc", "def")] + [page.cache / "ghi" / "img_0001.PNG"]
    for number, place in enumerate(places):
        write_image(place, torch.full((3, 32, 32), 0.2 + 0.2 * number))
    name, problems = page.new_run("x", [str(place) for place in [*places, places[0]]], "", FEW)
    finished(page, name)
    kept = list(page.run(name).photos.glob("[!.]*"))
    assert problems == [] and len(kept) == 3 == len(page.photos(name))
    assert len({round(float(read_image(file).mean()), 1) for file in kept}) == 3


def test_repaired_photos_have_the_names_of_those_that_were_dropped(page, adapted):
    names = ["scan__01.png", "Mum, 1962.png", "CON.png", "a.jpg", "a.jpeg", "B.PNG", ".hidden.png"]
    files = [upload(page, name) for name in names]
    for folder in ("def", "ghi"):
        place = page.cache / folder / "scan__01.png"
        place.parent.mkdir()
        shutil.copyfile(upload(page, place.name, (40, 40)), place)
        files.append(str(place))
    page.repair(adapted, files, "", aligned=True)
    finished(page, adapted)
    expected = [*names[:-1], "_hidden.png", "scan__01_2.png", "scan__01_3.png"]
    assert sorted(zipfile.ZipFile(page.repaired(adapted)).namelist()) == sorted(expected)


def test_a_run_whose_networks_are_not_here_is_not_begun_anew_with_others(page, adapted):
    run = page.run(adapted)
    before, kept = run.restorer.read_bytes(), json.loads((run.folder / "request.json").read_text())
    for what, used in (("restorer", "codeformer.pth"), ("prior", "my_sd15.safetensors")):
        write_json(run.folder / "request.json", kept | {what: used})
        for act in (page.adapt, page.look_first):
            with pytest.raises(ValueError, match=f"its {what}, {used}, is not among those here"):
                act(adapted, page.choices_of(adapted))
    assert run.restorer.read_bytes() == before


def test_a_damaged_restorer_hides_nothing_else_of_a_run(page, adapted):
    run = page.run(adapted)
    figures = page.details(adapted)
    run.restorer.write_bytes(run.restorer.read_bytes()[:100])
    assert "restorer.safetensors" in page.details(adapted) and "tuning steps" in figures
    assert "tuning steps" in page.details(adapted) and judged(page.verdict(adapted))


def test_a_stamp_is_of_one_run(page, adapted):
    shutil.copytree(page.run(adapted).folder, page.runs / f"{adapted} 2")
    assert page.is_of(page.stamp(adapted), adapted) and not page.is_of(page.stamp(f"{adapted} 2"), adapted)
    assert not page.is_of("", adapted) and not page.is_of("another", "another")


def test_nothing_of_a_deleted_run_stays_in_the_cache(page, photos):
    file = upload(page, "a.png")
    other = upload(page, "b.png", (40, 40))
    name, _ = page.new_run("x", [file], "", FEW)
    finished(page, name)
    page.adapt(name, FEW)
    finished(page, name)
    page.repair(name, [file], "", aligned=True)
    finished(page, name)
    assert page.faces(name) and page.before_after(name, "a.png") and page.save(name) and page.repaired(name)
    page.delete(name)
    assert [path.name for path in page.cache.rglob("*") if path.is_file() and path.name != LIST] == [Path(other).name]


def test_of_a_deleted_run_nothing_stays_where_a_host_keeps_uploads(page, tmp_path):
    page.uploads = tmp_path / "gradio"
    files = [page.uploads / "hash" / name for name in ("a.png", "b.png")]
    files[0].parent.mkdir(parents=True)
    for size, file in zip((32, 40), files, strict=True):
        shutil.copyfile(upload(page, file.name, (size, size)), file)
    for file in [*page.cache.rglob("*.png")]:
        file.unlink()
    name, _ = page.new_run("x", [str(files[0])], "", FEW)
    finished(page, name)
    assert files[0].is_file(), "another tab of the host may show the same photo"
    page.delete(name)
    assert [file.is_file() for file in files] == [False, True]


def test_the_same_photo_dropped_again_since_is_not_deleted_with_a_run(page):
    file = Path(upload(page, "a.png"))
    name, _ = page.new_run("x", [str(file)], "", FEW)
    finished(page, name)
    again = page.cache / "later" / "a.png"
    again.parent.mkdir()
    shutil.copyfile(file, again)
    os.utime(again, (time.time() + 2, time.time() + 2))
    page.delete(name)
    assert not file.exists() and again.is_file()


def test_a_run_whose_deletion_met_a_locked_file_can_be_deleted_again(page, adapted, monkeypatch):
    told, unlink = [], Path.unlink
    page.changed = lambda: told.append(page.names())

    def held(self, **how):
        if self.name == "restorer.safetensors":
            raise PermissionError(13, "another program uses the file", str(self))
        unlink(self, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", held)
        with pytest.raises(PermissionError):
            page.delete(adapted)
    assert page.names() == [adapted] and told == [[adapted]]
    page.delete(adapted)
    assert page.names() == [] and not (page.runs / adapted).exists() and told[1:] == [[]]


def test_two_photos_whose_names_differ_in_their_ending_are_shown_as_two(page, photos, tmp_path):
    photos = shutil.copytree(photos, tmp_path / "twins")
    page.allowed.append(photos)
    for twin in ("twin.png", "twin.jpg"):
        Image.effect_noise((32, 32), 60).convert("RGB").save(photos / twin)
    name, _ = page.new_run("x", [], str(photos), FEW)
    finished(page, name)
    page.adapt(name, FEW)
    finished(page, name)
    shown = [page.before_after(name, photo)[k] for photo in ("twin.png", "twin.jpg") for k in (0, 1)]
    assert len(set(shown)) == 4 and page.before_after(name, "twin.png") == tuple(shown[:2])
    Image.effect_noise((32, 32), 60).convert("RGB").save(photos / "twin.png")
    os.utime(photos / "twin.png", (1, 1))
    assert page.before_after(name, "twin.png")[0] not in shown, "a browser would show the picture that it has"


def test_looking_at_a_run_keeps_no_networks_and_restores_its_faces_once(page, adapted, monkeypatch):
    page.defaults("embedded")
    assert {key[-1] for key in page._loaded} == {"cpu"}, "whatever the page's device"
    kept, calls, restored = list(page._loaded), [], views.RunViews._restored

    def counted(*given):
        calls.append(1)
        return restored(*given)

    monkeypatch.setattr(views.RunViews, "_restored", counted)
    shown = page.details(adapted)
    assert list(page._loaded) == kept and len(calls) == 12
    assert page.details(adapted) == shown and len(calls) == 12
    page.run(adapted).result.touch()
    page.details(adapted)
    assert len(calls) == 24, "a restorer that was adapted again"


def test_dropped_photos_and_a_named_folder_are_not_one_ignored(page, adapted, photos):
    with pytest.raises(ValueError, match="photos were dropped and a folder is named"):
        page.new_run("", [upload(page, "a.png")], str(photos), FEW)
    with pytest.raises(ValueError, match="photos were dropped and a folder is named"):
        page.repair(adapted, [upload(page, "a.png")], str(photos))
    assert page.names() == [adapted] and not (page.run(adapted).folder / "to_repair").exists()


def stops_at_the_third(page, run):
    """`restore_folder` during which somebody stops the run when two photos are done."""
    real = jobs.restore_folder

    def stopped(*given, callback, **how):
        def ends(step, steps, preview):
            callback(step, steps, preview)
            if step == 3:
                page.stop(run)

        return real(*given, callback=ends, **how)

    return stopped


def test_what_is_left_of_a_stopped_repair_does_not_number_that_of_another_folder(
    page, adapted, photos, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    page.allowed.append(other)
    monkeypatch.setattr(jobs, "restore_folder", stops_at_the_third(page, adapted))
    page.repair(adapted, [], str(other), aligned=True)
    assert page.jobs.wait(page.run(adapted)).state == "cancelled"
    monkeypatch.undo()
    page.repair(adapted, [], str(photos), aligned=True)
    finished(page, adapted)
    expected = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    assert sorted(zipfile.ZipFile(page.repaired(adapted)).namelist()) == expected


def test_a_base_that_is_not_here_is_not_replaced_by_another(page, adapted, photos):
    chosen = page.run(adapted).folder / "request.json"
    chosen.write_text(json.dumps(json.loads(chosen.read_text()) | {"restorer": "GFPGANv1.4.pth", "prior": "gone"}))
    with pytest.raises(ValueError, match="its restorer, GFPGANv1.4.pth, is not among those here"):
        page.repair(adapted, [], str(photos), with_base=True, aligned=True)
    page.repair(adapted, [], str(photos), aligned=True)  # by its own, which is here
    finished(page, adapted)


def test_no_run_has_a_name_that_windows_cuts(page, photos):
    assert page.new_run("Smith Jr. ", [], str(photos), FEW)[0] == "Smith Jr"
    assert page.new_run("...", [], str(photos), FEW)[0].strip(" .")


def test_a_run_of_the_command_line_goes_on_with_all_of_its_settings(page, photos):
    """Also with those that the page has no field for; its targets are not drawn anew."""
    run = page.runs / "shell"
    common = ["--run", str(run), "--restorer", "embedded", "--prior", "embedded"]
    assert main(["faces", str(photos), "--aligned", "--run", str(run), "--restorer", "embedded"]) == 0
    drawn = ["--calls", "2", "--seed", "7", "--set", "targets.precision=float32", "--set", "targets.batch_size=4"]
    assert main(["targets", *common, *drawn]) == 0
    before = {path: path.stat().st_mtime_ns for path in page.run("shell").targets.glob("*.png")}
    own = page.choices_of("shell")
    assert own.others["targets.sampler.calls"] == 2 and own.others["targets.seed"] == 7
    page.adapt("shell", replace(FEW, changes=dict(own.changes) | QUICK))
    finished(page, "shell")
    assert before == {path: path.stat().st_mtime_ns for path in page.run("shell").targets.glob("*.png")}
    kept = json.loads((run / "request.json").read_text())["others"]
    assert kept["targets.sampler.calls"] == 2 and page.choices_of("shell").others == own.others
    assert page.with_others(page.run("shell"), replace(FEW, recipe="published")).others == {}


def test_what_a_run_of_the_command_line_left_to_the_faces_is_left_to_them(page, photos, monkeypatch):
    """A level that known answers chose is not taken for one that was asked for, and the tuning is not begun anew."""
    monkeypatch.setattr("bfr_core.adaptation.target_stage.level_by_known_answers", lambda *_: 7)
    run = Run(page.runs / "shell")
    command = ["adapt", str(photos), "--aligned", "--run", str(run.folder), "--iterations", "3", "--low-memory"]
    assert main([*command, "--set", "gate.limit=7", "--set", "finetune.batch_size=2"]) == 0
    own = page.choices_of("shell")
    assert run.config()["targets"]["t_clean"] == 7 and own.others["targets.t_clean"] == "auto"
    assert own.low_memory and "finetune.trainable" not in own.others and own.changes["gate.limit"] == 7
    before = (run.damage.read_bytes(), json.loads((run.folder / "report.json").read_text()))
    told = []
    monkeypatch.setattr("bfr_core.training.checkpoint.log.info", lambda text, *_: told.append(text))
    page.adapt("shell", own)
    finished(page, "shell")
    assert run.damage.read_bytes() == before[0] and [text for text in told if "resumed" in text]


def test_settings_in_a_run_folder_are_not_trusted(page, adapted):
    chosen = page.run(adapted).folder / "request.json"
    others = {"finetune.betas": [0.5], "targets.precision": "/etc/passwd", "targets.seed": "x", "prior": "/etc", "x": 1}
    chosen.write_text(json.dumps(json.loads(chosen.read_text()) | {"others": others | {"finetune.betas": [0.5, 0.9]}}))
    assert page.choices_of(adapted).others == {"finetune.betas": (0.5, 0.9)}
    chosen.write_text(json.dumps(json.loads(chosen.read_text()) | {"others": others}))
    assert page.choices_of(adapted).others == {}


def test_a_folder_of_the_same_name_with_other_photos_is_not_taken_for_that_of_a_run(page, photos, tmp_path):
    mine, other = (tmp_path / name / "scans" for name in ("a", "b"))
    shutil.copytree(photos, mine)
    for file in photos.rglob("*.png"):
        place = other / file.relative_to(photos)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_image(place, 1 - read_image(file))
    assert main(["faces", str(mine), "--aligned", "--restorer", "embedded", "--run", str(page.runs / "shell")]) == 0
    run = page.run("shell")
    crops = {path: path.read_bytes() for path in run.faces.glob("*.png")}
    page.allowed = [other.parent]
    for act in (lambda: page.photos_of(run), lambda: page.adapt("shell", FEW)):
        with pytest.raises(ValueError, match='"scans" of its photos is not known here .*b/scans holds other photos'):
            act()
    assert {path: path.read_bytes() for path in run.faces.glob("*.png")} == crops
    page.allowed = [other.parent, mine.parent]
    assert page.photos_of(run) == mine
    for file in mine.rglob("*.png"):
        os.utime(file, (1, 1))  # as after they were copied
    (mine / "face 0.png").unlink()
    (mine / "new.png").write_bytes((other / "face 0.png").read_bytes())
    assert page.photos_of(run) == mine, "most of them are there"


def with_place(page, name, shade):
    """An upload that says where it was taken."""
    photo, exif = Image.effect_noise((32, 32), 60 + shade).convert("RGB"), Image.Exif()
    exif[0x8825] = {1: "N", 2: (50.0, 30.0, 0.0), 3: "E", 4: (7.0, 0.0, 0.0)}
    path = page.cache / "abc" / name
    path.parent.mkdir(exist_ok=True)
    photo.save(path, exif=exif)
    return str(path)


def places_in(archive):
    with zipfile.ZipFile(archive) as zipped:
        found = []
        for name in zipped.namelist():
            with zipped.open(name) as file:
                found.append(dict(Image.open(file).getexif().get_ifd(0x8825)))
    return found


def test_a_stopped_repair_goes_on_as_it_was_begun(page, adapted, monkeypatch):
    real, begun = jobs.restore_folder, []
    stopped = stops_at_the_third(page, adapted)

    def noted_and_stopped(*given, **options):
        begun.append((given[3], options))
        return stopped(*given, **options)

    monkeypatch.setattr(jobs, "restore_folder", noted_and_stopped)
    photos = [with_place(page, f"{i}.jpg", i) for i in range(6)]
    assert all(dict(Image.open(file).getexif().get_ifd(0x8825)) for file in photos)
    how = RestoreConfig(match_grain=False, background="adapted")
    page.repair(adapted, photos, "", with_base=True, strip_gps=True, aligned=True, config=how)
    assert page.jobs.wait(page.run(adapted)).state == "cancelled"

    def noted(*given, **options):
        begun.append((given[3], options))
        return real(*given, **options)

    monkeypatch.setattr(jobs, "restore_folder", noted)
    again = Page(page.runs, page.allowed, "cpu")  # the page was loaded again: all boxes are at their defaults
    again.repair(adapted, [], "")
    notes = finished(again, adapted).notes
    assert "done before it was stopped" in notes[0] and len(places_in(again.repaired(adapted))) == 6
    assert not any(places_in(again.repaired(adapted)))
    assert [one[0] for one in begun] == [how, how]
    kept = json.loads((page.run(adapted).folder / "repair.json").read_text())
    assert kept["with_base"] and kept["strip_gps"] and kept["aligned"]


def test_where_photos_were_taken_is_left_out_if_it_is_asked_for_when_a_repair_goes_on(page, adapted, monkeypatch):
    monkeypatch.setattr(jobs, "restore_folder", lambda *given, **how: page.stop(adapted) or given[0] / 1)
    page.repair(adapted, [with_place(page, "a.jpg", 0)], "", aligned=True)
    assert page.jobs.wait(page.run(adapted)).state == "failed"
    monkeypatch.undo()
    page.repair(adapted, [], "", strip_gps=True)
    finished(page, adapted)
    assert not any(places_in(page.repaired(adapted)))


@pytest.mark.parametrize("wrong", [{"aligned": "yes"}, {"background": "/etc/passwd"}])
def test_what_is_kept_of_a_repair_is_not_trusted(page, adapted, monkeypatch, wrong):
    monkeypatch.setattr(jobs, "restore_folder", lambda *given, **how: given[0] / 1)
    page.repair(adapted, [upload(page, "a.png")], "", aligned=True)
    assert page.jobs.wait(page.run(adapted)).state == "failed"
    kept = page.run(adapted).folder / "repair.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | wrong))
    with pytest.raises(ValueError, match="is damaged|was begun with passwd for the rest, which is not here"):
        page.repair(adapted, [], "")


def test_the_good_photos_of_a_run_of_the_command_line_are_not_left_out(page, adapted, photos, tmp_path):
    run, good = page.run(adapted), tmp_path / "good"
    (run.folder / "request.json").unlink()
    config = run.config()
    asked = config["asked"] | {"album": config["asked"]["album"] | {"good": str(good)}}
    write_json(run.folder / "config.json", config | {"asked": asked})
    before, own = run.restorer.read_bytes(), page.choices_of(adapted)
    for choices in (own, replace(own, restorer="embedded128")):
        for act in (page.adapt, page.look_first):
            with pytest.raises(ValueError, match=r"good photos .* \(--good\): .*good: may not be read"):
                act(adapted, choices)
    assert run.restorer.read_bytes() == before
    shutil.copytree(photos, good)
    page.allowed.append(good)
    assert page.checked(page.with_others(run, own))["album.good"] == str(good)
    page.remember(run, page.with_others(run, own))
    assert page.choices_of(adapted).others["album.good"] == str(good)


def sent(value):
    """What a browser is sent; names with bytes that are not UTF-8 cannot be."""
    return json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 elsewhere")
def test_names_that_are_not_utf8_can_be_sent_and_are_found_again(page, photos, tmp_path):
    photos = shutil.copytree(photos, tmp_path / "named")
    page.allowed.append(photos)
    strange = [os.fsdecode(b"caf\xe9.png"), "caf\\udce9.png", "caf\u00a0.png"]
    for name, source in zip(strange, sorted((photos / "below").iterdir()), strict=False):
        source.rename(photos / name)
    name, _ = page.new_run("x", [], str(photos), FEW)
    finished(page, name)
    page.adapt(name, FEW)
    finished(page, name)
    shown = page.photos(name)
    assert sent(shown) and len(set(shown)) == 10 and set(strange[1:]) <= set(shown)
    pairs = [page.before_after(name, photo) for photo in shown]
    assert len({pair[0].read_bytes() for pair in pairs}) == 10 and sent([str(file) for pair in pairs for file in pair])
    copy = page.runs / os.fsdecode(b"r\xe9")
    shutil.copytree(page.run(name).folder, copy)
    [other] = [one for one in page.names() if one != name]
    assert sent(page.names()) and page.run(other).folder == copy and other in page.adapted()
    for show in (page.stamp, page.state, page.verdict, page.details, page.to_delete, page.first_look, page.progress):
        assert sent(show(other))
    files = [*page.save(other), *(file for file, _ in page.faces(other))]  # safetensors reads no network there
    assert sent([str(file) for file in files])
    assert page.is_of(page.stamp(other), other)
    page.delete(other)
    assert page.names() == [name] and not copy.exists()


def test_a_repair_that_another_job_forestalled_says_so(page, adapted, monkeypatch):
    run, go_on, keep = page.run(adapted), threading.Event(), page.keep_uploads

    def forestalled(*given):
        keep(*given)
        page.jobs.start(run, "repair", lambda callback: jobs.Outcome() if go_on.wait(600) else None)

    monkeypatch.setattr(page, "keep_uploads", forestalled)
    with pytest.raises(ValueError, match="the run is at work; wait for it, or stop it"):
        page.repair(adapted, [upload(page, "a.png")], "", aligned=True)
    go_on.set()
    finished(page, adapted)


@pytest.mark.parametrize("noted", [True, False])
def test_photos_of_earlier_repairs_are_deleted_with_a_run(page, adapted, noted):
    files = [upload(page, name) for name in ("a.png", "b.png")]
    stays = upload(page, "c.png", (40, 40))
    for file in files:
        page.repair(adapted, [file], "", aligned=True)
        finished(page, adapted)
    if not noted:
        (page.run(adapted).folder / "uploads.json").write_text('{"uploads": [3, {"size": []}, {"size": 1}]}')
    page.delete(adapted)
    assert [Path(file).exists() for file in (*files, stays)] == [not noted, False, True]


def test_the_box_before_a_run_is_deleted_names_photos_that_were_restored_into_it(page, adapted, photos):
    run = page.run(adapted)
    command = ["restore", str(photos), "--aligned", "--restorer", str(run.restorer), "--out", str(run.folder / "mine")]
    assert main(command) == 0
    assert page.to_delete(adapted).endswith("with its faces, its restorer and 10 restored photos")
    assert claim_results(run.folder / "none") and "10 restored photos" in page.to_delete(adapted)


def test_a_search_for_faces_that_was_stopped_goes_on(page, photos, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "collect_faces", lambda *_: page.stop("x") or 1 / 0)
        page.new_run("x", [], str(photos), FEW)
        assert page.jobs.wait(page.run("x")).state == "failed"
    assert page.search_goes_on("x", FEW)
    finished(page, "x")
    assert len(page.faces("x")) == 10 and not page.search_goes_on("x", FEW) and not page.search_goes_on(None, FEW)


def test_photos_far_below_an_allowed_folder_are_found_and_those_of_the_folder_one_is_in(
    page, photos, tmp_path, monkeypatch
):
    deep = tmp_path / "data/2020/june/scans"
    shutil.copytree(photos, deep)
    write_image(tmp_path / "data/scans/other.png", torch.zeros(3, 32, 32))
    page.allowed.append(tmp_path / "data")
    assert main(["faces", str(deep), "--run", str(page.runs / "deep"), "--aligned"]) == 0
    assert page.photos_of(page.run("deep")) == deep
    monkeypatch.chdir(deep)
    assert main(["faces", ".", "--run", str(page.runs / "here"), "--aligned"]) == 0
    assert page.photos_of(page.run("here")) == deep


def at_once(page, run, monkeypatch, *calls):
    """The outcomes of calls of which each has seen the run's status before any goes on, if it can be so."""
    together, seen = threading.Barrier(len(calls)), Page.status

    def status(self, of):
        found = seen(self, of)
        with suppress(threading.BrokenBarrierError):
            together.wait(1)
        return found

    def outcome(call):
        try:
            return call()
        except ValueError as error:
            return str(error)

    with monkeypatch.context() as patch, ThreadPoolExecutor(len(calls)) as pool:
        patch.setattr(Page, "status", status)
        found = list(pool.map(outcome, calls))
    finished(page, run)
    return found


def test_two_who_repair_at_once_on_one_run_get_none_of_each_others_photos(page, adapted, monkeypatch):
    names = [("anna 1.png", "anna 2.png"), ("bert 1.png", "bert 2.png", "bert 3.png")]
    calls = [partial(page.repair, adapted, [upload(page, n) for n in own], "", True, aligned=True) for own in names]
    said = at_once(page, adapted, monkeypatch, *calls)
    assert sorted(map(str, said)) == ["[]", "the run is at work; wait for it, or stop it"]
    theirs = names[[one == [] for one in said].index(True)]
    assert tuple(sorted(zipfile.ZipFile(page.repaired(adapted)).namelist())) == theirs


def test_of_two_who_adapt_at_once_the_run_remembers_what_is_at_work(page, adapted, monkeypatch):
    two = [replace(FEW, changes=QUICK | {"finetune.lr": lr}) for lr in (0.001, 0.002)]
    at_once(page, adapted, monkeypatch, *(partial(page.adapt, adapted, one) for one in two))
    learned = page.run(adapted).config()["finetune"]["lr"]
    assert page.choices_of(adapted).changes["finetune.lr"] == learned in (0.001, 0.002)


def test_a_face_that_is_no_longer_there_is_said(page, adapted):
    with pytest.raises(ValueError, match="the run has fewer faces by now; open it again"):
        page.toggle(adapted, 10)


def test_a_face_that_is_not_square_can_be_left_out(page, adapted):
    crop = page.run(adapted).faces / "face 0.png"
    Image.effect_noise((24, 40), 60).convert("RGB").save(crop)
    page.toggle(adapted, page.face_names(page.run(adapted)).index("face 0"))
    (shown,) = (Path(file) for file, said in page.faces(adapted) if said == "left out")
    picture = read_image(shown)
    assert picture.shape == (3, 40, 24) and picture[:, 0, 0].tolist() == pytest.approx([0.8] * 3, abs=0.01)
    assert picture[:, -1, 0].tolist() == picture[:, 20, 12].tolist() == picture[:, 0, -1].tolist()
    assert float(picture[:, 20, 2].max()) < 0.4


def test_grey_photos_are_shown_as_they_are_repaired(page, tmp_path):
    for i in range(10):
        grey = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(i))
        grey = torch.nn.functional.interpolate(grey, (32, 32), mode="bilinear")[0]
        write_image(tmp_path / "old" / f"{i}.png", grey.expand(3, -1, -1))
    page.allowed.append(tmp_path / "old")
    name, _ = page.new_run("grey", [], str(tmp_path / "old"), FEW)
    finished(page, name)
    page.adapt(name, FEW)
    finished(page, name)
    restored = read_image(page.before_after(name, "0.png", "base")[0])
    assert torch.equal(restored[0], restored[1]) and torch.equal(restored[1], restored[2])
    coloured = load_restorer(SHIPPED["embedded"]).restore(read_image(tmp_path / "old/0.png")[None])[0]
    assert float((coloured[0] - coloured[1]).abs().max()) > 0.01, "which the network itself does not do"
