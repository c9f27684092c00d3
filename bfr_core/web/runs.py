"""The runs below one folder, what may be read for them, and the restorers at hand.

Everything that came from outside (names, paths, uploads, what a run folder says) is checked here.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from ..adaptation.config import AdaptConfig
from ..adaptation.faces import holds_photos_of
from ..adaptation.published import RECIPES, RECOMMENDED, recipe_of, recipe_with
from ..adaptation.run import Run
from ..device import choose_device
from ..diffusion.latent_prior import holds_latent_prior
from ..files.kinds import why_left_out
from ..files.names import numbered
from ..files.ownership import LIST, claim, delete, free_name, is_own, sha256_of
from ..files.photos import FORMATS, list_images, own_names, photo_name, printable, read_photo, replace_atomically
from ..files.records import read_table, write_json
from ..files.weights import TABLE, locate, search_folders
from ..reports.html import VERDICTS
from ..restorers import Restorer, load_restorer
from ..restorers.load import EMBEDDED_SMALL, SHIPPED
from ..settings import setting_at
from .choices import ADVANCED, CHOSEN, GOOD, Choices, chosen_for, typed_folder, value_at, without_a_field
from .jobs import Jobs, Status

log = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 200 << 20  # of one file
MAX_UPLOAD_PIXELS = 100_000_000
MAX_UPLOADS = 2000
FOLDERS_LOOKED_AT = 2000  # for the photos of a run of which only the folder's name is known
FOR_SETTINGS = "cpu"  # where a restorer that only tells its recipe is kept: a card's memory is not taken for that
MARKS = ("request.json", "config.json", "job.json")  # one of them makes a folder a run
CACHE = "_page"  # below the runs: all that the page serves, and nothing else is served


class RunFolders:
    """The runs below one folder; `actions.Page` adds what may be done with them.

    allowed: folders that paths typed into the page must lie in; how_to_allow: says how to allow others. uploads: where
    the server puts what is dropped on the page, by default its own cache. changed: called, from whichever thread, after
    an adapted restorer has come or gone. Methods raise ValueError, FileNotFoundError or OSError, in one line, for what
    cannot be done.
    """

    def __init__(
        self,
        runs: Path,
        allowed: Sequence[Path] = (),
        device: str = "auto",
        *,
        how_to_allow: str = "start with --allow DIR",
        uploads: Path | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.runs = Path(runs).resolve()
        self.allowed = [Path(folder).resolve(strict=True) for folder in allowed]
        self.device, self.how_to_allow, self.changed = device, how_to_allow, changed
        self.cache = self.runs / CACHE
        self._make_folders()
        self.uploads = Path(uploads).resolve() if uploads else self.cache
        self.jobs = Jobs()
        self._loaded: dict[tuple[Any, ...], Restorer] = {}
        self._grids: dict[str, str] = {}  # what the views made of faces and networks, the last few
        self._loading = threading.Lock()  # buttons, hosts and HTTP calls ask from threads of their own
        self._leaving_out = threading.Lock()  # a click may come before the one before it is done
        self._alone: dict[Path, threading.RLock] = {}

    def names(self) -> list[str]:
        """The runs by their `sendable_names`, the one touched last first."""
        return list(self._folders())

    def _folders(self) -> dict[str, str]:
        """Name of each run -> that of its folder."""
        self._make_folders()
        runs = [path for path in self.runs.iterdir() if any(os.path.isfile(path / mark) for mark in MARKS)]
        return sendable_names([path.name for path in sorted(runs, key=touched, reverse=True)])

    def _make_folders(self) -> None:
        """Make the folder of the runs and the page's cache, also where somebody has cleared them away since."""
        if not os.path.isfile(self.cache / LIST):
            claim(self.cache, "run", made_before=())

    def run(self, name: str | None) -> Run:
        """The run of this name, which must be one of `names`, or the name of its folder."""
        if not name:
            raise ValueError("choose a run first, or start a new one from photos")
        folders = self._folders()
        if name not in folders and name not in folders.values():
            raise ValueError(f"{printable(str(name))}: there is no such run")
        return Run(self.runs / folders.get(name, name))

    @contextmanager
    def alone(self, run: Run) -> Iterator[None]:
        """For what begins a job of the run, from its first look at the status on: two users take turns, and the second
        sees what the first has begun."""
        with self._alone.setdefault(run.folder, threading.RLock()):
            yield

    def status(self, run: Run) -> Status:
        """How far the run's last job is; a run whose own files are damaged counts as failed for that reason."""
        try:
            return self.jobs.status(run)
        except (ValueError, OSError) as error:
            return Status(state="failed", error=printable(str(error)))

    def latest(self) -> str | None:
        """The run to show when the page is opened: the one that is at work, else the newest."""
        names = self.names()
        active = (name for name in names if self.status(self.run(name)).active)
        return next(active, names[0] if names else None)

    def remember(self, run: Run, choices: Choices) -> None:
        """Keep what was chosen, so that the run can be continued after the page or the server was closed."""
        kept = read_table(run.folder / "request.json", photos=str)
        chosen = {name: getattr(choices, name) for name in Choices.__dataclass_fields__} | {
            "changes": dict(choices.changes),
            "others": dict(choices.others),
        }
        write_json(run.folder / "request.json", {"photos": kept.get("photos", "")} | chosen)

    def choices_of(self, name: str | None) -> Choices:
        """What was chosen for the run last, with the recipe's values for the rest.

        Where its restorer or prior is not here, that is the embedded one; see `refuse_other_networks`.
        """
        run = self.run(name) if name else None
        kept = chosen_for(run) if run else {}
        known = {key: kept[key] for key, kind in CHOSEN.items() if isinstance(kept.get(key), kind)}
        if known.get("restorer", "embedded") not in restorers():
            known["restorer"] = "embedded"
        if known.get("prior", "embedded") not in priors():
            known["prior"] = "embedded"
        if known.get("recipe", RECOMMENDED) not in RECIPES:
            known["recipe"] = RECOMMENDED
        known["others"] = without_a_field(known.get("others", {}).get)
        choices = Choices(**known)
        own = {k: value for k, value in choices.changes.items() if k in ADVANCED and isinstance(value, int | float)}
        return replace(choices, changes=self.defaults(choices.restorer, choices.recipe) | own)

    def with_others(self, run: Run, choices: Choices) -> Choices:
        """`choices` with the settings that a run of the command line was begun with and the page has no field for.

        With another recipe or another restorer than that run's they are the new one's, but for its good photos.
        """
        kept = self.choices_of(run.folder.name)
        same = (choices.restorer, choices.recipe) == (kept.restorer, kept.recipe)
        return replace(choices, others={path: v for path, v in kept.others.items() if same or path == GOOD})

    def refuse_other_networks(self, run: Run, kinds: Sequence[str] = ("restorer", "prior")) -> None:
        """Raise ValueError if the restorer or the prior that the run was begun with is not among those here: another
        one would begin it anew, and take the place of what was made. kinds: which of the two are asked for."""
        kept = chosen_for(run)
        for what in kinds:
            here = restorers() if what == "restorer" else list(priors())
            used = kept.get(what, "embedded")
            if isinstance(used, str) and used not in here:
                advice = "put its file back, go on where the run was begun, or make a new run"
                named = f"{printable(run.folder.name)}: its {what}, {printable(used[:80])},"
                raise ValueError(f"{named} is not among those here; {advice}")

    def defaults(self, restorer: str, recipe: str = RECOMMENDED) -> dict[str, Any]:
        """Values of the `ADVANCED` settings in the recipe of this name for `restorer`."""
        config = recipe_of(self.restorer_named(restorer, FOR_SETTINGS), recipe)
        return {path: value_at(config, path) for path in ADVANCED}

    def photos_of(self, run: Run) -> Path:
        """The folder of the run's photos, checked anew: what a run folder says is not trusted."""
        kept = read_table(run.folder / "request.json", photos=str).get("photos")
        if kept:
            photos = self.typed_folder(kept)
            if not os.path.isdir(photos):
                where = f"{printable(run.folder.name)}: the folder of its photos, {printable(photos)}, is not there"
                raise FileNotFoundError(f"{where}; put it back, or make a new run from where they are now")
            return photos
        if os.path.isdir(run.photos):
            return run.photos
        name = str(run.config().get("faces", {}).get("photos", ""))  # only its name is kept, see collect_faces
        other = ""
        for place in self._folders_called(name) if is_plain_name(name) else ():
            photos = self.typed_folder(str(place))
            if holds_photos_of(run, photos):
                return photos
            other = f"; {printable(photos)} holds other photos"
        which = f'the folder "{printable(name)}" of its photos' if name else "the folder of its photos"
        raise ValueError(f"{printable(run.folder.name)}: {which} is not known here ({self.how_to_allow}){other}")

    def _folders_called(self, name: str) -> Iterator[Path]:
        """The allowed folders of this name, and those below them, the highest first."""
        waiting = deque(self.allowed)
        for _ in range(FOLDERS_LOOKED_AT):
            if not waiting:
                return
            folder = waiting.popleft()
            if folder.name == name:
                yield folder
            with suppress(OSError), os.scandir(folder) as entries:  # one that may not be read, or is gone
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        waiting.append(folder / entry.name)
                    elif entry.name == name and entry.is_dir():  # a link, which is not looked through
                        yield folder / name

    def face_names(self, run: Run) -> list[str]:
        return [name for face in face_records(run) if is_plain_name(name := str(face.get("name", "")))]

    def typed_folder(self, text: str) -> Path:
        """The folder that was typed. Raises ValueError if it lies outside the allowed ones, or is no whole path."""
        typed = Path(typed_folder(text))
        if not typed.is_absolute():
            example = f", such as {printable(self.allowed[0])}" if self.allowed else ""
            raise ValueError(f"{printable(text.strip())}: give the whole path of the folder{example}")
        path = Path(os.path.realpath(typed))  # unlike resolve, it accepts a link to itself
        if not self._is_allowed(path):
            which = ", ".join(printable(folder) for folder in self.allowed) or "none yet"
            # Where links lead that are not among the allowed folders is nobody's business here.
            link = f" leads to {printable(path)}, which" if self._is_allowed(Path(os.path.normpath(typed))) else ""
            raise ValueError(
                f"{printable(text.strip())}:{link} may not be read; allowed folders: {which} ({self.how_to_allow})"
            )
        return path

    def _is_allowed(self, path: Path) -> bool:
        return any(path == folder or folder in path.parents for folder in self.allowed)

    def usable_uploads(self, uploads: Sequence[str]) -> tuple[list[Path], list[str]]:
        """Those of the uploaded photos that can be used, and a line for each of the others.

        Raises ValueError if none is usable, or if there are too many.
        """
        if len(uploads) > MAX_UPLOADS:
            raise ValueError(f"{len(uploads)} photos are too many; drop {MAX_UPLOADS} at most, or name a folder")
        files = list(dict.fromkeys(Path(upload).resolve() for upload in uploads))  # the same photo twice is one
        usable, problems = [], []
        for file in files:
            try:
                if not {self.uploads, self.cache} & {*file.parents}:
                    raise ValueError(f"{printable(file.name)}: was not uploaded here")
                if file.suffix.lower() not in FORMATS:
                    raise ValueError(f"{printable(file.name)}: {why_left_out(file)}")
                if file.stat().st_size > MAX_UPLOAD_BYTES:
                    raise ValueError(f"{printable(file.name)}: is larger than {MAX_UPLOAD_BYTES >> 20} MB")
                read_photo(file, MAX_UPLOAD_PIXELS)
            except (ValueError, OSError) as error:
                problems.append(printable(str(error)))
            else:
                usable.append(file)
        if not usable:
            raise ValueError(f"none of the files can be used: {'; '.join(problems[:3])}")
        return usable, problems

    def keep_uploads(self, run: Run, files: Sequence[Path], folder: Path) -> None:
        """Copy `usable_uploads` into `folder` of the run, under their own names; cameras give all their first photos
        one name.

        The upload itself stays: the same photo in another field, or another tab, is the same file. It is noted, so that
        it goes with the run even if its copy has made way for those of a later repair.
        """
        kept = self._uploads_of(run)
        for file, name in zip(files, own_names([file.name for file in files]), strict=True):
            copy = free_name(folder / name)
            replace_atomically(copy, partial(shutil.copyfile, file))
            kept.append(_noted(copy))
        write_json(run.folder / "uploads.json", {"uploads": kept})

    def _uploads_of(self, run: Run) -> list[dict[str, Any]]:
        """What `keep_uploads` noted; [] where it is damaged, which holds nothing up."""
        with suppress(ValueError):
            return tables_in(read_table(run.folder / "uploads.json", uploads=list).get("uploads", []))
        return []

    def forget_pictures(self, run: Run) -> None:
        """Delete what the page's cache, and a host's folder of uploads, hold of a run: its uploads, and pictures and
        files that were shown of it. The same photo, dropped again since, is another's and stays."""
        self._grids.clear()
        copies = [*photos_below(run.photos), *photos_below(run.folder / "to_repair")]
        copied: dict[int, list[tuple[str, float]]] = {}  # by size: what the upload holds, and when it was copied
        for one in [*self._uploads_of(run), *map(_noted, copies)]:
            size, when = one.get("size"), one.get("time")
            if isinstance(size, int) and isinstance(when, int | float):
                copied.setdefault(size, []).append((str(one.get("sha256")), when))
        shown = [self.shown_of(run, what) for what in ("save", "compare", "faces")]
        for file in chain.from_iterable(where.rglob("*") for where in {self.cache, self.uploads}):
            if os.path.isfile(file) and not any(folder in file.parents for folder in shown):
                before = [holds for holds, when in copied.get(file.stat().st_size, ()) if touched(file) <= when]
                if before and sha256_of(file) in before:
                    delete(file, like=file)  # it holds what was uploaded for this run
        for folder in shown:
            delete(folder)

    def shown_of(self, run: Run, what: str) -> Path:
        """The folder in the page's cache for what is shown of a run; what: "faces", "compare" or "save"."""
        return self.cache / what / photo_name(Path(f"{run.folder.name}.run"))

    def _new_folder(self, title: str) -> Path:
        """A new, empty folder for a run, named after `title`: two that are made at once never share a name."""
        plain = re.sub(r"[^\w .()-]+", "-", f"{title[:80]}.run").replace("__", "_")
        stem = photo_name(Path(plain)).strip(" .") or "run"  # Windows drops dots and spaces at the end
        self._make_folders()
        for number in count(1):
            folder = self.runs / _numbered(stem, number)
            taken = {path.name.casefold() for path in self.runs.iterdir()}  # also where the disk tells a from A
            if folder.name.casefold() not in taken:
                with suppress(FileExistsError):  # made by another since
                    folder.mkdir()
                    return folder
        raise AssertionError("there is a number for every run")

    def adapted(self) -> list[str]:
        """The runs that have an adapted restorer."""
        return [name for name, folder in self._folders().items() if os.path.isfile(Run(self.runs / folder).result)]

    def restorer_named(self, name: str, device: str = "") -> Restorer:
        """A restorer that the page offers; device: see `loaded`."""
        if name not in restorers():
            raise ValueError(f"{printable(name)}: is not one of {', '.join(restorers())}")
        return self.loaded(SHIPPED.get(name) or locate(name) or Path(name), device)

    def settings_of(self, choices: Choices) -> dict[str, Any]:
        """Changes to the recipe, by dotted path, with the prior that was chosen. Raises ValueError for one that the
        page does not offer."""
        found = priors()
        if choices.prior not in found:
            raise ValueError(f"{printable(choices.prior)}: is not one of {', '.join(map(printable, found))}")
        return choices.settings() | ({} if choices.prior == "embedded" else {"prior": str(found[choices.prior])})

    def checked(self, choices: Choices) -> dict[str, Any]:
        """`settings_of`, after a look at the folder of real faces, too.

        Raises ValueError for choices with which an adaptation would not begin.
        """
        settings = self.settings_of(choices)
        if good := settings.get(GOOD):
            try:
                settings[GOOD] = str(self.typed_folder(good))
                list_images(Path(settings[GOOD]))
            except (ValueError, OSError) as error:
                raise ValueError(f"the folder of good photos that the run was begun with (--good): {error}") from None
        recipe_with(self.restorer_named(choices.restorer, FOR_SETTINGS), choices.recipe, settings)
        if choices.real.strip():
            try:
                list_images(self.typed_folder(choices.real))
            except (ValueError, OSError) as error:
                raise ValueError(f"{setting_at(AdaptConfig, 'album.real').label}: {error}") from None
        return settings

    def base_of(self, run: Run, tuned: Restorer) -> Restorer:
        """The restorer that `tuned` was tuned from. Raises ValueError if it is not among the restorers here."""
        base = self.restorer_named(chosen_for(run).get("restorer", "embedded"))
        wanted = tuned.metadata.get("base_sha256", base.sha256)
        if base.sha256 != wanted and tuned.metadata.get("base") == EMBEDDED_SMALL.name:
            base = self.loaded(EMBEDDED_SMALL)  # which was "the embedded one" when the run was made
        if base.sha256 != wanted:
            name = printable(tuned.metadata.get("base", "")[:80]) or "unknown"
            raise ValueError(f"{printable(run.folder.name)}: its base, {name}, is not among the restorers here")
        return base

    def loaded(self, source: str | Path, device: str = "") -> Restorer:
        """The restorer in a file; the last few are kept in memory, each while its file stays the same.

        device: by default that of the page.
        """
        status = Path(source).stat() if isinstance(source, Path) else None
        place = choose_device(device or self.device)
        key = (str(source), status and (status.st_size, status.st_mtime_ns), str(place))
        with self._loading:
            if key not in self._loaded:
                while len(self._loaded) > 2:
                    self._loaded.pop(next(iter(self._loaded)))
                self._loaded[key] = load_restorer(source).to(place)
            return self._loaded[key]

    @contextmanager
    def only_to_look(self) -> Iterator[None]:
        """What is `loaded` meanwhile, and was not before, is let go of afterwards."""
        with self._loading:
            before = set(self._loaded)
        try:
            yield
        finally:
            with self._loading:
                self._loaded = {key: kept for key, kept in self._loaded.items() if key in before}

    def forget(self) -> None:
        """Let go of the networks that were kept; jobs keep their own."""
        with self._loading:
            self._loaded.clear()


