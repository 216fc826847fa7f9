"""Keeps the memory of one step for the next, where the step runs on the CPU."""

import ctypes
import sys

# Parameters of glibc's mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc not to hand freed memory back to the system.

    A step's intermediate arrays come as one large block. By default it is returned after every step, and the next step
    waits for the system to clear it page by page: about a twentieth of its time. To be called before JAX starts its
    threads; does nothing, and returns False, without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) for name, value in settings])
