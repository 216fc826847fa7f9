import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import encode_image, encode_text
from clipbias.errors import ClipbiasError
from clipbias.explain.decomposition import mean_parts, observe_parts
from clipbias.explain.interventions import intervention, twice
from clipbias.explain.results import INTERVENTIONS
from clipbias.explain.tokens import text_roles, vision_roles
from tests.explain.models import tuned


def run_images(clip, adaptation, images, name, means=None):
    roles = vision_roles(clip.config.vision, adaptation.vision_prompts.shape[1])
    change = intervention(name, roles, (means or {}).get(name))
    x = twice(images) if name == "frozen" else images
    run = functools.partial(encode_image, config=clip.config, intervene=change)
    features = jax.jit(lambda p, a, x: run(p, images=x, adaptation=a)[0])(clip.params, adaptation, x)
    return features[-images.shape[0] :]


def plain(clip, images, adaptation=None):
    return jax.jit(lambda p, a, x: encode_image(p, clip.config, x, a)[0])(clip.params, adaptation, images)


def means_over(clip, adaptation, images):
    observe = observe_parts(
        vision_roles(clip.config.vision, adaptation.vision_prompts.shape[1]), jnp.zeros(len(images), jnp.int32)
    )
    run = functools.partial(encode_image, config=clip.config, observe=observe)
    seen = jax.jit(lambda p, a, x: run(p, images=x, adaptation=a)[1])(clip.params, adaptation, images)
    return dict(zip(("mean_per_token", "mean"), mean_parts(seen["heads"]), strict=True))


@pytest.fixture(scope="module")
def adaptation(clip):
    task, learnables = tuned(clip, "vpt")
    return task.method.adapt(learnables)


@pytest.fixture(scope="module")
def features(clip, images, adaptation):
    means = means_over(clip, adaptation, images)
    return {name: run_images(clip, adaptation, images, name, means) for name in INTERVENTIONS}


def test_full_is_the_tuned_model(clip, images, adaptation, features):
    np.testing.assert_allclose(features["full"], plain(clip, images, adaptation), atol=2e-6)


def test_none_is_clip_itself(clip, images, features):
    np.testing.assert_allclose(features["none"], plain(clip, images), atol=2e-6)


def test_each_takes_something_away(features):
    names = list(INTERVENTIONS)
    for i, name in enumerate(names):
        for other in names[:i]:
            assert float(jnp.abs(features[name] - features[other]).max()) > 1e-3, (name, other)


def test_without_values_the_prompts_values_do_not_matter(clip, images, adaptation, monkeypatch):
    """Re-weighting only: values twice as large change nothing, since no value of a prompt is used."""
    roles = vision_roles(clip.config.vision, 4)
    change = intervention("reweighting_only", roles)

    def amplified(view):
        larger = jnp.where(roles.prompts[:, None, None], 2 * view.values, view.values)
        object.__setattr__(view, "values", larger)
        return change(view)

    run = functools.partial(encode_image, config=clip.config)
    found = [
        jax.jit(lambda p, a, x, c=c: run(p, images=x, adaptation=a, intervene=c)[0])(clip.params, adaptation, images)
        for c in (change, amplified)
    ]
    np.testing.assert_allclose(*found, atol=1e-6)


def test_the_mean_over_equal_images_changes_nothing(clip, images, adaptation):
    same = jnp.repeat(images[:1], 2, axis=0)
    means = means_over(clip, adaptation, same)
    found = run_images(clip, adaptation, same, "mean_per_token", means)
    np.testing.assert_allclose(found, plain(clip, same, adaptation), atol=2e-6)


def test_text_without_prompts_does_not_depend_on_them(clip):
    task, learnables = tuned(clip, "ivlp")
    other = jax.tree.map(lambda x: -3 * x, learnables)
    tokens, roles = jax.tree.map(jnp.asarray, task.tokens), text_roles(task)
    found = {}
    for name in ("none", "full"):
        run = functools.partial(encode_text, config=clip.config, tokens=tokens, intervene=intervention(name, roles))
        run = jax.jit(lambda p, a, run=run: run(p, adaptation=a)[0])
        found[name] = [run(clip.params, task.method.adapt(own)) for own in (learnables, other)]
    np.testing.assert_allclose(*found["none"], atol=1e-6)
    assert float(jnp.abs(found["full"][0] - found["full"][1]).max()) > 0.1


def test_frozen_text_attends_like_the_unprompted(clip):
    task, learnables = tuned(clip, "ivlp")
    tokens, roles = jax.tree.map(jnp.asarray, task.tokens), text_roles(task)
    adaptation = task.method.adapt(learnables)
    run = functools.partial(encode_text, config=clip.config)
    frozen = jax.jit(
        lambda p: run(
            p, tokens=jax.tree.map(twice, tokens), adaptation=adaptation, intervene=intervention("frozen", roles)
        )[0]
    )(clip.params)
    none = jax.jit(lambda p: run(p, tokens=tokens, adaptation=adaptation, intervene=intervention("none", roles))[0])(
        clip.params
    )
    np.testing.assert_allclose(frozen[: len(none)], none, atol=1e-6)
    assert float(jnp.abs(frozen[len(none) :] - none).max()) > 1e-2


def test_refuses(clip):
    roles = vision_roles(clip.config.vision, 1)
    with pytest.raises(ClipbiasError, match="unknown intervention 'half'"):
        intervention("half", roles)
    with pytest.raises(ClipbiasError, match="'mean' needs the dataset mean"):
        intervention("mean", roles)
