"""How well does the embedded recogniser tell people apart, group by group, and is a restored face still the person?

    python benchmarks/likeness.py --shared DIR

DIR holds portraits/, second_photos/, faces_t2i/ and diverse/, each with its landmarks.json. The restorer has seen no
held-out portrait and no face of diverse/; nothing is tuned. Written to results/likeness.json; without --shared the
tables of what is there are printed. Parts:

- recogniser: a face against its damaged copy and against a second photograph. Strangers are of the same group.
- comparison: what distance says best whether a restored face is the person? The damaged face against the restored one,
  against the restored one damaged again (four other samples of the same kind of damage), and the clean face against it.
- verdict: limits from every second person, words for the others, also where what was put before it is a stranger, or
  the mean of a person and a stranger.
- acted: what the program itself says, by the limits that ship and with the damage that it measures: of the base's
  faces, an adapted restorer's and the clean faces, and of the first two with another person's eyes, nose and mouth. The
  portraits that are not adapted to, and the faces of diverse/ but every fourth: by those the limits were looked at.
- people: which of two photographs of a person, both damaged, are put together by `bfr faces --people`, and who is found
  by `bfr restore --person`. The limits of both were chosen on 38 others, every ninth from the first.
- groups: how far damaged faces, the base's and an adapted restorer's are from the truth, group by group, and how many
  fail a floor. The adapted ones, to every other held-out portrait, are those that adaptation.py keeps by --restorers.
  The other portraits, diverse/ and every tenth face of faces_t2i/ are measured.
- references: the held-out portraits of which there is a second photograph, damaged and restored with and without that
  photograph as reference, and with a stranger's; how far each is from the clean portrait. The settings were chosen on
  40 people who are not held out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from people import pooled, recorded_sex, stated_searches, thirds, typology_angle

from bfr_core.faces.align import Face, crop_face, similarity, template
from bfr_core.faces.likeness import (
    CANNOT_TELL,
    MAY_BE,
    OTHER,
    SAME,
    LikenessConfig,
    calibrate,
    distances_to_strangers,
    embedding_under,
    judge,
    likeness_distance,
    true_accepts,
)
from bfr_core.faces.people import Person, numbered_people
from bfr_core.faces.recognise import RecogniserNet, chip_of, embed, embed_faces, load_recogniser
from bfr_core.files.photos import read_image, replace_atomically
from bfr_core.metrics.intervals import bootstrap_difference, wilson_interval
from bfr_core.metrics.psnr import psnr
from bfr_core.restoration.reference import LIMIT, Lender, Reference
from bfr_core.restoration.same_person import LikenessMeter, at_side
from bfr_core.restorers import Restorer, load_restorer
from bfr_core.studies.benchmark import damaged, restored_by

DAMAGES = ("camera_x4_iso1500", "camera_x8_iso1500", "sensor", "film_grain", "halftone", "motion_jpeg")
SIZE = 256  # pixels of a face, as the embedded restorer takes it
ORDER = ("second_photos", "portraits, held out", "diverse", "faces_t2i")
RESTORED = ORDER[1:3]  # the restorer that ships has seen none of these
PLAIN, LIKE, TRUE = "damaged and restored", "damaged and damaged again", "clean and restored"
WORDS = (SAME, MAY_BE, OTHER, CANNOT_TELL)
PUT = ("doing nothing", "restored", "the clean face", "half a stranger", "a stranger")
KNOWN, ASKED = slice(0, None, 2), slice(1, None, 2)  # faces that limits are made from, faces that words are counted on
EVERYONE = "everyone"
CLOSE_PAIRS = 0.5  # the README of second_photos leaves out seven of its pairs for a strict test: their distance is more
FALSE_ACCEPTS = 0.01
PEOPLE_EVERY, PEOPLE_FIRST = 9, 4  # of so many people with two photographs one is taken; by others limits were chosen
LOOKED_AT = 4  # of so many faces of diverse/ the first was there when the limits of likeness were made
PEOPLE_LIMITS = (0.45, 0.5, 0.55, 0.6)
DRAWN_EVERY, MIN_GROUP = 10, 8  # faces of faces_t2i/ that are in no training; smaller groups of them are put together
INFINITE = 9.0  # a distance that no two faces have
FLOOR = 0.6  # distance beyond which two faces are no longer taken for one person's
STATES = ("damaged", "base", "adapted")
ALL = "all"
QUANTILES = (0.05, 0.5, 0.95)
RESULTS = Path(__file__).parent / "results" / "likeness.json"
ADAPTED = Path(".training/adaptation")
HELD_OUT = Path(__file__).parents[1] / "bfr_core" / "embedded" / "held_out.txt"
Record = dict[str, Any]


class People(NamedTuple):
    """Faces of different people. faces: (N, 3, 128, 128) standard crops; clean: (N, 128) embeddings of the photos."""

    names: list[str]
    faces: Tensor
    clean: Tensor
    groups: dict[str, str]

    def members(self) -> dict[str, list[int]]:
        """Group -> places of its faces, everyone first."""
        found = {EVERYONE: list(range(len(self.names)))}
        for group in sorted(set(self.groups.values())):
            found[group] = [i for i, name in enumerate(self.names) if self.groups.get(name) == group]
        return {group: places for group, places in found.items() if len(places) > 1}


# ---------------------------------------------------------------- data


def read_people(
    folder: Path, names: list[str], net: RecogniserNet, size: int = SIZE
) -> tuple[People, dict[str, Record]]:
    """The named faces of a folder, `size` pixels wide and in no groups yet, and the folder's landmarks.json."""
    records = json.loads((folder / "landmarks.json").read_text(encoding="utf-8"))
    faces, clean = [], []
    for name in names or sorted(records):
        photo, points = read_image(folder / name), np.array(records[name]["landmarks"])
        faces.append(crop_face(photo, Face(points), size).clamp(0, 1))
        clean.append(embed(net, chip_of(photo, points)[None]))
    return People(names or sorted(records), torch.stack(faces), torch.cat(clean), {}), records


