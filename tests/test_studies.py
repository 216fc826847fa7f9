"""`clipbias.explain`: a study from Python, with its page; `TunedModel.relevancy` and `TunedModel.plot`."""

import json
from typing import Any

import numpy as np
import pytest

import clipbias
from clipbias import data
from clipbias.analysis import load_results
from clipbias.analysis.results import same_but_for_seed
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError, ClipbiasWarning
from clipbias.report.overlay import heat_map
from clipbias.studies import bind_models
from clipbias.training.spec import data_identity, seen_in_training

PIXELS = np.random.default_rng(2).integers(0, 256, (24, 20, 16, 3), dtype=np.uint8)
CLASS_NAMES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def pets() -> data.Dataset:
    return data.from_arrays(PIXELS, np.arange(24) % 3, CLASS_NAMES)


def tuned(clip: Clip, method: str, class_names: tuple[str, ...] = CLASS_NAMES, **notes: object) -> clipbias.TunedModel:
    task = clipbias.Task(clip, method, class_names)
    return clipbias.TunedModel(task, task.init(), notes)


@pytest.mark.ci
def test_a_study_and_its_page(clip, pets, tmp_path):
    model = tuned(clip, "bias", ("horse", "cow"), dataset="farm")
    options = clipbias.analysis.StudyOptions(batch_size=4)
    sections = ("text_attention", "observations")
    study = clipbias.explain(model, pets, tmp_path, sections=sections, options=options, progress=False)
    assert study.page == tmp_path / "report" / "report.html" and study.page.is_file()
    results = load_results(tmp_path)
    assert set(results.sections) == set(study.results.sections) == {"predictions", *sections}
    assert [each.label for each in results.models][1] == "Bias tuning trained on farm"
    assert study.labels == {} and "was not tested" in study.sentence


def test_what_cannot_be_studied(clip, pets, tmp_path):
    model = tuned(clip, "bias")
    for arguments, message in (
        ((model.task, pets), "a model is .*; give what clipbias.fit or"),
        (([], pets), "there is no model to explain; give tuned models, or clip="),
        ((model, 7), "the dataset is 7; give what clipbias.data.load returned, or a name"),
    ):
        with pytest.raises(ClipbiasError, match=message):
            clipbias.explain(*arguments, tmp_path)
    with pytest.raises(ClipbiasError, match="has no val images"):
        clipbias.explain(model, data.Dataset("d", CLASS_NAMES, "a {}.", {}), tmp_path, split="val")
    other = tuned(clipbias.load("demo"), "bias")
    with pytest.raises(ClipbiasError, match=r"a model is of 'demo' and not of .* \(different params.*; study them ap"):
        bind_models([model, other], pets)
    task = clipbias.Task(clip, "bias", CLASS_NAMES, dtype="bfloat16")
    with pytest.raises(ClipbiasError, match="models compute in float32 and in bfloat16; load their adapters with one"):
        bind_models([model, clipbias.TunedModel(task, task.init())], pets)


def test_models_are_bound_to_the_datasets_classes_and_named_apart(clip, pets):
    first, second = (tuned(clip, "bias", dataset=pets.name, seed=seed, shots=4) for seed in (1, 2))
    zero_shot, *bound = bind_models([first, second, tuned(clip, "vpt")], pets, sources=["a", "b", "c"])
    assert [(model.key, model.source) for model in bound] == [("bias", "a"), ("bias_seed2", "b"), ("vpt", "c")]
    assert [len(group) for group in same_but_for_seed(bound)] == [2, 1]
    assert zero_shot.task.template == pets.template and {m.task.class_names for m in bound} == {CLASS_NAMES}
    assert bound[0].few_shot_split == json.dumps(f"{pets.name}  4 1").strip('"') and bound[2].few_shot_split is None
    assert bind_models([], pets, clip=clip)[0].key == "zero_shot"


