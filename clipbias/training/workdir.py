"""The work folder of a run or a sweep: settings, environment, state, and the places of other files.

`config.json` has the settings, `environment.json` versions and devices, `state.json` `{"state", "started", "seconds",
"error"}`; the state is "running", "finished", "interrupted" or "failed". A killed process leaves "running" and a free
lock. Jobs that share a sweep have their own files in `parts/1-of-4` and so on.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from clipbias import hosts, io
from clipbias.clip import Clip
from clipbias.constants import ADAPTER_FILE
from clipbias.errors import ClipbiasError, sentence
from clipbias.training.spec import Group, RunSpec, group_key, group_name
from clipbias.version import ROOT, __version__

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
STATE = "state.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "pillow")


@contextlib.contextmanager
def open_workdir(
    folder: str | os.PathLike, config: Mapping[str, Any], *, part: tuple[int, int] = (0, 1)
) -> Iterator[Path]:
    """Makes and locks a work folder, or that of job `(i, n)` of a sweep; writes settings, environment and state.

    Raises `ClipbiasError` for a folder that cannot be written, or in which another process works.
    """
    folder = io.data_path(folder)
    if not hosts.is_first():  # the first process keeps the folder for all
        yield folder
        return
    part_folder = folder if part[1] == 1 else folder / "parts" / f"{part[0] + 1}-of-{part[1]}"
    # The lock tells a killed process from one that works: `state.json` says "running" of both.
    with contextlib.ExitStack() as locked:
        if part_folder != folder:  # a shared lock, so that no process takes the whole folder meanwhile
            locked.enter_context(io.lock(folder, shared=True))
        locked.enter_context(io.lock(part_folder))
        # Parts share one configuration, which is written the same by all of them.
        write_json(folder / CONFIG, {**config, "part": None} if part[1] > 1 else config)
        for place in {folder, part_folder}:
            write_json(place / ENVIRONMENT, environment())
        began = time.monotonic()
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        earlier = 0.0  # the time that earlier processes spent here
        with contextlib.suppress(ValueError, KeyError, TypeError):  # none, or damaged
            earlier = float(io.read_json(part_folder / STATE, dict)["seconds"])

        def note(state: str, error: str | None = None) -> None:
            seconds = round(earlier + time.monotonic() - began, 2)
            write_json(part_folder / STATE, {"state": state, "started": started, "seconds": seconds, "error": error})

        note("running")
        try:
            yield folder
        except BaseException as error:
            stopped = isinstance(error, hosts.Stopped | KeyboardInterrupt)
            with contextlib.suppress(Exception):  # a full disk must not hide what went wrong
                note("interrupted" if stopped else "failed", sentence(error))
            raise
        note("finished")


def write_json(path: Path, content: Any) -> None:
    io.write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def environment() -> dict[str, Any]:
    # A result depends on these besides its settings.
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions | {"clipbias": __version__},
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "git": _git_state(),
    }


def note_model(folder: Path, clip: Clip) -> None:
    if hosts.is_first():
        facts = {"name": clip.name, "revision": clip.revision, "identity": clip.identity}
        files = {path.name: io.sha256(path) for path in clip.files}
        _note(folder, model=facts | {"files": files, "resolution": clip.preprocessing.image_size})


def note_runs(folder: Path, count: int) -> None:
    # For the progress that `show` prints.
    if (folder / ENVIRONMENT).exists():  # a sweep may run without a work folder's other files
        _note(folder, runs=count)


def _note(folder: Path, **facts: Any) -> None:
    if hosts.is_first():
        write_json(folder / ENVIRONMENT, {**io.read_json(folder / ENVIRONMENT, dict), **facts})


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        # A repository on a slow disk must not hold up a run.
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    if not (ROOT / ".git").exists():  # installed; a repository around the packages folder is another project's
        return None
    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(git("status", "--porcelain"))} if commit else None
    except (OSError, subprocess.SubprocessError):
        return None


# The folder of the adapters of a sweep of several runs.
ADAPTERS = "adapters"


@dataclasses.dataclass(frozen=True)
class SweepPaths:
    """Places of the files of a sweep, or of a `single` run, in the work folder; `names` are by spec key."""

    workdir: Path
    names: Mapping[str, str]
    single: bool = False

    def refuse_other_kind(self) -> None:
        """Raises `ClipbiasError` where the folder holds adapters of the other kind: of a sweep, or of a single run."""
        others, place = "adapter of a `train` run", ADAPTER_FILE
        if self.single:
            others, place = "adapters of `table1`", f"{ADAPTERS}/"
        # The first process looks for all: they must agree on whether they go on.
        if hosts.from_first((self.workdir / place).exists):
            raise ClipbiasError(
                f"{self.workdir} holds the {others} ({place}), which `predict` and others would take; choose another "
                "--workdir."
            )

    def metrics(self, group: Group) -> Path:
        return self.workdir if self.single else self.workdir / "runs" / self.group_file(group)

    def checkpoints(self, group: Group) -> Path:
        # By the keys of all its runs: a group of others finds no state of these.
        return self.workdir / "checkpoints" / group_key(group)

    def adapter(self, spec: RunSpec) -> Path:
        return self.workdir / (ADAPTER_FILE if self.single else f"{ADAPTERS}/{self.names[spec.key]}.safetensors")

    def predictions(self, spec: RunSpec, evaluation: str) -> str:
        return evaluation if self.single else f"{self.names[spec.key]}-{evaluation}"

    @staticmethod
    def group_file(group: Group) -> str:
        return f"{group_name(group)}-{group_key(group)}"
