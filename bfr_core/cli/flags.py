"""Flags of the command line that are made from settings, and the settings that the flags of a command ask for.

The type, the meaning and the range of a flag stand at the field of the setting. Flags that few people need are left out
of the help; `--set` reaches every setting.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..device import choose_device
from ..files.ownership import in_the_way
from ..settings import Setting, read_assignments, setting_at, settings_of

MAIN, STAGES, STUDIES = "main commands", "the stages of adapt, one by one, and other tools", "studies of the method"
ORDER = ("adapt", "restore", "ui", "weights", "inspect", "settings")  # of the main commands
# Flag -> the setting of `AdaptConfig` that it changes.
OPTIONS = {
    "--aligned": "faces.aligned",
    "--detector": "faces.detector",
    "--min-face": "faces.min_face",
    "--restorer": "restorer",
    "--prior": "prior",
    "--sampler": "targets.sampler.kind",
    "--num-steps": "targets.sampler.num_steps",
    "--start": "targets.sampler.t_start",
    "--constrain-end": "targets.sampler.t_constrain_end",
    "--factor": "targets.sampler.factor",
    "--calls": "targets.sampler.calls",
    "--eta": "targets.sampler.eta",
    "--reference": "targets.reference",
    "--clean-level": "targets.t_clean",
    "--target-detail": "targets.detail",
    "--gate": "gate.limit",
    "--gate-tries": "gate.tries",
    "--people": "people.find",
    "--album": "album.find",
    "--good": "album.good",
    "--real": "album.real",
    "--iterations": "finetune.iterations",
    "--minutes": "finetune.minutes",
    "--batch-size": "finetune.batch_size",
    "--micro-batch": "finetune.micro_batch",
    "--lr": "finetune.lr",
    "--l1": "finetune.l1",
    "--perceptual": "finetune.perceptual",
    "--adversarial": "finetune.adversarial",
    "--texture": "finetune.texture",
    "--anchor": "finetune.anchor",
    "--transplant": "finetune.transplant",
    "--judged-on": "finetune.judged_on",
    "--feature": "finetune.feature",
    "--code": "finetune.code",
    "--trainable": "finetune.trainable",
    "--rank": "finetune.rank",
    "--recompute": "finetune.recompute",
    "--precision": "finetune.precision",
}
# The flags that the help of a command shows.
SHOWN = ("--aligned", "--restorer", "--prior", "--people", "--album", "--good", "--iterations", "--minutes")
FACE_FLAGS = ("--aligned", "--detector", "--min-face")
TARGET_FLAGS = tuple(flag for flag, path in OPTIONS.items() if path.startswith("targets."))
GATE_FLAGS = ("--gate", "--gate-tries")
ALBUM_FLAGS = ("--album", "--good", "--real")
TUNE_FLAGS = tuple(flag for flag, path in OPTIONS.items() if path.startswith("finetune."))
SOURCES = ("--restorer", "--prior")
SEARCHED = ("targets.sampler.t_start", "targets.sampler.factor")  # "auto" finds them from the faces
SEEDS = ("targets.seed", "finetune.seed")
# Settings that name a file or a folder.
PATHS = ("restorer", "prior", "album.good", "album.real", "background")


class Commands:
    """The commands of `bfr`, as they are added, with the group that each stands in."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parsers = parser.add_subparsers(required=True, metavar="COMMAND")
        self.told: dict[str, list[tuple[str, str]]] = {MAIN: [], STAGES: [], STUDIES: []}

    def add(
        self,
        function: Callable[..., dict[str, Any]],
        text: str,
        *flags: str,
        group: str,
        goes_on: bool = False,
    ) -> argparse.ArgumentParser:
        """The parser of a new command, named like its function, with `flags`, which are keys of `OPTIONS`.

        text: its description. group: the heading that it stands under. goes_on: whether it goes on where it stopped
        when it is given again.
        """
        name = function.__name__.replace("_", "-")
        self.told[group].append((name, text))
        sub = self.parsers.add_parser(name, description=text)
        sub.set_defaults(command=function, goes_on=goes_on)
        sub.add_argument("--json", action="store_true", help="Print a summary in JSON at the end, for programs.")
        for flag in flags:
            _add(sub, flag)
        if flags:
            accept_settings(sub)
        return sub

    def lines(self) -> list[str]:
        """The commands by group, for the help of `bfr`."""
        lines = []
        for group, told in self.told.items():
            told = sorted(told, key=lambda one: ORDER.index(one[0]) if one[0] in ORDER else len(ORDER))
            lines += [f"{group}:", *(f"  {name:<12} {text}" for name, text in told), ""]
        return [*lines, "'bfr COMMAND --help' lists the options of a command."]


