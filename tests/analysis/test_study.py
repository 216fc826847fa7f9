import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from clipbias.analysis import dataset_sections, pictures, study
from clipbias.analysis.dataset_sections import (
    compute_predictions,
    compute_relevancy,
)
from clipbias.analysis.model import Model
from clipbias.analysis.pictures import bytes_per_image, choose_images, compute_explore, quantise
from clipbias.analysis.relevancy import Relevancy
from clipbias.analysis.results import Predictions
from clipbias.analysis.results_file import SCALARS, load_results, save_results
from clipbias.analysis.run import run_study
from clipbias.analysis.statistics import Moments
from clipbias.analysis.study import Request, Study, StudyOptions, spread
from clipbias.analysis.words import CATEGORY, text_types
from clipbias.data import Split
from clipbias.data.images import pictures as load_pictures
from clipbias.data.transforms import Resizing
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.tuning import Task
from clipbias.tuning.tuned import Tuned
from tests.analysis.models import CLASS_NAMES, tuned
from tests.report.synthetic import synthetic_results

COUNT = 7


def split(broken=None):
    """Noise, labelled in turn."""

    def read(index):
        if index == broken:
            return b"not an image"
        file = io.BytesIO()
        draw = np.random.default_rng(index)
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
        return file.getvalue()

    keys = tuple(f"test/{index}.png" for index in range(COUNT))
    return Split(keys, np.arange(COUNT) % len(CLASS_NAMES), read)


def make(clip, folder, *, options=None, images=None, advance=lambda *_: None, scale=1.0, training=None):
    task, learnables = tuned(clip, "vpt")
    models = [
        Model("zero_shot", "Zero-shot", Tuned(Task(clip, "zero_shot", CLASS_NAMES))),
        Model("vpt", "VPT", Tuned(task, {name: scale * value for name, value in learnables.items()})),
    ]
    return Study(
        models,
        split() if images is None else images,
        options or StudyOptions(batch_size=3),
        folder,
        training=training,
        advance=advance,
    )


moments = jax.jit(Moments.of)


def totals_of(study):
    """Averages of pixels over images, as a section asks for its own."""

    def section():
        request = Request("x", "x", study.images, lambda batch: {"mean": moments(batch["images"], batch["mask"])})
        return (yield [request])

    return study.run({"it": section()})["it"]["x"]["mean"]


def pixels():
    return load_pictures(split(), np.arange(COUNT), Resizing(16))


def knows(study, predicted):
    """The study with predictions that were made before."""
    study.known = lambda model: predicted.models[model.key].astype(np.int32)
    return study


