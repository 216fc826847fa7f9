"""Settings shared by all tests: CPU only, where compiled programs are kept, which tests start first."""

import os
import shutil
import sys
from typing import Any

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models compile for seconds and run for milliseconds: plainer machine code, made in one piece, makes the tests
# six times faster; not noting in each program where its operations stand in Python saves some of the rest.
if "CLIPBIAS_ACCELERATOR" not in os.environ:  # those compilers are to do as they would for a user
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_backend_optimization_level=0",
            "--xla_cpu_parallel_codegen_split_count=1",
        ]
    )
# Writing what compiles in less time costs a clean checkout more.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
os.environ["JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS"] = "0"

# Its tests take longest: they start first, so that no worker is left alone with one of them at the end.
SLOWEST = "tests/end_to_end/"

# A program that any process of any run of the tests has compiled is not compiled again: it is known by all that it does
# and is compiled with. `pytest --cache-clear` forgets them all, and so does a run that finds more bytes than these.
MOST_BYTES = 1 << 30


@pytest.hookimpl(tryfirst=True)  # before hypothesis looks its settings up
def pytest_configure(config: pytest.Config) -> None:
    """Prepares a process that runs tests, which the first of several only hands out: it needs no JAX."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", 0):
        config.pluginmanager.import_plugin("tests.fixtures")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Sets the folder of compiled programs, here and for processes that tests start."""
    config = session.config
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    folder = config.cache.mkdir("programs")
    if not hasattr(config, "workerinput") and sum(path.stat().st_size for path in folder.iterdir()) > MOST_BYTES:
        shutil.rmtree(folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    if "jax" in sys.modules:  # where tests run; it has read its environment
        sys.modules["jax"].config.update("jax_compilation_cache_dir", str(folder))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests in `SLOWEST` before the others; the order is otherwise as it was."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOWEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each worker tests in a row, and what others leave at the end: neighbours share fixtures and programs."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)
