"""Writing files so that a reader never sees half of one."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from clipbias.errors import ClipbiasError

LOCK = ".lock"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a private temporary name beside `path`, renamed to `path` when the block ends without an error.

    The bytes are on disk before the rename, so a crash at any moment leaves the old file or the new one, whole.

    Raises:
      ClipbiasError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise ClipbiasError(f"cannot write {path}: {error.strerror}; choose another folder.") from error
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes files private; a result is meant to be read by whoever may read its folder.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise ClipbiasError(
            f"cannot write {path}: {error.strerror or error}; the previous file, if any, is intact."
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a private temporary folder beside `path`, renamed to `path` when the block ends without an error.

    What a killed process left under the temporary name is removed by the next one that writes the same folder.

    Raises:
      ClipbiasError: `path` is there and not an empty folder, another process is writing it, or it cannot be written.
    """
    path = Path(path).expanduser().resolve()
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ClipbiasError(f"{path} exists already; remove it or choose another folder.")
        temporary.mkdir(parents=True, exist_ok=True)
        with open(temporary / LOCK, "w") as lock:
            _take(lock, temporary, path)
            try:
                yield temporary
                for written in [*temporary.rglob("*"), temporary]:
                    _to_disk(written)
                os.rename(temporary, path)  # refuses to replace anything but an empty folder
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            # Not before the rename: without it another process would take the folder for a killed one's.
            os.unlink(path / LOCK)
            _to_disk(path.parent)
    except OSError as error:
        raise ClipbiasError(f"cannot write {path}: {error.strerror or error}; choose another folder.") from error


def _take(lock: TextIO, folder: Path, path: Path) -> None:
    """Locks a temporary folder for this process and empties it. Raises `ClipbiasError` if it is another's."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other process may have ended, and its folder got its final name, since the lock was opened.
        if not os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK)):
            raise FileNotFoundError
    except (BlockingIOError, FileNotFoundError) as error:
        raise ClipbiasError(f"another process writes {path}; wait for it or choose another folder.") from error
    for stale in folder.iterdir():
        if stale.is_dir():
            shutil.rmtree(stale)
        elif stale.name != LOCK:
            stale.unlink()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 to `path`, atomically. Raises `ClipbiasError` where it cannot."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; none where there is no file. A last line cut short by a crash is left out."""
    path = Path(path)
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes NumPy arrays as safetensors to `path`, atomically. Raises `ClipbiasError` where it cannot."""
    import safetensors
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except safetensors.SafetensorError as error:
            reason = str(error).partition("I/O error: ")[2].partition(" (os error")[0]
            raise OSError(reason or str(error)) from error