@pytest.mark.parametrize("size", [1, 5])
def test_an_interrupted_section_may_continue_with_other_batches(clip, tmp_path, size):
    whole = totals_of(make(clip, tmp_path / "whole"))
    steps = []

    def stop(title, done, total):
        take((title, done, total))
        if len(steps) == 3:  # a pass begins, and has two batches
            raise KeyboardInterrupt

    def take(step):
        if step[2]:  # not a stage without batches
            steps.append(step)

    interrupted = make(clip, tmp_path / "cut", options=StudyOptions(batch_size=2), advance=stop)
    with pytest.raises(KeyboardInterrupt):
        totals_of(interrupted)
    for _ in range(2):  # the second time all is there
        again = make(clip, tmp_path / "cut", options=StudyOptions(batch_size=size), advance=lambda *step: take(step))
        moments = totals_of(again)
    before, rest = -(-4 // size), -(-(COUNT - 4) // size)
    assert [step[1:] for step in steps[3:]] == [(done, before + rest) for done in range(before, before + rest + 1)]
    assert moments.samples == whole.samples
    np.testing.assert_allclose(moments.mean, whole.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.squares, whole.squares, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.mean, pixels().mean(0), rtol=1e-5)


def test_what_is_kept_is_not_computed_again_and_other_models_are_not_mistaken(clip, tmp_path):
    steps = []

    def predictions(**changes):
        study = make(
            clip, tmp_path, advance=lambda title, done, total: steps.extend([title] if total else ()), **changes
        )
        return study.run({"it": compute_predictions(study)})["it"]

    first = predictions()
    assert len(steps) == 1 + 3  # of both models together
    np.testing.assert_array_equal(first.models["vpt"], predictions().models["vpt"])
    assert len(steps) == 4
    predictions(scale=2.0)
    assert len(steps) == 8
    (path,) = (tmp_path / "parts").glob("predictions-vpt*")
    path.write_bytes(path.read_bytes()[:-30])
    predictions(scale=2.0)  # of the damaged one alone
    assert len(steps) == 12


def test_sections_share_passes_over_the_images(clip, tmp_path):
    """Every picture is checked once, and decoded twice for eight requests, two of the same name, in two rounds."""
    read = []
    plain = split()
    counted = Split(
        plain.keys, plain.labels, lambda index: read.append(index) or plain.read(index), contents=lambda paths: []
    )
    study = make(clip, tmp_path, images=counted)
    sizes = []

    def labels_of(batch):
        sizes.append(len(batch["labels"]))
        return {"labels": batch["labels"]}

    def section(*rounds):
        seen = []
        for names in rounds:
            answers = yield [Request(name, name, study.images, labels_of) for name in names]
            assert sorted(answers) == sorted(names)
            seen.append([answers[name]["labels"].tolist() for name in names])
        return seen

    labels = plain.labels.tolist()
    seen = study.run({"a": section(["x", "y"], ["z"]), "b": section(["x"], ["u", "v"]), "c": section([], ["x", "w"])})
    assert seen == {"a": [[labels] * 2, [labels]], "b": [[labels], [labels] * 2], "c": [[], [labels] * 2]}
    assert sorted(read) == sorted([*range(COUNT)] * 3)
    assert set(sizes) == {3}  # the last batch is filled up


def test_requests_that_were_saved_at_different_moments_both_end_whole(clip, tmp_path):
    """A process that is killed while it saves leaves some requests further than others."""

    def request(name, study, value):
        def step(batch):
            return {"mean": moments(value + batch["numbers"], batch["mask"])}

        return Request(name, name, study.images, step)

    def both(study):
        return (yield [request("a", study, 0), request("b", study, 100)])

    whole, cut = make(clip, tmp_path / "whole"), make(clip, tmp_path / "cut", options=StudyOptions(batch_size=2))
    expected = whole.run({"it": both(whole)})["it"]
    behind = study.RequestProgress(request("a", cut, 0), cut.parts, cut.identity)
    for batch, number, _ in cut.batches(cut.images):
        behind.add(behind.request.step(batch), 2, np.asarray(batch["mask"]))
        if number == 2:
            behind.save()
            break
    again = make(clip, tmp_path / "cut", options=StudyOptions(batch_size=2))
    results = again.run({"it": both(again)})["it"]
    for name, sums in expected.items():
        assert sums["mean"].samples == results[name]["mean"].samples == COUNT
        np.testing.assert_allclose(results[name]["mean"].mean, sums["mean"].mean)
    assert results["a"]["mean"].mean == pytest.approx(np.mean(range(COUNT)))


def test_sums_are_saved_every_minute(clip, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(study.RequestProgress, "save", lambda self: saved.append(self.done))
    for minute, expected in ((60.0, [7, 7]), (-1.0, [3, 6, 7, 7])):
        monkeypatch.setattr(study, "SAVE_SECONDS", minute)
        totals_of(make(clip, tmp_path))
        assert saved == expected
        saved.clear()


def test_only_so_many_images_are_classified_unless_all_models_did_before(clip, tmp_path):
    study = make(clip, tmp_path, options=StudyOptions(image_limit=3))
    whole = {"zero_shot": np.array([0, 1, 2, 0, 1, 2, 0], np.int32), "vpt": np.array([2, 1, 0, 2, 1, 0, 2], np.int32)}
    for number, known in enumerate((("zero_shot",), ("zero_shot", "vpt"))):
        study.parts = tmp_path / f"parts{number}"
        study.known = lambda model, known=known: whole[model.key] if model.key in known else None
        predicted = study.run({"it": compute_predictions(study)})["it"].models
        seen = np.arange(COUNT) if len(known) == 2 else spread(COUNT, 3)
        for key in whole:
            assert np.flatnonzero(predicted[key] >= 0).tolist() == seen.tolist()
            if key in known:
                np.testing.assert_array_equal(predicted[key][seen], whole[key][seen])


def test_passes_over_rows_are_of_one_size_and_what_is_filled_up_is_masked(clip, tmp_path):
    rows, masks = np.arange(10, dtype=np.float32), []

    def double(x, mask):
        masks.append(np.asarray(mask).tolist())
        return {"twice": 2 * x}

    np.testing.assert_array_equal(make(clip, tmp_path).in_passes(double, rows)["twice"], 2 * rows)
    assert masks == [[True] * 3] * 3 + [[True, False, False]]


STRENGTH = {"zero_shot": 1.0, "vpt": 2.0, "other": 3.0}


def maps_by_hand(monkeypatch):
    """Puts maps that can be told apart in the place of relevancy; returns of which images each model was asked."""
    explained = {key: [] for key in STRENGTH}

    def maps(study, model, images, targets):
        patches = study.clip.config.vision.patches
        prompts = model.prompts[0]
        seen = np.asarray(images)[:, 0, 0, :1] + STRENGTH[model.key] * np.arange(1, 1 + patches + prompts, dtype="f")
        explained[model.key] += [int(value) for value in np.asarray(images)[:, 0, 0, 0]]
        text = np.ones((len(targets), np.max(model.task.tokens.eos) + 1), np.float32)
        return Relevancy(seen, text, np.zeros(len(targets), np.float32))

    monkeypatch.setattr(dataset_sections, "relevancy_maps", maps)
    return explained


def test_zero_shot_is_explained_once_for_all_models(clip, tmp_path, monkeypatch):
    """Maps of two models and zero-shot that anything can be made of by hand: what is asked, and where it is counted."""
    plain = make(clip, tmp_path)
    other = dataclasses.replace(plain.models[1], key="other", label="other")
    study = Study([*plain.models, other], plain.split, StudyOptions(batch_size=2, image_limit=2), tmp_path / "both")
    explained = maps_by_hand(monkeypatch)
    labels = study.split.labels
    shift = {"zero_shot": [0, 1, 1, 1, 0, 0, 1]}
    shift |= {"vpt": [0, 0, 1, 1, 0, 0, 1], "other": [0, 0, 0, 1, 0, 0, 0]}
    predicted = Predictions(labels, {key: (labels + np.array(offset)) % 3 for key, offset in shift.items()})
    results = study.run({"it": compute_relevancy(knows(study, predicted))})["it"]
    first = pixels()[:, 0, 0, 0]
    padding = [0]  # image 2 alone is asked of one model only
    assert sorted(explained["zero_shot"]) == sorted([*first[[0, 1, 2, 6]].tolist(), *padding * 2])
    assert len(explained["vpt"]) == 4 and len(explained["other"]) == 6
    for key, corrections in (("vpt", [1]), ("other", [1, 2, 6])):
        groups = {"corrected": corrections, "both_right": [0], "all": [0, 6]}
        for group, images in groups.items():
            averaged = results[key].groups[group]
            assert averaged.count == len(images)
            for side, name in (("zero_shot", "zero_shot"), ("tuned", key)):
                means = getattr(averaged.vision, side).mean
                rows = first[images, None] + STRENGTH[name] * np.arange(1.0, 1 + means.shape[-1])
                np.testing.assert_allclose(means, (rows / rows.sum(1, keepdims=True)).mean(0), rtol=1e-5)


def test_texts_of_a_class_are_counted_together(clip, tmp_path, monkeypatch):
    """Of two templates, where all relevancy lies on the tokens of the class's own name."""
    task = Task(clip, "zero_shot", CLASS_NAMES, templates=("a {}.", "a photo of a {}."))
    plain = make(clip, tmp_path)
    study = Study([plain.models[0], Model("two", "two", Tuned(task))], plain.split, plain.options, tmp_path)

    def maps(study, model, images, targets):
        kinds = text_types(model.task).reshape(model.texts, len(CLASS_NAMES), -1)[:, np.asarray(targets)]
        text = (kinds == CATEGORY).swapaxes(0, 1).astype("f")
        seen = np.ones((len(targets), study.clip.config.vision.patches), np.float32)
        return Relevancy(seen, text if model.texts > 1 else text[:, 0], np.zeros(len(targets), np.float32))

    monkeypatch.setattr(dataset_sections, "relevancy_maps", maps)
    predicted = Predictions(plain.split.labels, dict.fromkeys(("zero_shot", "two"), plain.split.labels))
    kinds = study.run({"it": compute_relevancy(knows(study, predicted))})["it"]["two"].all.text_types
    np.testing.assert_allclose(kinds.tuned.mean, np.eye(5)[CATEGORY], atol=1e-6)


def test_nothing_corrected_is_said_and_not_averaged(clip, tmp_path, monkeypatch):
    maps_by_hand(monkeypatch)
    study = make(clip, tmp_path)
    labels = study.split.labels
    same = Predictions(labels, dict.fromkeys(("zero_shot", "vpt"), labels))
    result = study.run({"it": compute_relevancy(knows(study, same))})["it"]["vpt"]
    assert result.corrected is None and result.corrected_count == 0
    assert (result.both_right.count, result.all.count) == (COUNT, COUNT)


def test_unreadable_images_are_left_out_where_asked(clip, tmp_path):
    options = StudyOptions(batch_size=3, on_image_error="skip")
    study = make(clip, tmp_path, options=options, images=split(broken=2))
    results = run_study(study, tmp_path, dataset="noise", sections=())
    assert results.predictions.models["vpt"][2] == -1
    assert results.dataset.images == COUNT - 1
    assert load_results(tmp_path).models[1].images == COUNT - 1


def test_broken_images_of_all_lists_are_named_before_the_first_pass(clip, tmp_path):
    study = make(clip, tmp_path, images=split(broken=2), training=split(broken=5))

    def section():
        return (yield [Request("x", "x", study.images, lambda batch: pytest.fail("a pass began"))])

    with pytest.raises(UnreadableImage, match=r"2 images cannot be read: .*test/2\.png.*test/5\.png"):
        study.run({"it": section()})["it"]


def predictions_of(zero_shot, vpt):
    """Of images of classes in turn; 0 is right, 1 wrong, -1 not read."""
    labels = np.arange(len(zero_shot)) % 3
    models = {
        name: np.where(np.array(wrong) < 0, -1, (labels + np.array(wrong)) % 3)
        for name, wrong in {"zero_shot": zero_shot, "vpt": vpt}.items()
    }
    return Predictions(labels, models)


def test_kinds_of_change_take_turns(clip, tmp_path):
    made = make(clip, tmp_path)
    predicted = predictions_of([0, 0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1, 1])
    assert predicted.changes("vpt").tolist() == [2, 2, 2, 2, 0, 1, 3]
    # The first of each kind, then the second of the only one that has more, of another class.
    assert choose_images(made, predicted, 4).tolist() == [0, 4, 5, 6]
    assert choose_images(made, predicted, 5).tolist() == [0, 1, 4, 5, 6]
    assert choose_images(made, predicted, 99).tolist() == list(range(COUNT))
    predicted = predictions_of([0, 0, 0, -1, 1, 0, 1], [0, 0, 0, 0, 0, -1, 1])
    assert choose_images(made, predicted, 99).tolist() == [0, 1, 2, 4, 6]
    nothing = predictions_of([0] * COUNT, [0] * COUNT)
    assert choose_images(made, nothing, 3).tolist() == [0, 1, 2]  # of each class one
    few = make(clip, tmp_path, options=StudyOptions(image_limit=3))  # the images of the causal test
    assert choose_images(few, nothing, 99).tolist() == [0, 3, 6]


@pytest.mark.ci
def test_fewer_images_where_a_page_would_grow_too_large(clip, tmp_path, monkeypatch):
    made = make(clip, tmp_path)

    def maps(study, model, images, targets):
        seen = np.ones((len(images), study.clip.config.vision.patches + model.prompts[0]), np.float32)
        return Relevancy(seen, np.ones((len(images), int(np.max(model.task.tokens.end))), np.float32), targets)

    def layers(study, model, images):
        return {"attention": np.ones((len(images), 3, study.clip.config.vision.patches + model.prompts[0]), np.float32)}

    monkeypatch.setattr(pictures, "relevancy_maps", maps)
    monkeypatch.setattr(pictures, "layer_maps", layers)
    monkeypatch.setattr(pictures, "LARGEST_BYTES", 2 * bytes_per_image(made) + 1)
    explore = made.run({"it": compute_explore(knows(made, predictions_of([0] * COUNT, [1] * COUNT)))})["it"]
    assert len(explore.images) == len(explore.names) == 2
    assert explore.pairs.tolist() == [[0, 0], [0, 1], [1, 1], [1, 2]]


def assert_same(written, read, place):
    """Equal to the last bit, of the same types."""
    assert type(written) is type(read) or isinstance(written, np.ndarray), place
    if dataclasses.is_dataclass(written):
        for field in dataclasses.fields(written):
            assert_same(getattr(written, field.name), getattr(read, field.name), f"{place}/{field.name}")
    elif isinstance(written, dict):
        assert list(written) == list(read), place
        for key, value in written.items():
            assert_same(value, read[key], f"{place}/{key}")
    elif isinstance(written, np.ndarray):
        assert written.dtype == read.dtype, place
        np.testing.assert_array_equal(written, read, err_msg=place)
    else:
        assert written == read, place


@pytest.mark.parametrize("twins", [False, True])
def test_saved_results_come_back(tmp_path, twins):
    results = dataclasses.replace(synthetic_results(pictures=1, twins=twins), config={})
    save_results(tmp_path, results)
    assert_same(results, load_results(tmp_path), "")
    save_results(tmp_path, dataclasses.replace(results, seconds=float("nan")))  # JSON has no NaN
    assert np.isnan(load_results(tmp_path).seconds)


def test_an_edited_file_is_refused(tmp_path):
    save_results(tmp_path, synthetic_results(pictures=1))
    content = json.loads((tmp_path / SCALARS).read_text())
    content["clip"]["patches"] += 1
    (tmp_path / SCALARS).write_text(json.dumps(content))
    with pytest.raises(ClipbiasError, match=rf"^{tmp_path}/results\.json was edited or damaged; "):
        load_results(tmp_path)


@pytest.mark.parametrize("low", [False, True])
def test_steps(low):
    values = np.random.default_rng(0).lognormal(0, 2, (3, 4, 50))
    values[0, 0] = 0
    steps, scale, lowest = quantise(values, low=low)
    again = steps * scale[..., None] / 255 + lowest[..., None]
    assert (np.abs(again - values) <= scale[..., None] * 0.50001 / 255 + 1e-6).all() and not steps[0, 0].any()
