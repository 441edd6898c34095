"""Make glibc return large blocks to the system whenever they are freed.

Each TLS connection has a buffer of 256 KiB, of which usually only 4 KiB are touched. glibc maps such a block by itself:
untouched pages cost nothing, and freeing the block returns all of it. But after the first such block is freed, glibc
raises its threshold and takes later blocks from a heap, whose pages others have touched and which it never returns:
idle connections held 48 KiB each instead of 30 KiB. glibc does not raise a threshold that was set explicitly.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

# glibc's initial threshold in bytes, and the number of the parameter in malloc.h.
THRESHOLD: Final = 128 * 1024
_M_MMAP_THRESHOLD: Final = -3


def fix_threshold() -> bool:
    """Fix glibc's threshold at its initial value. Return False with another C library."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, THRESHOLD) == 1
