"""CLIP-LoRA against its rules in NumPy, with the very masks that a step of training draws."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import PackedTokens, TextTokens, layers
from clipbias.clip.layers import keep_tokens
from clipbias.training import mesh as meshes
from clipbias.training.step import place_inputs, place_text
from clipbias.tuning import Learnables, Task
from clipbias.tuning.method import CONSTANTS
from tests import helpers
from tests.reference import optimizers, weight_tuning
from tests.reference.numpy_clip import cross_entropy
from tests.tuning import weights_common as common

Masks = dict[str, np.ndarray]
SOME: dict[str, Any] = {"rank": 3, "alpha": 2.0, "first_block": 2, "last_block": 3}
# Options and how a block is computed anew in the backward pass.
TRAININGS: dict[str, tuple[dict[str, Any], Any]] = {
    "both": ({"parts": ("q", "k", "v", "o"), **SOME}, None),
    "all": ({}, keep_tokens),
    "vision": ({"towers": ("vision",), "parts": ("q", "k", "v", "o")}, None),
}


LETTERS = {"q": "q", "k": "k", "v": "v", "out": "o", "fc1": "fc1", "fc2": "fc2"}


def start(task: Task) -> Learnables:
    """Learnables whose `up` is not zero: at zero `down` has no gradient."""
    constants = {CONSTANTS: task.init()[CONSTANTS]} if CONSTANTS in task.shapes else {}
    return {**common.drawn({name: task.shapes[name] for name in task.shapes if name != CONSTANTS}, 0.3), **constants}


def named(task: Task, pairs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`….A` [r, D] and `….B` [D, r] of every changed kernel."""
    method = task.method
    matrices = {}
    for tower in (name for name in pairs if name != CONSTANTS):
        for product, pair in pairs[tower].items():
            letters = [
                letter for letter in ("qkv" if product == "qkv" else [product[:3]]) if LETTERS[letter] in method.parts
            ]
            down, up = (np.asarray(pair[name], np.float64) for name in ("down", "up"))
            for block, number in np.ndindex(down.shape[:2]):
                layer = f"{tower}_model.encoder.layers.{block + method.first_block - 1}"
                letter = letters[number]
                name = f"{layer}.mlp.{letter}" if letter.startswith("fc") else f"{layer}.self_attn.{letter}_proj"
                matrices[f"{name}.A"] = down[block, number].T
                matrices[f"{name}.B"] = up[block, number].T
    return matrices


