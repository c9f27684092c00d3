"""Faces and pseudo targets of a run by shards on a real Ray cluster that loses parts of it, against one process."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.two_nodes import at, kill_actor, kill_node, living_nodes
from bfr_core.adaptation.config import AdaptConfig
from bfr_core.adaptation.faces import collect_faces
from bfr_core.adaptation.run import Run
from bfr_core.adaptation.target_stage import make_targets
from bfr_core.adaptation.targets import TargetConfig
from bfr_core.cli import main
from bfr_core.cluster.stages import StageOrder, collect_on_ray, draw_on_ray
from bfr_core.diffusion.prior import load_prior
from bfr_core.files.photos import read_image, write_image
from bfr_core.restorers import load_restorer
from bfr_core.settings import changed

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
FACES = 44


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Aligned 32 x 32 pictures, and a file that is none."""
    folder, generator = tmp_path_factory.mktemp("album"), torch.Generator().manual_seed(0)
    for i in range(FACES):
        smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=generator), (32, 32), mode="bilinear")
        write_image(folder / f"{i % 3}" / f"{i:03d}.png", smooth[0])
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def order(album: Path, tiny_restorer: Path, tiny_prior: Path, tmp_path: Path) -> StageOrder:
    """Batches of three faces, and a setting that is left to the faces."""
    config = AdaptConfig(restorer=str(tiny_restorer), prior=str(tiny_prior), targets=TargetConfig(t_clean="auto"))
    config = changed(config, {"faces.aligned": True, "targets.batch_size": 3, "targets.sampler.calls": 2})
    return StageOrder(tmp_path / "run", config, str(tiny_restorer), "cpu", photos=album, size=32)


def held_by(folder: Path) -> dict[str, bytes]:
    """What all pictures of a run hold, by relative path; the scratch files of processes that were killed are none."""
    pictures = (path for path in folder.rglob("*.png") if not path.name.startswith(".bfr"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in pictures}


def test_faces_and_targets_are_those_of_one_process_when_an_actor_and_then_a_node_die(
    cluster: Any, order: StageOrder, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config, restorer, prior = order.config, load_restorer(order.restorer), load_prior(order.config.prior)
    alone, run = Run(tmp_path / "alone"), Run(order.run)
    expected = collect_faces(order.photos, alone, 32, config.faces)
    _, made_from = make_targets(alone, expected, restorer, prior, config)

    killed: list[int] = []
    told: dict[str, list[int]] = {"faces": [], "targets": []}
    moments = {
        "faces": at({FACES // 5: lambda: killed.append(kill_actor())}),
        "targets": at({FACES // 5: lambda: killed.append(kill_actor()), FACES // 2: lambda: kill_node(cluster)}),
    }

    def callback(stage: str, step: int, total: int, detail: Any) -> None:
        if stage in moments:
            assert total == (FACES + 1 if stage == "faces" else FACES)
            told[stage].append(step)
            moments[stage](step)

    collect_on_ray(order, callback=callback)
    with run.locked():
        faces = collect_faces(order.photos, run, 32, config.faces)
    assert (faces.names, faces.fingerprint, faces.problems) == (expected.names, expected.fingerprint, expected.problems)
    draw_on_ray(order, restorer, prior, callback=callback)
    assert len(killed) == 2 and living_nodes(cluster) <= 1
    for stage, steps in told.items():
        assert steps == sorted(set(steps)) and len(steps) > 4, f"each shard of {stage} is told of once"
    assert (told["faces"][-1], told["targets"][-1]) == (FACES + 1, FACES)

    before = {path: path.stat().st_mtime_ns for path in run.targets.glob("[!.]*.png")}
    with run.locked():
        _, gathered = make_targets(run, faces, restorer, prior, config)
    assert before == {path: path.stat().st_mtime_ns for path in before}, "nothing was left to draw"
    assert gathered == made_from and held_by(run.folder) == held_by(alone.folder)
    assert len(held_by(run.targets)) == FACES and not list(run.targets.glob("stage-*"))
    torch.set_num_threads(threads)


def test_the_commands_do_the_whole_of_both_stages(cluster: Any, order: StageOrder, tmp_path: Path) -> None:
    on_run = ["--restorer", order.restorer, "--run", str(order.run)]
    drawn = ["--prior", order.config.prior, "--calls", "2", "--set", "targets.batch_size=3", *on_run]
    assert main(["faces", str(order.photos), "--aligned", *on_run, "--workers", "ray"]) == 1, "one file is broken"
    assert main(["targets", *drawn, "--workers", "ray"]) == 0
    assert len(held_by(order.run / "targets")) == FACES
    assert main(["targets", *drawn, "--workers", "ray", "--shard", "1/2"]) == 2
    assert main(["targets", *drawn, "--workers", "slurm"]) == 2


def test_a_run_that_another_process_holds_is_named_before_anything_is_started(cluster: Any, order: StageOrder) -> None:
    with Run(order.run).locked(), pytest.raises(ValueError, match="in use by another process"):
        collect_on_ray(order)


def test_shards_of_a_worker_whose_disk_is_full_are_done_by_others_and_if_there_are_none_the_command_says_so(
    cluster: Any, order: StageOrder, tmp_path: Path
) -> None:
    full, run = tmp_path / "full disk", Run(order.run)
    full.write_text("everywhere")
    with pytest.raises(OSError, match="shards were not finished, the first of them 1/.*No space left") as raised:
        collect_on_ray(order)
    assert raised.value.errno == errno.ENOSPC and not held_by(order.run)

    full.write_text("for one")
    collect_on_ray(order)
    assert (tmp_path / "full for").exists()
    faces = collect_faces(order.photos, run, 32, order.config.faces)
    assert len(faces) == FACES and len(held_by(order.run)) == FACES
    assert all(read_image(faces.crop(name)).shape == (3, 32, 32) for name in faces.names)
