"""The command for published weights."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..files.photos import printable
from .flags import MAIN, Commands, folder_from, name_from
from .progress import Bars


def weights(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..files.weights import ALSO, TABLE, fetch, find_entry, locate, search_folders, verify

    if args.action in ("get", "convert") and not args.name:
        raise ValueError(f"weights {args.action}: give a NAME; 'bfr weights list' shows them")
    if args.action == "convert":
        from ..diffusion.prior import convert_prior

        if not args.out:
            raise ValueError("weights convert: say with --out which folder the prior goes to")
        print(f"prior: {convert_prior(args.name, args.out)}", file=sys.stderr)
        return {"prior": str(args.out)}
    entry = find_entry(args.name) if args.name else None
    if args.name and entry is None:
        raise ValueError(f"weights {args.name}: not in the table; 'bfr weights list' shows it")
    if args.action == "get" and entry:
        print(f"{entry.name}: {entry.what}\nlicence: {entry.licence}\nfrom {entry.url}", file=sys.stderr)
        there = locate(entry.name)
        if there and verify(entry, there) == "ok":
            print(f"checked, and used where it lies: {printable(there)}", file=sys.stderr)
            return {"path": str(there)}
        fetched = fetch(entry, callback=lambda have, total: bars("fetch", have, total or have + 1, None))
        print(f"checked: {fetched}", file=sys.stderr)
        return {"path": str(fetched)}
    rows, shown = [], sys.stderr if args.json else sys.stdout
    for one in (entry,) if entry else TABLE:
        path = locate(one.name)
        state = "not here" if path is None else verify(one, path) if args.action == "verify" else "here"
        rows.append({"name": one.name, "state": state, "path": str(path or ""), "licence": one.licence})
        print(f"{one.name:<32} {state:<10} {one.what}; {one.licence}{f'; {path}' if path else ''}", file=shown)
    if args.action == "list":
        print(f"looked for in: {', '.join(printable(folder) for folder in search_folders())}", file=shown)
        print(f"other folders, of ComfyUI or WebUI for instance, may be named in {ALSO}, as in PATH", file=shown)
    bad = ("wrong", "not here") if args.action == "verify" and entry else ("wrong",)
    return {"weights": rows, "failed": [row["name"] for row in rows if row["state"].startswith(bad)]}


def add_commands(commands: Commands) -> None:
    """Add the commands of this family."""
    sub = commands.add(
        weights,
        "List, check, convert or fetch published weights; only 'get' downloads anything.",
        group=MAIN,
        goes_on=True,
    )
    text = "List the table, get a file, verify the files that are there, or convert a prior into a folder."
    sub.add_argument("action", choices=("list", "get", "verify", "convert"), help=text)
    sub.add_argument(
        "name", type=name_from, nargs="?", metavar="NAME", help="A name from the list; for convert also a file."
    )
    sub.add_argument("--out", type=folder_from, metavar="FOLDER", help="For convert: folder of the prior.")
