"""A hub on this machine, an empty cache, and a small CLIP in the forms in which the hub's repositories hold theirs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.hub.server import Hub, serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub that `huggingface_hub` takes for the real one, and an empty cache.

    The library reads its environment when it is imported, so its constants are what a test changes.
    """
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
        close_session()
        yield hub
        close_session()


@pytest.fixture(scope="session")
def files(model: Path) -> dict[str, bytes]:
    """A small model's files: configuration, tokenizer, preprocessing, `model.safetensors`."""
    return {path.name: path.read_bytes() for path in model.iterdir()}


def without_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != "model.safetensors"}