def mask_drawer(task: Task, learnables: Learnables, images: int, length: int) -> Callable[[jax.Array], Masks]:
    """Of a step's key the masks `[B, N, D]` that the step draws, by the name of the kernel.

    The last block asks for the query and the output of one row alone; the others count as kept.
    """
    config = task.clip.config
    tokens = task.tokens
    grid = 1 + (config.vision.image_size // config.vision.patch_size) ** 2
    towers = {
        "vision": (images, grid, np.zeros(images, int)),
        "text": (len(tokens.ids), tokens.ids.shape[1], np.asarray(tokens.eos)),
    }

    adapt, draw = jax.jit(task.method.adapt_in_training), jax.jit(layers.kept, static_argnums=1)

    def drawn(rng: jax.Array) -> dict[tuple[str, str, int], list[jax.Array]]:
        """Of a block's whole product, or in the last block of the parts of it that are computed by themselves."""
        adaptation = jax.device_get(adapt(learnables, rng))
        by_name = {}
        for tower, (rows, count, _) in towers.items():
            geometry, changes = getattr(config, tower), getattr(adaptation, f"{tower}_weights")
            whole, at_row = (rows, count, geometry.width), (rows, geometry.width)
            for product, pair in ((changes or {}).get("layers") or {}).items():
                for block in range(geometry.layers):
                    weights = {name: value[block] for name, value in pair.items()}
                    if block + 1 < geometry.layers:
                        parts = [draw(weights, whole)]
                    elif product == "qkv":
                        fake = {"kernel": np.zeros((1, 3)), "bias": np.zeros(3)}
                        query, others = (layers.outputs({**weights, **fake}, *ends) for ends in ((0, 1), (1, 3)))
                        parts = [draw(query, at_row), draw(others, whole)]
                    else:
                        parts = [draw(weights, at_row)]
                    by_name[tower, product, block] = parts
        return by_name

    def masks(rng: jax.Array) -> Masks:
        by_name = {}
        for (tower, product, block), (first, *others) in jax.device_get(drawn(rng)).items():
            rows, count, readout = towers[tower]
            letters = ("q", "k", "v") if product == "qkv" else ("out",)
            mask = first
            if block + 1 == getattr(config, tower).layers:
                mask = np.ones((rows, len(letters), count, first.shape[-1]), bool)
                mask[np.arange(rows), 0, readout] = first[0]
                if others:
                    mask[:, 1:] = others[0]
            for number, letter in enumerate(letters):
                name = f"{tower}_model.encoder.layers.{block}.self_attn.{letter}_proj"
                after = length - count if tower == "text" else 0  # tokens behind the end of a text
                by_name[name] = np.pad(mask[:, number].astype(float), ((0, 0), (0, after), (0, 0)))
        return by_name

    return masks


def test_it_starts_as_clip_with_down_uniform(clip):
    task = Task(clip, "clip_lora", ("cat", "dog"), rank=50)
    learnables = task.init(3)
    for tower, pairs in learnables.items():
        bound = getattr(clip.config, tower).width ** -0.5
        assert not pairs["qkv"]["up"].any()
        down = np.asarray(pairs["qkv"]["down"])
        assert np.abs(down).max() <= bound and down.std() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not np.array_equal(task.init(4)["text"]["qkv"]["down"], learnables["text"]["qkv"]["down"])


@pytest.mark.ci
@pytest.mark.parametrize("name", helpers.short(TRAININGS, "both"))
def test_training_with_dropout_equals_numpy_with_its_masks(name, other):
    clip, reference = other
    options, remat = TRAININGS[name]
    task = Task(clip, "clip_lora", common.CLASS_NAMES, dropout=0.4, **options).with_memory(remat=remat)
    learnables = start(task)
    length = reference.config["text_config"]["max_position_embeddings"]
    drawn = mask_drawer(task, learnables, len(common.LABELS), length)

    alpha = options.get("alpha", 1.0)

    @functools.cache
    def masks(step: int) -> Masks:
        return drawn(jax.random.fold_in(jax.random.key(5), step))  # each step drops other inputs

    def rule(values: common.Values, step: common.Step) -> tuple:
        lora = functools.partial(weight_tuning.lora, reference, common.CLASS_NAMES, values, step.images, alpha=alpha)
        logits = lora(masks=masks(step.number), rate=0.4).logits
        if values is step.start:  # dropout matters
            assert np.abs(lora().logits - logits).max() > 0.01 * np.abs(logits).max()
        return {"cross_entropy": cross_entropy(logits, common.LABELS)}, logits

    training = common.Training(
        recipe=dataclasses.replace(common.SGD, optimizer="adamw", weight_decay=0.5, epsilon=1e-2),
        optimizer=optimizers.AdamW(epsilon=1e-2, weight_decay=0.5),
        flat=functools.partial(named, task),
    )
    common.check_training(task, learnables, rule, training, seed=5)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "options"),
    [("clip_lora", {"parts": ("v", "fc1", "fc2"), "dropout": 0.5, **SOME}), ("lora", {"rank": 1})],
)
def test_logits_equal_numpy_without_dropout(method, options, other):
    """As evaluation has them, whatever is dropped in training. Plain LoRA has all kernels and CLIP's own scale."""
    clip, reference = other
    task = Task(clip, method, common.CLASS_NAMES, template="a {} of another dataset.", **options)
    learnables = start(task)
    images = helpers.random_images(reference.config, len(common.LABELS))
    logits = np.asarray(jax.jit(task.logits)(clip.params, learnables, images))
    pairs = named(task, learnables)
    if method == "lora":
        logits = logits * 100 / np.exp(reference.state["logit_scale"])
        assert len(pairs) == 2 * 6 * sum(getattr(clip.config, tower).layers for tower in ("vision", "text"))
    alpha = options.get("alpha", 1.0)
    expected = weight_tuning.lora(reference, common.CLASS_NAMES, pairs, images, alpha=alpha).logits
    common.close(logits, expected, common.LOGITS)


