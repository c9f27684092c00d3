"""Whose face is it? Faces grouped by person, and the one person who is looked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files.photos import printable, read_image
from .align import Face
from .recognise import RecogniserNet, chip_of, embed

# Mean distance up to which two groups of faces are one person's; `benchmarks/likeness.py --parts people` measures it.
SAME_PERSON = 0.5
MAX_FACES = 5000  # faces that are grouped at once: the distances of all pairs are kept


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody who is looked for. embedding: (128,) of a face of theirs. name: of the photo, for what is said."""

    embedding: Tensor
    name: str

    def distances(self, embeddings: Tensor) -> Tensor:
        """(B, 128) -> (B,): how far faces lie from this person's."""
        return (embeddings.float() - self.embedding).norm(dim=1)


def largest_face(photo: Tensor, find: Callable[[Tensor], list[Face]], name: str = "photo") -> Face:
    """The largest face of a photo (3, H, W) in [0, 1]. Raises ValueError if it has no face."""
    found = find(photo)
    if not found:
        raise ValueError(
            f"{printable(name)}: no face found in it; give a photo of the person, sharp and from the front"
        )
    return max(found, key=lambda one: one.width)


def person_of(photo: Tensor, face: Face, net: RecogniserNet, name: str = "photo") -> Person:
    """The person whose face this is, of a photo (3, H, W) in [0, 1]."""
    return Person(embed(net, chip_of(photo, face.landmarks, net.embedding.weight.device)[None])[0], name)


def person_in(photo: Tensor, find: Callable[[Tensor], list[Face]], net: RecogniserNet, name: str = "photo") -> Person:
    """The person whose face is the largest of a photo (3, H, W) in [0, 1]. Raises ValueError if it has no face."""
    return person_of(photo, largest_face(photo, find, name), net, name)


def read_person(file: Path, find: Callable[[Tensor], list[Face]], net: RecogniserNet) -> Person:
    """`person_in` of a file. Raises ValueError if it cannot be read or has no face."""
    return person_in(read_image(file), find, net, file.name)


def refuse_too_many(faces: int) -> None:
    """Raise ValueError for more than `MAX_FACES` faces."""
    if faces > MAX_FACES:
        raise ValueError(f"{faces} faces are too many to group by person; {MAX_FACES} can be grouped at most")


def group_people(
    embeddings: Tensor, limit: float = SAME_PERSON, says_who: Sequence[bool] | None = None
) -> list[list[int]]:
    """Places of faces grouped by person, the largest group first, and by first place among equals.

    embeddings: (N, D). limit: the mean distance of all pairs of two groups up to which they become one (agglomerative
    clustering by average linkage). says_who: False for a face so damaged that it may be anybody's; it stays alone.
    Raises ValueError for more than `MAX_FACES` faces or a limit that is not above 0.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if not limit > 0:
        raise ValueError(f"limit is {limit}; it must be above 0")
    refuse_too_many(len(embeddings))
    known = [i for i in range(len(embeddings)) if says_who is None or says_who[i]]
    together = set(known) if len(known) > 1 else set()
    groups = [[i] for i in range(len(embeddings)) if i not in together]
    if len(known) > 1:
        tree = linkage(embeddings[known].double().cpu().numpy(), "average")
        numbers = fcluster(tree, limit, "distance")
        groups += [np.array(known)[numbers == number].tolist() for number in np.unique(numbers)]
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def numbered_people(
    embeddings: Tensor, limit: float = SAME_PERSON, says_who: Sequence[bool] | None = None
) -> list[int]:
    """For each face the number of its person, from 1, as `group_people` orders them."""
    numbers = torch.zeros(len(embeddings), dtype=torch.long)
    for number, group in enumerate(group_people(embeddings, limit, says_who), 1):
        numbers[group] = number
    return numbers.tolist()
