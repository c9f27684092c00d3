"""A run: one folder that holds one adaptation, can be resumed, and is the only place written to."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..files.ownership import claim, in_the_way, made_without_list, refuse_foreign, tidy
from ..files.photos import printable
from ..files.records import read_table, write_json
from ..files.shards import Shard, locked_shard, shards_at_work
from ..files.stages import growing, is_held, old_files

log = logging.getLogger(__name__)

SHARDS_BEGIN = 10.0  # seconds that the parts of a stage that are started at once wait for one another
LOG_HEAD = "# What BFR Adapt did in this folder\n"
# What version 0.1, which kept no lists, wrote into a run besides its stages; also demonstrations and benchmarks.
OLD_FILES = (
    *("config.json", "left_out.json", "album.json", "settled.json", "gate.json", "job.json", "request.json"),
    *("comfyui.json", "report.html", "report.json", "log.txt", "restorer.safetensors", "restorer.pth"),
    *("restorer_codeformer.pth", "change.safetensors", "groups.safetensors", "checkpoints/last.pt"),
    *("groups/base.safetensors", "groups/found.safetensors", "good/config.json", "repaired/repaired [0-9]*.zip"),
    *("before_after.png", "table.txt", "table.csv", "table.json", "cells/*.json", "pictures/*.png", "pictures/*/*.png"),
)


# The results of hours of work: whether they may be written is checked before the work begins.
WRITTEN_LAST = (
    *("report.html", "report.json", "restorer.safetensors", "restorer.pth", "restorer_codeformer.pth"),
    *("change.safetensors", "groups.safetensors"),
)


class Run:
    """Paths and records of a run folder.

    config.json       settings of every stage, as last used
    faces/            aligned crops and faces.json; former/ in it, and in targets/: pictures that were changed by hand
                      and are of faces that are no more
    left_out.json     faces that the user does not want used
    restored/         what the base restorer makes of them
    targets/          pseudo targets; redrawn/ in it: those drawn again because the checks refused the first
    photos/, given/   photos and targets that came as pictures, not as files
    people.json       whose face each is, where that was asked for
    album.json        how clear each face is, where good ones were looked for
    good/             faces of photos that were given as good ones
    real/             faces of photos that the discriminator takes for real
    settled.json      settings that were left to the faces ("auto")
    damage.json       what the photos lost and gained, estimated over all of them
    gate.json         what the checks of the targets found of each; gate_given.json: of targets that were made elsewhere
    checkpoints/      training state
    restorer.safetensors, report.html, report.json, log.txt
    job.json          how far the last job in the background is, see `jobs`
    restorer.pth          the same again, if asked for; restorer_codeformer.pth where it is one
    change.safetensors    after low-rank tuning: only what it changed
    groups.safetensors    of a mixed folder: the groups of damages that were found, and the restorer of each
    groups/           base.safetensors, and a run for each group: 1/, 2/, ...; former/: an earlier adaptation's
                      restorers, which groups.safetensors names until the new ones are there
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if blocked := in_the_way(self.folder):
            raise ValueError(f"{blocked}; give a folder")

    @property
    def faces(self) -> Path:
        return self.folder / "faces"

    @property
    def left_out(self) -> Path:
        return self.folder / "left_out.json"

    @property
    def restored(self) -> Path:
        return self.folder / "restored"

    @property
    def targets(self) -> Path:
        return self.folder / "targets"

    @property
    def redrawn(self) -> Path:
        return self.targets / "redrawn"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def given(self) -> Path:
        return self.folder / "given"

    @property
    def people(self) -> Path:
        return self.folder / "people.json"

    @property
    def album(self) -> Path:
        return self.folder / "album.json"

    @property
    def real(self) -> Path:
        return self.folder / "real"

    @property
    def good(self) -> Path:
        return self.folder / "good"

    @property
    def resolved_settings(self) -> Path:
        return self.folder / "settled.json"

    @property
    def damage(self) -> Path:
        return self.folder / "damage.json"

    @property
    def target_checks(self) -> Path:
        return self.folder / "gate.json"

    @property
    def first_look(self) -> Path:
        return self.folder / "first_look"

    @property
    def given_checks(self) -> Path:
        return self.folder / "gate_given.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.pt"

    @property
    def restorer(self) -> Path:
        return self.folder / "restorer.safetensors"

    def exported(self, architecture: str) -> Path:
        """The .pth file; ReActor and facerestore_cf know a CodeFormer by its file's name."""
        return self.folder / ("restorer_codeformer.pth" if architecture == "CodeFormer" else "restorer.pth")

    @property
    def change(self) -> Path:
        return self.folder / "change.safetensors"

    @property
    def groups(self) -> Path:
        return self.folder / "groups.safetensors"

    @property
    def result(self) -> Path:
        """The file that restores with everything learned: the file of groups if there is one, else the restorer."""
        return self.groups if os.path.isfile(self.groups) else self.restorer

    def of_group(self, number: int) -> Run:
        """The run, inside this one, of a group of faces that share a damage; counted from 1."""
        return Run(self.folder / "groups" / str(number))

    def by_group(self) -> list[Run]:
        """The runs of the groups in which the run was last adapted; none if it was adapted as a whole."""
        count = self.config().get("finetune", {}).get("groups", 0)
        numbers = range(1, 1 + count) if isinstance(count, int) else ()
        return list(takewhile(lambda run: os.path.isdir(run.folder), map(self.of_group, numbers)))

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def claim(self) -> None:
        """Make the folder; ValueError, in one line, if it holds files that this program did not make."""
        before = old_files(self.folder, OLD_FILES) if made_without_list(self.folder) else None
        claim(self.folder, "run", before)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process and write the log to log.txt; freed by the system if the process dies.

        Raises ValueError if another process holds it, OSError in one line if the folder cannot be written.
        """
        with self._lock(timeout=1):  # whoever asks whether it is held, holds it for a moment
            if at_work := shards_at_work(self.folder):
                said = f"run {printable(self.folder)} is in use by shard {at_work[0].replace('-of-', '/')}"
                raise ValueError(f"{said}; wait for it or stop it")
            for name in WRITTEN_LAST:
                refuse_foreign(self.folder / name)
            tidy(self.folder)
            with self._logging():
                yield

    @contextlib.contextmanager
    def locked_shard(self, shard: Shard) -> Iterator[None]:
        """Hold a part of a stage for this process; other processes may hold the other parts. Raises as `locked`."""
        with contextlib.ExitStack() as held:
            with self._lock(timeout=SHARDS_BEGIN):
                held.enter_context(locked_shard(self.folder, shard))
            yield

    @contextlib.contextmanager
    def _lock(self, timeout: float) -> Iterator[None]:
        """Make the folder and hold its lock; see `locked` for what is raised."""
        from filelock import FileLock, Timeout

        try:
            self.claim()
            lock = FileLock(self.folder / ".lock", timeout=timeout)
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"run {printable(self.folder)} is in use by another process; wait for it or stop it"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            clear = OSError(f"run {printable(self.folder)}: cannot be written ({reason}); choose another folder")
            clear.errno = error.errno
            raise clear from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        """Write the log to log.txt, too."""
        handler = logging.FileHandler(growing(self.folder / "log.txt", LOG_HEAD), encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        package = logging.getLogger(__package__.partition(".adaptation")[0])
        package.addHandler(handler)
        try:
            yield
        finally:
            package.removeHandler(handler)
            handler.close()

    def busy(self) -> bool:
        """Whether a process, this one included, holds the run, a part of it, or its first look."""
        locks = (self.folder / ".lock", self.first_look / ".lock")
        return any(map(is_held, locks)) or bool(shards_at_work(self.folder))

    def record(self, stage: str, settings: dict[str, Any]) -> None:
        """Note the settings a stage used in config.json."""
        write_json(self.folder / "config.json", self.config() | {stage: settings})

    def config(self) -> dict[str, Any]:
        """Settings of the stages done so far. Raises ValueError naming config.json if it is damaged."""
        path = self.folder / "config.json"
        return read_table(path, **dict.fromkeys(read_table(path), dict))
