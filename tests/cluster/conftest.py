"""A real Ray cluster for tests: two nodes, processes of this machine with one core each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.two_nodes import two_nodes


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, and a connection to them."""
    pytest.importorskip("ray")
    with two_nodes("tests.cluster.deadly.install") as cluster:
        yield cluster
