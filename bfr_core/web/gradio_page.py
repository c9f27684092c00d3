"""The tabs and buttons of the web page, and which method of `actions.Page` each calls; long work is in `jobs`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from math import floor, log10
from pathlib import Path
from typing import Any

from ..adaptation.config import FIRST_LOOK_TEXT, LOW_MEMORY_TEXT, MIXED_TEXT, SMALL, AdaptConfig
from ..adaptation.published import RECIPES
from ..damage.groups import MIN_FACES
from ..device import is_out_of_memory
from ..files.names import printable
from ..restoration.background import OFF, offered_background, offered_backgrounds
from ..restoration.restore import CHOICES, NO_WORSE, RestoreConfig
from ..restorers.codeformer import FIDELITY_TEXT
from ..settings import setting_at
from . import gradio_compat as compat
from .actions import Page
from .choices import ADVANCED, Choices, changes_of, value_at
from .host_service import RestoreRequest
from .pieces import STYLE, block, failed, quiet, said
from .runs import MAX_UPLOAD_BYTES, priors, restorers, sendable

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
AUTH_VARIABLE = "BFR_UI_AUTH"
INTRODUCTION = (
    "Tune a face restorer to the damage of your own photos. Eight faces or more are needed, all damaged in the same "
    "way; if they are not, say so under Adapt."
)
DELETE = "Delete the open run, with its faces, its restorer and its repaired photos"
ANOTHER = "another"  # a stamp that no run has, so that everything is shown
GOES_ON = "The repair that was stopped goes on as it was begun. To change its settings, give the photos again."
LOOKS_AGAIN = "Faces are looked for again in the photos of the open run."
Shown = dict[Any, Any]  # component -> its new value; what is not in it stays as it is
BEFORE = {"the damaged photo": "damaged", "the base restorer": "base"}


def serve(runs: Path, allowed: Sequence[Path], port: int, listen: bool, auth: Path | None) -> tuple[Page, Any, str]:
    """Start the page's server; the page, gradio's blocks (to close), and the address.

    auth: file of lines user:password; without it, the environment variable BFR_UI_AUTH is looked at.
    Raises ValueError without gradio or with a wrong login file, OSError if the port is taken.
    """
    logins = read_logins(auth)
    if listen and not logins:
        log.warning("anyone in your network can use this page: give --auth FILE, with a line user:password")
    page = Page(runs, allowed)
    compat.prepare(page.cache)
    demo = build(page)
    return page, demo, compat.launch(demo, port, listen, logins, MAX_UPLOAD_BYTES)


def read_logins(file: Path | None) -> list[tuple[str, str]]:
    """(user, password) pairs from a file, or from the environment. Raises ValueError for a line that is not one."""
    content = _text_of(file) if file else os.environ.get(AUTH_VARIABLE, "")
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    pairs = [(user, password) for user, _, password in (line.partition(":") for line in lines)]
    if not all(user and password for user, password in pairs) or (file and not pairs):
        named = f"--auth {printable(file)}" if file else AUTH_VARIABLE
        raise ValueError(f"{named}: each line must be user:password")
    return pairs


def _text_of(file: Path) -> str:
    """What the login file holds, without the mark that Windows puts before UTF-8. Raises ValueError for no text."""
    named = f"--auth {printable(file)}"
    if file.is_dir():
        raise ValueError(f"{named}: is a folder; name a file with a line user:password for each who may use the page")
    try:
        content = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(
            f"{named}: no such file; make it, with a line user:password for each who may use the page"
        ) from None
    except UnicodeDecodeError:
        content = "\0"
    except OSError as error:
        raise ValueError(f"{named}: cannot be read ({error.strerror})") from None
    if "\0" in content:  # as in UTF-16
        raise ValueError(f"{named}: is no text in UTF-8; save it as UTF-8")
    return content


def build(page: Page) -> Any:
    """The page as `gradio.Blocks`; it may also be built inside another's, as a tab.

    No network is loaded for it: what depends on one is filled in once the page is opened.
    """
    gr = compat.load()
    on = compat.on
    default = Choices()

    with compat.blocks("BFR Adapt") as demo:
        gr.HTML(f"{STYLE}<h2>BFR Adapt</h2><p>{INTRODUCTION}</p>")
        name = gr.Dropdown([], label="Run", info="Past runs open here.", allow_custom_value=True, interactive=True)
        message, state = gr.HTML(visible=False), gr.HTML()
        seen = gr.State("")
        with gr.Tab("1. Photos"):
            with gr.Row():
                with gr.Column():
                    dropped = compat.uploads("Drop damaged photos here")
                with gr.Column():
                    folder = gr.Textbox(label="or name a folder", info=_folders(page), max_lines=1)
                    title = gr.Textbox(label="Name of the run", placeholder="optional", max_lines=1)
                    aligned = gr.Checkbox(default.aligned, **words_of(AdaptConfig, "faces.aligned"))
            find = gr.Button("Find the faces", variant="primary")
            faces_said = gr.HTML()
            gallery = compat.gallery("Faces", visible=False)
        with gr.Tab("2. Adapt"):
            with gr.Row():
                restorer = gr.Dropdown(
                    restorers(), value=default.restorer, interactive=True, **words_of(AdaptConfig, "restorer")
                )
                minutes = gr.Number(default.minutes, **words_of(AdaptConfig, "finetune.minutes"))
            group_text = f"{MIXED_TEXT} A group has {MIN_FACES} faces or more."
            mixed = gr.Checkbox(default.mixed, label="My photos have different kinds of damage", info=group_text)
            with gr.Row():
                first = gr.Button("First look")
                start = gr.Button("Adapt", variant="primary")
                stop = gr.Button("Stop", interactive=False)
            gr.HTML(block(quiet(FIRST_LOOK_TEXT)))
            with gr.Accordion("Advanced", open=False):
                advanced = []
                *rows, alone = _in_threes(list(ADVANCED))
                for paths in rows:
                    with gr.Row():
                        advanced += [_number(gr, path) for path in paths]
                with gr.Row():
                    advanced += [_number(gr, path) for path in alone]
                    min_face = gr.Number(default.min_face, precision=0, **words_of(AdaptConfig, "faces.min_face"))
                    low_memory = gr.Checkbox(default.low_memory, label="Low memory", info=LOW_MEMORY_TEXT)
                prior = gr.Dropdown(
                    list(priors()), value=default.prior, interactive=True, **words_of(AdaptConfig, "prior")
                )
                with gr.Row():
                    how = gr.Dropdown(
                        list(RECIPES), value=default.recipe, interactive=True, **words_of(AdaptConfig, "recipe")
                    )
                    real = gr.Textbox(default.real, max_lines=1, **words_of(AdaptConfig, "album.real"))
            progress, looked = gr.HTML(), gr.HTML()
        with gr.Tab("3. Result"):
            verdict = gr.HTML()
            with gr.Row():
                photo = gr.Dropdown([], label="Photo", allow_custom_value=True, interactive=True)
                before = gr.Radio(list(BEFORE), value=next(iter(BEFORE)), label="Compare the adapted restorer with")
            compare = gr.Button("Show before and after")
            pictures, as_pictures = compat.comparison()
            save = gr.Button("Save the restorer", variant="primary")
            saved = gr.File(label="Files to download", interactive=False, visible=False)
            details = gr.HTML()
        with gr.Tab("4. Repair photos"):
            with gr.Row():
                with gr.Column():
                    to_repair = compat.uploads("Drop the photos to repair here")
                with gr.Column():
                    repair_folder = gr.Textbox(label="or name a folder", info=_folders(page), max_lines=1)
                    with_base = gr.Checkbox(False, label="Use the base restorer, not the adapted one")
                    crops = gr.Checkbox(False, label=words_of(AdaptConfig, "faces.aligned")["label"])
                    strip_gps = gr.Checkbox(False, label="Leave out where the photos were taken")
            with gr.Accordion("Advanced", open=False):
                switches = list(_switches(gr).values())
                rest = _background(gr)
            repair = gr.Button("Repair", variant="primary")
            archive = gr.File(label="Repaired photos", interactive=False, visible=False)
        with gr.Tab("All runs"):
            table = gr.HTML()
            with gr.Row():
                other = gr.Dropdown([], label="Compare the open run with", allow_custom_value=True, interactive=True)
                compare_runs = gr.Button("Compare")
            compared = gr.HTML()
            with gr.Row():
                sure = gr.Checkbox(False, label=DELETE)
                delete = gr.Button("Delete", variant="stop")

        chosen = [restorer, minutes, mixed, aligned, min_face, low_memory, how, real, prior, *advanced]
        shown = [
            state,
            progress,
            looked,
            faces_said,
            gallery,
            verdict,
            details,
            saved,
            *pictures,
            compared,
            photo,
            archive,
            first,
            start,
            stop,
            table,
            other,
            sure,
            seen,
        ]

        def as_choices(*values: Any) -> Choices:
            net, limit, by_group, square, smallest, lean, recipe, good, teacher, *rest = values
            changes = changes_of(rest, page.defaults(net, recipe))
            smallest = default.min_face if smallest is None else int(smallest)
            return Choices(net, limit or 0.0, square, smallest, lean, changes, by_group, recipe, good or "", teacher)

        nothing = gr.update(value=None, visible=False)
        of_result: Shown = {saved: nothing, compared: "", **dict.fromkeys(pictures)}  # cleared where that is another

        def look(run: str | None, last: str, viewed: str | None = None, anew: bool = False) -> Shown:
            """What of the run has to be shown anew: everything if anything changed since `last`, else its progress.

            viewed: the photo that is chosen; it stays so if the run is that of `last`, and so does what was made of the
            restorer if that is the same. anew: everything is shown in any case.
            """
            stamp = page.stamp(run)
            if stamp == last and not anew:
                active = stamp and page.status(page.run(run)).active
                return {state: page.state(run), progress: page.progress(run)} if active else {seen: stamp}
            if not stamp:
                return of_no_run() | {table: page.table(), seen: stamp}
            status, photos, repaired = page.status(page.run(run)), page.photos(run), page.repaired(run)
            faces = page.faces(run)
            goes_on = status.kind == "adapt" and status.state in ("cancelled", "stopped", "failed")
            same = page.is_of(last, run)
            shown_photo = viewed if same and viewed in photos else next(iter(photos), None)
            return ({} if same and page.same_result(last, stamp) else of_result) | {
                state: page.state(run),
                progress: page.progress(run),
                looked: page.first_look(run),
                faces_said: page.faces_said(run),
                gallery: gr.update(value=faces, visible=bool(faces)),
                verdict: page.verdict(run),
                details: page.details(run),
                photo: gr.update(choices=photos, value=shown_photo),
                archive: gr.update(value=str(repaired), visible=True) if repaired else nothing,
                start: gr.update(value="Go on" if goes_on else "Adapt", interactive=not status.active),
                first: gr.update(interactive=not status.active and bool(faces)),
                stop: gr.update(interactive=status.active),
                table: page.table(),
                other: gr.update(choices=[name for name in page.names() if name != run]),
                sure: gr.update(value=False, label=page.to_delete(run)),
                seen: stamp,
            }

        def of_no_run() -> Shown:
            words = dict.fromkeys((state, progress, looked, faces_said, verdict, details), "")
            files = {
                gallery: gr.update(value=[], visible=False),
                photo: gr.update(choices=[], value=None),
                archive: nothing,
            }
            return words | files | of_result | {sure: gr.update(value=False, label=DELETE)}

        def offered(values: Shown) -> Shown:
            """What is on this machine now, with those of `values`: files may come and go while the page runs."""
            files = {restorer: restorers(), prior: list(priors()), rest: list(offered_backgrounds())}
            own = {field: {"value": values[field]} if field in values else {} for field in files}
            return {field: gr.update(choices=names, **own[field]) for field, names in files.items()}

        def opened(run: str | None) -> Shown:
            fields: Shown = {}
            try:
                own = page.choices_of(run if run in page.names() else None)
                values = [own.restorer, own.minutes, own.mixed, own.aligned, own.min_face, own.low_memory]
                values += [own.recipe, sendable(own.real), own.prior]
                fields = dict(zip(chosen, [*values, *own.changes.values()], strict=True))
                fields |= offered(fields)
                return fields | look(run, ANOTHER)
            except (ValueError, OSError) as error:  # of a damaged run, which can be deleted nevertheless
                return fields | of_no_run() | {seen: f"{run}\n"} | tell(failed(error))

        def follow(run: str | None, last: str, viewed: str | None) -> Shown:
            """`look`, but with the boxes of a run that is not open yet: what is shown of one run is never of two."""
            return look(run, last, viewed) if run not in page.names() or page.is_of(last, run) else opened(run)

        def must_be_open(run: str | None, last: str) -> None:
            """Raise ValueError where the boxes of the page are still those of the run before."""
            if run in page.names() and not page.is_of(last, run):
                raise ValueError("this run is still being opened; try again in a moment")

        def begin(run: str | None, last: str, files: Any, path: str, called: str, *values: Any) -> Shown:
            given = files or (path or "").strip() or (called or "").strip()
            if not given and page.is_of(last, run) and page.search_goes_on(run, as_choices(*values)):
                return tell(said(LOOKS_AGAIN))
            run, problems = page.new_run(called or "", _paths(files), path or "", as_choices(*values))
            return {
                name: gr.update(choices=page.names(), value=run),
                dropped: None,
                folder: "",
                title: "",
            } | tell(said("", problems))

        def adapt(run: str | None, last: str, viewed: str | None, *values: Any) -> Shown:
            must_be_open(run, last)
            page.adapt(run, as_choices(*values))
            return look(run, last, viewed, anew=True) | tell("")

        def look_first(run: str | None, last: str, viewed: str | None, *values: Any) -> Shown:
            must_be_open(run, last)
            page.look_first(run, as_choices(*values))
            return look(run, last, viewed, anew=True) | tell("")

        def halt(run: str | None) -> Shown:
            page.stop(run)
            return tell(said("It stops after the present step; what it has made is kept."))

        def toggle(index: int, run: str | None, last: str) -> Shown:
            if not page.is_of(last, run):
                raise ValueError("these faces are of another run; open this one again")
            before = page.stamp(run)
            page.toggle(run, index)
            stamp = page.stamp(run)  # first, so that what another click changes meanwhile is shown by the next look
            again = compat.clickable_again(page.faces(run))
            words = {faces_said: page.faces_said(run), gallery: again} | tell("")
            # Whatever else is new, such as the end of a job, is not shown here, and is left to the next look.
            return words | {seen: stamp} if page.only_files_changed(last, before, stamp) else words

        def show(run: str | None, which: str | None, against: str) -> Shown:
            files = page.before_after(run, which, BEFORE[against])
            return dict(zip(pictures, as_pictures(files), strict=True)) | tell("")

        def keep(run: str | None) -> Shown:
            return {saved: gr.update(value=[str(path) for path in page.save(run)], visible=True)} | tell("")

        def mend(
            run: str | None,
            last: str,
            viewed: str | None,
            files: Any,
            path: str,
            base: bool,
            no_gps: bool,
            square: bool,
            around: str,
            *on_or_off: bool,
        ) -> Shown:
            must_be_open(run, last)
            chosen_switches: dict[str, Any] = dict(zip(NO_WORSE, on_or_off, strict=True))
            config = RestoreConfig(**chosen_switches, background=offered_background(around))
            problems = page.repair(run, _paths(files), path or "", base, no_gps, square, config)
            line = "" if files or (path or "").strip() else GOES_ON
            shown_again = look(run, last, viewed, anew=True)
            return shown_again | {to_repair: None, repair_folder: ""} | tell(said(line, problems))

        def side_by_side(run: str | None, second: str | None) -> Shown:
            return {compared: page.compare(run, second)} | tell("")

        def remove(run: str | None, really: bool, last: str) -> Shown:
            if not really:
                raise ValueError("tick the box beside the button first: what is deleted cannot be brought back")
            must_be_open(run, last)
            kept = page.delete(run)
            others = f" Kept, because somebody else put it there or changed it: {', '.join(kept)}." if kept else ""
            return {name: gr.update(choices=page.names(), value=page.latest()), sure: False} | tell(
                said(f"{run} is deleted.{others}")
            )

        def reopened() -> Shown:
            fields = dict(zip(advanced, page.defaults(default.restorer).values(), strict=True))
            fields |= {name: gr.update(choices=page.names(), value=page.latest()), table: page.table()}
            return fields | offered({})

        def recipe_of(net: str, recipe: str) -> Shown:
            return dict(zip(advanced, page.defaults(net, recipe).values(), strict=True))

        def tell(line: str) -> Shown:
            return {message: gr.update(value=line, visible=bool(line))}

        def safe(act: Callable[..., Shown]) -> Callable[..., Shown]:
            """`act`, whose errors are shown in one line on the page, while all else there stays as it is."""

            def answer(*values: Any) -> Shown:
                try:
                    return act(*values)
                except (ValueError, OSError) as error:
                    return tell(failed(error))
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    page.forget()  # the networks that are held for showing faces
                    return tell(failed(error))

            return answer

        def wire(event: Any, act: Callable[..., Shown], inputs: list[Any], outputs: list[Any]) -> None:
            on(event, safe(act), inputs, [message, *outputs])

        wire(find.click, begin, [name, seen, dropped, folder, title, *chosen], [name, dropped, folder, title])
        wire(name.change, opened, [name], [*chosen, rest, *shown])
        wire(start.click, adapt, [name, seen, photo, *chosen], shown)
        wire(first.click, look_first, [name, seen, photo, *chosen], shown)
        wire(stop.click, halt, [name], [])
        wire(compare.click, show, [name, photo, before], pictures)
        wire(save.click, keep, [name], [saved])
        repaired_how = [name, seen, photo, to_repair, repair_folder, with_base, strip_gps, crops, rest, *switches]
        wire(repair.click, mend, repaired_how, [to_repair, repair_folder, *shown])
        wire(compare_runs.click, side_by_side, [name, other], [compared])
        wire(delete.click, remove, [name, sure, seen], [name, sure])
        for choice in (restorer, how):
            wire(choice.input, recipe_of, [restorer, how], advanced)
        compat.on_select(gallery, safe(toggle), [name, seen], [message, faces_said, gallery, seen])
        compat.every(demo, LOOK_SECONDS, safe(follow), [name, seen, photo], [message, *chosen, rest, *shown])
        on(demo.load, reopened, [], [name, table, restorer, prior, rest, *advanced], quiet=True)
    return demo


def build_tab(page: Page) -> Any:
    """The page for a host's tab; the files that it shows are in its own cache, which the host must serve."""
    demo = build(page)
    compat.confine(demo, page.cache)
    return demo


