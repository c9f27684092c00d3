"""Groups of people for the benchmarks: by what is recorded, stated or measured of a face, never by guessed ancestry."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# From unitedstates/congress-legislators (CC0, commit dfa9622) and the Sunlight Foundation's table of legislators (as in
# mozilla/call-congress, data/legislators.csv): 741 of the 750 portraits, of the others nothing was found.
RECORDED_SEX = Path(__file__).with_name("portraits_by_sex.csv")
SKIN_TONES = ("darkest third", "middle third", "lightest third")
CHEEK = 0.05  # half the side of the patch on each cheek, in crop widths
MIN_FACES = 30  # faces of a stated search; smaller groups are put together


def recorded_sex() -> dict[str, str]:
    """File name of a portrait -> "men" or "women", as the public record has it."""
    with RECORDED_SEX.open(encoding="utf-8", newline="") as file:
        return {line["name"]: line["group"] for line in csv.DictReader(file)}


def stated_searches(sheets: dict[str, str]) -> dict[str, str]:
    """File name -> the search that its sheet states; searches with fewer than `MIN_FACES` faces together are "other".

    sheets: file name -> name of the sheet, such as "figures/textual_search_2_Ethnicity x Age 1_top_10_matches.jpg".
    """
    found = {}
    for name, sheet in sheets.items():
        words = re.fullmatch(r".*textual_search_\d+_(.+?)(?: \d)?_top_\d+_matches\.jpg", sheet)
        found[name] = words[1].replace("_", " ").lower() if words else "other"
    return pooled(found, MIN_FACES)


def pooled(searches: dict[str, str], fewest: int) -> dict[str, str]:
    """`searches`, file name -> search, with those of fewer than `fewest` faces together as "other searches"."""
    counts = Counter(searches.values())
    return {name: search if counts[search] >= fewest else "other searches" for name, search in searches.items()}


def typology_angle(face: Tensor, points: np.ndarray) -> float:
    """The individual typology angle of the cheeks in degrees: above 55 very light skin, below -30 very dark.

    face: (3, S, S) RGB in [0, 1], a standard crop. points: its (5, 2) landmarks in pixels. The angle is that of median
    lightness above 50 against yellowness (CIE L*a*b*, D65); light and the photo's colours change it as skin does.
    Source: A. Chardon et al., "Skin colour typology and suntanning pathways", 1991.
    """
    from skimage.color import rgb2lab

    size = face.shape[-1]
    middle = points[:2].mean(0)[0]  # x between the eyes
    patches = []
    for eye, mouth in ((0, 3), (1, 4)):
        x, y = 0.45 * points[eye] + 0.55 * points[mouth]
        x += 0.15 * (x - middle)  # outwards, away from the nose
        reach = round(CHEEK * size)
        x, y = round(x), round(y)
        patches.append(face[:, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].flatten(1))
    lab = rgb2lab(torch.cat(patches, 1).T.numpy().astype(np.float64)[None])[0]
    lightness, yellowness = float(np.median(lab[:, 0])), float(np.median(lab[:, 2]))
    return math.degrees(math.atan2(lightness - 50, yellowness))


def thirds(angles: dict[str, float]) -> dict[str, str]:
    """Name -> one of `SKIN_TONES`, a third of the names each, by angle."""
    order = sorted(angles, key=lambda name: angles[name])
    return {name: SKIN_TONES[3 * place // len(order)] for place, name in enumerate(order)}
