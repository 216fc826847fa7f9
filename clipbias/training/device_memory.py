"""Memory of devices: how much there is, how much a program needs, and what to say where it is exhausted."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import psutil
from jax.stages import Lowered

from clipbias import hosts
from clipbias.clip.target import away
from clipbias.errors import ClipbiasError

# Share of a device's memory that a program may fill. The rest is for fragmentation and for other programs.
USABLE = 0.85

# Bytes of a program that its compiler refuses for lack of memory.
REFUSED = 1 << 62


def needed_bytes(lowered: Lowered) -> int:
    """Bytes of one device that a lowered function needs, its arguments included. It is compiled, not run."""
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if _is_exhaustion(error):  # some compilers refuse what cannot fit
            return REFUSED
        raise
    if memory is None:  # this compiler does not report it
        return 0
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return int(sum(sizes) - memory.alias_size_in_bytes)


def device_limit() -> int:
    """Bytes of memory that each device offers; 0 where it does not report them.

    On a CPU the simulated devices share the machine's free memory (and a container's limit). Several processes take the
    least of theirs, since they must all compile the same program.
    """
    if (elsewhere := away()) is not None:
        return elsewhere.memory
    return min(hosts.gather(_local_limit()))


def _local_limit() -> int:
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return 0
    free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    with contextlib.suppress(OSError, ValueError):  # "max" where a container has no limit of its own
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return free // jax.local_device_count()


def format_bytes(count: int) -> str:
    """Such as "1.25 GB", "36 MB" or "512 B"."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


@contextlib.contextmanager
def explain_exhaustion(advice: str) -> Iterator[None]:
    """Turns a device's report that its memory is exhausted into one sentence that ends with `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _is_exhaustion(error):
            raise
        raise ClipbiasError(f"the device is out of memory; {advice}") from error


def _is_exhaustion(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def drop_programs() -> None:
    """Drops every compiled program of this process.

    Each holds some fifty memory maps, of which the kernel allows 65,530, so a long sweep calls this between methods.
    The cache on disk (`training.kept_programs`) brings back programs that are needed again.
    """
    jax.clear_caches()
    gc.collect()  # programs in reference cycles
