"""Files of others, planted wherever the program writes: they are there afterwards, unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bfr_core.cli.commands import main
from bfr_core.files.ownership import LIST, is_own
from bfr_core.files.photos import write_image

STRANGE = b"not of this program"
Files = dict[Path, bytes]


def files_in(folder: Path) -> Files:
    """Every file below a folder that is to be seen, by its path in it, and what it holds."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def plant(folder: Path, names: list[Path]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(STRANGE)


@pytest.fixture(scope="module")
def nets(tiny_restorer: Path, tiny_prior: Path) -> list[str]:
    return ["--restorer", str(tiny_restorer), "--prior", str(tiny_prior)]


@pytest.fixture(scope="module")
def quick(photos: Path, nets: list[str]) -> list[str]:
    """Of `adapt`, but for the run."""
    sampler = ["--start", "50", "--calls", "2", "--factor", "4", "--clean-level", "0", "--gate", "0"]
    return [str(photos), "--aligned", *nets, *sampler, "--iterations", "2", "--batch-size", "2"]


# ---------------------------------------------------------------- folders of results

OUT: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "restore": lambda p, net, out: ["restore", str(p), "--restorer", str(net), "--out", str(out), "--aligned"],
    "degrade": lambda p, net, out: ["degrade", str(p), "--out", str(out), "--kind", "sensor"],
    "tone": lambda p, net, out: ["tone", str(p), "--out", str(out)],
    "vote": lambda p, net, out: ["vote", str(p), "--a", str(p), "--b", str(p), "--out", str(out)],
    "export": lambda p, net, out: ["export", str(net), "--out", str(out / "below" / "net.safetensors")],
    "evaluate": lambda p, net, out: ["evaluate", str(p), "--clean", str(p), "--csv", str(out / "a.csv")],
}


@pytest.mark.parametrize("command", OUT)
def test_in_a_folder_for_results_a_taken_name_gets_a_number(command, photos, tiny_restorer, tmp_path):
    learned, shared = tmp_path / "learned", tmp_path / "shared"
    assert main(OUT[command](photos, tiny_restorer, learned)) == 0
    names = list(files_in(learned))
    assert names
    plant(shared, [*names, Path("holiday.jpg")])
    for _ in range(2):
        assert main(OUT[command](photos, tiny_restorer, shared)) == 0
        found = files_in(shared)
        assert all(found[name] == STRANGE for name in [*names, Path("holiday.jpg")])
        made = {name.with_name(f"{name.stem}_2{name.suffix}") for name in names}
        assert found.keys() == {*names, Path("holiday.jpg"), *made}, "again in the same places"


def test_results_changed_since_are_kept(photos, tiny_restorer, tmp_path):
    command = OUT["restore"](photos, tiny_restorer, tmp_path)
    assert main(command) == 0
    (tmp_path / "face 0.png").write_bytes(STRANGE)
    assert main(command) == 0
    assert (tmp_path / "face 0.png").read_bytes() == STRANGE and not (tmp_path / "face 0_2.png").exists()
    assert main([*command, "--blend", "0.5"]) == 0
    assert (tmp_path / "face 0.png").read_bytes() == STRANGE and is_own(tmp_path / "face 0_2.png"), "another result"


@pytest.mark.parametrize("command", ["restore", "degrade", "tone"])
@pytest.mark.parametrize("shared", [False, True], ids=["a folder of its own", "among other photos"])
def test_results_inside_the_photo_folder_are_not_taken_for_photos(command, shared, photos, tiny_restorer, tmp_path):
    album = Path(shutil.copytree(photos, tmp_path / "album"))
    out = album / "below" if shared else album / "results"
    for _ in range(2):
        assert main(OUT[command](album, tiny_restorer, out)) == 0
    assert main(["faces", str(album), "--run", str(album / "run"), "--aligned", "--size", "32"]) == 0
    index = json.loads((album / "run/faces/faces.json").read_text())
    others = {path.relative_to(photos).as_posix() for path in photos.rglob("*.png")}
    assert {face["photo"] for face in index["faces"]} == others
    assert not (out / "results").exists()


def test_the_photos_own_folder_is_no_place_for_results(photos, tmp_path, capsys):
    album = Path(shutil.copytree(photos, tmp_path / "album"))
    before = files_in(album)
    for command in ("degrade", "tone", "restore"):
        assert main(OUT[command](album, Path("embedded"), album)) == 2
        assert "choose another folder" in capsys.readouterr().err
    assert files_in(album) == before


