"""Prompts per image, several prompt sets, prompts with a teacher and strips of pixels: starts, texts, plans, images."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import clipbias
from clipbias import hosts
from clipbias.clip import Clip
from clipbias.data import Dataset, Split
from clipbias.data.few_shot import most_confident
from clipbias.training import loop, placement
from clipbias.training.context import SweepContext
from clipbias.training.device import Compute
from clipbias.training.predictor import evaluate
from clipbias.training.run import make_job
from clipbias.training.spec import make_groups
from clipbias.tuning import Descriptions, Features, Learnables, Method, Recipe, Task, make_method
from clipbias.tuning.methods.promptsrc import PromptSRC
from clipbias.tuning.methods.taskres import TaskRes
from clipbias.tuning.registry import resolve_method
from clipbias.tuning.tuned import Tuned
from tests.data.pictures import encoded
from tests.helpers import signal_at
from tests.reference import numpy_clip, prompts, prompts_plot
from tests.training.conftest import TinySweep, few_shot_runs, train_runs
from tests.tuning import weights_common as common
from tests.tuning.heads_common import COMMON
from tests.tuning.weights_common import CLASS_NAMES, LABELS

# CoCoOp


def test_cocoop_starts_as_torchs_linear_layers_and_the_words_do(pair):
    clip, reference = pair
    task = Task(clip, "cocoop", CLASS_NAMES)
    runs = [jax.device_get(task.init(seed)) for seed in range(60)]
    words = reference.tokenizer.tokenize(["a photo of a"])[0, 1:5]
    expected = numpy_clip.token_embeddings(reference.state, words)
    np.testing.assert_allclose(runs[0]["text_context"], expected, atol=1e-7)
    for layer, inputs in (("hidden", 48), ("output", 3)):
        for part in ("kernel", "bias"):
            drawn = np.concatenate([run[f"text_{layer}_{part}"].ravel() for run in runs]) * inputs**0.5
            assert np.abs(drawn).max() <= 1 and np.abs(drawn).max() > 0.95, (layer, part)
            assert drawn.std() == pytest.approx(3**-0.5, rel=0.12) and abs(drawn.mean()) < 0.15


# PLOT


@pytest.mark.ci
def test_an_evaluation_of_plot_ends_rounds_batch_by_batch(pair):
    clip, reference = pair
    task = Task(clip, "plot", CLASS_NAMES, pooled=True, tokens=5, sets=3)
    assert task.text.shared == 6  # the start and each set's context

    start = common.drawn(task.shapes, 0.4, seed=3)
    raw, images = common.pictures(8, 5)
    scores = np.concatenate(
        [
            prompts_plot.plot_logits(reference, CLASS_NAMES, start, part, pooled=True)
            for part in (images[:3], images[3:])
        ]
    )
    split = Split(tuple("abcde"), scores.argmax(-1), lambda index: encoded(raw[index]))
    settings = {"mesh": placement.single_device(), "eval_batch_size": 3, "on_image_error": "raise"}
    row = evaluate(Tuned(task, start), split, **settings)[0]
    assert row["accuracy"] == 100.0
    # Where every prediction is right, the error is what confidences lack of 1; padding in the last batch would move it.
    sure = special.softmax(scores.astype(np.float64), -1).max(-1)
    assert row["calibration"]["ece"] == pytest.approx(100 * (1 - sure.mean()), abs=1e-3)


def test_plots_logits_without_the_pooled_feature_and_of_the_images_that_count(pair):
    rng = np.random.default_rng(8)
    image, text = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 6, 4), (4, 5, 4)))
    clip = dataclasses.replace(pair[1], state={"logit_scale": np.log(7)})

    def found(mask: np.ndarray | None) -> np.ndarray:
        features = Features(image[:, 0], text, np.float32(7), patches=image, mask=mask)
        return np.asarray(make_method("plot").logits({}, features))

    patches = image.swapaxes(0, 1)
    common.close(found(None), prompts_plot.transport_logits(clip, patches, text), common.LOGITS)
    alone = prompts_plot.transport_logits(clip, patches[:, :1], text)
    common.close(found(np.array([True, False, False]))[:1], alone, common.LOGITS)
    assert np.abs(found(None)[:1] - alone).max() > 10 * common.LOGITS * np.abs(alone).max()


# PLOT++

# Of as many tokens as the first has words, of more, and of fewer.
PHRASES = ("a photo of a", "photo of the dog type", "of a cat")


@pytest.mark.ci
def test_plot_plus_plus(pair):
    """Two trainings: the first one leaves the contexts at their words and adds to the logits."""
    clip, reference = pair
    whole = Task(clip, "plot_plus_plus", CLASS_NAMES, phrases=PHRASES)
    start = whole.init(3)
    stages = whole.method.stages(common.SGD)
    context = prompts_plot.start_context(reference, PHRASES)
    np.testing.assert_allclose(start["text_context"], context, atol=1e-7)
    before = whole.method.next_stage(0, start, None)
    moved = {**before, "vision_prompts": common.drawn(before["vision_prompts"], 0.4, seed=4)}
    assert [recipe for _, recipe in stages] == [common.SGD] * 2 and stages[1][0] == whole.method
    first = Task(clip, stages[0][0], CLASS_NAMES)
    assert not first.classifier.changes_text(first.shapes)

    added = {"text_context": context}

    def rule(values, step):
        options = {"phrases": PHRASES, "first": True, "point": {**step.start, **added}}
        scores = prompts_plot.plus_logits(reference, CLASS_NAMES, {**values, **added}, step.images, **options)
        return {"cross_entropy": numpy_clip.cross_entropy(scores, LABELS)}, scores

    common.check_training(first, moved, rule)
    after = whole.method.next_stage(1, moved, None)
    assert after == {"vision_prompts": moved["vision_prompts"], "text_context": start["text_context"]}
    assert whole.method.next_stage(2, after, None) == after


# ProDA


def test_proda_takes_all_its_sets_in_turn():
    method = make_method("proda", sets=12, sets_per_step=4)
    draws = np.stack([method.templates_in_training(jax.random.key(3), step) for step in range(9)])
    for cycle in draws.reshape(3, 12):
        assert sorted(cycle) == list(range(12))
    assert len({tuple(cycle) for cycle in draws.reshape(3, 12)}) == 3


PAINTING = "a painting of a {}, a type of cat."
WITH_COMMA = "a type of cat, a photo of a {}."


# ProGrad's context and projection, and the teachers' templates.


@pytest.mark.parametrize("template", [WITH_COMMA, None])
def test_prograd_starts_from_as_many_tokens_as_the_template_has_words(pair, template):
    clip, reference = pair
    task = Task(clip, make_method("prograd", template=template), CLASS_NAMES, template=PAINTING)
    template = template or "a photo of a {}."
    context = prompts.prograd_context(reference, template)
    np.testing.assert_allclose(task.init()["text_context"], context, atol=1e-7)
    inputs = prompts.prograd_inputs(reference, CLASS_NAMES, {"text_context": context}, template)
    for ids, expected in zip(task.tokens.ids, inputs.tokens, strict=True):
        end = expected.argmax() + 1
        np.testing.assert_array_equal(ids[:end], expected[:end])
    np.testing.assert_array_equal(task.tokens.context_rows[:, 1:17], np.tile(np.arange(16), (len(CLASS_NAMES), 1)))
    assert (task.tokens.context_rows[:, 17:] == -1).all()


def test_a_context_shorter_than_prograds_words_takes_the_first_of_them(pair):
    clip, reference = pair
    task = Task(clip, make_method("prograd", template=WITH_COMMA, tokens=3), CLASS_NAMES)
    ids = reference.tokenizer.tokenize([WITH_COMMA.replace("{}", "x")])[0]
    np.testing.assert_array_equal(task.tokens.ids[:, 1:10], np.tile(ids[1:10], (len(CLASS_NAMES), 1)))
    embeddings = numpy_clip.token_embeddings(reference.state, ids[1:4])
    np.testing.assert_allclose(task.init()["text_context"], embeddings, atol=1e-7)


@pytest.mark.parametrize(("scale", "strength"), [(1.0, 1.0), (1.0, 0.8), (1e-25, 1.0), (0.0, 1.0)])
def test_prograd_projects_each_array_by_itself_and_leaves_the_gradient_where_the_teacher_has_none(scale, strength):
    """The squares of small gradients are zero in float32."""
    rng = np.random.default_rng(0)
    gradients = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    teacher = {"a": -gradients["a"] + rng.normal(size=(3, 4)), "b": gradients["b"] + 0.1}
    terms = {"cross_entropy": gradients, "kl": {name: scale * value for name, value in teacher.items()}}
    combined = make_method("prograd", strength=strength).combine(jax.tree.map(jnp.float32, terms))
    expected = prompts.project(gradients, teacher, strength=strength) if scale else gradients
    for name, value in expected.items():
        np.testing.assert_allclose(combined[name], value, atol=1e-6)


def test_strips_start_at_a_standard_normal_distribution_and_differ(clip):
    runs = [jax.device_get(Task(clip, "visual_prompting", CLASS_NAMES).init(seed)) for seed in range(20)]
    drawn = np.concatenate([run["vision_up"].ravel() for run in runs])
    assert abs(drawn.mean()) < 0.1 and drawn.std() == pytest.approx(1, abs=0.05)
    assert np.abs(runs[0]["vision_up"] - runs[0]["vision_down"]).max() > 0.1


def test_authors_warm_up_is_as_long_as_theirs_on_their_data():
    recipe = make_method("visual_prompting").recipe_for(common.SGD, None)
    rates = recipe.step_rates(50_000)
    assert len(rates) == 195_000 and rates.argmax() in (974, 975) and rates.max() == 40
    assert recipe.step_rates(64)[[4, -1]] == pytest.approx([40, 0], abs=1e-3)


# Trainings of two stages in a sweep, and PromptSRC's average over epochs


RECIPE = dataclasses.replace(COMMON, epochs=2, batch_size=6)


class Twice(TaskRes):
    """Two trainings whose steps are quickly compiled; its end is told by numbers of its own."""

    def stages(self, recipe: Recipe) -> Sequence[tuple[Method, Recipe]]:
        return [(self, recipe)] * 2

    def next_stage(self, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
        assert (text is not None) == (stage == 1)
        return jax.tree.map(lambda leaf: np.full_like(leaf, stage), learnables) if stage == 2 else learnables


@pytest.mark.ci
def test_a_sweep_of_two_trainings(pair, colours, tmp_path):
    tiny = TinySweep(pair[0], colours, RECIPE, tmp_path)
    (spec,) = tiny.specs(f"{__name__}:Twice", seeds=(1,))
    (row,) = tiny.run([spec])
    assert row["status"] == "ok", row.get("error")
    assert (tiny.adapter(spec).learnables["text_residual"] == 2).all()
    (metrics,) = (tmp_path / "runs").glob("*Twice*/metrics.jsonl")
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == 4  # two epochs of a step each


# PromptSRC's average.


@pytest.mark.parametrize(
    ("name", "dataset", "epochs", "mean", "deviation"),
    [
        ("promptsrc", "imagenet", 50, 30, 30),
        ("promptsrc", "eurosat", 50, 45, 5),
        ("promptsrc", "stanford_cars", 10, 9, 1),
        ("promptsrc_base_to_new", "eurosat", 20, 15, 1),
        ("promptsrc_cross_dataset", "imagenet", 20, 6, 10),
        ("promptsrc_base_to_new", "eurosat", 10, 7.5, 0.5),
    ],
)
def test_the_gaussian_of_the_average(name, dataset, epochs, mean, deviation):
    weights = resolve_method(name, {}, dataset=dataset, shots=16).average(epochs)
    np.testing.assert_allclose(weights, prompts.gaussian_weights(epochs, mean, deviation), rtol=1e-9)
    assert make_method("promptsrc", mean=0.0, deviation=1e-3).average(1) == [1.0]


class Averaged(TaskRes):
    """A method whose steps are quickly compiled, with PromptSRC's average."""

    def average(self, epochs: int) -> Sequence[float] | None:
        return PromptSRC().average(epochs)


