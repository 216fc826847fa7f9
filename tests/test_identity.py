"""Identities: what changes a prediction changes them, what does not leaves them, and files give back the same model."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

import clipbias
from clipbias import data
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.identity import counted_by, identity, no_effect, parts
from clipbias.training import placement
from clipbias.training.context import SweepContext
from clipbias.training.device import Compute
from clipbias.training.sweep import SweepAxes, make_specs
from clipbias.tuning import Descriptions, Recipe, registry
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.method import Method
from clipbias.tuning.methods.taskres import TaskRes
from clipbias.tuning.registry import source_digest
from clipbias.tuning.tuned import Tuned

NAMES = ("cat", "dog", "maine_coon")
TEXTS = {"cat": ["a cat"], "dog": ["a dog", "a bird"], "maine_coon": ["golden"]}


def moved(task: clipbias.Task, seed: int = 0) -> dict[str, Any]:
    """Learnables that are not the start."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x) + rng.normal(0, 0.1, np.shape(x)).astype(np.float32), task.init(0))


@dataclasses.dataclass(frozen=True)
class Value:
    number: Any = 1
    name: str = dataclasses.field(default="a", metadata=no_effect("it is a name"))
    words: str = dataclasses.field(default="A b", metadata=counted_by(lambda value: value.words.lower()))


def test_an_identity_walks_all_fields_but_those_that_are_marked():
    value = Value()
    same = (Value(1.0), Value(name="b"), Value(words="a B"), Value(np.int64(1)))
    other = (Value(2), Value(True), Value(None), Value("1"), Value([1]), Value(1.5), Value({"1": 1}), Value(words="c"))
    assert {identity(each) for each in same} == {identity(value)}
    assert len({identity(each) for each in (value, *other)}) == 1 + len(other)
    assert parts(value).keys() == {"number", "words"} and parts(value)["number"] != parts(Value(2))["number"]
    with pytest.raises(TypeError, match="a function has no identity"):
        identity(Value(lambda: None))


def test_values_that_could_be_read_alike_are_told_apart():
    values: list[Any] = [["ab", "c"], ["a", "bc"], ["abc"], "abc", b"abc", [["abc"]], {"abc": ""}, {"a": "bc"}]
    arrays = [np.zeros(4), np.zeros(4, "f4"), np.zeros((2, 2)), np.ones(4), np.zeros(4).tolist()]
    found = [identity(value) for value in [*values, *arrays]]
    assert len(set(found)) == len(found)
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1}) and identity((1, 2)) == identity([1, 2])


def test_a_task_keeps_the_texts_that_it_was_given(clip: Clip):
    texts = {name: [*each] for name, each in TEXTS.items()}
    described = clipbias.Task(clip, "zero_shot", NAMES, descriptions=texts)
    known = described.identity, clipbias.Task(clip, "zero_shot", NAMES, descriptions=TEXTS).identity
    texts["cat"].append("a golden cat")
    assert described.with_method(described.method).identity == known[0] == known[1]


def test_learnables_that_are_replaced_make_another_model(clip: Clip):
    task = clipbias.Task(clip, "bias", NAMES)
    model = clipbias.TunedModel(task, moved(task))
    before = model.identity
    model.learnables["text_bias"] = moved(task, 5)["text_bias"] * 30
    assert model.identity != before


@pytest.fixture
def colours_like() -> data.Dataset:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (24, 20, 20, 3)).astype(np.uint8)
    return data.from_arrays(pictures, ["cat", "dog", "bird"] * 8)


