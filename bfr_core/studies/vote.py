"""A blind vote on two sets of restored photos: a page that anyone can open, a key that stays here, and the tally.

Real damaged photos have no clean copy to measure with; people can say which of two results they would keep. The page
does not say which is which: sides are drawn at random for each photo, and only the key knows them.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..files.names import numbered
from ..files.ownership import begin_list, is_own
from ..files.photos import printable, read_image, replace_atomically
from ..files.records import fingerprint, write_json
from ..metrics.intervals import Interval, student_difference, wilson_interval
from ..randomness import keyed_generator
from ..reports.html import data_uri
from ..reports.pages import json_for_script, render_page
from .evaluate import match_files

log = logging.getLogger(__name__)

MAX_PHOTOS = 100
CHOICES = ("left", "right", "same")


@dataclass(frozen=True)
class Ballot:
    """page: to be passed round. key: which side is which, to be kept. failed: photos that could not be read."""

    page: Path
    key: Path
    failed: list[str]


@dataclass(frozen=True)
class Tally:
    """Votes for "a", for "b" and for neither. share: that of "a" among the votes that chose, the mean over photos with
    its 95 % interval; None if none did. failed: files that hold no votes of this ballot.

    Many people who look at the same few photos are no more photos: it is these that stand for others.
    """

    a: int
    b: int
    same: int
    voters: int
    share: Interval | None
    failed: list[str]

    def sentence(self) -> str:
        """The same in words."""
        total = self.a + self.b + self.same
        who = "1 voter" if self.voters == 1 else f"{self.voters} voters"
        said = f"{total} votes by {who}: {self.a} for A, {self.b} for B, {self.same} see no difference"
        if self.share is None:
            return said
        low, high = max(0.0, self.share.low), min(1.0, self.share.high)
        answer = "A is preferred" if low > 0.5 else "B is preferred" if high < 0.5 else "no preference can be told"
        return f"{said}; {answer} (A chosen by {self.share.mean:.0%}, {low:.0%} to {high:.0%}, over photos)"


def make_ballot(damaged: Path, a: Path, b: Path, out: Path, seed: int = 0, most: int = MAX_PHOTOS) -> Ballot:
    """Write vote.html and key.json into `out`.

    If `out` holds another ballot, the files get a number. damaged, a, b: folders whose files match by relative path
    without suffix. most: the most photos used, chosen at random.
    Raises FileNotFoundError or ValueError, in one line, where nothing matches or can be read.
    """
    if most < 1:
        raise ValueError(f"most is {most}; it must be 1 photo or more")
    matches, _ = match_files({"damaged": Path(damaged), "a": Path(a), "b": Path(b)})
    names = list(matches)
    order = torch.randperm(len(names), generator=keyed_generator(seed, "vote")).tolist()
    photos, key, failed = [], [], []
    for i in order[:most]:
        name, paths = names[i], matches[names[i]]
        try:
            pictures = {role: data_uri(read_image(path)) for role, path in paths.items()}
        except ValueError as error:
            log.warning("left out: %s", error)
            failed.append(name)
            continue
        sides = ["a", "b"]
        if torch.rand(1, generator=keyed_generator(seed, "side", name)).item() < 0.5:
            sides.reverse()
        photos.append([pictures["damaged"], pictures[sides[0]], pictures[sides[1]]])
        key.append({"photo": name, "left": sides[0], "right": sides[1]})
    if not photos:
        raise ValueError(f"{printable(damaged)}: no photo could be read in all three folders")
    ballot = fingerprint(seed, photos)[:16]
    begin_list(Path(out))
    page, secret = _free_pair(Path(out), ballot)
    write_json(secret, {"ballot": ballot, "photos": key})
    text = render_vote(ballot, photos)
    replace_atomically(page, partial(Path.write_text, data=text, encoding="utf-8"))
    return Ballot(page, secret, failed)


def _free_pair(out: Path, ballot: str) -> tuple[Path, Path]:
    """Page and key of a ballot, with the first number that neither a file of others nor another ballot has.

    A key that was lost would make the votes that people send back worthless.
    """
    for number in count(1):
        page, key = (numbered(out / name, number) for name in ("vote.html", "key.json"))
        mine = is_own(key) and _read_json(key).get("ballot") == ballot
        if (mine or not os.path.lexists(key)) and (is_own(page) if os.path.lexists(page) else True):
            return page, key
    raise AssertionError("there is always a number")


def tally(key: Path, votes: list[Path]) -> Tally:
    """Count the files that voters sent back against the key.

    A file that is none, or of another ballot, is reported and left out. Of several files of one voter, the one that was
    written last counts. Raises ValueError if none is left.
    """
    secret = _read_json(key)
    if not (isinstance(secret, dict) and isinstance(secret.get("photos"), list)):
        raise ValueError(f"{printable(key)}: is no key of a vote; give the key.json beside vote.html")
    counts, voters, failed = {"a": 0, "b": 0, "same": 0}, 0, []
    of_photo = [Counter[str]() for _ in secret["photos"]]
    seen: set[str] = set()
    for path in sorted({path.resolve(): path for path in votes}.values(), key=_written, reverse=True):
        try:
            content = _read_json(path)
            given = _choices(content, secret, path)
        except ValueError as error:
            log.warning("left out: %s", error)
            failed.append(path.name)
            continue
        voter = str(content.get("voter") or path.resolve())  # version 0.1 did not say who
        if voter in seen:
            log.warning("left out: %s: is of a voter who saved another file later", printable(path.name))
            continue
        seen.add(voter)
        voters += 1
        for choice, photo, own in zip(given, secret["photos"], of_photo, strict=True):
            if choice:
                counts[photo.get(choice, "same")] += 1
                own[photo.get(choice, "same")] += 1
    if not voters:
        raise ValueError(f"none of the {len(votes)} files holds votes of this ballot")
    shares = [own["a"] / (own["a"] + own["b"]) for own in of_photo if own["a"] + own["b"]]
    return Tally(**counts, voters=voters, share=_share_over_photos(shares) if shares else None, failed=failed)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # which reading it will say
        return 0.0


def _share_over_photos(shares: list[float]) -> Interval:
    """The mean of the photos' shares; its interval is Student's, and no narrower than if each photo had one vote."""
    mean, low, high = student_difference(shares, [0.0] * len(shares)) if len(shares) > 1 else (shares[0],) * 3
    single = wilson_interval(round(sum(shares)), len(shares))
    return Interval(mean, min(low, single.low), max(high, single.high))


def _choices(found: Any, secret: dict[str, Any], path: Path) -> list[str]:
    if not isinstance(found, dict) or found.get("ballot") != secret.get("ballot"):
        raise ValueError(f"{printable(path.name)}: holds no votes of this ballot")
    given = found.get("votes")
    if not isinstance(given, list) or len(given) != len(secret["photos"]):
        raise ValueError(f"{printable(path.name)}: does not hold one vote for each photo")
    if any(vote not in (*CHOICES, "") for vote in given):
        raise ValueError(f"{printable(path.name)}: has votes that are none of {', '.join(CHOICES)}")
    return given


def _read_json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{printable(path)}: is not JSON") from None


# ---------------------------------------------------------------- the page


def render_vote(ballot: str, photos: list[list[str]]) -> str:
    """The page, made of data URIs of the damaged photo and the left and right result; no names, links or network.

    Raises ValueError, in one line, where Jinja2 is missing.
    """
    content = json_for_script({"ballot": ballot, "photos": photos})
    return render_page("vote", "Which would you keep?", {}, f"const DATA = {content};\n")
