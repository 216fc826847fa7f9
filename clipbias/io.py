"""Files that appear whole or not at all, and text and JSON of any content, on disks and in buckets.

A file on a disk is written under a temporary name and renamed. A process that is killed leaves the temporary file; the
next process that locks the work folder removes it. A bucket (gs://, s3://, az://, hf://) shows an object only when it
is complete. It has no locks, no renaming and no appending, and each request takes tens of milliseconds.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import posixpath
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from absl import logging

from clipbias.errors import ClipbiasError

# Prefix of a folder in which a file is still being written.
PART = ".clipbias-part-"
# The file of a work folder that carries its lock.
LOCK = ".lock"
# Errors of file systems without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
# Errors of a full, broken or read-only disk, and of missing permissions.
BROKEN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
NOT_ALLOWED = (errno.EACCES, errno.EPERM)

# The packages that read buckets.
BUCKET_PACKAGES = {"gs://": "gcsfs", "s3://": "s3fs", "az://": "adlfs", "hf://": "huggingface_hub"}


def reason(error: Exception) -> str:
    """The cause of an error in the system's words, else in the library's; one line of at most 200 letters."""
    words = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return shorten(" ".join(words.split()), 200)


def shorten(text: str, length: int = 80) -> str:
    """A text, cut to the length that a message may have."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def cache_folder() -> Path:
    """The user's folder for files that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipbias"


def user_path(path: str | os.PathLike) -> Path:
    """A user's path on a disk, with `~` resolved. Raises `ClipbiasError` if nothing on a disk can be opened there."""
    # `Path("")` is the current folder, which nobody means by an empty setting.
    if not isinstance(path, str | os.PathLike) or path == "":
        raise ClipbiasError(f"{shorten(repr(path))} is no path; give a non-empty string.")
    if is_remote(path):
        raise ClipbiasError(
            f"{shorten(str(path), 200)} is in a bucket, which may hold images, lists of them and work folders only; "
            "copy it to a disk, or mount the bucket."
        )
    if "://" in str(path):
        raise ClipbiasError(f"{shorten(str(path), 200)} is an address of the web; give the path of a downloaded file.")
    resolved = os.path.expanduser(os.fspath(path))
    # Looked at once, so that the message for a missing permission has the path; a library's would not.
    try:
        os.stat(resolved)
        if os.path.isdir(resolved) and not os.access(resolved, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or a character that no file name can encode
        raise ClipbiasError(f"cannot open {shorten(resolved)!r}: {reason(error)}; check the path.") from error
    return Path(resolved)


def data_path(path: str | os.PathLike) -> Path:
    """As `user_path`, for files that may lie in a bucket; an `etils.epath` path then takes the place of `pathlib`'s."""
    if not is_remote(path):
        return user_path(path)
    from etils import epath

    try:
        with contextlib.suppress(FileNotFoundError), remote_errors(path):
            _store(path).info(os.fspath(path))
    except OSError as error:
        raise ClipbiasError(f"cannot open {shorten(str(path), 200)}: {reason(error)}; check the path.") from error
    return epath.Path(os.fspath(path))


def check_file(path: str | os.PathLike, *, missing: str | None = None) -> None:
    """Raises `ClipbiasError` if `path` is not a readable file."""
    # The kind is checked before the content: opening a pipe waits for a writer, possibly for ever.
    missing = missing or f"{path} does not exist; check the path."
    if is_remote(path):
        if not data_path(path).is_file():
            raise ClipbiasError(missing)
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise ClipbiasError(missing) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ClipbiasError(f"cannot open {shorten(str(path))}: {reason(error)}; check the path.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise ClipbiasError(f"{path} is {kind}, where a file is expected.")
    if not os.access(path, os.R_OK):  # some libraries report such a file as missing
        raise ClipbiasError(f"cannot read {path}: {os.strerror(errno.EACCES)}; check its permissions.")


def read_text(path: str | os.PathLike) -> str:
    """The content of a UTF-8 text file, with or without a byte order mark. Raises `ClipbiasError` for any other."""
    check_file(path, missing=f"cannot read {path}: {os.strerror(errno.ENOENT)}.")
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClipbiasError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise ClipbiasError(f"cannot read {path}: {reason(error)}.") from error


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a local file, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ClipbiasError(f"cannot read {path}: {reason(error)}.") from error


def parse_json(text: str, expected: type | tuple[type, ...] = object) -> Any:
    """The value of a JSON text. Raises `ValueError` with a short message for everything that cannot be read."""
    repeated: list[str] = []

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON, line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: it is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError("not valid JSON: a number is too long") from error
    if repeated:
        raise ValueError(f"{repeated[0][:40]!r} occurs twice in an object")
    if not isinstance(value, expected):
        raise ValueError(f"another kind of content, {text.strip()[:40]!r}")
    return value


def read_json(path: str | os.PathLike, expected: type | tuple[type, ...] = object, *, what: str = "a JSON file") -> Any:
    """The value in a JSON file. Raises `ClipbiasError` unless it is of type `expected`; `what` names the content."""
    text = read_text(path)
    try:
        return parse_json(text, expected)
    except ValueError as error:
        raise ClipbiasError(f"{path} is not {what} ({error}); fetch it again.") from error


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects in a JSONL file; none if it does not exist. Raises `ClipbiasError` if it cannot be read."""
    # A line that a crash cut short is left out.
    if not (data_path(path).exists() if is_remote(path) else os.path.lexists(path)):
        return []
    check_file(path)
    try:
        content = read_bytes(path).decode("utf-8", errors="replace")
    except OSError as error:
        raise ClipbiasError(f"cannot read {path}: {reason(error)}.") from error
    # `split("\n")`, not `splitlines`: JSON strings may hold other line separators of Unicode.
    lines = []
    for line in content.split("\n"):
        with contextlib.suppress(ValueError):
            lines.append(parse_json(line, dict))
    return lines


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path that becomes `path` at the end. Raises `ClipbiasError` if the disk refuses it."""
    with _temporary(path, "the previous file, if any, is intact") as temporary:
        yield temporary
        if is_remote(path):
            write_bytes(path, temporary.read_bytes())
        else:
            # To disk before the rename: a crash at any moment leaves the old file or the new one, whole. Else a power
            # failure could leave the new name with an empty file.
            _to_disk(temporary)
            os.replace(temporary, path)


def check_new_folder(path: str | os.PathLike) -> None:
    """Raises `ClipbiasError` if `path` exists and is not an empty folder, or cannot be opened."""
    folder = data_path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ClipbiasError(f"{path} exists already; remove it or choose another folder.")


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` at the end. Raises `ClipbiasError` as `check_new_folder`."""
    check_new_folder(path)
    path = data_path(path)
    with _temporary(path, "choose another folder") as temporary:
        temporary.mkdir()
        yield temporary
        files = [file for file in temporary.rglob("*") if file.is_file()]
        if is_remote(path):
            # A bucket cannot rename: its files appear one by one, each of them whole.
            for file in files:
                write_bytes(path / file.relative_to(temporary), file.read_bytes())
        else:
            for file in files:
                _to_disk(file)
            # `rename` refuses to replace anything but an empty folder, also one that appeared meanwhile.
            os.rename(temporary, path)


@contextlib.contextmanager
def _temporary(path: str | os.PathLike, advice: str) -> Iterator[Path]:
    # Beside it, since a rename works within a file system only. A folder, not a file of `mkstemp`: the new file gets
    # the umask's permissions.
    try:
        parent = None if is_remote(path) else Path(path).parent
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=PART, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise ClipbiasError(f"cannot write {path}: {reason(error)}; choose another folder.") from error
    with temporary as folder:
        try:
            yield Path(folder) / posixpath.basename(os.fspath(path))
        except OSError as error:
            raise ClipbiasError(f"cannot write {path}: {reason(error)}; {advice}.") from error


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 to `path`, whole; half surrogate pairs, which UTF-8 lacks, become escapes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes NumPy arrays as safetensors to `path`, whole. Raises `ClipbiasError` where it cannot."""
    import safetensors
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
            # safetensors makes files that only their owner may read; other files' permissions are the umask's.
            (example := temporary.with_name("permissions")).touch()
            shutil.copymode(example, temporary)
        except safetensors.SafetensorError as error:
            # Rust's error has no errno: its words become an `OSError`, which `_temporary` turns into a sentence.
            raise OSError(str(error).partition("I/O error: ")[2].partition(" (os error")[0] or str(error)) from error


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes NumPy arrays as a compressed `.npz`, whole."""
    import numpy as np

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_arrays(path: str | os.PathLike, *names: str) -> dict[str, Any]:
    """The arrays of a `.npz`, or some of them by name, never unpickled. Raises `ClipbiasError` if it is damaged."""
    import numpy as np

    check_file(path)
    try:
        with np.load(BytesIO(read_bytes(path)), allow_pickle=False) as stored:
            return {name: stored[name] for name in names or stored.files}
    except Exception as error:  # a truncated archive raises nearly anything, from BadZipFile to zlib's own error
        raise ClipbiasError(f"{path} is damaged ({error}); delete it and run again.") from error


@contextlib.contextmanager
def lock(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Makes a work folder and locks it within the block. A lock that is not `shared` removes files of killed writers.

    Several processes may share a folder. In a bucket nothing is locked. Raises `ClipbiasError` if the folder cannot be
    written, or another process works in it.
    """
    if is_remote(folder):
        logging.warning("%s is in a bucket, which has no locks; make sure that no other process works there.", folder)
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a")  # noqa: SIM115 (held until the block ends)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ClipbiasError(f"cannot write {folder}: {reason(error)}; choose another --workdir.") from error
    # The kernel drops the lock when the process ends, however it ends: no stale lock is left.
    with file:
        try:
            if not lock_file(file.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                logging.warning("%s lies on a disk without locks; make sure that no other process works there.", folder)
        except BlockingIOError as error:
            raise ClipbiasError(f"another process works in {folder}; wait, or choose another --workdir.") from error
        # Nobody else writes here while the exclusive lock is held: temporary files are those of killed processes.
        if not shared:
            for unfinished in folder.rglob(f"{PART}*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process has locked a folder; this call itself locks nothing."""
    try:
        # O_NONBLOCK: opening a pipe of this name would wait for a writer.
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        lock_file(file, fcntl.LOCK_SH)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def lock_file(file: int, how: int) -> bool:
    """Locks an open file without waiting; false on a disk without locks. Raises `BlockingIOError` if it is locked."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        # Network file systems differ in the error by which they refuse locks.
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def is_remote(path: object) -> bool:
    """Whether a path is in a bucket."""
    return isinstance(path, str | os.PathLike) and str(path).startswith(tuple(BUCKET_PACKAGES))


def _store(path: str | os.PathLike) -> Any:
    from etils.epath import backend

    return backend.fsspec_backend.fs(path)


@contextlib.contextmanager
def remote_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns any error of a bucket's library into an `OSError` of one line, or into a sentence on what to install."""
    try:
        yield
    except ClipbiasError:
        raise
    except FileNotFoundError as error:  # its message may be just the path
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
    except ImportError as error:
        package = next(package for scheme, package in BUCKET_PACKAGES.items() if str(path).startswith(scheme))
        raise ClipbiasError(f"{path} needs a package to be read: pip install {package}.") from error
    except Exception as error:  # credentials, network, server
        raise OSError(None, reason(error)) from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file. Raises `OSError` if it cannot be read."""
    if not is_remote(path):
        return Path(path).read_bytes()
    with remote_errors(path):
        return _store(path).cat_file(os.fspath(path))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes an object of a bucket. Raises `OSError` if it cannot be written."""
    with remote_errors(path):
        _store(path).pipe_file(os.fspath(path), content)


def entries(folder: str | os.PathLike) -> dict[str, int | None]:
    """The content of a bucket's folder: sizes of files by name, `None` for folders. Raises `OSError`."""
    with remote_errors(folder):
        store = _store(folder)
        place = os.fspath(folder)
        name = store._strip_protocol(place).rstrip("/")
        content = {entry["name"].rstrip("/"): entry for entry in store.ls(place, detail=True)}
    # Some stores list the folder itself, as an empty object.
    content.pop(name, None)
    return {
        posixpath.basename(name): None if entry["type"] == "directory" else int(entry["size"])
        for name, entry in content.items()
    }


def below(folder: str | os.PathLike) -> list[str]:
    """All files below a folder of a bucket, as paths relative to it. Raises `OSError`."""
    with remote_errors(folder):
        store = _store(folder)
        # Listed names are without the scheme: relative paths start behind the folder's own name.
        start = len(store._strip_protocol(os.fspath(folder)).rstrip("/")) + 1
        return [name[start:] for name in store.find(os.fspath(folder)) if name[start:]]
