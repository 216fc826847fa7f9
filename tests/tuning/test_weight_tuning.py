"""BitFit, LayerNorm tuning and 2SFS: what they tune, 2SFS's stages against NumPy, and other classes."""

import dataclasses

import jax
import numpy as np
import pytest

import clipbias
from clipbias.tuning import CONSTANTS, Task, make_method
from clipbias.tuning.adapter import transfer
from clipbias.tuning.methods.two_stage import SecondStage, TwoStage
from tests.reference import optimizers, weight_tuning
from tests.reference.numpy_clip import cross_entropy
from tests.tuning import weights_common as common

OTHERS = ("bird dog", "a cat")


@pytest.mark.parametrize(
    ("method", "options", "names"),
    [
        ("bitfit", {}, weight_tuning.bitfit_names),
        ("bitfit", {"qkv": True}, weight_tuning.bitfit_names),
        ("layer_norm", {}, weight_tuning.layer_norm_names),
        ("layer_norm", {"outer": True}, weight_tuning.layer_norm_names),
    ],
)
def test_what_is_tuned(method, options, names, other):
    clip, reference = other
    learnables = clipbias.Task(clip, method, common.CLASS_NAMES, **options).init()
    assert sorted(common.named(learnables)) == sorted(names(reference.config, **options))
    assert all(not leaf.any() for leaf in jax.tree.leaves(learnables))


def test_bitfit_of_the_mlps_outputs_is_bias_tuning(other):
    """It changes the same biases, as another test's reference has it, and decays these changes alone."""
    clip, _ = other
    bias = clipbias.Task(clip, "bias", common.CLASS_NAMES)
    part = clipbias.Task(clip, "bitfit", common.CLASS_NAMES, only=("fc2",), decay="changes")
    same = {
        f"{tower}_weights": {"layers": {"fc2": {"bias": bias.shapes[f"{tower}_bias"]}}} for tower in ("vision", "text")
    }
    assert jax.tree.map(np.shape, part.init()) == jax.tree.map(np.shape, same)
    start = part.init()
    assert part.method.decayed_weights(start, clip.params) is start


@pytest.mark.ci
def test_the_second_stage_equals_numpy(other):
    clip, reference = other
    whole = Task(clip, "two_stage", common.CLASS_NAMES)
    method = whole.method
    assert isinstance(method, TwoStage)
    first = common.drawn(method.next_stage(0, whole.shapes, None), 0.2)  # as after the first stage
    tuned = {key: change + reference.state[key] for key, change in common.named(first).items()}
    text = Task(clip, method.first, common.CLASS_NAMES).text_features(clip.params, first)
    start = method.next_stage(1, first, np.asarray(text)[None])
    expected = weight_tuning.second_stage_start(reference, common.CLASS_NAMES, tuned)
    common.close(start["classes"], expected, common.LOGITS)

    task = Task(clip, SecondStage(method.first), common.CLASS_NAMES)
    images = common.pictures(clip.config.vision.image_size)[1]
    classes = np.asarray(start["classes"])
    logits = weight_tuning.second_stage_logits(reference, tuned, classes, images)

    # The method's own learnables are the same classifier.
    stage_learnables = method.next_stage(2, start, None)
    assert jax.tree.structure(stage_learnables) == jax.tree.structure(whole.shapes)
    compute = jax.jit(whole.logits)
    common.close(compute(clip.params, stage_learnables, images.astype(np.float32)), logits, common.LOGITS)

    def rule(values: common.Values, step: common.Step) -> tuple:
        logits = weight_tuning.second_stage_logits(reference, tuned, values["classes"], step.images)
        return {"cross_entropy": cross_entropy(logits, common.LABELS)}, logits

    recipe = dataclasses.replace(common.SGD, optimizer="adamw", weight_decay=0.5, epsilon=1e-3)
    # Nothing else is stepped.
    training = common.Training(recipe, optimizers.AdamW(epsilon=1e-3, weight_decay=0.5))
    common.check_training(task, start, rule, training)


@pytest.mark.ci
def test_other_classes_are_those_of_the_tuned_text_tower(other):
    clip, reference = other
    source, target = (Task(clip, "two_stage", names) for names in (common.CLASS_NAMES, OTHERS))
    learnables = common.drawn(source.shapes, 0.2)
    first = common.named(source.method.next_stage(0, learnables, None))
    tuned = {key: change + reference.state[key] for key, change in first.items()}
    moved = transfer(source, target, learnables)
    images = common.pictures(clip.config.vision.image_size)[1]
    expected = weight_tuning.weights_forward(reference, OTHERS, tuned, images).logits
    common.close(jax.jit(target.logits)(clip.params, moved, images.astype(np.float32)), expected, common.LOGITS)
    # Of the classes of training, in another order, the learned rows.
    some = Task(clip, "two_stage", common.CLASS_NAMES[3:1:-1])
    rows = transfer(source, some, learnables, labels=[3, 2])["classes"]
    np.testing.assert_array_equal(rows, np.asarray(learnables["classes"])[[3, 2]])


def test_the_stages_share_the_recipe():
    method = make_method("two_stage")
    recipe = method.recipe_for(common.SGD, 4)
    (first, first_recipe), (second, two) = method.stages(recipe)
    assert (first_recipe.steps, two.steps) == (4 * 180, 4 * 120) and first == method.first
    assert first_recipe == dataclasses.replace(recipe, steps=first_recipe.steps) and two == dataclasses.replace(
        recipe, steps=two.steps
    )
    assert second == SecondStage(method.first)
    ten = dataclasses.replace(common.SGD, epochs=10)
    assert [recipe.epochs for _, recipe in make_method("two_stage", recipe="common").stages(ten)] == [6, 4]
    assert [recipe.epochs for _, recipe in make_method("two_stage", share=1.0).stages(ten)] == [9, 1]
    tuned = make_method("two_stage", tuned="bitfit", towers=("text",))
    assert set(tuned.first.init(jax.random.key(0), clipbias.load("demo"), ("cat",))) == {"text_weights"}
    assert CONSTANTS not in tuned.init(jax.random.key(0), clipbias.load("demo"), ("cat",))
