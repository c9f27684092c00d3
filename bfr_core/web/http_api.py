"""A host's page by HTTP: runs started, watched and stopped, and a picture restored, for programs.

GET  PREFIX/runs                 names, states, verdicts
POST PREFIX/runs                 {"folder", "name", "restorer", "minutes", "aligned"} -> {"run"}; looks for the faces
POST PREFIX/runs/NAME/adapt      {"minutes", "mixed", "changes"} -> the run; the same call goes on with one that was
                                 stopped; mixed: true for one adaptation for each kind of damage
POST PREFIX/runs/NAME/stop       -> the run
POST PREFIX/restore              {"image": base64, "restorer": run, "visibility", "fidelity", "faces", "numbers",
                                 "keep_detail", "even_tone", "match_grain", "background"}
                                 -> {"image": base64 of a PNG, "info"}
What cannot be done is answered with 400 and {"detail": one line}.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, replace
from typing import Any

from ..adaptation.published import recipe_of
from ..device import is_out_of_memory
from ..errors import first_line
from ..files.kinds import UnreadableError
from ..files.ownership import scratch
from ..files.photos import read_photo, write_photo
from ..files.records import read_table
from .actions import Page
from .choices import ADVANCED, Choices, value_at
from .host_service import HostService, RestoreRequest, restore_request_of, summary_of
from .runs import FOR_SETTINGS, MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS

PREFIX = "/bfr-adapt/v1"
Reply = dict[str, Any]


def add_routes(
    app: Any, service: HostService, logins: Mapping[str, str], restored_one: Callable[[], None] = lambda: None
) -> None:
    """Answer below `PREFIX` in a FastAPI `app`; with `logins`, user -> password, only after HTTP Basic login.

    restored_one: called after every picture that was restored, or could not be.
    """
    import fastapi

    def guard(request: Any) -> None:
        if logins and not logged_in(request.headers.get("authorization", ""), logins):
            raise fastapi.HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    guard.__annotations__["request"] = fastapi.Request  # FastAPI looks for this to know what to pass

    def safe(act: Callable[[], Reply]) -> Reply:
        try:
            return act()
        except (ValueError, TypeError, OverflowError, OSError) as error:
            raise fastapi.HTTPException(400, first_line(error)) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            service.forget()
            raise fastapi.HTTPException(400, first_line(error)) from None

    page, given = service.page, fastapi.Body({})

    def runs() -> Reply:
        return safe(lambda: {"runs": [about(page, name) for name in page.names()]})

    def start(body: dict[str, Any] = given) -> Reply:
        return safe(lambda: {"run": new_run(page, body)})

    def adapt(name: str, body: dict[str, Any] = given) -> Reply:
        return safe(lambda: go_on(page, name, body))

    def stop(name: str) -> Reply:
        def act() -> Reply:
            page.stop(name)
            return about(page, name)

        return safe(act)

    def restore(body: dict[str, Any] = given) -> Reply:
        try:
            return safe(lambda: restored(service, body))
        finally:
            restored_one()

    for path, act, method in (
        ("/runs", runs, "GET"),
        ("/runs", start, "POST"),
        ("/runs/{name}/adapt", adapt, "POST"),
        ("/runs/{name}/stop", stop, "POST"),
        ("/restore", restore, "POST"),
    ):
        app.add_api_route(PREFIX + path, act, methods=[method], dependencies=[fastapi.Depends(guard)])


def logged_in(header: str, logins: Mapping[str, str]) -> bool:
    """Whether an Authorization header carries one of the logins."""
    kind, _, code = header.partition(" ")
    try:
        user, _, password = base64.b64decode(code, validate=True).decode().partition(":")
    except ValueError:  # not base64, not UTF-8, or not ASCII to begin with
        return False
    known = user in logins
    right = hmac.compare_digest(password.encode(), logins.get(user, "").encode())
    return kind.lower() == "basic" and known and right


def about(page: Page, name: str) -> Reply:
    """A run's last job, whether it has a restorer, and its verdict ("" if none). Its error names damaged files."""
    run = page.run(name)
    status = asdict(page.status(run))
    kept = {key: status[key] for key in ("kind", "state", "stage", "step", "steps", "seconds_left", "error")}
    try:
        verdict = read_table(run.folder / "report.json", verdict=str).get("verdict", "")
    except ValueError as error:
        verdict, kept["error"] = "", kept["error"] or str(error)
    return {"name": name, "verdict": verdict, "adapted": run.result.is_file()} | kept