def skin_tones(people: People, records: dict[str, Record]) -> dict[str, str]:
    """Face -> third of the typology angle; black and white photographs have none."""
    angles = {}
    for name, face in zip(people.names, people.faces, strict=True):
        if not records[name]["grey"]:
            points = np.array(records[name]["landmarks"])
            matrix = similarity(points, template(face.shape[-1]))
            angles[name] = typology_angle(face, points @ matrix[:, :2].T + matrix[:, 2])
    return thirds(angles)


def read_real(shared: Path, net: RecogniserNet, size: int = SIZE) -> dict[str, People]:
    """The two sets of `RESTORED`, in groups."""
    portraits, _ = read_people(shared / "portraits", HELD_OUT.read_text(encoding="utf-8").split(), net, size)
    diverse, records = read_people(shared / "diverse", [], net, size)
    tones = skin_tones(diverse, records)
    return dict(zip(RESTORED, (portraits._replace(groups=recorded_sex()), diverse._replace(groups=tones)), strict=True))


def read_drawn(shared: Path, net: RecogniserNet) -> dict[str, People]:
    """The people who do not exist, by the search that their sheet states."""
    drawn, records = read_people(shared / "faces_t2i", [], net)
    searches = stated_searches({name: records[name]["sheet"] for name in drawn.names})
    return {"faces_t2i": drawn._replace(groups=searches)}


# ---------------------------------------------------------------- the recogniser by itself


def pair_records(what: str, kind: str, people: People, first: Tensor, second: Tensor) -> list[Record]:
    """A record a group: genuine pairs are face i of both, strangers face i and another face j of the same group."""
    common = true_accepts(likeness_distance(first, second), distances_to_strangers(first, second), FALSE_ACCEPTS).limit
    found = []
    for group, places in people.members().items():
        genuine = likeness_distance(first[places], second[places])
        strangers = distances_to_strangers(first[places], second[places]).flatten()
        accepts = true_accepts(genuine, strangers, FALSE_ACCEPTS)
        found.append(
            {
                "set": what,
                "damage": kind,
                "group": group,
                "faces": len(places),
                "genuine": rounded(np.quantile(genuine.numpy(), QUANTILES)),
                "strangers": rounded(np.quantile(strangers.numpy(), (0.01, 0.5))),
                "limit": round(accepts.limit, 4),
                "true_accepts": rounded(accepts.share),
                "common_limit": round(common, 4),
                "true_at_common": rounded(wilson_interval(int((genuine < common).sum()), len(genuine))),
                "false_at_common": round(float((strangers < common).double().mean()), 5),
            }
        )
    return found


