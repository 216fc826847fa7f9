"""`clipbias.fit` and what it returns: the numbers of `clipbias train`, from datasets, arrays and files."""

import copy
import dataclasses
import re
import shutil
import warnings
from typing import Any

import jax
import numpy as np
import pytest

import clipbias
from clipbias import TunedModel
from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.data.images import Images, Workers, check_readable
from clipbias.errors import ClipbiasError, ClipbiasWarning, UnreadableImage
from clipbias.prediction import Prediction
from clipbias.training import loop, placement
from clipbias.training.spec import VALIDATION
from clipbias.training.step import train_step
from clipbias.tuning import Recipe
from tests.data.pictures import write
from tests.training.conftest import TinySweep, damaged

# A few steps are no reason to be better than zero-shot.
pytestmark = pytest.mark.filterwarnings("ignore:the (tuned model|training loss)")

OPTIONS: dict[str, dict[str, Any]] = {"bias": {}, "clap": {"recipe": "common"}}


def pictures(dataset: Dataset, name: str) -> tuple[list[np.ndarray], np.ndarray]:
    split = dataset.split(name)
    return [split.image(index) for index in range(len(split))], split.labels


@pytest.fixture(scope="module")
def fitted(clip: Clip, colours: Dataset, recipe: Recipe) -> dict[str, TunedModel]:
    """What `fit` learns of a few images of the dataset. Settings take precedence over the recipe's."""
    settings: dict[str, Any] = dict(shots=2, seed=3, progress=False, mesh=placement.single_device())
    settings["recipe"] = dataclasses.replace(recipe, learning_rate=1.0, epochs=1, batch_size=1)
    settings |= {name: getattr(recipe, name) for name in ("learning_rate", "epochs", "batch_size")}
    return {method: clipbias.fit(clip, method, colours, **settings) for method in OPTIONS}


def test_it_learns_what_the_driver_learns(clip, colours, recipe, fitted, tmp_path):
    tiny = TinySweep(clip, colours, recipe, tmp_path, options=OPTIONS)
    specs = tiny.specs(*OPTIONS, seeds=(3,))
    assert [row["status"] for row in tiny.run(specs)] == ["ok"] * 2
    for spec in specs:
        model = fitted[spec.method]
        adapter = tiny.adapter(spec)
        jax.tree.map(np.testing.assert_array_equal, model.learnables, dict(adapter.learnables))
        assert model.task.options() == adapter.options
        assert model.notes.keys() - {"warnings"} == {
            *("seed", "shots", "dataset", "learning_rate", "recipe", "train_images", "images_per_class"),
            *("data", "training", "protocol", "validation"),
        }
        own = {"warnings", "training"}  # a row names its training with those that are tested
        assert all(adapter.notes[name] == value for name, value in model.notes.items() if name not in own)
    assert float(np.abs(fitted["bias"].learnables["vision_bias"]).max()) > 0


@pytest.mark.ci
def test_arrays_with_names_for_labels_are_a_dataset_too(clip, colours, recipe, capsys):
    images, labels = pictures(colours, "train")
    settings: dict[str, Any] = dict(recipe=recipe, mesh=placement.single_device(), template=colours.template)
    names = [colours.class_names[label] for label in labels]
    model = clipbias.fit(clip, "bias", images, names, class_names=colours.class_names, **settings)
    assert "bias on own images: training 9/9" in capsys.readouterr().err
    expected = clipbias.fit(clip, "bias", colours.split("train"), class_names=colours, progress=False, **settings)
    jax.tree.map(np.testing.assert_array_equal, model.learnables, expected.learnables)
    assert expected.class_names == colours.class_names and expected.notes["seed"] == 1
    # Without a list of the classes they are the names of the labels; a model may be named.
    alone = clipbias.fit(clip.name, "zero_shot", images, names)
    assert alone.class_names == tuple(sorted(colours.class_names)) and alone.clip.fingerprint == clip.fingerprint


