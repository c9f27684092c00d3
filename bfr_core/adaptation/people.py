"""Whose faces a run holds: its faces grouped by person."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..faces.people import SAME_PERSON, numbered_people, refuse_too_many
from ..faces.recognise import embed_faces
from ..files.records import fingerprint, read_table, write_json
from ..restoration.same_person import LikenessMeter, at_side
from ..settings import check_settings, setting
from .faces import FaceSet, StageCallback, content_hash
from .run import Run

log = logging.getLogger(__name__)

BATCH = 8
VERSION = 1  # of how faces are compared; another one makes people that were kept be found anew


@dataclass(frozen=True)
class PeopleConfig:
    """Whether faces are grouped by person, and how near they must be."""

    find: bool = setting(
        False,
        "Whether the faces are grouped by person. A face so damaged that it may be anybody's stays alone.",
    )
    limit: float = setting(
        SAME_PERSON,
        "The mean distance of faces up to which they are one person's. Two photos of one person are about 0.35 apart, "
        "those of two people about 0.8; damage brings both nearer to each other.",
        above=0,
    )

    def __post_init__(self) -> None:
        check_settings(self, "people")


def find_people(
    run: Run, faces: FaceSet, config: PeopleConfig, callback: StageCallback | None = None
) -> dict[str, int]:
    """Face -> number of its person, from 1, those with most faces first; kept in the run, and found once.

    What is compared is what the embedded restorer makes of the faces, because under damage all are alike. callback:
    ("people", done, count, None). Raises ValueError for more faces than can be compared at once.
    """
    made_from = fingerprint(VERSION, faces.fingerprint, config.limit)
    kept = read_table(run.people, people=dict)
    if kept.get("made_from") == made_from:
        return known_people(run, faces)
    refuse_too_many(len(faces))
    meter, embeddings, says_who = LikenessMeter(), [], []
    for _, lq in faces.batches(BATCH):
        embeddings.append(embed_faces(meter.net, meter.helper.restore_each(at_side(lq))))
        says_who += meter.says_who(lq)
        if callback:
            callback("people", len(says_who), len(faces), None)
    numbers = numbered_people(torch.cat(embeddings), config.limit, says_who)
    found = dict(zip(faces.names, numbers, strict=True))
    crops = {name: content_hash(faces.crop(name)) for name in faces.names}
    write_json(run.people, {"made_from": made_from, "people": found, "crops": crops})
    return found


def find_people_if_few(run: Run, faces: FaceSet, config: PeopleConfig, callback: StageCallback | None = None) -> None:
    """`find_people` for an adaptation, which goes on without where there are too many faces to compare."""
    try:
        find_people(run, faces, config, callback)
    except ValueError as error:
        log.warning("%s; people are not told apart", error)


def known_people(run: Run, faces: FaceSet) -> dict[str, int]:
    """What `find_people` found last of these faces, less those that have changed since; empty if nothing."""
    table = read_table(run.people, people=dict, crops=dict)
    kept, crops = table.get("people", {}), table.get("crops")

    def is_same(name: str) -> bool:
        return crops is None or crops.get(name) == content_hash(faces.crop(name))

    return {name: kept[name] for name in faces.names if type(kept.get(name)) is int and is_same(name)}


def people_lines(people: Mapping[str, int], faces: FaceSet) -> list[str]:
    """Each person who has more than one face, with their faces, a line each, and how many faces stand alone."""
    by_number: dict[int, list[str]] = {}
    for name, number in people.items():
        by_number.setdefault(number, []).append(faces.label(name))
    several = {number: labels for number, labels in sorted(by_number.items()) if len(labels) > 1}
    lines = [f"person {number}: {len(labels)} faces: {', '.join(labels)}" for number, labels in several.items()]
    alone = len(by_number) - len(several)
    return [*lines, f"{alone} {'face is' if alone == 1 else 'faces are'} like no other"] if people else []
