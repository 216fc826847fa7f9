"""The folder of a run: its configuration, environment and state, and a lock so that two processes never share it.

`config.json` says what was asked for, `environment.json` what else the result depends on, and `state.json` how the run
went: `{"state", "started", "seconds", "error"}`. The state is "running", "finished", "interrupted" or "failed"; a
process that was killed leaves "running" and a free lock. The seconds add up over all processes that worked on the run,
without those that were killed. Results and `metrics.jsonl` (of a grid: `runs/*/metrics.jsonl`) lie beside these files.
The jobs that share a grid have a folder of this kind each, `parts/*`.
"""

import contextlib
import datetime
import hashlib
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

from clipbias import hosts
from clipbias.checks import check_number
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError, sentence
from clipbias.io import LOCK, lock, read_json, read_text, write_text
from clipbias.tuning import METHODS, make_method
from clipbias.tuning.registry import method_options
from clipbias.version import ROOT, __version__

CONFIG, ENVIRONMENT, STATE = "config.json", "environment.json", "state.json"
# The adapter of a run, and which lines of a grid's results are of its present configuration.
ADAPTER, CELLS = "adapter.safetensors", "cells.json"
# Settings that change how a result is computed, but not the result.
HOW = (
    *("workdir", "mesh", "checkpoint_seconds", "eval_batch_size", "remat", "class_chunks", "dry_run", "part"),
    *("topology", "trackers", "profile", "on_missing", "workers", "cache_gb", "micro_batch"),
)
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "numpy",
    "pillow",
)
# Seconds after which what was written on one host is there on all others.
LAG = 15.0


@contextlib.contextmanager
def open_workdir(folder: str | os.PathLike, config: Mapping[str, Any], *, keep: str = ADAPTER) -> Iterator[Path]:
    """Creates and locks a work folder, and writes `config.json`, `environment.json` and `state.json` into it.

    Where a finished run lies in it, and a user's mistake ends the block before anything else was written, the folder is
    left as it was.

    Args:
      folder: of the run.
      config: what was asked for.
      keep: the file that is not written over with other settings.

    Raises:
      ClipbiasError: it cannot be written, another process works in it, or it holds the file `keep` of other settings.
    """
    folder = Path(os.path.expanduser(folder))
    with contextlib.ExitStack() as opened:
        if jax.process_index() == 0:  # one process of a job keeps the folder for all
            opened.enter_context(lock(folder))
            _keep_results(folder, config, keep)
            earlier = _seconds_before(folder, config)
            opened.enter_context(_unless_refused(folder))
            write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
            write_text(folder / ENVIRONMENT, json.dumps(environment(), indent=2, sort_keys=True) + "\n")
            opened.enter_context(_kept_state(folder, earlier))
        hosts.assert_same("the work folder", _sees_start(folder))
        yield folder


@contextlib.contextmanager
def open_part(folder: str | os.PathLike, config: Mapping[str, Any], own: Path) -> Iterator[Path]:
    """The folder of one of the jobs that work in `folder` side by side: `own`, inside it, opened as a work folder is.

    `folder` itself has the configuration of all, and what each of them writes of the whole. Nobody can work on the
    whole of it meanwhile.

    Raises:
      ClipbiasError: as `open_workdir`; and a job without parts works in `folder`.
    """
    folder = Path(os.path.expanduser(folder))
    if jax.process_index() != 0:
        with open_workdir(own, config):
            yield own
        return
    with lock(folder, shared=True), open_workdir(own, config):
        whole = json.dumps({**config, "part": ""}, indent=2, sort_keys=True) + "\n"
        if not (folder / CONFIG).is_file() or (folder / CONFIG).read_text(encoding="utf-8") != whole:
            write_text(folder / CONFIG, whole)
        yield own


@contextlib.contextmanager
def _unless_refused(folder: Path) -> Iterator[None]:
    """Gives a finished run its record back where the block is refused before it writes anything of its own."""
    record = (CONFIG, ENVIRONMENT, STATE)

    def others() -> dict[str, tuple[int, int]]:
        found = (path for path in folder.rglob("*") if path.name not in (*record, LOCK))
        return {str(path): (status.st_mtime_ns, status.st_size) for path in found if (status := path.lstat())}

    try:
        finished = read_json(folder / STATE, dict).get("state") == "finished"
        kept = {name: read_text(folder / name) for name in record} if finished else {}
    except ClipbiasError:  # there is none
        kept = {}
    before = others() if kept else {}
    try:
        yield
    except ClipbiasError:
        if kept and others() == before:
            for name, text in kept.items():
                write_text(folder / name, text)
        raise


