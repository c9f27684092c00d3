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
    ],
)
def test_the_first_line_of_an_error(said, line):
    assert first_line(ValueError(said)) == line