@pytest.mark.ci
def test_the_average_over_epochs_survives_a_kill_in_the_middle(pair, colours, tmp_path, monkeypatch):
    task = Task(pair[0], Averaged(), colours.class_names)
    runs = few_shot_runs(colours, (1, 2))
    recipe = dataclasses.replace(RECIPE, epochs=4)  # two steps in each
    original = loop.train_step
    states = []

    def watched(*arguments, **options):
        state, values = original(*arguments, **options)
        states.append(jax.tree.map(np.array, placement.device_get(state.learnables)))
        return state, values

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", watched)
        whole = train_runs(task, runs, recipe).learnables
    epochs = states[1::2]
    assert len(epochs) == 4
    expected = prompts.average(epochs, PromptSRC().average(4))
    for name, value in expected.items():
        np.testing.assert_allclose(whole[name], value, atol=1e-6 * np.abs(value).max())
        assert np.abs(whole[name] - epochs[-1][name]).max() > 1e-4 * np.abs(value).max()

    for stop in (3, 4):  # in an epoch, and at its end
        where = {"checkpoints": tmp_path / str(stop)}
        stops, refused = signal_at(loop, "train_step", stop), pytest.raises(hosts.Stopped, match=f"step {stop} of 8")
        with stops, hosts.stoppable(), refused:
            train_runs(task, runs, recipe, **where)
        continued = train_runs(task, runs, recipe, **where).learnables
        jax.tree.map(np.testing.assert_array_equal, continued, whole)


