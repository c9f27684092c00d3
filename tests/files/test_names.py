"""What an error says, on one line."""

import pytest

from bfr_core.errors import first_line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("broken", "broken"),
        ("broken\nat line 3", "broken"),
        ("\n  late \nmore", "late"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        (
            "importing a failed because of:\nimporting b failed because of:\nno c\nmore",
            "importing a failed because of: no c",
        ),
        ("it failed:\n", "it failed:"),
    ],
)
def test_the_first_line_of_an_error(said, line):
    assert first_line(ValueError(said)) == line
