"""`clipbias.fit` and what it returns: the numbers of `clipbias train`, from datasets, arrays and files."""

import copy
import dataclasses
import functools
import shutil
import warnings
from typing import Any

import jax
import numpy as np
import pytest

import clipbias
from clipbias import TunedModel, api
from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.data.images import Images, Workers, check_readable
from clipbias.errors import ClipbiasError, ClipbiasWarning, UnreadableImage
from clipbias.training import device, loop, placement
from clipbias.training.spec import VALIDATION
from clipbias.training.step import train_step
from clipbias.tuning import Recipe, make_method
from tests.data.pictures import write
from tests.training.conftest import TinySweep, damaged

# A few steps are no reason to be better than zero-shot.
pytestmark = pytest.mark.filterwarnings("ignore:the (tuned model|training loss)")


def pictures(dataset: Dataset, name: str) -> tuple[list[np.ndarray], np.ndarray]:
    split = dataset.split(name)
    return [split.image(index) for index in range(len(split))], split.labels


@pytest.fixture(scope="module")
def fitted(clip: Clip, colours: Dataset, recipe: Recipe) -> TunedModel:
    """What `fit` learns of a few images of the dataset. Settings take precedence over the recipe's."""
    settings: dict[str, Any] = dict(shots=2, seed=3, progress=False, mesh=placement.single_device())
    settings["recipe"] = dataclasses.replace(recipe, learning_rate=1.0, epochs=1, batch_size=1)
    settings |= {name: getattr(recipe, name) for name in ("learning_rate", "epochs", "batch_size")}
    return clipbias.fit(clip, "bias", colours, **settings)


@pytest.mark.ci
def test_a_method_is_a_name_an_object_or_a_file(clip, colours, recipe, fitted):
    settings: dict[str, Any] = dict(shots=2, seed=3, progress=False, mesh=placement.single_device(), recipe=recipe)
    bias = clipbias.fit(clip, fitted.task.method, colours, **settings)
    jax.tree.map(np.testing.assert_array_equal, bias.learnables, fitted.learnables)
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


def test_many_fits_stay_below_the_systems_limit(clip, colours, recipe, fitted, monkeypatch):
    """Programs hold memory maps, and a process that has too many of them is aborted."""
    settings: dict[str, Any] = dict(shots=2, progress=False, mesh=placement.single_device(), recipe=recipe)
    picture = colours.split("test").image(0)
    before = fitted.predict(picture).probabilities
    sizes = []
    for method, limit in (("bias", 10**9), ("vpt", 10**9), ("bias", 0), ("vpt", 0)):
        monkeypatch.setattr(api, "drop_many_programs", functools.partial(device.drop_many_programs, limit))
        clipbias.fit(clip, method, colours, **settings)
        sizes.append(train_step._cache_size())
    assert sizes[1] > sizes[0] and sizes[2] == sizes[3] < sizes[1]
    np.testing.assert_allclose(fitted.predict(picture).probabilities, before, atol=1e-6)


def test_settings_are_a_methods_own_where_it_has_them(clip: Clip, colours: Dataset) -> None:
    """Which a method that trains by a recipe of its authors would not see otherwise."""
    common: dict[str, Any] = dict(shots=2, progress=False, mesh=placement.single_device(), learning_rate=0.01)
    assert clipbias.fit(clip, "tip_adapter_f", colours, epochs=1, **common).task.options()["epochs"] == 1
    assert clipbias.fit(clip, "clap", colours, epochs=1, recipe="common", **common).task.options()["recipe"] == "common"


def test_one_setting_says_how_long_to_train(clip: Clip, colours: Dataset) -> None:
    for method, given, words in (
        ("clip_lora", {"epochs": 1}, "epochs"),
        ("clip_lora", {"recipe": "common"}, "the common recipe"),
        ("clip_lora", {"recipe": Recipe()}, "the common recipe"),
        ("lora", {}, "the common recipe"),
    ):
        with pytest.raises(ClipbiasError, match=f"^{words} and steps_per_shot both"):
            clipbias.fit(clip, method, colours, shots=2, steps_per_shot=3, progress=False, **given)
    with pytest.raises(ClipbiasError, match=r"^epochs and steps_per_shot both"):
        clipbias.fit(clip, make_method("clip_lora", steps_per_shot=3), colours, shots=2, epochs=1, progress=False)