@pytest.mark.ci
def test_a_method_is_a_name_an_object_or_a_file(clip, colours, recipe, fitted):
    settings: dict[str, Any] = dict(shots=2, seed=3, progress=False, mesh=placement.single_device(), recipe=recipe)
    bias = clipbias.fit(clip, fitted["bias"].task.method, colours, **settings)
    jax.tree.map(np.testing.assert_array_equal, bias.learnables, fitted["bias"].learnables)
    assert clipbias.fit(clip, "zero_shot", class_names=("cat", "dog")).task.texts[0] == "a photo of a cat."
    vision = clipbias.fit(clip, "bias", colours, text_tower=False, **settings)
    assert vision.learnables.keys() == {"vision_bias"}
    probe = clipbias.fit(clip, "tests.own_methods:Probe", colours, **settings)
    assert probe.task.method_name == "tests.own_methods:Probe"
    with pytest.warns(UserWarning, match="gda learns without steps .* does not use recipe"):
        clipbias.fit(clip, "gda", colours, **settings)


def test_learning_rates_share_a_program(clip: Clip, colours: Dataset, recipe: Recipe) -> None:
    programs = set()
    for rate in (0.1, 0.2):
        of_rate = dataclasses.replace(recipe, learning_rate=rate)
        clipbias.fit(clip, "bias", colours, shots=2, recipe=of_rate, progress=False, mesh=placement.single_device())
        programs.add(train_step._cache_size())
    assert len(programs) == 1


def test_settings_are_a_methods_own_where_it_has_them(clip: Clip, colours: Dataset) -> None:
    """Which a method that trains by a recipe of its authors would not see otherwise."""
    common: dict[str, Any] = dict(shots=2, progress=False, mesh=placement.single_device(), learning_rate=0.01)
    assert clipbias.fit(clip, "tip_adapter_f", colours, epochs=1, **common).task.options()["epochs"] == 1
    assert clipbias.fit(clip, "clap", colours, epochs=1, recipe="common", **common).task.options()["recipe"] == "common"


def test_texts_that_a_method_does_not_read_are_said(clip: Clip, colours: Dataset) -> None:
    texts = {name: [f"some {name} paint"] for name in colours.class_names}
    for given, words in (({"template": "the {}."}, "the template"), ({"descriptions": texts}, "the descriptions")):
        with pytest.warns(ClipbiasWarning, match=f"bias has a text of its own, .* does not read {words}; only zero"):
            clipbias.fit(clip, "bias", colours, shots=2, progress=False, epochs=1, learning_rate=0.01, **given)
        with warnings.catch_warnings(record=True) as silent:
            clipbias.fit(clip, "zero_shot", class_names=colours, **given)
        assert not any("does not read" in str(each.message) for each in silent)


def test_tensors_are_arrays(clip, colours, fitted):
    torch = pytest.importorskip("torch")
    images, labels = pictures(colours, "test")
    array = np.stack(images)
    expected = fitted["bias"].predict(array).probabilities
    np.testing.assert_array_equal(fitted["bias"].predict(torch.from_numpy(array)).probabilities, expected)
    np.testing.assert_array_equal(fitted["bias"].predict([*torch.from_numpy(array)]).probabilities, expected)
    np.testing.assert_array_equal(fitted["bias"].predict(jax.numpy.asarray(array)).probabilities, expected)
    levels = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)  # said to be normalised
    logits = jax.jit(fitted["bias"].task.logits)(clip.params, fitted["bias"].learnables, levels)
    said = fitted["bias"].predict(levels, normalised=True).probabilities
    np.testing.assert_allclose(said, jax.nn.softmax(logits), atol=1e-5)
    ready = torch.from_numpy(clip.preprocess(images).copy()).requires_grad_()
    np.testing.assert_allclose(fitted["bias"].predict(ready).probabilities, expected, atol=1e-5)
    settings: dict[str, Any] = dict(mesh=placement.single_device())
    accuracy = fitted["bias"].evaluate(torch.from_numpy(array), torch.from_numpy(labels.copy()), **settings)
    assert accuracy.accuracy == fitted["bias"].evaluate(colours, **settings).accuracy


