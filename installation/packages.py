"""What is installed, what is asked for, and the constraints that keep the first from changing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import invalidate_caches, metadata
from pathlib import Path
from typing import NamedTuple

# Hosts choose these for their machine and their own code; a host that lacks one keeps lacking it.
NEVER_ADDED = (
    "torch",
    "torchvision",
    "torchaudio",
    "xformers",
    "triton",
    "gradio",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:>=([0-9]+(?:\.[0-9]+)*))?")
# Appendix B of the version specifiers specification, without its leading v.
VERSION = re.compile(
    r"(?:\d+!)?\d+(?:\.\d+)*"
    r"(?:[-_.]?(?:alpha|a|beta|b|preview|pre|c|rc)[-_.]?\d*)?"
    r"(?:-\d+|[-_.]?(?:post|rev|r)[-_.]?\d*)?"
    r"(?:[-_.]?dev[-_.]?\d*)?"
    r"(?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Requirement:
    """A line of requirements.txt. name: canonical (lower case, single hyphens); minimum: release, () if any will do."""

    name: str
    minimum: tuple[int, ...]
    text: str


class Clash(NamedTuple):
    """With `host` below the release `new`, `name` must be below `limit`."""

    host: str
    new: str
    name: str
    limit: str

    def at(self, versions: dict[str, str]) -> bool:
        """Whether the host's version is so old."""
        return self.host in versions and release(versions[self.host]) < release(self.new)


# diffusers asks torch for its Intel part while it is loaded.
CLASHES = (Clash("torch", "2.3", "diffusers", "0.36"),)


def canonical(name: str) -> str:
    """The one spelling by which the package index knows `name`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_requirements(path: Path) -> list[Requirement]:
    """Packages listed in `path`, a `name` or `name>=version` a line; # starts a comment. ValueError on other forms."""
    requirements = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        match = REQUIREMENT.fullmatch(text)
        if match:
            requirements.append(Requirement(canonical(match[1]), release(match[2] or ""), text))
        elif text:
            raise ValueError(f"{path.name}: {text!r} is neither name nor name>=version")
    return requirements


def installed() -> dict[str, str]:
    """Canonical name -> version of every package this Python can import; "" for one whose version cannot be read."""
    invalidate_caches()
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        folder = str(getattr(getattr(distribution, "_path", ""), "name", ""))
        if folder.startswith(("~", "-")):  # what an interrupted pip leaves behind, which pip passes over
            continue
        about = distribution.metadata
        fields = {key: about[key] for key in ("Name", "Version") if about is not None and key in about}
        if fields.get("Name"):  # the first on sys.path is the one that is imported
            versions.setdefault(canonical(fields["Name"]), fields.get("Version", ""))
    return versions


def release(version: str) -> tuple[int, ...]:
    """Leading numbers of a version, without zeros at the end: "2.3.0+cu121" -> (2, 3)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def satisfied(requirement: Requirement, versions: dict[str, str]) -> bool:
    """Whether `versions` has the package, new enough."""
    return requirement.name in versions and release(versions[requirement.name]) >= requirement.minimum


def constraints(versions: dict[str, str]) -> list[str]:
    """Lines of a constraint file under which nothing in `versions` can change and nothing in `NEVER_ADDED` can come.

    A version that pip could not read (an old-style one, say) would make it refuse the whole file: such a package, like
    one that must not come, is given a version that cannot be had, and then whatever wants to replace it is left out.
    """
    pins = [
        f"{name}=={version}" if VERSION.fullmatch(version) else f"{name}<0"
        for name, version in sorted(versions.items())
    ]
    below = [f"{clash.name}<{clash.limit}" for clash in CLASHES if clash.name not in versions and clash.at(versions)]
    return pins + below + [f"{name}<0" for name in NEVER_ADDED if name not in versions]


def too_new(versions: dict[str, str]) -> dict[str, str]:
    """What of `versions` does not go with the rest, and what to do: name -> sentence."""
    return {
        clash.name: f"{clash.name} {versions[clash.name]} is too new for {clash.host} {versions[clash.host]}; install "
        f"{clash.name}<{clash.limit}"
        for clash in CLASHES
        if clash.at(versions) and release(versions.get(clash.name, "0")) >= release(clash.limit)
    }
