"""Statistics of attention by known answers: roles, distance, entropy, and how constant a known part is.

`test_sections` compares the parts themselves.
"""

import functools

import jax
import numpy as np
import pytest

from clipbias.analysis.attention import constancy, distance_and_entropy, text_roles, vision_roles
from clipbias.analysis.model import Model
from clipbias.analysis.statistics import Moments
from clipbias.clip import VisionConfig
from clipbias.tuning import Task
from clipbias.tuning.tuned import Tuned


def test_depth_and_count_of_prompts(clip):
    """In the vision tower, then in the text tower."""
    for method, options, depths, counts in (
        ("zero_shot", {}, (0, 0), (0, 0)),
        ("vpt", {"depth": 1}, (1, 0), (4, 0)),
        ("coop", {}, (0, 1), (0, 4)),
        ("ivlp", {"vision_depth": 2}, (2, 3), (4, 4)),
        ("maple", {"depth": 1000}, (3, 3), (2, 2)),
    ):
        task = Task(clip, method, ["cat"], **options)
        model = Model(method, method, Tuned(task, task.shapes))
        assert (model.depths, model.prompts) == (depths, counts), method


def test_roles(clip):
    vision = vision_roles(clip.config.vision, 2)
    assert np.flatnonzero(vision.prompts).tolist() == [17, 18]
    assert np.flatnonzero(~vision.queries).tolist() == [17, 18]
    text = text_roles(Task(clip, "ivlp", ["cat", "maine coon"], text_tokens=2))
    assert np.flatnonzero(text.prompts[0]).tolist() == [1, 2]
    assert np.flatnonzero(text.queries[0]).tolist() == [3, 4, 5, 6, 7]  # not SOS, which sees no prompt, nor padding
    front = text_roles(Task(clip, "coop", ["cat"], position="front"))
    assert not front.queries[0, 1]  # the name comes first


VIT_B_16 = VisionConfig(width=4, layers=1, heads=1, mlp_width=4, image_size=224, patch_size=16)


def test_uniform_attention_has_the_known_values():
    run = jax.jit(functools.partial(distance_and_entropy, config=VIT_B_16))
    with_cls = run(np.full((1, 1, 197, 197), 1 / 197, np.float32))
    assert float(with_cls["distance"][0, 0]) == pytest.approx(115.901, abs=5e-4)
    assert float(with_cls["entropy"][0, 0]) == pytest.approx(np.log(197), abs=1e-5)
    assert float(with_cls["cls_entropy"][0, 0]) == pytest.approx(np.log(197), abs=1e-5)
    patches_alone = np.zeros((1, 1, 197, 197), np.float32)
    patches_alone[..., 1:] = 1 / 196
    assert float(run(patches_alone)["distance"][0, 0]) == pytest.approx(116.492, abs=5e-4)


def parts_of(parts_over_samples, counted=None):
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
        parts_of(np.broadcast_to(vector, (50, 2, 3, 6))), {"learned": 2 * vector[0, :, 0], "opposed": -vector[0, :, 0]}
    )
    np.testing.assert_allclose(shares["constancy"], 1, atol=1e-6)
    np.testing.assert_allclose(shares["bias_likeness"], 1, atol=1e-6)
    np.testing.assert_allclose(shares["bias_cosine"]["learned"], 1, atol=1e-6)
    np.testing.assert_allclose(shares["bias_cosine"]["opposed"], -1, atol=1e-6)
    shares = constancy(parts_of(np.broadcast_to(draw.normal(size=(1, 2, 3, 6)), (50, 2, 3, 6))), {})
    np.testing.assert_allclose(shares["constancy"], 1, atol=1e-6)
    assert (shares["bias_likeness"] < 0.9).all()
    assert not constancy(parts_of(np.zeros((4, 2, 3, 6))), {})["constancy"].any()
    single = constancy(parts_of(draw.normal(size=(1, 2, 3, 6))), {})
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
    shares = constancy(parts_of(means + noise, counted), {})
    truth = (vector**2).sum() / square
    np.testing.assert_allclose(shares["bias_likeness"].mean(), truth, atol=0.02)
    whole = constancy(parts_of(means[:2] + noise[:, :, :2]), {})
    truth = (means[:2] ** 2).sum() / (means[:2] ** 2 + variance).sum()
    np.testing.assert_allclose(whole["constancy"].mean(), truth, atol=0.02)
    nothing = constancy(parts_of(noise, counted), {})
    for name in ("constancy", "bias_likeness"):  # without the correction 1/n and more
        assert abs(nothing[name].mean()) < 0.02
