"""Uploads of models and adapters to the Hugging Face hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipbias.clip import Clip
from clipbias.clip.hub import parse
from clipbias.errors import ClipbiasError
from clipbias.export.card import base_card, model_card
from clipbias.io import reason, shorten, write_text
from clipbias.tuning import Learnables, Task
from clipbias.tuning.adapter import FILE, Adapter, make_adapter, write_adapter


def push_to_hub(
    repository: str,
    what: Task | Adapter | Clip,
    learnables: Learnables | None = None,
    *,
    notes: Mapping[str, Any] | None = None,
    private: bool | None = None,
) -> str:
    """Uploads what a task learned, an adapter, or a model, with a model card, as a commit on the main branch.

        clipbias.push_to_hub("you/fashion-bias", task, learnables)

    Args:
      repository: "owner/name", made if it is not there.
      what: a task, an adapter from `clipbias.load_adapter`, or a model.
      learnables: of a task.
      notes: of a task, JSON values to keep beside the learnables, such as dataset, shots, seed and accuracy.
      private: who may read a repository that is made; `None` takes the owner's default.

    Returns:
      "owner/name@commit", which `load_adapter`, or of a model `load`, takes.

    Raises:
      ClipbiasError: the name is none, learnables are missing, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, constants, errors

    name = parse(repository) if isinstance(repository, str) else None
    if name is None or name.revision:
        raise ClipbiasError(f"{shorten(str(repository))!r} is no name of a repository; give 'owner/name'.")
    if isinstance(what, Task):
        if learnables is None:
            raise ClipbiasError("there are no learnables; give them after the task.")
        what = make_adapter(what, learnables, notes=notes)
    with tempfile.TemporaryDirectory() as written:
        folder = Path(written)
        if isinstance(what, Clip):
            what.save(folder, exact=True)
            write_text(folder / "README.md", base_card(what))
        else:
            write_adapter(folder / FILE, what)
            write_text(folder / "README.md", model_card(what, None, "adapter"))
        message = "Upload a CLIP model" if isinstance(what, Clip) else f"Upload a {what.method} adapter"
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
