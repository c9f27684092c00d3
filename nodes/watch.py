"""Whether what nodes have made is still as they left it: ComfyUI runs a node again only if its inputs have changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Watch:
    """Files or folders that nodes have left, and how often each was found otherwise since.

    That others are made changes nothing, so that a graph which was not touched is not run again. All of it is forgotten
    when ComfyUI ends, as its cache is. held: what tells a file or folder from what it was before.
    """

    def __init__(self, held: Callable[[Path], Any]) -> None:
        self._held = held
        self._left: dict[Path, Any] = {}
        self._changes: Counter[Path] = Counter()

    def left(self, *paths: Path) -> None:
        """Remember these as they are now."""
        self._left |= {path: self._held(path) for path in paths}

    def changes(self, of: Callable[[Path], bool] = lambda _: True) -> int:
        """How often those of which `of` is true were found otherwise than they were left: a number that only grows."""
        for path, before in list(self._left.items()):
            if of(path) and (now := self._held(path)) != before:
                self._left[path] = now
                self._changes[path] += 1
        return sum(times for path, times in self._changes.items() if of(path))
