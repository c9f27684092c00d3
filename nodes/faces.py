"""The nodes that bring faces into a run, from a folder or from pictures, and targets that any other graph has made.

What travels between the nodes is a handle: the run's folder, and a fingerprint of what it held at that time.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..bfr_core.adaptation.config import AdaptConfig, FaceConfig
from ..bfr_core.adaptation.faces import SAME_AS, FaceSet, collect_faces, faces_of
from ..bfr_core.adaptation.people import PeopleConfig, find_people, people_lines
from ..bfr_core.adaptation.run import Run
from ..bfr_core.adaptation.target_checks import TargetCheckConfig, accepted_targets
from ..bfr_core.adaptation.target_stage import check_given, match_in_order, targets_of
from ..bfr_core.files.kinds import LINKED_FOLDER
from ..bfr_core.files.names import typed_path
from ..bfr_core.files.ownership import claim, is_own, sha256_of
from ..bfr_core.files.photos import printable, read_image, replace_atomically, write_image
from ..bfr_core.files.records import fingerprint, read_table, write_json
from ..bfr_core.files.stages import stage_folder
from ..bfr_core.pixels import as_bytes
from ..bfr_core.reports.pictures import sheet
from . import convert, host, paths
from .watch import Watch

STAGES = ("targets", "finetune")
# The files and folders of a run that a stage begins with.
BEGINS_WITH = {"targets": ["faces", "left_out.json", "damage.json"]}
BEGINS_WITH["finetune"] = [*BEGINS_WITH["targets"], "settled.json", "restored", "targets", "given"]
BEGINS_WITH["finetune"] += ["gate.json", "gate_given.json"]
LISTED = 20  # lines of a text on a node before it says how many more there are
ROWS = 8  # of a picture that shows examples
MARK = "comfyui.json"  # file of a run that says what it was made of, and tells it from an earlier one of its name
DEFAULT_RUN = "my_run"  # the name that a run has unless the user gives it one: other photos make another run beside it


@dataclass(frozen=True)
class Faces:
    """Handle of the faces in a run. fingerprint: of their crops, `FaceSet.fingerprint`.

    by_default: whether the run has the name that runs have by default, so that other settings make another beside it.
    """

    folder: Path
    fingerprint: str
    by_default: bool = False

    def opened(self) -> tuple[Run, FaceSet]:
        """The run and its faces. Raises ValueError if it was deleted or emptied, or filled with others since."""
        run = Run(self.folder)
        if not os.path.isfile(run.faces / "faces.json"):
            raise ValueError(
                f"run {printable(self.folder.name)} was deleted or emptied since; queue again, and the faces are found "
                "anew, or give the run another name"
            )
        faces = faces_of(run)
        if faces.fingerprint != self.fingerprint:
            raise ValueError(
                f"run {printable(self.folder.name)} was filled with other faces since; give each graph its own run "
                "name, and queue again"
            )
        return run, faces


@dataclass(frozen=True)
class Pairs:
    """Handle of faces and their targets. made_from: fingerprint of the targets.

    prior: what drew them, for the record of the restorer that learns from them; None if they came as pictures.
    config: with what settings it drew them.
    """

    faces: Faces
    made_from: str
    prior: host.Managed | None
    config: AdaptConfig = field(default_factory=AdaptConfig)

    def opened(self) -> tuple[Run, FaceSet, dict[str, Path]]:
        """The run, its faces, and the accepted targets by face name. Raises ValueError if they were replaced since."""
        run, faces = self.faces.opened()
        if read_table(self.checks(run)).get("made_from") != self.made_from:
            raise ValueError(
                f"run {printable(run.folder.name)} got other targets since; give each graph its own run name, "
                "and queue again"
            )
        files = targets_of(run, faces) if self.prior else given_targets(run, faces)
        return run, faces, accepted_targets(run, files, self.made_from)

    def checks(self, run: Run) -> Path:
        """Where what the checks found of the targets is kept."""
        return run.target_checks if self.prior else run.given_checks


FACES = FaceConfig()
AS_TYPED = "as typed"
RUN = (
    "Name of the run: a folder under output/bfr_runs in which the faces, targets and the restorer are kept, and from "
    f"which work goes on after a stop. Under the name {DEFAULT_RUN}, another folder, other pictures of other nodes or "
    "other settings make a new run beside it."
)


def face_widgets() -> list[Any]:
    """Widgets of `FaceConfig`, and of what is shown."""
    return [
        host.widget(FACES, "aligned"),
        host.widget(FACES, "detector", advanced=True),
        host.widget(FACES, "threshold", step=0.05, advanced=True),
        host.widget(FACES, "min_face", min=8, max=4096, advanced=True),
        io.Int.Input(
            "first", default=0, min=0, max=10**6, tooltip="First face of the output 'images', counted from 0."
        ),
        io.Int.Input("count", default=8, min=1, max=256, tooltip="How many faces the output 'images' holds at most."),
    ]


def people_widget() -> Any:
    """The switch of grouping by person."""
    return host.widget(PeopleConfig(), "find", id="people", optional=True)


def face_outputs() -> list[Any]:
    """Outputs of the nodes that make faces."""
    return [
        host.FacesType.Output(
            display_name="faces", tooltip="The faces of the run, as many as there are; for Make Pseudo Targets."
        ),
        io.Image.Output(
            display_name="images",
            tooltip="Some of the faces as pictures, to look at or to feed another graph as teacher.",
        ),
        io.Int.Output(display_name="number", tooltip="How many faces there are."),
        io.String.Output(display_name="report", tooltip="What was found, and what could not be used."),
        io.String.Output(
            display_name="people", tooltip="Whose faces they are, a line a person, where 'people' is switched on."
        ),
    ]


class FacesFromFolder(host.Node):
    """Faces of every photo of a folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_FacesFromFolder",
            "Faces from Folder (BFR)",
            "Finds and aligns the faces of a folder of damaged photos, of any number, because they stay on disk.",
            [
                host.RestorerType.Input("restorer", tooltip="The restorer, at whose size the faces are cut out."),
                io.Combo.Input(
                    "place",
                    options=["input", "output"],
                    default="input",
                    tooltip="The folder of ComfyUI's that the photos are in.",
                ),
                io.String.Input("folder", default="", tooltip="Folder of photos inside it, with all folders below."),
                io.String.Input("run", default=DEFAULT_RUN, tooltip=RUN),
                *face_widgets(),
                io.Combo.Input(
                    "input_folder",
                    optional=True,
                    options=[AS_TYPED, *host.photo_folders()],
                    default=AS_TYPED,
                    tooltip="A folder in ComfyUI's folder input, linked ones included, which is taken in place of the "
                    "one typed above.",
                ),
                people_widget(),
            ],
            face_outputs(),
            ("face crop", "detect faces", "dataset"),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, run: str | None = None) -> bool | str:
        """See `host.judged`."""
        return host.judged(host.open_run, run)

    @classmethod
    def fingerprint_inputs(
        cls, place: str | None, folder: str | None, run: str | None, input_folder: str | None = AS_TYPED, **_: Any
    ) -> str | float:
        """A text that changes when a photo does, and when `face_changes` do; NaN, which is never the same, where the
        folder comes from another node and is not known before that has run."""
        if input_folder is None or (input_folder == AS_TYPED and (place is None or folder is None)):
            return float("nan")  # a new one: ComfyUI compares in tuples, where one and the same NaN is equal to itself
        root, source = chosen_folder(place or "", folder or "", input_folder)
        images, _left_out = paths.images_inside(source, root)
        stamps = [(f.relative_to(source).as_posix(), *host.stamp(f)[1:]) for f in images]
        return fingerprint(stamps, face_changes(run))

    @classmethod
    def work(
        cls,
        restorer: host.Managed,
        place: str,
        folder: str,
        run: str,
        first: int,
        count: int,
        input_folder: str = AS_TYPED,
        people: bool = False,
        **settings: Any,
    ) -> io.NodeOutput:
        root, source = chosen_folder(place, folder, input_folder)
        if paths.is_inside(host.folder("output") / host.RUNS, source):
            raise ValueError(
                f"folder {printable(folder)!r} holds the runs themselves; choose the folder of photos in it"
            )
        images, left_out = paths.images_inside(source, root)
        made_of = [*named_folder(place, folder, input_folder), taken_with(settings)]
        opened = open_run(run, made_of, restorer.network.size)
        config = face_config(settings)
        default = run == DEFAULT_RUN
        return collected(cls, source, opened, restorer, config, first, count, images, left_out, people, default)


