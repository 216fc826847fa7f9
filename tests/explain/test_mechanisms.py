"""The benchmark of explanations: every label is exact, rules read numbers as they say, and scores are counted right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipbias
from clipbias import data
from clipbias.clip import Adaptation, encode_image
from clipbias.clip.block import run_block
from clipbias.clip.vision import embed_image
from clipbias.explain.causal import Corner, Level, Stream, mix_images, mix_texts
from clipbias.explain.model import NOTHING_INSIDE, why_no_causal_test
from clipbias.explain.results import Average, Kind, Labels, What, Where
from clipbias.explain.uncertainty import Estimate
from clipbias.tuning import CONSTANTS, Task
from tests.explain.models import CLASS_NAMES, moved
from tests.reference import numpy_clip
from tests.report.synthetic import synthetic_results
from tools.mechanisms import labels, train
from tools.mechanisms.labels import FAMILIES, UNDECIDED, Answer, counts
from tools.mechanisms.methods import BIAS, MEAN, centre, map_inputs
from tools.mechanisms.train import normalised

STREAMS = [*(Stream.corner(corner) for corner in Corner), *(Stream.at(level) for level in (Level.NOTHING, Level.OTHER))]


def task_of(clip, family, **options):
    """A family's task on a tower of three blocks, and learnables far from where they start; masks stay as they are."""
    chosen = FAMILIES[family]
    chosen = dataclasses.replace(chosen, options={**chosen.options, **options})
    task = Task(clip, train.method_of(chosen, clip.config.vision.layers), CLASS_NAMES)
    learnables = moved(task)
    return task, {**learnables, **({CONSTANTS: task.init()[CONSTANTS]} if CONSTANTS in learnables else {})}


def stream_features(task, learnables, images):
    """Features of images in the corners, with nothing and with another image's values, and of texts in the corners."""
    params, config = task.clip.params, task.clip.config
    tuned = task.method.adapt(learnables)
    seen = mix_images(params, config, images, tuned, STREAMS, donors=images[None, ::-1])
    texts = mix_texts(params, config, task.tokens, tuned, Adaptation(), STREAMS[:4])
    for of_tower in (seen, texts):
        np.testing.assert_allclose(of_tower.streams[0], of_tower.reference, atol=1e-5)
        np.testing.assert_allclose(of_tower.streams[3], of_tower.tuned, atol=1e-5)
    return np.asarray(seen.streams), np.asarray(texts.streams)


@pytest.mark.ci
@pytest.mark.parametrize(("family", "text"), [("qk_both", True), ("qk_vision", False), ("query_bias", True)])
def test_queries_and_keys_act_through_attention_alone_and_add_nothing(clip, images, family, text):
    task, learnables = task_of(clip, family)
    seen, texts = stream_features(task, learnables, images)
    for features, is_changed in ((seen, True), (texts, text)):
        reference, attention, tokens, tuned = features[:4]
        np.testing.assert_allclose(attention, tuned, atol=1e-5)
        np.testing.assert_allclose(tokens, reference, atol=1e-5)
        assert (np.abs(tuned - reference).max() > 0.02) == is_changed
    np.testing.assert_allclose(seen[4], seen[3], atol=1e-5)  # nothing in the place of what is added


@pytest.mark.ci
@pytest.mark.parametrize("family", ["last_mlp", "last_bias", "projection"])
def test_behind_the_last_attention_it_has_no_part(clip, images, family):
    task, learnables = task_of(clip, family)
    seen, texts = stream_features(task, learnables, images)
    for features in (seen, texts):
        reference, attention, tokens, tuned = features[:4]
        np.testing.assert_array_equal(attention, reference)
        np.testing.assert_allclose(tokens, tuned, atol=1e-5)
    assert np.abs(seen[3] - seen[0]).max() > 0.05
    if family == "projection":
        np.testing.assert_allclose(seen[4], seen[3], atol=1e-5)
    else:
        assert np.abs(seen[4] - seen[3]).max() > 0.05


