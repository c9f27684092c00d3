"""Settings described at their fields: what they tell, what they refuse, how texts become values."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bfr_core.settings import changed, check_settings, read_assignments, setting, setting_at, settings_of


@dataclass(frozen=True)
class Inner:
    steps: int = setting(10, "Number of steps.", low=1)
    share: float = setting(0.5, "Share of the faces.", low=0, high=1)
    kind: str = setting("fast", "Which sampler runs.", choices=("fast", "paper"))
    start: int | str = setting(150, "Level at which it starts.", low=1, auto=True)
    at: tuple[float, ...] = setting((0.5,), "Where the rate is halved.", low=0, high=1)
    on: bool = setting(False, "Whether it is on.")
    betas: tuple[float, float] = setting((0.9, 0.99), "Two of them.", low=0, below=1, count=2)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str = setting("embedded", "The restorer.")


def test_every_setting_is_found_with_its_path_and_default() -> None:
    found = {one.path: one.default for one in settings_of(Outer)}
    assert found["inner.steps"] == 10 and found["name"] == "embedded" and len(found) == 8
    assert {one.path: one.default for one in settings_of(Outer(Inner(steps=3)))}["inner.steps"] == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("inner.steps=3", 3),
        ("inner.share=1", 1.0),
        ("inner.kind=paper", "paper"),
        ("inner.start=auto", "auto"),
        ("inner.start=7", 7),
        ("inner.at=0.25, 0.75", (0.25, 0.75)),
        ("inner.at=", ()),
        ("inner.on=yes", True),
        ("name=a=b", "a=b"),
    ],
)
def test_assignments_become_values(text: str, value: object) -> None:
    path = text.split("=")[0]
    read = read_assignments(Outer, [text])
    assert read == {path: value} and type(read[path]) is type(value)
    config = changed(Outer(), read)
    assert next(one.default for one in settings_of(config) if one.path == path) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inner.steps=0", "steps is 0; it must be 1 or more"),
        ("inner.steps=many", "steps is 'many'; it must be 1 or more"),
        ("inner.share=2", "share is 2.0; it must be 0 to 1"),
        ("inner.share=nan", "share is nan; it must be 0 to 1"),
        ("inner.kind=slow", "kind is 'slow'; it must be fast or paper"),
        ("inner.start=none", "start is 'none'; it must be 1 or more, or auto"),
        ("inner.on=perhaps", "on is 'perhaps'; it must be true or false"),
        ("steps=3", "did you mean inner.steps?"),
        ("inner.step=3", "did you mean inner.steps"),
        ("inner.betas=0.9", "betas is (0.9,); it must be 2 numbers, each 0 to less than 1"),
        ("inner.betas=0.9,1", "each must be 0 to less than 1"),
        ("zzz=3", "'bfr settings' lists them"),
        ("inner.steps", "path=value"),
    ],
)
def test_what_is_not_allowed_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        read_assignments(Outer, [text])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_dataclass_refuses_a_value_out_of_range() -> None:
    with pytest.raises(ValueError, match="share is 1.5; it must be 0 to 1"):
        Inner(share=1.5)


def test_setting_at_tells_range_and_meaning() -> None:
    found = setting_at(Outer, "inner.start")
    assert (found.range_text, found.meaning, found.kind) == ("1 or more, or auto", "Level at which it starts.", int)