def named_folder(place: str, folder: str, input_folder: str) -> tuple[str, str]:
    """ComfyUI's folder and the path in it that the widgets name: the one chosen from the list, else the one typed."""
    return (place, typed_path(folder)) if input_folder == AS_TYPED else ("input", input_folder)


def chosen_folder(place: str, folder: str, input_folder: str) -> tuple[Path, Path]:
    """ComfyUI's folder, and the folder of photos in it that `named_folder` names."""
    place, folder = named_folder(place, folder, input_folder)
    root = host.folder(place)
    return root, paths.to_read(root, folder)


def face_config(settings: dict[str, Any]) -> FaceConfig:
    """The settings that the widgets give; for aligned pictures, in which no face is sought, nothing else counts."""
    return FaceConfig(aligned=True) if settings.get("aligned") else FaceConfig(**settings)


class FacesFromImages(host.Node):
    """Faces of pictures that come from other nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_FacesFromImages",
            "Faces from Images (BFR)",
            "Finds and aligns the faces of pictures from other nodes and keeps them in a run.",
            [
                host.RestorerType.Input("restorer", tooltip="The restorer, at whose size the faces are cut out."),
                io.Image.Input("images", tooltip="The damaged photos; a list of pictures is one folder of them."),
                io.String.Input("run", default=DEFAULT_RUN, tooltip=RUN),
                *face_widgets(),
                people_widget(),
            ],
            face_outputs(),
            ("face crop", "detect faces", "dataset"),
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, run: list[str | None] | None = None) -> bool | str:
        """See `host.judged`."""
        return host.judged(host.open_run, run[0] if run else None)

    @classmethod
    def fingerprint_inputs(cls, run: list[str | None], **_: Any) -> str:
        """A text that changes when `face_changes` do."""
        return fingerprint(face_changes(run[0]))

    @classmethod
    def work(cls, images: list[Tensor], **given: list[Any]) -> io.NodeOutput:
        """The faces of all pictures of the list, an IMAGE each, in one run; of everything else the list has one."""
        return cls.of_pictures([convert.to_photos(some) for some in images], **{k: v[0] for k, v in given.items()})

    @classmethod
    def of_pictures(
        cls,
        batches: list[Tensor],
        restorer: host.Managed,
        run: str,
        first: int,
        count: int,
        people: bool = False,
        **settings: Any,
    ) -> io.NodeOutput:
        """`work` for batches of pictures, (B, 3, H, W) in [0, 1] each."""
        content = hashlib.sha256()
        for some in batches:
            content.update(as_bytes(some).numpy().tobytes())
        digest, shapes = content.hexdigest(), [some.shape for some in batches]
        photos = [photo for some in batches for photo in some]
        opened = open_run(run, [digest, taken_with(settings)], restorer.network.size)
        progress = host.NodeProgress()
        with opened.locked():
            made_from = fingerprint(digest, shapes[0]) if len(shapes) == 1 else fingerprint(digest, shapes)
            stage_folder(opened.photos, made_from, ["image_[0-9]*.png"])
            for i, photo in enumerate(photos):
                path = opened.photos / f"image_{i:05}.png"
                if not path.exists():
                    write_image(path, photo)
                progress.show(i + 1, len(photos))
        config, default = face_config(settings), run == DEFAULT_RUN
        return collected(cls, opened.photos, opened, restorer, config, first, count, people=people, by_default=default)


def collected(
    cls: type[host.Node],
    photos: Path,
    run: Run,
    restorer: host.Managed,
    config: FaceConfig,
    first: int,
    count: int,
    images: list[Path] | None = None,
    left_out: Sequence[str] = (),
    people: bool = False,
    by_default: bool = False,
) -> io.NodeOutput:
    """Collect the faces of `photos` in `run`; the node's outputs.

    images: those under `photos` that are used, None for all. left_out: why others are not, a line each. people: whether
    the faces are grouped by person. by_default: see `Faces`.
    """
    progress = host.NodeProgress()
    with run.locked():
        faces = collect_faces(photos, run, restorer.network.size, config, progress, host.device(), images)
        whose = people_lines(find_people(run, faces, PeopleConfig(find=True), progress), faces) if people else []
    FACES_LEFT.left(run.folder)
    shown = faces.batch(min(first, len(faces) - 1), first + count)
    own = photos == run.photos  # pictures from other nodes; what lies beside them is the run's own record
    told = [one for one in faces.problems if not own or one["status"] != "left_out" or SAME_AS in one["problem"]]
    problems = [one["problem"] for one in told if not one["problem"].endswith(f": {LINKED_FOLDER}")]
    said = [f"{'1 file' if len(problems) == 1 else f'{len(problems)} files'} gave none:", *problems] if problems else []
    links = "1 link was" if len(left_out) == 1 else f"{len(left_out)} links were"
    said += [f"{links} not followed:", *left_out] if left_out else []
    report = [f"{len(faces)} face{'' if len(faces) == 1 else 's'}", *said, *map(printable, whose)]
    handle = Faces((with_the_same(run, faces) if by_default else run).folder, faces.fingerprint, by_default)
    picture = folded([[face] for face in shown[:ROWS]], ROWS // 2)[None]
    values = (handle, convert.to_image(shown), len(faces), "\n".join(report), "\n".join(map(printable, whose)))
    return host.output(cls, *values, text=lines(report), picture=picture)


# ---------------------------------------------------------------- targets made elsewhere


class TargetsFromImages(host.Node):
    """Any other graph as the teacher."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_TargetsFromImages",
            "Targets from Images (BFR)",
            "Takes clean faces as targets, which any other graph has made from the output 'images' of the faces node.",
            [
                host.FacesType.Input("faces", tooltip="The faces that the pictures belong to."),
                io.Image.Input(
                    "images",
                    tooltip="A clean version of each face, in the order of the faces; a list of pictures is one row of "
                    "them.",
                ),
                io.Int.Input(
                    "first",
                    default=0,
                    min=0,
                    max=10**6,
                    tooltip="The face that the first picture belongs to, counted from 0, as set at the faces node.",
                ),
                *target_check_widgets(),
            ],
            target_outputs(),
            ("teacher", "pseudo targets", "training pairs"),
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    def work(cls, images: list[Tensor], **given: list[Any]) -> io.NodeOutput:
        """The pairs of all pictures of the list, an IMAGE each, in their order; of everything else the list has one."""
        pictures = [picture for some in images for picture in convert.to_photos(some)]
        return cls.of_pictures(pictures, **{key: value[0] for key, value in given.items()})

    @classmethod
    def of_pictures(cls, pictures: list[Tensor], faces: Faces, first: int, gate: float) -> io.NodeOutput:
        """`work` for pictures, (3, N, N) in [0, 1] each."""
        run, found = faces.opened()
        progress = host.NodeProgress()
        with run.locked():
            files = match_in_order(run, found, pictures, first)
            accepted, made_from = check_given(run, found, files, TargetCheckConfig(limit=gate), progress)
        return paired(cls, run, found, accepted, Pairs(faces, made_from, None), progress)


