"""The benchmark of explanations: every label is exact, rules read numbers as they say, and scores are counted right."""

import dataclasses

import jax
import numpy as np
import pytest

import clipbias
from clipbias import data
from clipbias.clip import Adaptation
from clipbias.clip.block import run_block
from clipbias.clip.vision import embed_image
from clipbias.explain.factorial import mix_images, mix_texts
from clipbias.explain.results import Average, BiasErrors, Kind, Missing
from clipbias.explain.scope import why_no_causal_test
from clipbias.explain.uncertainty import Estimate, shapley
from clipbias.explain.wording import NOTHING_INSIDE
from clipbias.tuning import CONSTANTS, Task
from tests.explain.models import CLASS_NAMES, moved
from tests.reference import numpy_clip
from tests.report.synthetic import synthetic_results
from tools.mechanisms import models, outliers, rules, tasks, train
from tools.mechanisms.methods import BIAS, MEAN, centre, map_inputs
from tools.mechanisms.models import BOTH, CONSTANT, FAMILIES, IMAGE, NO_GAIN, counts
from tools.mechanisms.rules import UNDECIDED, Answer, by_levels, by_share
from tools.mechanisms.train import normalised

CORNERS = ["RR", "RP", "PR", "PP"]


def task_of(clip, family, **options):
    """A family's task on a tower of three blocks, and learnables far from where they start; masks stay as they are."""
    chosen = FAMILIES[family]
    chosen = dataclasses.replace(chosen, options={**chosen.options, **options})
    task = Task(clip, train.method_of(chosen, clip.config.vision.layers), CLASS_NAMES)
    learnables = moved(task)
    return task, {**learnables, **({CONSTANTS: task.init()[CONSTANTS]} if CONSTANTS in learnables else {})}


def corner_features(task, learnables, images):
    """Features of images and of texts in the four corners, `[4, B, d]`."""
    params, config = task.clip.params, task.clip.config
    tuned = task.method.adapt(learnables)
    mixed = (
        mix_images(params, config, images, tuned, Adaptation(), CORNERS),
        mix_texts(params, config, task.tokens, tuned, Adaptation(), CORNERS),
    )
    for of_tower in mixed:
        np.testing.assert_allclose(of_tower.streams[0], of_tower.reference, atol=1e-5)
        np.testing.assert_allclose(of_tower.streams[-1], of_tower.tuned, atol=1e-5)
    return [np.asarray(of_tower.streams) for of_tower in mixed]


@pytest.mark.ci
@pytest.mark.parametrize("towers", [("vision",), ("vision", "text")])
def test_queries_and_keys_act_through_attention_alone(clip, images, towers):
    task, learnables = task_of(clip, "qk_both", towers=towers)
    seen, texts = corner_features(task, learnables, images)
    for features, is_changed in ((seen, True), (texts, "text" in towers)):
        reference, values, attention, tuned = features
        np.testing.assert_allclose(attention, tuned, atol=1e-5)
        np.testing.assert_allclose(values, reference, atol=1e-5)
        assert (np.abs(tuned - reference).max() > 0.05) == is_changed


@pytest.mark.ci
@pytest.mark.parametrize("family", ["last_mlp", "last_bias", "projection"])
def test_behind_the_last_attention_it_has_no_part(clip, images, family):
    task, learnables = task_of(clip, family)
    by_tower = corner_features(task, learnables, images)
    for features in by_tower:
        reference, values, attention, tuned = features
        np.testing.assert_array_equal(attention, reference)
        np.testing.assert_array_equal(values, tuned)
        assert np.abs(shapley(features.reshape(4, -1).T)[:, 0]).max() == 0
    assert np.abs(by_tower[0][3] - by_tower[0][0]).max() > 0.05


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


@pytest.mark.parametrize("family", ["bias", "bias_by_kind", "last_bias"])
def test_a_bias_is_the_same_for_every_image(clip, images, reference, family):
    task, learnables = task_of(clip, family)
    changes = added(task, learnables, images, reference)
    kinds = changes[:, :, :1], changes[:, :, 1:]
    assert max(np.ptp(kind, axis=(1, 2)).max() for kind in kinds) < 2e-5
    blocks = {"last_bias": 1}.get(family, clip.config.vision.layers)
    is_changed = np.abs(changes).max((1, 2, 3)) > 0.1
    assert is_changed.tolist() == [l >= len(changes) - blocks for l in range(len(changes))]


