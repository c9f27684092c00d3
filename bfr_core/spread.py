"""Which of many are taken where not all can be: evenly over all, without chance.

Folders are often sorted by year or by kind, so that the first of their faces are not like the others.
"""

from __future__ import annotations


def evenly(total: int, at_most: int) -> list[int]:
    """Places in [0, total), in order and evenly apart: `at_most` of them, or all if there are no more."""
    some = min(at_most, total)
    return [i * total // some for i in range(some)]


def donors_of(faces: int, donors: int) -> list[int]:
    """The donor of each of so many faces: evenly spread where there are more donors than faces, else in turn."""
    return evenly(donors, faces) if donors > faces else [i % donors for i in range(faces)]
