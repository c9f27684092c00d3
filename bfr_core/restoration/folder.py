"""Restore the faces of a folder of photos, one after the other: read ahead, restore, write, and keep a record."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import compress, count, islice, takewhile
from pathlib import Path

from torch import Tensor

from ..device import is_out_of_memory, release_memory
from ..errors import first_line
from ..faces.align import Face, crop_face
from ..faces.detect import load_detector
from ..files.kinds import LeftOutError, without_name
from ..files.names import numbered
from ..files.ownership import (
    Claims,
    Ledger,
    begin_list,
    claim_results,
    free_name,
    make_folder,
    maker_of,
    note_result,
    tidy,
)
from ..files.photos import (
    Photo,
    look_through,
    printable,
    read_photo,
    refuse_other_kinds,
    replace_atomically,
    stated_pixels,
    status_of,
    warn_of_failed,
    without_place,
    write_photo,
)
from ..files.provenance import Step
from ..files.records import fingerprint
from ..files.shards import WHOLE, Shard, locked_shard
from ..files.tensors import sha256_of
from ..restorers.base import Restorer
from .background import OFF, Background, load_background, with_faces_of
from .record import RestorationRecord, Written, key_of
from .restore import (
    LARGER,
    FindFaces,
    Parser,
    RestoreCallback,
    RestoreConfig,
    choose_faces,
    hardly_changed,
    leave_sharp,
    load_parser,
    others_of,
    paste_faces,
    restoration_step,
    restore_crops,
    restored_background,
    square,
    whole,
    with_known_mask,
)
from .same_person import (
    FaceLikeness,
    LikenessCheck,
    load_check,
    warnings_of,
    with_left_alone,
)

log = logging.getLogger(__name__)

COMMAND = "restore"  # in the lists of results, as their maker
HELD_PIXELS = 100_000_000  # of photos that wait to be restored, and of those that wait to be written


@dataclass(frozen=True)
class FileResult:
    """What became of one file.

    status: "restored", "no_face" (copied as it is), "failed", "skipped" (left alone as it was found), "kept" (its
    result was made before from the same photo, with the same restorer and settings) or "left_out" (nothing is wrong
    with it, but it is no photo). reason: why it is not restored, or not all of its faces are. notes: what of the
    photo is not in the result.

    faces: restored in it, now or before. failed_faces: whose restoring failed. written: whether there is a result, of
    this time or kept. served: for each restored face, largest first, the group of damages whose restorer served it, or
    "base"; empty if there was only one restorer. place: of the result, None where there is none. likeness: see
    `RestoredPhoto`.
    """

    path: Path  # relative to the folder
    status: str
    reason: str = ""
    faces: int = 0
    served: tuple[str, ...] = ()
    written: bool = False
    notes: tuple[str, ...] = ()
    place: Path | None = None
    likeness: tuple[FaceLikeness, ...] = ()
    failed_faces: int = 0


@dataclass(frozen=True)
class FolderResult:
    """What became of a folder: a line for each file, in their order, and where the time went, in seconds."""

    files: list[FileResult]
    seconds: float = 0.0
    network_seconds: float = 0.0

    def count(self, status: str) -> int:
        return sum(file.status == status for file in self.files)


@dataclass(eq=False)
class Job:
    """A file on its way through `restore_folder`."""

    source: Path
    relative: Path
    target: Path
    photo: Photo | None = None
    faces: list[Face] = field(default_factory=list)
    crops: list[Tensor] = field(default_factory=list)
    restored: list[Tensor | str] = field(default_factory=list)
    served: tuple[str, ...] = ()  # for each of `crops`, "" where nothing is to be told
    skipped: list[str] = field(default_factory=list)
    found: int = 0
    problem: str = ""
    is_left_out: bool = False
    notes: tuple[str, ...] = ()
    likeness: tuple[FaceLikeness, ...] = ()
    judged: list[Face] = field(default_factory=list)  # whose likeness it is
    all_faces: list[Face] = field(default_factory=list)  # restored or not
    ground: Tensor | None = None  # the photo with its rest restored
    may_be_left_alone: list[bool] = field(default_factory=list)  # each of `faces`, see `paste_faces`
    key: str = ""  # for the record of the folder of results
    pixels: int = 0  # of the photo, as its file states them

    @property
    def name(self) -> str:
        """Path of the result in its folder, with forward slashes; it has a number where the photo's name was taken."""
        return self.relative.with_name(self.target.name).as_posix()


