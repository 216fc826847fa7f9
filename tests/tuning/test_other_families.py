"""GDA and a folded bias on SigLIP 2, and methods that read other tokens of other families."""

import jax
import numpy as np
import pytest

import clipbias
from clipbias.export import export
from clipbias.tuning.features import Samples
from clipbias.tuning.method import FeatureMethod
from clipbias.tuning.tuned import Tuned
from tests import families
from tests.families import CLASSES, Reference
from tests.reference import heads
from tests.reference.numpy_clip import unit

pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return families.reference("siglip_2", 1, tmp_path_factory.mktemp("siglip"))


def test_gda_equals_the_reference(siglip):
    clip = siglip.clip
    expected = siglip.expected
    task = clipbias.Task(clip, "gda", CLASSES)
    rows = np.random.default_rng(0).normal(size=(2, 8, clip.config.projection_width)).astype(np.float32)
    labels = np.tile(np.arange(len(CLASSES)), 2)
    text = expected["text_features"][None]
    samples = Samples(features=rows, labels=labels, text=text, scale=100.0)
    assert isinstance(task.method, FeatureMethod)
    learnables = task.method.support(task.init(), samples)
    weight, bias = heads.gda(rows, labels, len(CLASSES), "few_shot")
    image = unit(expected["image_features"].astype(np.float64))
    expected_logits = 100 * image @ unit(text[0].astype(np.float64)).T + 0.1 * (image @ weight.T + bias)
    logits = np.asarray(jax.jit(task.logits)(clip.params, learnables, siglip.images), np.float64)
    expected_logits += float(clip.params["logit_bias"])
    assert np.abs(logits - expected_logits).max() < 1e-5 * np.abs(expected_logits).max()


def test_a_bias_by_kind_is_one_vector_where_no_token_is_read_out_and_folds(siglip, tmp_path):
    clip = siglip.clip
    task = clipbias.Task(clip, "bias_by_kind", CLASSES, text_tower=False)
    learnables = {"vision_bias": families.trained(siglip, "bias_by_kind")["vision_bias"]}
    assert export(Tuned(task, learnables), tmp_path / "model") == "checkpoint"
    plain = clipbias.load(tmp_path / "model")
    logits = jax.jit(task.logits)(clip.params, learnables, siglip.images)
    again = jax.jit(clipbias.Task(plain, "zero_shot", CLASSES).logits)(plain.params, {}, siglip.images)
    np.testing.assert_allclose(again, logits, rtol=1e-5)


@pytest.mark.parametrize(("family", "method"), [("chinese_clip", "plot"), ("pe", "mmrl")])
def test_methods_that_read_other_tokens_learn(family, method, tmp_path):
    """Patches of a vision tower beside a BERT; inserted tokens, which do not turn, in a tower with rotary positions."""
    model = families.reference(family, 1, tmp_path)
    task = clipbias.Task(model.clip, method, CLASSES)
    step = jax.jit(jax.value_and_grad(task.loss, argnums=1))
    start = task.init()
    loss, gradient = step(model.clip.params, start, model.images, np.array(families.LABELS))
    moved = jax.tree.map(lambda x, g: x - 1e-3 * g / (np.abs(g).max() + 1e-9), start, gradient)
    assert step(model.clip.params, moved, model.images, np.array(families.LABELS))[0] < loss