def test_a_run_is_another_where_anything_that_it_computes_with_is(clip: Clip, colours_like: data.Dataset):
    """Another preprocessing, activation or compute type, and other texts of a dataset that is only tested on."""
    target = dataclasses.replace(colours_like, name="target")
    axes = SweepAxes(("taskres",), ("own pictures",), (1,), (1,), protocol="cross_dataset", targets=("target",))

    def key(clip: Clip, target: data.Dataset, **options: Any) -> str:
        opened = {"own pictures": colours_like, "target": target}
        context = SweepContext(clip, opened, Compute(), placement.single_device(), **options)
        (spec,) = make_specs(context, Recipe(), axes)
        return spec.key

    darker = dataclasses.replace(clip.preprocessing, mean=(0.1, 0.1, 0.1))
    text = dataclasses.replace(clip.config.text, activation="gelu")
    described = {name: ["a " + name] for name in target.class_names}
    keys = {
        key(clip, target),
        key(dataclasses.replace(clip, preprocessing=darker), target),
        key(dataclasses.replace(clip, config=dataclasses.replace(clip.config, text=text)), target),
        key(clip, target, dtype="bfloat16"),
        key(clip, dataclasses.replace(target, template="the {}.")),
        key(clip, dataclasses.replace(target, descriptions=Descriptions(described))),
        key(clip, dataclasses.replace(target, descriptions=Descriptions(described | {"cat": ["the cat"]}))),
    }
    assert len(keys) == 7 and key(dataclasses.replace(clip, name="elsewhere"), target) in keys


@pytest.mark.filterwarnings("ignore:the tuned model is no better", "ignore:alpha is")
def test_seeds_of_one_training_are_known_by_all_that_they_share(clip: Clip, colours_like: data.Dataset):
    """Not by a name: pictures that are called alike, and another template, are other trainings."""

    def training(dataset: data.Dataset, **options: Any) -> str:
        model = clipbias.fit(clip, "tip_adapter", dataset, shots=1, calibrate=False, progress=False, **options)
        return model.notes["training"]

    pictures = np.random.default_rng(1).integers(0, 256, (24, 20, 20, 3)).astype(np.uint8)
    others = data.from_arrays(pictures, ["cat", "dog", "bird"] * 8)
    first = training(colours_like, seed=1)
    assert first == training(colours_like, seed=2) == training(colours_like, seed=1, start_seed=4)
    with pytest.warns(UserWarning, match=r"alpha is .*, the best on the validation images, and not 7 as given"):
        training(colours_like, alpha=7.0)
    different = [training(others), training(colours_like, template="the {}."), training(colours_like, alpha=3.0)]
    assert len({first, *different}) == 4


def test_a_model_that_lost_a_class_is_no_seed_of_its_training(clip: Clip):
    """Nor is an equivalent bias that was measured on other images."""
    notes = {"training": "x", "seed": 1}
    for method, keeps in (("taskres", False), ("bias", True)):
        task = clipbias.Task(clip, method, NAMES)
        model = clipbias.TunedModel(task, moved(task), notes)
        lost = model.with_classes(NAMES[:2]).with_classes(NAMES)
        assert (lost.notes["training"] == "x") is keeps and (lost.identity == model.identity) is keeps
        assert model.with_classes(NAMES[::-1]).notes["training"] == "x"
    pictures = np.random.default_rng(1).integers(0, 256, (2, 20, 20, 3)).astype(np.uint8)
    trainings = [clipbias.equivalent_bias(model, each).notes["training"] for each in (pictures, pictures[:1])]
    assert trainings[0] != trainings[1] == clipbias.equivalent_bias(model, list(pictures[:1])).notes["training"]


PROGRAM = """
import dataclasses
from helper_of_it import SCALE
from clipbias.tuning.methods.taskres import TaskRes

@dataclasses.dataclass(frozen=True)
class Own(TaskRes):
    presets = {}
    # FACTOR
"""


def new_process() -> None:
    """As a later process, which has imported nothing yet."""
    source_digest.cache_clear()
    registry._program.cache_clear()
    registry._SOURCES.clear()
    sys.modules.pop("helper_of_it")