def restore_folder(
    folder: Path,
    out: Path,
    restorer: Restorer,
    config: RestoreConfig | None = None,
    *,
    aligned: bool = False,
    skip_existing: bool = False,
    again: bool = False,
    strip_gps: bool = False,
    person: Path | None = None,
    references: Sequence[Path] = (),
    callback: RestoreCallback | None = None,
    shard: Shard = WHOLE,
) -> FolderResult:
    """Restore every photo under `folder`, or the one that it is, into `out`, under the same relative path, name and
    format.

    Stopped and called again it goes on: a result that is there, made from the same photo with the same restorer and
    settings, is kept; `out` holds a record of that, see `restoration.record`. A result that was changed since it was
    made is left alone, and named.

    aligned: the photos are standard crops; results are at least as large as the restorer and as the photo was.
    skip_existing: leave results alone that are there already, whatever they were made with. again: keep none, make them
    anew. callback(step, total, preview): after every file, preview
    being a restored crop (3, S, S) or None; it may raise to stop.
    strip_gps: leave out where the photos were taken. person: a photo of the person whose faces alone are restored, see
    `RestoreConfig.person_limit`. references: good photos of one person, whose detail is lent to that person's face in
    each photo, see `restoration.reference`. shard: restore only this part of the photos; other processes may restore
    the other parts into the same `out` meanwhile, and all of them make what one would have made. The files that are no
    photos are in the result of the first part.
    Where a file that is not this program's has a result's name, or the result of another photo or of another command,
    the result gets a number, and that is said.
    A photo without faces is copied as it is, or with `strip_gps` written anew, because a copy may hold the place in
    ways nobody can list; one that cannot be read or written is reported, and the others go on. Whatever else lies in
    the folder is in the result as left out.
    Raises FileNotFoundError or ValueError if there are no photos, or a result would replace one of them, or another
    process restores this part.
    """
    config, folder, out = config or RestoreConfig(), Path(folder), Path(out)
    started = time.monotonic()
    jobs, left_out = plan_folder(folder, out)
    alone = claim_results(out)
    if alone:
        tidy(out)
    with locked_shard(out, shard):
        if restorer.caution:
            log.warning("%s", restorer.caution)
        work = FolderRestorer(
            out, restorer, config, RestorationRecord(out, shard.suffix[1:]), aligned=aligned,
            skip_existing=skip_existing, again=again, strip_gps=strip_gps, person=person, references=references,
            alone=alone,
        )  # fmt: skip
        jobs = shard.of(jobs, work.together)
        results = {job.relative: there for job in jobs if (there := work.there_already(job))}
        for step in range(1, 1 + len(results)):
            if callback:
                callback(step, len(jobs), None)
        if results:
            log.info("%d of %d results are there already", len(results), len(jobs))
        with contextlib.closing(work.restored(job for job in jobs if job.relative not in results)) as restored:
            for job, result in restored:
                results[job.relative] = result
                warn_of(result)
                if callback:
                    preview = next((crop for crop in job.restored if isinstance(crop, Tensor)), None)
                    callback(len(results), len(jobs), preview)
    if shard.number == 1:
        results |= {path: FileResult(path, status_of(reason), reason) for path, reason in left_out.items()}
        warn_of_failed(left_out)
    files = sorted(results.values(), key=lambda file: file.path.parts)
    return FolderResult(files, time.monotonic() - started, work.network_seconds)


def refuse_missing(person: Path | None, references: Sequence[Path]) -> None:
    """Raise FileNotFoundError if one of these photos of people, see `restore_folder`, is not there, ValueError if one
    is a folder.
    """
    for name, file in (("person", person), *(("reference", one) for one in references)):
        if file is not None and os.path.isdir(file):
            raise ValueError(f"{name} {printable(file)}: is a folder; name one photo in it")
        if file is not None and not os.path.isfile(file):
            raise FileNotFoundError(f"{name} {printable(file)}: no such file")