def extras(runs: Sequence[str]) -> dict[str, Any]:
    """Widgets for a host that restores a picture with an adapted restorer; named as in `RestoreRequest`."""
    gr, initial = compat.load(), RestoreRequest("")
    with gr.Row():
        restorer = gr.Dropdown(
            list(runs), value=runs[0] if runs else None, label="Restorer", info="Adapted on the tab BFR Adapt."
        )
        visibility = gr.Slider(0.0, 1.0, initial.visibility, step=0.001, **words_of(RestoreConfig, "blend"))
        fidelity = gr.Slider(
            0.0,
            1.0,
            initial.fidelity,
            step=0.05,
            label="Fidelity",
            info=FIDELITY_TEXT,
        )
    with gr.Row():
        faces = gr.Dropdown(list(CHOICES), value=initial.faces, **words_of(RestoreConfig, "faces"))
        numbers = gr.Textbox(initial.numbers, **words_of(RestoreConfig, "numbers"))
    chosen = {"restorer": restorer, "visibility": visibility, "fidelity": fidelity, "faces": faces, "numbers": numbers}
    return chosen | {"background": _background(gr)} | _switches(gr)


def _background(gr: Any) -> Any:
    """The input for what restores the rest of the photo."""
    return gr.Dropdown(list(offered_backgrounds()), value=OFF, **words_of(RestoreConfig, "background"))