def check_size(faces: FaceSet, restorer: host.Managed) -> None:
    """Raises ValueError if the faces were cut out at another size than the restorer's."""
    side, size = read_image(faces.crop(faces.names[0])).shape[-1], restorer.network.size
    if side != size:
        raise ValueError(
            f"the faces are {side} pixels wide, but restorer takes {size}; connect the restorer of the faces node "
            "here, or this one there"
        )


def target_check_widgets() -> list[Any]:
    """The widget that sets which targets are refused."""
    return [host.widget(TargetCheckConfig(), "limit", id="gate", max=20.0, step=0.5)]


def target_outputs() -> list[Any]:
    """Outputs of the nodes that make pairs."""
    return [
        host.PairsType.Output(display_name="pairs", tooltip="Damaged faces and their targets; for Fine-tune Restorer."),
        io.Image.Output(
            display_name="examples", tooltip="Some faces: damaged, as the base restores it if known, target."
        ),
        io.Int.Output(display_name="accepted", tooltip="How many targets are fit to learn from."),
        io.Int.Output(display_name="refused", tooltip="How many targets were refused."),
        io.String.Output(display_name="report", tooltip="Which targets were refused, and why."),
    ]


def paired(
    cls: type[host.Node],
    run: Run,
    faces: FaceSet,
    accepted: dict[str, Path],
    pairs: Pairs,
    progress: host.NodeProgress,
) -> io.NodeOutput:
    """The outputs of a node that has made targets."""
    FACES_LEFT.left(run.folder)  # it may be another than that of the faces, with a copy of them
    TARGETS_LEFT.left(run.folder)
    refused = read_table(pairs.checks(run)).get("refused", {})
    reasons = [f"{printable(name)}: {reason}" for name, reason in refused.items()]
    said = [f"{len(accepted)} targets are fit to learn from, {len(refused)} are refused"]
    report = [*said, *reasons]
    examples = [triplet(run, faces, name, path) for name, path in list(accepted.items())[:ROWS]]
    picture = folded(examples)[None]
    progress.end(picture)
    values = (pairs, convert.to_image(sheet(examples)), len(accepted), len(refused), "\n".join(report))
    return host.output(cls, *values, text=lines(report), picture=picture)


