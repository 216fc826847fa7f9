"""Tasks: what is counted and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import ClipConfig, TextConfig, VisionConfig
from clipbias.tuning import parameter_count

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
        ("bitfit", {"only": ("fc2",)}, 12 * 768, 12 * 512, 0),
        ("layer_norm", {}, 36_864, 24_576, 0),
        ("layer_norm", {"outer": True}, 36_864 + 4 * 768, 24_576 + 2 * 512, 0),
        ("layer_norm", {"towers": ("text",)}, 0, 24_576, 0),
        ("two_stage", {}, 36_864, 24_576, 2 * 512),
        ("clip_lora", {}, 110_592, 73_728, 0),
        ("clip_lora", {"parts": ("q", "v", "o")}, 110_592, 73_728, 0),
        ("clip_lora", {"parts": ("v",), "rank": 4, "first_block": 7}, 6 * 8 * 768, 6 * 8 * 512, 0),
        ("clip_lora", {"towers": ("vision",)}, 110_592, 0, 0),
        ("lora", {}, 12 * 27_648, 12 * 18_432, 0),
        ("prolip", {}, 393_216, 0, 0),
        ("tcp", {}, 0, 331_904, 0),
        ("mma", {}, 399_616, 266_496, 8_448),
        ("mmrl", {}, 7 * 513 * 768 + 768 * 512, 7 * 513 * 512, 2_560),
        ("mmrl", {"space": 2048}, 7 * 2049 * 768 + 768 * 512, 7 * 2049 * 512, 5 * 2048),
    ],
)
def test_parameter_counts_of_vit_b_16(clip, method, options, vision, text, shared):
    tower = {**clip.params["text"], "token_embedding": np.zeros((len(clip.tokenizer), 512), np.float32)}
    large = dataclasses.replace(clip, config=VIT_B_16, params={**clip.params, "text": tower})
    counts = parameter_count(clipbias.Task(large, method, ("cat", "dog"), **options).shapes)
    assert counts == {"vision": vision, "text": text, "shared": shared, "total": vision + text + shared}


@pytest.mark.parametrize("method", ["coop", "ivlp", "maple", "taskres", "bias_by_kind"])
def test_learnables_of_a_file_may_be_closed_over(clip, method):
    task = clipbias.Task(clip, method, ("cat", "dog"))
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    learnables = jax.device_get(task.init())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(learnables))
    # A NumPy array takes no traced index, which is found while tracing.
    assert jax.eval_shape(lambda images: task.logits(clip.params, learnables, images), images).shape == (1, 2)


@pytest.mark.parametrize("method", ["prograd", "kgcoop", "tcp"])
def test_a_template_that_the_teacher_alone_takes_is_said(clip, method, caplog):
    names = ("cat", "dog")
    template = "a type of pet, a photo of a {}."
    task = clipbias.Task(clip, method, names, template=template)
    assert task.teacher_prompt.templates == (template,) and task.prompt.templates[0] != template
    assert f"teacher {template!r}" in repr(task) and f"prompt {task.prompt.templates[0]!r}" in repr(task)
    (message,) = caplog.messages
    assert message.startswith(f"Only {method}'s frozen teacher uses the template {template!r}; class names stand in")
    caplog.clear()
    for quiet in (task.with_method(task.method), clipbias.Task(clip, method, names), clipbias.Task(clip, method, task)):
        assert quiet.prompt.templates == task.prompt.templates
    clipbias.Task(clip, "mmrl", names, template=template)  # whose own prompt is the template, too
    clipbias.Task(clip, "bias", names, template=template)
    assert not caplog.messages


def test_memory_settings_change_the_program_and_not_the_task(clip):
    task = clipbias.Task(clip, "bias", ("cat", "dog", "bird"))
    smaller = task.with_memory(class_chunks=2)
    shared = smaller.with_memory(class_shards=2)
    assert [x.classifier.class_chunks for x in (task, smaller, shared)] == [1, 2, 1]
    assert [len(x.text.ids) for x in (task, smaller, shared)] == [1, 2, 2]
    assert shared.with_method(clipbias.Task(clip, "vpt", ("a",)).method).text.ids.shape[0] == 2
    assert task.with_memory().classifier == task.classifier and smaller.method is task.method