def warn_of(result: FileResult) -> None:
    """Log what a user should know of a photo that was just restored, or was not."""
    if result.reason and result.status != "left_out":
        log.warning("%s: %s", printable(result.path), printable(result.reason))
    for line in warnings_of(result.likeness) if result.status == "restored" else ():
        log.warning("%s: %s", printable(result.path), line)


class FolderRestorer:
    """What restores photos of a folder, one after the other: the networks, the settings and the folder of results.

    Arguments as in `restore_folder`; record: where results are noted. alone: see `claim_results`. A photo's result
    depends on the photo alone, and an aligned one's, by rounding, on those that are in the network with it.
    """

    def __init__(
        self,
        out: Path,
        restorer: Restorer,
        config: RestoreConfig,
        record: RestorationRecord,
        *,
        aligned: bool = False,
        skip_existing: bool = False,
        again: bool = False,
        strip_gps: bool = False,
        person: Path | None = None,
        references: Sequence[Path] = (),
        alone: bool = True,
    ) -> None:
        config, restorer = with_known_mask(config), restorer.at_precision(config.precision)
        self.out, self.restorer, self.config, self.record = out, restorer, config, record
        self.aligned, self.skip_existing, self.again, self.alone = aligned, skip_existing, again, alone
        self.strip_gps, self.person, self.references = strip_gps, person, references
        self.network_seconds = 0.0
        self.detector = None if aligned else load_detector(config.detector, config.threshold, restorer.device)
        self.parser = None if aligned else load_parser(config, restorer)
        if aligned and config.background != OFF:
            set_to = printable(config.background)
            log.warning("background is %s, but aligned faces have none; it changes nothing", set_to)
        self.rest = None if aligned else load_background(config.background, restorer)
        refuse_missing(person, references)
        self.made_with = _made_with(restorer, config, self.detector, strip_gps, person, references, self.rest)
        self._ledgers: dict[Path, Ledger] = {}
        self._results: dict[Path, set[str]] = {}
        self._claims: dict[Path, Claims] = {}  # of other processes, from when a folder was first looked at

    @property
    def together(self) -> int:
        """How many photos are in the network at once.

        Photos may be large: few are held at once. Aligned faces are small, and fill a batch together.
        """
        return self.config.batch_size if self.aligned else 1

    @cached_property
    def look(self) -> LikenessCheck | None:
        """The check of likeness; loaded once there is something to look at."""
        config = self.config
        limits = (config.person_limit, self.references, config.reference_strength, config.reference_limit)
        return load_check(config.likeness, self.restorer, self.detector, self.person, *limits)

    def there_already(self, job: Job) -> FileResult | None:
        """What is to be said of a photo whose result is there and stays; None for one that is to be restored.

        The job then has a place that no file of others has, nor one that was changed since it was restored.
        """
        self._look_at(job.target.parent)
        if self.skip_existing and self._is_there(job):
            return FileResult(job.relative, "skipped", "its result is there already")
        left = _left_alone(job, self.record, self.made_with)
        if left:
            return left
        kept = self._kept(job)
        if not kept:
            place = self._free_place(job)
            if place != job.target:
                log.warning("%s: the name is taken; the result is %s", printable(job.relative), printable(place.name))
                job.target = place
                kept = self._kept(job)
        if not kept:
            return None
        if not self.alone and job.target.name not in self._marked(job.target.parent):  # stopped before it was
            note_result(job.target)
        said = (kept.reason, kept.faces, kept.served, True, kept.notes)
        likeness = tuple(FaceLikeness.of(one) for one in kept.likeness)
        return FileResult(job.relative, "kept", *said, place=job.target, likeness=likeness)

    def _kept(self, job: Job) -> Written | None:
        """What the record says of a result that is to be kept; None if it is to be made."""
        return None if self.again else self.record.made_before(job.name, job.source, self.made_with)

    def _look_at(self, folder: Path) -> None:
        """Remember what is in a folder's list before places in it are chosen."""
        if folder not in self._claims:
            self._claims[folder] = Claims(folder)  # first: what is added between the two is in both
            self._ledgers[folder] = Ledger(folder)

    def _marked(self, folder: Path) -> set[str]:
        """Names in a folder that were marked as results before this began."""
        if folder not in self._results:
            self._results[folder] = self._ledgers[folder].results()
        return self._results[folder]

    def _is_there(self, job: Job) -> bool:
        """Whether a file is at the job's place that is not known as another photo's result, or its own has a number."""
        ledger, maker = self._ledgers[job.target.parent], maker_of(COMMAND, job.source)
        if os.path.exists(job.target) and not ledger.maker(job.target):
            return True
        places = takewhile(os.path.lexists, (numbered(job.target, number) for number in count(1)))
        return any(ledger.maker(place) == maker for place in places)

    def _is_free(self, job: Job) -> bool:
        """Whether nothing is at the job's place, or what this command made of the same photo."""
        if not os.path.lexists(job.target):
            return True
        folder, maker = job.target.parent, maker_of(COMMAND, job.source)
        if self._ledgers[folder].may_replace(job.target, maker):
            return True
        self._ledgers[folder] = Ledger(folder)  # others may write there meanwhile
        return self._ledgers[folder].may_replace(job.target, maker)

    def _free_place(self, job: Job, lost: Iterable[Path] = ()) -> Path:
        """The job's place, with a number if it is not free; that of another photo's result is not free either.

        lost: places that others took meanwhile.
        """
        own = job.target.with_name(job.relative.name)
        if job.target not in lost and self._is_free(job):
            return job.target
        numbers = (numbered(job.source, number) for number in range(2, 100))
        others = {job.target.with_name(photo.name) for photo in numbers if os.path.lexists(photo)}
        maker = maker_of(COMMAND, job.source)
        return free_name(own, others.union(lost), ledger=self._ledgers[own.parent], maker=maker)

    def _take_place(self, job: Job) -> None:
        """Enter in the list who makes the result; where others took its place since it was chosen, it gets another."""
        chosen, maker, lost = job.target, maker_of(COMMAND, job.source), set[Path]()
        make_folder(chosen.parent)
        self._look_at(chosen.parent)
        while True:
            job.target = self._free_place(job, lost)
            if self._claims[chosen.parent].take(job.target, maker):
                break
            lost.add(job.target)
        if job.target != chosen:
            names = (printable(job.relative), printable(chosen.name), printable(job.target.name))
            log.warning("%s: %s was taken meanwhile; the result is %s", *names)

    def restored(self, jobs: Iterable[Job]) -> Generator[tuple[Job, FileResult], None, None]:
        """Restore photos and write their results; each job, in their order, once its result is written.

        A photo that cannot be read, restored or written is reported as failed, and the others go on.
        """
        one_at_a_time = threading.Lock()  # detectors keep notes while they look
        group_size = self.together

        def read(job: Job) -> Job:
            job.key = key_of(job.source, self.made_with)  # of what is read next: if it changes then, its key is another
            _read(job, self.restorer.size, self.config, self.detector, one_at_a_time)
            return job

        readers = ThreadPoolExecutor(2, "bfr-read")
        writers = ThreadPoolExecutor(2, "bfr-write")
        writing: deque[tuple[Job, Future[FileResult]]] = deque()

        def written(at_most: int) -> Iterator[tuple[Job, FileResult]]:
            while len(writing) > at_most:
                job, result = writing.popleft()
                yield job, result.result()
                job.restored = []

        try:
            for group in _groups(_ahead(readers, read, jobs, 2 * group_size + 1), group_size):
                self._restore(group)
                writing += [(job, writers.submit(self._write, job)) for job in group]
                yield from written(2 * group_size)
                while sum(job.pixels for job, _ in writing) > HELD_PIXELS:
                    yield from written(len(writing) - 1)
            yield from written(0)
        finally:
            for pool in (readers, writers):
                pool.shutdown(wait=True, cancel_futures=True)

    def _restore(self, group: list[Job]) -> None:
        """Fill in what the networks make of each job that was read."""
        started = time.monotonic()
        crops = [crop for job in group for crop in job.crops]
        told: list[str] = []
        how = (self.restorer, self.config.batch_size, None, told, self.config.even_tone and not self.aligned)
        results_and_servers = zip(restore_crops(crops, *how), told, strict=True)
        for job in group:
            of_job = list(islice(results_and_servers, len(job.crops)))
            job.restored = [new for new, _ in of_job]
            job.served = tuple(by for _, by in of_job)  # "" of a face that failed, or where there is one restorer
            _restore_rest(job, self.rest, self.config)
        self.network_seconds += time.monotonic() - started
        for job in group:
            _judge(job, self.look, self.restorer)

    def _write(self, job: Job) -> FileResult:
        made_by = (self.restorer, self.config, self.detector)
        step_of = partial(restoration_step, *made_by, background=self.rest)
        how = (self.config, self.aligned, self.parser, step_of, self.strip_gps, self.record)
        if job.photo is not None:
            with contextlib.suppress(OSError):  # writing the result will say why
                self._take_place(job)
        result = _write_and_note(job, *how)
        if result.written and not self.alone:  # here: whoever waits for the result may be stopped before it has it
            note_result(job.target)
        return replace(result, place=job.target if result.written else None)


