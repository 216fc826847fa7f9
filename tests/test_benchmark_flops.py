"""`tools.benchmarks`: counted arithmetic against products found in the programs."""

import jax
import jax.numpy as jnp
import pytest

from clipbias.clip import encode_image, encode_text
from clipbias.training import mesh as meshes
from clipbias.training.programs import evaluation_programs, training_program
from clipbias.tuning import Recipe, Task
from tools.benchmarks import flops, model, steps

CONFIG = model.geometry("tiny")


@pytest.fixture(scope="module")
def clip():
    return model.random_clip(CONFIG)


def test_vision_equals_the_products_of_the_program(clip):
    images = jnp.zeros((3, 32, 32, 3))
    found = flops.traced(jax.jit(lambda params, images: encode_image(params, CONFIG, images)[0]), clip.params, images)
    assert found == flops.vision(CONFIG, 3)


def test_vision_by_hand():
    # 17 tokens of width 64 through one whole block and one that is read at one row; 16 patches of 192 numbers.
    block = 2 * 17 * (4 * 64 * 64 + 2 * 64 * 256) + 4 * 17 * 17 * 64
    last = 2 * 17 * 2 * 64 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 256) + 4 * 17 * 64
    assert flops.vision(CONFIG, 1) == 2 * 16 * 192 * 64 + block + last + 2 * 64 * 32


def test_text_counts_each_distinct_token_once(clip):
    task = Task(clip, "coop", ["cat", "dog bed", "red fish tank"])
    shared = task.text.shared
    # Start and four context tokens are shared; then 1, 2, 3 words, a full stop and the end.
    assert shared == 5
    lengths = (8, 9, 10)
    tokens = shared + sum(length - shared for length in lengths)
    triangle = lambda n: n * (n + 1) // 2  # noqa: E731
    pairs = triangle(shared) + sum(triangle(length) - triangle(shared) for length in lengths)
    width, hidden = 32, 128
    block = 2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * pairs * width
    last = 4 * tokens * width**2 + 2 * 3 * (2 * width**2 + 2 * width * hidden) + 4 * sum(lengths) * width
    assert flops.text(CONFIG, task.tokens, shared) == block + last + 2 * 3 * width * 32


def test_gradients_double_dense_products_and_triple_attention():
    forward = flops.vision(CONFIG, 1)
    embedding = 2 * 16 * 192 * 64
    attention = 4 * (17 * 17 + 17) * 64
    assert flops.vision(CONFIG, 1, backward_from=0) == 2 * forward - embedding + attention
    later = flops.vision(CONFIG, 1, backward_from=1)  # a bias acts behind the first block
    assert flops.vision(CONFIG, 1, backward_from=0) - later == flops.dense(CONFIG.vision, 17) + 8 * 17 * 17 * 64


def test_needed_is_less_than_what_the_plain_program_does(clip):
    task = Task(clip, "ivlp", model.class_names(6), text_tokens=2, vision_tokens=2)
    tokens = steps.padded(task.tokens, 77)
    found = flops.traced(
        jax.jit(lambda params: encode_text(params, CONFIG, tokens, observe=steps._nothing)[0]), clip.params
    )
    assert flops.text(CONFIG, task.tokens, task.text.shared) < found / 4
    only_text = Task(clip, "coop", model.class_names(6))
    assert flops.step(only_text, 2) < flops.step(task, 2)


@pytest.mark.parametrize(("method", "options"), [("vpt", {"depth": 8}), ("ivlp", {"depth": 8}), ("bias", {})])
def test_a_traced_step_holds_little_else_than_the_products_counted_by_hand(method: str, options: dict) -> None:
    """Besides these there is padding, and what small texts waste."""
    deep, mesh = model.random_clip(model.geometry("tiny", layers=8)), meshes.single_device()
    task = Task(deep, method, model.class_names(60), **options)
    program = training_program(task, Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0), rows=16, runs=2, mesh=mesh)
    found = flops.traced(program.function, *program.arguments, **program.options)
    assert 0.98 < found / (2 * flops.step(task, 16)) < 1.35
    (images, *_) = evaluation_programs(task, batch=10, runs=2, mesh=mesh)
    needed = 2 * flops.vision(deep.config, 10, prompts=4 if method != "bias" else 0)
    assert 0.9 < flops.traced(images.function, *images.arguments, **images.options) / needed < 1.02