def second_photographs(shared: Path, net: RecogniserNet) -> list[Record]:
    """Two photographs of one person, against those of others; by recorded sex."""
    folder = shared / "second_photos"
    records = json.loads((folder / "landmarks.json").read_text(encoding="utf-8"))
    names = sorted(name for name, record in records.items() if record["distance"] < CLOSE_PAIRS)
    second, _ = read_people(folder, names, net)
    first, _ = read_people(shared / "portraits", names, net)
    people = first._replace(groups=recorded_sex())
    return pair_records("second_photos", "another photograph", people, first.clean, second.clean)


# ---------------------------------------------------------------- a restored face


class Compared(NamedTuple):
    """Distances of N faces by one way to compare.

    genuine: (N,) to their restored faces. strangers: (N, N - 1) to the restored faces of the others. known: (M, M - 1)
    the same among those at `KNOWN`. to: one of `PUT`, in the place of the restored face -> (N // 2,), of the faces at
    `ASKED` alone.
    """

    genuine: Tensor
    strangers: Tensor
    known: Tensor
    to: dict[str, Tensor]


def compare(people: People, kind: str, lq: Tensor, restored: Tensor, net: RecogniserNet) -> dict[str, Compared]:
    """Way to compare -> the distances by it."""

    def plain(faces: Tensor) -> Tensor:
        return embed_faces(net, faces)

    def again(faces: Tensor) -> Tensor:
        seeds = count(1)  # a draw each
        return embedding_under(lambda some: damaged(some, kind, next(seeds), "again"), faces, plain)

    half = (restored + restored.roll(-1, 0)) / 2
    photo, clean = plain(lq), plain(people.faces)
    seen = {"restored": plain(restored), "doing nothing": photo[ASKED], "the clean face": clean[ASKED]}
    seen["half a stranger"] = plain(half[ASKED])
    seen_again = {"restored": again(restored), "doing nothing": again(lq[ASKED])}
    seen_again |= {"the clean face": again(people.faces[ASKED]), "half a stranger": again(half[ASKED])}
    return {PLAIN: distances_of(photo, seen), LIKE: distances_of(photo, seen_again), TRUE: distances_of(clean, seen)}


def distances_of(own: Tensor, seen: dict[str, Tensor]) -> Compared:
    """own: (N, 128) embeddings of what is compared with. seen: those of what is put before it, see `Compared`."""
    restored = seen["restored"]
    put = seen | {"restored": restored[ASKED], "a stranger": restored.roll(-1, 0)[ASKED]}
    to = {name: likeness_distance(own[ASKED], put[name]) for name in PUT}
    known = distances_to_strangers(own[KNOWN], restored[KNOWN])
    return Compared(likeness_distance(own, restored), distances_to_strangers(own, restored), known, to)


def comparison_record(what: str, kind: str, way: str, compared: Compared) -> Record:
    """What a way says of doing nothing, of the restorer, of the truth and of strangers."""
    accepts = true_accepts(compared.genuine, compared.strangers, FALSE_ACCEPTS)
    return {
        "set": what,
        "damage": kind,
        "way": way,
        "faces": len(compared.strangers),
        "medians": {name: round(float(d.median()), 4) for name, d in compared.to.items()},
        "true_accepts": rounded(accepts.share),
    }


def verdict_records(kind: str, way: str, sets: dict[str, Compared]) -> list[Record]:
    """Limits from every second person of all sets together; how the words then fall on the others, set by set."""
    genuine = torch.cat([compared.genuine[KNOWN] for compared in sets.values()])
    strangers = torch.cat([compared.known.flatten() for compared in sets.values()])
    calibration = calibrate(genuine, strangers, LikenessConfig())
    found = []
    for what, compared in sets.items():
        asked = compared.strangers[ASKED]
        words = {name: judge(distances, calibration, asked) for name, distances in compared.to.items()}
        each = asked.repeat_interleave(asked.shape[1], 0)
        words["any stranger"] = judge(asked.flatten(), calibration, each)
        found.append(
            {
                "set": what,
                "damage": kind,
                "way": way,
                "known": len(genuine),
                "asked": len(asked),
                "same": round(calibration.same, 4),
                "other": round(calibration.other, 4),
                "missed": rounded(calibration.missed),
                "reason": calibration.reason,
                "words": {name: {word: said.count(word) for word in WORDS} for name, said in words.items()},
            }
        )
    return found


def rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


# ---------------------------------------------------------------- everything


