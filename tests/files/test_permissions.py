"""What its user may not read, as on a mounted disk or in a folder of others, costs nothing but itself."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bfr_core.adaptation.run import Run
from bfr_core.cli.commands import main
from bfr_core.files.photos import look_through, read_photo, write_image
from bfr_core.files.records import write_json
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.record import key_of
from bfr_core.restorers import load_restorer
from bfr_core.web import runs as runs_module
from bfr_core.web.actions import Page
from bfr_core.web.runs import priors
from tests.unreadable import as_a_user, needs_permissions

pytestmark = needs_permissions


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[ExitStack]:
    """`locked.callback(path.chmod, mode)` gives back what a test takes away."""
    with ExitStack() as stack, as_a_user():
        yield stack


def lock(path: Path, stack: ExitStack) -> None:
    stack.callback(path.chmod, path.stat().st_mode)
    path.chmod(0)


@pytest.fixture
def album(tmp_path: Path, locked: ExitStack) -> Path:
    """Two photos, one more whose file is a link into a locked folder, and a locked folder below."""
    folder, secret = tmp_path / "album", tmp_path / "secret"
    for place in (folder / "a.png", folder / "lost+found/c.png", secret / "b.png", folder / "d.png"):
        write_image(place, torch.rand(3, 32, 32))
    (folder / "b.png").symlink_to(secret / "b.png")
    lock(folder / "lost+found", locked)
    lock(secret, locked)
    return folder


def test_a_folder_that_may_not_be_looked_into_spares_the_others(album: Path) -> None:
    found, left_out = look_through(album)
    assert [path.name for path in found] == ["a.png", "b.png", "d.png"]
    assert left_out[Path("lost+found")] == "is a folder that cannot be listed (Permission denied)"


def test_a_photo_that_may_not_be_read_is_named(album: Path) -> None:
    with pytest.raises(ValueError, match=r"^b.png: cannot be read \(Permission denied\)$"):
        read_photo(album / "b.png")
    assert key_of(album / "b.png", "any") == ""


def test_the_photos_of_a_folder_are_restored_but_for_those(album: Path, tiny_restorer: Path, tmp_path: Path) -> None:
    result = restore_folder(album, tmp_path / "out", load_restorer(tiny_restorer), aligned=True)
    said = {file.path.as_posix(): file.status for file in result.files}
    assert said == {"a.png": "restored", "b.png": "failed", "d.png": "restored", "lost+found": "failed"}


def test_a_folder_among_the_runs_hides_none_of_them(tmp_path: Path, locked: ExitStack) -> None:
    page = Page(tmp_path / "runs", device="cpu")
    write_json(Run(page.runs / "mine").folder / "request.json", {})
    (page.runs / "of others").mkdir()
    lock(page.runs / "of others", locked)
    assert page.names() == ["mine"]


def test_a_checkpoint_hides_no_prior(
    tmp_path: Path, locked: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "secret.safetensors")
    lock(tmp_path / "secret.safetensors", locked)
    monkeypatch.setattr(runs_module, "search_folders", lambda: [tmp_path])
    for _ in range(2):  # a page asks each time it is looked at
        assert priors()["embedded"] == "embedded"
    assert caplog.text.count("secret.safetensors: cannot be read") == 1


def test_such_a_folder_of_weights_is_passed_over(
    tmp_path: Path, locked: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bfr_core.files import weights

    there = tmp_path / "here"
    for folder in (tmp_path / "secret", there):
        folder.mkdir()
        shutil.copy(__file__, folder / "codeformer.pth")
    lock(tmp_path / "secret", locked)
    monkeypatch.setattr(weights, "search_folders", lambda: [tmp_path / "secret", there])
    assert weights.locate("codeformer") == there / "codeformer.pth"


def commands(photos: Path, tmp_path: Path, tiny_restorer: Path) -> dict[str, list[str]]:
    """Each command that makes something of a folder of photos, by the name of what it writes to."""
    return {
        "restore": ["restore", str(photos), "--restorer", str(tiny_restorer), "--aligned", "--out"],
        "tone": ["tone", str(photos), "--out"],
        "degrade": ["degrade", str(photos), "--kind", "blind", "--out"],
        "faces": ["faces", str(photos), "--restorer", str(tiny_restorer), "--aligned", "--run"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["restore", "tone", "degrade", "faces"])
def test_every_command_names_the_folder(
    name: str, album: Path, tiny_restorer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*commands(album, tmp_path, tiny_restorer)[name], str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("lost+found: is a folder that cannot be listed (Permission denied)") == 1
    assert said.count("b.png: cannot be read (Permission denied)") == 1


@pytest.mark.parametrize("name", ["restore", "tone", "degrade"])
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_of_results_that_may_not_be_written_to_fails_its_photos_only(
    name: str, mode: int, tiny_restorer: Path, tmp_path: Path, locked: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for place in ("a.png", "sub/b.png"):
        write_image(tmp_path / "photos" / place, torch.rand(3, 32, 32))
    (out / "sub").mkdir(parents=True)
    locked.callback((out / "sub").chmod, 0o755)
    (out / "sub").chmod(mode)
    assert main([*commands(tmp_path / "photos", tmp_path, tiny_restorer)[name], str(out)]) == 1
    assert (out / "a.png").is_file() and "1 failed" in capsys.readouterr().err
