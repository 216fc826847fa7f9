"""Methods on weights and inside blocks: CLIP-LoRA, BitFit, LayerNorm tuning, 2SFS, MMA, MMRL and TCP.

What they tune, steps against NumPy where `test_training_against_numpy` has none, and other classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipbias
from clipbias.clip import Adaptation, Clip, PackedTokens, TextTokens, encode_text, layers
from clipbias.clip.layers import keep_tokens
from clipbias.training import placement
from clipbias.training.step import place_inputs, place_text
from clipbias.tuning import CONSTANTS, Learnables, Task, make_method
from clipbias.tuning.method import without_constants
from clipbias.tuning.methods.two_stage import SecondStage, TwoStage
from clipbias.tuning.tuned import transfer
from tests import helpers
from tests.reference import inner_parts, methods, optimizers, weight_tuning
from tests.tuning import weights_common as common

# CLIP-LoRA, with the very masks that a step of training draws.

Masks = dict[str, np.ndarray]
SOME: dict[str, Any] = {"rank": 3, "alpha": 2.0, "first_block": 2, "last_block": 3}
# Options and how a block is computed anew in the backward pass.
TRAININGS: dict[str, tuple[dict[str, Any], Any]] = {
    "both": ({"parts": ("q", "k", "v", "o"), **SOME}, None),
    "all": ({}, keep_tokens),
    "vision": ({"towers": ("vision",), "parts": ("q", "k", "v", "o")}, None),
}


def named_pairs(task: Task, pairs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`….A` [r, D] and `….B` [D, r] of every changed kernel."""
    method = task.method
    matrices = {}
    for tower in (name for name in pairs if name != CONSTANTS):
        for product, pair in pairs[tower].items():
            letters = [letter for letter in "qkv" if letter in method.parts] if product == "qkv" else [product]
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
    learnables = common.start(task)
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
        return methods.entropy_of(logits, common.LABELS)

    training = common.Training(
        recipe=dataclasses.replace(common.SGD, optimizer="adamw", weight_decay=0.5, epsilon=1e-2),
        optimizer=optimizers.AdamW(epsilon=1e-2, weight_decay=0.5),
        flat=functools.partial(named_pairs, task),
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
    learnables = common.start(task)
    images = helpers.random_images(reference.config, len(common.LABELS))
    logits = np.asarray(jax.jit(task.logits)(clip.params, learnables, images))
    pairs = named_pairs(task, learnables)
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
    for axis in range(4):
        both = (masks & np.roll(masks, 1, axis)).mean()
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
    mesh = placement.make_mesh(data=2, devices=jax.devices()[:2])
    for dropout, kind in ((0.0, PackedTokens), (0.25, TextTokens)):
        task = Task(clip, "clip_lora", names, dropout=dropout)
        learnables = jax.tree.map(lambda x: x[None], task.init())
        for params in (placement.shapes(clip.params), clip.params):
            text = place_inputs(mesh, task, params, learnables, [0]).texts.text
            assert isinstance(text, kind)
        if kind is TextTokens:
            assert text.ids.sharding.shard_shape(text.ids.shape)[0] == 3
        assert isinstance(place_text(mesh, task, clip.params), PackedTokens)  # evaluation


# BitFit, LayerNorm tuning and 2SFS.

OTHERS = ("bird dog", "a cat")


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
        return methods.entropy_of(logits, common.LABELS)

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


def test_the_stages_share_the_recipe():
    method = make_method("two_stage")
    recipe = method.recipe_for(common.SGD, 4)
    (first, first_recipe), (second, two) = method.stages(recipe)
    assert (first_recipe.steps, two.steps) == (4 * 180, 4 * 120) and first == method.first
    assert dataclasses.replace(first_recipe, steps=1) == dataclasses.replace(two, steps=1)
    assert second == SecondStage(method.first)
    ten = dataclasses.replace(common.SGD, epochs=10)
    assert [recipe.epochs for _, recipe in make_method("two_stage", recipe="common").stages(ten)] == [6, 4]
    assert [recipe.epochs for _, recipe in make_method("two_stage", share=1.0).stages(ten)] == [9, 1]
    tuned = make_method("two_stage", tuned="bitfit", towers=("text",))
    assert set(tuned.first.init(jax.random.key(0), clipbias.load("demo"), ("cat",))) == {"text_weights"}


# MMA, MMRL and TCP.

TEMPLATE = "a painting of a {}, a type of cat."


def mmrl(clip: Clip, names: tuple[str, ...] = common.CLASS_NAMES) -> Task:
    return Task(clip, "mmrl", names, template=TEMPLATE, tokens=3, blocks=2, space=10)


@pytest.mark.ci
def test_kernels_start_as_the_authors_do(clip):
    learnables = Task(clip, "mma", ("cat", "dog"), blocks=2, width=200).init(3)
    vision, text, shared = learnables["vision"]["up"], learnables["text"]["down"], learnables["shared"]
    for part, outputs in ((vision, 24), (text, 200), (shared, 200)):
        assert np.std(part["kernel"]) == pytest.approx((2 / outputs) ** 0.5, rel=0.05) and not part["bias"].any()
    learnables = mmrl(clip).init(2)
    for kernel in (learnables["text_kernel"], learnables["vision_kernel"]):
        np.testing.assert_array_equal(kernel[0], kernel[1])
    assert np.std(learnables["vision_readout"]) == pytest.approx(clip.config.vision.width**-0.5, rel=0.15)


@pytest.mark.ci
def test_mmrl_predicts_by_the_image_alone_for_other_classes(other):
    """The tokens' logits are of classes that training saw."""
    task = mmrl(other[0])
    for names, alpha in (
        (common.CLASS_NAMES[:2], 0.7),
        (OTHERS, 1),
        (("a fish", common.CLASS_NAMES[2], common.CLASS_NAMES[0]), [1, 0.7, 0.7]),
    ):
        moved = transfer(task, mmrl(other[0], names), task.init())
        np.testing.assert_array_equal(moved[CONSTANTS]["alpha"], np.float32(alpha))


@pytest.mark.ci
def test_a_block_that_a_shallower_tower_lacks_is_its_last(deep_text):
    clip, reference = deep_text
    task = Task(clip, "tcp", common.CLASS_NAMES, template=TEMPLATE, block=8)
    images = common.pictures(clip.config.vision.image_size)[1]
    learnables = common.start(task)
    logits = jax.jit(task.logits)(clip.params, learnables, images.astype(np.float32))
    options = {"template": TEMPLATE, "suffix": ", a type of cat.", "block": 3}
    arguments = (reference, common.CLASS_NAMES, without_constants(learnables), images, common.LABELS)
    common.close(logits, inner_parts.tcp_losses(*arguments, **options)[1], common.LOGITS)


@pytest.mark.ci
@pytest.mark.parametrize(("blocks", "layers"), [(2, 5), (3, 3)])
def test_both_layouts_of_texts_are_the_same(blocks, layers, tiny):
    """Tokens that enter at the first block, or behind more blocks than they have."""
    clip, _ = tiny(seed=5, vision=(16, 3, 2), text=(24, layers, 3), projection=20)
    task = mmrl(clip).with_memory(class_shards=2)
    adaptation = Adaptation(text_tokens=common.drawn(np.zeros((blocks, 3, 24), np.float32), 0.5))
    packed = jax.jit(task.classifier.encode_text)(clip.params, adaptation, task.text)
    plain, _ = jax.jit(encode_text, static_argnums=1)(clip.params, clip.config, task.tokens, adaptation)
    common.close(packed, np.asarray(plain), common.LOGITS)
