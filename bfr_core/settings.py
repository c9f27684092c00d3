"""One source for every setting: its default, meaning, unit, range and choices stand at the field of a dataclass.

Flags of the command line, widgets and tooltips of the nodes, inputs of the page and the lists in the documentation are
made from these fields. A setting of nested dataclasses has a dotted path, such as `targets.sampler.t_start`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    meaning: one or two complete sentences. unit: "" where it has none. low, high: the least and the largest value;
    above, below: limits that a value must not reach. choices: the values that are allowed. auto: whether "auto" may
    stand in place of a value. label: a short name for people. kind: the type of its values; for a tuple, the type of
    its members. count: how many values a tuple must have; 0 allows any number.
    """

    path: str
    default: Any
    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    auto: bool = False
    label: str = ""
    kind: type = str
    count: int = 0

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit(".", 1)[-1]

    @property
    def range_text(self) -> str:
        """The values that are allowed, in words: "0 to 1", "1 or more", "paper or fast"; "" if any will do."""
        if self.choices:
            words = " or ".join(str(choice) for choice in self.choices)
        else:
            words = self._limits_text()
        return f"{words}, or auto" if self.auto and words else words

    def _limits_text(self) -> str:
        least = f"more than {self.above:g}" if self.above is not None else ""
        least = f"{self.low:g}" if self.low is not None else least
        most = f"less than {self.below:g}" if self.below is not None else ""
        most = f"{self.high:g}" if self.high is not None else most
        if least and most:
            return f"{least} to {most}" if self.above is None else f"{least} and {most}"
        if self.low is not None:
            return f"{least} or more"
        return f"at most {most}" if self.high is not None else least or most

    def _within(self, value: Any) -> bool:
        limits = (self.low, self.high, self.above, self.below)
        if all(limit is None for limit in limits):
            return True
        if not isinstance(value, int | float) or math.isnan(value):
            return False
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def check(self, value: Any) -> None:
        """Raise ValueError, in one line with name, value and what is allowed, if `value` is not allowed."""
        if self.auto and value == "auto":
            return
        if self.kind is bool and not isinstance(value, bool):
            raise ValueError(f"{self.path} is {value!r}; it must be true or false")
        if self.count and (not isinstance(value, tuple) or len(value) != self.count):
            raise ValueError(f"{self.path} is {value!r}; it must be {self.count} numbers, each {self.range_text}")
        for one in value if isinstance(value, tuple) else (value,):
            if not (one in self.choices if self.choices else self._within(one)):
                each = "each must be" if isinstance(value, tuple) else "it must be"
                raise ValueError(f"{self.path} is {value!r}; {each} {self.range_text}")

    @property
    def help_text(self) -> str:
        """The meaning, followed by the unit unless the meaning names it: for a tooltip or a line of help."""
        known = not self.unit or self.unit in self.meaning
        return self.meaning if known else f"{self.meaning} In {self.unit}."

    @property
    def default_text(self) -> str:
        """The default as `parse` reads it."""
        many = isinstance(self.default, tuple)
        return ",".join(map(str, self.default)) if many else str(self.default)

    def parse(self, text: str) -> Any:
        """The value that `text` means. Raises ValueError, in one line, if it means none that is allowed."""
        value = self.read(text)
        self.check(value)
        return value

    def read(self, text: str) -> Any:
        """`text` as the setting's own type, whatever its range. Raises ValueError, in one line, if it is none."""
        if self.auto and text == "auto":
            return text
        try:
            if isinstance(self.default, tuple):
                value: Any = tuple(self._parse_one(part) for part in text.split(",") if part.strip())
            else:
                value = self._parse_one(text)
        except ValueError:
            wanted = self.range_text or {int: "a whole number", float: "a number", bool: "true or false"}[self.kind]
            raise ValueError(f"{self.path} is {text!r}; it must be {wanted}") from None
        return value

    def _parse_one(self, text: str) -> Any:
        text = text.strip()
        if self.kind is bool:
            return _READ_BOOL[text.lower()] if text.lower() in _READ_BOOL else _refuse(text)
        return self.kind(text)


_READ_BOOL = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _refuse(text: str) -> Any:
    raise ValueError(text)


def setting(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] = (),
    auto: bool = False,
    label: str = "",
    kind: type | None = None,
    count: int = 0,
) -> Any:
    """A dataclass field that carries all that is known of a setting; the arguments are those of `Setting`."""
    if kind is None:
        kind = type(default[0]) if isinstance(default, tuple) and default else type(default)
    facts = Setting("", default, meaning, unit, low, high, above, below, choices, auto, label, kind, count)
    return dataclasses.field(default=default, metadata={KEY: facts})


def settings_of(config: Any, prefix: str = "") -> Iterator[Setting]:
    """All settings of a (nested) settings dataclass, or of an instance of one, in order, each with its dotted path.

    Of an instance the defaults are its own values.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name, dataclasses.MISSING)
        if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{path}.")
        elif KEY in field.metadata:
            yield dataclasses.replace(field.metadata[KEY], path=path, default=value)


def setting_at(config: Any, path: str) -> Setting:
    """The setting at a dotted path. Raises ValueError, naming those that are near, if there is none."""
    import difflib

    known = _by_path(config) if isinstance(config, type) else {found.path: found for found in settings_of(config)}
    if path in known:
        return known[path]
    by_name = [full for full in known if full.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    near = by_name or difflib.get_close_matches(path, known, 3, 0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; 'bfr settings' lists them"
    raise ValueError(f"there is no setting {path!r}{hint}")


@cache
def _by_path(config: type) -> dict[str, Setting]:
    """The settings of a dataclass: the flags of the command line ask for them hundreds of times."""
    return {found.path: found for found in settings_of(config)}


def check_settings(config: Any, owner: str = "") -> None:
    """Raise ValueError for the first of a dataclass's own settings that is out of its range: for `__post_init__`.

    owner: where the dataclass stands among the settings, such as "gate"; errors name a setting with it.
    """
    prefix = f"{owner}." if owner else ""
    for field in dataclasses.fields(config):
        if KEY in field.metadata:
            known = dataclasses.replace(field.metadata[KEY], path=f"{prefix}{field.name}")
            known.check(getattr(config, field.name))


def changed(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of nested settings dataclasses in which `values`, by dotted path, replace theirs."""
    own = {path: value for path, value in values.items() if "." not in path}
    for name in {path.split(".")[0] for path in values if "." in path}:
        inner = {path.split(".", 1)[1]: value for path, value in values.items() if path.startswith(f"{name}.")}
        own[name] = changed(getattr(config, name), inner)
    return dataclasses.replace(config, **own)


def read_assignments(config: Any, assignments: list[str]) -> dict[str, Any]:
    """What `path=value` texts ask for, by dotted path, read as the settings' own types.

    Raises ValueError, in one line, for a path that is unknown or a value that is not allowed.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: write it as path=value, for example finetune.iterations=600")
        found = setting_at(config, path.strip())
        values[found.path] = found.parse(value.strip())
    return values
