"""A run's faces are grouped by person once, and what was found is said."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bfr_core.adaptation import people as module
from bfr_core.adaptation.config import FaceConfig
from bfr_core.adaptation.faces import collect_faces, leave_out
from bfr_core.adaptation.people import PeopleConfig, find_people, find_people_if_few, known_people, people_lines
from bfr_core.adaptation.report import lines_of_people
from bfr_core.adaptation.run import Run
from bfr_core.cli.commands import main
from bfr_core.files.photos import write_image

BRIGHTNESS = {"a": 0.2, "b": 0.8, "c": 0.81, "d": 0.5, "e": 0.82}


class Meter:
    """In place of `LikenessMeter`: a person is a brightness, and the one of medium brightness may be anybody."""

    class helper:
        restore_each = staticmethod(lambda lq: lq)

    net = None
    looked = 0

    def says_who(self, lq: torch.Tensor) -> list[bool]:
        Meter.looked += len(lq)
        return [not 0.4 < float(face.mean()) < 0.6 for face in lq]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in BRIGHTNESS.items():
        write_image(tmp_path / "photos" / f"{name}.png", torch.full((3, 64, 64), value))
    monkeypatch.setattr(module, "LikenessMeter", Meter)
    monkeypatch.setattr(module, "embed_faces", lambda net, faces: faces.mean((1, 2, 3))[:, None])
    Meter.looked = 0
    return tmp_path / "photos"


def test_people_are_found_once_and_anew_when_faces_change(photos: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    faces = collect_faces(photos, run, 64, FaceConfig(aligned=True))
    assert known_people(run, faces) == {}
    seen: list[tuple[str, int, int]] = []
    found = find_people(run, faces, PeopleConfig(limit=0.1), lambda *step: seen.append(step[:3]))
    assert found == {"a": 2, "b": 1, "c": 1, "d": 3, "e": 1} and seen[-1] == ("people", 5, 5)
    assert find_people(run, faces, PeopleConfig(limit=0.1)) == found and Meter.looked == 5
    lines = people_lines(found, faces)
    assert lines == ["person 1: 3 faces: b.png, c.png, e.png", "2 faces are like no other"]
    assert find_people(run, faces, PeopleConfig(limit=5))["a"] == 1 and Meter.looked == 10
    leave_out(run, ["b"])
    fewer = collect_faces(photos, run, 64, FaceConfig(aligned=True))
    assert set(find_people(run, fewer, PeopleConfig(limit=5))) == {"a", "c", "d", "e"}
    assert people_lines({}, faces) == []
    write_image(photos / "c.png", torch.full((3, 64, 64), 0.9))  # somebody else's, under the same name
    changed = collect_faces(photos, run, 64, FaceConfig(aligned=True))
    assert set(known_people(run, changed)) == {"a", "d", "e"}


def test_the_report_counts_faces_that_were_taken_as_good_examples(photos: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    faces = collect_faces(photos, run, 64, FaceConfig(aligned=True))
    find_people(run, faces, PeopleConfig(limit=0.1))
    without = replace(faces, names=[name for name in faces.names if name not in ("b", "c")])
    result: Any = SimpleNamespace(run=run, faces=without)
    assert lines_of_people(result) == ["person 1: 3 faces: b.png, c.png, e.png", "2 faces are like no other"]
    run.people.unlink()
    assert lines_of_people(result) == []


def test_the_command_says_who_is_where(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["faces", str(photos), "--run", str(tmp_path / "run"), "--aligned", "--people", "--json"]
    assert main([*command, "--set", "people.limit=0.1", "--size", "64"]) == 0
    said = capsys.readouterr()
    assert "person 1: 3 faces: b.png, c.png, e.png" in said.err and '"people": {"a": 2, "b": 1' in said.out
    shutil.rmtree(tmp_path / "run")
    assert main([*command[:-2], "--json", "--size", "64"]) == 0
    assert "people" not in capsys.readouterr().out


def test_too_many_faces_are_refused_before_they_are_looked_at_and_an_adaptation_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bfr_core.faces.people.MAX_FACES", 4)
    run = Run(tmp_path / "run")
    faces = collect_faces(photos, run, 64, FaceConfig(aligned=True))
    with pytest.raises(ValueError, match="5 faces are too many to group by person; 4 can be grouped at most"):
        find_people(run, faces, PeopleConfig())
    find_people_if_few(run, faces, PeopleConfig())
    assert Meter.looked == 0 and "at most; people are not told apart" in caplog.text


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"people\.limit is 0"):
        PeopleConfig(limit=0)
