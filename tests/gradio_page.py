"""The page as a browser has it, by HTTP alone: components and events, of gradio 3 and 4."""

from __future__ import annotations

import json
from typing import Any, Protocol


class Server(Protocol):
    """Asks a gradio server and reads JSON."""

    def get(self, path: str) -> Any: ...

    def post(self, path: str, body: Any) -> Any: ...


class Gradio:
    """The components and events of a page that was loaded just now."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.config = server.get("/config")
        self.session = "test"
        self.parts = {part["id"]: part for part in self.config["components"]}

    def events(self, part: int | None, trigger: str) -> list[dict[str, Any]]:
        """The events of a component; None: of any."""
        found = []
        for i, event in enumerate(self.config["dependencies"]):
            targets = event["targets"] or [None]  # gradio 3 names none for the loading of the page
            pairs = [t if isinstance(t, list) else [t, event.get("trigger")] for t in targets]
            if any(trigger == kind and part in (None, target) for target, kind in pairs):
                found.append(event | {"index": event.get("id", i)})
        return found

    def part(self, text: str, nth: int = 0, key: str = "label") -> int:
        """The id of the nth component with this label (or value, elem_id) that is of our page, if that has one."""
        found = [i for i, part in self.parts.items() if part["props"].get(key) == text]
        assert len(found) > nth, f"there is no {key} {text!r}"
        return found[nth]

    def call(self, event: dict[str, Any], values: dict[int, Any], **more: Any) -> dict[int, Any]:
        """What an event of the page answers, by component; other inputs are as the page was loaded."""
        own = {i: self.parts[i]["props"].get("value") for i in event["inputs"]}
        data = [values.get(i, own[i]) for i in event["inputs"]]
        body = {"fn_index": event["index"], "data": data, "session_hash": self.session, **more}
        answer = self.server.post("/run/predict", body)
        return dict(zip(event["outputs"], answer["data"], strict=True))

    def open(self, run: str) -> dict[int, Any]:
        """Choose a run, as it is before anything is done with it; what the page answers."""
        place = self.part("Run")
        [event] = self.events(place, "change")
        return self.call(event, {place: run})

    def press(self, button: str, nth: int = 0, **fields: Any) -> dict[int, Any]:
        """Press a button of our page; fields: values by label, with _ for a space."""
        [event] = self.events(self.part(button, nth, "value"), "click")
        values = {}
        for label, value in fields.items():
            wanted = label.replace("_", " ")
            [place] = [i for i in event["inputs"] if self.parts[i]["props"].get("label") == wanted]
            values[place] = value
        return self.call(event, values)

    def dropped(self, path: str) -> dict[str, Any]:
        """What a browser says of a file that it has uploaded."""
        if self.config["version"].startswith("3."):
            return {"name": path, "orig_name": "a.png", "data": None, "is_file": True}
        return {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}

    def shown(self, answer: dict[int, Any]) -> str:
        return json.dumps(list(answer.values()))


def multipart(name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an upload."""
    head = f'--xxxx\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--xxxx--\r\n", {"Content-Type": "multipart/form-data; boundary=xxxx"}


def strings(value: Any) -> list[str]:
    """Every text inside a JSON value."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in strings(one)]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []
