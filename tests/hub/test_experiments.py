"""The commands of the README with their default model, on a machine whose cache is empty."""

import json

import pytest

import clipbias
from clipbias.clip.hub import PINS
from clipbias.tuning.adapter import read_adapter
from configs import train as train_config
from experiments import common, train
from experiments.inputs import find_adapter
from tests import helpers
from tests.data import miniatures
from tests.hub.server import LARGE, Hub, Repository

# The hub's own client says so to itself.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

DEFAULT = train_config.get_config().model


@pytest.fixture
def official(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """The default model's repository as it is on the hub: Flax and torch on `main`, no safetensors."""
    folder = tmp_path_factory.mktemp("official")
    helpers.tiny_checkpoint(
        folder / "made", context_length=77
    )  # class names are long: "2012 Ram C/V Cargo Van Minivan"
    clipbias.load(folder / "made").save(folder / "flax", format="flax")
    files = {path.name: path.read_bytes() for path in (folder / "flax").iterdir()}
    unread = dict.fromkeys((".gitattributes", "README.md", "pytorch_model.bin"), b"never read")
    hub.repositories[DEFAULT] = Repository(unread | files, PINS[DEFAULT].commit)
    return hub


def weights(hub: Hub) -> list[str]:
    return [name for name in hub.downloaded() if name.endswith(LARGE)]


@pytest.mark.ci
def test_training(official, tmp_path, capsys):
    config = train_config.get_config("taskres")
    miniatures.make(tmp_path / "data", "eurosat")
    config.update(data_dir=str(tmp_path / "data"), dataset="eurosat", shots=1, epochs=1, batch_size=4)
    config.mesh.data = 1
    workdir = tmp_path / "run"
    assert common.answer(train.main, config, str(workdir)) == 0, capsys.readouterr().err
    assert weights(official) == ["flax_model.msgpack"]
    model = json.loads((workdir / "environment.json").read_text())["model"]
    commit = PINS[DEFAULT].commit
    assert (model["name"], model["revision"]) == (DEFAULT, commit)
    adapter = read_adapter(workdir / "adapter.safetensors")
    assert (adapter.base, adapter.base_fingerprint) == (f"{DEFAULT}@{commit}", model["fingerprint"])
    place = clipbias.push_to_hub("me/eurosat-taskres", clipbias.load_adapter(workdir / "adapter.safetensors"))
    official.sent.clear()
    again, _ = find_adapter(place)  # as all binaries find what `--config.adapters=` names
    again.task(clipbias.load(again.base))
    assert official.downloaded() == ["adapter.safetensors"]