def new_run(page: Page, body: Mapping[str, Any]) -> str:
    """Make a run from a folder, and look for its faces. Raises ValueError for a setting of another type."""
    kinds = {"restorer": str, "minutes": float, "aligned": bool, "recipe": str, "real": str, "prior": str}
    own = Choices(**given_as(body, kinds))
    named = given_as(body, {"name": str, "folder": str})
    name, _ = page.new_run(named.get("name", ""), [], named.get("folder", ""), own)
    return name


WORDS = {bool: "true or false", float: "a number", int: "a whole number", str: "a text"}


def given_as(body: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """The settings of these names in `body`, without those that are null. Raises ValueError for one of another type."""
    found = {}
    for name, kind in kinds.items():
        value = body.get(name)
        if value is None:
            continue
        whole = type(value) is int or (type(value) is float and value.is_integer())
        if kind in (int, float) and whole:  # JSON has one kind of number
            value = kind(value)
        if type(value) is not kind:
            raise ValueError(f"{name} is {value!r:.80}; it must be {WORDS[kind]}")
        found[name] = value
    return found


def go_on(page: Page, name: str, body: Mapping[str, Any]) -> Reply:
    """Start the adaptation, or go on with it, by what was chosen for the run and the `changes` in `body`."""
    own = page.choices_of(name)
    changes = body.get("changes", {})
    if not isinstance(changes, Mapping) or not set(changes) <= set(ADVANCED):
        raise ValueError(f"changes must be settings among {', '.join(ADVANCED)}")
    config = recipe_of(page.restorer_named(own.restorer, FOR_SETTINGS), own.recipe)
    typed = given_as(changes, {path: type(value_at(config, path)) for path in changes})
    asked = given_as(body, {"minutes": float, "mixed": bool})
    page.adapt(name, replace(own, **asked, changes=dict(own.changes) | typed))
    return about(page, name)


def restored(service: HostService, body: Mapping[str, Any]) -> Reply:
    """A picture with its faces restored, as PNG with its record."""
    numbers = body.get("numbers")
    given = dict(body) | ({"numbers": str(numbers)} if type(numbers) is int else {})
    known = {field.name: type(field.default) for field in fields(RestoreRequest) if field.default is not MISSING}
    request = restore_request_of(given_as(given, known | {"restorer": str}))
    if request is None:
        raise ValueError(f"restorer is missing; name one of {', '.join(service.names()) or 'none yet'}")
    code = str(body.get("image") or "").rpartition(",")[2]  # also as a data: address
    if not code:
        raise ValueError("image is missing; give a picture file in base64")
    if len(code) > MAX_UPLOAD_BYTES * 4 // 3:
        raise ValueError(f"the image is larger than {MAX_UPLOAD_BYTES >> 20} MB")
    with scratch(service.page.cache / "api", ".png") as path:
        path.write_bytes(_decoded(code))
        try:
            photo = read_photo(path, MAX_UPLOAD_PIXELS)
        except UnreadableError as error:
            raise ValueError(f"image: {error.reason}") from None
        photo, result = service.restore_file(photo, request)
        write_photo(path, photo)
        return {"image": base64.b64encode(path.read_bytes()).decode(), "info": summary_of(result)}


def _decoded(code: str) -> bytes:
    try:
        return base64.b64decode(code, validate=True)
    except ValueError:  # also for letters that are not ASCII
        raise ValueError("image must be a picture file in base64") from None
