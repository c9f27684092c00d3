"""The commands that make or read results: restore, tone, export, inspect."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..device import choose_device
from ..files.ownership import begin_list, free_place, maker_of
from ..files.photos import printable
from .account import DONE, RESTORED, Results, each_photo, importable, print_account, problems_of
from .flags import (
    MAIN,
    STAGES,
    Commands,
    add_restore_flags,
    folder_from,
    in_shards,
    name_from,
    on_device,
    on_workers,
    path_from,
    pool_of,
    restore_config,
)
from .progress import Bars

log = logging.getLogger(__name__)


def restore(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..restoration.folder import restore_folder
    from ..restoration.same_person import counted, counts_of
    from ..restorers import load_restorer
    from ..restorers.codeformer import with_fidelity

    config = restore_config(args)
    _warn_of_idle(args, config)
    if args.again and args.skip_existing:
        raise ValueError("--again and --skip-existing: make results anew, and leave them alone; give one of the two")
    if args.parquet:  # before hours of work, not after them
        importable("pyarrow", "--parquet")
        begin_list(args.parquet.parent)
    restorer = load_restorer(args.restorer)
    if args.fidelity is not None:
        restorer = with_fidelity(restorer, args.fidelity)
        if getattr(restorer, "fidelity_weight", None) is None:
            log.warning("--fidelity %s: %s has none, and is used as it is", args.fidelity, printable(restorer.name))
    how = {
        "aligned": args.aligned,
        "skip_existing": args.skip_existing,
        "again": args.again,
        "strip_gps": args.strip_gps,
        "person": args.person,
        "references": tuple(args.reference),
    }
    callback = bars.named("restore")
    if args.workers:
        result = _on_workers(args, config, how, restorer.caution, callback)
    else:
        restorer = restorer.to(choose_device(args.device))
        result = restore_folder(args.photos, args.out, restorer, config, **how, callback=callback, shard=args.shard)
    counts = {status: result.count(status) for status in RESTORED}
    files: list[dict[str, Any]] = [
        {"photo": f.path.as_posix(), "status": f.status, "reason": "; ".join(filter(None, (f.reason, *f.notes)))}
        | ({"likeness": [one.record() for one in f.likeness]} if f.likeness else {})
        | ({"failed_faces": f.failed_faces} if f.failed_faces else {})
        for f in result.files
    ]
    problems = [{"photo": f["photo"], "reason": f["reason"]} for f in files if f["reason"]]
    served = {f.path.as_posix(): list(f.served) for f in result.files if f.served}
    if served:
        faces = Counter(by for of_photo in served.values() for by in of_photo)
        print("; ".join(f"{by}: {count} faces" for by, count in sorted(faces.items())), file=sys.stderr)
    likeness = [one for file in result.files for one in file.likeness]
    if likeness:
        print(counted(likeness), file=sys.stderr)
    print_account(files, RESTORED, f"results in {printable(args.out)}")
    failed = {}
    if args.parquet:
        from ..cluster.table import write_parquet

        try:
            write_parquet(free_place(args.parquet, maker=maker_of("restore --parquet", args.photos)), result)
        except (ValueError, OSError) as error:  # the photos are done, and their summary is not to be lost with it
            log.error("--parquet: %s", printable(str(error)))
            failed = {"failed": [str(args.parquet)]}
    times = {"seconds": round(result.seconds, 2), "network_seconds": round(result.network_seconds, 2)}
    words = {"likeness": counts_of(likeness)} if likeness else {}
    return (
        counts
        | times
        | {"files": files, "problems": problems}
        | ({"served_by": served} if served else {})
        | words
        | failed
    )


def _warn_of_idle(args: argparse.Namespace, config: Any) -> None:
    """Say which of the settings that were given change nothing, because another is missing."""
    default = type(config)()
    needs = {
        "numbers": ("--faces numbered", config.faces == "numbered"),
        "order": ("--faces numbered", config.faces == "numbered"),
        "person_limit": ("--person", args.person),
        "reference_strength": ("--reference", args.reference),
        "reference_limit": ("--reference", args.reference),
    }
    for name, (wanted, there) in needs.items():
        if not there and (value := getattr(config, name)) != getattr(default, name):
            log.warning("--%s %s: changes nothing without %s", name.replace("_", "-"), value, wanted)


def _on_workers(
    args: argparse.Namespace, config: Any, how: dict[str, Any], caution: str, callback: Callable[[int, int, Any], None]
) -> Any:
    """`restore_folder` on the engine that --workers names."""
    from ..cluster.restore import Order, restore_on_ray

    pool = pool_of(args)
    if caution:
        log.warning("%s", caution)
    order = Order(args.photos, args.out, args.restorer, config, args.device, args.fidelity, **how)
    return restore_on_ray(order, pool, callback)


def tone(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from dataclasses import replace as with_changes

    from ..damage.tone import check_strength, read_tone, with_tone
    from ..files.photos import read_photo, write_photo
    from ..files.records import write_json

    def one(file: Path, relative: Path) -> tuple[dict[str, Any], Sequence[str]]:
        photo = read_photo(file)
        found = read_tone(photo.pixels, args.strength)
        place = results.place(file, relative)
        lost = write_photo(place, with_changes(photo, pixels=with_tone(photo.pixels, found)))
        results.written(place)
        return found._asdict(), tuple(dict.fromkeys((*photo.notes, *lost)))

    check_strength(args.strength)
    results = Results(args.photos, args.out, "tone")
    lines, files = each_photo(args.photos, one, bars.named("tone"))
    if lines:
        write_json(results.table("tone.json"), {"strength": args.strength, "photos": lines})
    print_account(files, DONE, f"results in {printable(args.out)}")
    return {"photos": len(lines), "files": files, "problems": problems_of(files)}


def export(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from ..restorers import export_pth, load_restorer, save_restorer

    restorer = load_restorer(args.file)
    if args.out.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"--out {printable(args.out)}: must end in .pth or .safetensors")
    place = free_place(args.out, maker=maker_of("export", Path(args.file)))
    if place.suffix == ".pth":
        export_pth(place, restorer)
    else:
        save_restorer(place, restorer, restorer.metadata)
    print(f"restorer: {printable(place)}, licence: {printable(restorer.licence)}", file=sys.stderr)
    return {"restorer": str(place), "licence": restorer.licence}


def inspect(args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    from dataclasses import asdict

    from .inspection import inspect as look
    from .inspection import inspect_picture, is_picture

    found = inspect_picture(args.file) if is_picture(args.file) else look(args.file)
    print("\n".join(map(printable, found.lines())), file=sys.stderr if args.json else sys.stdout)
    return asdict(found)


def add_commands(commands: Commands) -> None:
    """Add the commands of this family."""
    from ..damage.tone import STRENGTH_TEXT
    from ..restorers.codeformer import FIDELITY_TEXT, CodeFormer

    sub = commands.add(restore, "Restore the faces of a folder of photos.", group=MAIN, goes_on=True)
    on_workers(in_shards(on_device(sub)))
    text = "Also write the summary as a Parquet file, a row for each file; needs pyarrow."
    sub.add_argument("--parquet", type=path_from, metavar="FILE", help=text)
    sub.add_argument("photos", type=path_from, metavar="PHOTOS", help="Folder of photos, or one photo.")
    text = "An adapted restorer, or any other."
    sub.add_argument("--restorer", type=name_from, default="embedded", metavar="FILE", help=text)
    sub.add_argument(
        "--out", type=folder_from, required=True, metavar="DIR", help="Folder of results, named like the photos."
    )
    sub.add_argument("--aligned", action="store_true", help="The photos are aligned square faces already.")
    text = "Leave results alone that are there already, whatever they were made with."
    sub.add_argument("--skip-existing", action="store_true", help=text)
    text = "Make all results anew; otherwise those made before from the same photo in the same way are kept."
    sub.add_argument("--again", action="store_true", help=text)
    text = f"{FIDELITY_TEXT} Without it, {CodeFormer.fidelity_weight} is taken."
    sub.add_argument("--fidelity", type=float, metavar="FLOAT", help=text)
    text = "Leave out where the photos were taken; photos without faces are then written anew, not copied."
    sub.add_argument("--strip-gps", action="store_true", help=text)
    text = "A photo of one person: only faces that look like theirs are restored, see --person-limit."
    sub.add_argument("--person", type=path_from, metavar="FILE", help=text)
    text = "A good photo of a person, whose detail is lent to their face in each photo; may be given several times."
    sub.add_argument("--reference", type=path_from, action="append", default=[], metavar="FILE", help=text)
    add_restore_flags(sub)
    sub = commands.add(
        export, "Write a complete restorer under its base's tensor names, for other programs.", group=STAGES
    )
    sub.add_argument(
        "file", type=name_from, metavar="FILE", help="A restorer, or a file of low-rank changes whose base is here."
    )
    text = "NAME.pth for ReActor and facerestore_cf, which read only that, or NAME.safetensors."
    sub.add_argument("--out", type=path_from, required=True, metavar="NAME", help=text)
    sub = commands.add(
        inspect,
        "Show what a restored picture or a restorer records, and whether the restorer may be used commercially.",
        group=MAIN,
    )
    sub.add_argument(
        "file", type=name_from, metavar="FILE", help="A picture, a restorer, a file of low-rank changes, or a prior."
    )
    sub = commands.add(
        tone, "Undo fading and yellowing, before faces are restored; nothing else is changed.", group=STAGES
    )
    sub.add_argument("photos", type=path_from, metavar="PHOTOS", help="Folder of photos, or one photo.")
    text = "Folder of results, and of tone.json, which says what was done."
    sub.add_argument("--out", type=folder_from, required=True, metavar="DIR", help=text)
    sub.add_argument("--strength", type=float, default=1.0, help=f"{STRENGTH_TEXT} Without it, 1 is taken.")