@pytest.mark.ci
@pytest.mark.parametrize("family", ["last_bias", "late_bias", "bias_by_kind", "bias_by_position"])
def test_exchanging_a_bias_between_images_changes_nothing(clip, images, family):
    task, learnables = task_of(clip, family)
    seen, _ = stream_features(task, learnables, images)
    np.testing.assert_allclose(seen[5], seen[3], atol=2e-5)
    assert np.abs(seen[4] - seen[3]).max() > 0.02


def test_a_bias_by_position_has_mean_0_by_kind(clip):
    task, learnables = task_of(clip, "bias_by_position")
    bias = np.asarray(task.method.adapt(learnables).vision_bias)
    assert bias.shape[1] == clip.config.vision.tokens and not bias[:, 0].any()
    np.testing.assert_allclose(bias[:, 1:].mean(1), 0, atol=1e-7)
    assert np.abs(bias[:, 1:]).max() > 0.1


def test_a_head_has_no_corners(clip):
    assert why_no_causal_test(task_of(clip, "head")[0]) == NOTHING_INSIDE


def added(task, learnables, images, reference):
    """What each tuned block gives beyond the frozen one, in float64, on the same tokens: `[L, B, N, D]`."""
    config = task.clip.config
    inputs = embed_image(task.clip.params, config, images, task.method.adapt(learnables))
    sizes = reference.config["vision_config"]
    tokens, changes = inputs.tokens, []
    for l in range(config.vision.layers):
        layer = jax.tree.map(lambda leaf, l=l: leaf[l], inputs.layers)
        output = run_block(tokens, layer, config.vision, inputs.hooks(inputs.attend_fused))
        name = f"vision_model.encoder.layers.{l}"
        x = np.asarray(tokens, np.float64)
        frozen = numpy_clip.block(reference.state, name, sizes, x, np.zeros(()), 0.0).output
        changes.append(np.asarray(output, np.float64) - frozen)
        tokens = output
    return np.stack(changes)


@pytest.mark.parametrize("family", ["bias", "bias_by_kind", "last_bias", "late_bias"])
def test_a_bias_is_the_same_for_every_image(clip, images, reference, family):
    task, learnables = task_of(clip, family)
    changes = added(task, learnables, images, reference)
    kinds = changes[:, :, :1], changes[:, :, 1:]
    assert max(np.ptp(kind, axis=(1, 2)).max() for kind in kinds) < 2e-5
    blocks = {"last_bias": 1, "late_bias": 2}.get(family, clip.config.vision.layers)
    is_changed = np.abs(changes).max((1, 2, 3)) > 0.1
    assert is_changed.tolist() == [l >= len(changes) - blocks for l in range(len(changes))]


@pytest.mark.ci
@pytest.mark.parametrize("family", ["map_2", "map_8", "map_and_bias"])
def test_a_centred_map_has_mean_zero_by_layer_and_kind(clip, images, reference, family):
    task, learnables = task_of(clip, family)
    many = np.concatenate([images, images[:, ::-1], images[:, :, ::-1]])
    centred = centre(task, learnables, many)
    changes = added(task, centred, many, reference)
    bias = centred.get(BIAS, np.zeros((len(changes), 2, 1)))
    for kind, of_kind in enumerate((changes[:, :, :1], changes[:, :, 1:])):
        off = of_kind.mean((1, 2)) - bias[:, kind]
        assert np.abs(off).max() < 2e-5, off
        # It depends on the image in every layer, but for `[cls]` at the first input, which is the same for all.
        assert of_kind.std(1).max((1, 2))[1 - kind :].min() > 0.05
    assert np.abs(added(task, learnables, many, reference).mean((1, 2))).max() > 0.02


