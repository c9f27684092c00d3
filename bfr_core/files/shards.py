"""Parts of a piece of work that several processes or machines do at once, and the lock of each part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .ownership import SHARD_LOCK
from .photos import printable
from .stages import is_held

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Shard:
    """Part `number`, counted from 1, of `count`. The only part of one is the whole."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"shard is {self.number}/{self.count}; it must be I/N with I from 1 to N, such as 2/4")

    @classmethod
    def read(cls, text: str) -> Shard:
        """The part that a text such as "2/4" names. Raises ValueError if it names none."""
        if not re.fullmatch(r"\d+/\d+", text):
            raise ValueError(f"shard is {printable(text)}; it must be I/N with I from 1 to N, such as 2/4")
        return cls(*map(int, text.split("/")))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether this part is the whole."""
        return self.count == 1

    @property
    def suffix(self) -> str:
        """What the names of its files end in before their own suffix; "" for the whole."""
        return "" if self.is_whole else f"-{self.number}-of-{self.count}"

    def of(self, things: Sequence[Thing], batch: int = 1) -> list[Thing]:
        """The things of this part: of the whole batches of `batch` things, every `count`-th from its own on.

        A network may round a face differently in another batch, so batches stay as they are without shards.
        """
        starts = range((self.number - 1) * batch, len(things), self.count * batch)
        return [thing for start in starts for thing in things[start : start + batch]]


WHOLE = Shard()


@contextmanager
def locked_shard(folder: Path, shard: Shard) -> Iterator[None]:
    """Hold a part of the work in `folder` for this process; the whole has no such lock.

    The system frees the lock if the process dies. Raises ValueError if another process holds it.
    """
    from filelock import FileLock, Timeout

    if shard.is_whole:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".bfr-shard{shard.suffix}.lock", timeout=1)  # who asks whether it is held, holds it
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{printable(folder)}: shard {shard} is in use by another process; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def shards_at_work(folder: Path) -> list[str]:
    """Names, such as "2-of-4", of the parts of the work in `folder` that any process holds now."""
    found = ((path, SHARD_LOCK.fullmatch(path.name)) for path in sorted(folder.glob(".bfr-shard-*.lock")))
    return [match[1] for path, match in found if match and is_held(path)]