def test_the_program_of_a_user_s_method_counts_with_what_it_imports(clip: Clip, tmp_path: Path, monkeypatch):
    """As it was loaded: a file that is edited later is not what runs."""
    monkeypatch.syspath_prepend(tmp_path)
    program, helper = tmp_path / "own.py", tmp_path / "helper_of_it.py"
    helper.write_text("SCALE = 1\n")
    program.write_text(PROGRAM)
    first = clipbias.Task(clip, str(program), NAMES)
    program.write_text(PROGRAM.replace("FACTOR", "other"))
    assert clipbias.Task(clip, first.method, NAMES).identity == first.identity
    second = clipbias.Task(clip, str(program), NAMES)
    assert second.identity != first.identity
    helper.write_text("SCALE = 2\n")
    with pytest.warns(UserWarning, match=r"helper_of_it\.py, of the program of .*own\.py, was changed after"):
        assert clipbias.Task(clip, str(program), NAMES).identity == second.identity
    # The file runs again, the module that it imports does not.
    program.write_text(PROGRAM.replace("FACTOR", "FACTOR = 1"))
    with pytest.warns(UserWarning, match="runs as it was"):
        mixed = clipbias.Task(clip, str(program), NAMES)
    write_adapter(tmp_path / "mixed.safetensors", Tuned(mixed, mixed.init()))
    new_process()
    with pytest.warns(UserWarning, match=r"own\.py or a module that it imports was changed since this adapter"):
        read_adapter(tmp_path / "mixed.safetensors").bind(clip, own_methods=[str(program)])
    third = clipbias.Task(clip, str(program), NAMES)
    assert third.identity not in (first.identity, second.identity)
    logits = np.random.default_rng(0).normal(size=(30, len(NAMES)))
    scores = Calibration.of(logits, np.arange(30) % len(NAMES), 1.0)
    write_adapter(tmp_path / "a.safetensors", Tuned(third, third.init(), calibration=scores))
    assert read_adapter(tmp_path / "a.safetensors").bind(clip, own_methods=[str(program)]).calibration is not None
    helper.write_text("SCALE = 3\n")
    new_process()
    with pytest.warns(UserWarning, match=r"own\.py or a module that it imports was changed since this adapter"):
        bound = read_adapter(tmp_path / "a.safetensors").bind(clip, own_methods=[str(program)])
    assert bound.calibration is None  # its scores are of the program that was
    assert source_digest(type(clipbias.Task(clip, "bias", NAMES).method)) is None


@pytest.mark.parametrize("of_a_function", [False, True])
def test_a_class_that_was_typed_in_again_is_another_method(of_a_function: bool, clip: Clip):
    """Its name, module and fields stay, and no file has what changed."""

    def method(scale: float) -> Method:
        class Made(TaskRes):
            factor = scale

        lines = PROGRAM.replace("from helper_of_it import SCALE\n", "").replace("# FACTOR", f"factor = {scale}")
        names: dict[str, Any] = {"__name__": __name__}
        exec(lines, names)
        return Made() if of_a_function else names["Own"]()

    first, second = (clipbias.Task(clip, method(scale), NAMES) for scale in (1.0, 2.0))
    assert first.identity != second.identity
    assert clipbias.Task(clip, first.method, NAMES).identity == first.identity


def test_scores_are_not_told_of_other_classes(clip: Clip, tmp_path: Path):
    task = clipbias.Task(clip, "bias", NAMES)
    scored = {"dataset": "pets", "seed": 1, "accuracy": 67.86, "images": 1120, "training": "x"}
    model = clipbias.TunedModel(task, moved(task), scored)
    assert model.with_classes(("cat", "dog", "maine coon")).notes == scored
    other = model.with_classes(["golden", "bird"])
    assert other.notes == {"dataset": "pets", "seed": 1, "training": "x", "training_classes": 3}
    other.export(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "67.86" not in card and "| dataset | pets, 3 classes |" in card
    assert json.dumps(read_adapter(tmp_path / "out").notes) == json.dumps(other.notes)


@pytest.mark.parametrize("field", ["config", "learnables"])
def test_an_adapter_that_was_changed_by_hand_is_refused(clip: Clip, tmp_path: Path, field: str):
    """What fits and would predict otherwise, such as another number of heads."""
    path = tmp_path / "a.safetensors"
    task = clipbias.Task(clip, "coop", NAMES)
    write_adapter(path, Tuned(task, moved(task)))
    with safetensors.safe_open(path, "numpy") as file:
        header, tensors = json.loads(file.metadata()["clipbias"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if field == "config":
        header["config"]["vision"]["heads"] = 1
    else:
        tensors["text_context"][0] += 1
    save_file(tensors, path, metadata={"clipbias": json.dumps(header)})
    with pytest.raises(ClipbiasError, match="the adapter is not as it was written; save the model again"):
        read_adapter(path).bind(clip)
