"""Find the damage of a folder in a family: the one that makes sharp faces of other people look like the folder's.

Nothing is known of the faces but how they look, so their statistics are compared, as an unpaired damage model does
(Luo et al., arXiv:2203.04962), but over a family of fourteen parameters in place of a network. The search is CMA-ES
(Hansen, "The CMA evolution strategy: a tutorial", arXiv:1604.00772) in the library of its author.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..randomness import keyed_generator
from .family import Photographed, photographed
from .statistics import Looks, statistics

# A mild damage, of a small photo in fair light.
START = (0.2, 0.3, 0.7, 0.4, 0.5, 0.5, 0.5, 0.4, 0.3, 0.3, 0.95, 0.3, 0.1, 0.5)
STEP = 0.2
POPULATION = 24  # twice what the library would take: the few faces of a generation make its distances uncertain
# The few faces of a trial hardly tell a camera that was shaken a little from a still one: all of them must say so.
WORTH_A_SHAKE = 0.95  # of the distance without


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
    50 of each are enough, and 2,400 trials. at_once: how many of the sharp faces a trial sees. The trials of one
    generation of the search see the same ones, and those of the next generation others: so the search is guided by all
    of them at the price of a few, and is not led astray by a few people. callback(done, trials) may raise to stop.
    The global random state is left as it is.
    """
    import cma
    import numpy as np

    looks = Looks(statistics(lq))
    draws = np.random.default_rng(seed)
    options = {"bounds": [0, 1], "popsize": POPULATION, "verbose": -9}
    own_chance = {"seed": np.nan, "randn": lambda *shape: draws.standard_normal(shape)}  # not NumPy's global state
    search = cma.CMAEvolutionStrategy(list(START), STEP, options | own_chance)
    while search.countevals < trials and not search.stop():
        chance = keyed_generator(seed, "faces of a generation", search.countiter)
        some = sharp[torch.randperm(len(sharp), generator=chance)[:at_once]]
        places = search.ask()
        search.tell(places, [distance_under(Photographed.at(place), some, looks, seed) for place in places])
        if callback:
            callback(min(search.countevals, trials), trials)
    how = Photographed.at(search.result.xfavorite)  # the middle of the last generation: the best trial was lucky, too
    found, still = (Closest(one, distance_under(one, sharp, looks, seed)) for one in (how, replace(how, shake=0.0)))
    return found if found.distance < WORTH_A_SHAKE * still.distance else still


def distance_under(how: Photographed, sharp: Tensor, looks: Looks, seed: int = 0) -> float:
    """How unlike the faces of `looks` the sharp faces (M, 3, S, S) with the damage `how` are."""
    return looks.distance(statistics(photographed(sharp, how, keyed_generator(seed, "noise of the search"))))
