"""What an error says, on one line."""

from __future__ import annotations


def first_line(error: BaseException, heading: str = "") -> str:
    """The first line of an error's text that is not empty, or the name of its type if it has no text.

    heading: how a line begins that only announces the following one, and is passed over where another follows.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if heading and lines[0].startswith(heading) and len(lines) > 1 else lines[0]
