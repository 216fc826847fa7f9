import functools

import jax
import numpy as np
import pytest

from clipbias.clip import encode_image, encode_text
from clipbias.explain.attention import text_roles, vision_roles
from clipbias.explain.decomposition import constancy, observe_parts, parts
from clipbias.explain.statistics import Moments
from tests.explain.models import tuned
from tests.reference import numpy_clip, statistics

CLS = np.zeros(4, np.int32)


@pytest.fixture(scope="module")
def seen(clip, images):
    """Parts and statistics of a prompted vision tower, and what its blocks really computed."""
    task, learnables = tuned(clip, "ivlp", vision_tokens=2)
    roles = vision_roles(clip.config.vision, 2)
    statistic = observe_parts(roles, CLS)

    def observe(view):
        input_part, prompt_part, mass = parts(view, roles)
        return {
            "input": view.project(input_part),
            "prompt": view.project(prompt_part),
            "whole": view.project(view.heads_output(view.probabilities)),
            "mass": mass,
            "attention": view.probabilities,
            "values": view.values,
            "statistics": statistic(view),
        }

    run = functools.partial(encode_image, config=clip.config, observe=observe)
    adaptation = task.method.adapt(learnables)
    return jax.jit(lambda p, a, x: run(p, images=x, adaptation=a)[1])(clip.params, adaptation, images)


def test_parts_add_up_to_what_the_block_computes(seen):
    np.testing.assert_allclose(seen["input"] + seen["prompt"], seen["whole"], atol=1e-5)


def test_parts_equal_the_reference(clip, seen):
    layer = 1
    weights = jax.tree.map(lambda leaf: np.asarray(leaf[layer], np.float64), clip.params["vision"]["layers"]["out"])
    name = f"vision_model.encoder.layers.{layer}.self_attn.out_proj"
    state = {f"{name}.weight": weights["kernel"].T, f"{name}.bias": weights["bias"]}
    attention, values = (np.asarray(seen[key][layer], np.float64) for key in ("attention", "values"))

    class Block:
        pass

    class Reference:
        pass

    block = Block()
    reference = Reference()
    block.attention = attention
    block.value = values.swapaxes(1, 2)
    reference.state = state
    expected = statistics.decomposition(reference, "vision", layer, block, slice(17, 19))
    for key in ("input", "prompt"):
        np.testing.assert_allclose(seen[key][layer], expected[key], atol=1e-5)
    np.testing.assert_allclose(seen["mass"][layer], expected["mass"], atol=1e-6)
    # Per head, the input part is the renormalised output scaled by one minus the mass.
    scaled = expected["renormalised"] * (1 - expected["mass"])[..., None]
    merged = numpy_clip.merge_heads(scaled) @ weights["kernel"]
    np.testing.assert_allclose(seen["input"][layer], merged, atol=1e-5)


def test_statistics_are_those_of_the_parts(seen):
    sums = seen["statistics"]
    mass = np.asarray(seen["mass"])
    np.testing.assert_allclose(sums["prompt_mass"], mass[..., :17].mean(-1), rtol=1e-5)
    np.testing.assert_allclose(sums["pooled_mass"], mass[..., 0], rtol=1e-6)
    norms = [np.linalg.norm(np.asarray(seen[key]), axis=-1)[..., :17] for key in ("prompt", "input")]
    np.testing.assert_allclose(sums["norm_share"], (norms[0] / (norms[0] + norms[1])).mean(-1), rtol=1e-4)
    np.testing.assert_allclose(sums["part"].mean[:, :17], np.asarray(seen["prompt"]).mean(1)[:, :17], atol=1e-6)
    assert sums["part"].count.shape == (3, 19) and not sums["part"].count[:, 17:].any()