def plan_folder(folder: Path, out: Path) -> tuple[list[Job], dict[Path, str]]:
    """A job for every photo under `folder`, and why the other files are left out; results in `out` are neither.

    folder: may also be one photo.
    """
    real_folder, results = _real(folder), _real(out)
    if os.path.isfile(folder):
        refuse_other_kinds(folder)
        return _jobs_of([folder], folder.parent, out), {}
    if real_folder == results:
        raise ValueError(f"{printable(out)}: is the folder of the photos; choose another folder for the results")
    sources, left_out = look_through(folder)
    if real_folder in results.parents:
        below = {path for path in sources if results in _real(path).parents}
        sources = [path for path in sources if path not in below]
        outside = {path: _real(folder / path) for path in left_out}
        outside = {path: real for path, real in outside.items() if results not in (real, *real.parents)}
        left_out = {path: left_out[path] for path in outside}
        marked = {place: Ledger(place).results() for place in {path.parent for path in below}}
        others = (path for path in below if path.name not in marked[path.parent])
        left_out |= {path.relative_to(folder): "lies in the folder of the results" for path in others}
    if not sources:
        raise ValueError(f"{printable(folder)}: holds no photos besides the results in {printable(out)}")
    return _jobs_of(sources, folder, out), left_out


def _jobs_of(sources: Sequence[Path], folder: Path, out: Path) -> list[Job]:
    """A job for each of these photos under `folder`. Raises ValueError if a result would replace one of them."""
    jobs = [Job(path, path.relative_to(folder), out / path.relative_to(folder)) for path in sources]
    originals = {_real(path) for path in sources}
    for job in jobs:
        if _real(job.target) in originals:
            raise ValueError(f"{printable(job.target)}: is one of the photos; choose another folder for the results")
    for place in {job.target.parent for job in jobs}:
        if os.path.isdir(place):
            with contextlib.suppress(OSError):  # it may not be written to, which is said of each of its photos
                begin_list(place)
    return jobs