def folded(rows: list[list[Tensor]], columns: int = 2) -> Tensor:
    """The rows as a `sheet` in so many columns, which is broad, as the place on a node is."""
    return sheet([list(chain(*rows[i : i + columns])) for i in range(0, len(rows), columns)])


def triplet(run: Run, faces: FaceSet, name: str, target: Path) -> list[Tensor]:
    """Damaged face, what the base makes of it where that is known, target: (3, S, S) each."""
    places = [faces.folder / f"{name}.png", run.restored / f"{name}.png", target]
    return [read_image(path) for path in places if path.exists()]


def given_targets(run: Run, faces: FaceSet) -> dict[str, Path]:
    """Targets that came as pictures, by face name."""
    return {name: path for name in faces.names if (path := run.given / f"{name}.png").exists()}


def times_paused(run: Run) -> int:
    """How often the run's tuning has been paused by its time limit."""
    return int(run.config().get("pauses", {}).get("times", 0))


def taken_with(settings: dict[str, Any]) -> str:
    """Fingerprint of those widgets of a faces node that decide what its run holds."""
    own = {name: settings[name] for name in FaceConfig.__dataclass_fields__ if name in settings}
    return fingerprint(asdict(face_config(own)))


def open_run(name: str, made_of: list[Any], size: int) -> Run:
    """The run of this name; of runs called `DEFAULT_RUN`, the one that is, or will be, made of this at this size.

    made_of: what the faces come from, and `taken_with`. A run that was made of something else stays as it is.
    """
    wanted = [*made_of, size]
    if name != DEFAULT_RUN:
        return host.open_run(name)
    there = next((run for run in runs_by_default() if made_of_what(run) == wanted), None)
    if there:
        return there
    run = next(run for run in default_runs() if is_unused(run))
    write_json(run.folder / MARK, begun(run) | {"of": wanted})
    return run