def test_text_counts_only_queries_that_see_prompts(clip):
    task, learnables = tuned(clip, "coop")
    roles = text_roles(task)
    tokens = task.tokens
    observe = observe_parts(roles, tokens.eos)
    run = functools.partial(encode_text, config=clip.config, tokens=tokens, observe=observe)
    seen = jax.jit(lambda p, a: run(p, adaptation=a)[1])(clip.params, task.method.adapt(learnables))
    np.testing.assert_array_equal(seen["part"].count[0], np.asarray(roles.queries).sum(0))
    assert not seen["part"].count[0, 0]  # SOS sees no prompt


def of(parts_over_samples, counted=None):
    """What `observe_parts` gives for parts `[B, L, N, D]` whose queries `[B, L, N]` count, all of them by default."""
    values = np.asarray(parts_over_samples, np.float64)
    counted = np.ones(values.shape[:3], bool) if counted is None else counted

    def moments(values, counted):
        count = counted.sum(0)
        mask = counted.reshape(*counted.shape, *[1] * (values.ndim - counted.ndim))
        mean = (mask * values).sum(0) / np.maximum(mask.sum(0), 1)
        return Moments(count, mean, (mask * (values - mean) ** 2).sum(0))

    shared = np.ones(values.shape[:2], bool)
    total = moments((values * counted[..., None]).sum(2), shared)
    return {"part": moments(values, counted), "total": total, "tokens": moments(counted.sum(2), shared)}


def test_constancy_of_known_parts():
    draw = np.random.default_rng(0)
    vector = draw.normal(size=(1, 2, 1, 6))
    shares = constancy(
        of(np.broadcast_to(vector, (50, 2, 3, 6))), {"learned": 2 * vector[0, :, 0], "opposed": -vector[0, :, 0]}
    )
    np.testing.assert_allclose(shares["constancy"], 1, atol=1e-6)
    np.testing.assert_allclose(shares["bias_likeness"], 1, atol=1e-6)
    np.testing.assert_allclose(shares["bias_cosine"]["learned"], 1, atol=1e-6)
    np.testing.assert_allclose(shares["bias_cosine"]["opposed"], -1, atol=1e-6)
    shares = constancy(of(np.broadcast_to(draw.normal(size=(1, 2, 3, 6)), (50, 2, 3, 6))), {})
    np.testing.assert_allclose(shares["constancy"], 1, atol=1e-6)
    assert (shares["bias_likeness"] < 0.9).all()
    assert not constancy(of(np.zeros((4, 2, 3, 6))), {})["constancy"].any()
    single = constancy(of(draw.normal(size=(1, 2, 3, 6))), {})
    assert np.isnan(single["constancy"]).all() and np.isnan(single["bias_likeness"]).all()


def test_few_samples_make_nothing_look_constant():
    """Many data sets of a few samples each, one per layer: on average the shares are the true ones."""
    draw = np.random.default_rng(2)
    samples, sets, tokens, width = 2, 3000, 3, 16
    means = draw.normal(size=(tokens, width))
    # Tokens of one sample vary together, as those of one image do, and the last is missing in half of the samples.
    noise = 1.5 * draw.normal(size=(samples, sets, 1, width)) + 0.5 * draw.normal(size=(samples, sets, tokens, width))
    counted = np.ones((samples, sets, tokens), bool)
    counted[:, :, -1] = draw.random((samples, sets)) < 0.5
    variance = 1.5**2 + 0.5**2
    weights = np.array([1, 1, 0.5])[:, None]
    square = (weights * (means**2 + variance)).sum() / weights.sum()
    vector = (weights * means).sum(0) / weights.sum()
    shares = constancy(of(means + noise, counted), {})
    truth = (vector**2).sum() / square
    np.testing.assert_allclose(shares["bias_likeness"].mean(), truth, atol=0.02)
    whole = constancy(of(means[:2] + noise[:, :, :2]), {})
    truth = (means[:2] ** 2).sum() / (means[:2] ** 2 + variance).sum()
    np.testing.assert_allclose(whole["constancy"].mean(), truth, atol=0.02)
    nothing = constancy(of(noise, counted), {})
    for name in ("constancy", "bias_likeness"):  # without the correction 1/n and more
        assert abs(nothing[name].mean()) < 0.02