def measure_recogniser(shared: Path, net: RecogniserNet) -> dict[str, list[Record]]:
    records = second_photographs(shared, net)
    for what, people in (read_real(shared, net) | read_drawn(shared, net)).items():
        for kind in DAMAGES:
            lq = damaged(people.faces, kind, 0, "measure")
            records += pair_records(what, kind, people, people.clean, embed_faces(net, lq))
            print(f"{what}, {kind}: done", file=sys.stderr, flush=True)
    return {"recogniser": records}


def measure_restored(shared: Path, net: RecogniserNet) -> dict[str, list[Record]]:
    restorer = load_restorer()
    sets = read_real(shared, net)
    result: dict[str, list[Record]] = {"comparison": [], "verdict": []}
    for kind in DAMAGES:
        compared: dict[str, dict[str, Compared]] = {}
        for what, people in sets.items():
            lq = damaged(people.faces, kind, 0, "measure")
            compared[what] = compare(people, kind, lq, restored_by(restorer, lq), net)
            print(f"restored {what}, {kind}: done", file=sys.stderr, flush=True)
        for way in (PLAIN, LIKE):
            result["verdict"] += verdict_records(kind, way, {what: ways[way] for what, ways in compared.items()})
        for what, ways in compared.items():
            result["comparison"] += [comparison_record(what, kind, way, found) for way, found in ways.items()]
    return result


# ---------------------------------------------------------------- what the program says


def measure_acted(shared: Path, net: RecogniserNet, folder: Path, damages: Sequence[str]) -> dict[str, list[Record]]:
    """Words for good restorations and for other people, set by set and damage by damage; folder: see `adapted_to`."""
    from likeness_limits import swapped

    meter, base = LikenessMeter(), load_restorer()
    records: list[Record] = []
    sets = read_real(shared, net)
    fresh = {RESTORED[0]: sets[RESTORED[0]].faces[1::2]}
    fresh[RESTORED[1]] = torch.stack([face for i, face in enumerate(sets[RESTORED[1]].faces) if i % LOOKED_AT])
    for kind in damages:
        adapted, steps = adapted_to(kind, folder)
        for what, clean in fresh.items():
            lq = damaged(clean, kind, 0, "acted")
            put = {"the base's": restored_by(base, lq), "the adapted one's": restored_by(adapted, lq)}
            others = {f"{name}, another person": swapped(faces, clean.roll(-1, 0)) for name, faces in put.items()}
            put |= {"the clean face": clean} | others
            said = dict(zip(put, meter.judge(lq, *put.values()), strict=True))
            words = {name: {word: [one.word for one in of].count(word) for word in WORDS} for name, of in said.items()}
            records.append({"set": what, "damage": kind, "steps": steps, "faces": len(clean), "words": words})
            print(f"acted {what}, {kind}: {words}", file=sys.stderr, flush=True)
    return {"acted": records}


def measure_people(shared: Path, net: RecogniserNet) -> dict[str, list[Record]]:
    """Two photographs of each of the people, damaged and restored: who is put together, and who is found.

    As the program does it, the small restorer serves to put together, and the one that ships to find.
    """
    folder = shared / "second_photos"
    known = json.loads((folder / "landmarks.json").read_text(encoding="utf-8"))
    names = sorted(name for name, record in known.items() if record["distance"] < CLOSE_PAIRS)
    names = names[PEOPLE_FIRST::PEOPLE_EVERY]
    first, second = (read_people(place, names, net)[0] for place in (shared / "portraits", folder))
    meter, base = LikenessMeter(), load_restorer()
    records: list[Record] = []
    for kind in ("none", *DAMAGES):
        photos = [first.faces, second.faces]
        if kind != "none":
            photos = [damaged(faces, kind, turn, "people") for turn, faces in enumerate(photos)]
        pair = torch.stack([embed_faces(net, restored_by(meter.helper, at_side(lq))) for lq in photos], 1)
        says_who = [meter.says_who(lq) for lq in photos]
        found = embed_faces(net, restored_by(base, photos[1]))
        for limit in PEOPLE_LIMITS:
            records.append({"damage": kind, "limit": limit} | grouped_record(pair, limit, says_who))
            records[-1] |= found_record(first.clean, found, limit)
        print(f"people, {kind}: {records[-len(PEOPLE_LIMITS) :]}", file=sys.stderr, flush=True)
    return {"people": records}


