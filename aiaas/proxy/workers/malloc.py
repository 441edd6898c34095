"""glibc gives large blocks back to the system when they are freed, whatever happened before.

Each connection under TLS has a buffer of 256 KiB, of which 4 are touched as a rule. glibc maps such a block by itself,
untouched pages cost nothing, and it goes back whole. But after the first one is freed glibc raises its threshold, and
takes later blocks out of a heap, whose pages were touched by others and are never given back: idle connections held
48 KiB each instead of 30. A threshold that was set stays.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

# glibc's own first value, and its name in malloc.h.
THRESHOLD: Final = 128 * 1024
_M_MMAP_THRESHOLD: Final = -3


def fix_threshold() -> bool:
    """Set glibc's threshold to its first value for good. False where the C library is another."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, THRESHOLD) == 1
