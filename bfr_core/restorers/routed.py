"""Several restorers as one: each face goes to the one that was adapted to its damage, or to the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from ..damage.groups import FEATURES, DamageGroups, describe
from ..device import Precision
from ..files.photos import printable, replace_atomically
from ..files.tensors import load_tensors, save_tensors, sha256_of
from .base import Restorer

GROUPS = "bfr_groups"  # value of the metadata entry "kind" of such a file
MAX_GROUPS = 64
ONE_GROUP = "groups/1/restorer.safetensors"  # where `adapt --mixed` puts the first group's restorer
TENSORS = {"units": "units", "centres": "centres", "usual": "typical"}  # name in a file -> field of `DamageGroups`


@dataclass(eq=False)
class Routed(Restorer):
    """groups: of damages. members: the base, then a restorer for each group, or None where the base serves it.

    module: the networks of all members.
    """

    groups: DamageGroups | None = None
    members: Sequence[Restorer | None] = field(default_factory=tuple)

    not_tuned_because = "is several restorers in one; give the one to tune, or their base"

    @classmethod
    def of(cls, groups: DamageGroups, members: Sequence[Restorer | None], **record: Any) -> Routed:
        """members: as above. record: name, sha256, licence and metadata. Raises ValueError if the sizes differ."""
        base, *others = members
        assert base is not None
        if wrong := [one.name for one in others if one and one.size != base.size]:
            raise ValueError(f"{record['name']}: {printable(wrong[0])} is not of the size of its base, {base.size}")
        module = nn.ModuleList(one.module for one in members if one)
        return cls(module, base.architecture, base.size, groups=groups, members=tuple(members), **record)

    def default_precision(self) -> Precision:
        """As its base says."""
        base = self.members[0]
        assert base is not None
        return base.default_precision()

    @property
    def caution(self) -> str:
        """A line of warning if every group keeps the base; else ""."""
        own = f"{self.name}: the verdict on its tuning was: keep the base, which does better for every group of damages"
        return "" if any(self.members[1:]) else printable(own)

    @property
    def fidelity_weight(self) -> float | None:
        """CodeFormer's fidelity_weight, one for all members; None where no member is a CodeFormer."""
        weights = (getattr(one, "fidelity_weight", None) for one in self.members if one)
        return next((weight for weight in weights if weight is not None), None)

    def with_fidelity(self, fidelity_weight: float) -> Routed:
        """A copy in which every CodeFormer among the members has this fidelity_weight."""
        return replace(self, members=tuple(one and one.with_fidelity(fidelity_weight) for one in self.members))

    def that_served(self, name: str) -> Restorer:
        """The restorer of "group 1" and so on; the base for any other name."""
        base, *others = self.members
        assert base is not None
        chosen = next((one for i, one in enumerate(others, 1) if one and name == f"group {i}"), base)
        return replace(chosen, precision=self.precision)

    def for_background(self, served: Sequence[str]) -> Restorer:
        """The restorer of the group that most of the photo's faces belong to; the base if none says so."""
        names = [f"group {i}" for i, one in enumerate(self.members[1:], 1) if one]
        most = max(names, key=served.count, default="base")
        return self.that_served(most if served.count(most) > served.count("base") else "base")

    def __call__(self, lq: Tensor) -> Tensor:
        return self.restore(lq)

    def restore(self, lq: Tensor) -> Tensor:
        """As `Restorer.restore`; each face is restored by the network of its group."""
        return self.restore_and_tell(lq)[0]

    @torch.inference_mode()
    def restore_and_tell(self, lq: Tensor) -> tuple[Tensor, list[str]]:
        """The same, and for each face "group 1" and so on, or "base"."""
        assert self.groups is not None
        base, *others = (replace(one, precision=self.precision) if one else None for one in self.members)
        assert base is not None
        restored = base.restore(lq)
        routes = self.groups.route(describe(lq.cpu(), restored.cpu()))
        for i, one in enumerate(others):
            chosen = [place for place, route in enumerate(routes) if route == i]
            if one and chosen:
                restored[chosen] = one.restore(lq[chosen])
        served = [f"group {route + 1}" if route >= 0 and others[route] else "base" for route in routes]
        return restored, served


