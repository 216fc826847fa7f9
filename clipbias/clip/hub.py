"""Models and adapters on the Hugging Face hub: names, downloads into the cache, and error messages."""

import contextlib
import dataclasses
import errno
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clipbias.errors import ClipbiasError
from clipbias.io import reason

NAME = re.compile(r"(?:hf-hub:)?(\w[\w.-]*/[\w.-]+)(?:@((?!.*(?:\.\.|//))\w[\w./-]*))?")  # as git names revisions


class Pin(NamedTuple):
    """A repository of OpenAI's: OpenAI's name of the model, the commit to read, and its file of weights."""

    openai: str
    commit: str
    weights: str


# Commits to read: `main` can move, anybody can open a pull request (`refs/pr/N`), and a run is repeatable only from the
# same bytes. They lie on `main`, even where a bot's pull request has safetensors: these come from the owner and stay.
PINS = {
    "openai/clip-vit-base-patch16": Pin("ViT-B/16", "57c216476eefef5ab752ec549e440a49ae4ae5f3", "flax_model.msgpack"),
    "openai/clip-vit-base-patch32": Pin("ViT-B/32", "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268", "flax_model.msgpack"),
    "openai/clip-vit-large-patch14": Pin("ViT-L/14", "32bd64288804d66eefd0ccbe215aa642df71cc41", "model.safetensors"),
    "openai/clip-vit-large-patch14-336": Pin(
        "ViT-L/14@336px", "ce19dc912ca5cd21c8a653c79e251e808ccabcd1", "pytorch_model.bin"
    ),
}


@dataclasses.dataclass(frozen=True)
class HubName:
    """A repository of the hub, optionally with a revision: a commit, a tag or a branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    @property
    def read_at(self) -> str:
        """The revision to read: the given one, else the pinned commit, else the main branch."""
        pin = PINS.get(self.repository)
        return self.revision or (pin.commit if pin else "main")


def parse(source: str) -> HubName | None:
    """Parses "[hf-hub:]owner/name[@revision]", or OpenAI's name of a model ("ViT-B/16"); `None` for other strings."""
    for repository, pin in PINS.items():
        if source == pin.openai:
            return HubName(repository)
    match = NAME.fullmatch(source)
    return HubName(match[1], match[2]) if match else None


def download_small(name: HubName, files: tuple[str, ...]) -> Path:
    """Downloads those of `files` that a repository has; returns the cache's folder, which has the commit as its name.

    A cached revision needs no network. If the hub is out of reach, a branch is read from the cache as last downloaded.
    Raises `ClipbiasError` if there is no such repository or revision, a token is needed, or the network or disk fails.
    """
    from huggingface_hub import snapshot_download

    with explained(name):
        # The folder is named by the commit, which becomes the model's revision.
        return Path(snapshot_download(name.repository, revision=name.read_at, allow_patterns=list(files)))


def download(name: HubName, file: str, commit: str | None = None) -> Path:
    """Downloads a file. Default commit: the revision to read. Raises `ClipbiasError` as `download_small` does."""
    from huggingface_hub import hf_hub_download

    with explained(name, file):
        return Path(hf_hub_download(name.repository, file, revision=commit or name.read_at))


def list_files(name: HubName, commit: str) -> list[str]:
    """Returns the names of a commit's files. Raises `ClipbiasError` as `download_small` does."""
    # At a commit: `main` may move between two requests.
    from huggingface_hub import HfApi

    with explained(name):
        return HfApi().list_repo_files(name.repository, revision=commit)


@contextlib.contextmanager
def explained(name: HubName, file: str = "") -> Iterator[None]:
    """Converts errors of a download to `ClipbiasError`, the only line of it: the client would print each retry."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except ClipbiasError:
        raise
    except Exception as error:  # the client, its transport and the system raise many types
        raise ClipbiasError(_sentence(error, name, file)) from error
    finally:
        log.setLevel(level)


def _sentence(error: Exception, name: HubName, file: str) -> str:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{name.repository}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{str(name)!r} is open only to users who accepted its terms; accept them at {page}, then run "
            "`hf auth login` here."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{name.repository!r} on the Hugging Face hub has no revision {name.read_at!r}; {page}/commits lists them, "
            f"and {name.repository + '@main'!r} is the newest."
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{str(name)!r} on the Hugging Face hub holds no {file}."
    # The hub answers 401 for a private repository and for a missing one alike.
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError) or status in (401, 403):
        return (
            f"there is no folder {name.repository!r} here, and the Hugging Face hub has no repository of that name "
            "that may be read without a token; check the name, or run `hf auth login` if it is private."
        )
    # Behind the known causes: the disk, or the network.
    words = reason(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return (
            f"cannot write {str(name)!r} to the cache {constants.HF_HUB_CACHE}: {words}; make room there, or set "
            "HF_HUB_CACHE to another folder."
        )
    return (
        f"{str(name)!r} is not complete in the local cache and cannot be downloaded from {constants.ENDPOINT} "
        f"({words}); try again, or run `{command(name)}` on a machine with a network and pass the folder that it "
        "prints, or use 'demo'."
    )


def command(name: HubName) -> str:
    """Returns the shell command that downloads the files that `clipbias.load` reads."""
    words = ["hf", "download", name.repository]
    if name.read_at != "main":
        words += ["--revision", name.read_at]
    # OpenAI's repositories hold the weights in several formats; only the pinned file is read.
    pin = None if name.revision else PINS.get(name.repository)
    if pin:
        words += [word for pattern in ("*.json", "*.txt", pin.weights) for word in ("--include", pattern)]
    else:
        words += ["--exclude", "*.h5"]
    return shlex.join(words)
