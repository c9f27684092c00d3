"""Jobs in the background, first with a function that does nothing, then with networks of a few thousand parameters."""

import re
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch

from bfr_core.adaptation.faces import faces_of, leave_out
from bfr_core.adaptation.per_damage import ONE_DAMAGE
from bfr_core.adaptation.run import Run
from bfr_core.files.photos import read_image, write_image
from bfr_core.files.records import read_json, write_json
from bfr_core.restoration import folder as restoration
from bfr_core.restoration.restore import RestoreConfig
from bfr_core.restorers import load_restorer
from bfr_core.training.checkpoint import TuningProgress
from bfr_core.web.jobs import Jobs, Outcome, Status, adapt_restorer, find_faces, read_status, repair_photos, thinned

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def changes(tiny_prior):
    return {
        "prior": str(tiny_prior),
        "faces.aligned": True,
        "targets.batch_size": 4,
        "targets.t_clean": 0,
        "finetune.iterations": 6,
        "finetune.batch_size": 2,
        "finetune.judge_every": 3,
    }


class Held:
    """Work that goes on until it is let go, and counts how often it was started."""

    def __init__(self):
        self.started, self.go = [], threading.Event()

    def __call__(self, callback):
        self.started.append(threading.current_thread())
        step = 0
        while not self.go.wait(0.01):
            step += 1
            callback("wait", step, 1000, torch.zeros(1, 3, 4, 4))
        return Outcome("made.txt", ("a note",))


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_second_start_of_a_run_gives_the_job_that_is_under_way(tmp_path):
    jobs, run, work = Jobs(), Run(tmp_path / "run"), Held()
    assert jobs.status(run).state == "new"
    jobs.start(run, "adapt", work)
    until(lambda: jobs.status(run).step > 1)
    again = Held()
    status = jobs.start(Run(tmp_path / "x" / ".." / "run"), "faces", again)
    assert status.kind == "adapt" and status.state == "running" and (status.seconds_left or 0) > 0
    assert jobs.preview(run).shape == (3, 4, 4) and float(jobs.preview(run).mean()) == 0.5
    assert Jobs().start(run, "faces", again).kind == "adapt"  # as another server would, whose memory is its own
    work.go.set()
    assert jobs.wait(run).state == "done" and jobs.status(run).file == "made.txt"
    assert len(work.started) == 1 and not again.started and read_status(run) == jobs.status(run)


def test_jobs_take_turns_and_one_that_waits_can_be_cancelled(tmp_path):
    jobs, first, second = Jobs(), Held(), Held()
    a, b = Run(tmp_path / "a"), Run(tmp_path / "b")
    jobs.start(a, "adapt", first)
    until(lambda: first.started)
    jobs.start(b, "adapt", second)
    until(lambda: (tmp_path / "b" / "job.json").exists())
    assert jobs.status(b).state == "waiting" and not second.started
    jobs.cancel(b)
    assert jobs.wait(b).state == "cancelled" and not second.started
    jobs.cancel(a)
    assert jobs.wait(a).state == "cancelled"
    second.go.set()
    jobs.start(b, "adapt", second)
    assert jobs.wait(b).state == "done"


@pytest.mark.parametrize("error", [ValueError("one\x1b line\nand more"), RuntimeError("one\x1b line")])
def test_a_failure_is_one_line_in_the_status(tmp_path, error):
    def work(callback):
        raise error

    jobs, run = Jobs(), Run(tmp_path)
    jobs.start(run, "faces", work)
    status = jobs.wait(run)
    assert status.state == "failed" and status.error == "one\\x1b line" and read_status(run) == status


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: is a file; give a folder$"):
        Jobs().start(Run(tmp_path / "file" / "run"), "faces", Held())


