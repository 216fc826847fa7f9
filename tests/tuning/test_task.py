"""Tasks, what is counted and what is refused; and recipes."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import ClipConfig, TextConfig, VisionConfig
from clipbias.tuning import make_method, parameter_count
from clipbias.tuning.recipe import MOST, Recipe
from tests.tuning.weights_common import SGD

VIT_B_16 = ClipConfig(
    VisionConfig(768, 12, 12, 3072, image_size=224, patch_size=16),
    TextConfig(512, 12, 8, 2048, vocabulary_size=49408, context_length=77, eos_token_id=49407),
    512,
)


# As the authors publish them, or by hand of their rules.
@pytest.mark.parametrize(
    ("method", "options", "vision", "text", "shared"),
    [
        ("bias", {}, 9_216, 6_144, 0),
        ("bias", {"text_tower": False}, 9_216, 0, 0),
        ("ivlp_matched", {}, 9_216, 6_144, 0),
        ("bias_by_kind", {}, 18_432, 12_288, 0),
        ("ivlp_matched_2", {}, 18_432, 12_288, 0),
        ("coop", {}, 0, 2_048, 0),
        ("maple", {}, 0, 9_216, 3_545_856),
        ("bitfit", {}, 75_264, 49_664, 0),
        ("bitfit", {"qkv": True}, 75_264 + 12 * 3 * 768, 49_664 + 12 * 3 * 512, 0),
        ("layer_norm", {}, 36_864, 24_576, 0),
        ("layer_norm", {"outer": True}, 36_864 + 4 * 768, 24_576 + 2 * 512, 0),
        ("two_stage", {}, 36_864, 24_576, 2 * 512),
        ("clip_lora", {}, 110_592, 73_728, 0),
        ("clip_lora", {"parts": ("v",), "rank": 4, "first_block": 7}, 6 * 8 * 768, 6 * 8 * 512, 0),
        ("lora", {}, 12 * 27_648, 12 * 18_432, 0),
        ("prolip", {}, 393_216, 0, 0),
        ("tcp", {}, 0, 331_904, 0),
        ("mma", {}, 399_616, 266_496, 8_448),
        ("mmrl", {}, 7 * 513 * 768 + 768 * 512, 7 * 513 * 512, 2_560),
    ],
)
def test_parameter_counts_of_vit_b_16(clip, method, options, vision, text, shared):
    tower = {**clip.params["text"], "token_embedding": np.zeros((len(clip.tokenizer), 512), np.float32)}
    large = dataclasses.replace(clip, config=VIT_B_16, params={**clip.params, "text": tower})
    counts = parameter_count(clipbias.Task(large, method, ("cat", "dog"), **options).shapes)
    assert counts == {"vision": vision, "text": text, "shared": shared, "total": vision + text + shared}


@pytest.mark.parametrize("method", ["maple", "bias_by_kind"])
def test_learnables_of_a_file_may_be_closed_over(clip, method):
    task = clipbias.Task(clip, method, ("cat", "dog"))
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    learnables = jax.device_get(task.init())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(learnables))
    # A NumPy array takes no traced index, which is found while tracing.
    assert jax.eval_shape(lambda images: task.logits(clip.params, learnables, images), images).shape == (1, 2)


@pytest.mark.parametrize("method", ["prograd", "kgcoop", "tcp"])
def test_a_task_says_its_prompt_and_its_teachers(clip, method):
    template = "a type of pet, a photo of a {}."
    task = clipbias.Task(clip, method, ("cat", "dog"), template=template)
    assert task.teacher_prompt.templates == (template,) and task.prompt.templates[0] != template
    assert task.with_method(task.method).prompt == clipbias.Task(clip, method, task).prompt == task.prompt


def test_the_loss_takes_labels_by_number_and_by_name(clip):
    task = clipbias.Task(clip, "bias", ("cat", "dog"))
    arguments = clip.params, task.init(), np.zeros((2, 16, 16, 3), np.float32)
    expected = task.loss(*arguments, np.asarray([1, 0]))
    assert expected == task.loss(*arguments, ["dog", "cat"]) == task.loss(*arguments, (1, 0))
    loss = jax.jit(task.loss)
    np.testing.assert_allclose(loss(*arguments, [1, 0]), expected, rtol=1e-6)
    assert np.isnan(loss(*arguments, [1, 2])) and np.isnan(loss(*arguments, [-1, 0]))


def test_memory_settings_change_the_program_and_not_the_task(clip):
    task = clipbias.Task(clip, "bias", ("cat", "dog", "bird"))
    smaller = task.with_memory(class_chunks=2)
    shared = smaller.with_memory(class_shards=2)
    assert [x.classifier.class_chunks for x in (task, smaller, shared)] == [1, 2, 1]
    assert [len(x.text.ids) for x in (task, smaller, shared)] == [1, 2, 2]
    assert shared.with_method(clipbias.Task(clip, "vpt", ("a",)).method).text.ids.shape[0] == 2
    assert task.with_memory().classifier == task.classifier and smaller.method is task.method


# How methods are trained by their authors' recipes, or by the common one


AUTHORS = {"recipe": "authors"}
COMMON = {"recipe": "common"}
LORA = dict(learning_rate=2e-4, optimizer="adamw", weight_decay=1e-2, schedule="steps", final_learning_rate=1e-6)
LORA |= dict(batch_size=32, keep_last=True, crop=0.08)
ADAM = dict(learning_rate=1e-5, epochs=300, batch_size=MOST, weight_decay=0.0, optimizer="adam", epsilon=1e-4)
ADAM |= dict(schedule="steps", crop=0.5)
MMRL = dict(optimizer="adamw", crop=0.5)


def warmed(learning_rate: float, epochs: int, batch_size: int) -> dict[str, Any]:
    """As CoOp's."""
    named = dict(learning_rate=learning_rate, epochs=epochs, batch_size=batch_size)
    return named | dict(warmup_epochs=1, warmup_learning_rate=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "shots", "changes"),
    [
        *((name, {}, 4, {}) for name in ("bitfit", "layer_norm", "clip_adapter", "mma", "tcp")),
        *((name, COMMON, 4, {}) for name in ("clip_lora", "prolip", "clap", "zs_lp", "tip_adapter_f", "two_stage")),
        *((name, {}, 16, {}) for name in ("kgcoop", "prograd", "promptsrc", "promptsrc_base_to_new")),
        *((name, AUTHORS, 4, LORA | {"steps": 1200}) for name in ("bitfit", "layer_norm")),
        ("bitfit", AUTHORS, None, LORA | {"steps": 4800}),
        *(("clip_lora", {}, shots, LORA | {"steps": 8000}) for shots in (16, None)),
        ("prolip", {}, 4, ADAM),
        *((name, {}, 4, warmed(0.1, 300, 256) | {"weight_decay": 0.0}) for name in ("clap", "zs_lp")),
        ("clip_adapter", AUTHORS, 16, warmed(0.002, 200, 32)),
        ("mma", AUTHORS, 16, warmed(0.0015, 5, 16) | {"warmup_epochs": 0}),
        ("mmrl", {}, 16, warmed(0.001, 50, 32) | MMRL),
        ("mmrl_base_to_new", {}, 16, warmed(0.001, 10, 4) | MMRL),
        ("mmrl", {"epochs": 1}, 16, warmed(0.001, 1, 32) | MMRL | {"warmup_epochs": 0}),
        ("kgcoop", AUTHORS, 16, warmed(0.002, 100, 128)),
        *(
            ("prograd", AUTHORS, shots, warmed(0.002, epochs, 32))
            for shots, epochs in ((1, 50), (2, 100), (4, 100), (8, 200), (16, 200), (None, 200))
        ),
        ("promptsrc", AUTHORS, 16, warmed(0.0025, 50, 4)),
        ("promptsrc_base_to_new", AUTHORS, 16, warmed(0.0025, 20, 4)),
        ("promptsrc_cross_dataset", AUTHORS, 16, warmed(0.0025, 20, 4)),
        ("tcp", AUTHORS, 16, warmed(0.002, 50, 32) | {"optimizer": "adam", "epsilon": 1e-3}),
    ],
)
def test_recipes(name, options, shots, changes):
    assert make_method(name, **options).recipe_for(SGD, shots) == dataclasses.replace(SGD, **changes)


