"""What is wrong with an order is said before any worker is started. No cluster is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bfr_core.adaptation.config import AdaptConfig
from bfr_core.cluster import restore
from bfr_core.cluster.pool import Pool
from bfr_core.cluster.processes import with_the_others
from bfr_core.cluster.restore import Order, cut, restore_on_ray
from bfr_core.cluster.stages import StageOrder
from bfr_core.files.photos import write_image
from bfr_core.restoration.folder import Job
from bfr_core.restoration.record import RestorationRecord
from bfr_core.restoration.restore import RestoreConfig


def test_a_person_without_a_face_ends_the_command_and_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(pool: object) -> None:
        raise AssertionError("a worker would be started")

    monkeypatch.setattr(restore, "connected", started)
    write_image(tmp_path / "photos" / "a.png", torch.full((3, 64, 64), 0.5))
    write_image(tmp_path / "wall.png", torch.full((3, 96, 96), 0.5))
    order = Order(tmp_path / "photos", tmp_path / "out", "embedded128", RestoreConfig())
    for of_people in ({"person": tmp_path / "wall.png"}, {"references": (tmp_path / "wall.png",)}):
        with pytest.raises(ValueError, match="wall.png: no face"):
            restore_on_ray(replace(order, **of_people))
    assert not (tmp_path / "out").exists()
    with pytest.raises(AssertionError, match="would be started"):
        restore_on_ray(order)


def test_in_the_last_attempt_each_photo_has_a_task_of_its_own(tmp_path: Path) -> None:
    """Of photos that are restored together, one that ends its worker would take the others along."""
    order = Order(tmp_path, tmp_path / "out", "embedded128", RestoreConfig(), aligned=True)
    jobs = [Job(tmp_path / f"{i}.png", Path(f"{i}.png"), tmp_path / "out" / f"{i}.png") for i in range(6)]
    known = RestorationRecord(tmp_path / "out")
    assert order.together > 1 and [len(json.loads(task)) for task in cut(jobs, known, order, 1)] == [6]
    assert [len(json.loads(task)) for task in cut(jobs, known, order, 0)] == [1] * 6


def test_ones_own_memory_is_not_called_the_end_of_another_process() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError), with_the_others():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ValueError, match="another process of this tuning has ended"), with_the_others():
        raise RuntimeError("Connection closed by peer")


def test_names_of_its_own_are_not_taken_for_folders_that_are_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("off", "adapted", "embedded", "mine.safetensors"):
        Path(name).mkdir()
    for background in ("off", "adapted"):
        order = Order(Path("photos"), Path("adapted"), "embedded", RestoreConfig(background=background)).absolute()
        assert (order.restorer, order.config.background) == ("embedded", background)
    order = Order(Path("photos"), Path("out"), "mine.safetensors", RestoreConfig(background="mine.safetensors"))
    file = str(tmp_path / "mine.safetensors")
    assert (order.absolute().restorer, order.absolute().config.background, order.absolute().out.parent) == (
        file, file, tmp_path,
    )  # fmt: skip
    config = AdaptConfig(prior="embedded")
    assert StageOrder(tmp_path, config).absolute().config.prior == "embedded"


@pytest.mark.parametrize("wanted", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["cpus", "gpus"])
def test_workers_have_whole_or_parts_of_cores_and_cards(kind: str, wanted: float) -> None:
    with pytest.raises(
        ValueError, match=f"^--{kind}-per-worker is {wanted:g}; it must be a number that is not below 0$"
    ):
        Pool.read("ray", **{kind: wanted})