def grouped_record(pairs: Tensor, limit: float, says_who: list[list[bool]]) -> Record:
    """pairs: (N, 2, D), two faces of each of N people. Shares of people: in one group, and in a group with others."""
    each = [said for both in zip(*says_who, strict=True) for said in both]
    numbers = torch.tensor(numbered_people(pairs.flatten(0, 1), limit, each)).view(-1, 2)
    together = numbers[:, 0] == numbers[:, 1]
    owners = [set((numbers == number).any(1).nonzero().flatten().tolist()) for number in numbers.unique()]
    mixed = {one for group in owners if len(group) > 1 for one in group}
    return {
        "people": len(numbers),
        "says_who": round(sum(each) / len(each), 4),
        "together": rounded(wilson_interval(int(together.sum()), len(numbers))),
        "mixed": rounded(wilson_interval(len(mixed), len(numbers))),
    }


def found_record(wanted: Tensor, faces: Tensor, limit: float) -> Record:
    """wanted: (N, D) of a sharp photograph of each; faces: (N, D) restored. Shares found, and of strangers taken."""
    own, strangers = likeness_distance(wanted, faces), distances_to_strangers(wanted, faces)
    return {
        "found": rounded(wilson_interval(int((own <= limit).sum()), len(own))),
        "strangers": round(float((strangers <= limit).double().mean()), 5),
    }


# ---------------------------------------------------------------- base and adapted, group by group


def measured_groups(shared: Path, net: RecogniserNet, size: int) -> dict[str, People]:
    """The faces that no restorer has seen and that none is adapted to, in groups."""
    sets = read_real(shared, net, size)
    portraits = sets[RESTORED[0]]
    others = People(portraits.names[1::2], portraits.faces[1::2], portraits.clean[1::2], portraits.groups)
    records = json.loads((shared / "faces_t2i" / "landmarks.json").read_text(encoding="utf-8"))
    kept, _ = read_people(shared / "faces_t2i", sorted(records)[::DRAWN_EVERY], net, size)
    searches = stated_searches({name: record["sheet"] for name, record in records.items()})
    drawn = kept._replace(groups=pooled({name: searches[name] for name in kept.names}, MIN_GROUP))
    return {RESTORED[0]: others, RESTORED[1]: sets[RESTORED[1]], "faces_t2i": drawn}


def adapted_to(kind: str, folder: Path) -> tuple[Restorer, int]:
    """The embedded restorer adapted to every other held-out portrait under a damage, and by how many steps.

    folder: where `benchmarks/adaptation.py --restorers` has kept it.
    """
    file = folder / f"{kind}-0.safetensors"
    if not file.is_file():
        raise SystemExit(f"{file}: no such file; make it by adaptation.py --damages {kind} --restorers {folder}")
    adapted = load_restorer(file)
    return adapted, int(adapted.metadata["steps"])


def measure_groups(shared: Path, net: RecogniserNet, folder: Path, damages: Sequence[str]) -> dict[str, list[Record]]:
    """Distances to the truth of damaged faces, the base's and the adapted restorer's, by group; and failures."""
    base = load_restorer()
    sets = measured_groups(shared, net, base.size)
    distances: dict[str, list[Distances]] = {what: [] for what in sets}
    taken = 0
    for kind in damages:
        adapted, taken = adapted_to(kind, folder)
        for what, people in sets.items():
            kept = folder / f"{kind}-{adapted.sha256[:12]}-{what}.pt"
            if not kept.is_file():
                lq = damaged(people.faces, kind, 0, "measure")
                seen = [embed_faces(net, faces) for faces in (lq, restored_by(base, lq), restored_by(adapted, lq))]
                torch.save(seen, kept)
            seen = torch.load(kept, weights_only=True)
            distances[what].append(Distances.of(people.clean, dict(zip(STATES, seen, strict=True))))
            print(f"groups, {what}, {kind}: done", file=sys.stderr, flush=True)
    records: list[Record] = []
    for what, people in sets.items():
        for kind, one in zip(damages, distances[what], strict=True):
            records += group_records(what, kind, people, [one])
        records += group_records(what, ALL, people, distances[what])
    return {"groups": [{"steps": taken} | record for record in records]}


