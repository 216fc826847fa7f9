"""What is downloaded of a repository, at which commit, what is read from the cache, and errors as a sentence."""

import errno
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.cli.hf import main as hf

import clipbias
from clipbias.clip.hub import PINS
from clipbias.clip.tables import FLAX, to_tensors
from clipbias.errors import ClipbiasError
from clipbias.tuning.adapter import read_adapter
from configs import train as train_config
from experiments import common, train
from experiments.inputs import find_adapter
from tests import helpers
from tests.data import miniatures
from tests.hub.conftest import without_weights
from tests.hub.server import LARGE, Repository
from tests.reference.formats import FORMATS

# The hub's own client says so to itself.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

DEFAULT = train_config.get_config().model
OTHER = {"README.md": b"# A model", "pytorch_model.bin": b"never read", "tf_model.h5": b"never read"}


def refusal(source: str) -> str:
    with pytest.raises(ClipbiasError) as refused:
        clipbias.load(source)
    message = str(refused.value)
    assert "\n" not in message and message.endswith(".")
    return message


def run_hf(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command line of the hub's own program in this process."""
    words = shlex.split(line)
    assert words[0] == "hf"
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_UPDATE_CHECK", True, raising=False)
    with pytest.raises(SystemExit) as ended:
        hf()
    assert ended.value.code in (None, 0)


def test_one_weight_file_and_what_describes_it(hub, files, monkeypatch):
    made = hub.repositories["someone/small"] = Repository(files | OTHER)
    first = clipbias.load("someone/small")
    assert (first.name, first.revision) == ("someone/small", made.references["main"])
    assert hub.downloaded() == sorted(files)
    (cached,) = scan_cache_dir(constants.HF_HUB_CACHE).repos  # as the hub's own client lays it out
    assert cached.refs.keys() == {"main"}
    hub.sent.clear()
    second = made.add(files | {"README.md": b"new"})  # a branch that moved is followed; its blobs are the same
    assert clipbias.load("someone/small").revision == second != first.revision
    assert hub.downloaded() == []
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert clipbias.load("someone/small").revision == second
    assert hub.requests == []


def test_official_models_are_read_at_their_pinned_commits(hub, files):
    for name, pin in PINS.items():
        hub.repositories[name] = Repository(files, pin.commit)
        hub.repositories[name].add(without_weights(files))  # main moved on since
        first = clipbias.load(f"hf-hub:{name}")
        assert (first.name, first.revision) == (name, pin.commit)
        hub.requests.clear()
        for source in (name, pin.openai, f"{name}@{pin.commit}"):  # in the cache: no network is needed
            again = clipbias.load(source)
            assert (again.fingerprint, again.revision) == (first.fingerprint, first.revision)
        assert clipbias.load(pin.openai).name == name
        assert hub.requests == []


def test_revisions_of_all_kinds(hub, files):
    made = hub.repositories["someone/small"] = Repository(without_weights(files))
    commit = made.add(files, reference="refs/pr/1")
    for revision in (commit, "refs/pr/1"):
        clip = clipbias.load(f"someone/small@{revision}")
        assert (clip.name, clip.revision) == (f"someone/small@{revision}", commit)
    assert "no revision 'v2'" in refusal("someone/small@v2")


def test_a_download_that_breaks_off_is_made_again(hub, files):
    hub.repositories["someone/small"] = Repository(files)
    hub.break_at["small/model.safetensors"] = len(files["model.safetensors"]) // 2
    assert "try again" in refusal("someone/small")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    clipbias.load("someone/small")


def test_no_such_repository_and_one_that_is_closed(hub, files, monkeypatch):
    hub.repositories["someone/gated"] = hub.repositories["someone/private"] = Repository(files)
    hub.gated.add("someone/gated")
    hub.private.add("someone/private")
    nothing = refusal("someone/nothing")
    assert "no folder 'someone/nothing' here, and the Hugging Face hub has no repository of that name" in nothing
    assert f"accept them at {hub.endpoint}/someone/gated" in refusal("someone/gated")
    for message in (nothing, refusal("someone/gated"), refusal("someone/private")):
        (hint,) = re.findall(r"`(hf .*?)`", message)
        run_hf(f"{hint} --help", monkeypatch)
    Path(constants.HF_TOKEN_PATH).write_text("hf_token")
    assert clipbias.load("someone/private").revision


def test_a_cache_that_cannot_be_written(hub, files, monkeypatch):
    def full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hub.repositories["someone/small"] = Repository(files)
    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.file_download.http_get", full)
        assert re.search(r"cannot write .*No space left.*HF_HUB_CACHE", refusal("someone/small"))
    clipbias.load("someone/small")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/none")
    assert "cache" in refusal("someone/small")


def test_offline_without_a_cache(hub, monkeypatch, capsys):
    """The command that is printed downloads, where there is a network, what is then read as a folder."""
    files = {path.name: path.read_bytes() for path in (FORMATS / "flax").iterdir()}
    hub.repositories[DEFAULT] = Repository(files | {"tf_model.h5": b"", "pytorch_model.bin": b""}, PINS[DEFAULT].commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal("ViT-B/16")
    assert "not complete in the local cache" in message
    (hint,) = re.findall(r"`(hf download .*?)`", message)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    run_hf(hint, monkeypatch)
    (folder,) = re.findall(r"/\S+", capsys.readouterr().out)
    assert clipbias.load(folder).fingerprint == clipbias.load(FORMATS / "flax").fingerprint
    assert not {"tf_model.h5", "pytorch_model.bin"} & {*hub.downloaded()}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    for revision in ("main", "0" * 40):
        assert "cannot be downloaded from http://127.0.0.1:9" in refusal(f"someone/small@{revision}")


@pytest.mark.ci
def test_the_readmes_training_on_a_machine_with_an_empty_cache(hub, tmp_path, capsys):
    """The default model's repository as it is on the hub: Flax and torch on `main`, no safetensors."""
    helpers.tiny_checkpoint(tmp_path / "made", context_length=77)
    clip = clipbias.load(tmp_path / "made")
    tensors = to_tensors(clip.config, clip.params, FLAX)
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir() if path.name != "model.safetensors"}
    files["flax_model.msgpack"] = msgpack_serialize(unflatten_dict(tensors, sep="/"))
    commit = PINS[DEFAULT].commit
    hub.repositories[DEFAULT] = Repository(OTHER | files, commit)
    config = train_config.get_config("taskres")
    miniatures.make(tmp_path / "data", "eurosat")
    config.update(data_dir=str(tmp_path / "data"), dataset="eurosat", shots=1, epochs=1, batch_size=4)
    config.mesh.data = 1
    workdir = tmp_path / "run"
    assert common.answer(train.main, config, str(workdir)) == 0, capsys.readouterr().err
    assert [name for name in hub.downloaded() if name.endswith(LARGE)] == ["flax_model.msgpack"]
    model = json.loads((workdir / "environment.json").read_text())["model"]
    assert (model["name"], model["revision"]) == (DEFAULT, commit)
    adapter = read_adapter(workdir / "adapter.safetensors")
    base = clipbias.load(adapter.base)
    assert (adapter.base, adapter.weights) == (f"{DEFAULT}@{commit}", base.fingerprint)
    assert model["identity"] == adapter.bind(base).clip.identity
    place = clipbias.push_to_hub("me/eurosat-taskres", clipbias.load_adapter(workdir / "adapter.safetensors"))
    hub.sent.clear()
    again, _ = find_adapter(place)  # as all binaries find what `--config.adapters=` names
    again.bind(clipbias.load(again.base))
    assert hub.downloaded() == ["adapter.safetensors"]
