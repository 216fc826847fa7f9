"""Relevancy, the causal test and constants of models that are no CLIP, against plain computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipbias
from clipbias.analysis.attention import observe_layers
from clipbias.analysis.bias import measure_equivalent_bias, reference_adaptation
from clipbias.analysis.causal import PatchedRun, PathPatch, mix_images, mix_texts
from clipbias.analysis.relevancy import MapOptions, explanations
from clipbias.analysis.words import text_types, token_labels
from clipbias.clip import Adaptation, encode_image, encode_text, tower
from clipbias.clip.vision import embed_image, head_attention, pool_image
from clipbias.tuning.features import unit_length
from tests import families
from tests.families import CLASSES, DATA, LABELS
from tests.tuning import weights_common

ROUNDING = 5e-6


@pytest.fixture(scope="module")
def clip():
    return clipbias.load(DATA / "siglip_2")


@pytest.fixture(scope="module")
def tuned(clip):
    task = clipbias.Task(clip, "ivlp", CLASSES, text_tokens=2, vision_tokens=2)
    random = np.random.default_rng(0)
    learnables = weights_common.drawn(task.shapes, 0.1)
    size = clip.config.vision.image_size
    return task, learnables, random.normal(size=(3, size, size, 3)).astype(np.float32)


def difference(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@jax.jit(static_argnums=0)
def plain_maps(task, params, learnables, image, label):
    """Chefer's rule with the whole matrices, from the gradients of taps; the pooling head's row on top."""
    config = task.clip.config
    adaptation = task.method.adapt(learnables)
    tokens = jax.tree.map(jnp.asarray, task.tokens)
    vision = config.vision
    text = config.text
    count = config.vision.tokens + 2
    taps = (
        jnp.zeros((vision.layers, 1, vision.heads, count, count)),
        jnp.zeros((1, vision.heads, vision.patches)),
        jnp.zeros((text.layers, len(CLASSES), text.heads, *[tokens.ids.shape[1]] * 2)),
    )

    def logit(taps):
        run = embed_image(params, config, image[None], adaptation)
        rows, seen = tower.run_explicit(run, vision, taps=taps[0], observe=lambda view: view.probabilities)
        pooled = pool_image(params, config, rows, adaptation, taps[1])
        texts, words = encode_text(
            params, config, tokens, adaptation, taps=taps[2], observe=lambda view: view.probabilities
        )
        cosines = unit_length(pooled.feature) @ unit_length(texts).T
        return jnp.exp(params["logit_scale"]) * cosines[0, label], (seen, pooled.probabilities, words)

    def through(attention, gradients):
        mixed = jnp.eye(attention.shape[-1])
        for layer, gradient in zip(attention, gradients, strict=True):
            mixed = mixed + jax.nn.relu(layer * gradient).mean(0) @ mixed
        return mixed

    mixed, seen = jax.grad(logit, has_aux=True)(taps)
    head = jax.nn.relu(mixed[1][0] * seen[1][0]).mean(0)
    return {
        "vision": jnp.pad(head, (0, 2)) @ through(seen[0][:, 0], mixed[0][:, 0]),
        "text": through(seen[2][:, label], mixed[2][:, label])[-1],
        "attention": jnp.pad(seen[1][0].mean(0), (0, 2)),
    }


@pytest.mark.ci
def test_relevancy_starts_at_the_pooling_head(tuned):
    task, learnables, images = tuned
    params = task.clip.params
    maps = explanations(task, params, learnables, images, np.asarray(LABELS), MapOptions(("relevancy", "attention")))
    rows = [plain_maps(task, params, learnables, image, label) for image, label in zip(images, LABELS, strict=True)]
    expected = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    assert difference(maps["relevancy"].vision, expected["vision"]) < ROUNDING
    assert difference(maps["attention"].vision, expected["attention"]) < ROUNDING
    counted = np.arange(expected["text"].shape[1]) < np.asarray(task.tokens.end)[list(LABELS), None]
    assert difference(maps["relevancy"].text, np.where(counted, expected["text"], 0)) < ROUNDING


def test_legrad_of_a_padded_text_is_a_mean_over_the_tokens_that_it_sees(tmp_path):
    model = families.reference("biomed_clip", 1, tmp_path)
    task = families.task_of(model, "ivlp")
    params, config = task.clip.params, task.clip.config
    learnables = families.trained(model, "ivlp")
    adaptation = task.method.adapt(learnables)
    images = jnp.asarray(model.images)[:1]
    tokens = jax.tree.map(jnp.asarray, task.tokens)
    classes, length = tokens.ids.shape
    taps = jnp.zeros((config.text.layers, classes, config.text.heads, length, length))
    image = unit_length(encode_image(params, config, images, adaptation)[0])

    def logit(taps):
        texts, _ = encode_text(params, config, tokens, adaptation, taps=taps)
        return (jnp.exp(params["logit_scale"]) * image @ unit_length(texts).T)[0, 0]

    gradient = np.maximum(np.asarray(jax.jit(jax.grad(logit))(taps))[:, 0], 0)
    seen = int(np.asarray(tokens.visible)[0].sum())
    expected = gradient.mean(1).sum(1).mean(0) / seen
    (actual,) = explanations(task, params, learnables, images, np.zeros(1, int), MapOptions(("legrad",)))["legrad"].text
    end = int(np.asarray(tokens.end)[0])
    assert end < seen < length and difference(actual[:end], expected[:end]) < ROUNDING


@pytest.mark.ci
@pytest.mark.parametrize("family", ["siglip_2", "biomed_clip"])
def test_paths_end_in_the_two_runs(family, tmp_path):
    """Of the causal test: none of the tuned run's parts, and all of them."""
    model = families.reference(family, 1, tmp_path)
    task = families.task_of(model, "ivlp")
    params = task.clip.params
    config = task.clip.config
    patched = [PatchedRun.path(patch) for patch in (PathPatch.RR, PathPatch.PP)]
    tokens = task.tokens
    adaptation = task.method.adapt(families.trained(model, "ivlp"))
    words = reference_adaptation(task, task.init())

    @jax.jit
    def run(params, images, tuned, words):
        mixed = (
            mix_images(params, config, images, tuned, patched),
            mix_texts(params, config, tokens, tuned, words, patched),
        )
        plain = [encode_image(params, config, images, each)[0] for each in (Adaptation(), tuned)]
        return mixed, (plain, [encode_text(params, config, tokens, each)[0] for each in (words, tuned)])

    runs = jax.device_get(run(params, model.images, adaptation, words))
    for mixed, (reference, whole) in zip(*runs, strict=True):
        assert difference(mixed[2], reference) < ROUNDING
        assert difference(mixed[-1], whole) < ROUNDING


