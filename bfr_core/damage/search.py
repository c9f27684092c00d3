"""Find the damage of a folder in a family: the one that makes sharp faces of other people look like the folder's.

Nothing is known of the faces but how they look, so their statistics are compared, as an unpaired damage model does
(Luo et al., arXiv:2203.04962), but over a family of fourteen parameters in place of a network. The search is CMA-ES
(Hansen, "The CMA evolution strategy: a tutorial", arXiv:1604.00772) in the library of its author. From one start it can
end where nothing near is better and something far is, so it begins from several and goes on from where it came nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..randomness import keyed_generator
from .family import RANGES, Photographed, photographed
from .statistics import Looks, statistics

POPULATION = 24  # twice what the library would take: the few faces of a generation make its distances uncertain
# The few faces of a trial hardly tell a camera that was shaken a little from a still one: all of them must say so.
WORTH_A_SHAKE = 0.95  # of the distance without


class Start(NamedTuple):
    """how: a damage from which to search. step: how far around it the first trials are, in widths of `RANGES`."""

    how: Photographed
    step: float

    @property
    def place(self) -> list[float]:
        """Where in `RANGES` it is, from 0 to 1; `Photographed.at` goes back."""
        return [
            (value - low) / (high - low) for value, (low, high) in zip(astuple(self.how), RANGES.values(), strict=True)
        ]


MILD = Photographed(
    blur=0.7, shrink=3.4, gamma=1.98, shot=-2.8, read=-1.85, red=0.0, blue=0.0, colour=1.6,
    lightness_blur=0.45, colour_blur=0.9, quality=100.25, spread=0.18, shake=1.6, mosaic=0.5,
)  # fmt: skip
SENSOR = Photographed(
    blur=0.0, shrink=1.5, gamma=2.2, shot=-2.5, read=-2.0, red=0.2, blue=0.2, colour=1.7,
    lightness_blur=0.1, colour_blur=0.8, quality=104.9, spread=0.1, shake=0.0, mosaic=0.5,
)  # fmt: skip
STARTS = (Start(MILD, 0.2), Start(SENSOR, 0.1))  # a small photo with a little of everything; a raw one in poor light
FROM_EACH = 0.3  # of the trials; the rest goes on from where the nearest came to


class Closest(NamedTuple):
    """how: the damage. distance: of sharp faces with it to the folder's, see `Looks.distance`."""

    how: Photographed
    distance: float


def closest_damage(
    lq: Tensor,
    sharp: Tensor,
    trials: int,
    at_once: int,
    seed: int = 0,
    callback: Callable[[int, int], None] | None = None,
) -> Closest:
    """The damage in the family that makes `sharp` look most like `lq`.

    lq: (N, 3, S, S), damaged faces; sharp: (M, 3, S, S), clean faces of any people, aligned alike, RGB in [0, 1]. Some
    50 of each are enough, and 2,400 trials. at_once: how many of the sharp faces a trial sees. callback(done, trials)
    may raise to stop. The global random state is left as it is.
    """
    looks = Looks(statistics(lq))
    searches = [_Search(start, looks, sharp, at_once, seed) for start in STARTS]
    done = 0

    def go_on(search: _Search, until: float) -> Closest:
        nonlocal done
        while done < until and not search.over:
            done += search.generation()
            if callback:
                callback(min(done, trials), trials)
        return search.answer()

    reached = [go_on(search, number * FROM_EACH * trials).distance for number, search in enumerate(searches, 1)]
    found = go_on(searches[reached.index(min(reached))], trials)
    without = replace(found.how, shake=0.0)
    still = Closest(without, distance_under(without, sharp, looks, seed))
    return found if found.distance < WORTH_A_SHAKE * still.distance else still


def distance_under(how: Photographed, sharp: Tensor, looks: Looks, seed: int = 0) -> float:
    """How unlike the faces of `looks` the sharp faces (M, 3, S, S) with the damage `how` are."""
    return looks.distance(statistics(photographed(sharp, how, keyed_generator(seed, "noise of the search"))))


class _Search:
    """A search from one start.

    The trials of one generation see the same `at_once` sharp faces, and those of the next generation others: so the
    search is guided by all of them at the price of a few, and is not led astray by a few people.
    """

    def __init__(self, start: Start, looks: Looks, sharp: Tensor, at_once: int, seed: int) -> None:
        import cma
        import numpy as np

        draws = np.random.default_rng(seed)
        options = {"bounds": [0, 1], "popsize": POPULATION, "verbose": -9}
        own_chance = {"seed": np.nan, "randn": lambda *shape: draws.standard_normal(shape)}  # not NumPy's global state
        self._places = cma.CMAEvolutionStrategy(start.place, start.step, options | own_chance)
        self._looks, self._sharp, self._at_once, self._seed = looks, sharp, at_once, seed

    @property
    def over(self) -> bool:
        """Whether nothing is left to be found from here."""
        return bool(self._places.stop())

    def generation(self) -> int:
        """Go on by one; how many trials it took."""
        chance = keyed_generator(self._seed, "faces of a generation", self._places.countiter)
        some = self._sharp[torch.randperm(len(self._sharp), generator=chance)[: self._at_once]]
        places = self._places.ask()
        distances = [distance_under(Photographed.at(place), some, self._looks, self._seed) for place in places]
        self._places.tell(places, distances)
        return len(places)

    def answer(self) -> Closest:
        """The middle of the last generation, since the best trial was lucky, too; judged on all faces."""
        how = Photographed.at(self._places.result.xfavorite)
        return Closest(how, distance_under(how, self._sharp, self._looks, self._seed))
