"""What is wrong with an order is said before any worker is started. No cluster is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bfr_core.cluster import restore
from bfr_core.cluster.restore import Order, restore_on_ray
from bfr_core.files.photos import write_image
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