def _keep_results(folder: Path, config: Mapping[str, Any], name: str) -> None:
    """Refuses other settings where a finished file lies: its configuration would no longer be its own."""
    try:
        before, after = read_json(folder / CONFIG, dict), json.loads(json.dumps(config))
    except ClipbiasError:
        return
    before, after = _with_defaults(before), _with_defaults(after)
    other = sorted(key for key in {*before, *after} - {*HOW} if before.get(key) != after.get(key))
    if other and (folder / name).exists():
        what = "adapter" if name == ADAPTER else "result"
        raise ClipbiasError(
            f"{folder} holds the {what} of a run with other settings ({', '.join(other)}); choose another --workdir."
        )


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose method, if it names one, has all its options: earlier versions noted those given only."""
    method, options = config.get("method"), config.get("method_options")
    # A user's own program is not run for what a file says of it.
    if method not in METHODS or not isinstance(options, Mapping):
        return dict(config)
    with contextlib.suppress(ClipbiasError):  # such a configuration was never run
        return {**config, "method_options": json.loads(json.dumps(method_options(make_method(method, **options))))}
    return dict(config)


@contextlib.contextmanager
def _kept_state(folder: Path, earlier: float) -> Iterator[None]:
    began, started = time.monotonic(), datetime.datetime.now().astimezone().isoformat(timespec="seconds")

    def write(state: str, error: str | None = None) -> None:
        seconds = round(earlier + time.monotonic() - began, 2)
        _write_state(folder, {"state": state, "started": started, "seconds": seconds, "error": error})

    write("running")
    try:
        yield
        hosts.check()  # all is there, but the process was told to stop: it says so
    except BaseException as error:
        stopped = isinstance(error, hosts.Stopped | KeyboardInterrupt)
        with contextlib.suppress(ClipbiasError):  # a full disk must not hide what went wrong
            write("interrupted" if stopped else "failed", sentence(error))
        raise
    write("finished")


def _sees_start(folder: Path) -> bool:
    """Whether this process sees what the first one wrote when it opened the folder, if need be after a while."""
    written = hosts.from_first((folder / STATE).read_text)
    deadline = time.monotonic() + LAG
    while True:
        with contextlib.suppress(OSError):
            if (folder / STATE).read_text() == written:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _write_state(folder: Path, content: Mapping[str, Any]) -> None:
    write_text(folder / STATE, json.dumps(content, indent=2) + "\n")


def _seconds_before(folder: Path, config: Mapping[str, Any]) -> float:
    """The time that earlier processes spent on the same configuration without finishing it."""
    try:
        same = read_json(folder / CONFIG) == json.loads(json.dumps(config))
        state = read_json(folder / STATE, dict)
        return check_number("seconds", state["seconds"], lowest=0) if same and state["state"] != "finished" else 0.0
    except (ClipbiasError, KeyError):
        return 0.0


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, devices, and the commit of the source."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    versions["clipbias"] = __version__  # also where it is run from its sources
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "git": _git_state(),
    }


def note_model(folder: Path, clip: Clip) -> None:
    """Adds to `environment.json` which model a run is of: its name, its commit on the hub, and its fingerprint.

    Raises:
      ClipbiasError: the file cannot be read or written.
    """
    if jax.process_index() == 0:
        model = {"name": clip.name, "revision": clip.revision, "fingerprint": clip.fingerprint}
        content = {**read_json(folder / ENVIRONMENT, dict), "model": model}
        write_text(folder / ENVIRONMENT, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    if not (ROOT / ".git").exists():  # installed; a repository around the packages folder is another project's
        return None
    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(git("status", "--porcelain"))} if commit else None
    except (OSError, subprocess.SubprocessError):
        return None


def stable_hash(value: Any, length: int = 12) -> str:
    """A short hash of JSON values that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
