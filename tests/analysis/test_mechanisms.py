"""Models of the benchmark of explanations, trained and planted: every label is exact."""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipbias
from clipbias import data
from clipbias.analysis.causal import Ablation, PatchedRun, PathPatch, added_to_images, mix_images, mix_texts
from clipbias.analysis.causal_section import outcomes
from clipbias.analysis.model import NOTHING_INSIDE, why_no_causal_test
from clipbias.analysis.results import What, Where
from clipbias.clip import Adaptation, encode_image, encode_text
from clipbias.clip.block import Record, run_block
from clipbias.clip.layers import ATTENDED
from clipbias.clip.vision import embed_image
from clipbias.constants import ZERO_SHOT
from clipbias.tuning import CONSTANTS, Task
from clipbias.tuning.registry import resolve_method
from tests.analysis.models import CLASS_NAMES, moved
from tests.reference import numpy_clip
from tools.mechanisms import labels, score, train
from tools.mechanisms.labels import FAMILIES, Spec
from tools.mechanisms.methods import BIAS, MEAN, centre, map_inputs
from tools.mechanisms.planted import CONFIG, prompts_of
from tools.mechanisms.train import dataset_of, frozen_model, logits_of, normalised, train_model

PATCHED = [
    *(PatchedRun.path(patch) for patch in PathPatch),
    *(PatchedRun.ablated(each) for each in (Ablation.NOTHING, Ablation.RESAMPLE)),
]


def task_of(clip, family):
    """A family's task on a tower of three blocks, and learnables far from where they start; masks stay as they are."""
    task = Task(clip, train.method_of(FAMILIES[family], clip.config.vision.layers), CLASS_NAMES)
    learnables = moved(task)
    if CONSTANTS in learnables:
        learnables[CONSTANTS] = task.init()[CONSTANTS]
    return task, learnables


def assert_does_what_labels_say(family, image, *, close, least):
    """Of image features in `PATCHED`: equal ones to `close`, and what changes by more than `least`."""
    reference, attention, tokens, tuned, nothing, other = image
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=close)
    assert np.abs(tuned - reference).max() > least
    if family.where is Where.ATTENTION:
        same(attention, tuned)
        same(tokens, reference)
    elif family.where is Where.NOT_ATTENTION:
        same(attention, reference)
        same(tokens, tuned)
    if family.what is What.NOTHING:
        same(nothing, tuned)
    elif family.what is not None:
        assert np.abs(nothing - tuned).max() > least
    if family.what is What.SAME:
        same(other, tuned)
    elif family.what is What.DEPENDS:
        assert np.abs(other - tuned).max() > least


CORNERS = ("qk_both", "qk_vision", "query_bias", "last_mlp", "last_bias", "projection")
BIASES = ("late_bias", "start", "bias_by_kind", "bias_by_position", "one_position", "unread_and_bias")
# Constants that a frozen MLP reads: read behind the block, its answer would count as added.
INSIDE = ("values", "last_values", "attention_output", "last_attention_output")


@pytest.mark.ci
@pytest.mark.parametrize("family", [*CORNERS, *BIASES, *INSIDE])
def test_a_model_does_what_its_labels_say(clip, images, family):
    task, learnables = task_of(clip, family)
    tuned = task.method.adapt(learnables)
    seen = mix_images(clip.params, clip.config, images, tuned, PATCHED, donors=images[None, ::-1])
    texts = mix_texts(clip.params, clip.config, task.tokens, tuned, Adaptation(), PATCHED[:4])
    for features in (seen, texts):
        np.testing.assert_allclose(features[2], features[0], atol=1e-5)
        np.testing.assert_allclose(features[5], features[1], atol=1e-5)
    assert_does_what_labels_say(FAMILIES[family], seen[2:], close=2e-5, least=0.02)
    if family in CORNERS:  # the text tower likewise, or CLIP's where images alone are changed
        reference, attention, tokens, tuned_texts = texts[2:]
        assert (np.abs(tuned_texts - reference).max() > 0.02) == (family not in ("qk_vision", "projection"))
        ends = [tuned_texts, reference] if FAMILIES[family].where is Where.ATTENTION else [reference, tuned_texts]
        np.testing.assert_allclose([attention, tokens], ends, atol=1e-5)


