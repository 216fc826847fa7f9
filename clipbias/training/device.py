"""Settings of computation, memory of devices, and the cache of compiled programs. Nothing here changes a number."""

import contextlib
import ctypes
import dataclasses
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import jax
import psutil
from absl import logging
from jax.stages import Lowered

from clipbias import hosts
from clipbias.checks import Choices, Positive, Range, check_fields
from clipbias.clip.precision import AWAY
from clipbias.data.pipeline import BATCH_SIZE, ImageReading, WorkerCount
from clipbias.errors import ClipbiasError
from clipbias.io import cache_folder
from clipbias.settings import setting, setting_of

# Selects the fastest remat policy of `training.memory.REMATS` that fits.
AUTO_REMAT = "auto"


@dataclasses.dataclass(frozen=True)
class Compute:
    """Settings of computation: batch sizes, memory, threads. Nothing here changes a number."""

    eval_batch_size: Positive = setting(BATCH_SIZE, "Images per step of evaluation, over all devices.")
    remat: str = setting(
        AUTO_REMAT,
        'Values of blocks for the backward pass: "products", "half", "tokens" or "auto"; from fastest to smallest; '
        '"auto" is the fastest that fits the device\'s memory.',
    )
    class_chunks: Positive | None = setting(
        None, "Parts in which a device takes the classes, one after another, to save memory; None selects."
    )
    workers: WorkerCount | None = setting_of(ImageReading, "workers")
    cache_gb: Annotated[float, Range(0)] = setting(
        3.0,
        "Memory for images in gigabytes, of all runs of a sweep together; two thirds for training images, one third "
        "for those of evaluation.",
    )
    checkpoint_seconds: Annotated[float, Range(0)] = setting(
        60.0, "Least time between two checkpoints of a run; 0 saves after every step."
    )
    trackers: tuple[str, ...] = setting(
        ("auto",),
        'Trackers besides metrics.jsonl: "tensorboard", "wandb" or "trackio"; "auto" is TensorBoard '
        "where tensorboardX is installed; () for none.",
    )
    profile: Annotated[str, Choices(("steps",))] | None = setting(
        None, '"steps" writes a trace of a few training steps; for XProf or Perfetto, below the folder of the metrics.'
    )

    def __post_init__(self) -> None:
        check_fields(self)


# Share of a device's memory for one program. The rest is for fragmentation and for other programs.
USABLE = 0.85

# Stands for the bytes of a program that its compiler refuses for lack of memory.
REFUSED = 1 << 62


def needed_bytes(lowered: Lowered) -> int:
    """Compiles a lowered function and returns the bytes of one device that it needs, its arguments included."""
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if _is_exhaustion(error):  # some compilers refuse what cannot fit
            return REFUSED
        raise
    # Some compilers do not report it: then every plan fits, and the fastest is taken.
    if memory is None:
        return 0
    # Donated arguments lie where outputs do and count once.
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return int(sum(sizes) - memory.alias_size_in_bytes)


def device_limit() -> int:
    """Returns the bytes of memory of each device; 0 where it does not report them."""
    if (elsewhere := AWAY.get()) is not None:
        return elsewhere.memory
    device = jax.local_devices()[0]
    limit = int((device.memory_stats() or {}).get("bytes_limit", 0))
    if not limit and device.platform == "cpu":
        # Simulated devices share the free memory of the machine, or of a container. This process's own memory counts as
        # free, since its arrays are among the arguments of a program.
        free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
        with contextlib.suppress(OSError, ValueError):  # "max" where a container has no limit of its own
            free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
        limit = free // jax.local_device_count()
    # All processes must compile the same program, so the least memory decides.
    return min(hosts.gather(limit))


def format_bytes(count: int) -> str:
    """Such as "1.25 GB", "36 MB" or "512 B"."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


@contextlib.contextmanager
def explain_exhaustion(advice: str) -> Iterator[None]:
    """Turns a device's report of exhausted memory into a sentence that ends with `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _is_exhaustion(error):
            raise
        raise ClipbiasError(f"the device is out of memory; {advice}") from error


def _is_exhaustion(error: Exception) -> bool:
    # By its text: Python sees one type for all errors of XLA.
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def drop_many_programs(most_maps: int = 30_000) -> None:
    """Drops the compiled programs of a process with more memory maps; `keep_programs` brings them back from disk."""
    # Each program holds some fifty maps. Linux allows 65,530, beyond which XLA aborts the process: a loop over methods,
    # or a long sweep, compiles thousands.
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > most_maps:
        jax.clear_caches()
        gc.collect()  # programs in reference cycles


# XLA aborts the process for an unknown flag, so only versions that were tried get it.
_TRIED = (0, 10), (0, 11)
_FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"


def prepare_cpu() -> None:
    """Makes training steps fast on CPUs. Must be called before JAX starts its devices and threads."""
    choose_code_generator()
    keep_freed_memory()
    # Without asynchronous dispatch a call returns with its result. A step that is dispatched while another one runs
    # would allocate its intermediate arrays beside the other's, and gain nothing on the same cores.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def choose_code_generator() -> None:
    """Makes XLA compile fusions with its older code generator, unless `XLA_FLAGS` says otherwise."""
    # A training step compiles in half the time and a sixth of the memory, and runs as fast or a little faster.
    flags = os.environ.get("XLA_FLAGS", "")
    if _FUSION_EMITTERS not in flags and _TRIED[0] <= jax.__version_info__[:2] < _TRIED[1]:
        os.environ["XLA_FLAGS"] = f"{flags} --{_FUSION_EMITTERS}=false".strip()


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory. Returns `False` without glibc."""
    # A step's intermediate arrays are one large block. By default glibc returns it to the system after every step, and
    # the next step waits while the system clears it page by page: a twentieth of its time.
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of mallopt(3), from malloc.h.
    return all([mallopt(name, value) for name, value in ((-8, 1), (-4, 0), (-1, -1), (-2, 64 << 20))])


# Shorter compilations are not worth a file.
LEAST_COMPILE_SECONDS = 0.3


def keep_programs() -> None:
    """Keeps programs in the user's cache folder, unless JAX has another one or `CLIPBIAS_NO_CACHE` is not empty."""
    configured = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if configured is not None or os.environ.get("CLIPBIAS_NO_CACHE"):
        return
    cache = cache_folder() / "xla"
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    if not os.access(cache, os.W_OK | os.X_OK):  # JAX would complain anew of every program
        logging.warning("compiled programs are not kept: cannot write %s; set XDG_CACHE_HOME.", cache)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_COMPILE_SECONDS)
