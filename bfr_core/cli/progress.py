"""How a long command shows its progress and is cancelled: progress bars, log lines above them, Ctrl-C."""

from __future__ import annotations

import io
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


class AboveTheBar(logging.Handler):
    """Writes log lines above the progress bar, which is on the last line of the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class Nowhere(io.TextIOBase):
    """In place of a stream that was closed: what is written is gone."""

    def write(self, text: str) -> int:
        return len(text)


class Cancel:
    """Ctrl-C lets the step under way finish, so that what is saved is whole; a second Ctrl-C stops at once."""

    def __enter__(self) -> Cancel:
        self.asked = False
        try:
            self.previous = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not in the main thread: the caller cancels by itself
            self.previous = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.asked:
            raise KeyboardInterrupt


class Bars:
    """A progress bar with the time left for each stage; the callback of every long command.

    silent: only look whether the command was cancelled.
    """

    def __init__(self, cancel: Cancel, silent: bool = False) -> None:
        self.cancel, self.silent, self.stage, self.bar = cancel, silent, "", tqdm(disable=True)

    def __call__(self, stage: str, step: int, total: int, detail: Any) -> None:
        if self.silent:
            self.cancel.check()
            return
        if stage != self.stage or total != self.bar.total:  # a stage may have parts, each with a bar of its own
            self.bar.close()
            self.stage = stage
            # What was done before the first call was not timed; the speed is that of what comes after it.
            self.bar = tqdm(desc=f"{stage:<9}", total=total, initial=step, mininterval=0.5, file=sys.stderr)
        self.bar.update(step - self.bar.n)
        if step >= total:
            self.bar.close()
        if stage == "forecast" and detail is not None:
            print("\n".join(detail.lines()), file=sys.stderr)
        self.cancel.check()

    def close(self) -> None:
        """End the bar, so that what is printed next has a line of its own."""
        self.bar.close()

    def named(self, stage: str) -> Callable[[int, int, Any], None]:
        """This callback for a function that has one stage only."""
        return lambda step, total, detail: self(stage, step, total, detail)