def test_a_head_has_no_patched_runs(clip):
    assert why_no_causal_test(task_of(clip, "head")[0]) == NOTHING_INSIDE


def added_at_sums(task, learnables, images, reference):
    """Tuned less frozen attention and tuned less frozen MLP, on the tuned run's tokens, float64: `[2, L, B, N, D]`."""
    config = task.clip.config
    inputs = embed_image(task.clip.params, config, images, task.method.adapt(learnables))
    sizes = reference.config["vision_config"]
    tokens, changes = inputs.tokens, []
    for l in range(config.vision.layers):
        layer = jax.tree.map(lambda leaf, l=l: leaf[l], inputs.layers)
        seen = Record()
        hooks = dataclasses.replace(inputs.hooks(inputs.attend_fused), tap=seen)
        output = np.asarray(run_block(tokens, layer, config.vision, hooks), np.float64)
        middle = np.asarray(seen[ATTENDED], np.float64)
        name = f"vision_model.encoder.layers.{l}"
        attended = numpy_clip.block(
            reference.state, name, sizes, np.asarray(tokens, np.float64), np.zeros(()), 0.0
        ).middle
        normed = numpy_clip.layer_norm(reference.state, f"{name}.layer_norm2", sizes["layer_norm_eps"], middle)
        hidden = numpy_clip.activate(sizes["hidden_act"], numpy_clip.linear(reference.state, f"{name}.mlp.fc1", normed))
        mlp = numpy_clip.linear(reference.state, f"{name}.mlp.fc2", hidden)
        changes.append([middle - attended, output - middle - mlp])
        tokens = output.astype(np.float32)
    return np.asarray(changes).swapaxes(0, 1)


def added(task, learnables, images, reference):
    """Tuned less frozen MLP `[L, B, N, D]` of methods that change nothing before it."""
    attention, mlp = added_at_sums(task, learnables, images, reference)
    np.testing.assert_allclose(attention, 0, atol=2e-5)
    return mlp


# Sum and blocks of three at which a family adds a constant to every token of a type.
PLACES = {
    "bias": (1, [0, 1, 2]),
    "bias_by_kind": (1, [0, 1, 2]),
    "late_bias": (1, [1, 2]),
    "last_bias": (1, [2]),
    "values": (0, [0, 1, 2]),
    "last_values": (0, [2]),
    "attention_output": (0, [0, 1, 2]),
    "last_attention_output": (0, [2]),
}


@pytest.mark.ci
@pytest.mark.parametrize("family", PLACES)
def test_a_constant_is_the_same_for_every_image(clip, images, reference, family):
    changes = added_at_sums(*task_of(clip, family), images, reference)
    for kind in (changes[..., :1, :], changes[..., 1:, :]):
        assert np.ptp(kind, axis=(2, 3)).max() < 2e-5
    place, blocks = PLACES[family]
    is_changed = np.abs(changes).max((2, 3, 4)) > 0.1
    assert np.argwhere(is_changed).tolist() == [[place, block] for block in blocks]


@pytest.mark.ci
def test_nothing_reads_a_map_along_all_ones(clip, images, reference):
    """It differs between images and tokens, and no logit changes."""
    task, learnables = task_of(clip, "unread_and_bias")
    plain, _ = task_of(clip, "bias_by_kind")
    biases = {name: value for name, value in learnables.items() if name != CONSTANTS}
    cases = (task, learnables), (plain, biases)
    np.testing.assert_allclose(*(jax.jit(each.logits)(clip.params, own, images) for each, own in cases), atol=1e-3)
    maps = without_constants(added(task, learnables, images, reference), biases[BIAS])
    assert np.ptp(maps, axis=-1).max() < 1e-4 < 0.1 < maps.std((1, 2)).min()


