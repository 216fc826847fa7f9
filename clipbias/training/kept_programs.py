"""The compiled programs that are kept from one start to the next, in JAX's cache."""

import contextlib
import os
from pathlib import Path

import jax
from absl import logging
from jax._src.compilation_cache import decompress_executable

from clipbias.io import cache_folder

# How the names of JAX's files end, and the file that says when they were last looked through.
ENTRY, CHECKED = "-cache", "checked"
# Shorter compilations are not worth a file.
SECONDS = 0.3


def keep() -> None:
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
    with contextlib.suppress(OSError):
        remove_broken(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)


def remove_broken(cache: Path) -> None:
    """Removes programs that cannot be read, as where a process was killed while it wrote one.

    JAX warns of such a file at each start and never writes it anew. Only what came since the last look is looked at.
    """
    stamp = cache / CHECKED
    last = stamp.stat().st_mtime_ns if stamp.exists() else 0
    stamp.touch()
    for entry in cache.glob(f"*{ENTRY}"):
        try:
            if entry.stat().st_mtime_ns >= last:
                decompress_executable(entry.read_bytes())
        except OSError:  # another process removed it
            continue
        except Exception:  # of any library for compressed data
            entry.unlink(missing_ok=True)


def drop_programs() -> None:
    jax.clear_caches()
