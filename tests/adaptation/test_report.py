"""What the report says of identity: every face that lost likeness is named, and not measuring is said."""

from types import SimpleNamespace

import torch
from torch.nn import functional as F

from bfr_core.adaptation.report import identity_tables, measure_identity


def recogniser(faces):
    """Tells people apart by their mean colour."""
    return F.normalize(faces.mean((2, 3)))


def batched(names, size):
    return [names[start : start + size] for start in range(0, len(names), size)]


class Faces(SimpleNamespace):
    def __len__(self):
        return len(self.names)


def result_of(faces, base, tuned):
    names = [f"face_{i}" for i in range(len(faces))]
    return SimpleNamespace(
        faces=Faces(names=names, batches=lambda size: zip(batched(names, size), faces.split(size), strict=True)),
        base=SimpleNamespace(restore_each=base),
        restorer=SimpleNamespace(restore_each=tuned),
    )


def redder(faces):
    """Of every third face another person."""
    changed = faces.clone()
    changed[::3, 0] = 1
    return changed


def test_every_face_that_lost_likeness_is_named_worst_first():
    faces = (
        torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.linspace(0.2, 1, 20)[:, None, None, None]
    )
    likenesses = measure_identity(result_of(faces, lambda x: x, redder), recogniser)
    assert len(likenesses) == 20 and all(base == 1 for base, _ in likenesses.values())
    (table,) = identity_tables(likenesses)
    named = [row[0] for row in table.rows]
    assert set(named) == {name for name, (_, after) in likenesses.items() if after < 0.99} and named
    drops = [float(row[3]) for row in table.rows]
    assert drops == sorted(drops) and f"{len(named)} of 20 faces" in table.note


def test_faces_that_stay_themselves_are_not_named():
    faces = torch.rand(4, 3, 8, 8)
    (table,) = identity_tables(measure_identity(result_of(faces, lambda x: x, lambda x: x * 0.9), recogniser))
    assert not table.rows and "0 of 4" in table.note


def test_without_a_recogniser_nothing_is_claimed():
    assert measure_identity(result_of(torch.rand(4, 3, 8, 8), None, None), None) == {}
    assert identity_tables({}) == []
