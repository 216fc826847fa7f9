"""The references of methods that tune the towers' weights agree with themselves and with known values."""

import itertools

import numpy as np
import pytest

from tests import helpers
from tests.reference import methods, weight_tuning, weights
from tests.reference.cases import CLASS_NAMES, VIT_B_16
from tests.reference.differences import along_directions, in_full

LABELS = np.array([4, 0, 2])


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> methods.Reference:
    return helpers.tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vision=(16, 2, 2), image_size=8)


@pytest.fixture(scope="module")
def images(clip):
    return helpers.random_images(clip.config, len(LABELS))


def parameters(shapes) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


def test_differences_tell_a_wrong_gradient_from_a_right_one():
    point = {"x": np.array([[1.0, -2.0], [0.5, 3.0]]), "y": np.array([2.0])}
    right = {"x": 2 * point["x"], "y": np.array([12.0])}
    wrong = {"x": right["x"] * [[1, 1], [1, 1.01]], "y": -right["y"]}

    def loss(learnables):
        return (learnables["x"] ** 2).sum() + learnables["y"][0] ** 3

    assert max(along_directions(loss, point, right).values()) < 1e-8
    errors = along_directions(loss, point, wrong)
    assert errors["x"] > 1e-3 and errors["y"] > 1
    with pytest.raises(AssertionError, match=r"x has shape \(2, 2\), its gradient \(4,\)"):
        along_directions(loss, point, right | {"x": right["x"].ravel()})
    first, second = in_full(lambda x: np.array([loss(x), 3 * loss(x)]), point)
    for name, slope in right.items():
        np.testing.assert_allclose(first[name], slope, rtol=1e-8)
        np.testing.assert_allclose(second[name], 3 * slope, rtol=1e-8)


# CLIP-LoRA


def test_lora_has_the_published_number_of_parameters():
    config = weights.geometry(**VIT_B_16)
    assert parameters(weight_tuning.lora_shapes(config).values()) == 184_320
    assert parameters(weight_tuning.lora_shapes(config, towers=["vision"]).values()) == 110_592


def test_lora_whose_second_factor_is_zero_is_clip_with_scale_100(clip, images):
    learnables = weight_tuning.random_lora(weight_tuning.lora_shapes(clip.config))
    learnables = {name: value * (not name.endswith(".B")) for name, value in learnables.items()}
    plain = methods.task_logits(clip, "zero_shot", CLASS_NAMES, {}, images)
    logits = weight_tuning.lora(clip, CLASS_NAMES, learnables, images).logits
    np.testing.assert_allclose(logits, plain * 100 / np.exp(clip.state["logit_scale"]), rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"parts": ("q", "k", "v", "o"), "rank": 3}, {"parts": ("o",), "towers": ("text",)}, {"blocks": [1]}],
)
def test_lora_equals_clip_with_folded_weights(clip, images, options):
    learnables = weight_tuning.random_lora(weight_tuning.lora_shapes(clip.config, **options))
    tuned = weight_tuning.lora(clip, CLASS_NAMES, learnables, images, alpha=1.5)
    folded = {**weight_tuning.fold_lora(clip.state, learnables, alpha=1.5), "logit_scale": np.log(100.0)}
    plain = methods.Reference(folded, clip.config, clip.tokenizer)
    expected = methods.task_logits(plain, "zero_shot", CLASS_NAMES, {}, images)
    np.testing.assert_allclose(tuned.logits, expected, rtol=1e-10, atol=1e-10)
    before = methods.task_logits(clip, "zero_shot", CLASS_NAMES, {}, images)
    assert np.abs(tuned.logits / 100 - before / np.exp(clip.state["logit_scale"])).max() > 1e-2


@pytest.mark.parametrize("rank", [2, 4])
def test_lora_is_scaled_by_alpha_over_the_root_of_its_rank(clip, rank):
    learnables = weight_tuning.random_lora(weight_tuning.lora_shapes(clip.config, rank=rank))
    folded = weight_tuning.fold_lora(clip.state, learnables, alpha=3.0)
    name = "text_model.encoder.layers.1.self_attn.v_proj"
    change = 3 / rank**0.5 * learnables[f"{name}.B"].astype(np.float64) @ learnables[f"{name}.A"]
    np.testing.assert_allclose(folded[f"{name}.weight"] - clip.state[f"{name}.weight"], change, atol=1e-12)


def test_lora_masks_keep_three_quarters_and_belong_to_one_layer_each(clip, images):
    learnables = weight_tuning.random_lora(weight_tuning.lora_shapes(clip.config))
    masks = weight_tuning.lora_masks(learnables, clip.config, images=len(images), classes=len(CLASS_NAMES))
    assert len(masks) == 5 * 3
    assert np.mean([mask.mean() for mask in masks.values()]) == pytest.approx(0.75, abs=0.01)
    names = sorted(masks)
    assert all((masks[a] != masks[b]).any() for a, b in itertools.pairwise(names) if a[:6] == b[:6])

    def logits(**options):
        return weight_tuning.lora(clip, CLASS_NAMES, learnables, images, **options).logits

    whole, dropped = ({name: np.full_like(mask, value) for name, mask in masks.items()} for value in (1.0, 0.0))
    np.testing.assert_allclose(logits(masks=whole, rate=0.0), logits(), rtol=1e-12)
    # All inputs kept at rate 0.25 is a branch 4/3 as strong.
    np.testing.assert_allclose(logits(masks=whole), logits(alpha=4 / 3), rtol=1e-10)
    zeros = {name: np.zeros_like(value) for name, value in learnables.items()}
    plain = weight_tuning.lora(clip, CLASS_NAMES, zeros, images).logits
    np.testing.assert_allclose(logits(masks=dropped), plain, rtol=1e-12)
    assert np.abs(logits(masks=masks) - logits()).max() > 1e-2


# BitFit and LayerNorm tuning


def test_weight_tuning_has_the_published_numbers_of_parameters():
    config = weights.geometry(**VIT_B_16)
    shapes = {name: shape for name, (shape, _, _) in weights._shapes_and_scales(config).items()}
    counts = {
        124_928: weight_tuning.bitfit_names(config),
        171_008: weight_tuning.bitfit_names(config, qkv=True),
        61_440: weight_tuning.layer_norm_names(config),
        65_536: weight_tuning.layer_norm_names(config, outer=True),
    }
    for count, names in counts.items():
        assert len(set(names)) == len(names)
        assert parameters(shapes[name] for name in names) == count


def test_bitfit_of_the_mlps_output_biases_is_a_bias_after_each_block(clip, images):
    moves = methods.random_learnables(clip.config, "bias", len(CLASS_NAMES))
    learnables = {}
    for tower in ("vision", "text"):
        for l, move in enumerate(moves[f"{tower}_bias"]):
            name = f"{tower}_model.encoder.layers.{l}.mlp.fc2.bias"
            assert name in weight_tuning.bitfit_names(clip.config)
            learnables[name] = clip.state[name] + move
    logits = weight_tuning.weights_forward(clip, CLASS_NAMES, learnables, images).logits
    expected = methods.task_logits(clip, "bias", CLASS_NAMES, moves, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "names", [weight_tuning.bitfit_names, weight_tuning.layer_norm_names], ids=["bitfit", "layer_norm"]
)
def test_tuning_starts_at_plain_clip(clip, images, names):
    start = weight_tuning.pretrained(clip.state, names(clip.config))
    logits = weight_tuning.weights_forward(clip, CLASS_NAMES, start, images).logits
    np.testing.assert_array_equal(logits, methods.task_logits(clip, "zero_shot", CLASS_NAMES, {}, images))
