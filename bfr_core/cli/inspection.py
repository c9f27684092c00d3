"""What a file records: of weights, whether they may be used commercially; of a picture, how it was restored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..diffusion.prior import holds_unet, load_prior
from ..files.kinds import LEFT_OUT
from ..files.ownership import Ledger
from ..files.photos import IMAGE_SUFFIXES, printable, read_photo
from ..files.provenance import Record
from ..files.tensors import load_tensors, sha256_of
from ..files.weights import allows_commercial_use, licence_of, resolve
from ..restorers import load_restorer
from ..restorers.load import SHIPPED
from ..restorers.low_rank import KIND


@dataclass(frozen=True)
class Inspection:
    """kind: "restorer", "change of a restorer" or "prior".

    parts: (what, name, licence) of the file and of everything it was made from. size: side in pixels of its images.
    commercial: whether it may be used commercially; None if a licence leaves that open. facts: what else it records.
    """

    name: str
    kind: str
    architecture: str
    size: str
    parts: tuple[tuple[str, str, str], ...]
    commercial: bool | None
    facts: dict[str, str]

    def lines(self) -> list[str]:
        """The same in words, one fact a line."""
        answer = {True: "yes", False: "no", None: "not clear"}[self.commercial]
        return [
            f"{self.name}: {self.kind}, {self.architecture}, {self.size} x {self.size} pixels",
            *(f"{what}: {name}, licence: {licence}" for what, name, licence in self.parts),
            f"may it be used commercially? {answer}{self._because()}",
            *(f"{key}: {value}" for key, value in self.facts.items()),
        ]

    def _because(self) -> str:
        open_ = [f"{what} ({licence})" for what, _, licence in self.parts if not allows_commercial_use(licence)]
        return f", because of its {' and its '.join(open_)}" if open_ else ""


def inspect(name_or_path: str | Path) -> Inspection:
    """What is recorded in a restorer, a file of changes, or a prior. Raises as `load_restorer` or `load_prior`."""
    if (name := str(name_or_path)) in SHIPPED:
        restorer = load_restorer(name)
        metadata, kind = dict(restorer.metadata), "restorer"
        own, architecture, size = restorer.licence, restorer.architecture, str(restorer.size)
    else:
        path = resolve(name_or_path)
        if path.is_dir():
            if Ledger(path).kind == "run":
                raise ValueError(f"{printable(path)}: is the folder of a run; give a file in it, restorer.safetensors")
            return _of_prior(path)
        if reason := LEFT_OUT.get(path.suffix.lower()):
            raise ValueError(f"{printable(path.name)}: {reason}")
        state, metadata = load_tensors(path) if path.suffix.lower() != ".onnx" else ({}, {})
        if holds_unet(state):
            return _of_prior(path)
        name, kind = path.name, "change of a restorer" if metadata.get("kind") == KIND else "restorer"
        if metadata.get("kind") == KIND:  # its base need not be here to read what it says
            own, architecture, size = (
                metadata.get("licence", "unknown"),
                metadata.get("architecture", "unknown"),
                metadata.get("size", "?"),
            )
        else:
            restorer = load_restorer(path)
            own = metadata.get("licence") or licence_of(sha256_of(path))
            architecture, size = restorer.architecture, str(restorer.size)
    parts = [("restorer", name, own)]
    for what in ("base", "prior"):
        if what in metadata:
            parts.append((what, metadata[what], metadata.get(f"{what}_licence", own if what == "base" else "unknown")))
    answers = [allows_commercial_use(licence) for _, _, licence in parts]
    commercial = False if False in answers else None if None in answers else True
    told = {"licence", "architecture", "size", "kind", "base", "base_licence", "prior", "prior_licence"}
    facts = {key: value for key, value in metadata.items() if key not in told}
    return Inspection(name, kind, architecture, size, tuple(parts), commercial, facts)


def _of_prior(path: Path) -> Inspection:
    prior = load_prior(path)
    parts = (("prior", prior.name, prior.licence),)
    commercial = allows_commercial_use(prior.licence)
    return Inspection(path.name, "prior", "U-Net", str(prior.size), parts, commercial, {"SHA-256": prior.sha256})


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Picture:
    """What a picture's metadata says of its making. generated: whether it says that details of the picture are."""

    name: str
    format: str
    width: int
    height: int
    generated: bool
    record: Record
    kind: str = "picture"

    def lines(self) -> list[str]:
        """The same in words, one fact a line."""
        words = self.record.words()
        said = "" if words else f"; {self.record.problem or 'its metadata says nothing of a restoration'}"
        return [f"{self.name}: {self.format} picture, {self.width} x {self.height} pixels{said}", *words]


def is_picture(path: str | Path) -> bool:
    """Whether a file is to be inspected as a picture, judged by its name."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES | {".gif"}


def inspect_picture(path: str | Path) -> Picture:
    """What is recorded in a picture. Raises ValueError, in one line, for a file that is no picture or is damaged."""
    photo = read_photo(Path(path))
    height, width = photo.pixels.shape[-2:]
    return Picture(Path(path).name, photo.format, width, height, photo.record.says_generated, photo.record)