class Distances(NamedTuple):
    """Of N faces under one damage, by state: (N,) to the clean face, and to the damaged one."""

    truth: dict[str, Tensor]
    photo: dict[str, Tensor]

    @classmethod
    def of(cls, clean: Tensor, seen: dict[str, Tensor]) -> Distances:
        """clean: (N, 128) embeddings; seen: those of the faces in each of `STATES`."""
        truth = {state: likeness_distance(clean, of) for state, of in seen.items()}
        return cls(truth, {state: likeness_distance(seen["damaged"], seen[state]) for state in STATES[1:]})


def group_records(what: str, kind: str, people: People, damages: list[Distances]) -> list[Record]:
    """A record a group, of the mean distance of each face over some damages. Failures lie beyond `FLOOR`, one a damage:
    of the truth, and of the photo."""
    found = []
    for group, places in people.members().items():
        truth = {state: torch.stack([one.truth[state][places] for one in damages]) for state in STATES}
        photo = {state: torch.stack([one.photo[state][places] for one in damages]) for state in STATES[1:]}
        change = bootstrap_difference(truth["adapted"].mean(0).numpy(), truth["base"].mean(0).numpy())
        found.append(
            {
                "set": what,
                "damage": kind,
                "group": group,
                "faces": len(places),
                "distance": {state: round(float(d.mean()), 4) for state, d in truth.items()},
                "change": rounded(change),
                "failures": {state: int((d > FLOOR).sum()) for state, d in truth.items()},
                "failures_by_photo": {state: int((d > FLOOR).sum()) for state, d in photo.items()},
            }
        )
    return found


# ---------------------------------------------------------------- with a reference


def measure_references(shared: Path, net: RecogniserNet) -> dict[str, list[Record]]:
    """Held-out people with a second photograph: the base's faces with and without it. See `reference_record`."""
    folder = shared / "second_photos"
    known = json.loads((folder / "landmarks.json").read_text(encoding="utf-8"))
    held_out = HELD_OUT.read_text(encoding="utf-8").split()
    names = [name for name in held_out if name in known and known[name]["distance"] < CLOSE_PAIRS]
    portraits, second = (read_people(place, names, net)[0] for place in (shared / "portraits", folder))
    base = load_restorer()
    records = []
    for kind in DAMAGES:
        restored = restored_by(base, damaged(portraits.faces, kind, 0, "references"))
        records.append(reference_record(kind, portraits, second, restored, net))
        print(f"references: {records[-1]}", file=sys.stderr, flush=True)
    return {"references": records}


def reference_record(kind: str, portraits: People, second: People, restored: Tensor, net: RecogniserNet) -> Record:
    """With each person's own reference, with the next person's, and with their own whatever the person looks like.

    Distances are means, of the clean portrait and of the reference; changes are against the restored face alone.
    """
    whose = [
        Reference(face, Person(own, name))
        for face, own, name in zip(second.faces, second.clean, second.names, strict=True)
    ]
    limits = {"with it": (0, LIMIT), "with it, no limit": (0, INFINITE), "a stranger's, no limit": (1, INFINITE)}
    seen, lent = {"without": restored}, {}
    for name, (away, limit) in limits.items():
        made, strengths = [], []
        for i, face in enumerate(restored):
            lender = Lender((whose[(i + away) % len(whose)],), net, limit=limit)
            found, _ = lender([face], [SIZE])
            new, strength = found.get(0, (face, 0.0))
            made.append(new)
            strengths.append(strength)
        seen[name], lent[name] = torch.stack(made), strengths
    embeddings = {name: embed_faces(net, faces) for name, faces in seen.items()}
    truth = {name: likeness_distance(of, portraits.clean) for name, of in embeddings.items()}
    quality = {name: psnr(faces, portraits.faces) for name, faces in seen.items()}
    return {
        "damage": kind,
        "people": len(restored),
        "lent": {name: sum(strength > 0 for strength in strengths) for name, strengths in lent.items()},
        "truth": {name: round(float(d.mean()), 4) for name, d in truth.items()},
        "reference": {
            name: round(float(likeness_distance(of, second.clean).mean()), 4) for name, of in embeddings.items()
        },
        "change": {
            name: rounded(bootstrap_difference(truth[name].numpy(), truth["without"].numpy())) for name in limits
        },
        "psnr_change": {
            name: rounded(bootstrap_difference(quality[name].numpy(), quality["without"].numpy())) for name in limits
        },
    }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "recogniser": measure_recogniser,
    "restored": measure_restored,
    "acted": measure_acted,
    "people": measure_people,
    "groups": measure_groups,
    "references": measure_references,
}
TUNED = ("acted", "groups")  # parts that measure tuned restorers


