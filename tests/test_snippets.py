"""Every block of Python of the pages runs as it stands, from the top of its page to the end, without a warning.

`end_to_end/test_wheel.py` runs the README's, and `test_commands.py` the commands.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import clipbias
from clipbias import TunedModel, app
from clipbias.clip import Clip
from tests.clip.test_formats import FILE
from tests.documents import PAGES, blocks, files
from tests.hub import conftest as hubs
from tests.hub.server import Hub

pytestmark = pytest.mark.ci

hub = hubs.hub


@pytest.fixture(scope="module")
def demo() -> Clip:
    return clipbias.load("demo")


@pytest.fixture
def folder(demo: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the adapters that the README's commands write there, untrained."""
    names = clipbias.data.load("demo/fashion").class_names
    adapters = tmp_path / "workdir" / "demo" / "adapters"
    places = {method: adapters / f"{method}-demo_fashion-16shots-seed1.safetensors" for method in ("ivlp", "bias")}
    for method, path in {**places, "bias ": tmp_path / "bias.safetensors"}.items():
        task = clipbias.Task(demo, method.strip(), names)
        TunedModel(task, task.init()).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers_are_sensible(names: dict) -> None:
    before, after = (names[each].evaluate(names["unseen"], names["truth"]) for each in ("zero_shot", "model"))
    assert after.accuracy > before.accuracy + 10
    assert names["logits"].shape == (2, 3) and names["maps"].vision.shape == (2, 36)


def sets_are_there(names: dict) -> None:
    assert len(names["prediction"].sets) == 1 and names["prediction"].rejected.shape == (1,)
    assert names["model"].calibration is not None and len(names["model"].calibration) == 200


def flax_module_is_the_model(names: dict) -> None:
    np.testing.assert_allclose(names["features"], names["clip"].encode_images(names["pictures"]), atol=1e-5)
    assert float(names["loss"]) > 0
    for tree in (names["prompted"] - names["features"], names["learned"]):
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))


def own_method_is_loaded(names: dict) -> None:
    assert names["again"].task.options() == {"rank": 2}


def the_student_is_written(names: dict) -> None:
    assert names["distilled"].sentences and (Path("workdir/distilled/python") / "config.json").is_file()


def other_classes_are_predicted(names: dict) -> None:
    prediction = names["shapes"].predict(np.zeros((1, 48, 48, 3), np.uint8))
    assert prediction.class_names == ("circle", "square", "star")


def the_space_has_its_model(names: dict) -> None:
    assert names["page"].models["bias"].clip is names["clip"]


# Checks of the names that a page's blocks leave.
CHECKS: dict[str, Callable[[dict], None]] = {
    "answers.md": sets_are_there,
    "app.md": the_space_has_its_model,
    "distil.md": the_student_is_written,
    "export.md": other_classes_are_predicted,
    "methods.md": own_method_is_loaded,
    "models.md": flax_module_is_the_model,
    "python.md": numbers_are_sensible,
}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client to itself
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs_as_it_stands(page: Path, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "build", lambda bench: bench)  # gradio need not be there
    own_files = {code: name for name, code in files(page).items()}
    names: dict = {}
    for code in blocks(page, "python"):
        name = own_files.get(code, "")
        if name:
            (folder / name).write_text(code, encoding="utf-8")
        # A published model, as it would be downloaded: here the smallest in the format that the page is about.
        names["__name__"] = name.removesuffix(".py") or "page"
        exec(code.replace('load("openai/clip-vit-base-patch16")', f"load({str(FILE.parent)!r})"), names)
    CHECKS.get(page.name, lambda names: None)(names)
    assert set(hub.repositories) == ({"you/fashion-bias"} if page.name == "models.md" else set())


def test_every_check_is_of_a_page_with_python() -> None:
    assert CHECKS.keys() <= {page.name for page in PAGES if blocks(page, "python")}
