"""The faces of a step: which they are, what damage they get, and which ones the discriminator takes for real.

Every draw is keyed by its purpose and by the step, so a step has the same faces however often it is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor

from ..damage.grey import grey_like, greyed, is_nearly_grey
from ..damage.synthetic import degrade
from ..damage.transplant import damage_filter, transplanted
from ..randomness import keyed_generator
from .config import FinetuneConfig
from .objectives import Batch
from .team import ALONE

FEWEST = 8  # faces of which some are held out
MAX_EXAMPLES_SHARE, EXAMPLES_FOR_ALL = 0.5, 8  # examples are at most half of the clean faces, which four of them reach


class Pairs(Protocol):
    """Training pairs: item i is (lq, pseudo_target), each (3, S, S) RGB in [0, 1] on the CPU."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...


class Faces(Protocol):
    """Faces alone: item i is (3, S, S) RGB in [0, 1] on the CPU. A tensor (N, 3, S, S) is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


class DamageModel(Protocol):
    """A model of a folder's damage, which any face can be given: `KnownDamage`, `InTurn` or `Photographed`."""

    def put_on(self, face: Tensor, donor_lq: Tensor, donor_restored: Tensor, *key: int | str) -> Tensor:
        """`face`, (3, S, S) as all are, with this damage, and that of the donor where it is taken from one.

        key: of what is left to chance.
        """
        ...


@dataclass(frozen=True, eq=False)
class SharpFaces:
    """Sharp faces of other people, to be given the damage of this folder.

    faces: (3, S, S) RGB in [0, 1] each. damage: of the folder. held: so many of the faces, the last ones, are never
    trained on; checkpoints are compared on them.
    """

    faces: Faces
    damage: DamageModel
    held: int = 0

    @property
    def trained_on(self) -> int:
        """How many of the faces are trained on."""
        return len(self.faces) - self.held


@dataclass(frozen=True)
class Material:
    """All the faces of a tuning.

    train, held: indices into `pairs` of the faces that are tuned on, and of those that checkpoints are compared on.
    examples, real, sharp: see `finetune`. filters: the damage filters found so far, by face, see `batch_of`.
    """

    pairs: Pairs
    train: list[int]
    held: list[int]
    examples: Tensor | None = None
    real: Faces | None = None
    sharp: SharpFaces | None = None
    filters: dict[int, Tensor] = field(default_factory=dict)


