"""CLIP-LoRA against its rules in NumPy, with the very masks that a step of training draws."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Clip, PackedTokens, TextTokens, encode_image, encode_text, layers
from clipbias.clip.layers import keep_tokens
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.step import place_inputs, place_text
from clipbias.tuning import Learnables, Task, make_method, parameter_count
from clipbias.tuning.method import CONSTANTS
from tests import helpers
from tests.reference import optimizers, weight_tuning
from tests.reference.methods import Reference
from tests.tuning import weights_common as common
from tests.tuning.test_task import VIT_B_16

OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "some": {"parts": ("k", "o"), "rank": 3, "alpha": 2.0, "first_block": 2, "last_block": 3},
    "vision": {"towers": ("vision",), "parts": ("q", "k", "v", "o")},
}


def start(task: Task) -> Learnables:
    """Learnables whose `up` is not zero: at zero `down` has no gradient."""
    constants = {CONSTANTS: task.init()[CONSTANTS]} if CONSTANTS in task.shapes else {}
    return {**common.drawn({name: task.shapes[name] for name in task.shapes if name != CONSTANTS}, 0.3), **constants}


def named(task: Task, pairs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`….A` [r, D] and `….B` [D, r] of every changed kernel."""
    method, found = task.method, {}
    for tower in (name for name in pairs if name != CONSTANTS):
        for product, pair in pairs[tower].items():
            letters = [letter for letter in ("qkv" if product == "qkv" else "o") if letter in method.parts]
            down, up = (np.asarray(pair[name], np.float64) for name in ("down", "up"))
            for block, number in np.ndindex(down.shape[:2]):
                layer = f"{tower}_model.encoder.layers.{block + method.first_block - 1}"
                letter = {"o": "out"}.get(letters[number], letters[number])
                name = f"{layer}.self_attn.{letter}_proj"
                found[f"{name}.A"], found[f"{name}.B"] = down[block, number].T, up[block, number].T
    return found