# UPL: picks, and the protocol that keeps labels out.

TEMPLATE = "a blurry photo of {}."
IMAGES = 40
SHOTS = 4


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Random pictures, whose own labels say nothing."""
    raw, _ = common.pictures(8, IMAGES)
    splits = {}
    for name, (first, last) in {"train": (0, 30), "val": (30, 34), "test": (34, IMAGES)}.items():
        images = raw[first:last]
        keys = tuple(f"{name}/{i}" for i in range(last - first))
        labels = np.arange(last - first) % len(CLASS_NAMES)
        splits[name] = Split(keys, labels, lambda index, images=images: encoded(images[index]))
    return Dataset("drawn", CLASS_NAMES, TEMPLATE, splits)


def picked(clip: Clip, dataset: Dataset, folder: Path, method: str, protocol: str) -> list[tuple[str, int]]:
    """The names and labels of the images that are trained on."""
    recipe, options = dataclasses.replace(common.SGD, epochs=2), {"upl": {"tokens": 5, "sets": 2}}
    compute = Compute(trackers=(), eval_batch_size=7)
    tiny = TinySweep(clip, dataset, recipe, folder, protocol=protocol, options=options, compute=compute)
    (group,) = make_groups(tiny.specs(method, shots=(SHOTS,)))
    images = [run.images for run in make_job(group, tiny.context).runs]
    first, second = (list(zip(picks.split.keys, picks.labels.tolist(), strict=True)) for picks in images)
    if method == "upl" or protocol == "pseudo_labels":
        assert first == second  # a seed changes contexts alone
    return first


@pytest.mark.ci
def test_picks_equal_numpy(pair, dataset, tmp_path):
    clip, reference = pair
    images = common.pictures(8, IMAGES)[1]
    pseudo = prompts.pseudo_labels(reference, CLASS_NAMES, images[:30], template=TEMPLATE, shots=SHOTS)
    counts = np.bincount([label for _, label in pseudo], minlength=len(CLASS_NAMES))
    assert counts.max() == SHOTS and 0 < len(pseudo) < 30  # some are left out
    expected = [(f"train/{image}", label) for image, label in pseudo]
    for method, protocol in (("upl", "few_shot"), ("upl", "pseudo_labels"), ("coop", "pseudo_labels")):
        assert picked(clip, dataset, tmp_path, method, protocol) == expected
    assert picked(clip, dataset, tmp_path, "coop", "few_shot") != expected
    # Among the base classes, the images of these alone.
    base = dataset.with_classes(range(3))
    known = [int(key.partition("/")[2]) for key in base.split("train").keys]
    fewer = prompts.pseudo_labels(reference, CLASS_NAMES[:3], images[known], template=TEMPLATE, shots=SHOTS)
    actual = picked(clip, dataset, tmp_path, "upl", "base_to_new")
    assert actual == [(f"train/{known[image]}", label) for image, label in fewer]


@pytest.mark.ci
@pytest.mark.parametrize("form", ["descriptions", "free_text"])
def test_a_fit_picks_what_a_training_picks(form, pair, dataset, tmp_path, monkeypatch):
    """By the texts that the task has of its classes, which no template is then around."""
    clip, _ = pair
    names = tuple(name.replace("_", " ") for name in CLASS_NAMES)
    dataset = dataclasses.replace(dataset, class_names=names)
    plain = picked(clip, dataset, tmp_path, "upl", "few_shot")
    original, fitted = SweepContext.pseudo_labelled, []

    def recorded(*arguments: Any) -> Split:
        fitted.append(original(*arguments))
        raise hosts.Stopped

    texts = {name: [f"{name} painted by hand", f"an old {name}"] for name in names}
    how = {form: texts if form == "descriptions" else True}
    with monkeypatch.context() as patch, pytest.raises(hosts.Stopped):
        patch.setattr(SweepContext, "pseudo_labelled", recorded)
        clipbias.fit(clip, "upl", dataset, tokens=5, sets=2, shots=SHOTS, mesh=placement.single_device(), **how)
    (images,) = fitted
    same = {"descriptions": Descriptions(texts)} if form == "descriptions" else {"template": "{}"}
    expected = picked(clip, dataclasses.replace(dataset, **same), tmp_path, "upl", "few_shot")
    assert list(zip(images.keys, images.labels.tolist(), strict=True)) == expected != plain


def test_picks_are_per_class_and_by_confidence():
    predicted, other_odds = np.array([0, 1, 0, 0, -1, 1, 3]), np.array([0.3, 0.2, 1e-30, 1e-20, 0.0, 0.2, 9.0])
    np.testing.assert_array_equal(most_confident(predicted, other_odds, shots=2), [2, 3, 1, 5, 6])
    np.testing.assert_array_equal(most_confident(predicted, other_odds, shots=None), [2, 3, 0, 1, 5, 6])
    assert most_confident(predicted[4:5], other_odds[4:5], shots=2).size == 0


def test_no_label_is_looked_at(pair, dataset, tmp_path):
    blind = dataclasses.replace(dataset.splits["train"], labels=np.zeros(30, int))
    blind = dataclasses.replace(dataset, splits={**dataset.splits, "train": blind})
    for method in ("upl", "clap", "coop"):
        labelled, other = (picked(pair[0], data, tmp_path, method, "pseudo_labels") for data in (dataset, blind))
        assert labelled == other
