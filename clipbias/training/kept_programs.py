"""The compiled programs that are kept from one start to the next, in JAX's cache on disk."""

import contextlib
import os

import jax
from absl import logging

from clipbias.io import cache_folder

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
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