def test_candidates_are_the_recipes_rate_and_larger_ones():
    assert Recipe().candidates() == (0.0025, 0.02, 0.16, 1.28)
    lora = make_method("clip_lora").recipe_for(Recipe(), 4)
    assert lora.candidates() == pytest.approx((2e-4, 8e-4, 3.2e-3, 1.28e-2))


def test_a_third_of_the_steps():
    """Of ten images in batches of 4: two steps an epoch."""
    short = Recipe(epochs=9, batch_size=4, warmup_epochs=4).shortened(10)
    assert (short.total_steps(10), short.total_steps(6), short.warmup_epochs) == (6, 6, 1)
    rates = 0.0025 * (1 + np.cos(np.pi * (np.arange(3) - 1) / 3)) / 2
    np.testing.assert_allclose(short.step_rates(10), np.repeat([1e-5, *rates[1:]], 2))
    assert Recipe(epochs=1, batch_size=4).shortened(3).total_steps(3) == 1
    assert Recipe().shortened(24).total_steps(18) == 100  # of the 300 steps that a small set makes
    lora = make_method("clip_lora").recipe_for(Recipe(), 4)
    assert lora.shortened(12).total_steps(9) == 2000 // 3


def test_a_warm_up_is_never_the_whole_training():
    """It would train at 1e-5 alone. Where another epoch follows the rates stay what they were."""
    np.testing.assert_allclose(Recipe(epochs=1).learning_rates(), [0.0025])
    np.testing.assert_allclose(
        Recipe(epochs=3, warmup_epochs=3).step_rates(32), Recipe(epochs=3, warmup_epochs=0).step_rates(32)
    )
    np.testing.assert_allclose(Recipe(epochs=2).learning_rates(), [1e-5, 0.0025])
