"""The faces of a run: aligned crops of every face in the photos, the photo of each, and which are left out."""

from __future__ import annotations

import glob
import json
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..damage.grey import given_to_restorer
from ..device import is_out_of_memory, release_memory
from ..faces.align import crop_face
from ..files.kinds import LeftOutError, without_name
from ..files.ownership import free_name, is_own, make_folder, move, note, sha256_of
from ..files.photos import (
    look_through,
    photo_names,
    printable,
    read_image,
    read_photo,
    replace_atomically,
    status_of,
    warn_of_failed,
    write_image,
)
from ..files.records import fingerprint, read_table, write_json
from ..files.shards import WHOLE, Shard
from ..files.stages import growing, open_stage, remove
from ..files.tensors import reason_of
from ..restoration.restore import square
from ..spread import evenly
from .run import Run

if TYPE_CHECKING:
    from .config import FaceConfig

log = logging.getLogger(__name__)

StageCallback = Callable[[str, int, int, Any], None]  # stage, step, steps, detail
SAME_AS = "shows the same as"  # of a copy, before the photo that counts
KNOWN_AGAIN = 200  # photos at most by which a folder is known again as that of a run
JOURNAL_HEAD = '{"journal": "a line for every photo that was looked at"}\n'


@dataclass(frozen=True)
class FaceSet:
    """Aligned crops on disk. names: one a face, the crop's file name without suffix. fingerprint: of the crops.

    problems: photo, problem and status ("no_face", "failed" or "left_out") of every file that gave no face. photos: the
    photo of every face, by the face's name. notes: what of a photo was not used, by the photo, such as a second picture
    in its file. Faces that the user left out are in neither names nor fingerprint.
    """

    folder: Path
    names: list[str]
    fingerprint: str
    problems: list[dict[str, str]]
    photos: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def account(self) -> list[dict[str, str]]:
        """photo, status ("used", or as in `problems`) and reason of every file of the photos' folder."""
        lines = {
            photo: {"photo": photo, "status": "used", "reason": self.notes.get(photo, "")}
            for photo in self.photos.values()
        }
        for one in self.problems:
            status = one.get("status", "failed")  # version 0.1 did not record it
            reason = without_name(one["problem"], printable(one["photo"]))
            lines[one["photo"]] = {"photo": one["photo"], "status": status, "reason": reason}
        return [lines[photo] for photo in sorted(lines, key=lambda photo: Path(photo).parts)]

    def label(self, name: str) -> str:
        """What a face is called: its photo, with its number if the photo gave several, in the order they were found."""
        return self._labels.get(name, name)

    @cached_property
    def _labels(self) -> dict[str, str]:
        of_photo: dict[str, list[str]] = {}
        for name, photo in self.photos.items():
            of_photo.setdefault(photo, []).append(name)
        return {
            name: f"{photo}, face {number}" if len(names) > 1 else photo
            for photo, names in of_photo.items()
            for number, name in enumerate(names, 1)
        }

    def __len__(self) -> int:
        return len(self.names)

    def crop(self, name: str) -> Path:
        """The file of a face's crop."""
        return self.folder / f"{name}.png"

    def read(self, names: Sequence[str]) -> Tensor:
        """The crops of these faces as (B, 3, S, S) RGB in [0, 1].

        A crop that was changed by hand may have another size. Raises ValueError naming one that is not square.
        """
        crops = [read_image(self.crop(name)) for name in names]
        size = self.size or max(crop.shape[-1] for crop in crops)
        return torch.stack(
            [resize_square(crop, size, self.crop(name)) for name, crop in zip(names, crops, strict=True)]
        )

    @cached_property
    def size(self) -> int:
        """Side of the crops in pixels, as they were cut; 0 where no list says it."""
        size = read_table(self.folder / "faces.json").get("size", 0)
        return size if isinstance(size, int) else 0

    def batch(self, start: int, stop: int) -> Tensor:
        """Crops start ... stop - 1 as (B, 3, S, S) RGB in [0, 1]."""
        return self.read(self.names[start:stop])

    def batches(self, size: int, names: Sequence[str] | None = None) -> Iterator[tuple[list[str], Tensor]]:
        """Names and crops, as by `read`, of all faces or of those named, at most `size` of them at a time."""
        names = self.names if names is None else names
        for start in range(0, len(names), size):
            some = list(names[start : start + size])
            yield some, self.read(some)

    def relabelled(self, labels: Mapping[str, str]) -> FaceSet:
        """The same faces, with their photos called as `labels` says, photo's path -> label; others keep their path."""
        return replace(self, photos={name: labels.get(photo, photo) for name, photo in self.photos.items()})


