"""A workflow from a stranger reads and writes inside ComfyUI's folders only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bfr_core.images import write_image

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
]


@pytest.fixture
def paths(pack: Any) -> Any:
    return sys.modules["any-name.nodes.paths"]


@pytest.mark.parametrize("text", BAD)
def test_paths_that_lead_out_are_refused(paths: Any, tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        paths.inside(tmp_path, text)
    assert "\n" not in str(caught.value) and caught.value.args[0].split(":")[0]


def test_links_that_lead_out_are_refused(paths: Any, tmp_path: Path) -> None:
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


def test_a_photo_that_is_a_link_out_is_refused(
    run: Callable[..., tuple], models: tuple[Any, Any], host: Any, tmp_path: Path
) -> None:
    write_image(tmp_path / "secret.png", torch.rand(3, 32, 32))
    (host.root / "input/photos").mkdir()
    (host.root / "input/photos/innocent.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"innocent.png: is a link that leads out"):
        run("BFR_FacesFromFolder", restorer=models[0], folder="photos", aligned=True)


def test_a_checkpoint_with_code_is_refused(run: Callable[..., tuple], host: Any, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"params": Code()}, host.root / "models/facerestore_models/bad.pth")
    with pytest.raises(ValueError, match="can run code and is refused"):
        run("BFR_LoadRestorer", restorer="bad.pth")
    assert not (tmp_path / "ran").exists()
