"""Parts of a piece of work, and their locks."""

from __future__ import annotations

from pathlib import Path

import pytest

from bfr_core.adaptation.run import Run
from bfr_core.files.ownership import is_own
from bfr_core.files.shards import WHOLE, Shard, locked_shard, shards_at_work


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_every_thing_is_in_one_shard_and_batches_stay_whole(count: int, batch: int) -> None:
    things = list(range(29))
    parts = [Shard(number, count).of(things, batch) for number in range(1, count + 1)]
    assert sorted(thing for part in parts for thing in part) == things
    batches = [things[start : start + batch] for start in range(0, len(things), batch)]
    for part in parts:
        assert all(part[start : start + batch] in batches for start in range(0, len(part), batch))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= batch


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "-1/4", "a/b", "1/0", "1/2/3"])
def test_a_wrong_shard_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="must be I/N"):
        Shard.read(text)
    assert Shard.read("2/4") == Shard(2, 4) and Shard.read("1/1") == WHOLE


def test_a_shard_is_held_once_and_the_others_beside_it(tmp_path: Path) -> None:
    first, second = Shard(1, 2), Shard(2, 2)
    with locked_shard(tmp_path, first), locked_shard(tmp_path, second):
        assert shards_at_work(tmp_path) == ["1-of-2", "2-of-2"]
        with pytest.raises(ValueError, match="shard 1/2 is in use"), locked_shard(tmp_path, first):
            pass
    assert shards_at_work(tmp_path) == []


def test_shards_of_a_run_and_the_whole_run_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bfr_core.adaptation.run.SHARDS_BEGIN", 0.1)
    run = Run(tmp_path / "run")
    with (
        run.locked_shard(Shard(1, 2)),
        run.locked_shard(Shard(2, 2)),
        pytest.raises(ValueError, match="in use by shard 1/2"),
        run.locked(),
    ):
        pass
    with run.locked(), pytest.raises(ValueError, match="in use by another process"), run.locked_shard(Shard(1, 2)):
        pass
    with run.locked():
        locks = list(run.folder.glob(".bfr-shard-*"))
        assert all(map(is_own, locks)), "it can be deleted with the run"
