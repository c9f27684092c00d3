"""How PyTorch's threads wait for one another: decided before torch is loaded, and only in a process of our own.

OpenMP's threads spin while they wait. Alone on a machine that is fastest; beside other work each spinning thread takes
a core that another one needs, and a training becomes many times slower. Threads that sleep instead cost little, so
they are chosen wherever the machine is busy already. This module imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

BUSY_SHARE = 0.5  # share of the cores: above this load the machine counts as busy
POLICY = "OMP_WAIT_POLICY"


def load_of_others() -> float:
    """Mean number of processes that wanted to run in the last minute; 0 where the system does not tell (Windows)."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def prepare_threads(
    environ: MutableMapping[str, str] = os.environ,
    load: float | None = None,
    cores: int | None = None,
    lasting: bool = False,
) -> bool:
    """Let OpenMP's threads sleep while they wait, if the machine is busy; returns whether that was done.

    What the user has set stays. load: see `load_of_others`; cores: of the machine. lasting: the process is a server,
    which lives through busy hours and cannot decide again, so its threads sleep in any case. This must be called before
    torch is imported, because OpenMP reads its settings once, and never in a host's own process.
    """
    if POLICY in environ or "GOMP_SPINCOUNT" in environ:
        return False
    busy = lasting or (load_of_others() if load is None else load) > BUSY_SHARE * (cores or os.cpu_count() or 1)
    if busy:
        environ[POLICY] = "PASSIVE"
    return busy
