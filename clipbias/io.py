"""Writing files so that a reader never sees half of one, and reading text and JSON of any content."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipbias import remote
from clipbias.errors import ClipbiasError

# How the name of a file begins that is still being written.
PART = ".clipbias-part-"
# What the file system says where it cannot lock files at all.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)

# What it says where a disk is full, broken, or read-only: whatever is written, there is nothing to be done here.
BROKEN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
# And where its user may not do what is asked.
NOT_ALLOWED = (errno.EACCES, errno.EPERM)

# Files and folders that this process is writing. Whoever holds the gate may add one, or give one its name; the thread
# that ends the process keeps it.
unfinished: set[Path] = set()
gate = threading.RLock()


def abandon() -> None:
    """Removes what is being written, and lets no other thread write anything more: the process is about to end."""
    gate.acquire(timeout=1.0)
    for path in unfinished:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Keeps the process from being ended in the middle of the block by its own watching thread. For moments."""
    with gate:
        yield


def _refuse_remote(path: str | os.PathLike) -> None:
    if remote.is_remote(path):
        raise ClipbiasError(
            f"{shorten(str(path), 200)} is in an object store, where images, lists of them and work folders may lie, "
            "but this not; copy it to a disk, or mount the bucket."
        )


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, *, apart: bool = False) -> Iterator[Path]:
    """Yields a private temporary name beside `path`, renamed to `path` when the block ends without an error.

    The bytes are on disk before the rename, so a crash at any moment leaves the old file or the new one, whole.

    Args:
      path: the file.
      apart: makes the name one in a folder of its own, for writers that make temporary files beside it themselves.

    Raises:
      ClipbiasError: the folder cannot be written, or is in an object store, or the disk is full.
    """
    _refuse_remote(path)
    path = Path(path)
    with gate:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if apart:
                made = Path(tempfile.mkdtemp(prefix=PART, dir=path.parent))
            else:
                handle, name = tempfile.mkstemp(prefix=PART, suffix=path.suffix, dir=path.parent)
                os.close(handle)
                made = Path(name)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise ClipbiasError(f"cannot write {path}: {reason(error)}; choose another folder.") from error
        unfinished.add(made)
    temporary = made / path.name if apart else made
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes files private; a result is meant to be read by whoever may read its folder.
        os.chmod(temporary, 0o666 & ~umask())
        with gate:
            os.replace(temporary, path)
    except OSError as error:
        raise ClipbiasError(f"cannot write {path}: {reason(error)}; the previous file, if any, is intact.") from error
    finally:
        with gate:  # errors: it has its name already, or the disk does not let itself be written
            if apart:
                shutil.rmtree(made, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    made.unlink()
            unfinished.discard(made)


def lock_file(file: int, how: int) -> bool:
    """Locks an open file as `flock` does, without waiting.

    Returns:
      Whether it is locked: some network file systems have no locks, and then it is as if it were free.

    Raises:
      BlockingIOError: another process has locked it.
    """
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


@functools.cache
def umask() -> int:
    # It can only be read by setting it, which must not happen while other threads create files: once, at the start.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def remove_parts(folder: str | os.PathLike) -> None:
    """Removes what writers that were killed left in `folder` and below; nobody may be writing there."""
    for path in Path(folder).rglob(f"{PART}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipbias"


def reason(error: Exception) -> str:
    """What went wrong, in the system's words where it has any."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 to `path`, atomically; half surrogate pairs, which UTF-8 has not, as their escapes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def data_path(path: str | os.PathLike) -> Path:
    """As `user_path`, of images and lists of them, which may also lie in an object store (`clipbias.remote`)."""
    if not remote.is_remote(path):
        return user_path(path)
    try:
        return remote.remote_path(path)
    except OSError as error:
        raise ClipbiasError(f"cannot open {shorten(str(path), 200)}: {reason(error)}; check the path.") from error


def user_path(path: str | os.PathLike) -> Path:
    """A path as a user gives it, with `~` resolved; nothing needs to be there.

    Raises:
      ClipbiasError: no file can have that path, it is in an object store, or what is there may not be looked at.
    """
    if not isinstance(path, str | os.PathLike):
        raise ClipbiasError(f"{shorten(repr(path))} is no path; give a text.")
    _refuse_remote(path)
    resolved = os.path.expanduser(os.fspath(path))
    try:
        os.stat(resolved)
        if os.path.isdir(resolved) and not os.access(resolved, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or what no file name can encode
        raise ClipbiasError(f"cannot open {shorten(resolved)!r}: {reason(error)}; check the path.") from error
    return Path(resolved)


def shorten(text: str, length: int = 80) -> str:
    """The beginning of a text that is too long for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def check_file(path: Path, *, missing: str | None = None) -> None:
    """Raises `ClipbiasError` where `path` is not a file that may be read: a pipe would be waited for for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise ClipbiasError(missing or f"{path} does not exist; check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ClipbiasError(f"cannot open {shorten(str(path))}: {reason(error)}; check the path.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise ClipbiasError(f"{path} is {kind}, where a file is expected.")
    if not os.access(path, os.R_OK):  # which not all libraries tell from a file that is not there
        raise ClipbiasError(f"cannot read {path}: {os.strerror(errno.EACCES)}; check its permissions.")


def read_text(path: str | os.PathLike) -> str:
    """A UTF-8 text file, with or without a byte order mark. Raises `ClipbiasError` where it is none."""
    try:
        if remote.is_remote(path):
            return remote.read(path).decode("utf-8-sig")
        check_file(Path(path), missing=f"cannot read {path}: {os.strerror(errno.ENOENT)}.")
        return Path(path).read_text(encoding="utf-8-sig")
    except ClipbiasError:
        raise
    except UnicodeDecodeError as error:
        raise ClipbiasError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except (OSError, ValueError) as error:
        raise ClipbiasError(f"cannot read {path}: {reason(error)}.") from error


def read_json(path: str | os.PathLike, kind: type | tuple[type, ...] = object, *, what: str = "a JSON file") -> Any:
    """The value in a JSON file, of type `kind`; `what` is the file's purpose, for the message.

    Raises:
      ClipbiasError: it cannot be read, is no JSON (with the line where it breaks off), or is of another kind.
    """
    try:
        return parse_json(read_text(path), kind)
    except ClipbiasError:
        raise
    except ValueError as error:
        raise ClipbiasError(f"{path} is not {what} ({error}); fetch it again.") from error


def parse_json(text: str, kind: type | tuple[type, ...] = object) -> Any:
    """The value of a JSON text. Raises `ValueError`, in a few words, for all that JSON readers may stumble over."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON, line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: it is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError("not valid JSON: a number is too long") from error
    if not isinstance(value, kind):
        raise ValueError(f"not the kind of content that belongs there, found {text.strip()[:40]!r}")
    return value


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file, of those that hold objects; none where there is no file.

    A line that is damaged, or was cut short by a crash, is left out.

    Raises:
      ClipbiasError: the file cannot be read.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return []
    check_file(path)
    try:
        content = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise ClipbiasError(f"cannot read {path}: {reason(error)}.") from error
    lines = []
    for line in content.split("\n"):
        with contextlib.suppress(ValueError):
            lines.append(parse_json(line, dict))
    return lines


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes NumPy arrays as safetensors to `path`, atomically. Raises `ClipbiasError` where it cannot."""
    import safetensors
    from safetensors.numpy import save_file

    with atomic_path(path, apart=True) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except safetensors.SafetensorError as error:
            words = str(error).partition("I/O error: ")[2].partition(" (os error")[0]
            raise OSError(words or str(error)) from error


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        try:
            lock_file(file.fileno(), fcntl.LOCK_EX)
        except BlockingIOError as error:
            raise ClipbiasError(
                f"another process works in {folder}; wait for it or choose another --workdir."
            ) from error
        yield