@pytest.mark.ci
@pytest.mark.parametrize("family", ["map_8", "map_and_bias"])
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
@pytest.mark.parametrize("name", models.DATASETS)
def test_no_constant_solves_the_marked_task(clip, name):
    marked = tasks.marked(clip, few(name, 15))
    test = marked.split("test")
    assert tasks.bound(clip, test) == 50
    blind = dataclasses.replace(clip, params=tasks.blind(clip))
    task = Task(blind, "bias_by_kind", marked)
    classify = jax.jit(task.logits)
    logits = classify(blind.params, moved(task), normalised(blind, test))
    plain, copies = np.split(np.asarray(logits), 2)
    np.testing.assert_array_equal(plain, copies)
    assert np.ptp(plain, axis=0).max() > 0.01
    plain_labels, copy_labels = np.split(test.labels, 2)
    assert not plain_labels.any() and copy_labels.all()
    assert tasks.bound(clip, test.subset(range(len(test) // 2))) == 100
    seeing = classify(clip.params, moved(task), normalised(blind, test))
    assert np.abs(np.subtract(*np.split(np.asarray(seeing), 2))).max() > 1e-4


def test_a_reader_of_marks_tells_a_picture_from_its_copy(clip):
    marked = tasks.marked(clip, few("demo/digits", 60)).split("test")
    task, learnables = task_of(dataclasses.replace(clip, params=tasks.blind(clip)), "marked")
    logits = jax.jit(task.logits)(task.clip.params, learnables, normalised(clip, marked))
    assert np.abs(np.subtract(*np.split(np.asarray(logits), 2))).max() > 0.01


def test_shuffled_labels_are_those_of_the_training_images_alone():
    dataset = data.load("demo/digits")
    other = tasks.shuffled(dataset, seed=1)
    before, after = dataset.split("train"), other.split("train")
    assert sorted(before.labels) == sorted(after.labels) and np.mean(before.labels == after.labels) < 0.3
    assert other.split("test") is dataset.split("test") and after.keys == before.keys


@pytest.mark.ci
def test_planted_outliers_are_few_and_massive_and_decisions_stay():
    demo = clipbias.load("demo")
    dataset = few("demo/digits", 20)
    params = outliers.plant(demo, normalised(demo, dataset.split("train")))
    images = normalised(demo, dataset.split("test"))
    norms = outliers.token_norms(demo, params, images)[1:]
    ratio = norms / np.median(norms, axis=-1, keepdims=True)
    massive = np.isin(np.arange(norms.shape[-1]), outliers.places(demo))
    assert massive.sum() == 2 and ratio[..., ~massive].max() < 5
    assert np.mean(ratio[..., massive] > 10) > 0.95
    task = Task(demo, "zero_shot", dataset)
    plain, planted = (np.asarray(jax.jit(task.logits)(each, {}, images)).argmax(-1) for each in (demo.params, params))
    assert np.mean(plain == planted) > 0.95
    np.testing.assert_array_equal(
        outliers.token_norms(demo, params, images)[0], outliers.token_norms(demo, demo.params, images)[0]
    )


def number(low, high):
    return Estimate((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.51, 1.2, "attention"), (0.49, 1.2, UNDECIDED), (-0.1, 0.24, "no attention"), (-0.1, 0.26, UNDECIDED)],
)
def test_where_by_the_share_of_attention(low, high, expected):
    assert by_share(number(low, high)) == expected
    assert by_share(None) == UNDECIDED


@pytest.mark.parametrize(
    ("constant", "image", "expected"),
    [
        ((0.9, 1.1), (-0.1, 0.1), CONSTANT),
        ((-0.1, 0.1), (0.9, 1.1), IMAGE),
        ((0.4, 0.6), (0.4, 0.6), BOTH),
        ((-0.6, -0.4), (1.4, 1.6), BOTH),
        ((-0.4, -0.1), (1.1, 1.4), UNDECIDED),
        ((1.1, 1.4), (-0.4, -0.1), UNDECIDED),
        ((0.9, 1.1), (-0.1, 0.3), UNDECIDED),
        ((-0.1, 0.3), (0.9, 1.1), UNDECIDED),
    ],
)
def test_what_by_the_levels(constant, image, expected):
    assert by_levels({"constant": number(*constant), "image": number(*image)}) == expected
    assert by_levels({}) == UNDECIDED


def changed(value, path, new):
    """A tree of dataclasses and dictionaries with one value replaced."""
    if not path:
        return new
    name, *rest = path
    if isinstance(value, dict):
        return {**value, name: changed(value[name], rest, new)}
    return dataclasses.replace(value, **{name: changed(getattr(value, name), rest, new)})


@pytest.mark.parametrize(
    ("vision", "text", "expected"),
    [
        (0.97, 0.97, CONSTANT),
        (0.3, 0.3, IMAGE),
        (0.97, 0.3, UNDECIDED),
        (0.89, 0.89, UNDECIDED),
        (0.91, 0.91, UNDECIDED),
    ],
)
def test_the_rule_of_constancy(vision, text, expected):
    results = synthetic_results()
    for tower, value in (("vision", vision), ("text", text)):
        path = ["decomposition", "ivlp", tower]
        results = changed(results, [*path, "mean_constancy", "up_to_depth"], value)
        results = changed(results, [*path, "mean_error"], BiasErrors(0.02, 0.02, {}))
    assert rules.constancy(results, "ivlp") == Answer(what=expected)
    assert rules.constancy(results, "bias") == Answer()


@pytest.mark.parametrize(
    ("order", "factor", "expected"),
    [
        (0.96, 1.04, Answer("no attention", CONSTANT)),
        (0.96, 1.06, Answer("attention")),
        (0.80, 1.00, Answer("attention")),
        (0.91, 1.00, Answer()),
    ],
)
def test_the_rule_of_the_paper(order, factor, expected):
    results = synthetic_results()
    frozen = results.vision_attention["zero_shot"].clip
    scaled = changed(frozen, ["entropy", "mean"], frozen.entropy.mean * factor)
    for name in ("clip", "without_prompt"):
        results = changed(results, ["vision_attention", "ivlp", name], scaled)
    average = Average(np.array([order]), np.array([0.01]))
    results = changed(results, ["relevancy", "ivlp", "all", "order"], average)
    assert rules.paper(results, "ivlp") == expected


def test_rules_of_effects():
    results = synthetic_results()
    effects = ["factorial", "models", "ivlp", "summary", "towers", "both", "calibrated"]
    with_attention = changed(results, [*effects, "effects", "attention", "share"], number(0.6, 0.9))
    assert rules.shapley(with_attention, "ivlp").where == "attention"
    assert rules.shapley(results, "ivlp").where == "no attention"
    alone = changed(results, [*effects, "corners", "PRR", "share"], number(0.6, 0.9))
    assert rules.corners_and_levels(alone, "ivlp").where == "attention"
    assert rules.corners_and_levels(results, "ivlp").where == "no attention"
    levels = ["factorial", "models", "ivlp", "summary", "levels", "vision", "calibrated"]
    constant = changed(results, [*levels, "steps", "constant", "share"], number(0.9, 1.0))
    constant = changed(constant, [*levels, "beyond", "share"], number(0.0, 0.1))
    assert rules.corners_and_levels(constant, "ivlp") == Answer("no attention", CONSTANT)
    assert rules.levels_and_replacement(changed(constant, ["replacement"], None), "ivlp").what == CONSTANT
    assert rules.corners_and_levels(changed(constant, [*levels, "beyond", "share"], None), "ivlp").what == UNDECIDED
    for ends, expected in (((0.6, 0.9), CONSTANT), ((0.1, 0.4), IMAGE), ((0.4, 0.6), UNDECIDED)):
        fitted = changed(results, [*levels, "fitted", "share"], number(*ends))
        assert rules.optimal_ablation(fitted, "ivlp") == Answer(what=expected)
    assert rules.optimal_ablation(changed(results, [*levels, "fitted"], None), "ivlp") == Answer()
    without = changed(results, [*effects, "gain"], number(-0.1, 0.1))
    assert set(rules.explain(without, "ivlp").values()) == {Answer(NO_GAIN, NO_GAIN)}
    outside = changed(results, ["factorial", "models", "bias"], Missing(NOTHING_INSIDE))
    of_method = changed(results.replacement.methods[0], ["gain", "calibrated"], number(0.2, 0.4))
    outside = changed(outside, ["replacement", "methods"], (of_method,))
    of_head = changed(outside, ["factorial", "models", "ivlp"], Missing(""))
    assert rules.gain_of(of_head, "ivlp") == number(0.2, 0.4) != rules.gain_of(results, "ivlp")
    assert rules.shapley(outside, "bias") == rules.corners_and_levels(outside, "bias") == Answer("no attention")


def with_forms(results, shares, less):
    """With these ends of both forms' shares of the gain, and of their agreement less the ceiling's."""
    (method,) = results.replacement.methods
    (any_form,) = (row for row in method.rows if row.student.kind is Kind.FITTED)
    forms = []
    for form, of_share, of_less in zip(rules.FORMS, shares, less, strict=True):
        row = changed(any_form, ["gain", "calibrated", "share"], number(*of_share))
        row = changed(row, ["student", "form"], form)
        forms.append(dataclasses.replace(row, less_ceiling=number(*of_less) if of_less else None))
    return changed(results, ["replacement", "methods"], (dataclasses.replace(method, rows=tuple(forms)),))


@pytest.mark.parametrize(
    ("shares", "less", "of_share", "expected"),
    [
        (((0.4, 0.9), (0.6, 0.9)), ((-0.2, 0.1), (-0.04, 0.1)), CONSTANT, CONSTANT),
        (((0.6, 0.9), (0.6, 0.9)), ((-0.3, -0.1), (-0.3, -0.06)), CONSTANT, IMAGE),
        (((0.6, 0.9), (0.6, 0.9)), ((-0.3, -0.1), (-0.3, -0.04)), CONSTANT, UNDECIDED),
        (((0.6, 0.9), (0.6, 0.9)), ((), ()), CONSTANT, UNDECIDED),  # nothing to compare with
        (((0.1, 0.4), (0.1, 0.4)), ((-0.1, 0.1), (-0.1, 0.1)), IMAGE, IMAGE),
        (((0.1, 0.4), (0.4, 0.6)), ((-0.1, 0.1), (-0.1, 0.1)), UNDECIDED, UNDECIDED),
    ],
)
def test_rules_of_the_best_replacement(shares, less, of_share, expected):
    results = with_forms(synthetic_results(), shares, less)
    assert rules.replacement_share(results, "ivlp") == Answer(what=of_share)
    assert rules.replacement(results, "ivlp") == Answer(what=expected)
    levels = ["factorial", "models", "ivlp", "summary", "levels", "vision", "calibrated"]
    for constant, beyond, said in (
        ((0.9, 1.0), (0.0, 0.1), CONSTANT),
        ((0.0, 0.1), (0.9, 1.0), IMAGE),
        ((0.4, 0.6), (0.4, 0.6), BOTH),
        ((0.0, 0.6), (0.0, 0.6), UNDECIDED),
    ):
        both = changed(results, [*levels, "steps", "constant", "share"], number(*constant))
        both = changed(both, [*levels, "beyond", "share"], number(*beyond))
        assert rules.corners_and_levels(both, "ivlp").what == said
        if said == UNDECIDED:
            agreed = CONSTANT if expected == CONSTANT else UNDECIDED
        else:
            contradicts = expected != UNDECIDED and (expected == CONSTANT) != (said == CONSTANT)
            agreed = UNDECIDED if contradicts else said
        assert rules.levels_and_replacement(both, "ivlp").what == agreed
    assert rules.replacement(changed(results, ["replacement"], None), "ivlp") == Answer()


def test_which_models_count():
    assert counts(FAMILIES["bias"], 1, 0.0, None) and not counts(FAMILIES["bias"], 0, 99.0, None)
    for shuffled in (FAMILIES["bias_shuffled"], FAMILIES["planted_none"]):
        assert counts(shuffled, 0, 0.0, None) and counts(shuffled, -1, 0.0, None) and not counts(shuffled, 1, 0.0, None)
    assert counts(FAMILIES["marked"], 1, 51.0, 50.0) and not counts(FAMILIES["marked"], 1, 49.0, 50.0)


def test_the_table_has_labels_for_both_axes():
    specs = models.table()
    assert len(specs) == len({spec.key for spec in specs}) == 96 + 32
    for axis, labels in models.LABELS.items():
        assert {getattr(family, axis) for family in FAMILIES.values()} == {None, *labels}
    assert all(family.where or family.what for family in FAMILIES.values())
