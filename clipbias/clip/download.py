"""Files of the Hugging Face hub into its cache, where large ones go on after a break."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from clipbias.errors import ClipbiasError
from clipbias.io import user_path


def cache() -> Path:
    """The cache's folder, `HF_HUB_CACHE`."""
    from huggingface_hub import constants

    return user_path(constants.HF_HUB_CACHE)


def storage(repository: str) -> Path:
    """The folder of a model repository in the cache: `blobs/` by hash, `snapshots/` by commit, `refs/` by branch."""
    return cache() / f"models--{repository.replace('/', '--')}"


def snapshot(repository: str, revision: str) -> Path | None:
    """The cached files of a commit, or of the commit that a branch or tag was at last; `None` if there are none."""
    home = storage(repository)
    reference = home / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = home / "snapshots" / commit
    return folder if folder.is_dir() else None


def download(repository: str, commit: str, file: Any, *, sha256: str | None = None) -> None:
    """Brings one file of a commit into the cache, unless it is there.

    Args:
      repository: "owner/name".
      commit: 40 hexadecimal digits.
      file: the file's `RepoSibling`, with its size and, where it is a large one, its hash.
      sha256: what the file must have; the hub's word without it.

    Raises:
      ClipbiasError: there is no room for it, or what arrived is not what was asked for.
      Exception: whatever the hub's client raises.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url

    name = file.rfilename
    if (storage(repository) / "snapshots" / commit / name).is_file():
        return
    _check_room(repository, name, file.size or 0)
    if file.lfs:
        if sha256 not in (None, file.lfs.sha256):
            raise ClipbiasError(
                f"{name} of {repository!r} at {commit} has the SHA-256 {file.lfs.sha256} on the hub instead of "
                f"{sha256}; it is not the file that clipbias was made for, and was not downloaded."
            )
        url = hf_hub_url(repository, name, revision=commit)
        _download_blob(repository, url, name, file.lfs.size, file.lfs.sha256)
    hf_hub_download(repository, name, revision=commit)  # a blob that is there is only linked


def _download_blob(repository: str, url: str, name: str, size: int, sha256: str) -> None:
    """Downloads a large file to where the hub's client keeps it.

    The client itself begins each download anew, under another name; here a part that an earlier call left is completed.
    Processes that want the same file wait for the one that downloads it.
    """
    from filelock import FileLock
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not listed

    blob = storage(repository) / "blobs" / sha256
    lock = cache() / ".locks" / storage(repository).name / f"{sha256}.lock"  # as the client's own downloads
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if blob.is_file():
            return
        part = blob.with_name(f"{sha256}.clipbias.incomplete")
        with open(part, "ab") as output:
            if output.tell() > size:
                output.truncate(0)
            http_get(
                url,
                output,
                resume_size=output.tell(),
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=f"{repository} {name}",
            )
        with open(part, "rb") as written:
            found = hashlib.file_digest(written, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise ClipbiasError(
                f"{name} of {repository!r} arrived damaged (SHA-256 {found} instead of {sha256}); it was removed: try "
                "again."
            )
        os.replace(part, blob)


def _check_room(repository: str, name: str, size: int) -> None:
    folder = storage(repository)
    folder.mkdir(parents=True, exist_ok=True)
    parts = sum(part.stat().st_size for part in (folder / "blobs").glob("*.clipbias.incomplete"))
    missing, free = size - parts, shutil.disk_usage(folder).free
    if missing > free:
        raise ClipbiasError(
            f"{name} of {repository!r} needs {_megabytes(missing)} in {cache()}, where {_megabytes(free)} are free; "
            "free some, or set HF_HUB_CACHE to a folder with more."
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