def with_the_same(run: Run, faces: FaceSet) -> Run:
    """`run`, or the first run called `DEFAULT_RUN`, or so with a number, that holds the same faces, however they were
    found, if possible with targets: what was made of them there is not made again."""
    tables = ((one, read_table(one.faces / "faces.json")) for one in runs_by_default())
    same = [one for one, table in tables if table.get("fingerprint") == faces.fingerprint]
    return next((one for one in same if one.targets.exists() or one.given.exists()), next(iter(same), run))


def default_runs() -> Iterator[Run]:
    """The runs called `DEFAULT_RUN`, which is numbered 1, and so with a number, there or not, without end."""
    return (host.open_run(DEFAULT_RUN if n == 1 else f"{DEFAULT_RUN}_{n}") for n in itertools.count(1))


def runs_by_default() -> list[Run]:
    """Those of `default_runs` that are there, in their order; there are gaps where a user has deleted some."""
    folders = (host.folder("output") / host.RUNS).glob(f"{DEFAULT_RUN}*")
    names = (folder.name for folder in folders if os.path.isdir(folder) and not os.path.islink(folder))
    found = (re.fullmatch(rf"{DEFAULT_RUN}(?:_([2-9]|[1-9]\d+))?", name) for name in names)
    return [host.open_run(name) for _, name in sorted((int(one[1] or 1), one[0]) for one in found if one)]


def is_unused(run: Run) -> bool:
    """Whether the run is of nothing yet; one that is not there is begun."""
    return "of" not in begun(run) and not (run.faces / "faces.json").exists()


def with_settings(faces: Faces, stage: str, settings: str) -> Run:
    """The run in which a stage is, or will be, made with these settings: that of the faces, unless its name is that of
    runs by default and the stage was made otherwise; then another beside it, with a copy of all that the stage begins
    with. A run that was given a name, even one like those, is always used.

    stage: "targets" or "finetune". settings: a fingerprint of them, kept in the run's mark.
    """
    run, _ = faces.opened()
    if not faces.by_default:
        return run
    before = {key: value for key, value in begun(run).items() if key in ("of", *STAGES[: STAGES.index(stage)])}

    def is_made_with(candidate: Run, made_with: str | None) -> bool:
        mark, known = read_table(candidate.folder / MARK), "of" in before or candidate.folder == run.folder
        return known and mark.get(stage) == made_with and all(mark.get(key) == value for key, value in before.items())

    there = [run, *(one for one in runs_by_default() if one.folder != run.folder)]
    chosen = next((one for one in there if is_made_with(one, settings)), None) or next(
        one for one in itertools.chain([run], default_runs()) if is_unused(one) or is_made_with(one, None)
    )
    with chosen.locked():
        if chosen.folder != run.folder:
            copy_run(run, chosen, [name for name in BEGINS_WITH[stage] if (run.folder / name).exists()])
            for done in ("faces", *STAGES[: STAGES.index(stage)]):
                if done in run.config():
                    chosen.record(done, run.config()[done])
        if stage == "targets" and (known := estimate_beside(chosen, before.get("of"))):
            copy_run(known, chosen, ["damage.json"])
        write_json(chosen.folder / MARK, begun(chosen) | before | {stage: settings})
    return chosen