def without_constants(changes, bias):
    """Additions `[L, B, N, D]` less a constant for `[cls]` and one for patches."""
    bias = np.asarray(bias)
    return changes - np.repeat(bias, [1, changes.shape[2] - 1], axis=1)[:, None]


@pytest.mark.ci
@pytest.mark.parametrize(("family", "share"), [("map_8", None), ("map_quarter", 1 / 4), ("map_three_quarters", 3 / 4)])
def test_a_centred_map_has_mean_zero_and_the_stated_share(clip, images, reference, family, share):
    """The share is the map's squared norm over that of map and bias, both types of token alike."""
    task, learnables = task_of(clip, family)
    if share:
        learnables = {**learnables, BIAS: 7 * learnables[BIAS]}
    centred = centre(task, learnables, images)
    bias = centred.get(BIAS, np.zeros((clip.config.vision.layers, 2, 1)))
    maps = without_constants(added(task, centred, images, reference), bias)
    for kind, of_kind in enumerate((maps[:, :, :1], maps[:, :, 1:])):
        assert np.abs(of_kind.mean((1, 2))).max() < 2e-5
        # It depends on the image in every layer, but for `[cls]` at the first input, which is the same for all.
        assert of_kind.std(1).max((1, 2))[1 - kind :].min() > 0.01
    if share:
        squares = np.square(maps).sum(-1).mean(1)
        of_maps = (squares[:, 0] + squares[:, 1:].mean(1)) / 2
        np.testing.assert_allclose(of_maps / (of_maps + np.square(bias).sum(-1).mean(1)), share, rtol=1e-4)


def test_the_map_is_that_of_its_formula(clip, images, reference):
    task, learnables = task_of(clip, "map_8")
    centred = centre(task, learnables, images)
    down, up = (np.asarray(centred[name], np.float64) for name in ("vision_down", "vision_up"))
    tokens = map_inputs(task, centred, images)
    mean = np.repeat(centred[CONSTANTS][MEAN], [1, tokens.shape[2] - 1], axis=1)
    expected = (tokens - mean[:, None]) @ down[:, None] @ up[:, None]
    np.testing.assert_allclose(added(task, centred, images, reference), expected, atol=2e-5)


def few(name, step):
    dataset = data.load(name)
    splits = {name: split.subset(range(0, len(split), step)) for name, split in dataset.splits.items()}
    return dataclasses.replace(dataset, splits=splits)