def test_map_and_bias_have_the_stated_ratio(clip, images, reference):
    task, learnables = task_of(clip, "map_and_bias")
    learnables = {**learnables, BIAS: 7 * learnables[BIAS]}
    centred = centre(task, learnables, images)
    constants = centred[BIAS]
    maps = added(task, centred, images, reference)
    maps[:, :, :1] -= constants[:, None, :1]
    maps[:, :, 1:] -= constants[:, None, 1:]
    squares = np.square(maps).sum(-1).mean(1)
    of_maps = (squares[:, 0] + squares[:, 1:].mean(1)) / 2
    np.testing.assert_allclose(of_maps, np.square(constants).sum(-1).mean(1), rtol=1e-4)


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
    splits = {
        split: dataset.splits[split].subset(range(0, len(dataset.splits[split]), step)) for split in dataset.splits
    }
    return dataclasses.replace(dataset, splits=splits)


@pytest.mark.ci
@pytest.mark.parametrize("name", labels.DATASETS)
def test_no_constant_solves_the_marked_task(clip, name):
    marked = train.marked(clip, few(name, 15))
    test = marked.split("test")
    assert train.constant_bound(clip, test) == 50
    blind = dataclasses.replace(clip, params=train.blinded(clip))
    task = Task(blind, "bias_by_kind", marked)
    classify = jax.jit(task.logits)
    logits = classify(blind.params, moved(task), normalised(blind, test))
    plain, copies = np.split(np.asarray(logits), 2)
    np.testing.assert_array_equal(plain, copies)
    assert np.ptp(plain, axis=0).max() > 0.01
    plain_labels, copy_labels = np.split(test.labels, 2)
    assert not plain_labels.any() and copy_labels.all()
    assert train.constant_bound(clip, test.subset(range(len(test) // 2))) == 100
    seeing = classify(clip.params, moved(task), normalised(blind, test))
    assert np.abs(np.subtract(*np.split(np.asarray(seeing), 2))).max() > 1e-4


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
    """Norms of the tokens at the input of each block, `[L, B, N]`."""
    observe = lambda view: jnp.linalg.norm(view.tokens, axis=-1)  # noqa: E731
    return np.asarray(encode_image(params, clip.config, images, observe=observe)[1])


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


def number(low, high):
    return Estimate((low + high) / 2, low, high)


def changed(value, path, new):
    """A tree of dataclasses and dictionaries with one value replaced."""
    if not path:
        return new
    name, *rest = path
    if isinstance(value, dict):
        return {**value, name: changed(value[name], rest, new)}
    return dataclasses.replace(value, **{name: changed(getattr(value, name), rest, new)})


@pytest.mark.parametrize(("order", "expected"), [(0.96, "not attention"), (0.80, "attention"), (0.91, UNDECIDED)])
def test_the_rule_of_patches(order, expected):
    results = synthetic_results()
    for key in ("ivlp", "bias"):
        average = Average(np.array([order]), np.array([0.01]))
        results = changed(results, ["relevancy", key, "corrected", "order"], average)
    assert labels.patch_relevancy(results, "ivlp") == Answer(where=expected)
    assert labels.patch_relevancy(results, "bias") == Answer()  # without prompts


@pytest.mark.parametrize(("factor", "expected"), [(1.04, "not attention"), (1.06, "attention")])
def test_the_rule_of_distance_and_entropy(factor, expected):
    results = synthetic_results()
    frozen = results.vision_attention["zero_shot"].clip
    scaled = changed(frozen, ["entropy", "mean"], frozen.entropy.mean * factor)
    for name in ("clip", "without_prompt"):
        results = changed(results, ["vision_attention", "ivlp", name], scaled)
    assert labels.attention_statistics(results, "ivlp") == Answer(where=expected)
    assert labels.attention_statistics(results, "bias") == Answer()


def test_the_verdict_is_the_packages():
    results = synthetic_results()
    for method in results.methods:
        assert labels.verdict(results, method.models[0]) == Answer(method.labels.where.value, method.labels.what.value)
    none = tuple(dataclasses.replace(method, labels=Labels(Where.NO_GAIN, None)) for method in results.methods)
    none = dataclasses.replace(results, methods=none)
    assert labels.gains(results, "ivlp") and not labels.gains(none, "ivlp")
    assert set(labels.explain(none, "ivlp").values()) == {Answer(where="no gain")}
    few = dataclasses.replace(
        results, methods=tuple(dataclasses.replace(method, labels=None) for method in results.methods)
    )
    assert labels.verdict(few, "ivlp") == Answer()


def with_forms(results, shares, less):
    """With these ends of both forms' shares of the gain, and of their agreement less the ceiling's."""
    (method,) = results.replacement.methods
    (any_form,) = (row for row in method.rows if row.student.kind is Kind.FITTED)
    forms = []
    for form, of_share, of_less in zip(labels.FORMS, shares, less, strict=True):
        row = changed(any_form, ["gain", "log_likelihood", "share"], number(*of_share))
        row = changed(row, ["student", "form"], form)
        forms.append(dataclasses.replace(row, less_ceiling=number(*of_less) if of_less else None))
    return changed(results, ["replacement", "methods"], (dataclasses.replace(method, rows=tuple(forms)),))


@pytest.mark.parametrize(
    ("shares", "less", "of_share", "expected"),
    [
        (((0.4, 0.9), (0.6, 0.9)), ((-0.2, 0.1), (-0.04, 0.1)), What.SAME.value, What.SAME.value),
        (((0.6, 0.9), (0.6, 0.9)), ((-0.3, -0.1), (-0.3, -0.06)), What.SAME.value, What.DEPENDS.value),
        (((0.6, 0.9), (0.6, 0.9)), ((-0.3, -0.1), (-0.3, -0.04)), What.SAME.value, UNDECIDED),
        (((0.6, 0.9), (0.6, 0.9)), ((), ()), What.SAME.value, UNDECIDED),  # nothing to compare with
        (((0.1, 0.4), (0.1, 0.4)), ((-0.1, 0.1), (-0.1, 0.1)), What.DEPENDS.value, What.DEPENDS.value),
        (((0.1, 0.4), (0.4, 0.6)), ((-0.1, 0.1), (-0.1, 0.1)), UNDECIDED, UNDECIDED),
    ],
)
def test_the_rules_of_fitted_constants(shares, less, of_share, expected):
    results = with_forms(synthetic_results(), shares, less)
    share, ceiling = (labels.RULES[f"fitted constant: {name}"] for name in ("share", "against the ceiling"))
    assert share(results, "ivlp") == Answer(what=of_share)
    assert ceiling(results, "ivlp") == Answer(what=expected)
    assert share(changed(results, ["replacement"], None), "ivlp") == Answer()
    assert ceiling(changed(results, ["replacement"], None), "ivlp") == Answer()


def test_which_models_count():
    assert counts(FAMILIES["bias"], 1, 0.0, None) and not counts(FAMILIES["bias"], 0, 99.0, None)
    for shuffled in (FAMILIES["bias_shuffled"], FAMILIES["planted_none"]):
        assert counts(shuffled, 0, 0.0, None) and counts(shuffled, -1, 0.0, None) and not counts(shuffled, 1, 0.0, None)
    assert counts(FAMILIES["marked"], 1, 51.0, 50.0) and not counts(FAMILIES["marked"], 1, 49.0, 50.0)


def test_the_table_has_all_labels_of_both_axes():
    specs = labels.table()
    trained = sum(family.mechanism is None for family in FAMILIES.values())
    assert len(specs) == len({spec.key for spec in specs}) == 8 * trained + 4 * (len(FAMILIES) - trained)
    assert {family.where for family in FAMILIES.values()} == {None, *Where} - {Where.UNDECIDED}
    assert {family.what for family in FAMILIES.values()} == {None, *What} - {What.UNDECIDED}
    assert all(family.where or family.what for family in FAMILIES.values())