def test_weights_are_not_put_over_a_file_of_the_same_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    for name in ("codeformer.pth", "codeformer.pth.part"):
        (tmp_path / name).write_bytes(STRANGE)
    assert main(["weights", "get", "codeformer.pth"]) == 2
    assert "is not the published file; move it away" in capsys.readouterr().err
    assert set(files_in(tmp_path).values()) == {STRANGE}


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("command", ["adapt", "faces", "finetune", "demo", "bench", "verify-real"])
def test_a_folder_of_others_is_no_place_for_a_run(command, quick, photos, tiny_restorer, tmp_path, capsys):
    album = tmp_path / "photos"
    places = ["faces", "restored", "targets", "photos", "given", "clean", "damaged", "checkpoints", "groups/1", "good"]
    plant(album, [Path("a.png"), *(Path(place, "mine.png") for place in places), Path("config.json")])
    before = {path: path.read_bytes() for path in album.rglob("*") if path.is_file()}
    commands = {
        "adapt": ["adapt", *quick, "--run", str(album)],
        "faces": ["faces", str(photos), "--aligned", "--run", str(album)],
        "finetune": ["finetune", str(photos), "--aligned", "--run", str(album)],
        "demo": ["demo", "--run", str(album)],
        "bench": ["bench", "paper", "--hq", str(photos), "--aligned", "--out", str(album)],
        "verify-real": ["verify-real", "--out", str(album)],
    }
    assert main(commands[command]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "holds files that this program did not make, such as a.png" in said and said.endswith("photos_2")
    assert {path: path.read_bytes() for path in album.rglob("*") if path.is_file()} == before, "not even a lock"


def test_the_folder_of_a_stage_that_holds_others_files_is_refused(quick, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["faces", quick[0], "--aligned", "--size", "32", "--run", str(run)]) == 0
    plant(run, [Path("targets/face 0.png")])
    assert main(["adapt", *quick, "--run", str(run)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "targets: holds files that this program did not make" in said and said.endswith("run_2")
    assert (run / "targets/face 0.png").read_bytes() == STRANGE


def test_nothing_of_others_is_lost_when_a_run_is_made_again_and_deleted(quick, tmp_path):
    from bfr_core.web.actions import Page

    page = Page(tmp_path / "runs", [])
    run = page.runs / "mine"
    command = ["adapt", *quick, "--run", str(run)]
    assert main(command) == 0
    folders = {path.parent for path in run.rglob("*") if path.is_file()} - {run / "photos"}
    strangers = [Path(f.relative_to(run), name) for f in folders for name in ("holiday.png", "stage_2.json", ".x")]
    plant(run, strangers)
    write_image(tmp_path / "other" / "new.png", torch.rand(3, 32, 32))
    assert main(["adapt", str(tmp_path / "other"), *command[2:], "--seed", "3"]) == 0
    assert all((run / name).read_bytes() == STRANGE for name in strangers)
    assert sorted(page.delete("mine")) == sorted(name.as_posix() for name in strangers)
    left = {path for path in run.rglob("*") if path.is_file() and path.name != LIST}
    assert left == {run / name for name in strangers}
    assert page.names() == []


PLAIN = ["--set", "finetune.sharp=0"]  # no damage is searched for


@pytest.fixture(scope="module")
def made(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adaptation, for tests to copy."""
    run = tmp_path_factory.mktemp("made") / "run"
    assert main(["adapt", *quick, *PLAIN, "--run", str(run)]) == 0
    return run


@pytest.mark.parametrize(
    "name", ["config.json", "faces/faces.json", "gate.json", "restorer.safetensors", "report.html", "report.json"]
)
def test_a_file_of_a_run_that_was_changed_is_not_written_over(name, quick, made, tmp_path, capsys):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    strange = b"{}" if name.endswith(".json") else STRANGE
    (run / name).write_bytes(strange)
    assert main(["adapt", *quick, *PLAIN, "--run", str(run), "--seed", "3", "--min-face", "20"]) == 2
    assert f"{Path(name).name}: was not written by this program, or was changed since" in capsys.readouterr().err
    assert (run / name).read_bytes() == strange
