"""What an error says, on one line."""

from __future__ import annotations


def first_line(error: BaseException, heading: str = "") -> str:
    """The first line of an error's text that is not empty, or the name of its type if it has no text.

    A line that ends with a colon only announces another: the first one after it that does not is added. heading: how a
    line begins that says nothing by itself, and is passed over where another follows.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if heading and lines[0].startswith(heading) and len(lines) > 1:
        return lines[1]
    announced = next((line for line in lines if not line.endswith(":")), "") if lines[0].endswith(":") else ""
    return f"{lines[0]} {announced}" if announced else lines[0]