def estimate_beside(run: Run, made_of: Any) -> Run | None:
    """The run beside `run`, made of the same, in which a damage was estimated last, if `run` has no estimate; it is
    taken only if faces and networks are the same, see `folder_damage`."""
    if run.damage.exists():
        return None
    known = [one for one in runs_by_default() if one.damage.exists() and made_of_what(one) == made_of]
    return max(known, key=lambda one: one.damage.stat().st_mtime_ns, default=None)


def copy_run(run: Run, other: Run, names: list[str]) -> None:
    """Copy these files and folders of `run` into `other`; what is the same there stays as it is."""
    for name in names:
        place = run.folder / name
        for source in [place] if place.is_file() else sorted(path for path in place.rglob("[!.]*") if path.is_file()):
            target = other.folder / source.relative_to(run.folder)
            if target.parent != other.folder:
                claim(target.parent, "run")
            if not target.exists() or (is_own(target) and sha256_of(target) != sha256_of(source)):
                replace_atomically(target, partial(shutil.copy2, source))


def held(folder: Path, below: Sequence[str]) -> Any:
    """What a run's mark says, and name, size and time of the files in these folders, or of these files, of the run."""
    stamps = []
    for place in (folder / name for name in below):
        with suppress(OSError):  # it is not there
            files = [Path(entry) for entry in os.scandir(place)] if os.path.isdir(place) else [place]
            stamps += [(file.parent.name, *host.stamp(file)) for file in files if not file.name.startswith(".")]
    with suppress(ValueError):  # its own nodes say that it is damaged
        return read_table(folder / MARK).get("id"), sorted(stamps)
    return None, sorted(stamps)


FACES_LEFT = Watch(partial(held, below=("photos", "faces", "left_out.json")))
TARGETS_LEFT = Watch(partial(held, below=("targets", "given")))


def face_changes(name: str | None) -> int:
    """How often the faces of the run of this name were deleted or changed since a node left them; for `DEFAULT_RUN`
    those of the runs beside it, too. For None, a name that comes from another node and is not known yet, those of all.
    """
    if name is None:
        return FACES_LEFT.changes()
    if name == DEFAULT_RUN:
        return FACES_LEFT.changes(lambda folder: re.fullmatch(rf"{DEFAULT_RUN}(_\d+)?", folder.name) is not None)
    run = host.open_run(name)
    return FACES_LEFT.changes(lambda folder: folder == run.folder)


def pauses() -> list[tuple[str, int]]:
    """The folders of the runs whose tuning has been paused, and how often it was."""
    found = []
    for folder in folders_of_runs():
        with suppress(ValueError):  # its own nodes say that its settings are damaged
            found.append((str(folder), times_paused(Run(folder))))
    return [(folder, times) for folder, times in found if times]


def folders_of_runs(above: Path | None = None) -> list[Path]:
    """The folders of all runs of the nodes, which lie below `above`, at any depth; None for the folder of the runs."""
    found: list[Path] = []
    for path in sorted((above or host.folder("output") / host.RUNS).glob("*")):
        if os.path.isfile(path / MARK) or os.path.isfile(path / "config.json"):
            found.append(path)
        elif os.path.isdir(path) and not os.path.islink(path):
            found += folders_of_runs(path)
    return found


def made_of_what(run: Run) -> Any:
    """What the run's mark says that it is made of; None if it has none."""
    return read_table(run.folder / MARK).get("of")


def begun(run: Run) -> dict[str, Any]:
    """The run's mark; a run that is not there yet is begun."""
    run.claim()
    if not (run.folder / MARK).exists():
        write_json(run.folder / MARK, {"id": uuid.uuid4().hex})
    return read_table(run.folder / MARK)


def lines(texts: list[str]) -> str:
    """The first `LISTED` texts, a line each, and how many more there are."""
    more = [f"... and {len(texts) - LISTED} more"] if len(texts) > LISTED else []
    return "\n".join([*texts[:LISTED], *more])
