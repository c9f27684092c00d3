"""The page in a browser, by what a person sees of it: labels and words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 600.0  # seconds until a wait fails: no measure of anything, since other work may take the machine
BUTTONS = "return [...document.querySelectorAll('button')].filter((b) => b.innerText.trim() === arguments[0])"
LOADED = """
return [...document.querySelectorAll(arguments[0])].filter((i) => i.checkVisibility() && i.naturalWidth)
  .map((i) => [i.naturalWidth, i.naturalHeight]);
"""


def until(look: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `look` gives, once that is something; what is not there yet may fail."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):
            if found := look():
                return found
        assert time.monotonic() < end, look()
        time.sleep(0.2)


class Tab:
    """A tab of a browser. screenshots: where `picture` puts what it shows. inside: our part of a host's page."""

    def __init__(self, browser: Any, screenshots: Path, inside: str = "body") -> None:
        self.browser, self.screenshots, self.inside = browser, screenshots, inside

    def button(self, text: str) -> Any:
        """The button of these words, once it can be pressed; tabs are buttons, too."""

        def look() -> Any:
            found = self.browser.execute_script(BUTTONS, text)  # a host's page has hundreds of others
            return next(b for b in found if b.is_displayed() and b.is_enabled())

        return until(look)

    def press(self, text: str) -> None:
        def pressed() -> bool:  # a page that still grows may lay something else under the pointer
            self.button(text).click()
            return True

        until(pressed)

    def field(self, label: str) -> Any:
        own = f"//label[.//*[normalize-space(text())='{label}']]"
        return until(lambda: self._seen(f"{own}//input | {own}//textarea"))

    def type(self, label: str, text: str) -> None:
        field = self.field(label)
        field.clear()
        field.send_keys(text)

    def tick(self, words: str) -> None:
        def ticked() -> bool:  # tried again, as in `press`
            box = self._seen(f"//label[contains(., '{words}')]//input")
            if not box.is_selected():
                box.click()
            return True

        until(ticked)

    def open(self, title: str) -> None:
        """Open, or close, what is folded under a title."""
        until(lambda: self._seen(f"//*[contains(@class, 'label-wrap') and contains(., '{title}')]")).click()

    def press_link(self, name: str) -> None:
        """Press what downloads a file of this name."""
        until(lambda: self._seen(f"//a[@download='{name}']")).click()

    def drop(self, files: Sequence[Path], nth: int = 0) -> None:
        """Upload files at the nth place for them, and wait until they are listed."""
        places = until(lambda: self.browser.find_elements("css selector", f"{self.inside} input[type=file]"))
        places[nth].send_keys("\n".join(map(str, files)))
        until(lambda: self.says(files[0].stem[:8]) and not self.says("Uploading"))

    def says(self, text: str) -> bool:
        return text in self.browser.find_element("tag name", "body").text

    def wait_for(self, text: str, seconds: float = PATIENCE) -> None:
        until(lambda: self.says(text), seconds)

    def faces(self) -> list[Any]:
        """The faces found, to click on."""
        return list(until(lambda: self.browser.find_elements("css selector", f"{self.inside} button.thumbnail-item")))

    def images(self, selector: str) -> list[list[int]]:
        """Width and height of the pictures that are loaded and seen."""
        return list(self.browser.execute_script(LOADED, selector))

    def picture(self, name: str) -> None:
        time.sleep(0.5)  # what was pressed fades
        self.browser.save_screenshot(str(self.screenshots / f"{name}.png"))

    def _seen(self, path: str) -> Any:
        return next(f for f in self.browser.find_elements("xpath", path) if f.is_displayed())