def test_accuracy_counts_what_is_taken_for_what(clip, colours, fitted):
    model = fitted["bias"]
    images, labels = pictures(colours, "test")
    predicted = model.predict(images, batch_size=4).labels
    accuracy = model.evaluate(colours, mesh=placement.single_device(), batch_size=8)
    np.testing.assert_array_equal(accuracy.predicted, predicted)
    expected = np.zeros((3, 3), int)
    for label, guess in zip(labels, predicted, strict=True):
        expected[label, guess] += 1
    np.testing.assert_array_equal(accuracy.confusion, expected)
    assert accuracy.accuracy == pytest.approx(100 * np.trace(expected) / 15)
    np.testing.assert_allclose(accuracy.per_class, [100 * expected[c, c] / 5 for c in range(3)])
    of_jax = jax.make_mesh((1, 1), ("run", "data"), devices=jax.devices()[:1])
    same = model.evaluate(images, labels, mesh=of_jax, batch_size=8)
    np.testing.assert_array_equal(same.confusion, expected)
    none = dataclasses.replace(accuracy, labels=accuracy.labels[:5], predicted=accuracy.predicted[:5])
    assert np.isnan(none.per_class[1:]).all() and not np.isnan(none.per_class[0])


def test_a_result_says_which_number_is_which_class(clip):
    model = clipbias.fit(clip, "zero_shot", class_names=("cat", "dog"))
    image = np.zeros((1, 16, 16, 3), np.uint8)
    other = 1 - int(model.predict(image).labels[0])
    images, numbers = np.repeat(image, 40, axis=0), np.full(40, other)
    order = "labels by number: 0 is cat, 1 is dog"
    settings: dict[str, Any] = dict(mesh=placement.single_device())
    assert repr(model.evaluate(images, numbers, **settings)).endswith(
        f"{order}; fewer are right than by chance, so check this order"
    )
    assert repr(model.evaluate(images, iter(1 - numbers), **settings)).endswith(order)
    assert "number" not in repr(model.evaluate(images, ["cat"] * 40, **settings))


def test_names_of_other_libraries_say_which_call_does_it(clip):
    model = clipbias.fit(clip, "zero_shot", class_names=("cat", "dog"))
    for name, call in {
        "score": "model.evaluate(images, labels).accuracy",
        "predict_proba": "model.predict(pictures).probabilities",
        "classes_": "model.class_names",
        "fit": "clipbias.fit(clip, method, images, labels)",
        "save_pretrained": "model.save(file)",
        "from_pretrained": "clipbias.load_adapter(path)",
        "push_to_hub": "clipbias.push_to_hub(repository, model)",
    }.items():
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=re.escape(f"a tuned model has no {name!r}; take {call}")):
            getattr(model, name)
    with pytest.raises(AttributeError, match="'TunedModel' object has no attribute 'other'") as error:
        model.other  # noqa: B018
    assert error.value.name == "other" and copy.copy(model).class_names == model.class_names


@pytest.mark.filterwarnings("ignore:(there are no validation|1 held-out|2 held-out)")
def test_a_class_without_images_and_a_picture_in_two_classes_are_said(clip, tmp_path):
    paths = [write(tmp_path / f"{number}.png", number) for number in range(4)]
    copied = shutil.copy(paths[0], tmp_path / "copy.png")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"not found")  # two files that cannot be read are not a picture in two classes
    images, labels = (
        [*paths, copied, tmp_path / "a.png", tmp_path / "b.png"],
        ["cat", "dog", "cat", "dog", "dog", "cat", "dog"],
    )
    settings: dict[str, Any] = dict(progress=False, mesh=placement.single_device(), on_image_error="skip")
    twice = f"the same picture is in two classes: {paths[0]} (cat) and {copied} (dog); leave out all but one."
    with pytest.warns(ClipbiasWarning) as warned:
        clipbias.fit(clip, "gda", images, labels, **settings)
    assert [str(each.message) for each in warned].count(twice) == 1
    assert [each.filename for each in warned if str(each.message) == twice] == [__file__]
    with warnings.catch_warnings(record=True) as silent:
        clipbias.fit(clip, "gda", images, ["cat", "dog", "cat", "dog", "cat", "cat", "dog"], **settings)
    assert not any("the same picture" in str(each.message) for each in silent)
    empty = "own images: there is no training image of horse; add some, or leave such classes out."
    for method, more in {"coop": {"epochs": 1, "learning_rate": 0.1}, "tip_adapter": {}}.items():
        with pytest.warns(ClipbiasWarning, match=re.escape(empty)):
            clipbias.fit(clip, method, paths, labels[:4], class_names=("cat", "dog", "horse"), **settings, **more)
    with (
        pytest.warns(ClipbiasWarning, match=re.escape(empty)),
        pytest.raises(ClipbiasError, match="class 3 of 3 has no"),
    ):
        clipbias.fit(clip, "gda", paths, labels[:4], class_names=("cat", "dog", "horse"), **settings)


