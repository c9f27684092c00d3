"""How many threads PyTorch uses and how they wait: decided before torch is loaded, in a process of our own only.

OpenMP's threads spin while they wait. Alone on a machine that is fastest; beside other work each spinning thread takes
a core that another one needs, and a training becomes many times slower. Threads that sleep instead cost little, so
they are chosen wherever the machine is busy already. A small network gains nothing from a second thread, whatever the
load: its operations are over before the threads have met. `benchmarks/threads.py` measures both. This module imports
nothing heavy, so it reads of a file of weights only what stands at its beginning.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import MutableMapping, Sequence
from itertools import pairwise
from pathlib import Path

BUSY_SHARE = 0.5  # share of the cores: above this load the machine counts as busy
SMALL_WORK = 1e8  # bytes of weights times pixels of a face; a network below this gets one thread
DEFAULT_SIDE = 512  # pixels of a face a side, where a file does not say it
MAX_HEADER = 1 << 24  # bytes of what stands at the beginning of a .safetensors file
# Looks at what runs now, and seconds between them: a job that waits for its disk is missed by a single one.
LOOKS, BETWEEN_LOOKS = 3, 0.005
POLICY, COUNT = "OMP_WAIT_POLICY", "OMP_NUM_THREADS"
# Options of the command line that name the networks of a command; of the others that is --restorer and --prior.
NETWORKS_OF = {"restore": ("--restorer",), "export": (), "ui": ()}


def load_of_others(table: Path = Path("/proc/loadavg")) -> float:
    """How many other threads want to run: the mean of the last minute, or fewer if so few do now (Linux says so).

    0 where the system does not tell (Windows). A mean alone would take a machine for busy for a minute after a large
    job has ended. table: where Linux says how many threads run, this one among them.
    """
    try:
        mean = os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0
    running = []
    for _ in range(LOOKS):
        try:
            running.append(int(table.read_text(encoding="ascii").split()[3].partition("/")[0]) - 1)
        except (OSError, ValueError, IndexError):
            return mean
        time.sleep(BETWEEN_LOOKS)
    return min(mean, float(max(running)))


def prepare_threads(
    words: Sequence[str] = (),
    environ: MutableMapping[str, str] = os.environ,
    load: float | None = None,
    cores: int | None = None,
) -> None:
    """Set how many threads OpenMP uses, by the size of the networks, and how they wait, by the load.

    What the user has set stays. The number depends on the networks alone, never on the load, because it changes how
    sums are rounded: a run that goes on uses as many threads as it began with. words: of the command line, which name
    the networks. load: see `load_of_others`; cores: of the machine. This must be called before torch is imported,
    because OpenMP reads its settings once, and never in a host's own process.
    """
    if COUNT not in environ and has_small_networks(words):
        environ[COUNT] = "1"
    if POLICY not in environ and "GOMP_SPINCOUNT" not in environ:
        busy = (load_of_others() if load is None else load) > BUSY_SHARE * (cores or os.cpu_count() or 1)
        if busy or "ui" in words[:1]:  # a server lives through busy hours and cannot decide again
            environ[POLICY] = "PASSIVE"


def has_small_networks(words: Sequence[str]) -> bool:
    """Whether a command names all of its networks as files or folders, and each is below `SMALL_WORK`."""
    options = NETWORKS_OF.get(words[0], ("--restorer", "--prior")) if words else ()
    places = [Path(os.path.expanduser(name)) for option in options for name in _given(words, option)]
    return len(places) == len(options) > 0 and all(place.exists() and work_of(place) < SMALL_WORK for place in places)


def work_of(place: Path) -> float:
    """About how much a network computes for a face: the bytes of its file or folder times the pixels of the face."""
    if place.is_dir():
        weights, side = sum(file.stat().st_size for file in place.glob("*") if file.is_file()), _side_in_folder(place)
    else:
        weights, side = place.stat().st_size, _side_in_file(place)
    return float(weights * side**2)


def _side_in_folder(folder: Path) -> int:
    """Pixels a side of what a prior of diffusers draws, or patches a side if it draws patches."""
    try:
        return _as_side(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("sample_size"))
    except (OSError, ValueError, AttributeError):
        return DEFAULT_SIDE


def _side_in_file(file: Path) -> int:
    """Pixels a side of a network's faces, as a .safetensors file says of itself."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if length < MAX_HEADER else {}
        metadata = header["__metadata__"]
        return _as_side(metadata["size"] if "size" in metadata else json.loads(metadata["unet"]).get("image_size"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # another kind of file, or it does not say it
        return DEFAULT_SIDE


def _as_side(value: object) -> int:
    return int(str(value)) if str(value).isdecimal() else DEFAULT_SIDE


def _given(words: Sequence[str], option: str) -> list[str]:
    """What was given for an option, "--option VALUE" or "--option=VALUE"; the last one counts."""
    after = [value for word, value in pairwise(words) if word == option]
    joined = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return [*after, *joined][-1:]