def drawn_masks(task: Task, learnables: Learnables, rng: jax.Array, images: int, length: int) -> dict[str, np.ndarray]:
    """The masks `[B, N, D]` that a step with the key `rng` draws, by the name of the kernel.

    The last block asks for the query and the output of one row alone; the others count as kept.
    """
    adaptation = task.method.adapt_in_training(learnables, rng)
    config, tokens, found = task.clip.config, task.tokens, {}
    grid = 1 + (config.vision.image_size // config.vision.patch_size) ** 2
    for tower, rows, count, readout in (
        ("vision", images, grid, np.zeros(images, int)),
        ("text", len(tokens.ids), tokens.ids.shape[1], np.asarray(tokens.eos)),
    ):
        geometry, changes = getattr(config, tower), getattr(adaptation, f"{tower}_weights")
        for product, pair in ((changes or {}).get("layers") or {}).items():
            for block in range(geometry.layers):
                weights = {name: value[block] for name, value in pair.items()}
                if block + 1 < geometry.layers:
                    masks = np.asarray(layers.kept(weights, (rows, count, geometry.width)))
                else:
                    masks = np.ones((rows, 3 if product == "qkv" else 1, count, geometry.width), bool)
                    if product == "qkv":
                        fake = {"kernel": np.zeros((1, 3)), "bias": np.zeros(3)}
                        query, others = (layers.outputs({**weights, **fake}, *ends) for ends in ((0, 1), (1, 3)))
                        masks[:, 1:] = layers.kept(others, (rows, count, geometry.width))
                        at_row = layers.kept(query, (rows, geometry.width))
                    else:
                        at_row = layers.kept(weights, (rows, geometry.width))
                    masks[np.arange(rows), 0, readout] = np.asarray(at_row)[0]
                for number, letter in enumerate(("q", "k", "v") if product == "qkv" else ("out",)):
                    name = f"{tower}_model.encoder.layers.{block}.self_attn.{letter}_proj"
                    after = length - count if tower == "text" else 0  # tokens behind the end of a text
                    found[name] = np.pad(masks[:, number].astype(float), ((0, 0), (0, after), (0, 0)))
    return found


@pytest.mark.parametrize(
    ("options", "vision", "text"),
    [
        ({}, 110_592, 73_728),
        ({"parts": ("q", "v", "o")}, 110_592, 73_728),
        ({"parts": ("v",), "rank": 4, "first_block": 7}, 6 * 8 * 768, 6 * 8 * 512),
        ({"towers": ("vision",)}, 110_592, 0),
    ],
)
def test_parameter_counts_of_vit_b_16(clip: Clip, options: dict, vision: int, text: int) -> None:
    tower = {**clip.params["text"], "token_embedding": np.zeros((len(clip.tokenizer), 512), np.float32)}
    large = dataclasses.replace(clip, config=VIT_B_16, params={**clip.params, "text": tower})
    counts = parameter_count(Task(large, "clip_lora", ("cat", "dog"), **options).shapes)
    assert counts == {"vision": vision, "text": text, "shared": 0, "total": vision + text}


def test_it_starts_as_clip_with_down_uniform(clip: Clip) -> None:
    task = Task(clip, "clip_lora", ("cat", "dog"), rank=50)
    found = task.init(3)
    for tower, pairs in found.items():
        bound = getattr(clip.config, tower).width ** -0.5
        assert not pairs["qkv"]["up"].any()
        down = np.asarray(pairs["qkv"]["down"])
        assert np.abs(down).max() <= bound and down.std() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not np.array_equal(task.init(4)["text"]["qkv"]["down"], found["text"]["qkv"]["down"])


@pytest.mark.parametrize("name", helpers.short(OPTIONS, "some", "vision"))
def test_logits_and_gradients_equal_numpy(name: str, other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    options = OPTIONS[name]
    task = Task(clip, "clip_lora", common.CLASS_NAMES, template="a {} of another dataset.", **options)
    learnables = start(task)
    images = helpers.random_images(reference.config, len(common.LABELS))

    @jax.jit
    def compute(params, learnables):
        gradients = jax.grad(lambda one: task.loss(params, one, images, common.LABELS))(learnables)
        return task.logits(params, learnables, images), gradients

    logits, gradients = compute(clip.params, learnables)
    pairs, alpha = named(task, learnables), options.get("alpha", 1.0)
    assert isinstance(place_text(meshes.make_mesh(data=1), task, None), jax.ShapeDtypeStruct | PackedTokens)
    arguments = (reference, common.CLASS_NAMES, pairs, images)
    common.close(logits, weight_tuning.lora(*arguments, alpha=alpha).logits, common.LOGITS)
    _, expected = weight_tuning.lora_loss_and_gradients(*arguments, common.LABELS, alpha=alpha)
    common.close_trees(named(task, gradients), expected, common.GRADIENTS)


@pytest.mark.parametrize(("name", "remat"), [("some", keep_tokens), ("vision", None)])
def test_a_step_with_dropout_equals_numpy_with_its_masks(name: str, remat: Any, other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    options, rate = OPTIONS[name], 0.4
    task = Task(clip, "clip_lora", common.CLASS_NAMES, dropout=rate, remat=remat, **options)
    learnables, rng = start(task), jax.random.key(5)
    images = helpers.random_images(reference.config, len(common.LABELS))
    text = place_inputs(
        meshes.make_mesh(data=1), task, clip.params, jax.tree.map(lambda x: x[None], learnables), [0]
    ).text
    assert isinstance(text, TextTokens) == ("text" in task.shapes)

    @jax.jit
    def compute(params, learnables, text):
        def loss(learnables):
            terms, logits = task.classifier.losses(params, learnables, images, common.LABELS, text, None, rng)
            return terms["cross_entropy"].mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(learnables)

    (loss, logits), gradients = compute(clip.params, learnables, text)
    length = reference.config["text_config"]["max_position_embeddings"]
    masks = drawn_masks(task, learnables, rng, len(images), length)
    pairs, alpha = named(task, learnables), options.get("alpha", 1.0)
    arguments = (reference, common.CLASS_NAMES, pairs, images)
    same = {"alpha": alpha, "masks": masks, "rate": rate}
    expected = weight_tuning.lora(*arguments, **same).logits
    common.close(logits, expected, common.LOGITS)
    plain = weight_tuning.lora(*arguments, alpha=alpha).logits
    assert np.abs(plain - expected).max() > 0.01 * np.abs(expected).max()  # dropout matters
    wanted, slopes = weight_tuning.lora_loss_and_gradients(*arguments, common.LABELS, **same)
    assert float(loss) == pytest.approx(wanted, rel=common.LOGITS)
    common.close_trees(named(task, gradients), slopes, common.GRADIENTS)


def test_steps_of_adamw_equal_numpy(other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    task = Task(clip, "clip_lora", common.CLASS_NAMES, dropout=0.3)
    learnables = start(task)
    recipe = dataclasses.replace(common.SGD, optimizer="adamw", weight_decay=0.5, epsilon=1e-2)
    rates = (0.02, 0.03, 0.01)
    raw, images = common.pictures(clip.config.vision.image_size)
    found, losses = common.trained(task, learnables, recipe, raw, common.LABELS, rates)
    optimizer, values = optimizers.AdamW(epsilon=1e-2, weight_decay=0.5), named(task, learnables)
    length = reference.config["text_config"]["max_position_embeddings"]
    for step, (rate, loss) in enumerate(zip(rates, losses[:, 0], strict=True)):
        rng = jax.random.fold_in(jax.random.key(0), step)  # each step drops other inputs
        masks = drawn_masks(task, learnables, rng, len(images), length)
        expected, slopes = weight_tuning.lora_loss_and_gradients(
            reference, common.CLASS_NAMES, values, images, common.LABELS, masks=masks, rate=0.3
        )
        assert loss == pytest.approx(expected, rel=common.TRAINED)
        values = optimizer.step(values, slopes, rate)
    common.close_trees(named(task, found), values, common.TRAINED)


@pytest.mark.long
def test_runs_side_by_side_drop_as_each_would_alone(other: tuple[Clip, Reference]) -> None:
    clip, _ = other
    task = Task(clip, "clip_lora", common.CLASS_NAMES)
    learnables = start(task)
    raw, _ = common.pictures(clip.config.vision.image_size)
    arguments = (task, learnables, common.SGD, raw, common.LABELS, (0.01, 0.01))
    alone = [common.trained(*arguments, seeds=(seed,))[1] for seed in (3, 4)]
    beside = common.trained(*arguments, seeds=(3, 4))[1]
    np.testing.assert_allclose(np.asarray(beside), np.concatenate(alone, axis=1), rtol=common.LOGITS)
    assert len(np.unique(np.round(beside, 6))) == 4  # of two runs and two steps


def test_every_class_token_and_part_drops_by_itself() -> None:
    weights = {"down": jnp.zeros((3, 64, 2)), "key": jax.random.key(1), "rate": jnp.float32(0.25)}
    fake = {"kernel": jnp.zeros((64, 192)), "bias": jnp.zeros(192), "up": jnp.zeros((3, 2, 64))}
    masks = np.asarray(layers.kept(weights, (40, 10, 64)))  # classes, parts, tokens, inputs
    assert masks.shape == (40, 3, 10, 64)
    for axis, other in (
        (0, masks[::-1]),
        (1, np.roll(masks, 1, 1)),
        (2, np.roll(masks, 1, 2)),
        (3, np.roll(masks, 1, 3)),
    ):
        both = (masks & other).mean()
        assert both == pytest.approx(0.75**2, abs=0.01), axis
    last = [
        np.asarray(layers.kept(layers.outputs({**weights, **fake}, *ends), (40, 10, 64))) for ends in ((0, 1), (1, 3))
    ]
    # Draws of one key would begin alike, whatever their shapes.
    assert (last[0][0, 0] & last[1][0, 0]).mean() == pytest.approx(0.75**2, abs=0.06)
    assert masks.mean() == pytest.approx(0.75, abs=0.005)
    odd = np.asarray(layers.kept({**weights, "rate": jnp.float32(0.1)}, (500, 10, 7)))
    assert odd.shape == (500, 3, 10, 7) and odd.mean() == pytest.approx(0.9, abs=0.005)
    assert (odd[..., :6:2] & odd[..., 1:6:2]).mean() == pytest.approx(0.9**2, abs=0.01)  # halves of one word


def test_towers_layers_runs_and_products_have_keys_of_their_own(other: tuple[Clip, Reference]) -> None:
    clip, _ = other
    task = Task(clip, "clip_lora", common.CLASS_NAMES, parts=("q", "o"))
    adaptations = [task.method.adapt_in_training(task.init(), jax.random.key(seed)) for seed in (0, 1)]
    pairs = [
        pair
        for adaptation in adaptations
        for tower in (adaptation.vision_weights, adaptation.text_weights)
        for pair in tower["layers"].values()
    ]
    keys = np.concatenate([jax.random.key_data(pair["key"]) for pair in pairs])
    assert len(np.unique(keys, axis=0)) == len(keys) == 2 * 2 * (4 + 3)  # seeds, products, layers of both towers


def test_without_dropout_texts_stay_packed_and_several_devices_share_them(other: tuple[Clip, Reference]) -> None:
    clip, _ = other
    names = (*common.CLASS_NAMES, "dog")  # six
    mesh = meshes.make_mesh(data=2, devices=jax.devices()[:2])
    for dropout, kind in ((0.0, PackedTokens), (0.25, TextTokens)):
        task = Task(clip, "clip_lora", names, dropout=dropout)
        learnables = jax.tree.map(lambda x: x[None], task.init())
        for params in (None, clip.params):
            text = place_inputs(mesh, task, params, learnables, [0]).text
            assert isinstance(text, kind)
        if kind is TextTokens:
            assert text.ids.sharding.shard_shape(text.ids.shape)[0] == 3
        assert isinstance(place_text(mesh, task, clip.params), PackedTokens)  # evaluation


def test_what_is_dropped_in_training_is_kept_elsewhere(other: tuple[Clip, Reference]) -> None:
    clip, reference = other
    task = Task(clip, "clip_lora", common.CLASS_NAMES)
    learnables, images = start(task), helpers.random_images(reference.config, 2)
    adaptation = task.method.adapt_in_training(learnables, jax.random.key(0))
    runs = {
        "vision": jax.jit(lambda one: encode_image(clip.params, clip.config, images, one)[0]),
        "text": jax.jit(lambda one: encode_text(clip.params, clip.config, task.tokens, one)[0]),
    }
    for run in runs.values():
        plain = run(task.method.adapt(learnables))
        assert np.abs(run(adaptation) - plain).max() > 1e-3 * np.abs(plain).max()
    changes = adaptation.text_weights["layers"]["qkv"]
    wrong = {**changes, "rate": changes["rate"][:2]}
    with pytest.raises(ClipbiasError, match=r"layers/qkv/rate of shape \(2,\); expected \(3,\)"):
        runs["text"](dataclasses.replace(adaptation, text_weights={"layers": {"qkv": wrong}}))


def test_the_authors_recipe_and_refused_options(clip: Clip) -> None:
    own = make_method("clip_lora").recipe_for(common.SGD, 16)
    assert (own.steps, own.learning_rate, own.optimizer, own.weight_decay) == (8000, 2e-4, "adamw", 1e-2)
    assert (own.schedule, own.final_learning_rate, own.batch_size, own.keep_last) == ("steps", 1e-6, 32, True)
    assert make_method("clip_lora").recipe_for(common.SGD, 0).steps == 8000
    assert make_method("clip_lora", recipe="common").recipe_for(common.SGD, 16) is common.SGD
    with pytest.raises(ClipbiasError, match="blocks 4 to 3 are to be tuned, and the vision tower has blocks 1 to 3"):
        Task(clip, "clip_lora", ("cat",), first_block=4)
    with pytest.raises(ClipbiasError, match="no kernel is changed"):
        make_method("clip_lora", parts=())
    with pytest.raises(ClipbiasError, match="neither tower is tuned"):
        make_method("clip_lora", towers=())