def save_groups(
    path: Path, groups: DamageGroups, base: Path, members: Sequence[Path | None], metadata: Mapping[str, str]
) -> None:
    """Write the groups as a .safetensors file that names its restorers: files below its folder, and their SHA-256.

    members: one for each group; None where the base serves it.
    """
    own = {"kind": GROUPS, "members": json.dumps([_entry(path, file) for file in (base, *members)])}
    save_tensors(path, tensors_of(groups), own | dict(metadata))


def keep_members(path: Path, folder: Path) -> None:
    """Let a file of groups name copies of its restorers in `folder`, below its own: it stays readable while the others
    are made anew. Raises as `members_of`.
    """
    state, metadata = load_tensors(path)
    copies: list[Path | None] = []
    for place, file in enumerate(members_of(path, metadata, len(read_groups(path, state)))):
        copies.append(file and folder / f"{place}.safetensors")
        if file and file.parent != folder.resolve():
            replace_atomically(folder / f"{place}.safetensors", partial(shutil.copyfile, file))
    save_tensors(path, state, metadata | {"members": json.dumps([_entry(path, copy) for copy in copies])})


def tensors_of(groups: DamageGroups) -> dict[str, Tensor]:
    """The groups by the names that files give to their tensors, see `read_groups`."""
    return {name: getattr(groups, attribute) for name, attribute in TENSORS.items()}


def _entry(path: Path, file: Path | None) -> dict[str, str]:
    return {"file": file.relative_to(path.parent).as_posix(), "sha256": sha256_of(file)} if file else {}


def read_groups(path: Path, state: Mapping[str, Tensor]) -> DamageGroups:
    """The groups in a file of tensors. Raises ValueError, in one line, if they are not what they should be."""
    count = len(state["usual"]) if state.get("usual", torch.zeros(())).ndim == 1 else 0
    shapes = {"units": (FEATURES, FEATURES), "centres": (count, FEATURES), "usual": (count,)}
    if not 0 < count <= MAX_GROUPS or {name: tuple(value.shape) for name, value in state.items()} != shapes:
        raise ValueError(f"{path.name}: its groups are not as this version makes them; adapt to the mixed folder again")
    return DamageGroups(**{attribute: state[name].float() for name, attribute in TENSORS.items()})


def members_of(path: Path, metadata: Mapping[str, str], count: int) -> list[Path | None]:
    """Files of the base and of `count` groups that a file of groups names; None where the base serves a group.

    The file is untrusted. Raises ValueError or FileNotFoundError, in one line, unless it names unchanged files in its
    own folder or below.
    """
    try:
        listed = json.loads(metadata.get("members", ""))
        entries = [(one["file"], one["sha256"]) if one else None for one in listed]
        sound = len(entries) == 1 + count and entries[0] and all(type(x) is str for one in entries if one for x in one)
    except (ValueError, TypeError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path.name}: does not say which restorers serve its {count} groups; adapt again")
    return [_member(path, *one) if one else None for one in entries]


def group_files(path: Path) -> list[Path]:
    """A file of groups and the files that it names, which must be kept together. Raises as `members_of`."""
    state, metadata = load_tensors(path)
    members = members_of(path, metadata, len(read_groups(path, state)))
    return [path, *(file for file in members if file)]


def _member(path: Path, name: str, sha256: str) -> Path:
    shown, folder = printable(name[:120]), path.parent.resolve()
    parts = PurePosixPath(name)
    inside = parts.parts and not parts.is_absolute() and ".." not in parts.parts and not set(name) & set("\\:\0")
    try:
        file = (folder / parts).resolve() if inside else folder
    except (OSError, RuntimeError):  # links in a circle, and whatever else a disk objects to
        file = folder
    if folder not in file.parents:
        raise ValueError(f"{path.name}: names {shown}, which is not in its own folder; such a file is refused")
    if not file.is_file():
        raise FileNotFoundError(f"{path.name}: {shown} is not beside it; keep the folder of the run together")
    if sha256_of(file) != sha256:
        raise ValueError(f"{path.name}: {shown} is not the file it was made with; adapt again, it goes on")
    return file
