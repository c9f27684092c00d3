"""Which files count as this program's own, on small folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bfr_core.adaptation.run import LOG_HEAD, Run
from bfr_core.files.ownership import (
    LIST,
    Claims,
    Ledger,
    begin_list,
    claim,
    claim_results,
    delete,
    empty,
    free_name,
    free_place,
    is_own,
    maker_of,
    note_maker,
    note_result,
    scratch,
    tidy,
)
from bfr_core.files.photos import list_images, replace_atomically
from bfr_core.files.records import write_json
from bfr_core.files.stages import growing, stage_folder


def write(path: Path, text: str = "ours") -> Path:
    replace_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def test_what_was_written_is_own_until_somebody_changes_it(tmp_path):
    claim(tmp_path / "run", "run")
    path = write(tmp_path / "run/below/a.txt")
    assert is_own(path)
    write(path, "newer")
    assert is_own(path)
    path.write_text("by hand")
    assert not is_own(path)
    with pytest.raises(ValueError, match=r"a.txt: was not written by this program, or was changed since, and is kept"):
        write(path)
    assert path.read_text() == "by hand"


def test_a_strangers_file_is_neither_replaced_nor_deleted(tmp_path):
    run = tmp_path / "run"
    claim(run, "run")
    (run / "config.json").write_text("{}")
    (run / "made by hand").mkdir()
    (run / "made by hand" / "last.pt").write_text("mine")
    for name in ("config.json", "made by hand/last.pt"):
        with pytest.raises(ValueError, match="is kept"):
            write(run / name)
    write(run / "own.txt")
    kept = delete(run)
    assert kept == [run / "config.json", run / "made by hand/last.pt"] and not (run / "own.txt").exists()
    assert (run / "config.json").read_text() == "{}"


def test_a_folder_of_own_files_only_goes_as_a_whole(tmp_path):
    run = Run(tmp_path / "run")
    with run.locked():
        write(run.folder / "checkpoints/last.pt")
        stage_folder(run.faces, "x")
        (run.folder / ".job.lock").touch()
    assert delete(run.folder) == [] and not run.folder.exists()


def test_links_are_kept_and_not_followed(tmp_path):
    run, precious = tmp_path / "run", tmp_path / "precious"
    claim(run, "run")
    own = write(run / "a.txt")
    precious.mkdir()
    (precious / "a.txt").write_text("ours")
    (run / "link").symlink_to(precious, target_is_directory=True)
    own.unlink()
    own.symlink_to(precious / "a.txt")
    with pytest.raises(ValueError, match="is kept"):
        write(own)
    assert set(delete(run)) == {run / "link", own} and (precious / "a.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LIST).symlink_to(precious / "a.txt")
    with pytest.raises(ValueError, match="remove the link"):
        begin_list(tmp_path / "other")


def test_a_folder_of_others_is_refused_with_a_proposal(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    claim(folder, "run")  # empty: it may be taken
    other = tmp_path / "album"
    other.mkdir()
    (other / "Thumbs.db").touch()
    (other / ".hidden").touch()
    claim(other, "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jpg").write_text("precious")
    (tmp_path / "mine_2").mkdir()
    with pytest.raises(ValueError) as error:
        claim(tmp_path / "mine", "run")
    said = str(error.value)
    assert "such as a.jpg; choose an empty or a new folder, such as " in said and said.endswith("mine_3")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["a.jpg"]


def test_a_growing_file_is_known_by_its_first_line(tmp_path):
    claim(tmp_path, "run")
    log = growing(tmp_path / "log.txt", LOG_HEAD)
    with log.open("a") as file:
        file.write("more\n")
    assert is_own(log) and growing(tmp_path / "log.txt", LOG_HEAD) == log
    log.write_text("my own notes\n")
    assert growing(tmp_path / "log.txt", LOG_HEAD) == tmp_path / "log_2.txt"
    assert log.read_text() == "my own notes\n"


def test_taken_names_get_a_number(tmp_path):
    begin_list(tmp_path)
    (tmp_path / "a.jpg").write_text("precious")
    assert free_name(tmp_path / "a.jpg") == tmp_path / "a_2.jpg"
    write(tmp_path / "a_2.jpg")
    assert free_name(tmp_path / "a.jpg") == tmp_path / "a_2.jpg"
    assert free_name(tmp_path / "a.jpg", always=True) == tmp_path / "a_3.jpg"
    assert free_name(tmp_path / "a.jpg", taken={tmp_path / "a_2.jpg"}) == tmp_path / "a_3.jpg"
    os.symlink(tmp_path / "nowhere", tmp_path / "b.jpg")
    assert free_name(tmp_path / "b.jpg") == tmp_path / "b_2.jpg"


def test_a_stage_made_from_something_else_keeps_what_others_put_there(tmp_path, caplog):
    run = Run(tmp_path / "run")
    run.claim()
    stage_folder(run.targets, "old")
    own, retouched = write(run.targets / "a.png"), write(run.targets / "b.png")
    retouched.write_text("retouched")
    (run.targets / "notes.txt").write_text("mine")
    with caplog.at_level("INFO"):
        stage_folder(run.targets, "new")
    assert not own.exists() and retouched.read_text() == "retouched" and (run.targets / "notes.txt").exists()
    assert "targets/b.png" in caplog.text and "targets/notes.txt" in caplog.text


def test_a_stage_of_version_0_1_owns_the_names_that_it_makes(tmp_path):
    run = Run(tmp_path / "run")
    for name, text in {"stage.json": '{"fingerprint": "x"}', "image_00000.png": "ours", "holiday.png": "mine"}.items():
        run.photos.mkdir(parents=True, exist_ok=True)
        (run.photos / name).write_text(text)
    (run.folder / "config.json").write_text('{"faces": {}}')
    (run.folder / "letter.txt").write_text("mine")
    run.claim()
    stage_folder(run.photos, "y", ["image_[0-9]*.png"])
    assert not (run.photos / "image_00000.png").exists() and (run.photos / "holiday.png").read_text() == "mine"
    write_json(run.folder / "config.json", {})
    assert not is_own(run.folder / "letter.txt")


def test_scratch_files_go_and_those_of_a_crash_are_tidied(tmp_path):
    with scratch(tmp_path / "api", ".png") as path:
        path.write_text("x")
    assert not path.exists()
    claim(tmp_path / "run", "run")
    old, new = tmp_path / "run/.bfr-0123456789ab.part.png", tmp_path / "run/.bfr-0123456789ac.part"
    for one in (old, new, tmp_path / "run/.bfr-mine.part"):
        one.touch()
    os.utime(old, (0, 0))
    os.utime(tmp_path / "run/.bfr-mine.part", (0, 0))
    tidy(tmp_path / "run")
    assert not old.exists() and new.exists() and (tmp_path / "run/.bfr-mine.part").exists()


def test_runs_and_results_are_not_photos_of_the_folder_above(tmp_path):
    def picture(name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    for name in ("a.jpg", "album/b.jpg", "album/c.jpg"):
        picture(name)
    claim(tmp_path / "my_run", "run")
    claim_results(tmp_path / "restored")
    claim_results(tmp_path / "album")  # others have files there: only the results are known
    for name in ("my_run/faces/a.png", "restored/a.jpg", "restored/sub/a.jpg", "album/new.jpg"):
        write(tmp_path / name)
    note_result(tmp_path / "album/new.jpg")
    (tmp_path / "old_run/faces").mkdir(parents=True)
    (tmp_path / "old_run/faces/stage.json").write_text("{}")
    picture("old_run/faces/a.png")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.jpg", "album/b.jpg", "album/c.jpg"]
    assert [p.name for p in list_images(tmp_path / "restored")] == ["a.jpg", "a.jpg"]
    assert Ledger(tmp_path / "album").kind == "" and Ledger(tmp_path / "restored").kind == "results"


def test_an_upload_goes_only_where_its_bytes_are_kept(tmp_path):
    upload, kept = tmp_path / "upload.png", tmp_path / "kept.png"
    upload.write_text("a")
    kept.write_text("b")
    assert delete(upload, like=kept) == [upload]
    kept.write_text("a")
    assert delete(upload, like=kept) == [] and not upload.exists()


def test_empty_keeps_the_folder_and_its_list(tmp_path):
    claim(tmp_path / "a", "run")
    write(tmp_path / "a/b/c.txt")
    assert empty(tmp_path / "a") == [] and [p.name for p in (tmp_path / "a").iterdir()] == [LIST]


def test_a_line_cut_short_by_a_full_disk_takes_no_other_with_it(tmp_path):
    claim(tmp_path, "results")
    with (tmp_path / LIST).open("ab") as file:
        file.write(b"0123456789abc")
    assert is_own(write(tmp_path / "a.txt"))


def test_a_cut_short_line_of_a_result_names_none(tmp_path):
    begin_list(tmp_path)
    note_result(write(tmp_path / "a.png"))
    with (tmp_path / LIST).open("ab") as file:
        file.write(b'result "IMG_01\nresult 3\nresult\nresult "b.png"')
    assert Ledger(tmp_path).results() == {"a.png", "b.png"}


def test_what_another_made_keeps_its_name(tmp_path):
    """The same command on the same file replaces its result; another command, or another file so called, does not."""
    first, other = maker_of("restore", tmp_path / "x/a.png"), maker_of("restore", tmp_path / "y/a.png")
    assert len({first, other, maker_of("tone", tmp_path / "x/a.png")}) == 3
    claim_results(tmp_path / "out")
    place = tmp_path / "out/a.png"
    note_maker(place, first)
    write(place)
    assert free_name(place, maker=first) == free_name(place) == place
    assert free_name(place, maker=other) == tmp_path / "out/a_2.png"
    write(tmp_path / "out/old.png")  # by a version that did not say
    assert free_name(tmp_path / "out/old.png", maker=other) == tmp_path / "out/old.png"
    link = tmp_path / "z"
    (tmp_path / "x").mkdir()
    link.symlink_to(tmp_path / "x", target_is_directory=True)
    assert maker_of("restore", link / "a.png") == first


def test_of_two_that_take_a_free_name_the_first_has_it(tmp_path):
    """Though no file is there yet; what was entered before they began, such as of a result now deleted, is no claim."""
    place, (one, other, earlier) = tmp_path / "a.png", (maker_of("restore", tmp_path / name) for name in "xyz")
    note_maker(place, earlier)
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take(place, one) and not second.take(place, other) and first.take(place, one)
    assert second.take(tmp_path / "a_2.png", other)
    write(place)
    assert Ledger(tmp_path).may_replace(place, one) and not Ledger(tmp_path).may_replace(place, other)


def test_a_list_in_a_folder_below_does_not_make_the_pictures_in_it_results(tmp_path):
    (tmp_path / "pictures/2001").mkdir(parents=True)
    (tmp_path / "pictures/2001/mine.png").write_text("x")
    for folder in ("pictures", "out"):
        begin_list(tmp_path / folder / "2001")
        write(tmp_path / folder / "2001/x.png")
    assert not claim_results(tmp_path / "pictures") and Ledger(tmp_path / "pictures").kind == ""
    assert claim_results(tmp_path / "out")
    with pytest.raises(ValueError, match="did not make, such as 2001"):
        claim(tmp_path / "pictures", "run")


@pytest.mark.parametrize("place", ["run/a.png", "run/targets/a.png", "run/checkpoints/a.png"])
def test_no_command_replaces_what_a_run_goes_on_with(tmp_path, place):
    """Neither in the run's folder and its stages, nor in a folder below them that only has a list."""
    claim(tmp_path / "run", "run")
    stage_folder(tmp_path / "run/targets", "made so")
    path, maker = write(tmp_path / place), maker_of("export", tmp_path / "a.pth")
    assert free_name(path) == path  # the run itself goes on writing there
    assert free_place(path, maker=maker) == path.with_name("a_2.png")
    write(path.with_name("a_2.png"))
    assert free_place(path, maker=maker) == path.with_name("a_2.png")  # its own, from before
    write(path, "newer")


def test_results_below_a_run_are_replaced_as_elsewhere(tmp_path):
    claim(tmp_path / "run", "run")
    claim_results(tmp_path / "run/repaired")
    path = write(tmp_path / "run/repaired/a.png")
    assert free_name(path, maker=maker_of("restore", tmp_path / "a.png")) == path