@pytest.mark.parametrize(("family", "method"), [("siglip_2", "bias_by_kind"), ("chinese_clip", "bias")])
def test_a_bias_is_its_own_equivalent_bias(family, method, tmp_path):
    model = families.reference(family, 1, tmp_path)
    clip = model.clip
    task = clipbias.Task(clip, method, CLASSES)
    random = np.random.default_rng(1)
    learnables = weights_common.drawn(task.shapes, 0.1)
    side = clip.preprocessing.image_size
    raw = random.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    biases, _ = measure_equivalent_bias(task, clip.params, learnables, task.init(), [(raw, np.ones(2, bool))])
    for name, bias in biases.items():
        learned = learnables[f"{name}_bias"]
        assert difference(bias.kind if method == "bias_by_kind" else bias.vector, learned) < ROUNDING
    if family == "siglip_2":
        assert biases["vision"].kind.shape == (3, 1, 16)


def test_kinds_and_labels_of_a_text_without_sos(tuned):
    task = tuned[0]
    assert token_labels(task, 2) == ["[1]", "[2]", "▁of", "▁a", "▁golden", "▁retriever", "."]
    names = np.array(["sos", "prompt", "words", "category", "dot", "eos", "pad"])[text_types(task)[2]]
    assert names.tolist() == [*["prompt"] * 2, *["words"] * 2, *["category"] * 2, "dot", *["pad"] * 24, "eos"]


def test_where_the_model_looks_is_the_heads_attention(tuned):
    task, learnables, images = tuned

    @jax.jit
    def run(params, learnables, images):
        head = head_attention(params, task.clip.config, images, task.method.adapt(learnables))
        return observe_layers(task.classifier, params, learnables, images), head

    seen, head = jax.device_get(run(task.clip.params, learnables, images))
    assert seen["attention"].shape == (3, 3, 18) and seen["distance"].shape == (3, 3, 2, 16)
    for layer in range(3):
        assert difference(seen["attention"][:, layer, :16], head) < ROUNDING
    np.testing.assert_allclose(seen["attention"].sum(-1), 1, rtol=1e-5)
