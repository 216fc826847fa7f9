"""Uploads of adapters to the Hugging Face hub."""

import tempfile
from pathlib import Path

from clipbias.clip.hub import parse
from clipbias.errors import ClipbiasError
from clipbias.export.card import model_card
from clipbias.io import reason, shorten, write_text
from clipbias.tuning.adapter import FILE, Adapter, write_adapter


def upload(repository: str, adapter: Adapter, *, private: bool | None = None) -> str:
    """Uploads an adapter, see `clipbias.push_to_hub`."""
    from huggingface_hub import HfApi, constants, errors

    name = parse(repository) if isinstance(repository, str) else None
    if name is None or name.revision:
        raise ClipbiasError(f"{shorten(str(repository))!r} is no name of a repository; give 'owner/name'.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_adapter(folder / FILE, adapter)
        write_text(folder / "README.md", model_card(adapter, None, "adapter"))
        message = f"Upload a {adapter.method} adapter"
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
