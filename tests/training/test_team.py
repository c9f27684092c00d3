"""How the passes of a step are dealt out to processes."""

from __future__ import annotations

import pytest

from bfr_core.training.team import ALONE, Team


@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 2, 1), (1, 4, 3)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_face_is_in_one_pass_whatever_the_memory_of_each_process(count: int, sizes: tuple[int, ...]) -> None:
    passes = [some for n in range(count) for some in Team(n, count).passes(10, 4, sizes[n])]
    assert sorted(place for some in passes for place in range(some.start, some.stop)) == list(range(10))


def test_alone_the_passes_are_the_micro_batches() -> None:
    assert ALONE.passes(10, 4, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert ALONE.sum_losses({"l1": 1.0}) == {"l1": 1.0} and ALONE.as_first(2.0) == 2.0