def path_from(text: str) -> Path:
    """The path that an argument names, as by `name_from`: the `type` of every file and folder on the command line."""
    return Path(name_from(text))


def name_from(text: str) -> str:
    """The name of a file, a folder or something that ships, with the home folder in place of a leading ~.

    Raises ArgumentTypeError for "", which as a path would be the current folder.
    """
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a file or a folder")
    return os.path.expanduser(text)


def folder_from(text: str) -> Path:
    """`path_from` of a folder that is written to, there or not.

    Raises ArgumentTypeError if a file or a broken link is in its place.
    """
    path = path_from(text)
    if blocked := in_the_way(path):
        raise argparse.ArgumentTypeError(f"{blocked}; name a folder, which need not be there yet")
    return path


def accept_settings(sub: argparse.ArgumentParser, example: str = "finetune.lr=1e-4") -> None:
    """Add --set, which reaches every setting."""
    text = f"Any other setting, such as {example}; may be given several times; 'bfr settings' lists them."
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help=text)


def on_device(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --device."""
    text = "Where networks run: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1, mps."
    sub.add_argument("--device", default="auto", help=text)
    return sub


def in_shards(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --shard."""
    from ..files.shards import WHOLE, Shard

    def read(text: str) -> Shard:
        try:
            return Shard.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    text = (
        "Do only part I of N, counted from 1, while other processes or machines do the others; together they make what "
        "one would have made."
    )
    sub.add_argument("--shard", type=read, default=WHOLE, metavar="I/N", help=text)
    return sub


def on_workers(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --workers, and what each of them has."""
    text = "Work on many machines: ray, or ray:ADDRESS of a cluster that runs; needs the packages of the extra cluster."
    sub.add_argument("--workers", default="", metavar="ENGINE", help=text)
    text = "With --workers: cores of each worker, which has as many threads (1)."
    sub.add_argument("--cpus-per-worker", type=float, default=1, metavar="N", help=text)
    text = "With --workers: graphics cards of each worker, such as 0.5 for two workers on a card (0)."
    sub.add_argument("--gpus-per-worker", type=float, default=0, metavar="N", help=text)
    return sub


def pool_of(args: argparse.Namespace) -> Any:
    """The `Pool` that --workers names; raises ValueError if it names none, or --shard is given as well."""
    from ..cluster.pool import Pool

    if not args.shard.is_whole:
        raise ValueError("--shard: is for work without an engine; with --workers, Ray cuts the work")
    return Pool.read(args.workers, args.cpus_per_worker, args.gpus_per_worker)


def tunes(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of every command that tunes."""
    from ..adaptation.config import LOW_MEMORY_TEXT

    sub.add_argument("--low-memory", action="store_true", help=LOW_MEMORY_TEXT)
    text = "Also write restorer.pth, for programs that read only .pth (ReActor, facerestore_cf)."
    sub.add_argument("--export-pth", action="store_true", help=text)
    return on_device(sub)


def by_recipe(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --recipe."""
    found = setting_at(_adapt_config(), "recipe")
    sub.add_argument("--recipe", choices=found.choices, default=found.default, help=help_of(found))
    return sub


def with_run(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the run's folder and the seed of every random draw."""
    sub.add_argument("--run", type=path_from, required=True, metavar="DIR", help="Folder that holds the adaptation.")
    sub.add_argument("--seed", type=int, metavar="N", help="The seed of every random draw (0).")
    return sub


def _add(parser: argparse.ArgumentParser, flag: str) -> None:
    """Add a flag for a setting, with the type of the setting; without the flag the recipe's value holds."""
    found = setting_at(_adapt_config(), OPTIONS[flag])
    found = replace(found, auto=True) if found.path in SEARCHED else found
    text = help_of(found) if flag in SHOWN else argparse.SUPPRESS
    if found.kind is bool:
        parser.add_argument(flag, dest=dest_of(flag), action="store_true", default=None, help=text)
    else:
        name = found.kind.__name__.upper()
        parser.add_argument(flag, dest=dest_of(flag), type=reader_of(found), metavar=name, help=text)


def help_of(found: Setting) -> str:
    """The help of a setting's flag."""
    return found.help_text.replace("%", "%%")


def reader_of(found: Setting) -> Callable[[str], Any]:
    """A reader of a flag's text as the type of the setting; its range is checked where the settings are made."""

    def read(text: str) -> Any:
        if found.path in PATHS and (text or found.default):
            return name_from(text)
        try:
            return found.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _assigned(config: Any, texts: list[str]) -> dict[str, Any]:
    """`read_assignments` of what --set was given, with the home folder in place of a leading ~ of a path."""
    values = read_assignments(config, texts)
    for path in (path for path in PATHS if path in values):
        if not values[path] and setting_at(config, path).default:
            raise ValueError(f"--set {path}=: is empty; name a file or a folder")
        values[path] = os.path.expanduser(values[path])
    return values


def add_restore_flags(sub: argparse.ArgumentParser) -> None:
    """Add a flag for every setting of `RestoreConfig` that is not a switch; --set reaches those."""
    for found in settings_of(_restore_config()):
        if found.kind is not bool:
            flag, text = f"--{found.name.replace('_', '-')}", f"{help_of(found)} ({found.default})"
            metavar = f"{{{','.join(found.choices)}}}" if found.choices else "VALUE"
            sub.add_argument(flag, type=reader_of(found), default=found.default, help=text, metavar=metavar)
    accept_settings(sub, "match_colour=false")


def restore_config(args: argparse.Namespace) -> Any:
    """The settings of a restoration that the flags ask for."""
    config = _restore_config()
    given = {one.path: getattr(args, one.path) for one in settings_of(config) if hasattr(args, one.path)}
    return config(**given | _assigned(config, args.set))


def or_auto(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of `kind` that also knows the word "auto"."""

    def read(text: str) -> Any:
        return text if text == "auto" else kind(text)

    read.__name__ = f"{kind.__name__} or auto"
    return read


def all_settings() -> dict[str, Any]:
    """The dataclasses of all settings, by the heading above the list of each."""
    return {
        "adapt: --set of adapt, targets, finetune, ablate and bench (the recipe may change a default)": _adapt_config(),
        "restore: --set of restore": _restore_config(),
    }


def _adapt_config() -> Any:
    from ..adaptation.config import AdaptConfig

    return AdaptConfig


def _restore_config() -> Any:
    from ..restoration.restore import RestoreConfig

    return RestoreConfig


def dest_of(flag: str) -> str:
    """Where argparse keeps what a flag was given."""
    return flag.strip("-").replace("-", "_")


# ---------------------------------------------------------------- what the flags ask for


def base_restorer(args: argparse.Namespace) -> Any:
    """The restorer that --restorer names, on --device."""
    from ..restorers import load_restorer

    name = asked(args).get("restorer", "embedded")
    return load_restorer(name).to(choose_device(getattr(args, "device", "cpu")))


def settings_from(args: argparse.Namespace, restorer: Any) -> Any:
    """The recipe that --recipe names for `restorer`, changed by the flags that were given."""
    from ..adaptation.published import RECOMMENDED, recipe_with

    values = asked(args)
    name = values.pop("recipe", getattr(args, "recipe", RECOMMENDED))
    return recipe_with(restorer, name, values, brought=bool(getattr(args, "targets", None)))


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that flags and --set ask for, by dotted path. Raises ValueError, in one line, for a wrong --set."""
    from ..adaptation.config import LOW_MEMORY

    given = {path: getattr(args, dest_of(flag), None) for flag, path in OPTIONS.items()}
    given |= dict.fromkeys(SEEDS, getattr(args, "seed", None))
    given["targets.precision"] = given["finetune.precision"]
    values = {path: value for path, value in given.items() if value is not None}
    for text in getattr(args, "set", ()):
        path, _, value = (part.strip() for part in text.partition("="))
        values |= {path: "auto"} if path in SEARCHED and value == "auto" else _assigned(_adapt_config(), [text])
    left = [path for path in SEARCHED if values.get(path) == "auto"]
    if left:
        values = {path: value for path, value in values.items() if path not in left}
        values["targets.search"] = tuple(path.rsplit(".", 1)[1] for path in left)
    return (LOW_MEMORY if getattr(args, "low_memory", False) else {}) | values