def collect_faces(
    photos: Path,
    run: Run,
    size: int,
    config: FaceConfig,
    callback: StageCallback | None = None,
    device: torch.device | str = "cpu",
    files: Sequence[Path] | None = None,
) -> FaceSet:
    """Aligned crops of every face under `photos`, in run.faces; a photo that cannot be used is logged and left out.

    size: side of the crops in pixels, 16 to 2048. device: where the detector's network runs.
    files: the photos under it that are used; by default all that `look_through` finds.
    Only photos that are new, that failed, or whose content, name or settings changed, are examined, and those without
    a face if there is a better detector now. Crops of photos that are gone are deleted, not those of photos that cannot
    be read now; a crop that was changed by hand is kept and used. Of equal crops the first one counts: a copy must not
    be held out to judge what the other taught.
    Raises FileNotFoundError or ValueError if there are no photos, or no face in any of them.
    """
    records, before, others = _examine(photos, run, size, config, callback, device, files)
    found_with = fingerprint(asdict(config))
    found = [
        face | {"photo": r["photo"], "found": fingerprint(found_with, r["sha256"])} | _content_of(run, face["name"])
        for r in records
        for face in r["faces"]
    ]
    problems = [
        {"photo": r["photo"], "problem": r["problem"], "status": r.get("status", "failed")}
        for r in records
        if r["problem"]
    ]
    problems += [
        {"photo": path.as_posix(), "problem": f"{printable(path)}: {reason}", "status": status_of(reason)}
        for path, reason in others.items()
    ]
    if not found:  # the crops that the run has are those of other photos, and stay
        raise ValueError(f"{printable(photos)}: no face could be taken from its {len(records)} images")
    now = {face["name"] for face in found}
    unseen = [path for path, reason in others.items() if status_of(reason) == "failed"]
    failed = {r["photo"] for r in records if r.get("status") == "failed"}  # which may be there again next time
    gone = (r for photo, r in before.items() if photo not in failed and not _is_below(Path(photo), unseen))
    remove(run.faces / f"{n}.png" for r in gone for n in _names_of(r) if n not in now)
    faces, copies = _without_copies(found)
    problems += [{"photo": photo, "problem": problem, "status": "left_out"} for photo, problem in copies.items()]
    made = {"size": size, "fingerprint": _fingerprint_of(size, faces)}
    of_photos = {r["photo"]: "; ".join(r["notes"]) for r in records if r.get("notes")}
    write_json(run.faces / "faces.json", made | {"faces": faces, "problems": problems, "notes": of_photos})
    run.record("faces", {"photos": photos.resolve().name, "size": size} | asdict(config))
    remove(path for path in _journals(run) if path.name.startswith("photos-"))  # of shards; photos.jsonl has it all
    _warn_of_marks_that_are_gone(run, {face["photo"] for face in found})
    return faces_of(run)


def _is_below(photo: Path, folders: Iterable[Path]) -> bool:
    return any(folder == Path() or folder in photo.parents for folder in folders)