def restorers() -> list[str]:
    """Restorers that are on this machine, by the name the table knows them under."""
    return [*SHIPPED, *(w.name for w in TABLE if ", restorer," in w.what and locate(w.name))]


def priors() -> dict[str, Path | str]:
    """Priors that are on this machine, by the name shown: the embedded one, those of the table, and the host's Stable
    Diffusion checkpoints, of which only the tables of contents are read."""
    found: dict[str, Path | str] = {"embedded": "embedded"}
    found |= {w.name: place for w in TABLE if "prior" in w.what and (place := locate(w.name))}
    for folder in search_folders():
        files = sorted(path for depth in ("*", "*/*") for path in folder.glob(f"{depth}.safetensors"))
        found |= {path.name: path for path in files if path.name not in found and _is_latent_prior(path)}
    return found


def _is_latent_prior(path: Path) -> bool:
    """`holds_latent_prior`, but False for what cannot be read: one such file spares the others."""
    try:
        return holds_latent_prior(path)
    except (OSError, ValueError) as error:
        _warn_once(f"{printable(path)}: cannot be read ({printable(str(error))})")
        return False


@cache
def _warn_once(message: str) -> None:
    """Pages ask for the priors again and again."""
    log.warning("%s", message)


def sendable_names(names: Iterable[str]) -> dict[str, str]:
    """Each name by a text that a browser can be sent, in their order: itself, but where it is not UTF-8, which no
    answer can hold, `printable`, and with a number if that is taken."""
    given = list(names)
    own = {name for name in given if _is_utf8(name)}
    found: dict[str, str] = {}
    for name in given:
        shown = (str(numbered(Path(printable(name)), number)) for number in count(1))
        found[name if name in own else next(one for one in shown if one not in own and one not in found)] = name
    return found


