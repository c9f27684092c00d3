"""Which of many are taken where not all can be: see `bfr_core/spread.py`."""

from bfr_core.spread import donors_of, evenly


def test_some_of_many_lie_evenly_over_all() -> None:
    assert evenly(8, 4) == [0, 2, 4, 6] and evenly(7, 3) == [0, 2, 4]
    assert evenly(3, 5) == [0, 1, 2] and evenly(0, 5) == [] and evenly(5, 0) == []


def test_donors_are_taken_in_turn_where_there_are_few() -> None:
    assert donors_of(5, 3) == [0, 1, 2, 0, 1] and donors_of(4, 8) == [0, 2, 4, 6] and donors_of(0, 3) == []
