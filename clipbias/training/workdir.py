"""The folder of a run: its configuration, its environment, and a lock so that two processes never share it."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from clipbias.errors import ClipbiasError
from clipbias.files import write_text

PACKAGES = (
    "clipbias",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "grain",
    "numpy",
    "pillow",
)


@contextlib.contextmanager
def open_workdir(folder: str | os.PathLike, config: Mapping[str, Any]) -> Iterator[Path]:
    """Creates and locks a work folder, and writes `config.json` and `environment.json` into it.

    Raises:
      ClipbiasError: it cannot be written, or another process works in it.
    """
    folder = Path(folder).expanduser()
    if jax.process_index() != 0:  # one process of a job keeps the folder for all
        yield folder
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 (held until the block ends)
    except OSError as error:
        raise ClipbiasError(f"cannot write {folder}: {error.strerror}; choose another --workdir.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClipbiasError(
                f"another process works in {folder}; wait for it or choose another --workdir."
            ) from error
        write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_text(folder / "environment.json", json.dumps(environment(), indent=2, sort_keys=True) + "\n")
        yield folder


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, devices, and the state of the source."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(git("status", "--porcelain"))} if commit else None
    except (OSError, subprocess.SubprocessError):
        return None


def stable_hash(value: Any, length: int = 12) -> str:
    """A short hash of JSON values that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
