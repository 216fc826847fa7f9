"""Fixtures of all tests, and what a process that runs tests sets: eight simulated devices, parsed absl flags."""

import functools
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from absl import flags
from hypothesis import HealthCheck, settings

import clipbias
from clipbias.clip import Clip
from clipbias.report import style
from clipbias.training import device
from tests import bucket as buckets
from tests import helpers
from tests.data import miniatures
from tests.reference.methods import Reference

# Jobs in the background are started with Ctrl-C ignored; tests that press it need Python's own answer.
signal.signal(signal.SIGINT, signal.default_int_handler)
device.choose_code_generator()
jax.config.update("jax_num_cpu_devices", 8)
style.look()["savefig.dpi"] = 40  # a picture is the same at any resolution
flags.FLAGS.mark_as_parsed()
# Tracing makes objects by the million, of which few are garbage that only this collector finds.
gc.set_threshold(100_000, 50, 50)

# Inputs at random are the same in every run of the suite; more of them, and others each time, are asked for by name:
# pytest tests/fuzz --hypothesis-profile=thorough
UNTIMED = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("quick", max_examples=8, derandomize=True, **UNTIMED)
settings.register_profile("thorough", max_examples=400, print_blob=True, **UNTIMED)
settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What programs keep to be made again is kept from the user's, and the user's from the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    gc.freeze()  # nothing that was imported is garbage


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Clip, Reference]]:
    """Random models by their sizes (`helpers.tiny_checkpoint`), each with the float64 reference's view of it."""

    @functools.cache
    def get(**sizes: Any) -> tuple[Clip, Reference]:
        folder = tmp_path_factory.mktemp("tiny")
        reference = helpers.tiny_checkpoint(folder, **sizes)
        return clipbias.load(folder), reference

    return get


@pytest.fixture(scope="session")
def fifteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniatures of all benchmark datasets, not to be changed."""
    return miniatures.make_all(tmp_path_factory.mktemp("fifteen"))


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """After a file, drops the programs of a process that holds many."""
    yield
    device.drop_many_programs(most_maps=5_000)  # so that a worker stays below 3 GB


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> buckets.Bucket:
    """An object store in memory behind gs://."""
    return buckets.install(monkeypatch)
