"""Faces are grouped by person, and one person is found."""

from __future__ import annotations

import pytest
import torch

from bfr_core.faces.align import Face, template
from bfr_core.faces.people import MAX_FACES, Person, group_people, numbered_people, person_in
from bfr_core.faces.recognise import load_recogniser


def test_faces_near_each_other_are_one_person_and_the_largest_group_comes_first() -> None:
    points = torch.tensor([[0.0, 0], [5, 5], [5.1, 5], [9, 0], [5, 5.1], [0.1, 0]])
    assert group_people(points, 0.5) == [[1, 2, 4], [0, 5], [3]]
    assert numbered_people(points, 0.5) == [2, 1, 1, 3, 1, 2]
    assert group_people(points, 100) == [[0, 1, 2, 3, 4, 5]]
    assert group_people(points, 0.5, [True, False, True, True, True, True]) == [[0, 5], [2, 4], [1], [3]]
    assert group_people(points, 9, [False] * 6) == [[0], [1], [2], [3], [4], [5]]
    assert group_people(points[:1]) == [[0]] and group_people(points[:0]) == []


def test_a_chain_of_faces_is_not_one_person() -> None:
    """Each is near the next, but the ends are far apart: the mean distance of all pairs counts."""
    chain = torch.arange(12.0)[:, None] * 0.4
    assert len(group_people(chain, 0.5)) > 3


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        group_people(torch.zeros(3, 2), 0)
    with pytest.raises(ValueError, match=f"{MAX_FACES + 1} faces are too many"):
        group_people(torch.zeros(MAX_FACES + 1, 1))


def test_the_person_in_a_photo_is_the_largest_face() -> None:
    photo, net = torch.rand(3, 200, 300, generator=torch.Generator().manual_seed(0)), load_recogniser()
    small, large = Face(template(1) * 60 + 10), Face(template(1) * 120 + [150, 40])
    alone = person_in(photo, lambda _: [large], net)
    assert torch.equal(person_in(photo, lambda _: [small, large], net, "a.jpg").embedding, alone.embedding)
    assert float(alone.distances(alone.embedding[None])[0]) == 0
    with pytest.raises(ValueError, match=r"b\.jpg: no face found"):
        person_in(photo, lambda _: [], net, "b.jpg")


def test_distances_to_a_person() -> None:
    assert Person(torch.zeros(2), "a").distances(torch.tensor([[3.0, 4], [0, 1]])).tolist() == [5, 1]
