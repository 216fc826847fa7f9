"""Prompts per image and several prompt sets against NumPy: logits, terms of the loss, gradients, steps, starts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.explain.norms import norms
from clipbias.explain.results import TEXT_KINDS
from clipbias.explain.tokens import text_kinds
from clipbias.tuning import Task, make_method
from clipbias.tuning.learnables import without_constants
from clipbias.tuning.transport import sinkhorn
from tests import helpers
from tests.reference import methods, prompts_cocoop, prompts_plot, prompts_proda
from tests.reference.gradients import sgd
from tests.reference.weights import double
from tests.tuning import weights_common as common
from tests.tuning.weights_common import CLASS_NAMES, LABELS

RATES = (0.03, 0.02, 0.05)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Clip, methods.Reference]:
    folder = tmp_path_factory.mktemp("prompts")
    reference = helpers.tiny_checkpoint(folder, vision=(16, 3, 2), image_size=8, projection=48, context_length=40)
    return clipbias.load(folder), reference


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    return common.pictures(8)


def normalised(clip: Clip, raw: np.ndarray) -> np.ndarray:
    return np.asarray(clip.preprocessing.normalize(raw), np.float32)


def check_rule(task: Task, start: Mapping[str, Any], pictures: tuple[np.ndarray, np.ndarray], reference: Any) -> None:
    """Logits, terms, the gradient that a step takes and three steps; `reference` has `logits` and `losses`."""
    (raw, images), params = pictures, task.clip.params
    shapes = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (jax.eval_shape(task.init), start))
    assert next(shapes) == next(shapes)
    learnables = jax.tree.map(lambda value: np.asarray(value, np.float32), start)
    exact = double(without_constants(learnables))
    losses, gradients = reference.losses(exact, images)
    terms, logits = jax.jit(task.classifier.losses)(
        params, learnables, normalised(task.clip, raw), LABELS, task.text, None
    )
    common.close(logits, reference.logits(exact, images), common.LOGITS, "logits")
    assert set(terms) == set(losses)
    for name, value in losses.items():
        assert np.mean(terms[name]) == pytest.approx(value, rel=common.LOGITS, abs=common.LOGITS), name
    states = [state for state, _ in common.steps(task, learnables, common.SGD, raw, LABELS, RATES)]
    common.close_trees(common.taken(learnables, common.SGD, states[0]), gradients, common.GRADIENTS)
    after = jax.tree.map(lambda leaf: leaf[0], states[-1].learnables)
    common.close_trees(after, sgd(lambda x: reference.losses(x, images)[1], exact, RATES), common.TRAINED)


# CoCoOp


class CoCoOp:
    def __init__(self, clip: methods.Reference) -> None:
        self.clip = clip

    def logits(self, learnables, images):
        return prompts_cocoop.logits(self.clip, CLASS_NAMES, learnables, images)

    def losses(self, learnables, images):
        return prompts_cocoop.loss_and_gradients(self.clip, CLASS_NAMES, learnables, images, LABELS)


def test_cocoop(pair, pictures) -> None:
    clip, reference = pair
    task = Task(clip, "cocoop", CLASS_NAMES)
    check_rule(task, common.drawn(task.shapes, 0.4, seed=5), pictures, CoCoOp(reference))


def test_cocoop_starts_as_torchs_linear_layers_and_the_words_do(pair) -> None:
    clip, reference = pair
    task = Task(clip, "cocoop", CLASS_NAMES)
    runs = [jax.device_get(task.init(seed)) for seed in range(60)]
    words = reference.tokenizer.tokenize(["a photo of a"])[0, 1:5]
    expected = methods.numpy_clip.token_embeddings(reference.state, words)
    np.testing.assert_allclose(runs[0]["text_context"], expected, atol=1e-7)
    for layer, inputs in (("hidden", 48), ("output", 3)):
        for part in ("kernel", "bias"):
            drawn = np.concatenate([run[f"text_{layer}_{part}"].ravel() for run in runs]) * inputs**0.5
            assert np.abs(drawn).max() <= 1 and np.abs(drawn).max() > 0.95, (layer, part)
            assert drawn.std() == pytest.approx(3**-0.5, rel=0.12) and abs(drawn.mean()) < 0.15
    # The shift is not zero at first.
    raw = common.pictures(8)[0]
    fresh = jax.jit(task.logits)(clip.params, runs[0], normalised(clip, raw))
    plain = jax.jit(Task(clip, "zero_shot", CLASS_NAMES).logits)(clip.params, {}, normalised(clip, raw))
    assert np.abs(fresh - plain).max() > 0.1


# PLOT


class PLOT:
    def __init__(self, clip: methods.Reference, pooled: bool) -> None:
        self.clip, self.options = clip, {"pooled": pooled}

    def logits(self, learnables, images):
        return prompts_plot.plot_logits(self.clip, CLASS_NAMES, learnables, images, **self.options)

    def losses(self, learnables, images):
        return prompts_plot.plot_loss_and_gradients(self.clip, CLASS_NAMES, learnables, images, LABELS, **self.options)


def test_plot(pair, pictures) -> None:
    clip, reference = pair
    options = {"tokens": 5, "sets": 3}
    task = Task(clip, "plot", CLASS_NAMES, pooled=True, **options)
    assert task.text.shared == 6  # the start and each set's context
    start = common.drawn(task.shapes, 0.4, seed=3)
    check_rule(task, start, pictures, PLOT(reference, True))
    found = jax.jit(Task(clip, "plot", CLASS_NAMES, **options).logits)(
        clip.params, start, normalised(clip, pictures[0])
    )
    common.close(found, PLOT(reference, False).logits(start, pictures[1]), common.LOGITS)


def test_plans_end_for_the_images_that_count_together() -> None:
    rng = np.random.default_rng(8)
    image, text = rng.normal(size=(3, 6, 4)), rng.normal(size=(4, 5, 4))
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    similarity = prompts_plot.similarities(image.swapaxes(0, 1), text)
    plans, rounds = prompts_plot.plans(similarity)
    alone, fewer = prompts_plot.plans(similarity[:1])
    assert 1 < fewer < rounds < 100  # so that the images of a batch do matter
    kernel = jnp.asarray(np.exp(-(1 - similarity) / 0.1), jnp.float32)
    common.close(sinkhorn(kernel, None), plans, 1e-5)
    found = sinkhorn(kernel, jnp.array([True, False, False]))
    common.close(found[:1], alone, 1e-5)
    assert np.abs(found[:1] - plans[:1]).max() > 1e-3 * plans.max()
    # Side by side, each run ends by itself.
    both = jax.jit(jax.vmap(sinkhorn))(jnp.stack([kernel] * 2), jnp.array([[True] * 3, [True, False, False]]))
    common.close(both[0], plans, 1e-5)
    common.close(both[1, :1], alone, 1e-5)


# PLOT++

# Of as many tokens as the first has words, of more, and of fewer.
PHRASES = ("a photo of a", "photo of the dog type", "of a cat")


class PLOTPlusPlus:
    def __init__(self, clip: methods.Reference, context: np.ndarray | None = None) -> None:
        self.clip, self.context = clip, context

    def whole(self, learnables):
        return learnables if self.context is None else {**learnables, "text_context": self.context}

    def logits(self, learnables, images):
        passes = prompts_plot.plus_forward(self.clip, CLASS_NAMES, self.whole(learnables), images, PHRASES)
        return prompts_plot.plus_scores(self.clip, passes, first=self.context is not None)

    def losses(self, learnables, images):
        losses, found = prompts_plot.plus_loss_and_gradients(
            *(self.clip, CLASS_NAMES, self.whole(learnables), images, LABELS),
            phrases=PHRASES,
            first=self.context is not None,
        )
        return losses, {name: found[name] for name in learnables}


def test_plot_plus_plus(pair, pictures) -> None:
    clip, reference = pair
    task = Task(clip, "plot_plus_plus", CLASS_NAMES, phrases=PHRASES)
    start = task.init(3)
    context = prompts_plot.start_context(reference, PHRASES)
    np.testing.assert_allclose(start["text_context"], context, atol=1e-7)
    check_rule(task, common.drawn(task.shapes, 0.4, seed=3), pictures, PLOTPlusPlus(reference))
    # The first training leaves the contexts at their words and adds to the logits.
    stages = task.method.stages(common.SGD)
    assert [recipe for _, recipe in stages] == [common.SGD] * 2 and stages[1][0] == task.method
    first = Task(clip, stages[0][0], CLASS_NAMES)
    before = task.method.next_stage(0, start, None)
    moved = {**before, "vision_prompts": common.drawn(before["vision_prompts"], 0.4, seed=4)}
    assert not first.classifier.changes_text(first.shapes)
    check_rule(first, moved, pictures, PLOTPlusPlus(reference, context))
    after = task.method.next_stage(1, moved, None)
    assert after == {"vision_prompts": moved["vision_prompts"], "text_context": start["text_context"]}
    assert task.method.next_stage(2, after, None) == after


def test_phrases_of_plot_plus_plus_by_dataset(pair) -> None:
    method = make_method("plot_plus_plus")
    first = {name: options["phrases"][0] for name, options in method.datasets.items()}
    assert first["oxford_pets"] == "a photo of a pet" and first["eurosat"] == "a centered satellite photo of"
    assert all(len(options["phrases"]) == 4 for options in method.datasets.values())
    with pytest.raises(ClipbiasError, match="none may be empty"):
        make_method("plot_plus_plus", phrases=("a photo of a", ""))


# ProDA


def test_proda(pair, pictures) -> None:
    (clip, reference), (raw, images) = pair, pictures
    task = Task(clip, "proda", CLASS_NAMES, tokens=6, sets=8, sets_per_step=2)
    start, params = common.drawn(task.shapes, 0.4, seed=3), clip.params
    found = jax.jit(task.logits)(params, start, normalised(clip, raw))
    common.close(found, prompts_proda.logits(reference, CLASS_NAMES, start, images), common.LOGITS)

    def expected(learnables, chosen):
        return prompts_proda.loss_and_gradients(reference, CLASS_NAMES, learnables, images, LABELS, chosen)

    terms, _ = jax.jit(task.classifier.losses)(
        params, start, normalised(clip, raw), LABELS, task.text, None, template_tokens=task.template_tokens
    )
    for name, value in expected(start, range(8))[0].items():
        assert np.mean(terms[name]) == pytest.approx(value, rel=common.LOGITS), name
    # Steps take the sets that the run's seed says.
    draws = [np.asarray(task.method.templates_in_training(jax.random.key(7), step)).tolist() for step in range(3)]
    losses, slopes = expected(double(start), draws[0])
    states, found = zip(*common.steps(task, start, common.SGD, raw, LABELS, RATES, seeds=(7,)), strict=True)
    assert found[0][0] == pytest.approx(sum(losses.values()), rel=common.LOGITS)
    common.close_trees(common.taken(start, common.SGD, states[0]), slopes, common.GRADIENTS)
    rest = iter(draws)
    after = sgd(lambda x: expected(x, next(rest))[1], double(start), RATES)
    common.close_trees(jax.tree.map(lambda leaf: leaf[0], states[-1].learnables), after, common.TRAINED)


def test_proda_takes_all_its_sets_in_turn() -> None:
    method = make_method("proda", sets=12, sets_per_step=4)
    draws = np.stack([method.templates_in_training(jax.random.key(3), step) for step in range(9)])
    for cycle in draws.reshape(3, 12):
        assert sorted(cycle) == list(range(12))
    assert len({tuple(cycle) for cycle in draws.reshape(3, 12)}) == 3
    with pytest.raises(ClipbiasError, match="cannot be taken 5 at a time"):
        make_method("proda", sets_per_step=5)


# What looks inside


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cocoop", {}),
        ("plot", {"tokens": 4}),
        ("plot_plus_plus", {"phrases": PHRASES}),
        ("proda", {"tokens": 4, "sets": 4}),
    ],
)
def test_norms_and_kinds_of_tokens(pair, name, options) -> None:
    clip, _ = pair
    task = Task(clip, name, CLASS_NAMES, **options)
    learnables = task.init(seed=1)
    found = norms(task, learnables, images=common.pictures(8)[0])
    lengths = np.linalg.norm(np.asarray(learnables["text_context"], np.float64), axis=-1)
    lengths = lengths.mean(0) if lengths.ndim == 2 else lengths
    own = [one.norm for one in found if one.part == "context"]
    np.testing.assert_allclose(own, lengths, rtol=1e-6)
    others = [one for one in found if one.part != "context"]
    if name != "plot_plus_plus":
        assert not others
    else:
        lengths = np.linalg.norm(np.asarray(learnables["vision_prompts"], np.float64), axis=-1).mean(0)
        assert [(one.layer, one.norm) for one in others] == [(0, pytest.approx(x, rel=1e-6)) for x in lengths[0]]
    kinds = text_kinds(task)
    names = [len(clip.tokenizer.encode(name.replace("_", " "))) - 2 for name in CLASS_NAMES]
    category = TEXT_KINDS.index("category")
    np.testing.assert_array_equal((kinds == category).sum(1), np.tile(names, len(kinds) // len(names)))
    firsts = (kinds == category).argmax(1).reshape(-1, len(names))[:, 0]
    expected = {"cocoop": [5], "plot": [5] * 4, "proda": [1, 3, 5, 5], "plot_plus_plus": [5, 6, 5]}[name]
    np.testing.assert_array_equal(firsts, expected)
