"""Root reads whatever it likes; what a user may not read is tried without that right."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VERSION = 0x20080522  # of the calls capget(2) and capset(2)
_OVERRIDE = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH

needs_permissions = pytest.mark.skipif(
    os.name == "nt" or (sys.platform != "linux" and os.geteuid() == 0), reason="whoever runs this may read everything"
)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Rights(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def as_a_user() -> Iterator[None]:
    """Permissions hold for this thread, and for those that it starts meanwhile, even if the process is root's."""
    if os.geteuid():
        yield
        return
    system, header, rights = ctypes.CDLL(None), _Header(_VERSION, 0), (_Rights * 2)()
    assert system.capget(ctypes.byref(header), rights) == 0
    before = rights[0].effective
    rights[0].effective &= ~_OVERRIDE
    assert system.capset(ctypes.byref(header), rights) == 0
    try:
        yield
    finally:
        rights[0].effective = before
        assert system.capset(ctypes.byref(header), rights) == 0