def test_texts_that_a_method_does_not_read_are_said(clip: Clip, colours: Dataset) -> None:
    texts = {name: [f"some {name} paint"] for name in colours.class_names}
    for given, words in (({"template": "the {}."}, "the template"), ({"descriptions": texts}, "the descriptions")):
        with pytest.warns(ClipbiasWarning, match=f"bias reads texts such as .* and does not read {words}; only zero"):
            clipbias.fit(clip, "bias", colours, shots=2, progress=False, epochs=1, learning_rate=0.01, **given)
        with warnings.catch_warnings(record=True) as silent:
            clipbias.fit(clip, "zero_shot", class_names=colours, **given)
        assert not any("does not read" in str(each.message) for each in silent)


def test_numbers_that_look_like_levels_may_be_said_to_be_normalised(clip, fitted):
    levels = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    logits = jax.jit(fitted.task.logits)(clip.params, fitted.learnables, levels)
    said = fitted.predict(levels, normalised=True).probabilities
    np.testing.assert_allclose(said, jax.nn.softmax(logits), atol=1e-5)


def test_tensors_of_torch_may_want_a_gradient_and_may_be_labels(clip, colours, fitted):
    torch = pytest.importorskip("torch")
    images, labels = pictures(colours, "test")
    ready = torch.from_numpy(clip.preprocess(images).copy()).requires_grad_()
    np.testing.assert_allclose(fitted.predict(ready).probabilities, fitted.predict(images).probabilities, atol=1e-5)
    settings: dict[str, Any] = dict(mesh=placement.single_device())
    accuracy = fitted.evaluate(torch.from_numpy(np.stack(images)), torch.from_numpy(labels.copy()), **settings)
    assert accuracy.accuracy == fitted.evaluate(colours, **settings).accuracy


def test_accuracy_counts_what_is_taken_for_what(clip, colours, fitted):
    images, labels = pictures(colours, "test")
    accuracy = fitted.evaluate(colours, mesh=placement.single_device(), batch_size=8)
    expected = np.zeros((3, 3), int)
    for label, guess in zip(labels, accuracy.predicted, strict=True):
        expected[label, guess] += 1
    np.testing.assert_array_equal(accuracy.confusion, expected)
    assert accuracy.accuracy == pytest.approx(100 * np.trace(expected) / 15)
    np.testing.assert_allclose(accuracy.per_class, [100 * expected[c, c] / 5 for c in range(3)])
    of_jax = jax.make_mesh((1, 1), ("run", "data"), devices=jax.devices()[:1])
    same = fitted.evaluate(images, labels, mesh=of_jax, batch_size=8)
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
    assert f"{order}; fewer are right than by chance" in repr(model.evaluate(images, numbers, **settings))
    assert repr(model.evaluate(images, iter(1 - numbers), **settings)).endswith(order)
    assert "number" not in repr(model.evaluate(images, ["cat"] * 40, **settings))


def test_names_of_other_libraries_say_which_call_does_it(clip):
    model = clipbias.fit(clip, "zero_shot", class_names=("cat", "dog"))
    with pytest.raises(AttributeError, match=r"has no 'predict_proba'; take model\.predict\(pictures\)\.probabilities"):
        model.predict_proba  # noqa: B018
    with pytest.raises(AttributeError, match="'TunedModel' object has no attribute 'other'"):
        model.other  # noqa: B018
    assert copy.copy(model).class_names == model.class_names


