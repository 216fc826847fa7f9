"""Each built-in method through everything that takes a method: adapters, explanations, programs, other classes."""

from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from safetensors.numpy import load_file

import clipbias
from clipbias.clip import Clip, encode_image
from clipbias.data import transforms
from clipbias.data.transforms import Resizing
from clipbias.errors import ClipbiasError
from clipbias.export import export
from clipbias.tuning import METHODS, Samples, Task
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.method import CONSTANTS, Learnables, crops_of, sampling_of
from clipbias.tuning.tuned import Tuned
from tests import helpers

pytestmark = pytest.mark.ci

NAMES, OTHERS = ("cat", "a dog", "two birds"), ("dog fish", "x")
PER_CLASS = 4
# The first name of every method; others are options of the same.
FIRST = {kind: name for name, (kind, _) in reversed(METHODS.items())}
# What only belongs to the classes that were trained on.
CLASS_BOUND = {"taskres", "linear_probe", "lp_plus_plus", "gda", "clap"}

# Whose logits no map of relevancy follows, and why.
UNEXPLAINED = {
    **dict.fromkeys(("tpt", "tpt_coop"), "learned anew from crops of each test image"),
    "plot": "features of patches",
    "plot_plus_plus": "several passes",
    "mmrl": "Tokens are inserted inside the towers",
}
# Whose maps `tests/analysis/test_relevancy.py` compares number by number.
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
    """Learnables as after a training: of drawn features where they are made of these and moved a little, else drawn."""
    rng = np.random.default_rng(0)
    sampling = sampling_of(task.method)
    if sampling is None and CONSTANTS not in task.shapes:
        return jax.tree.map(lambda leaf: 0.05 * rng.normal(size=leaf.shape).astype(np.float32), task.shapes)
    learnables = task.init(seed=1)
    if sampling is not None:
        width = task.clip.config.projection_width if sampling.projected else task.clip.config.vision.width
        labels = np.repeat(np.arange(len(NAMES), dtype=np.int32), PER_CLASS)
        text = np.asarray(task.classifier.split_by_template(task.text_input(task.clip.params, learnables)))
        centres = rng.normal(size=(len(NAMES), width)).astype(np.float32)

        def draw(*shape: int) -> np.ndarray:
            return centres[labels] + 0.3 * rng.normal(size=(*shape, len(labels), width)).astype(np.float32)

        samples = Samples(draw(max(1, sampling.passes)), labels, text, 20.0, draw(), labels, seed=1)
        learnables = task.method.support(learnables, samples)
        if task.method.finish is not None:
            learnables = task.method.finish(learnables, samples)

    def moved(path: tuple, leaf: jax.Array) -> jax.Array:
        fixed = path[0].key == CONSTANTS
        return leaf if fixed else leaf + 0.05 * rng.normal(size=np.shape(leaf)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(moved, jax.device_get(learnables))


# A checkpoint with another projection, a program, and what is learned anew from an image, which is refused before
# anything is computed. `tests/export` has text features alone and a bias.
COVERING = ("prolip", "plot", "tpt")


encode = jax.jit(encode_image, static_argnums=1)


@pytest.fixture(scope="module")
def images(clip: Clip) -> np.ndarray:
    size = clip.config.vision.image_size
    return np.random.default_rng(2).integers(0, 256, (2, size, size, 3), np.uint8)


@pytest.mark.parametrize("name", FIRST.values())
def test_an_adapter_is_the_same_classifier_and_takes_other_classes(name, clip, tmp_path):
    task = Task(clip, name, NAMES, **OPTIONS.get(name, {}))
    learnables = tuned(task)
    path = tmp_path / "adapter.safetensors"
    model = Tuned(task, learnables)
    write_adapter(path, model)
    again = read_adapter(path).bind(clip)
    assert again.task.classifier == task.classifier and again.identity == model.identity
    jax.tree.map(np.testing.assert_array_equal, again.learnables, dict(learnables))
    if name in CLASS_BOUND:
        with pytest.raises(ClipbiasError, match="classes"):
            again.with_classes(OTHERS)
        return
    other = again.with_classes(OTHERS)
    crops = crops_of(task.method)
    size = clip.config.vision.image_size
    pixels = jax.ShapeDtypeStruct((2, *([1 + crops] if crops else []), size, size, 3), np.float32)
    assert jax.eval_shape(other.task.logits, clip.params, other.learnables, pixels).shape == (2, len(OTHERS))


@pytest.mark.parametrize("name", helpers.short(FIRST.values(), *COVERING))
def test_an_exported_file_has_the_logits_that_are_explained(name, clip, images, tmp_path):
    """What other programs load has the logits that relevancy explains, or the task's; else it is refused in a sentence.

    That the task's own are those of the method is found number by number in `tests/tuning`.
    """
    task = Task(clip, name, NAMES, **OPTIONS.get(name, {}))
    out = tmp_path / "out"
    learnables = tuned(task)
    crops = crops_of(task.method)
    write_adapter(tmp_path / "adapter.safetensors", Tuned(task, learnables))
    model = read_adapter(tmp_path / "adapter.safetensors").bind(clip)
    explained = name not in UNEXPLAINED and name not in COMPARED
    if crops:
        images = np.stack([transforms.test_views(image, Resizing(images.shape[1]), crops) for image in images])
    pixels = np.asarray(clip.preprocessing.normalize(images))
    targets = np.tile(np.arange(len(NAMES)), (len(images), 1))  # every class of each image

    if name in UNEXPLAINED:
        with pytest.raises(ClipbiasError, match=UNEXPLAINED[name]):
            clipbias.relevancy(task, clip.params, learnables, pixels, targets)
    if crops:
        with pytest.raises(ClipbiasError, match="and exported files cannot"):
            export(model, out)
        return
    exported_logits = exported(model, images, out)
    assert exported_logits.shape == (2, len(NAMES)) and np.isfinite(exported_logits).all()
    if explained:
        maps = clipbias.relevancy(task, clip.params, learnables, pixels, targets)
        np.testing.assert_allclose(maps.scores, exported_logits, rtol=1e-4, atol=1e-4)
        assert np.isfinite(maps.vision).all() and np.isfinite(maps.text).all()
    else:
        logits = np.asarray(jax.jit(task.logits)(clip.params, learnables, pixels))
        np.testing.assert_allclose(exported_logits, logits, rtol=1e-4, atol=1e-4)


def exported(model: Tuned, images: np.ndarray, out: Path) -> np.ndarray:
    """The logits that the files of an exported model give, as another program computes them."""
    clip = model.clip
    form = export(model, out)
    if form == "program":
        program = jax.export.deserialize(bytearray((out / "classifier.stablehlo").read_bytes()))
        return np.asarray(program.call(load_file(out / "weights.safetensors"), images))
    base = clipbias.load(out) if form == "checkpoint" else clip
    text = load_file(out / "classifier.safetensors")["text_features"]
    features = np.asarray(encode(base.params, base.config, np.asarray(clip.preprocessing.normalize(images)))[0])
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return np.exp(base.params["logit_scale"]) * unit @ text.T