def test_a_job_whose_process_was_killed_is_stopped_and_can_go_on(tmp_path):
    code = f"""
import threading
from bfr_core.web.jobs import Jobs, Outcome
from bfr_core.adaptation.run import Run
def work(callback):
    callback("wait", 1, 2, None)
    threading.Event().wait()
jobs = Jobs()
jobs.start(Run({str(tmp_path)!r}), "adapt", work)
threading.Event().wait()
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    run, jobs = Run(tmp_path), Jobs()
    until(lambda: read_json(tmp_path / "job.json", {}).get("state") == "running")
    assert jobs.status(run).state == "running"  # of the other process
    assert jobs.start(run, "adapt", lambda callback: Outcome()).state == "running"
    process.kill()
    process.wait()
    assert jobs.status(run).state == "stopped"
    jobs.start(run, "adapt", lambda callback: Outcome())
    assert jobs.wait(run).state == "done"


def test_the_time_left_knows_the_limit_of_the_tuning(tmp_path):
    seen, run = [], Run(tmp_path)

    def work(callback):
        for step in range(1, 4):
            time.sleep(0.01)
            losses = {"l1": [(i, 1.0) for i in range(1000)]}
            callback("finetune", step, 10**6, TuningProgress(step, seconds=50.0, losses=losses, held_out=[(0, 2.0)]))
            seen.append(jobs.status(run))
        return Outcome()

    jobs = Jobs()
    jobs.start(run, "adapt", work, tuning_seconds=60)
    jobs.wait(run)
    assert [round(status.seconds_left or 0) for status in seen] == [10, 10, 10]
    assert len(seen[-1].curves["l1"]) < 300 and seen[-1].curves["held-out faces"] == [(0, 2.0)]
    assert jobs.status(run).seconds_left is None and Jobs().status(run).curves == seen[-1].curves


def test_a_job_says_which_group_of_damages_it_is_at(tmp_path):
    seen, run, jobs = [], Run(tmp_path), Jobs()

    def work(callback):
        for group in (1, 2):
            callback("group", group, 2, None)
            seen.append(jobs.status(run))
            time.sleep(0.01)
            for step in (1, 2):
                callback("finetune", step, 10**6, TuningProgress(step, seconds=20.0, losses={"l1": [(1, 1.0)]}))
                time.sleep(0.01)
            seen.append(jobs.status(run))
        return Outcome()

    jobs.start(run, "adapt", work, tuning_seconds=60)
    jobs.wait(run)
    assert [(s.group, s.groups, s.stage, bool(s.curves)) for s in seen] == [
        (1, 2, "", False), (1, 2, "finetune", True), (2, 2, "finetune", False), (2, 2, "finetune", True)
    ]  # fmt: skip
    assert round(seen[1].seconds_left or 0) == 10, "a group has its share of the time"


def test_thinned_keeps_the_last_point():
    assert thinned([]) == [] and thinned([(1, 0.5)]) == [(1, 0.5)]
    many = [(i, 0.0) for i in range(12345)]
    assert thinned(many)[-1] == many[-1] and len(thinned(many)) < 300


def test_a_record_of_a_later_version_is_read(tmp_path):
    write_json(tmp_path / "job.json", {"kind": "adapt", "state": "done", "new in a later version": 1})
    assert read_status(Run(tmp_path)).state == "done"


def test_faces_then_adaptation_then_repair(photos, tiny_restorer, changes, tmp_path):
    jobs, run, restorer = Jobs(), Run(tmp_path / "run"), str(tiny_restorer)
    jobs.start(run, "faces", find_faces(run, photos, restorer, changes))
    status = jobs.wait(run)
    assert status.state == "done" and status.notes[0].startswith("10 faces will take"), status
    leave_out(run, ["face 0"])
    jobs.start(run, "adapt", adapt_restorer(run, photos, restorer, changes, "cpu"))
    status = jobs.wait(run)
    assert (status.state, status.file) == ("done", "restorer.safetensors"), status.error
    assert len(status.curves["l1"]) == 6 and run.report.exists()
    assert len(faces_of(run)) == 9 and not (run.targets / "face 0.png").exists()
    jobs.start(run, "repair", repair_photos(run, photos, run.restorer, RestoreConfig(), aligned=True, device="cpu"))
    status = jobs.wait(run)
    assert (status.state, status.file) == ("done", "repaired/repaired 1.zip"), status.error
    with zipfile.ZipFile(run.folder / status.file) as archive:
        assert "face 0.png" in archive.namelist() and len(archive.namelist()) == 10
        archive.extract("face 0.png", tmp_path)
    assert read_image(tmp_path / "face 0.png").shape == (3, 32, 32)
    assert (
        status.notes == ("10 restored", "10 faces: cannot tell")
        and not (run.folder / "repaired" / "under way").exists()
    )


def test_a_forecast_that_cannot_be_made_leaves_the_faces(photos, tiny_restorer, changes, tmp_path):
    jobs, run = Jobs(), Run(tmp_path / "run")
    wrong = changes | {"prior": str(tmp_path / "none.safetensors")}
    jobs.start(run, "faces", find_faces(run, photos, str(tiny_restorer), wrong))
    status = jobs.wait(run)
    assert status.state == "done" and "none.safetensors" in status.notes[0] and len(faces_of(run)) == 10


def test_faces_are_only_needed_by_what_works_on_them():
    spared = [Status("faces", "running", stage) for stage in ("people", "forecast")]
    spared += [Status("repair", "waiting"), Status("faces", "done", "faces")]
    needing = [Status("faces", "waiting"), Status("faces", "running", "faces"), Status("adapt", "running", "forecast")]
    assert not any(status.needs_faces for status in spared)
    assert all(status.needs_faces for status in [*needing, Status("look", "running"), Status("adapt", "elsewhere")])


def test_a_stopped_repair_goes_on_where_it_was(photos, tiny_restorer, tmp_path, monkeypatch):
    jobs, run, written, cancelled = Jobs(), Run(tmp_path / "run"), [], threading.Event()
    real = restoration._write

    def write(job, *how):
        written.append(job.name)
        assert len(written) < 5 or cancelled.wait(600)
        return real(job, *how)

    monkeypatch.setattr(restoration, "_write", write)
    config = RestoreConfig(batch_size=1)
    work = repair_photos(run, photos, str(tiny_restorer), config, aligned=True, device="cpu")
    jobs.start(run, "repair", work)
    until(lambda: jobs.status(run).step >= 3)
    jobs.cancel(run)
    cancelled.set()
    assert jobs.wait(run).state == "cancelled" and not list(run.folder.rglob("*.zip"))
    before = list(written)
    assert 3 <= len(before) < 10
    jobs.start(run, "repair", work)
    status = jobs.wait(run)
    assert status.state == "done" and sorted(written) == sorted({*before, *written}), "none is made twice"
    counts = f"{10 - len(before)} restored, {len(before)} done before it was stopped"
    assert status.notes == (counts, "10 faces: cannot tell")
    with zipfile.ZipFile(run.folder / status.file) as archive:
        assert len(archive.namelist()) == 10 and all(name.endswith(".png") for name in archive.namelist())
    assert not (run.folder / "repaired" / "under way").exists()


def test_what_a_stopped_repair_of_other_photos_left_is_in_no_zip(photos, tiny_restorer, tmp_path):
    jobs, run = Jobs(), Run(tmp_path / "run")
    run.claim()
    write_image(run.folder / "repaired" / "under way" / "other.png", torch.zeros(3, 32, 32))
    jobs.start(run, "repair", repair_photos(run, photos, str(tiny_restorer), RestoreConfig(), True, device="cpu"))
    with zipfile.ZipFile(run.folder / jobs.wait(run).file) as archive:
        assert len(archive.namelist()) == 10 and "other.png" not in archive.namelist()


def test_photos_of_one_damage_are_adapted_to_as_one(photos, tiny_restorer, changes, tmp_path):
    jobs, run = Jobs(), Run(tmp_path / "run")
    jobs.start(run, "adapt", adapt_restorer(run, photos, str(tiny_restorer), changes, "cpu", mixed=True))
    status = jobs.wait(run)
    assert (status.state, status.file, status.groups) == ("done", "restorer.safetensors", 0), status.error
    assert status.notes == (ONE_DAMAGE,) and len(status.curves["l1"]) == 6


def test_a_cancelled_adaptation_goes_on_and_says_how_long_it_takes_and_what_changed(
    photos, tiny_restorer, changes, tmp_path
):
    jobs, run = Jobs(), Run(tmp_path / "run")
    many = changes | {"finetune.iterations": 4000}
    jobs.start(run, "adapt", adapt_restorer(run, photos, str(tiny_restorer), many, "cpu"))
    until(lambda: jobs.status(run).stage == "finetune" and jobs.status(run).step > 3)
    assert jobs.status(run).notes[0].startswith("10 faces will take")
    jobs.cancel(run)
    status = jobs.wait(run)
    assert status.state == "cancelled" and not run.restorer.exists()
    steps = status.step + 2
    few = changes | {"finetune.iterations": steps, "finetune.judge_every": 2}
    jobs.start(run, "adapt", adapt_restorer(run, photos, str(tiny_restorer), few, "cpu"))
    ended = jobs.wait(run)
    assert (ended.state, ended.file) == ("done", "restorer.safetensors"), ended.error
    assert load_restorer(run.restorer).metadata["steps"] == str(steps)
    (note,) = ended.notes
    reached = re.fullmatch(r"judge_every was 3 up to step (\d+).* is 2 from the next comparison on", note)
    assert reached and 3 < int(reached[1]) < steps, "it goes on from the step that it had reached"
    assert note in run.report.read_text()


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "3", "null", '"text"', "\x00", "[" * 100_000, '{"curves": 3}', '{"curves": {"l1": [1, 2]}}',
        '{"curves": {"l1": [["a", "b"]]}}', '{"notes": 3}', '{"state": "somewhere"}', '{"state": []}',
        '{"steps": "ten"}', '{"seconds_left": {}}', '{"error": null}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_a_failure_that_says_so_and_the_run_can_be_started(tmp_path, content):
    Run(tmp_path).claim()
    (tmp_path / "job.json").write_text(content)
    status = read_status(Run(tmp_path))
    assert status.state == "failed" and "job.json: is damaged" in status.error
    jobs = Jobs()
    assert jobs.start(Run(tmp_path), "faces", lambda callback: Outcome("made")).state in ("waiting", "running", "done")
    assert jobs.wait(Run(tmp_path)).state == "done" and read_status(Run(tmp_path)).file == "made"
    assert (tmp_path / "job_2.json").read_text() == content, "it is kept"


def test_a_record_of_this_program_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "job.json", {"kind": "adapt", "state": "done", "curves": {"l1": [[1, 0.5], [2, None]]}})
    status = read_status(Run(tmp_path))
    assert (status.kind, status.state, status.curves) == ("adapt", "done", {"l1": [(1, 0.5)]})
