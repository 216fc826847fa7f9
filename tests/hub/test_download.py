"""What is downloaded of a repository, at which commit, and what is read from the cache."""

import concurrent.futures
import logging
import re
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

import clipbias
from clipbias.clip import repository
from clipbias.clip.pins import PINS
from clipbias.errors import ClipbiasError
from tests.fuzz.answers import deadline
from tests.hub.conftest import without_weights
from tests.hub.server import Hub, Repository

OTHER = {"README.md": b"# A model", "pytorch_model.bin": b"never read", "tf_model.h5": b"never read"}


def test_one_weight_file_and_what_describes_it(hub: Hub, files: dict[str, bytes]) -> None:
    commit = Repository(files | OTHER)
    hub.repositories["someone/small"] = commit
    clip = clipbias.load("someone/small")
    assert (clip.name, clip.revision) == ("someone/small", commit.references["main"])
    assert hub.downloaded() == sorted(files)


def test_the_official_model_is_read_at_its_pinned_commit(hub: Hub, files: dict[str, bytes]) -> None:
    name = "openai/clip-vit-base-patch16"
    pin = PINS[name]
    hub.repositories[name] = Repository(files, pin.commit)
    hub.repositories[name].add(without_weights(files))  # main moved on since
    assert clipbias.load(f"hf-hub:{name}").revision == pin.commit
    assert f"GET /api/models/{name}/revision/{pin.commit}" in hub.requests


def test_revisions_of_all_kinds(hub: Hub, files: dict[str, bytes]) -> None:
    made = hub.repositories["someone/small"] = Repository(without_weights(files))
    commit = made.add(files, reference="refs/pr/1")
    for revision in (commit, "refs/pr/1"):
        clip = clipbias.load(f"someone/small@{revision}")
        assert (clip.name, clip.revision) == (f"someone/small@{revision}", commit)


def test_a_commit_in_the_cache_needs_no_network(hub: Hub, files: dict[str, bytes]) -> None:
    name = "openai/clip-vit-base-patch16"
    hub.repositories[name] = Repository(files, PINS[name].commit)
    first = clipbias.load(name)
    hub.requests.clear()
    again = clipbias.load(name)
    assert clipbias.load(f"{name}@{first.revision}").fingerprint == again.fingerprint == first.fingerprint
    assert hub.requests == []


def test_a_branch_that_was_seen_is_read_without_a_network(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repositories["someone/small"] = Repository(files)
    first = clipbias.load("someone/small")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING):
        assert clipbias.load("someone/small").revision == first.revision
    assert first.revision in caplog.text
    assert hub.requests == []


def test_a_hub_that_never_answers_is_not_waited_for(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["someone/small"] = Repository(files)
    first = clipbias.load("someone/small")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        with deadline():
            assert clipbias.load("someone/small").revision == first.revision
            with pytest.raises(ClipbiasError, match="cannot be reached"):
                clipbias.load("someone/other")


def test_a_bar_shows_how_far_a_download_is(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    hub.repositories["someone/small"] = Repository(files)
    monkeypatch.setenv("TQDM_POSITION", "-1")  # as on a terminal
    clipbias.load("someone/small")
    assert re.search(r"model\.safetensors: 100%", capsys.readouterr().err)


def test_a_branch_that_moved_is_followed(hub: Hub, files: dict[str, bytes]) -> None:
    made = hub.repositories["someone/small"] = Repository(files)
    first = clipbias.load("someone/small").revision
    second = made.add(files | {"README.md": b"new"})
    hub.sent.clear()
    assert clipbias.load("someone/small").revision == second != first
    assert hub.downloaded() == []  # the same blobs


def test_what_another_program_left_in_the_cache_is_completed(hub: Hub, files: dict[str, bytes]) -> None:
    from huggingface_hub import hf_hub_download

    made = hub.repositories["someone/small"] = Repository(files)
    hf_hub_download("someone/small", "model.safetensors")
    hf_hub_download("someone/small", "config.json")
    hub.sent.clear()
    assert clipbias.load(f"someone/small@{made.references['main']}").revision
    assert "model.safetensors" not in hub.downloaded()


def test_the_cache_is_laid_out_as_the_hubs_own_client_does(hub: Hub, files: dict[str, bytes]) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir

    hub.repositories["someone/small"] = Repository(files)
    clipbias.load("someone/small")
    hub.requests.clear()
    path = Path(hf_hub_download("someone/small", "model.safetensors", local_files_only=True))
    assert path.read_bytes() == files["model.safetensors"]
    scanned = scan_cache_dir(constants.HF_HUB_CACHE)
    assert not scanned.warnings
    (repository,) = scanned.repos
    assert repository.refs.keys() == {"main"}


def test_who_starts_together_downloads_once(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repositories["someone/small"] = Repository(files)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(repository.find, ["someone/small"] * 4))
    assert len(set(found)) == 1
    assert hub.sent["someone/small/model.safetensors"] == len(files["model.safetensors"])