def test_zero_shot_reads_the_texts_of_its_models_where_they_agree(clip, pets):
    def bound(**texts):
        task = clipbias.Task(clip, "taskres", CLASS_NAMES, **texts)
        return clipbias.TunedModel(task, task.init())

    described = bound(descriptions={name: [f"a {name} on a tree."] for name in CLASS_NAMES})
    for model in (bound(template="the {} of a photo."), described):
        zero_shot, other = bind_models([model], pets)
        assert zero_shot.task.texts == other.task.texts != clipbias.Task(clip, "zero_shot", pets).texts
    zero_shot, *_ = bind_models([described, bound(template="the {} of a photo.")], pets)
    assert zero_shot.task.texts == clipbias.Task(clip, "zero_shot", pets).texts


@pytest.mark.ci
def test_a_gain_is_over_the_words_that_training_starts_from(clip, tmp_path):
    """And they are named where zero-shot CLIP reads other texts, those of the dataset's template."""
    starts = {"ivlp": "a photo of a {}.", "prolip": "an icon of a {}."}
    pets = data.from_arrays(PIXELS, np.repeat([0, 1, 2], [4, 8, 12]), CLASS_NAMES, template=starts["prolip"])
    split = pets.split("test")
    frozen = {}
    for method, text in starts.items():
        task = clipbias.Task(clip, "zero_shot", CLASS_NAMES, template=text)
        frozen[method] = 100 * (clipbias.TunedModel(task, task.init()).predict(split).labels == split.labels).mean()
    assert frozen["ivlp"] != frozen["prolip"]
    tasks = [clipbias.Task(clip, method, CLASS_NAMES, template=pets.template) for method in starts]
    models = [clipbias.TunedModel(task, task.init()) for task in tasks]
    options = clipbias.analysis.StudyOptions(batch_size=8)
    results = clipbias.explain(models, pets, tmp_path, sections=("causal",), options=options, progress=False).results
    (words,) = results.other_references
    for method in results.methods:
        assert method.numbers.accuracy.reference.value == pytest.approx(frozen[method.method])
        named = (
            f"“{starts[method.method].format('cat')}” ({frozen[method.method]:.1f} % of {len(split)} images)" in words
        )
        assert named == (method.name in words) == (method.method == "ivlp")


def test_pictures_that_have_changed_since_the_training_are_said(clip, tmp_path):
    def pictures(pixels, template="a photo of a {}."):
        splits = ["train"] * 12 + ["test"] * 12
        return data.from_arrays(pixels, np.arange(24) % 3, CLASS_NAMES, splits=splits, name="pets", template=template)

    notes = {"dataset": "pets", "protocol": "few_shot", "data": data_identity([pictures(PIXELS)])}
    model = tuned(clip, "bias", **notes)
    classes = model.task.classes
    assert not seen_in_training(notes, pictures(PIXELS, "the {}."), classes)  # another text is no other picture
    with pytest.warns(ClipbiasWarning, match="the pictures or classes of pets have changed since"):
        clipbias.explain(model, pictures(PIXELS[::-1]), tmp_path, sections=("predictions",), progress=False)
    for split, says in (("test", False), ("val", True), ("train", True)):
        assert ("may have trained or calibrated" in seen_in_training(notes, pictures(PIXELS), classes, split)) == says
        assert not seen_in_training({**notes, "dataset": "cars"}, pictures(PIXELS), classes, split)
    for other in ({"dataset": "cars"}, {"protocol": "cross_dataset"}):
        assert not seen_in_training({**notes, **other}, pictures(PIXELS[::-1]), classes)