def _real(path: Path) -> Path:
    """`path` without links; a link that leads to itself stays, where Path.resolve raises."""
    return Path(os.path.realpath(path))


def _restore_rest(job: Job, background: Background | None, config: RestoreConfig) -> None:
    """Fill in the photo with its rest restored, or the problem."""
    if background is None or job.photo is None:
        return
    try:
        job.ground = restored_background(job.photo.pixels, background, job.all_faces, _told(job.served), config)
    except (ValueError, RuntimeError, MemoryError) as error:
        _give_up(job, f"the rest of the photo failed: {_reason(error, job)}")


def _give_up(job: Job, problem: str) -> None:
    """Leave the photo without a result: let go of all that was made for it, and note why."""
    job.problem, job.photo, job.ground = problem, None, None
    job.faces, job.crops, job.restored, job.judged, job.served = [], [], [], [], ()


def _judge(job: Job, check: LikenessCheck | None, restorer: Restorer) -> None:
    """Leave alone what the check says, and note what may be; a failure is the photo's problem, and no other's."""
    try:
        _act(job, check)
        job.may_be_left_alone = hardly_changed(job.crops, job.restored, restorer)
    except (ValueError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            release_memory()
        _give_up(job, f"its restored faces could not be judged: {_reason(error, job)}")


def _act(job: Job, check: LikenessCheck | None) -> None:
    """Leave alone what the check of likeness, or of the person who is looked for, says."""
    if check is None or not job.crops:
        return
    acted = check(job.crops, job.restored, [face.width for face in job.faces] or [job.crops[0].shape[-1]])
    job.likeness, job.skipped = acted.likeness, job.skipped + acted.reasons
    job.judged = [job.faces[i] for i in acted.judged] if job.faces else []
    job.crops, job.restored = [job.crops[i] for i in acted.kept], [acted.restored[i] for i in acted.kept]
    job.served = tuple(job.served[i] for i in acted.kept)
    job.faces = [job.faces[i] for i in acted.kept] if job.faces else []


def _made_with(
    restorer: Restorer,
    config: RestoreConfig,
    detector: FindFaces | None,
    strip_gps: bool,
    person: Path | None = None,
    references: Sequence[Path] = (),
    background: Background | None = None,
) -> str:
    """Fingerprint of all that a result depends on besides its photo; "" for a restorer that is of no file."""
    from .. import __version__  # not known yet while the package is loading

    if not restorer.sha256:
        return ""
    own = asdict(config) | {"batch_size": 1}  # which changes nothing
    if background and not background.adapted:
        own["background"] = background.sha256
    fidelity = getattr(restorer, "fidelity_weight", None)
    by = None if detector is None else getattr(detector, "name", "own")
    known: list[dict[str, list[str]]] = [{"person": [sha256_of(person)]}] if person else []
    known += [{"references": [sha256_of(file) for file in references]}] if references else []
    return fingerprint(__version__, restorer.sha256, restorer.precision, fidelity, own, by, strip_gps, *known)


def _left_alone(job: Job, record: RestorationRecord, made_with: str) -> FileResult | None:
    """What is to be said of a photo whose result stays as somebody left it; None if it is to be restored.

    A result that was changed since it was made stays, unless other settings are asked for: then the new result gets a
    name of its own.
    """
    with contextlib.suppress(OSError):  # what cannot be read cannot be kept; writing it will say why
        if record.unchanged(job.name) is False and record.key(job.name) == key_of(job.source, made_with):
            reason = "its result was changed since it was made, and is left alone; move it away to have it made anew"
            log.warning("%s: %s", printable(job.name), reason)
            return FileResult(job.relative, "skipped", reason)
    return None


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Job], Job], jobs: Iterable[Job], count: int) -> Iterator[Job]:
    """`map(work, jobs)` in order, with up to `count` of them in the pool before they are asked for.

    Of large photos there are fewer, one at least: together they have at most `HELD_PIXELS`.
    """
    waiting: deque[tuple[Job, Future[Job]]] = deque()
    for job in jobs:
        job.pixels = stated_pixels(job.source)
        while waiting and job.pixels + sum(one.pixels for one, _ in waiting) > HELD_PIXELS:
            yield waiting.popleft()[1].result()
        waiting.append((job, pool.submit(work, job)))
        if len(waiting) > count:
            yield waiting.popleft()[1].result()
    while waiting:
        yield waiting.popleft()[1].result()


