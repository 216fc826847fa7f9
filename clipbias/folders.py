"""Writing folders so that a reader never sees half of one."""

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from clipbias.errors import ClipbiasError
from clipbias.io import gate, lock_file, reason, umask, unfinished, user_path

# In a folder that is still being written. No other program makes a file of that name.
LOCK = ".clipbias-lock"


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a private temporary folder beside `path`, renamed to `path` when the block ends without an error.

    What a killed process left under the temporary name is removed by the next one that writes the same folder.

    Raises:
      ClipbiasError: `path` is there and not an empty folder, another process is writing it, the temporary name is taken
        by something else, or it cannot be written.
    """
    path = user_path(path).resolve()
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ClipbiasError(f"{path} exists already; remove it or choose another folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            with gate:
                lock = opened.enter_context(_claimed(temporary, path))
                _take(lock, temporary, path)
                unfinished.add(temporary)
            try:
                yield temporary
                for written in [*temporary.rglob("*"), temporary]:
                    _to_disk(written)
                # Private until now. What the parent folder passed on (the set-group-ID bit) stays.
                temporary.chmod(stat.S_IMODE(temporary.stat().st_mode) | (0o777 & ~umask()))
                with gate:
                    os.rename(temporary, path)  # refuses to replace anything but an empty folder
                    unfinished.discard(temporary)
                    # Not before the rename: without it another process would take the folder for a killed one's.
                    os.unlink(path / LOCK)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            finally:
                unfinished.discard(temporary)
            _to_disk(path.parent)
    except OSError as error:
        raise ClipbiasError(f"cannot write {path}: {reason(error)}; choose another folder.") from error


@contextlib.contextmanager
def _claimed(folder: Path, path: Path) -> Iterator[int]:
    """Makes a temporary folder, or finds the one that a killed process left, and yields its open lock file.

    Its name can be foreseen, and its content will be removed: a link, or a folder that others may have filled, is not
    touched. Raises `ClipbiasError` for these.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = os.lstat(folder)
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        # Empty: the process was killed, or is about to make the lock file.
        if not own or not ((folder / LOCK).is_file() or not any(folder.iterdir())):
            raise ClipbiasError(
                f"cannot write {path}: {folder} is in the way and was not left by an earlier run; remove it."
            ) from None
        folder.chmod(0o700)
    try:
        lock = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        with contextlib.suppress(OSError):  # not empty, where it is another process's
            folder.rmdir()
        raise
    try:
        yield lock
    finally:
        os.close(lock)


def _take(lock: int, folder: Path, path: Path) -> None:
    """Locks a temporary folder for this process and empties it. Raises `ClipbiasError` if it is another's."""
    try:
        lock_file(lock, fcntl.LOCK_EX)
        # The other process may have ended, and its folder got its final name, since the lock was opened.
        if not os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
            raise FileNotFoundError
    except (BlockingIOError, FileNotFoundError) as error:
        raise ClipbiasError(f"another process writes {path}; wait for it or choose another folder.") from error
    for stale in folder.iterdir():
        if stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale)
        elif stale.name != LOCK:
            stale.unlink()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