def test_broken_images_are_named_together_before_the_first_step(clip, colours, recipe, tmp_path, monkeypatch):
    """Those that train, select a learning rate, calibrate or are tested, by `fit` and by a sweep; of a few at most."""
    monkeypatch.setattr(loop, "plan_stages", lambda job: pytest.fail("a step was compiled"))
    train = colours.split("train")
    splits = {"train": damaged(train, 0, 4, 9), "val": damaged(colours.split("val"), 3), "test": colours.split("test")}
    dataset = dataclasses.replace(colours, splits=splits)
    settings: dict[str, Any] = {"progress": False, "mesh": placement.single_device()}
    reasons = [f"the image {key} cannot be decoded (cannot identify image file)" for key in train.keys]
    advice = "replace the files, or leave them out: --config.on_image_error=skip, in Python on_image_error='skip'."
    with pytest.raises(UnreadableImage) as error:
        clipbias.fit(clip, "bias", dataset, **settings)
    assert str(error.value) == (
        f"4 images cannot be read: {reasons[0]}; {reasons[4]}; {reasons[9]}; and 1 more; {advice}"
    )
    of_training = f"3 images cannot be read: {reasons[0]}; {reasons[4]}; {reasons[9]}; {advice}"
    with pytest.raises(UnreadableImage, match=re.escape(of_training)):  # a quarter of them is held out
        clipbias.fit(clip, "bias", dataset.split("train"), class_names=colours, **settings)
    tested = dataclasses.replace(dataset, splits=splits | {"test": damaged(colours.split("test"), 5)})
    for broken, count in ((dataset, 4), (tested, 5)):
        rows = TinySweep(clip, broken, recipe, tmp_path / str(count)).rows("bias", shots=(None,), seeds=(1,))
        assert [row["error"].split(":")[0] for row in rows] == [f"{count} images cannot be read"]
    validated = TinySweep(clip, dataset, recipe, tmp_path / "val").rows(
        "bias", shots=(None,), seeds=(1,), score_on=VALIDATION
    )
    assert validated[0]["error"].startswith("4 images cannot be read: ")
    # The files beyond the first are read by no one but their batches.
    monkeypatch.setattr("clipbias.data.images.MOST_CHECKED", 2)
    check_readable([Images(damaged(train, 2, 3))], None, Workers(1), set())


def test_a_method_that_learns_nothing_needs_nothing(clip, colours):
    images, _ = pictures(colours, "test")
    model = clipbias.fit(clip, "zero_shot", colours)
    assert model.learnables == {} and repr(model).startswith("TunedModel(Task('zero_shot' of")
    assert isinstance(model.predict(images), Prediction) and len(model.predict([])) == 0


def test_programs_are_kept_where_commands_keep_them(clip, colours, tmp_path, monkeypatch, cache_settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CLIPBIAS_NO_CACHE", raising=False)
    cache_settings(None)
    model = clipbias.fit(clip, "zero_shot", colours)
    kept = [cache_settings(None)]
    assert model.predictor is model.predictor
    kept.append(cache_settings(None))
    assert kept == [str(tmp_path / "clipbias" / "xla")] * 2


def test_a_saved_model_comes_back(clip, colours, fitted, tmp_path, monkeypatch):
    """On the model that is given: none is loaded beside it."""
    fitted["bias"].save(tmp_path / "a.safetensors", notes={"accuracy": 50.0})
    assert clipbias.load_adapter(tmp_path / "a.safetensors").identity == fitted["bias"].identity
    monkeypatch.setattr("clipbias.tuned_model.load", lambda *args: pytest.fail("a second copy was loaded"))
    again = clipbias.load_adapter(tmp_path / "a.safetensors", clip)
    assert again.clip is clip and again.notes == {**fitted["bias"].notes, "accuracy": 50.0}