def test_models_are_judged_together_where_their_trainings_differ_in_the_seed_alone(clip, pets):
    """Seeds 1 and 2; another number of shots, another rate; a rate selected for each seed; the same model again."""

    def judged(*notes: dict[str, object], method: str = "bias") -> list[list[str]]:
        models = bind_models([tuned(clip, method, **{"dataset": pets.name, **each}) for each in notes], pets)[1:]
        groups = same_but_for_seed(models)
        assert len({models[0].name for models in groups}) == len(groups)
        return [[model.label for model in group] for group in groups]

    first, second = ({"seed": seed, "shots": 4, "training": "one"} for seed in (1, 2))
    assert judged(first, second) == [["Bias tuning", "Bias tuning (seed 2)"]]
    one_shot = [{**each, "shots": 1, "training": "another"} for each in (first, second)]
    assert judged(first, second, *one_shot) == [
        ["Bias tuning, 4 shots", "Bias tuning, 4 shots (seed 2)"],
        ["Bias tuning, 1 shot", "Bias tuning, 1 shot (seed 2)"],
    ]
    assert judged(first, first, second) == [["Bias tuning", "Bias tuning (seed 2)"], ["Bias tuning (2)"]]
    assert [len(judged(first, {**second, "training": other})) for other in ("another", None)] == [2, 2]
    # A rate that was selected for each seed is none of what tells them apart, nor is a name.
    rates = [{**each, "learning_rate": rate, "dataset": None} for each, rate in ((first, 1.0), (second, 2.0))]
    assert judged(*rates) == judged(first, second)
    vision = clipbias.Task(clip, "bias", CLASS_NAMES, text_tower=False)
    unknown = [tuned(clip, "bias", seed=1), clipbias.TunedModel(vision, vision.init(), {"seed": 2})]
    assert len(same_but_for_seed(bind_models(unknown, pets)[1:])) == 2  # other options
    assert judged({}, {}) == [["Bias tuning"], ["Bias tuning (2)"]]  # nothing is known of their seeds


@pytest.mark.ci
def test_relevancy_of_pictures(clip):
    model = tuned(clip, "ivlp")
    images = clip.preprocess(PIXELS[:2])
    expected = clipbias.relevancy(model.task, clip.params, model.learnables, images, [1, 2])
    for pictures, classes in ((PIXELS[:2], ["dog", "bird"]), (images, [1, 2])):
        maps = model.relevancy(pictures, classes)
        np.testing.assert_allclose(maps.vision, expected.vision, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(maps.text, expected.text, rtol=1e-5, atol=1e-7)
    likely = model.relevancy(PIXELS[:2], model.predict(PIXELS[:2]).labels)
    np.testing.assert_array_equal(model.relevancy(PIXELS[:2]).vision, likely.vision)
    with pytest.raises(ClipbiasError, match="pictures: 2, classes: 1; give one for each"):
        model.relevancy(PIXELS[:2], ["dog"])


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.images]


@pytest.mark.ci
def test_pictures_and_maps_stand_side_by_side(clip):
    pixels, model = PIXELS[:2], tuned(clip, "ivlp", ("cat", "dog"))
    images = clip.preprocess(pixels)
    maps = clipbias.relevancy(model.task, clip.params, model.learnables, images, [1, 0])
    first, heat, second, _ = panels(model.plot(pixels, ["dog", "cat"]))
    np.testing.assert_array_equal(first.images[0].get_array(), pixels[0, 2:18])
    np.testing.assert_array_equal(second.images[0].get_array(), pixels[1, 2:18])
    np.testing.assert_allclose(heat.images[1].get_array(), heat_map(np.asarray(maps.vision)[0], 16, 16), atol=1e-4)
    assert heat.get_title() == "dog"
    # Normalised pictures are drawn as they were, and other maps in the place of relevancy.
    rows = np.random.default_rng(1).random((2, 16 + 4), np.float32)
    again = panels(model.plot(images, titles=["a", "b"], maps=rows))
    np.testing.assert_array_equal(again[0].images[0].get_array(), pixels[0, 2:18])
    np.testing.assert_allclose(again[3].images[1].get_array(), heat_map(rows[1], 16, 16))
    likely = model.plot(pixels)
    assert [panels(likely)[place].get_title() for place in (1, 3)] == model.predict(pixels).classes
    assert likely._repr_png_().startswith(b"\x89PNG")  # a notebook shows it
