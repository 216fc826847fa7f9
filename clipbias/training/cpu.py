"""What makes steps fast where they run on the CPU. To be called before JAX starts its devices and threads."""

import ctypes
import os
import sys

import jax

# XLA ends the process over a flag that it does not know, so it is set for the versions that were tried.
_TRIED = (0, 10), (0, 11)
_FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"


def prepare() -> None:
    """All of the below."""
    choose_code_generator()
    keep_freed_memory()
    dispatch_when_free()


def choose_code_generator() -> None:
    """Lets XLA compile its fusions the older way, unless `XLA_FLAGS` says otherwise.

    A training step then compiles in half the time and a sixth of the memory, and runs as fast or a little faster.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FUSION_EMITTERS not in flags and _TRIED[0] <= jax.__version_info__[:2] < _TRIED[1]:
        os.environ["XLA_FLAGS"] = f"{flags} --{_FUSION_EMITTERS}=false".strip()


def dispatch_when_free() -> None:
    """Lets a call return when it has computed, instead of at once.

    A second step that is dispatched while the first one runs takes its intermediate arrays beside those of the first,
    and so does a third: several times the memory, for nothing where host and device are the same cores.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


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