def split(count: int, config: FinetuneConfig) -> tuple[list[int], list[int]]:
    """Indices to train on and indices held out, both sorted.

    Held out is the share that is set, but never less than a third of the faces or eight, whichever is fewer, because
    the verdict's interval needs them, and never more than all but two. Fewer than `FEWEST` faces are all trained on,
    and so are all with a share of 0.
    """
    order = torch.randperm(count, generator=keyed_generator(config.seed, "split")).tolist()
    held = 0
    if config.held_out and count >= FEWEST:
        held = min(max(min(8, count // 3), round(config.held_out * count)), count - 2)
    return sorted(order[held:]), sorted(order[:held])


def micro_batches(
    pairs: Pairs,
    train: list[int],
    step: int,
    config: FinetuneConfig,
    filters: dict[int, Tensor] | None = None,
    examples: Tensor | None = None,
    sharp: SharpFaces | None = None,
    passes: Sequence[slice] | None = None,
) -> Iterator[Batch]:
    """The faces of one step, mirrored at random, some with another face's damage; fixed by the seed and the step.

    passes: places in the step's batch of the faces of each batch that is made; by default micro-batches of all faces.
    filters: see `batch_of`. examples: see `finetune`; example i has the key -1 - i, and always a donor. sharp: whose
    face i has the key len(pairs) + i, and always a donor; a share of them are examples, see `examples_share`.
    """
    first = step * config.batch_size
    chosen: list[tuple[int, bool]] = []
    donors: list[int | None] = []
    for position in range(first, first + config.batch_size):
        epoch, place = divmod(position, len(train))
        generator = keyed_generator(config.seed, "epoch", epoch)
        at = int(torch.randperm(len(train), generator=generator)[place])
        mirrored = bool(torch.rand(len(train), generator=generator)[place] < 0.5) and config.mirror
        chosen.append((train[at], mirrored))
        generator = keyed_generator(config.seed, "transplant", position)
        chance, donor = torch.rand(2, generator=generator).tolist()
        other = int(donor * (len(train) - 1))  # any but the face itself
        other += other >= at
        donors.append(train[other] if len(train) > 1 and chance < config.transplant else None)
        if examples is not None and donors[-1] is not None:
            chance, which = torch.rand(2, generator=keyed_generator(config.seed, "example", position)).tolist()
            if chance < examples_share(examples):
                chosen[-1] = (-1 - int(which * len(examples)), chosen[-1][1])
        if sharp is not None and config.sharp:
            generator = keyed_generator(config.seed, "sharp", position)
            chance, which, donor = torch.rand(3, generator=generator).tolist()
            if chance < config.sharp:
                chosen[-1] = (len(pairs) + int(which * sharp.trained_on), mirrored)
                donors[-1] = train[int(donor * len(train))]
                if examples is not None:
                    chance, which = torch.rand(2, generator=keyed_generator(config.seed, "good", position)).tolist()
                    if chance < examples_share(examples):
                        chosen[-1] = (-1 - int(which * len(examples)), mirrored)
    if passes is None:
        passes = ALONE.passes(config.batch_size, config.micro_batch, config.micro_batch)
    seen = seen_by_perceptual(step, config)
    draws = [(config.seed, position) for position in range(first, first + config.batch_size)]
    for some in passes:
        batch = batch_of(pairs, chosen[some], donors[some], filters, examples, sharp, draws[some])
        yield batch._replace(seen=seen)


def seen_by_perceptual(step: int, config: FinetuneConfig) -> tuple[slice, slice]:
    """Rows and columns of the faces that the perceptual loss sees in a step: all but `config.shift` of each."""
    if not config.shift:
        return slice(None), slice(None)
    left_out = torch.randint(config.shift, (2,), generator=keyed_generator(config.seed, "shift", step))
    rows, columns = (slice(before, before - config.shift) for before in left_out.tolist())
    return rows, columns


def batch_of(
    pairs: Pairs,
    keys: list[tuple[int, bool]],
    donors: Sequence[int | None] = (),
    filters: dict[int, Tensor] | None = None,
    examples: Tensor | None = None,
    sharp: SharpFaces | None = None,
    draws: Sequence[tuple[int, ...]] = (),
) -> Batch:
    """The pairs of these keys (face, mirrored). donors: for each, the face whose damage it gets, or None for its own.

    filters: the donors' damage filters found so far, by face; those that are missing are added. examples, sharp: as
    above. draws: for each, the key of what is left to chance in the damage of a sharp face; by default the face and
    its donor, so that they have the same noise whenever they meet.
    """
    filters = {} if filters is None else filters
    lqs, targets = [], []
    for (face, mirrored), donor, draw in zip_longest(keys, donors, draws):
        lq, target = pair_of(face, pairs, examples, sharp)
        if donor is not None:
            damaged, clean = pairs[donor]
            target = greyed(target) if is_nearly_grey(damaged) else target
            if sharp is not None and not 0 <= face < len(pairs):
                lq = sharp.damage.put_on(target, damaged, clean, *(draw or (face * len(pairs) + donor,)))
            else:
                if donor not in filters:
                    filters[donor] = damage_filter(clean, damaged)
                lq = transplanted(target, damaged, clean, filters[donor])
        lqs.append(lq.flip(-1) if mirrored else lq)
        targets.append(target.flip(-1) if mirrored else target)
    return Batch(torch.stack(lqs), torch.stack(targets), keys)


def pair_of(face: int, pairs: Pairs, examples: Tensor | None, sharp: SharpFaces | None) -> tuple[Tensor, Tensor]:
    """(lq, target) of a key, see `micro_batches`; an example and a sharp face have no damage yet."""
    if sharp is not None and face >= len(pairs):
        return (sharp.faces[face - len(pairs)],) * 2
    if examples is not None and face < 0:
        return (examples[-1 - face],) * 2
    return pairs[face]


def anchor_faces(faces: Material, step: int, config: FinetuneConfig) -> Tensor:
    """Sharp faces, where there are any, or else pseudo targets, and examples, under ordinary blind damage.

    (B, 3, S, S), B the anchor's share of the batch. Pseudo targets are softer than faces are: what the base makes of
    them teaches softness.
    """
    generator = keyed_generator(config.seed, "anchor", step)
    count = max(1, round(config.anchor * config.batch_size))
    sharp = faces.sharp if faces.sharp is not None and config.sharp else None
    known = sharp.trained_on if sharp else len(faces.train)
    chosen = torch.randint(known, (count,), generator=generator).tolist()
    clean = torch.stack([sharp.faces[i] if sharp else faces.pairs[faces.train[i]][1] for i in chosen])
    if faces.examples is not None:
        share = examples_share(faces.examples)
        clean = with_examples(clean, faces.examples, share, config.seed, "anchor example", step, mirror=config.mirror)
    return degrade(clean, "blind", generator).lq


def examples_share(examples: Tensor) -> float:
    """Share of the clean faces that are examples: a few examples must not make up all that is seen."""
    return min(MAX_EXAMPLES_SHARE, len(examples) / EXAMPLES_FOR_ALL)


def real_faces(real: Faces, count: int, mirror: bool, *key: int | str, first: int = 0) -> Tensor:
    """`count` of the faces in `real`, (count, 3, S, S), half of them mirrored if `mirror`.

    first: place of the first face in its step's batch; the key and the place decide which, as in `with_examples`.
    """
    which, mirrored = _random_numbers(2, count, key, first)
    faces = [real[int(place)] for place in (which * len(real)).long()]
    return torch.stack(
        [face.flip(-1) if mirror and chance < 0.5 else face for face, chance in zip(faces, mirrored, strict=True)]
    )


def _random_numbers(numbers: int, count: int, key: tuple[int | str, ...], first: int) -> Tensor:
    """(numbers, count) in [0, 1); those of each face depend on the key and on its place in the step's batch."""
    return torch.stack([torch.rand(numbers, generator=keyed_generator(*key, first + i)) for i in range(count)], 1)


def taken_for_real(
    faces: Material, pseudo_targets: Tensor, step: int, config: FinetuneConfig, first: int = 0
) -> Tensor:
    """What the discriminator takes for real in a pass, (B, 3, S, S): `faces.real`, or else examples, or else targets.

    They are grey where the targets are, so that colour does not tell them apart from what is restored.
    pseudo_targets: (B, 3, S, S), of this pass. first: see `real_faces`.
    """
    key = (config.seed, "real", step)
    if faces.real is None and faces.examples is None:
        return pseudo_targets
    if faces.real is not None:
        taken = real_faces(faces.real, len(pseudo_targets), config.mirror, *key, first=first).to(pseudo_targets)
    else:
        taken = with_examples(pseudo_targets, faces.examples, 1.0, *key, mirror=config.mirror, first=first)
    return grey_like(taken, pseudo_targets)


def with_examples(
    faces: Tensor, examples: Tensor | None, share: float, *key: int | str, mirror: bool = True, first: int = 0
) -> Tensor:
    """`faces` (B, 3, S, S), a share of them replaced by examples, mirrored at random.

    first: place of the first face in its step's batch. The key and the place decide which, however the batch is cut
    into passes.
    """
    if examples is None:
        return faces
    chance, which, mirrored = _random_numbers(3, len(faces), key, first)
    mirrored = mirrored if mirror else torch.ones_like(mirrored)
    taken = examples[(which * len(examples)).long()].to(faces)
    taken = torch.where((mirrored < 0.5).to(faces.device).view(-1, 1, 1, 1), taken.flip(-1), taken)
    return torch.where((chance < share).to(faces.device).view(-1, 1, 1, 1), taken, faces)
