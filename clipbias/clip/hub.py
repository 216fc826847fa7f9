"""Models and adapters on the Hugging Face hub: their names, what is downloaded, and what is said where it fails."""

import dataclasses
import errno
import logging
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from clipbias.clip.download import cache, download, snapshot, storage
from clipbias.clip.pins import PINS
from clipbias.errors import ClipbiasError
from clipbias.io import reason, shorten, write_text

COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"(?:hf-hub:)?(\w[\w.-]*/[\w.-]+)(?:@((?!.*(?:\.\.|//))\w[\w./-]*))?")  # as git names revisions

# What a step of a download wants next, from the names of all files and the folder with what is there already.
Wanted = Callable[[Collection[str], Path], Iterator[Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class HubName:
    """A repository of the hub, and a revision where one is asked for: a commit, a tag or a branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def parse(source: str) -> HubName | None:
    """The hub's name in "owner/name" or "owner/name@revision", with or without "hf-hub:"; `None` in anything else."""
    found = NAME.fullmatch(source)
    return HubName(found[1], found[2]) if found else None


def fetch(name: HubName, wanted: Wanted, complete: Callable[[Path], bool]) -> tuple[Path, str]:
    """Brings files of a repository into the cache; returns their folder and the commit.

    A commit that is complete in the cache needs no network, and the official repositories are read at the commit of
    `pins.PINS` unless a revision is asked for. A branch or tag is looked up; where the hub cannot be reached, the last
    commit that it was at counts.

    Args:
      name: the repository.
      wanted: yields the names of files to download; each list is there before the next is asked for.
      complete: whether a folder holds all that is needed.

    Raises:
      ClipbiasError: there is no such repository or revision, a token is needed, the network or the disk is in the way.
    """
    from huggingface_hub import HfApi, constants

    pin = PINS.get(name.repository) if name.revision is None else None
    revision = pin.commit if pin else name.revision or "main"
    try:
        known = snapshot(name.repository, revision)
        is_complete = known is not None and complete(known)
        if known and is_complete and COMMIT.fullmatch(revision):
            return known, revision
        try:
            info: Any = HfApi().model_info(
                name.repository, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        except Exception as error:
            if known and is_complete and _cannot_be_reached(error):
                logging.warning("The Hugging Face hub cannot be reached; %s is read at %s.", name, known.name)
                return known, known.name
            raise
        folder = storage(name.repository) / "snapshots" / info.sha
        files = {file.rfilename: file for file in info.siblings}
        for names in wanted(files, folder):
            for file in names:
                sha256 = pin.sha256 if pin and pin.weights == file else None
                download(name.repository, info.sha, files[file], sha256=sha256)
        if revision != info.sha:  # what the hub's client would have noted, had it been asked by this name
            write_text(storage(name.repository) / "refs" / revision, info.sha)
        return folder, info.sha
    except ClipbiasError:
        raise
    except Exception as error:  # the client's own, its transport's, and the system's
        raise _explained(error, name) from error


def _cannot_be_reached(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    return not isinstance(error, HfHubHTTPError | ValueError) or (
        isinstance(error, HfHubHTTPError) and error.response.status_code in (408, 429, 500, 502, 503, 504)
    )


def _explained(error: Exception, name: HubName) -> ClipbiasError:
    """The one sentence for whatever stopped a download."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{name.repository}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return ClipbiasError(
            f"{str(name)!r} is given only to those who accepted its terms; accept them at {page}, then run "
            "`hf auth login` here."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ClipbiasError(
            f"{name.repository!r} on the Hugging Face hub has no revision {name.revision or 'main'!r}; {page}/commits "
            f"lists them, and {name.repository + '@main'!r} is the newest."
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError) or status in (401, 403):
        return ClipbiasError(
            f"there is no folder {name.repository!r} here, and the Hugging Face hub has no repository of that name "
            "that may be read without a token; check the name, or run `hf auth login` if it is private."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return ClipbiasError(
            f"cannot write {str(name)!r} to the cache {cache()}: {reason(error)}; make room there, or set HF_HUB_CACHE "
            "to another folder. What is complete there is not downloaded again."
        )
    words = shorten(" ".join(reason(error).split()), 200)
    where_from = "the Hugging Face hub" if constants.ENDPOINT.endswith("huggingface.co") else constants.ENDPOINT
    if any((storage(name.repository) / "blobs").glob("*.incomplete")):
        return ClipbiasError(
            f"the download of {str(name)!r} from {where_from} broke off ({words}); the same call goes on where it "
            "ended."
        )
    return ClipbiasError(
        f"{str(name)!r} is not in the local cache and {where_from} cannot be reached ({words}); run "
        f"`{command(name)}` where there is a network and pass the folder that it prints, or use 'demo'."
    )


def command(name: HubName) -> str:
    """The shell command that downloads what `clipbias.load` reads of a repository."""
    pin = PINS.get(name.repository) if name.revision is None else None
    words = ["hf", "download", name.repository]
    if revision := pin.commit if pin else name.revision:
        words += ["--revision", revision]
    if pin:
        words += [word for pattern in ("*.json", "*.txt", pin.weights) for word in ("--include", pattern)]
    else:
        words += ["--exclude", "*.h5"]
    return shlex.join(words)