# ---------------------------------------------------------------- the tables


def share(interval: list[float]) -> str:
    mean, low, high = interval
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def recogniser_table(records: list[Record]) -> list[str]:
    """A row a group of a set: the mean over the damages, and the damage under which its faces are known again least."""
    lines = [
        "| set | group | faces | true accepts at 1 % false ones, mean | under the worst damage | there: genuine 5 %, "
        "median, 95 % | strangers 1 %, median | false accepts at the limit of the whole set: mean, most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for what in ORDER:
        mine = [r for r in records if r["set"] == what]
        for group in dict.fromkeys(r["group"] for r in mine):
            of = [r for r in mine if r["group"] == group]
            worst = min(of, key=lambda r: r["true_accepts"])
            genuine, strangers = (", ".join(f"{value:.2f}" for value in worst[key]) for key in ("genuine", "strangers"))
            false = [100 * r["false_at_common"] for r in of]
            lines.append(
                f"| {what} | {group} | {worst['faces']} | {np.mean([r['true_accepts'][0] for r in of]):.3f} | "
                f"{worst['damage']} {share(worst['true_accepts'])} | {genuine} | {strangers} | "
                f"{np.mean(false):.1f} %, {max(false):.1f} % |"
            )
    return lines


def damages_table(records: list[Record]) -> list[str]:
    """True accepts of real people under each damage, with intervals."""
    lines = [f"| set | group | faces | {' | '.join(DAMAGES)} |", "|---" * (len(DAMAGES) + 3) + "|"]
    for what in RESTORED:
        mine = [r for r in records if r["set"] == what]
        for group in dict.fromkeys(r["group"] for r in mine):
            of = {r["damage"]: r for r in mine if r["group"] == group}
            cells = [
                f"{100 * mean:.0f} ({100 * low:.0f} to {100 * high:.0f})"
                for mean, low, high in (of[kind]["true_accepts"] for kind in DAMAGES)
            ]
            lines.append(f"| {what} | {group} | {of[DAMAGES[0]]['faces']} | {' | '.join(cells)} |")
    return lines


def comparison_table(records: list[Record]) -> list[str]:
    names = list(records[0]["medians"])
    lines = [
        f"| set | damage | way | {' | '.join(names)} | true accepts at 1 % false ones |",
        "|---" * (len(names) + 4) + "|",
    ]
    for r in sorted(records, key=lambda r: (list(ORDER).index(r["set"]), DAMAGES.index(r["damage"]))):
        medians = " | ".join(f"{r['medians'][name]:.2f}" for name in names)
        lines.append(f"| {r['set']} | {r['damage']} | {r['way']} | {medians} | {share(r['true_accepts'])} |")
    return lines


def verdict_table(records: list[Record]) -> list[str]:
    """For good restorations, half strangers and strangers: same / may be / no longer / cannot tell, in per cent."""
    names = ("restored", "half a stranger", "any stranger")
    lines = [
        f"| set | damage | way | same up to, no longer above | missed when made | {' | '.join(names)} |",
        "|---" * (len(names) + 5) + "|",
    ]
    for r in sorted(records, key=lambda r: (r["way"], list(ORDER).index(r["set"]), DAMAGES.index(r["damage"]))):
        cells = []
        for name in names:
            total = sum(r["words"][name].values())
            cells.append(" / ".join(f"{100 * r['words'][name][word] / total:.0f}" for word in WORDS))
        lines.append(
            f"| {r['set']} | {r['damage']} | {r['way']} | {r['same']:.2f}, {r['other']:.2f} | {share(r['missed'])} | "
            f"{' | '.join(cells)} |"
        )
    return lines


def acted_table(records: list[Record]) -> list[str]:
    """same / may be / no longer / cannot tell, in per cent of the faces; all damages but none together at the end."""
    names = list(records[0]["words"])
    lines = [f"| set | damage | faces | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for r in records:
        cells = [" / ".join(f"{100 * r['words'][n][word] / r['faces']:.0f}" for word in WORDS) for n in names]
        lines.append(f"| {r['set']} | {r['damage']} | {r['faces']} | {' | '.join(cells)} |")
    cells = []
    for name in names:
        told = sum(r["faces"] - r["words"][name][CANNOT_TELL] for r in records)
        wrong = sum(r["words"][name][OTHER] for r in records)
        cells.append(f"no longer: {share(rounded(wilson_interval(wrong, told)))} of {told} that were judged")
    lines.append(f"| both | all | {sum(r['faces'] for r in records)} | {' | '.join(cells)} |")
    return lines


def people_table(records: list[Record]) -> list[str]:
    lines = [
        "| damage | faces that say who it is | limit | people | both photographs together | with others in their "
        "group | found by a sharp "
        "photograph | strangers taken for them |",
        "|---" * 8 + "|",
    ]
    for r in records:
        lines.append(
            f"| {r['damage']} | {100 * r['says_who']:.0f} % | {r['limit']:.2f} | {r['people']} | "
            f"{share(r['together'])} | {share(r['mixed'])} | "
            f"{share(r['found'])} | {r['strangers']:.4f} |"
        )
    return lines


def groups_table(records: list[Record]) -> list[str]:
    """Everyone under each damage, and each group over all of them."""
    lines = [
        "| set | group | faces | damage | distance to the truth: damaged, base, adapted | adapted less base | beyond "
        f"{FLOOR} of the truth: damaged, base, adapted | beyond {FLOOR} of the photo: base, adapted |",
        "|---" * 8 + "|",
    ]
    for what in ORDER:
        for r in records:
            if r["set"] == what and (r["group"] == EVERYONE or r["damage"] == ALL):
                mean, low, high = r["change"]
                cells = [", ".join(f"{value:.2f}" for value in r["distance"].values())]
                cells += [f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"]
                cells += [", ".join(map(str, r[key].values())) for key in ("failures", "failures_by_photo")]
                lines.append(f"| {what} | {r['group']} | {r['faces']} | {r['damage']} | {' | '.join(cells)} |")
    return lines


def references_table(records: list[Record]) -> list[str]:
    names = list(records[0]["change"])
    lines = [
        "| damage | reference | people, lent detail | distance to the clean portrait: without, with | change | "
        "distance to their second photo | change of PSNR (dB) |",
        "|---" * 7 + "|",
    ]
    for r in records:
        for name in names:
            change, quality = (
                f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
                for (mean, low, high), digits in ((r["change"][name], 3), (r["psnr_change"][name], 2))
            )
            lines.append(
                f"| {r['damage']} | {name} | {r['people']}, {r['lent'][name]} | {r['truth']['without']:.3f}, "
                f"{r['truth'][name]:.3f} | {change} | {r['reference'][name]:.2f} | {quality} |"
            )
    return lines


def tables(result: dict[str, list[Record]]) -> str:
    """Markdown."""
    further = {"What the program says (same / may be / no longer / cannot tell, %)": (acted_table, "acted")}
    further |= {"Whose face": (people_table, "people"), "Base and adapted, by group": (groups_table, "groups")}
    further |= {"With a reference": (references_table, "references")}
    parts = {
        "The recogniser by itself": recogniser_table(result["recogniser"]),
        "True accepts at 1 % false ones of the group, %, by damage": damages_table(result["recogniser"]),
        "What is compared": comparison_table(result["comparison"]),
        "What is said (same / may be / no longer / cannot tell, %)": verdict_table(result["verdict"]),
    }
    parts |= {title: table(result[key]) for title, (table, key) in further.items() if key in result}
    return "\n\n".join(f"#### {title}\n\n" + "\n".join(lines) for title, lines in parts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="the folder that holds portraits/, second_photos/ and the others")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the others stay as they are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--restorers", type=Path, default=ADAPTED, metavar="DIR", help="for the parts acted and groups")
    parser.add_argument("--damages", nargs="+", choices=DAMAGES, default=DAMAGES, help="of these parts")
    args = parser.parse_args()
    if args.shared:
        result = json.loads(args.results.read_text(encoding="utf-8")) if args.results.is_file() else {}
        for part in args.parts:
            more = (args.restorers, args.damages) if part in TUNED else ()
            result |= PARTS[part](args.shared, load_recogniser(), *more)
        text = json.dumps(result, indent=1)
        replace_atomically(args.results, lambda part: part.write_text(text + "\n", encoding="utf-8"))
    elif not args.results.is_file():
        parser.error(f"{args.results}: no such file; --shared DIR measures")
    print(tables(json.loads(args.results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
