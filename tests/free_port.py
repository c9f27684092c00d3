"""A port for a server that a test starts."""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_000)  # below those that systems give to whoever asks for any, which would take it meanwhile


def free_port() -> int:
    """A port of this machine that nothing listens on; two tests that ask at once get different ones, nearly always.

    Raises OSError if none is found.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("of 100 ports that were tried, none is free")
