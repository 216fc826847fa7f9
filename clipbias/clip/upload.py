"""Models and adapters up to the Hugging Face hub."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from clipbias.clip.hub import parse
from clipbias.errors import ClipbiasError
from clipbias.io import reason, shorten


def push(repository: str, write: Callable[[Path], None], *, private: bool | None, message: str) -> str:
    """Uploads a folder as one commit on the main branch of a repository, which is made if it is not there.

    Args:
      repository: "owner/name".
      write: writes what is uploaded into a folder that is empty.
      private: who may read a repository that is made; `None` takes the owner's default.
      message: of the commit.

    Returns:
      "owner/name@commit", which loads exactly this again.

    Raises:
      ClipbiasError: the name is none, `write` refuses, or the hub does.
    """
    from huggingface_hub import HfApi, constants, errors

    name = parse(repository)
    if name is None or name.revision:
        raise ClipbiasError(f"{shorten(repository)!r} is no name of a repository; give 'owner/name'.")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        try:
            api = HfApi()
            api.create_repo(name.repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=name.repository, folder_path=folder, commit_message=message).oid
        except Exception as error:  # the client's own, and its transport's
            status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
            if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
                raise ClipbiasError(
                    f"{constants.ENDPOINT} does not let you write {name.repository!r}; run `hf auth login` with a "
                    "token that may."
                ) from error
            words = shorten(" ".join(reason(error).split()), 200)
            raise ClipbiasError(
                f"{name.repository!r} was not uploaded to {constants.ENDPOINT} ({words}); the same call tries again."
            ) from error
    return f"{name.repository}@{commit}"