def sendable(text: str) -> str:
    """`text` itself, but where it is not UTF-8, `printable`."""
    return text if _is_utf8(text) else printable(text)


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name)


def _noted(copy: Path) -> dict[str, Any]:
    """By what an upload is known again, from its copy in a run."""
    return {"size": copy.stat().st_size, "sha256": sha256_of(copy), "time": touched(copy)}


def adapted_file(run: Run, advice: str = "adapt first") -> Path:
    """The file of the run's adapted restorer. Raises ValueError if there is none."""
    if not os.path.isfile(run.result):
        raise ValueError(f"{printable(run.folder.name)}: has no adapted restorer yet; {advice}")
    return run.result


def verdict_of(run: Run) -> str:
    """The run's verdict in a word; a damaged report hides no other run."""
    try:
        return VERDICTS.get(read_table(run.folder / "report.json", verdict=str).get("verdict", ""), "")
    except ValueError:
        return "report damaged"


def face_records(run: Run) -> list[dict[str, Any]]:
    """What the run's faces.json holds of each face; [] if it has none. Raises ValueError naming the file if damaged."""
    return tables_in(read_table(run.faces / "faces.json", faces=list).get("faces", []))


def number_of_faces(run: Run) -> int | str:
    """The number of a run's faces, for the list of all runs, in which a damaged one hides no other."""
    try:
        return len(face_records(run)) or ""
    except ValueError:
        return "list damaged"


def photos_below(folder: Path) -> list[Path]:
    """The photos that this program put into a folder of a run; none if it is not there."""
    return [file for file in folder.rglob("*") if file.suffix.lower() in FORMATS and is_own(file)]


def tables_in(values: Iterable[Any]) -> list[dict[str, Any]]:
    """Those of `values`, read from a file, that are tables."""
    return [value for value in values if isinstance(value, dict)]


def is_plain_name(name: str) -> bool:
    """Whether a face's name is a file name and not a path: it was read from a run folder."""
    return bool(name) and Path(name).name == name and "\\" not in name and name not in (".", "..")


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem} {number}"


def touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
