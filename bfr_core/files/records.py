"""Records in JSON: fingerprints of what a result depends on, and files that are whole or not there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .photos import printable, replace_atomically


def fingerprint(*parts: Any) -> str:
    """SHA-256 of anything JSON can write, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write JSON; an older file stays until the new one is complete."""
    text = json.dumps(value, indent=1, ensure_ascii=True)
    replace_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path, default: Any = None) -> Any:
    """Content of a JSON file, or `default` if there is none. Raises ValueError naming the file if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (ValueError, RecursionError):
        raise ValueError(f"{printable(path)}: is damaged; delete it to make it anew") from None


def read_table(path: Path, **kinds: Any) -> dict[str, Any]:
    """The table in a JSON file, {} if there is no file. kinds: what an entry must be, a type or a tuple of types.

    Raises ValueError naming the file if it is damaged, holds something else, or an entry is of another type.
    """
    found = read_json(path, {})
    sound = isinstance(found, dict)
    if not sound or any(name in found and not isinstance(found[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"{printable(path)}: is damaged; delete it to make it anew")
    return found
