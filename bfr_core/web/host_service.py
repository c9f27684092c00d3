"""For a host that has pictures of its own: the adapted restorers of a page's runs, by name; arrays in, arrays out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..device import is_out_of_memory
from ..errors import first_line
from ..faces.detect import load_detector
from ..files.photos import Photo, printable
from ..pixels import as_bytes
from ..restoration.background import offered_background
from ..restoration.restore import NO_WORSE, FindFaces, RestoreConfig, RestoredPhoto, restore_photo
from ..restoration.same_person import warnings_of
from ..restorers import Restorer
from ..restorers.codeformer import FIDELITY_TEXT, CodeFormer, with_fidelity
from ..settings import Setting, setting_at
from .actions import Page

log = logging.getLogger(__name__)
VISIBILITY = replace(setting_at(RestoreConfig, "blend"), path="visibility")
FIDELITY = Setting("fidelity", CodeFormer.fidelity_weight, FIDELITY_TEXT, low=0, high=1, kind=float)


class NothingRestoredError(ValueError):
    """Nothing of a picture could be restored; another picture may do."""


@dataclass(frozen=True)
class RestoreRequest:
    """How the faces of a picture are to be restored.

    restorer: the name of a run. visibility: 0 keeps the picture, 1 takes the restored faces. fidelity: for CodeFormer
    only, from 0, cleaner, to 1, closer to the picture. background: one of `offered_backgrounds`. All others: as in
    `RestoreConfig`.
    """

    restorer: str
    visibility: float = 1.0
    fidelity: float = CodeFormer.fidelity_weight
    faces: str = "all"
    numbers: str = "1"
    keep_detail: bool = RestoreConfig.keep_detail
    even_tone: bool = RestoreConfig.even_tone
    match_grain: bool = RestoreConfig.match_grain
    background: str = RestoreConfig.background

    def config(self) -> RestoreConfig:
        """The settings of the restoration. Raises ValueError for a value that does not exist."""
        VISIBILITY.check(self.visibility)
        FIDELITY.check(self.fidelity)
        switches = {name: getattr(self, name) for name in NO_WORSE}
        texts: dict[str, Any] = {
            "faces": self.faces,
            "numbers": self.numbers or "1",
            "background": offered_background(self.background),
        }
        return RestoreConfig(blend=self.visibility, **texts, **switches)


def restore_request_of(given: dict[str, Any]) -> RestoreRequest | None:
    """A request from settings by name; those that are missing or None keep their defaults, unknown ones are ignored.

    None if no restorer is named.
    """
    known = {name: given[name] for name in RestoreRequest.__dataclass_fields__ if given.get(name) is not None}
    return RestoreRequest(**known) if known.get("restorer") else None


class HostService:
    """The page of a host, and its adapted restorers at work on the host's own pictures, one picture at a time."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._one_at_a_time = threading.Lock()  # detectors keep state while they work
        self._detector: tuple[tuple[Any, ...], FindFaces] | None = None

    def names(self) -> list[str]:
        """Runs that have an adapted restorer, in alphabetical order."""
        return sorted(self.page.adapted())

    def restore(self, picture: np.ndarray, request: RestoreRequest) -> tuple[np.ndarray, RestoredPhoto]:
        """`picture` (H, W, 3) uint8 RGB with what was asked for restored, and what was done.

        Raises ValueError for a restorer or a setting that does not exist, and `NothingRestoredError` if every face
        failed, or memory was too small.
        """
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        result = self.restored(pixels, request)
        made = as_bytes(result.pixels).permute(1, 2, 0)
        return np.ascontiguousarray(made.cpu().numpy()), result

    def restore_file(self, photo: Photo, request: RestoreRequest) -> tuple[Photo, RestoredPhoto]:
        """`photo` with its faces restored and that recorded in its metadata; raises as `restore`."""
        result = self.restored(photo.pixels, request)
        return replace(photo, pixels=result.pixels, record=photo.record.with_step(result.step)), result

    def restored(self, pixels: Tensor, request: RestoreRequest) -> RestoredPhoto:
        """As `restore`, for pixels (3, H, W) in [0, 1]."""
        config = request.config()
        try:
            with self._one_at_a_time:
                restorer = with_fidelity(self._restorer(request.restorer), request.fidelity)
                result = restore_photo(pixels, restorer, config, self._detector_for(restorer, config))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.forget()
            raise NothingRestoredError(f"{printable(request.restorer)}: {first_line(error)}") from None
        caution = [restorer.caution] if restorer.caution else []
        for reason in (*caution, *result.skipped, *warnings_of(result.likeness)):
            log.warning("%s: %s", printable(request.restorer), printable(reason))
        wrong = [reason for reason in result.skipped if " failed: " in reason]
        if wrong and not result.faces:
            raise NothingRestoredError(f"{printable(request.restorer)}: {printable(wrong[0])}")
        return result

    def forget(self) -> None:
        """Give the memory of networks back."""
        with self._one_at_a_time:
            self._detector = None
            self.page.forget()

    def _restorer(self, name: str) -> Restorer:
        if name not in self.page.adapted():
            known = ", ".join(map(printable, self.names())) or "none yet: adapt one on the tab BFR Adapt"
            raise ValueError(f"{printable(name)}: there is no adapted restorer of this name; there are: {known}")
        return self.page.loaded(self.page.run(name).result)

    def _detector_for(self, restorer: Restorer, config: RestoreConfig) -> FindFaces:
        key = (config.detector, config.threshold, str(restorer.device))
        if self._detector is None or self._detector[0] != key:
            self._detector = key, load_detector(config.detector, config.threshold, restorer.device)
        return self._detector[1]


def summary_of(result: RestoredPhoto) -> str:
    """What was done, for the picture's record: how many faces, and that they were generated."""
    if not result.faces:
        return "no face restored, only the rest" if result.step else "no face restored"
    return f"{len(result.faces)} of {result.found} faces restored; their details are generated"


def existing(folders: Iterable[str | Path | None]) -> list[Path]:
    """Those of the folders that are there, each once."""
    return list(dict.fromkeys(Path(folder).resolve() for folder in folders if folder and Path(folder).is_dir()))
