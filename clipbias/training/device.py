"""How runs are computed: batch sizes, memory and threads as settings, the memory of devices, and the cache of programs.

No setting here changes a number.
"""

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

# Remat policies by name are those of `training.memory.REMATS`; this one selects the fastest that fits.
AUTO_REMAT = "auto"


@dataclasses.dataclass(frozen=True)
class Compute:
    """How runs are computed. Nothing here changes a number."""

    eval_batch_size: Positive = setting(BATCH_SIZE, "Images per step of evaluation, over all devices.")
    remat: str = setting(
        AUTO_REMAT,
        'What the backward pass keeps of blocks: "products", "half", "tokens" or "auto"; from the fastest to the '
        'smallest; "auto" is the fastest that fits the device\'s memory.',
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
        'Who gets the metrics of training steps besides metrics.jsonl; "tensorboard", "wandb" and "trackio", where '
        'they are installed; "auto" is TensorBoard where tensorboardX is. () for nobody.',
    )
    profile: Annotated[str, Choices(("steps",))] | None = setting(
        None, '"steps" writes a trace of a few training steps; for XProf or Perfetto, below the folder of the metrics.'
    )

    def __post_init__(self) -> None:
        check_fields(self)


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
    if (elsewhere := AWAY.get()) is not None:
        return elsewhere.memory
    device = jax.local_devices()[0]
    limit = int((device.memory_stats() or {}).get("bytes_limit", 0))
    if not limit and device.platform == "cpu":
        free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
        with contextlib.suppress(OSError, ValueError):  # "max" where a container has no limit of its own
            free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
        limit = free // jax.local_device_count()
    return min(hosts.gather(limit))


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
    The cache on disk (`keep_programs`) brings back programs that are needed again.
    """
    jax.clear_caches()
    gc.collect()  # programs in reference cycles


# XLA aborts the process over a flag that it does not know, so the flag is set only for versions that were tried.
_TRIED = (0, 10), (0, 11)
_FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"


def prepare_cpu() -> None:
    """Applies the settings that make training steps fast on CPUs. Call it before JAX starts its devices and threads."""
    choose_code_generator()
    keep_freed_memory()
    # A call returns once its result is computed. A step that is dispatched while another one runs allocates its
    # intermediate arrays beside those of the first: much memory for nothing, where host and device are the same cores.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def choose_code_generator() -> None:
    """Makes XLA compile fusions with its older code generator, unless `XLA_FLAGS` says otherwise.

    A training step then compiles in half the time and a sixth of the memory, and runs as fast or a little faster.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FUSION_EMITTERS not in flags and _TRIED[0] <= jax.__version_info__[:2] < _TRIED[1]:
        os.environ["XLA_FLAGS"] = f"{flags} --{_FUSION_EMITTERS}=false".strip()


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory instead of returning it to the system. `False` where there is no glibc.

    A step's intermediate arrays are one large block. By default glibc returns it after every step, and the next step
    waits while the system clears it page by page, which takes about a twentieth of its time.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of mallopt(3), from malloc.h.
    settings = ((-8, 1), (-4, 0), (-1, -1), (-2, 64 << 20))
    return all([mallopt(name, value) for name, value in settings])


# Shorter compilations are not worth a file.
LEAST_COMPILE_SECONDS = 0.3


def keep_programs() -> None:
    """Keeps programs in the user's cache folder, unless JAX was told of another or `CLIPBIAS_NO_CACHE` is not empty."""
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