@pytest.mark.ci
def test_no_constant_solves_the_marked_task(clip):
    marked = train.marked(clip, few("demo/digits", 15))
    test = marked.split("test")
    assert train.constant_bound(clip, test) == 50
    blind = dataclasses.replace(clip, params=train.blinded(clip))
    task = Task(blind, "bias_by_kind", marked)
    classify = jax.jit(task.logits)
    logits = classify(blind.params, moved(task), normalised(blind, test))
    plain, copies = np.split(np.asarray(logits), 2)
    # Rows of one program may be added up in another order.
    np.testing.assert_allclose(plain, copies, rtol=0, atol=100 * np.finfo("f").eps * np.abs(plain).max())
    assert np.ptp(plain, axis=0).max() > 0.01
    plain_labels, copy_labels = np.split(test.labels, 2)
    assert not plain_labels.any() and copy_labels.all()
    assert train.constant_bound(clip, test.subset(range(len(test) // 2))) == 100


def test_a_reader_of_marks_tells_a_picture_from_its_copy(clip):
    marked = train.marked(clip, few("demo/digits", 60)).split("test")
    task, learnables = task_of(dataclasses.replace(clip, params=train.blinded(clip)), "marked")
    logits = jax.jit(task.logits)(task.clip.params, learnables, normalised(clip, marked))
    assert np.abs(np.subtract(*np.split(np.asarray(logits), 2))).max() > 0.01


def test_shuffled_labels_are_those_of_the_training_images_alone():
    dataset = data.load("demo/digits")
    other = train.shuffled(dataset, seed=1)
    before, after = dataset.split("train"), other.split("train")
    assert sorted(before.labels) == sorted(after.labels) and np.mean(before.labels == after.labels) < 0.3
    assert other.split("test") is dataset.split("test") and after.keys == before.keys


def token_norms(clip, params, images):
    """Norms of the tokens at the input of each block, `[L, B, N]`: one program, wherever the weights lie."""
    observe = lambda view: jnp.linalg.norm(view.tokens, axis=-1)  # noqa: E731
    compute = jax.jit(lambda params, images: encode_image(params, clip.config, images, observe=observe)[1])
    return np.asarray(compute(params, images))


@pytest.mark.ci
def test_planted_outliers_are_few_and_massive_and_decisions_stay():
    demo = clipbias.load("demo")
    dataset = few("demo/digits", 20)
    params = train.plant_outliers(demo, normalised(demo, dataset.split("train")))
    images = normalised(demo, dataset.split("test"))
    norms = token_norms(demo, params, images)[1:]
    ratio = norms / np.median(norms, axis=-1, keepdims=True)
    massive = np.isin(np.arange(norms.shape[-1]), train.outlier_places(demo))
    assert massive.sum() == 2 and ratio[..., ~massive].max() < 5
    assert np.mean(ratio[..., massive] > 10) > 0.95
    task = Task(demo, "zero_shot", dataset)
    plain, planted = (np.asarray(jax.jit(task.logits)(each, {}, images)).argmax(-1) for each in (demo.params, params))
    assert np.mean(plain == planted) > 0.95
    np.testing.assert_array_equal(token_norms(demo, params, images)[0], token_norms(demo, demo.params, images)[0])


PROMPTS = {"vision_prompts": prompts_of(1)}
# By part that harms: runs from the lowest to the highest likelihood.
HARMFUL = {
    "planted_attention_harms": ("attention", "reference", "tuned"),
    "planted_constant_harms": ("reference", "tuned", "attention"),
    "planted_image_harms": ("reference", "tuned", "other"),
}
PLANTED = [name for name, family in FAMILIES.items() if family.mechanism and name not in HARMFUL]


@functools.cache
def planted_task(name):
    """A planted model as it is stored, and its images."""
    spec = Spec(name, labels.PLANTED, outliers=False, seed=1, strength=1.0)
    family = FAMILIES[name]
    dataset = dataset_of(Path(), spec)
    return Task(frozen_model(Path(), spec), resolve_method(family.method, family.options), dataset), dataset


@functools.partial(jax.jit, static_argnames="order")
def planted_features(params, images, order):
    """Features in `PATCHED`; the other image is at the place that `order` gives."""
    tuned = Adaptation(vision_prompts=PROMPTS["vision_prompts"])
    return mix_images(params, CONFIG, images, tuned, PATCHED, donors=images[np.asarray(order)][None])[2:]


@jax.jit
def planted_additions(params, images):
    """Additions of prompts to the attention's output, `[B, L, N, D]`; each image is a group of its own."""
    tuned = Adaptation(vision_prompts=PROMPTS["vision_prompts"])
    groups = added_to_images(CONFIG, params, images, jnp.eye(len(images), dtype=bool), tuned)
    return groups["attention"].mean.swapaxes(0, 1)


def planted_numbers(name, split="train"):
    """Features in `PATCHED` of a planted model, and the additions of its prompts."""
    task, dataset = planted_task(name)
    images = normalised(task.clip, dataset.split(split))
    additions = planted_additions(task.clip.params, images)
    reverse = tuple(reversed(range(len(images))))
    return jax.device_get((planted_features(task.clip.params, images, reverse), additions))


def spread(additions):
    """The largest standard deviation over images."""
    return np.std(additions, axis=0).max()


@pytest.mark.ci
@pytest.mark.parametrize("name", PLANTED)
def test_planted_prompts_do_what_their_labels_say(name):
    family = FAMILIES[name]
    features, additions = planted_numbers(name)
    assert_does_what_labels_say(family, features, close=2e-3, least=0.1)  # a thousandth, as LayerNorm is
    if name == "planted_scale":  # prompts take attention, and their values are 0
        assert max(spread(additions), np.abs(additions.mean(0)).max()) < 2e-3
    elif family.what is What.SAME:
        assert spread(additions) < 2e-3 < 0.1 < np.abs(additions.mean(0)).max()
    elif family.what is What.DEPENDS:
        assert np.abs(additions.mean(0)).max() < 2e-3 < 0.1 < spread(additions)


def likelihoods(name):
    """Calibrated log-likelihood of each test image in `PATCHED`, `[n, 6]`."""
    task, dataset = planted_task(name)
    split = dataset.split("test")
    images = normalised(task.clip, split)
    order = tuple(np.random.default_rng(0).permutation(len(images)).tolist())
    features = np.asarray(planted_features(task.clip.params, images, order))
    zero_shot = Task(task.clip, ZERO_SHOT, dataset)
    texts = np.asarray(encode_text(task.clip.params, CONFIG, zero_shot.tokens)[0])
    features, texts = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (features, texts))
    logits = np.exp(task.clip.params["logit_scale"]) * np.moveaxis(features @ texts.T, 0, 1)
    return outcomes(logits, split.labels).log_likelihood


@pytest.mark.ci
@pytest.mark.parametrize("name", HARMFUL)
def test_a_part_surely_harms(name):
    """By calibrated log-likelihood, each difference by four standard errors."""
    of_runs = dict(
        zip(("reference", "attention", "tokens", "tuned", "nothing", "other"), likelihoods(name).T, strict=True)
    )
    for low, high in itertools.pairwise(of_runs[run] for run in HARMFUL[name]):
        difference = high - low
        assert difference.mean() > 4 * difference.std() / len(difference) ** 0.5
    _, additions = planted_numbers(name)
    assert (spread(additions) < 2e-3) == (FAMILIES[name].what is What.SAME)


@pytest.mark.ci
def test_the_class_explains_all_of_a_constant_by_class():
    task, dataset = planted_task("planted_class")
    split = dataset.split("test")
    images = normalised(task.clip, split)
    classes = logits_of(Task(task.clip, ZERO_SHOT, dataset), {}, split).argmax(-1)
    additions = np.asarray(planted_additions(task.clip.params, images))
    first, second = (additions[classes == c] for c in range(2))
    for of_class in (first, second):
        assert len(of_class) > 100 and spread(of_class) < 1e-5
    assert np.abs(first.mean(0) - second.mean(0)).max() > 1


@pytest.mark.ci
@pytest.mark.parametrize("name", ["planted_none", "planted_attention"])
def test_planted_gains(name):
    """Other evidence that is as good gives no gain in all images together, and better evidence gives one."""
    task, dataset = planted_task(name)
    split = dataset.split("val")
    frozen_task = Task(task.clip, ZERO_SHOT, dataset)
    logits = logits_of(task, PROMPTS, split), logits_of(frozen_task, {}, split)
    tuned, frozen = (each.argmax(-1) == split.labels for each in logits)
    assert (tuned != frozen).mean() > 0.05
    assert abs(tuned.mean() - frozen.mean()) < 0.01 if name == "planted_none" else tuned.mean() > frozen.mean() + 0.1


@pytest.mark.long
@pytest.mark.parametrize(
    "family",
    ["planted_constant", "planted_image", "planted_class", "planted_constant_harms", "planted_image_harms"],
)
def test_planted_prompts_are_explained(family, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "PLANTED_IMAGES", {"train": 16, "val": 600, "test": 300})
    spec = Spec(family, labels.PLANTED, outliers=False, seed=1, strength=1.0)
    train_model(tmp_path, spec, steps=1)
    (scored_model,) = score.score(tmp_path, [spec]).to_dict("records")
    assert scored_model["counts"] and scored_model["truth: what"] == FAMILIES[family].what.value
    assert scored_model["verdict: where"] == FAMILIES[family].where.value
    assert scored_model["verdict: what"] == FAMILIES[family].what.value