def _without_copies(found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The first of each set of faces with equal crops; and why a photo that gave nothing but copies is left out."""
    first: dict[str, dict[str, Any]] = {}
    for face in found:
        first.setdefault(face["sha256"], face)
    used = {face["photo"] for face in first.values()}
    copies = {
        face["photo"]: f"{printable(face['photo'])}: {SAME_AS} {printable(first[face['sha256']]['photo'])}"
        for face in found
        if face["photo"] not in used
    }
    return list(first.values()), copies


def collect_shard(
    photos: Path,
    run: Run,
    size: int,
    config: FaceConfig,
    shard: Shard,
    callback: StageCallback | None = None,
    device: torch.device | str = "cpu",
) -> tuple[int, list[dict[str, str]]]:
    """The part of `collect_faces` that other processes need not wait for: the crops of a part of the photos.

    Once all parts are there, `collect_faces` has nothing left to examine but photos that failed, and makes the run's
    list of faces. Returns the number of faces, and photo, status and reason of each file, as `FaceSet.account` does;
    the files that are no photos are in that of the first part.
    """
    records, _, others = _examine(photos, run, size, config, callback, device, shard=shard)
    files = [
        {
            "photo": one["photo"],
            "status": one["status"],
            "reason": without_name(one["problem"], printable(one["photo"])) or "; ".join(one.get("notes", ())),
        }
        for one in records
    ]
    if shard.number == 1:
        files += [
            {"photo": p.as_posix(), "status": status_of(reason), "reason": reason} for p, reason in others.items()
        ]
    return sum(len(one["faces"]) for one in records), sorted(files, key=lambda file: Path(file["photo"]).parts)


def _examine(
    photos: Path,
    run: Run,
    size: int,
    config: FaceConfig,
    callback: StageCallback | None,
    device: torch.device | str,
    files: Sequence[Path] | None = None,
    shard: Shard = WHOLE,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], dict[Path, str]]:
    """Write the crops of the photos of a part; arguments as in `collect_faces`.

    Returns a record of each photo, those of all photos that were known before, and why other files are left out.
    """
    if not 16 <= size <= 2048:
        raise ValueError(f"size is {size}; the side of a crop must be 16 to 2048 pixels")
    found, others = look_through(photos)
    if shard.number == 1:
        warn_of_failed(others)
    files = found if files is None else list(files)
    relatives = [f.relative_to(photos) for f in files]
    open_stage(run.faces, old_crops(run))
    journal = growing(run.faces / f"photos{shard.suffix}.jsonl", JOURNAL_HEAD)
    own = _read_journal(journal)
    before = {photo: one for path in _journals(run) for photo, one in _records_of(_lines_of(path)).items()}
    made_with = fingerprint(size, asdict(config))
    detector, searched_by = None, ""
    if not config.aligned:
        from ..faces.detect import detector_named, load_detector

        searched_by = detector_named(config.detector)
    records: list[dict[str, Any]] = []
    with journal.open("a", encoding="utf-8") as stream:
        named = shard.of(list(zip(files, relatives, photo_names(relatives), strict=True)))
        for step, (file, relative, name) in enumerate(named):
            photo = relative.as_posix()
            key: dict[str, Any] = {"photo": photo, "name": name, "made_with": made_with, "stamp": _stamp(file)}
            record = _still_true(before.get(photo, {}), key, file, run.faces, searched_by)
            if record is None:
                record = key | {"sha256": content_hash(file), "faces": [], "problem": "", "status": "used"}
                record["searched_by"] = searched_by
                try:
                    if detector is None and not config.aligned:
                        detector = load_detector(config.detector, config.threshold, device)
                    cut = partial(_write_crop, cut_before=before.values(), photo_sha256=record["sha256"])
                    record["faces"], narrow, notes = _crops_of(file, name, run.faces, size, config, detector, cut)
                    record["notes"] = list(notes)
                    if record["faces"]:
                        for reason in narrow:
                            log.warning("%s: %s", printable(relative), reason)
                    else:
                        reason = "; ".join(narrow) or "no face found"
                        record |= {"problem": f"{printable(relative)}: {reason}", "status": "no_face"}
                except ValueError as error:
                    reason = without_name(str(error), printable(file.name))
                    status = "left_out" if isinstance(error, LeftOutError) else "failed"
                    record |= {"problem": f"{printable(relative)}: {reason}", "status": status}
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    why = f"needs more memory than there is ({reason_of(error)})"
                    record |= {"problem": f"{printable(relative)}: {why}", "status": "failed", "faces": []}
                    release_memory()
                if record["problem"] and record["status"] != "left_out":
                    log.warning("%s", record["problem"])
            if record != own.get(photo):
                stream.write(json.dumps(record) + "\n")
                stream.flush()
            records.append(record)
            if callback:
                callback("faces", step + 1, len(named), None)
    return records, before, others


def _still_true(
    record: dict[str, Any], key: dict[str, Any], file: Path, folder: Path, searched_by: str
) -> dict[str, Any] | None:
    """The record of a photo with its present time; None if the photo must be examined anew.

    searched_by: the detector of now; a photo in which a lesser one found no face is searched again, and one that failed
    is tried again, because the reason may have lain in packages or permissions.
    """
    if any(record.get(name) != key[name] for name in ("name", "made_with")):
        return None
    if record.get("status", "failed" if record.get("problem") else "used") in ("failed", "left_out"):
        return None
    better = searched_by == "retinaface" and record.get("searched_by") != "retinaface"
    if record.get("status") == "no_face" and better:
        return None
    if not all((folder / f"{name}.png").is_file() for name in _names_of(record)):
        return None
    same = record.get("stamp") == key["stamp"] or (record.get("sha256") and record["sha256"] == content_hash(file))
    return record | {"stamp": key["stamp"]} if same else None


def _names_of(record: dict[str, Any]) -> list[str]:
    """Names of the crops of a photo, from its record in the journal."""
    return [face["name"] for face in record.get("faces", [])]


def faces_of(run: Run, size: int | None = None) -> FaceSet:
    """The faces that a run holds, less those left out; a crop that was changed by hand gives them another fingerprint.

    size: of the crops, in pixels. Raises ValueError if there are none yet, none is in use, or they have another size.
    """
    index = face_index(run)
    if size and index.get("size", size) != size:
        raise ValueError(
            f"{printable(run.folder)}: its faces are {index['size']} pixels wide, and the restorer takes {size}; give "
            "the restorer that they were cut for, or cut them anew for this one (on a command line: bfr faces PHOTOS "
            "--run ... --restorer ...)"
        )
    left_out = left_out_of(run)
    names = [face["name"] for face in index["faces"] if face["name"] not in left_out]
    if not names:
        raise ValueError(f"{printable(run.folder)}: all of its {len(left_out)} faces are left out")
    value = index["fingerprint"]
    if all("sha256" in face for face in index["faces"]):  # version 0.1 did not keep it
        value = _fingerprint_of(index.get("size"), [_as_it_is_now(run, face) for face in index["faces"]])
    value = fingerprint(value, left_out) if left_out else value
    photos = {face["name"]: face["photo"] for face in index["faces"] if "photo" in face}
    return FaceSet(run.faces, names, value, index["problems"], photos, index.get("notes", {}))


def _fingerprint_of(size: int | None, faces: Sequence[dict[str, Any]]) -> str:
    return fingerprint(size, [(face["name"], face["sha256"]) for face in faces])


def _content_of(run: Run, name: str) -> dict[str, Any]:
    """What the crop of a face holds, and its `_stamp` then."""
    crop = run.faces / f"{name}.png"
    return {"sha256": content_hash(crop), "crop_stamp": _stamp(crop)}


def _as_it_is_now(run: Run, face: dict[str, Any]) -> dict[str, Any]:
    """The record of a face, whose crop is read again only where its stamp is another."""
    crop = run.faces / f"{face['name']}.png"
    return face if face.get("crop_stamp") == _stamp(crop) else face | _content_of(run, face["name"])


def leave_out(run: Run, names: Iterable[str]) -> None:
    """Use all faces of the run but these from now on.

    A face is used again once its photo or the settings of finding faces have changed, which is logged. What was decided
    of photos that are away at present stays.
    """
    left, now = set(names), _marks(run)
    here = {mark["photo"] for mark in now.values()}
    marks = [mark for mark in read_table(run.left_out, faces=list).get("faces", []) if _photo_of(mark) not in here]
    write_json(run.left_out, {"faces": marks + [mark for name, mark in now.items() if name in left]})


def left_out_of(run: Run) -> list[str]:
    """Names of the run's faces that the user left out, sorted; they stay so at another size of the crops.

    A face is known again by its photo and its place among the photo's faces, because its name also depends on what
    other photos there are.
    """
    table = read_table(run.left_out, names=(dict, list), faces=list)
    marked, marks, now = table.get("names", {}), table.get("faces", []), _marks(run)
    if not isinstance(marked, dict):  # of version 0.1
        return sorted(now.keys() & set(marked))
    of_old = {name for name, found in marked.items() if name in now and now[name]["found"] == found}  # of version 0.2
    return sorted({name for name, mark in now.items() if mark in marks} | of_old)


def _warn_of_marks_that_are_gone(run: Run, photos: set[str]) -> None:
    """Say of which photos a face was left out that is not known again, so that it, or its copy, is used."""
    marks, now = read_table(run.left_out, faces=list).get("faces", []), list(_marks(run).values())
    again = {_photo_of(mark) for mark in marks if mark not in now} & photos
    for photo in sorted(again):
        log.warning(
            "%s: a face that was left out is used again, because the photo, its copies or the settings of faces "
            "have changed; leave it out again if it is not wanted",
            printable(photo),
        )


def _photo_of(mark: Any) -> str:
    """The photo that a mark in a file is of; "" if it is no mark."""
    return str(mark.get("photo", "")) if isinstance(mark, dict) else ""


def _marks(run: Run) -> dict[str, dict[str, Any]]:
    """What every face of the run is known again by, by its name: its photo, its number there, and `found`."""
    counts: Counter[str] = Counter()
    marks: dict[str, dict[str, Any]] = {}
    for face in face_index(run)["faces"]:
        photo = face.get("photo", face["name"])
        counts[photo] += 1
        marks[face["name"]] = {"photo": photo, "number": counts[photo], "found": face.get("found")}
    return marks


def face_index(run: Run) -> dict[str, Any]:
    """The table of the faces that were collected in `run`, as faces.json has it. Raises ValueError if there is none."""
    index = read_table(run.faces / "faces.json", faces=list, problems=list, notes=dict)
    if not index:
        raise ValueError(
            f"{printable(run.folder)}: holds no faces yet; cut them from photos first (on a command line: bfr faces "
            "PHOTOS --run ...)"
        )
    return index


def _crops_of(
    file: Path,
    name: str,
    folder: Path,
    size: int,
    config: FaceConfig,
    detector: Any,
    write: Callable[[Path, Tensor], None],
) -> tuple[list[dict[str, Any]], list[str], Sequence[str]]:
    """Write the crops of a photo's faces, as a restorer is given them; returns a record of each, why others are left
    out, and the photo's notes."""
    source = read_photo(file)
    photo = source.pixels
    if config.aligned:
        write(folder / f"{name}.png", given_to_restorer(resize_square(photo, size, file)))
        return [{"name": name, "width": photo.shape[-1]}], [], source.notes
    found: list[dict[str, Any]] = []
    narrow: list[str] = []
    for face in detector(photo):
        if face.width < config.min_face:
            narrow.append(
                f"a face {face.width:.0f} pixels wide is left out: narrower than min_face ({config.min_face})"
            )
            continue
        crop_name = f"{name}_{len(found)}"
        write(folder / f"{crop_name}.png", given_to_restorer(crop_face(photo, face, size).clamp(0, 1)))
        found.append(
            {"name": crop_name, "width": round(face.width, 1), "score": round(face.score, 4)}
            | {"landmarks": np.round(face.landmarks, 2).tolist()}
        )
    return found, narrow, source.notes


def _write_crop(path: Path, pixels: Tensor, cut_before: Iterable[dict[str, Any]], photo_sha256: str) -> None:
    """`write_or_keep`, but a crop changed by hand that is of another photo is put aside.

    cut_before: records of the photos by which their crops were cut until now.
    """

    def is_of_another() -> bool:
        of_photos = {record.get("sha256") for record in cut_before if path.stem in _names_of(record)}
        return bool(of_photos) and photo_sha256 not in of_photos

    write_or_keep(path, pixels, is_of_another)


def put_aside(path: Path, reason: str) -> None:
    """Move a picture that was changed by hand, and is of a face that is no more, into `former` beside it."""
    place = free_name(path.parent / "former" / path.name, always=True)
    make_folder(place.parent)
    move(path, place)
    name, kept = (printable(f"{path.parent.name}/{one.relative_to(path.parent)}") for one in (path, place))
    log.warning("%s: was changed by hand, but %s; it is kept as %s and not used", name, reason, kept)


def write_or_keep(path: Path, pixels: Tensor, is_of_another: Callable[[], bool] = lambda: False) -> None:
    """`write_image`, but a picture that is not this program's, or was changed since, is kept and named; put aside where
    it is of another photo."""
    if path.exists() and not is_own(path):
        if not is_of_another():
            name = printable(f"{path.parent.name}/{path.name}")
            log.warning("%s: was changed by hand; it is kept and used", name)
            return
        put_aside(path, "another photo has its name now")
    write_image(path, pixels)


def resize_square(image: Tensor, size: int, file: Path) -> Tensor:
    """An aligned crop at the restorer's size. Raises ValueError naming `file` if it is not square."""
    try:
        return square(image, size)
    except ValueError as error:
        raise ValueError(f"{printable(file.name)}: {error} (is it an aligned face?)") from None


def old_crops(run: Run) -> list[str]:
    """For `open_stage`: what version 0.1 called the pictures of the run's faces, and its own files beside them."""
    journal, index = run.faces / "photos.jsonl", run.faces / "faces.json"
    names = [name for record in _lines_of(journal) for name in _names_of(record)]
    names += [face["name"] for face in (read_table(index, faces=list) if not names else {}).get("faces", [])]
    return [journal.name, index.name, *(f"{glob.escape(name)}.png" for name in names)]


def holds_photos_of(run: Run, folder: Path) -> bool:
    """Whether most of the photos that were looked at for the run are in this folder: by name and, where the run's
    journals have it, size and content. False if the run knows none."""
    index = read_table(run.faces / "faces.json", faces=list, problems=list)
    listed = [*index.get("faces", []), *index.get("problems", [])]
    photos = sorted({str(one["photo"]) for one in listed if isinstance(one, dict) and "photo" in one})
    records = _records_of(line for path in sorted(run.faces.glob("photos*.jsonl")) for line in _lines_of(path))
    some = [photos[i] for i in evenly(len(photos), KNOWN_AGAIN)]
    return 2 * sum(_is_photo(folder / photo, records.get(photo, {})) for photo in some) > len(some)


def _is_photo(file: Path, record: dict[str, Any]) -> bool:
    """Whether `file` is the photo that a run's journal describes, as far as it does."""
    try:
        if not os.path.isfile(file):
            return False
        status, stamp, holds = file.stat(), record.get("stamp"), record.get("sha256")
        if not stamp or not isinstance(stamp, list) or stamp == [status.st_size, status.st_mtime_ns]:
            return True
        return stamp[0] == status.st_size and (not holds or sha256_of(file) == holds)
    except (OSError, ValueError):  # a name that no file can have
        return False


def _stamp(file: Path) -> list[int]:
    """Size and time of a file; while they stay the same, its content is not read again."""
    try:
        status = file.stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def content_hash(file: Path) -> str:
    """SHA-256 of a file; "" if it cannot be read, or is a pipe or a device, which would be waited on for ever."""
    try:
        return sha256_of(file) if stat.S_ISREG(os.stat(file).st_mode) else ""
    except OSError:
        return ""


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """The last record of every photo; a line cut short by a power failure is dropped from the file."""
    lines = _lines_of(path)
    if len(lines) < len(path.read_text(encoding="utf-8").splitlines()):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        replace_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
        note(path, grows=True)
    return _records_of(lines)


def _records_of(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last record of every photo."""
    return {str(record["photo"]): record for record in lines if "photo" in record}


def _journals(run: Run) -> list[Path]:
    """The journals of the run's photos, that of the run itself and those of shards, the last one written at the end."""
    found = [path for path in run.faces.glob("photos*.jsonl") if is_own(path)]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def _lines_of(journal: Path) -> list[dict[str, Any]]:
    """The records of a journal, up to the first that is damaged."""
    whole: list[dict[str, Any]] = []
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines() if journal.is_file() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        whole.append(record if isinstance(record, dict) else {})
    return whole