def _switches(gr: Any) -> dict[str, Any]:
    """Boxes to tick, in a row, for the settings by which a restored face is no worse than its photo."""
    with gr.Row():
        return {name: gr.Checkbox(getattr(RestoreConfig, name), **words_of(RestoreConfig, name)) for name in NO_WORSE}


def words_of(config: Any, path: str) -> dict[str, str]:
    """Label and hint of the input for a setting; the hint does not repeat a unit that the label names."""
    known = setting_at(config, path)
    in_label = known.unit and known.unit in known.label.lower()
    return {"label": known.label, "info": known.meaning if in_label else known.help_text}


def _number(gr: Any, path: str) -> Any:
    """The input for a setting, with the value for the embedded restorer, which is chosen at first: an empty input would
    be sent as 0 by gradio 4."""
    value = value_at(SMALL, path)
    whole = isinstance(value, int)
    step = 1 if whole else min(0.1, 10.0 ** floor(log10(value))) if value else 0.1  # of the input's arrows
    return gr.Number(value, precision=0 if whole else None, step=step, **words_of(AdaptConfig, path))


def _in_threes(values: list[str]) -> list[list[str]]:
    return [values[i : i + 3] for i in range(0, len(values), 3)]


def _folders(page: Page) -> str:
    outer = [folder for folder in page.allowed if not set(folder.parents) & set(page.allowed)]
    if not outer:
        return f"To name folders here, {page.how_to_allow}."
    return f"It must lie in {' or '.join(map(sendable, map(str, outer)))}."


def _paths(files: Any) -> list[str]:
    """Uploaded files as paths; older gradio gives objects with a name."""
    return [str(getattr(file, "name", file)) for file in files or []]