def test_every_class_token_and_part_drops_by_itself():
    weights = {"down": jnp.zeros((3, 64, 2)), "key": jax.random.key(1), "rate": jnp.float32(0.25)}
    fake = {"kernel": jnp.zeros((64, 192)), "bias": jnp.zeros(192), "up": jnp.zeros((3, 2, 64))}
    draw = jax.jit(layers.kept, static_argnums=1)
    masks = np.asarray(draw(weights, (40, 10, 64)))  # classes, parts, tokens, inputs
    assert masks.shape == (40, 3, 10, 64)
    for axis, other in (
        (0, masks[::-1]),
        (1, np.roll(masks, 1, 1)),
        (2, np.roll(masks, 1, 2)),
        (3, np.roll(masks, 1, 3)),
    ):
        both = (masks & other).mean()
        assert both == pytest.approx(0.75**2, abs=0.01), axis
    last = [np.asarray(draw(layers.outputs({**weights, **fake}, *ends), (40, 10, 64))) for ends in ((0, 1), (1, 3))]
    # Draws of one key would begin alike, whatever their shapes.
    assert (last[0][0, 0] & last[1][0, 0]).mean() == pytest.approx(0.75**2, abs=0.06)
    assert masks.mean() == pytest.approx(0.75, abs=0.005)
    odd = np.asarray(draw({**weights, "rate": jnp.float32(0.1)}, (500, 10, 7)))
    assert odd.shape == (500, 3, 10, 7) and odd.mean() == pytest.approx(0.9, abs=0.005)
    assert (odd[..., :6:2] & odd[..., 1:6:2]).mean() == pytest.approx(0.9**2, abs=0.01)  # halves of one word


def test_towers_layers_runs_and_products_have_keys_of_their_own(other):
    clip, _ = other
    task = Task(clip, "clip_lora", common.CLASS_NAMES, parts=("q", "o"))
    adapt = jax.jit(task.method.adapt_in_training)
    adaptations = [adapt(task.init(), jax.random.key(seed)) for seed in (0, 1)]
    pairs = [
        pair
        for adaptation in adaptations
        for tower in (adaptation.vision_weights, adaptation.text_weights)
        for pair in tower["layers"].values()
    ]
    keys = np.concatenate([jax.random.key_data(pair["key"]) for pair in pairs])
    assert len(np.unique(keys, axis=0)) == len(keys) == 2 * 2 * (4 + 3)  # seeds, products, layers of both towers


def test_without_dropout_texts_stay_packed_and_several_devices_share_them(other):
    clip, _ = other
    names = (*common.CLASS_NAMES, "dog")  # six
    mesh = meshes.make_mesh(data=2, devices=jax.devices()[:2])
    for dropout, kind in ((0.0, PackedTokens), (0.25, TextTokens)):
        task = Task(clip, "clip_lora", names, dropout=dropout)
        learnables = jax.tree.map(lambda x: x[None], task.init())
        for params in (meshes.shapes(clip.params), clip.params):
            text = place_inputs(mesh, task, params, learnables, [0]).texts.text
            assert isinstance(text, kind)
        if kind is TextTokens:
            assert text.ids.sharding.shard_shape(text.ids.shape)[0] == 3
        assert isinstance(place_text(mesh, task, clip.params), PackedTokens)  # evaluation