def _groups(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    group: list[Job] = []
    for job in jobs:
        group.append(job)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _read(
    job: Job, size: int, config: RestoreConfig, detector: FindFaces | None, one_at_a_time: threading.Lock
) -> None:
    """Fill in the photo and its crops, or the problem."""
    try:
        job.photo = photo = read_photo(job.source)
        job.notes = photo.notes
        if detector is None:
            job.crops = [square(photo.pixels, size)]
            if photo.pixels.shape[-1] > LARGER * size:
                width = photo.pixels.shape[-1]
                log.warning(
                    "%s: %d pixels wide, %.1f times the restorer's %d",
                    printable(job.relative),
                    width,
                    width / size,
                    size,
                )
            return
        with one_at_a_time:
            found = detector(photo.pixels)
        job.found, job.all_faces = len(found), found
        job.faces, job.skipped = choose_faces(found, size, config, str(job.relative))
        crops = [crop_face(photo.pixels, face, size) for face in job.faces]
        job.faces, job.crops, job.skipped = leave_sharp(job.faces, crops, job.skipped, config)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        job.problem, job.photo, job.crops = _reason(error, job), None, []
        job.is_left_out = isinstance(error, LeftOutError)


def _write_and_note(
    job: Job,
    config: RestoreConfig,
    aligned: bool,
    parser: Parser | None,
    step_of: Callable[..., Step | None],
    strip_gps: bool,
    record: RestorationRecord,
) -> FileResult:
    """`_write`, and a line for what was written in the record; a photo with a face that failed is tried again."""
    failed = sum(isinstance(restored, str) for restored in job.restored)
    result = replace(_write(job, config, aligned, parser, step_of, strip_gps), failed_faces=failed)
    if not result.written:
        return result
    key = "" if failed else job.key
    try:
        likeness = tuple(one.record() for one in result.likeness)
        made = (result.faces, result.reason, result.served, result.notes, likeness)
        record.add(Written(job.name, sha256_of(job.target), key, *made))
    except OSError as error:
        log.warning("%s: its result is written, but not noted as made (%s)", printable(job.name), first_line(error))
    return result


def _write(
    job: Job,
    config: RestoreConfig,
    aligned: bool,
    parser: Parser | None,
    step_of: Callable[..., Step | None],
    strip_gps: bool,
) -> FileResult:
    """Paste, write, and say how it went; the photo is let go."""
    photo, crops, ground = job.photo, job.crops, job.ground
    job.photo, job.crops, job.ground = None, [], None
    if photo is None:
        return FileResult(job.relative, "left_out" if job.is_left_out else "failed", job.problem)
    photo = without_place(photo) if strip_gps else photo
    try:
        if aligned and crops:
            new = job.restored[0]
            if isinstance(new, str):
                return FileResult(job.relative, "failed", new)
            served = _told(job.served)
            record = photo.record.with_step(step_of(1, 1, served=served, likeness=job.likeness))
            lost = write_photo(job.target, replace(_aligned_photo(photo, new, config), record=record))
            notes = _each_once(job.notes, lost)
            return FileResult(job.relative, "restored", "", 1, served, True, notes, likeness=job.likeness)
        if ground is not None:
            ground = with_faces_of(photo.pixels, ground, others_of(job.all_faces, job.faces))
        made = (job.faces, crops, job.restored, job.skipped)
        result = paste_faces(photo.pixels, *made, config, parser, ground, job.may_be_left_alone)
        likeness = job.likeness if aligned else with_left_alone(job.likeness, job.judged, result.generated)
        reason = "; ".join(result.skipped)
        if ground is not None and not result.faces:
            reason = f"{reason or 'no face found'}; only the rest of the photo is restored"
        if result.faces or ground is not None:
            pasted = [any(face is other for other in result.faces) for face in job.faces]
            served = _told(compress(job.served, pasted))
            counts = (job.found, len(result.generated))
            record = photo.record.with_step(step_of(*counts, served=served, likeness=likeness))
            lost = write_photo(job.target, replace(photo, pixels=result.pixels, record=record))
            done = (len(result.faces), served, True, _each_once(job.notes, lost))
            return FileResult(job.relative, "restored", reason, *done, likeness=likeness)
        if strip_gps:
            notes = _each_once(job.notes, write_photo(job.target, photo))
        else:
            replace_atomically(job.target, lambda temporary: shutil.copyfile(job.source, temporary))
            notes = ()  # a copy has all of the file
        status = "failed" if any(isinstance(new, str) for new in job.restored) else "no_face"
        how = "written anew, without its place" if strip_gps else "copied as it is"
        reason = f"{reason or 'no face found'}; {how}"
        return FileResult(job.relative, status, reason, written=True, notes=notes, likeness=likeness)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        return FileResult(job.relative, "failed", _reason(error, job))


def _told(served: Iterable[str]) -> tuple[str, ...]:
    """What served the faces of which that is known: not those that failed, nor where there is one restorer."""
    return tuple(filter(None, served))


def _each_once(*notes: Sequence[str]) -> tuple[str, ...]:
    """What was not read of a photo, and what was not written, each sentence once."""
    return tuple(dict.fromkeys(note for some in notes for note in some))


def _reason(error: Exception, job: Job) -> str:
    """What `error` says, without the photo's name, which is said before it."""
    return without_name(first_line(error), printable(job.source.name))


def _aligned_photo(photo: Photo, restored: Tensor, config: RestoreConfig) -> Photo:
    """The restored crop as a photo, no smaller than `photo`, grey if that was."""
    size = max(restored.shape[-1], photo.pixels.shape[-1])
    alpha = None if photo.alpha is None else square(photo.alpha, size)
    return replace(photo, pixels=whole(restored, photo.pixels, size, photo.grey, config), alpha=alpha)