@pytest.mark.filterwarnings("ignore:(there are no validation|1 held-out|2 held-out)")
def test_a_class_without_images_and_a_picture_in_two_classes_are_said(clip, tmp_path):
    paths = [write(tmp_path / f"{number}.png", number) for number in range(4)]
    copied, broken = shutil.copy(paths[0], tmp_path / "copy.png"), (tmp_path / "a.png", tmp_path / "b.png")
    for path in broken:
        path.write_bytes(b"not found")  # two files that cannot be read are not a picture in two classes
    settings: dict[str, Any] = dict(progress=False, mesh=placement.single_device(), on_image_error="skip")

    def warned(images: list[Any], *labels: str, **more: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clipbias.fit(clip, "tip_adapter", images, labels, **settings, **more)
        return [str(each.message) for each in caught if issubclass(each.category, ClipbiasWarning)]

    same = "the same picture is in two classes"
    twice = f"{same}: {paths[0]} (cat) and {copied} (dog); leave out all but one."
    images = [*paths, copied, *broken]
    assert warned(images, "cat", "dog", "cat", "dog", "dog", "cat", "dog").count(twice) == 1
    assert not any(same in words for words in warned(images, "cat", "dog", "cat", "dog", "cat", "cat", "dog"))
    empty = "own images: there is no training image of horse; add some, or leave such classes out."
    assert empty in warned(paths, "cat", "dog", "cat", "dog", class_names=("cat", "dog", "horse"))
    with pytest.raises(ClipbiasError, match="the labels are names, and those of the validation images are numbers"):
        warned(paths, "cat", "dog", "cat", "dog", validation=(paths[:2], [1, 0]))


def test_broken_images_are_named_together_before_the_first_step(clip, colours, recipe, tmp_path, monkeypatch):
    """Those that train, select a learning rate, calibrate or are tested, by `fit` and by a sweep; of a few at most."""
    monkeypatch.setattr(loop, "plan_stages", lambda job: pytest.fail("a step was compiled"))
    train = colours.split("train")
    splits = {"train": damaged(train, 0, 4, 9), "val": damaged(colours.split("val"), 3), "test": colours.split("test")}
    dataset = dataclasses.replace(colours, splits=splits)
    settings: dict[str, Any] = {"progress": False, "mesh": placement.single_device()}
    named = ".*".join(train.keys[index] for index in (0, 4, 9))
    with pytest.raises(UnreadableImage, match=f"4 images cannot be read: .*{named}.* and 1 more; replace the files"):
        clipbias.fit(clip, "bias", dataset, **settings)
    with pytest.raises(UnreadableImage, match=f"3 images cannot be read: .*{named}"):  # a quarter of them is held out
        clipbias.fit(clip, "bias", dataset.split("train"), class_names=colours, **settings)
    tested = dataclasses.replace(dataset, splits=splits | {"test": damaged(colours.split("test"), 5)})
    for broken, count in ((dataset, 4), (tested, 5)):
        rows = TinySweep(clip, broken, recipe, tmp_path / str(count)).rows("bias", shots=(None,), seeds=(1,))
        assert [row["error"].split(":")[0] for row in rows] == [f"{count} images cannot be read"]
    validated = TinySweep(clip, dataset, recipe, tmp_path / "val")
    (row,) = validated.rows("bias", shots=(None,), seeds=(1,), score_on=VALIDATION)
    assert row["error"].startswith("4 images cannot be read: ")
    # The files beyond the first are read by no one but their batches.
    monkeypatch.setattr("clipbias.data.images.MOST_CHECKED", 2)
    check_readable([Images(damaged(train, 2, 3))], None, Workers(1), set())


def test_a_saved_model_comes_back(clip, colours, fitted, tmp_path, monkeypatch):
    """On the model that is given: none is loaded beside it."""
    fitted.save(tmp_path / "a.safetensors", notes={"accuracy": 50.0})
    assert clipbias.load_adapter(tmp_path / "a.safetensors").identity == fitted.identity
    monkeypatch.setattr("clipbias.tuned_model.load", lambda *args: pytest.fail("a second copy was loaded"))
    again = clipbias.load_adapter(tmp_path / "a.safetensors", clip)
    assert again.clip is clip and again.notes == {**fitted.notes, "accuracy": 50.0}
