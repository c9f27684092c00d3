"""Pages made from the templates beside this file: every text that is filled in is escaped, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.photos import printable

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: object) -> str:
    """The template of this name with `values`: each text on one line and escaped, between tags and in attributes.

    Only markup that was made by `trusted` is filled in as it is.
    Raises ValueError, in one line, where Jinja2 is missing, and jinja2.UndefinedError for a value that is not given.
    """
    return _environment(TEMPLATES).get_template(template).render(values)


def render_page(name: str, title: str, values: Mapping[str, object], script_before: str = "") -> str:
    """The page `name`.html with `values`, the style `name`.css and the script `name`.js in it.

    The page runs only its own script, shows only pictures that it holds as data, and asks the network for nothing.
    script_before: our own lines that are put before the script.
    """
    script = script_before + (TEMPLATES / f"{name}.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "policy": trusted(
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        ),
        "style": trusted((TEMPLATES / f"{name}.css").read_text(encoding="utf-8")),
        "script": trusted(script),
    }
    return render(f"{name}.html", title=title, **values, **parts)


def trusted(markup: str) -> str:
    """`markup` of our own, which a template fills in as it is."""
    from markupsafe import Markup

    return Markup(markup)


def json_for_script(value: object) -> str:
    """`value` as JSON that may stand in a script of a page: no text in it can end the script."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value)


@cache
def _environment(folder: Path) -> Environment:
    """The templates of a folder, each compiled once: a report draws several charts of one template."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise ValueError("a page needs the package Jinja2: pip install jinja2") from None
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_one_line,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _one_line(value: Any) -> Any:
    """A text as `printable` shows it; our own markup as it is."""
    return value if hasattr(value, "__html__") else printable(str(value))
