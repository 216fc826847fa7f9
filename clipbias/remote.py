"""Files in object stores, gs://, s3://, az:// and hf://: named by etils' paths, listed and read through fsspec.

Such a store has no locks, no renaming and no appending, and each question takes tens of milliseconds. So folders are
listed as wholes, and what is written is written as whole objects.
"""

import contextlib
import errno
import functools
import os
import posixpath
from collections.abc import Iterator
from typing import Any

from clipbias.errors import ClipbiasError

SCHEMES = ("gs://", "s3://", "az://", "hf://")
PACKAGES = {"gs://": "gcsfs", "s3://": "s3fs", "az://": "adlfs", "hf://": "huggingface_hub"}
# What a store says that changes with an object's content, by different names.
VERSIONS = ("generation", "etag", "ETag", "md5Hash", "content_md5", "VersionId", "blob_id")


def is_remote(path: Any) -> bool:
    """Whether a path is an address in an object store."""
    return isinstance(path, str | os.PathLike) and str(path).startswith(SCHEMES)


def remote_path(path: str | os.PathLike) -> Any:
    """An address as etils' path, which answers as `pathlib.Path` does; nothing needs to be there.

    Raises:
      ClipbiasError: the package that reads such addresses is missing.
      OSError: the store does not answer, or not to this user.
    """
    from etils import epath

    with contextlib.suppress(FileNotFoundError), told(path):
        _store(path).info(os.fspath(path))
    return epath.Path(os.fspath(path))


@contextlib.contextmanager
def told(path: str | os.PathLike) -> Iterator[None]:
    """Turns what libraries raise, each its own, into an `OSError` with one line, or a sentence on what to install."""
    try:
        yield
    except ClipbiasError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
    except ImportError as error:
        package = PACKAGES[next(scheme for scheme in SCHEMES if str(path).startswith(scheme))]
        raise ClipbiasError(f"{path} needs a package to be read: pip install {package}.") from error
    except Exception as error:  # of credentials, networks, and servers
        raise OSError(None, " ".join(str(error).split())[:200] or type(error).__name__) from error


def listed(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder. Raises `OSError` where it cannot be listed."""
    folders: list[str] = []
    files: list[str] = []
    with told(folder):
        store, place = _store(folder), os.fspath(folder)
        for entry in store.ls(place, detail=True):
            name = posixpath.basename(entry["name"].rstrip("/"))
            if entry["name"].rstrip("/") != store._strip_protocol(place).rstrip("/"):  # itself, as an empty object
                (folders if entry["type"] == "directory" else files).append(name)
    return folders, files


def sizes(folder: str | os.PathLike) -> dict[str, int]:
    """The bytes of each file in a folder, by its name. Raises `OSError` where it cannot be listed."""
    with told(folder):
        entries = _store(folder).ls(os.fspath(folder), detail=True)
    return {posixpath.basename(entry["name"]): int(entry["size"]) for entry in entries if entry["type"] == "file"}


def below(folder: str | os.PathLike) -> list[str]:
    """All files below a folder, as paths relative to it. Raises `OSError` where it cannot be listed."""
    with told(folder):
        store = _store(folder)
        start = len(store._strip_protocol(os.fspath(folder)).rstrip("/")) + 1
        return [name[start:] for name in store.find(os.fspath(folder)) if name[start:]]


def read(path: str | os.PathLike) -> bytes:
    """An object's content. Raises `OSError` where it cannot be read."""
    with told(path):
        return _store(path).cat_file(os.fspath(path))


def write(path: str | os.PathLike, content: bytes) -> None:
    """Writes an object, which readers see as a whole or not at all. Raises `OSError` where it cannot be written."""
    with told(path):
        _store(path).pipe_file(os.fspath(path), content)


def remove(path: str | os.PathLike) -> None:
    """Removes an object; it does not matter if there is none."""
    with contextlib.suppress(FileNotFoundError), told(path):
        _store(path).rm_file(os.fspath(path))


def stamp(path: str | os.PathLike) -> tuple[str, float]:
    """What changes when an object does, and when that was: always long ago, where the store counts its versions.

    Of objects in folders that were just listed it is known without asking. Raises `OSError` where there is none.
    """
    with told(path):
        found = _store(path).info(os.fspath(path))
    version = next((str(found[name]) for name in VERSIONS if found.get(name)), None)
    return f"{path}\n{found.get('size')} {version}", float("inf") if version is None else 0.0


@functools.cache
def _backend() -> Any:
    from etils.epath import backend

    return backend.fsspec_backend


def _store(path: str | os.PathLike) -> Any:
    return _backend().fs(path)
