"""A workflow from a stranger reads and writes inside ComfyUI's folders only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bfr_core.files.photos import write_image

BAD = [
    "/etc",
    "../secret",
    "a/../../b",
    "C:/Windows",
    "c:secret",
    "\\\\server\\share",
    "a\\b",
    "nul",
    "a/con.txt",
    "x\n",
    "a:b",
    "e:",
    "x" * 256,
    "\u00e9" * 128,
    "a/" * 600 + "a",
]


@pytest.fixture
def paths(pack: Any) -> Any:
    return sys.modules["any-name.nodes.paths"]


@pytest.mark.parametrize("text", BAD)
def test_paths_that_lead_out_are_refused(paths: Any, tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        paths.inside(tmp_path, text)
    assert "\n" not in str(caught.value) and caught.value.args[0].split(":")[0] and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["a:b", "c:secret", "e:"])
def test_a_colon_alone_makes_no_path_absolute(paths: Any, tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="is no name for a file on every system"):
        paths.inside(tmp_path, text)
    with pytest.raises(ValueError, match="is an absolute path"):
        paths.inside(tmp_path, "c:/secret")


def test_names_as_long_as_disks_allow_are_fine(paths: Any, tmp_path: Path) -> None:
    (paths.inside(tmp_path, "x" * 255)).mkdir()
    with pytest.raises(ValueError, match="longer than the 255 bytes"):
        paths.to_read(tmp_path, "x" * 256)


def test_links_in_a_circle_are_one_line(paths: Any, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for look in (paths.inside, paths.to_read):
        with pytest.raises(ValueError, match="cannot be followed"):
            look(tmp_path, "a/x")


def test_links_that_lead_out_are_not_written_to(paths: Any, tmp_path: Path) -> None:
    root, outside = tmp_path / "input", tmp_path / "outside"
    (root / "real").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "own").symlink_to(root / "real")
    with pytest.raises(ValueError, match="link that leads out"):
        paths.inside(root, "link")
    with pytest.raises(ValueError, match="link that leads out"):
        paths.inside(root, "link/below/it")
    assert paths.inside(root, "own") == root / "own", "a link inside the folder is fine"


def test_the_folder_itself_may_be_a_link(paths: Any, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "input").symlink_to(tmp_path / "disk")
    assert paths.inside(tmp_path / "input", "a/./b/") == tmp_path / "input/a/b"
    assert paths.inside(tmp_path / "input", "") == tmp_path / "input"


@pytest.mark.parametrize("text", BAD)
def test_nodes_refuse_them(run: Callable[..., tuple], models: tuple[Any, Any], host: Any, text: str) -> None:
    restorer, _ = models
    before = sorted(host.root.rglob("*"))
    picture = torch.rand(1, 32, 32, 3)
    for node, inputs in {
        "BFR_FacesFromFolder": {"restorer": restorer, "folder": text},
        "BFR_FacesFromImages": {"restorer": restorer, "images": picture, "run": text},
        "BFR_SaveRestorer": {"restorer": restorer, "name": text},
        "BFR_LoadPrior": {"prior": text},
        "BFR_LoadRestorer": {"restorer": text},
    }.items():
        with pytest.raises((ValueError, FileNotFoundError)):
            run(node, **inputs)
    assert sorted(host.root.rglob("*")) == before, "nothing was written"


def test_a_users_own_link_is_read_and_no_further(paths: Any, tmp_path: Path) -> None:
    root, disk, secret = tmp_path / "input", tmp_path / "disk", tmp_path / "secret"
    for folder in (root / "real", disk / "below", secret):
        folder.mkdir(parents=True)
    (root / "photos").symlink_to(disk)
    (disk / "out").symlink_to(secret)
    (disk / "back").symlink_to(root)
    (disk / "own").symlink_to(disk / "below")
    assert paths.to_read(root, "photos/below") == root / "photos/below"
    assert paths.reach(root, root / "photos/below") == disk and paths.reach(root, root / "real") == root
    assert paths.to_read(root, "photos/own") == root / "photos/own"
    for text in ("photos/out", "photos/out/below/it", "photos/back/real"):
        with pytest.raises(ValueError, match="leads out of a linked folder"):
            paths.to_read(root, text)
    with pytest.raises(ValueError, match="link that leads out"):
        paths.inside(root, "photos/below")
    assert paths.folders_inside(root, 3, 99) == ["photos", "photos/below", "photos/own", "real"]
    assert paths.folders_inside(root, 1, 99) == ["photos", "real"]
    assert paths.folders_inside(root, 3, 2) == ["photos", "photos/below"]
    assert paths.folders_inside(tmp_path / "none", 3, 99) == []


def test_a_linked_folder_of_photos_is_used_and_what_leads_out_of_it_is_named(
    run: Callable[..., tuple], models: tuple[Any, Any], nodes: dict[str, Any], host: Any, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    for path in (disk / "a.png", disk / "below/b.png", tmp_path / "secret.png", tmp_path / "others/c.png"):
        write_image(path, torch.rand(3, 32, 32))
    (disk / "innocent.png").symlink_to(tmp_path / "secret.png")
    (disk / "more").symlink_to(tmp_path / "others")
    (disk / "again.png").symlink_to(disk / "below/b.png")
    (host.root / "input/photos").symlink_to(disk)
    sockets = {socket.id: socket for socket in nodes["BFR_FacesFromFolder"].define_schema().inputs}
    assert sockets["input_folder"].options["options"] == ["as typed", "photos", "photos/below"]
    for chosen in ({"folder": "photos"}, {"folder": "none", "place": "output", "input_folder": "photos"}):
        *_, number, report, _ = run("BFR_FacesFromFolder", restorer=models[0], aligned=True, **chosen)
        assert number == 2 and report.splitlines() == [
            "2 faces", "1 file gave none:", "below/b.png: shows the same as again.png",  # which was followed
            "2 links were not followed:", "more: is a link to a folder; choose it as the folder",
            "innocent.png: is a link that leads out of the folder",
        ]  # fmt: skip
    where = {"place": "input", "folder": "photos", "run": "my_run"}
    before = nodes["BFR_FacesFromFolder"].fingerprint_inputs(**where)
    write_image(disk / "a.png", torch.zeros(3, 32, 32))
    assert nodes["BFR_FacesFromFolder"].fingerprint_inputs(**where) != before
    with pytest.raises(ValueError, match="leads out of a linked folder"):
        run("BFR_FacesFromFolder", restorer=models[0], folder="photos/more", aligned=True)
    (host.root / "output/bfr_runs/linked").symlink_to(disk)
    with pytest.raises(ValueError, match="link that leads out"):
        run("BFR_FacesFromFolder", restorer=models[0], folder="photos", run="linked", aligned=True)
    assert {path.name for path in disk.iterdir()} == {"a.png", "below", "innocent.png", "more", "again.png"}


@pytest.mark.parametrize("typed", [" photos ", '"photos"', "'photos'", '" photos"'])
def test_a_folder_may_be_pasted_with_quotes_and_spaces(pack: Any, host: Any, typed: str) -> None:
    faces = sys.modules["any-name.nodes.faces"]
    root, source = faces.chosen_folder("input", typed, faces.AS_TYPED)
    assert source == root / "photos" == host.root / "input" / "photos"
    assert faces.named_folder("input", typed, faces.AS_TYPED) == ("input", "photos"), "it makes no other run"
    with pytest.raises(ValueError, match="^/photos: is an absolute path"):
        faces.chosen_folder("input", '"/photos"', faces.AS_TYPED)


def test_a_folder_of_links_out_alone_is_refused(
    run: Callable[..., tuple], models: tuple[Any, Any], host: Any, tmp_path: Path
) -> None:
    write_image(tmp_path / "secret.png", torch.rand(3, 32, 32))
    (host.root / "input/photos").mkdir()
    (host.root / "input/photos/innocent.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"innocent.png: is a link that leads out"):
        run("BFR_FacesFromFolder", restorer=models[0], folder="photos", aligned=True)


def test_linked_weights_are_read_and_linked_folders_not_saved_to(
    run: Callable[..., tuple], host: Any, tiny_restorer: Path, tmp_path: Path
) -> None:
    models = host.root / "models/facerestore_models"
    (models / "linked.safetensors").symlink_to(tiny_restorer)
    (models / "elsewhere").symlink_to(tmp_path)
    loaded = run("BFR_LoadRestorer", restorer="linked.safetensors")[0]
    with pytest.raises(ValueError, match="link that leads out"):
        run("BFR_SaveRestorer", restorer=loaded, name="elsewhere/mine")
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_checkpoint_with_code_is_refused(run: Callable[..., tuple], host: Any, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"params": Code()}, host.root / "models/facerestore_models/bad.pth")
    with pytest.raises(ValueError, match="can run code and is refused"):
        run("BFR_LoadRestorer", restorer="bad.pth")
    assert not (tmp_path / "ran").exists()
