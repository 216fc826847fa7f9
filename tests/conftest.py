"""Settings shared by all tests: CPU only, eight simulated devices, parsed absl flags, how many inputs are made up."""

import gc
import importlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
os.environ["JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS"] = "0"

import jax
import pytest
from absl import flags
from hypothesis import HealthCheck, settings

import clipbias
from clipbias.clip import Clip
from clipbias.report import style
from clipbias.training import cpu, memory
from tests import bucket as buckets
from tests import forks, helpers

# Jobs in the background are started with Ctrl-C ignored; tests that press it need Python's own answer.
signal.signal(signal.SIGINT, signal.default_int_handler)
cpu.choose_code_generator()
jax.config.update("jax_num_cpu_devices", 8)
style._RC["savefig.dpi"] = 40  # a picture is the same at any resolution
flags.FLAGS.mark_as_parsed()
# Tracing makes objects by the million, of which few are garbage that only this collector finds.
gc.set_threshold(100_000, 50, 50)

# Inputs at random are the same in every run of the suite; more of them, and others each time, are asked for by name:
# pytest tests/fuzz --hypothesis-profile=thorough
UNTIMED = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("quick", max_examples=8, derandomize=True, **UNTIMED)
settings.register_profile("thorough", max_examples=400, print_blob=True, **UNTIMED)
settings.load_profile("quick")


# Files whose tests take longest: they start first, so that no worker is left alone with one of them at the end.
SLOWEST = (
    "tests/end_to_end/",
    "tests/test_commands.py",
    "tests/test_benchmarks.py",
    "tests/training/test_sweep.py",
    "tests/explain/test_relevancy.py",
)


# A program that any process of any run of the tests has compiled is not compiled again: it is known by all that it does
# and is compiled with. `pytest --cache-clear` forgets them all, and so does a run that finds more bytes than these.
MOST_BYTES = 1 << 30
MOST_MAPS = 5_000  # of a process; the kernel allows 65,530, and a worker then stays below 3 GB


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs in pytest's own cache, for this process and all that it starts."""
    if not hasattr(config, "cache"):  # switched off
        return
    folder = config.cache.mkdir("programs")
    if not hasattr(config, "workerinput") and sum(path.stat().st_size for path in folder.iterdir()) > MOST_BYTES:
        shutil.rmtree(folder)
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.1,  # writing what takes less costs a clean checkout more
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of `SLOWEST` before the others; the order is otherwise as it was."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOWEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each worker tests in a row, and what others leave at the end: neighbours share fixtures and programs."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What programs keep to be made again is kept from the user's, and the user's from the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    gc.freeze()  # nothing that was imported is garbage
    yield
    forks.end()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in Hugging Face format."""
    folder = tmp_path_factory.mktemp("model")
    helpers.tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def clip(model: Path) -> Clip:
    """The same, loaded."""
    return clipbias.load(model)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """After a file, drops the programs of a process that holds many: each takes memory, and memory maps of the kernel.

    What they were made of stays on disk.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text(encoding="utf-8").splitlines()) > MOST_MAPS:
        memory.drop_programs()


@pytest.fixture(autouse=True)
def programs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests share compiled programs, so a sweep does not drop them after each group."""
    monkeypatch.setattr(importlib.import_module("clipbias.training.sweep"), "drop_programs", lambda: None)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> buckets.Bucket:
    """An object store in memory behind gs://."""
    return buckets.install(monkeypatch)
