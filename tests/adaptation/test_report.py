"""What the report says of likeness: every face and what is said of it; not measuring is said, too."""

from __future__ import annotations

import math

from bfr_core.adaptation.report import likeness_tables
from bfr_core.adaptation.same_person import FolderLikeness, likeness_vetoes
from bfr_core.faces.likeness import CANNOT_TELL, OTHER, SAME
from bfr_core.restoration.same_person import FaceLikeness


def said(distance: float) -> FaceLikeness:
    if math.isnan(distance):
        return FaceLikeness(CANNOT_TELL)
    return FaceLikeness(SAME if distance <= 0.45 else OTHER, distance, 0.45, 0.45, 0.02, 0.05)


def likeness_of(*pairs: tuple[float, float], of: int = 0) -> FolderLikeness:
    names = [f"face_{i}" for i in range(len(pairs))]
    base, adapted = ({n: said(pair[k]) for n, pair in zip(names, pairs, strict=True)} for k in (0, 1))
    return FolderLikeness(base, adapted, of or len(pairs))


def test_those_who_became_others_come_first_and_then_those_who_lost_most() -> None:
    found = likeness_of((0.3, 0.31), (0.3, 0.7), (0.2, 0.4), (math.nan, math.nan))
    (table,) = likeness_tables(found, str.upper)
    assert [row[0] for row in table.rows] == ["FACE_1", "FACE_2", "FACE_0", "FACE_3"]
    assert table.rows[0][1:] == (SAME, OTHER, "0.30", "0.70", "+0.40")
    assert table.rows[3][1:] == (CANNOT_TELL, CANNOT_TELL, "", "", "")
    assert "2.0% of good restorations" in table.note and "5.0% of other people" in table.note
    assert "of 3 faces: 0.27 by the base, 0.47 by the adapted restorer" in found.said
    assert found.record()["unlike"] == ["face_1"] and found.record()["adapted"][OTHER] == 1
    assert "Measured on 4 of 90 faces" in likeness_of(*[(0.3, 0.3)] * 4, of=90).said


def test_one_face_tells_no_interval() -> None:
    found = likeness_of((0.3, 0.35), (math.nan, math.nan))
    assert "of 1 face: 0.30 by the base, 0.35 by the adapted restorer (+0.050)." in found.said


def test_where_nothing_can_be_told_that_is_all_that_is_said() -> None:
    found = likeness_of((math.nan, math.nan), (math.nan, 0.3))
    assert "Distance" not in found.said and "1 face: cannot tell" in found.said and not found.told
    assert likeness_tables(FolderLikeness()) == [] and FolderLikeness().said == ""


def test_more_faces_lost_than_false_warnings_explain_are_a_veto() -> None:
    def vetoes(faces: int, lost: int, by_base: int = 0) -> list[str]:
        base = [said(0.7)] * by_base + [said(0.3)] * (faces - by_base)
        return likeness_vetoes(base, [said(0.7)] * lost + [said(0.3)] * (faces - lost))

    assert not vetoes(8, 0) and not vetoes(8, 1) and not vetoes(64, 3)
    assert vetoes(8, 2) == ["the faces it restores: 2 of 8 no longer look like the same person"]
    assert vetoes(64, 5) and not vetoes(64, 5, by_base=5)
    assert likeness_vetoes([said(0.3)] * 3, [said(math.nan)] * 3) == [] == likeness_vetoes([], [])
