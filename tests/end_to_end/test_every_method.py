"""Each built-in method through everything that takes a method: adapters, explanations, programs, other classes."""

from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import clipbias
from clipbias.clip import Clip, encode_image
from clipbias.data import transforms
from clipbias.errors import ClipbiasError
from clipbias.export import export
from clipbias.tuning import METHODS, Samples, Task, unit_length
from clipbias.tuning.adapter import save_adapter
from clipbias.tuning.method import CONSTANTS, Learnables

NAMES, OTHERS = ("cat", "a dog", "two birds"), ("dog fish", "x")
PER_CLASS = 4
# The first name of every method; others are options of the same.
FIRST = {kind: name for name, (kind, _) in reversed(METHODS.items())}
# What only belongs to the classes that were trained on.
CLASS_BOUND = {"taskres", "linear_probe", "lp_plus_plus", "gda", "clap"}

# Whose logits no map of relevancy follows, and why.
UNEXPLAINED = {
    **dict.fromkeys(("cocoop", "tpt", "tpt_coop"), "depend on the image"),
    "plot": "features of patches",
    "plot_plus_plus": "several passes",
    "mmrl": "inserts tokens inside the towers",
}
# Whose maps `tests/explain/test_against_reference.py` compares number by number.
COMPARED = {"zero_shot", "coop", "vpt", "ivlp", "maple", "taskres", "bias", "bias_by_kind"}
# The model reads 24 tokens.
OPTIONS = {
    "tpt": {"crops": 9},
    "tpt_coop": {"crops": 9},
    "upl": {"tokens": 8, "sets": 2},
    "prograd": {"tokens": 8},
    "plot": {"tokens": 8},
    "proda": {"tokens": 8, "sets": 4},
    "plot_plus_plus": {"phrases": ("a photo of a", "photo of the dog type")},
}


def tuned(task: Task) -> Learnables:
    """Learnables as after a training: of drawn features where they are made of these, and moved a little."""
    learnables, rng = task.init(seed=1), np.random.default_rng(0)
    sampling = task.method.sampling()
    if sampling is not None:
        width = task.clip.config.projection_width if sampling.projected else task.clip.config.vision.width
        labels = np.repeat(np.arange(len(NAMES), dtype=np.int32), PER_CLASS)
        text = np.asarray(task.classifier.by_text(task.fixed_text(task.clip.params, learnables)))
        centres = rng.normal(size=(len(NAMES), width)).astype(np.float32)

        def draw(*shape: int) -> np.ndarray:
            return centres[labels] + 0.3 * rng.normal(size=(*shape, len(labels), width)).astype(np.float32)

        samples = Samples(draw(max(1, sampling.passes)), labels, text, 20.0, draw(), labels, seed=1)
        learnables = task.method.finish(task.method.support(learnables, samples), samples)

    def moved(path: tuple, leaf: jax.Array) -> jax.Array:
        fixed = path[0].key == CONSTANTS
        return leaf if fixed else leaf + 0.05 * rng.normal(size=np.shape(leaf)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(moved, jax.device_get(learnables))


@pytest.fixture(scope="module")
def images(clip: Clip) -> np.ndarray:
    size = clip.config.vision.image_size
    return np.random.default_rng(2).integers(0, 256, (2, size, size, 3), np.uint8)


@pytest.mark.parametrize("name", FIRST.values())
def test_a_method_works_with_all_else(name: str, clip: Clip, images: np.ndarray, tmp_path: Path) -> None:
    task = Task(clip, name, NAMES, **OPTIONS.get(name, {}))
    learnables = tuned(task)
    crops = task.method.crops_at_test()
    if crops:
        images = np.stack([transforms.test_views(image, images.shape[1], crops) for image in images])
    pixels = clip.preprocessing.normalize(jnp.asarray(images))
    logits = np.asarray(jax.jit(task.logits)(clip.params, learnables, pixels))
    assert logits.shape == (2, len(NAMES)) and np.isfinite(logits).all()

    # Its adapter is the same classifier.
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, task, learnables, method=name)
    adapter = clipbias.load_adapter(path)
    again, loaded = adapter.bind(clip)
    assert again.classifier == task.classifier
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(learnables))

    # Its logits are what relevancy explains, or it is refused in one sentence.
    if name in UNEXPLAINED:
        with pytest.raises(ClipbiasError, match=UNEXPLAINED[name]):
            clipbias.relevancy(task, clip.params, learnables, pixels, jnp.array([0, 2]))
    elif name not in COMPARED:
        maps = clipbias.relevancy(task, clip.params, learnables, pixels, jnp.array([0, 2]))
        np.testing.assert_allclose(maps.scores, logits[[0, 1], [0, 2]], rtol=1e-4, atol=1e-4)
        assert np.isfinite(maps.vision).all() and np.isfinite(maps.text).all()

    # What other programs load computes the same, or there is nothing that they could.
    out = tmp_path / "out"
    if crops:
        with pytest.raises(ClipbiasError, match="which no exported file does"):
            export(adapter, clip, out)
        form, exported = None, logits
    else:
        form = export(adapter, clip, out)
    if form == "program":
        program = jax.export.deserialize(bytearray((out / "classifier.stablehlo").read_bytes()))
        exported = program.call(load_file(out / "weights.safetensors"), images)
    elif form is not None:
        base = clipbias.load(out) if form == "checkpoint" else clip
        text = load_file(out / "classifier.safetensors")["text_features"]
        features = unit_length(encode_image(base.params, base.config, pixels)[0])
        exported = jnp.exp(base.params["logit_scale"]) * features @ text.T
    np.testing.assert_allclose(exported, logits, rtol=1e-4, atol=1e-4)

    # Other classes are taken, or refused in one sentence.
    if name in CLASS_BOUND:
        with pytest.raises(ClipbiasError, match="classes"):
            adapter.bind(clip, OTHERS)
    else:
        other, moved = adapter.bind(clip, OTHERS)
        assert jax.eval_shape(other.logits, clip.params, moved, pixels).shape == (2, len(OTHERS))
