"""Restoring on a real Ray cluster of two nodes, processes of this machine with one core each, that lose parts of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.two_nodes import ROOT, at, kill_actor, kill_node, living_nodes
from bfr_core.cluster.pool import Pool
from bfr_core.cluster.restore import Order, restore_on_ray
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files.photos import write_image
from bfr_core.pixels import resized
from bfr_core.restoration.folder import FolderResult, restore_folder
from bfr_core.restoration.restore import RestoreConfig
from bfr_core.restorers import load_restorer

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
PHOTOS = int(os.environ.get("BFR_CLUSTER_PHOTOS", "60"))
CONFIG = RestoreConfig()


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small photos with a face each, and one that is broken."""
    folder, faces = tmp_path_factory.mktemp("album"), SharpFaces(128)
    for i in range(PHOTOS):
        face = resized(resized(faces[i % len(faces)][None], 40), 128)[0].clamp(0, 1)
        photo = face.mean((1, 2), keepdim=True).expand(3, 176, 176).clone()
        photo[:, 24:152, 10 + i % 37 : 138 + i % 37] = face
        write_image(folder / f"{i % 3}" / f"{i:05d}.jpg", photo)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def one_machine(album: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderResult, dict[str, bytes]]:
    """What one machine with one thread makes of them."""
    out, threads = tmp_path_factory.mktemp("one") / "out", torch.get_num_threads()
    torch.set_num_threads(1)
    result = restore_folder(album, out, load_restorer(), CONFIG)
    torch.set_num_threads(threads)
    return result, held(out)


def held(folder: Path) -> dict[str, bytes]:
    """What every file below a folder holds, but for the program's own hidden ones."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".bfr"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_an_actor_and_then_a_node_die_and_nothing_is_lost_nor_twice(
    cluster: Any, album: Path, one_machine: tuple[FolderResult, dict[str, bytes]], tmp_path: Path
) -> None:
    expected, pictures = one_machine
    steps: list[int] = []
    killed: list[int] = []
    moments = at({PHOTOS // 5: lambda: killed.append(kill_actor()), PHOTOS // 2: lambda: kill_node(cluster)})

    def callback(step: int, total: int, preview: Any) -> None:
        steps.append(step)
        assert total == PHOTOS + 1
        moments(step)

    result = restore_on_ray(Order(album, tmp_path / "out", "embedded", CONFIG), callback=callback)
    assert killed and living_nodes(cluster) <= 1
    assert [(f.path, f.status, f.reason) for f in result.files] == [
        (f.path, f.status, f.reason) for f in expected.files
    ]
    assert steps == list(range(1, PHOTOS + 2)), "each photo is told of once"
    assert held(tmp_path / "out") == pictures
    assert [f.likeness for f in result.files] == [f.likeness for f in expected.files]
    assert result.count("restored") > 0.8 * PHOTOS and result.count("failed") == 1 and result.network_seconds > 0

    again = restore_folder(album, tmp_path / "out", load_restorer(), CONFIG)
    assert again.count("kept") == PHOTOS, "one machine goes on where the cluster stopped"


def test_a_photo_that_ends_its_worker_is_a_row_and_the_others_are_restored(
    cluster: Any, album: Path, one_machine: tuple[FolderResult, dict[str, bytes]], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    for path in sorted(album.rglob("*.jpg"))[:10]:
        (photos / path.name).parent.mkdir(exist_ok=True)
        (photos / path.name).write_bytes(path.read_bytes())
    (photos / "deadly.jpg").write_bytes((photos / "00000.jpg").read_bytes())
    result = restore_on_ray(Order(photos, tmp_path / "out", "embedded", CONFIG))
    (failed,) = (file for file in result.files if file.status == "failed")
    assert failed.path.name == "deadly.jpg" and "worker died" in failed.reason
    assert result.count("restored") + result.count("no_face") == 10
    by_name = {Path(name).name: content for name, content in one_machine[1].items()}
    assert all(by_name[name] == content for name, content in held(tmp_path / "out").items())


def test_photos_of_a_worker_whose_disk_is_full_are_told_of_once_and_the_same_command_restores_them(
    cluster: Any, album: Path, one_machine: tuple[FolderResult, dict[str, bytes]], tmp_path: Path
) -> None:
    (tmp_path / "full disk").write_text("for one")
    expected, pictures = one_machine
    result = restore_on_ray(Order(album, tmp_path / "out", "embedded", CONFIG))
    assert [file.path for file in result.files] == [file.path for file in expected.files]
    refused = {file.path.as_posix() for file in result.files if "No space left" in file.reason}
    assert 0 < len(refused) < PHOTOS and result.count("failed") == len(refused) + 1, "one is broken"
    assert held(tmp_path / "out") == {name: content for name, content in pictures.items() if name not in refused}
    assert not list((tmp_path / "out").rglob("*.part*")), "nothing is left half written"

    (tmp_path / "full disk").unlink()
    again = restore_on_ray(Order(album, tmp_path / "out", "embedded", CONFIG))
    assert again.count("kept") == PHOTOS - len(refused) and held(tmp_path / "out") == pictures


def test_a_cluster_without_room_is_said_in_one_line(cluster: Any, album: Path, tmp_path: Path) -> None:
    for cpus, gpus in ((2, 0), (1, 1)):
        with pytest.raises(ValueError, match=f"--cpus-per-worker {cpus} and --gpus-per-worker {gpus}: no machine"):
            restore_on_ray(Order(album, tmp_path / "out", "embedded", CONFIG), Pool(cpus=cpus, gpus=gpus))


def test_a_command_that_was_killed_goes_on_and_writes_its_summary(
    album: Path, one_machine: tuple[FolderResult, dict[str, bytes]], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    from pyarrow import parquet

    table = tmp_path / "summary.parquet"
    words = [
        "restore",
        str(album),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "ray",
        "--parquet",
        str(table),
        "--json",
    ]
    command = [sys.executable, "-m", "bfr_core", *words]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(held(tmp_path / "out")) < 5:
        assert first.poll() is None
        time.sleep(0.2)
    first.kill()
    first.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]  # one photo is broken
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (
        summary["kept"] >= 5
        and summary["kept"] + summary["restored"] + summary["no_face"] == PHOTOS
        and summary["failed"] == 1
    )
    rows = parquet.read_table(table).to_pylist()
    assert [row["photo"] for row in rows] == [file["photo"] for file in summary["files"]]
    assert [row["status"] for row in rows] == [file["status"] for file in summary["files"]]
    assert held(tmp_path / "out") == one_machine[1]
