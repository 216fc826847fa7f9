"""Running the experiment binaries as a user does, on a tiny model."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clipbias
from clipbias.clip import Clip
from clipbias.io import PART, read_json, read_json_lines
from clipbias.tuning import Task
from clipbias.tuning.adapter import write_adapter
from clipbias.tuning.tuned import Tuned
from experiments import common, train
from tests.forks import ROOT, Fork

CLASS_NAMES = ("bird", "cat", "dog")  # of the fixture `images`
# Of the fixture `trained`: a step an epoch. Tests that train compare with it and share its programs.
SHORT_RUN = {"dataset": "demo/digits", "shots": 4, "epochs": 5, "learning_rate": 0.5, "checkpoint_seconds": 0.0}


def environment(cache: Path) -> dict[str, str]:
    """A plain environment with caches of its own: a process that is killed may leave half a program behind."""
    folders = {"XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache / "programs")}
    return {**os.environ, **folders, "JAX_PLATFORMS": "cpu"}


def start(binary: str, *arguments: str, cache: Path, **changes: str) -> Fork:
    """Starts `python -m experiments.<binary>` in the repository's root."""
    return Fork(f"experiments.{binary}", *arguments, environment={**environment(cache), **changes})


def run(binary: str, *arguments: str, cache: Path) -> subprocess.CompletedProcess:
    """Runs a binary to its end."""
    process = start(binary, *arguments, cache=cache)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def save_random(
    clip: Clip,
    method: str,
    class_names: Sequence[str],
    path: Path,
    *,
    seed: int = 0,
    base: str | None = None,
    **options: Any,
) -> None:
    """Saves an adapter whose learnables were drawn, not trained; `base` is what it is to be loaded from."""
    task = Task(dataclasses.replace(clip, name=base or clip.name), method, class_names)
    draw = np.random.default_rng(seed)
    learnables = {name: draw.normal(0, 0.3, np.shape(x)).astype("f") for name, x in task.init().items()}
    write_adapter(path, Tuned(task, learnables, **options))


def assert_recorded(workdir: Path, *results: str, metrics: str = "metrics.jsonl") -> None:
    """Checks that a work folder holds the whole record of a finished run: what was asked, on what it ran, what came.

    What the environment names is found in `tests/training/test_workdir.py`.
    """
    assert json.loads((workdir / "config.json").read_text())["workdir"]
    assert json.loads((workdir / "environment.json").read_text())["packages"]
    assert json.loads((workdir / "state.json").read_text())["state"] == "finished"
    lines = [line for path in workdir.glob(metrics) for line in path.read_text().splitlines()]
    assert lines and all(json.loads(line)["step"] >= 1 for line in lines)
    assert results and all((workdir / name).stat().st_size for name in results)


def results(folder: Path) -> dict[str, Any]:
    """The results in a work folder by the names of their files, and what of a file in the making is left there."""
    by_name: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors" or PART in name:
            by_name[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        elif path.name in ("results.jsonl", "validation.jsonl"):
            by_name[name] = sorted(json.dumps(without_seconds(row), sort_keys=True) for row in read_json_lines(path))
        elif path.name == "result.json":
            by_name[name] = without_seconds(read_json(path, dict))
    return by_name


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs between two equal runs."""
    return {name: value for name, value in row.items() if "seconds" not in name and name != "waiting_share"}


def answer_here(binary: ModuleType, settings: dict[str, Any], workdir: Path | str = "") -> tuple[int, str]:
    """What a binary answers without a process of its own, on one device: its exit status and what it says on stderr."""
    config = common.own_config(binary.main)
    with config.ignore_type():
        for name, value in settings.items():
            config[name] = value
    if "mesh" in config and "mesh" not in settings:
        config.mesh.data = 1
    with redirect_stderr(io.StringIO()) as errors:
        status = common.answer(binary.main, config, str(workdir))
    return status, errors.getvalue()


def succeed_here(binary: ModuleType, settings: dict[str, Any], workdir: Path | str = "") -> tuple[str, str]:
    """What a binary that must end well prints and says on stderr, without a process of its own.

    That command lines are read, and that the binaries start and run as processes, is found in `tests/test_commands.py`.
    """
    with redirect_stdout(io.StringIO()) as printed:
        status, errors = answer_here(binary, settings, workdir)
    assert status == 0, errors[-3000:]
    return printed.getvalue(), errors


def sentence(status: int, errors: str) -> str:
    """The one sentence of a binary that must refuse, without a traceback."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert (status, len(lines)) == (1, 1) and "Traceback" not in errors, (status, errors[-3000:])
    return lines[0].removeprefix("error: ")


def refusal_here(binary: ModuleType, settings: dict[str, Any], workdir: Path | str = "") -> str:
    """The one sentence of a binary that must refuse, without a process of its own."""
    return sentence(*answer_here(binary, settings, workdir))


def in_forks(
    jobs: Sequence[tuple[str, Sequence[str]]], *, cache: Path, folder: Path = ROOT, run: bool = True
) -> list[dict[str, Any]]:
    """Each module with its arguments in a fork of one process, in turn: its exit status and what it said.

    Without `run` their command lines are read alone.
    """
    results_of_forks = []
    for module, arguments in jobs:
        variables = {**environment(cache), "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", "")}
        fork = Fork(module, *arguments, environment=variables, folder=folder, run=run, together=True)
        output, _ = fork.communicate()
        results_of_forks.append({"status": fork.returncode, "said": output})
    return results_of_forks


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, shared by the processes of a test session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of noise per class and split."""
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(CLASS_NAMES):
        for index, (place, split) in itertools.product(range(2), enumerate(("train", "test"))):
            pixels = np.random.default_rng([number, index, place]).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            (root / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An IVLP and a bias adapter with random learnables; the second in a folder as `train` leaves it."""
    folder = tmp_path_factory.mktemp("adapters")
    clip = clipbias.load(model)
    paths = [folder / "ivlp.safetensors", folder / "bias" / "adapter.safetensors"]
    for method, path in zip(("ivlp", "bias"), paths, strict=True):
        save_random(clip, method, CLASS_NAMES, path)
    return [str(paths[0]), str(paths[1].parent)]


@pytest.fixture(scope="session")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """One short run of `train` to its end, not to be changed: its work folder, what it printed and said on stderr."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, *succeed_here(train, SHORT_RUN | {"model": str(model)}, folder)
