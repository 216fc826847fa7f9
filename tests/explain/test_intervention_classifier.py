"""Constants, outliers and affine maps, added and subtracted, against the float64 reference; forms and controls."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Adaptation, Clip
from clipbias.data.transforms import Resizing
from clipbias.explain import intervention as intervention_module
from clipbias.explain.affine import Products, low_rank
from clipbias.explain.bias_adapter import raw_batches
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.equivalent_bias import EquivalentBias, changed_towers, measure_equivalent_bias
from clipbias.explain.intervention_classifier import InterventionClassifier
from clipbias.explain.replacement_forms import controls, numbers_stored, replacement_forms
from clipbias.explain.replacement_names import REPLACEMENT_FORMS
from clipbias.explain.scope import passes
from clipbias.tuning import Task, make_method
from tests import own_methods
from tests.explain.models import moved, tuned
from tests.helpers import short
from tests.reference import calibration, factorial, intervention, methods, numpy_clip
from tests.reference import equivalent_bias as plain_bias
from tests.reference.cases import CASES, CLASS_NAMES
from tests.tuning import weights_common

# So low that the tiny tower has outliers, in some layers for some images.
THRESHOLD = 1.15
RIDGE = 1e-3


def measured(task: Task, learnables: Any, raw: np.ndarray, *, batch_size: int = 5) -> dict[str, EquivalentBias]:
    batches = raw_batches(raw, Resizing(16), batch_size)
    return measure_equivalent_bias(task, task.clip.params, learnables, task.init(), batches, every_form=True)[0]


class Plain:
    """The same method in float64."""

    def __init__(self, reference: methods.Reference, task: Task, learnables: Any, images: np.ndarray) -> None:
        case = CASES["ivlp_two_and_one_layers"]
        start = {**learnables, "text_context": np.asarray(task.init()["text_context"])}
        inputs, before = (
            methods.prepare(reference, case.method, CLASS_NAMES, values, **case.options)
            for values in (learnables, start)
        )
        before = dataclasses.replace(before, text_prompts={}, vision_prompts=None)
        self.tuned = {
            "vision": factorial.vision_run(reference, images, inputs),
            "text": factorial.text_run(reference, inputs),
        }
        self.frozen = {
            "vision": factorial.vision_run(reference, images),
            "text": factorial.text_run(reference, before),
        }
        self.prompts = {"vision": dict(enumerate(inputs.vision_prompts))}
        self.prompts["vision"].pop(0)
        self.prompts["text"] = inputs.text_prompts
        self.far = {tower: intervention.outliers(run, THRESHOLD) for tower, run in self.frozen.items()}
        self.changes = {
            tower: intervention.changes(self.tuned[tower], self.frozen[tower], self.frozen[tower])
            for tower in ("vision", "text")
        }
        self.state = reference.state
        self.own = inputs
        self.before = before

    def add(self, tower: str, replacement: str) -> intervention.Add:
        """What a replacement adds, from the lists of changes."""
        run = self.frozen[tower]
        if tower == "text" and replacement.startswith("rank"):
            replacement = "kind"

        def name(l: int, b: int, i: int) -> Any:
            read = i == run.forward.rows[b]
            far = i in self.far[tower][l][b]
            return {"vector": 0, "kind": read, "outliers": (read, far), "token": i}[replacement]

        groups: list[dict[Any, np.ndarray]] = []
        for l, layer in enumerate(self.changes[tower]):
            if replacement.startswith("rank"):
                x, y = (np.stack([change[part] for change in layer]) for part in (2, 3))
                deviations = ((x - x.mean(0)) ** 2).sum() / x.shape[1] / len(x)
                groups.append(dict(enumerate(calibration.ridge_map(x, y, RIDGE * deviations, int(replacement[4:])))))
                continue
            listed: dict[Any, list[np.ndarray]] = {}
            for b, i, _, change in layer:
                listed.setdefault(name(l, b, i), []).append(change)
            groups.append({key: np.mean(values, axis=0) for key, values in listed.items()})

        def add(l: int, b: int, i: int, token: np.ndarray) -> np.ndarray:
            if replacement.startswith("rank"):
                return token @ groups[l][0] + groups[l][1]
            return groups[l].get(name(l, b, i), np.zeros(token.shape))

        return add

    def logits(self, form: str) -> np.ndarray:
        kind, _, replacement = form.partition(":")
        runs = self.tuned if kind == "lost" else self.frozen
        features = {}
        for tower, run in runs.items():
            if kind == "reference":
                features[tower] = run.forward.features
                continue
            add = self.add(tower, replacement)
            if kind == "kept":  # the words in a text's slots are tokens like all others
                every = np.broadcast_to(np.arange(run.forward.last.shape[1]), run.forward.last.shape[:2])
                whole = dataclasses.replace(run, inputs=every)
                features[tower] = intervention.features(whole, {}, add)
            else:
                lost = lambda *args, add=add: -add(*args)  # noqa: E731
                features[tower] = intervention.features(run, self.prompts[tower], lost)
        return numpy_clip.logits(self.state, features["vision"], features["text"])


def test_every_form_is_measured_added_and_subtracted_as_the_reference_says(
    clip: Clip, reference: methods.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By two images at a time, of which the last is alone. No other test has this task, traced with this threshold."""
    monkeypatch.setattr(intervention_module, "OUTLIER", THRESHOLD)
    raw, images = weights_common.pictures(16, 5)
    case = CASES["ivlp_two_and_one_layers"]
    task = Task(clip, "ivlp", CLASS_NAMES, text_tokens=2, vision_tokens=2, text_depth=2, vision_depth=1)
    values = methods.random_learnables(reference.config, case.method, len(CLASS_NAMES), **case.sizes)
    biases = measured(task, values, raw, batch_size=2)
    assert replacement_forms(biases) == REPLACEMENT_FORMS
    plain = Plain(reference, task, values, images)
    assert all(sum(len(far) for layer in plain.far[t] for far in layer) > 0 for t in ("vision", "text"))
    forms = {
        "vision": plain_bias.of_images(reference, reference.state, plain.own, images),
        "text": plain_bias.of_texts(reference, reference.state, plain.own, plain.before),
    }
    for tower, form in itertools.product(forms, ("vector", "kind", "token")):
        weights_common.close(getattr(biases[tower], form), forms[tower][form], 2e-5, f"{tower} {form}")
    classify = InterventionClassifier(
        task,
        clip.params,
        values,
        reference_adaptation(task, task.init()),
        {replacement: (biases, replacement) for replacement in REPLACEMENT_FORMS},
    )
    lost = [f"lost:{replacement}" for replacement in REPLACEMENT_FORMS if not replacement.startswith("rank")]
    assert classify.forms == ("reference", *(f"kept:{replacement}" for replacement in REPLACEMENT_FORMS), *lost)
    logits = np.asarray(classify(np.float32(images)))
    seen: list[np.ndarray] = []
    for form, actual in zip(classify.forms, logits, strict=True):
        expected = plain.logits(form)
        np.testing.assert_allclose(actual, expected, atol=3e-4 * np.abs(expected).max(), err_msg=form)
        assert all(np.abs(expected - other).max() > 1e-2 for other in seen), form
        seen.append(expected)


@pytest.mark.parametrize("method", short(["bias", "bias_by_kind"], "bias_by_kind"))
def test_a_bias_is_its_own_equivalent_bias_and_is_kept_and_lost_whole(method: str, clip: Clip) -> None:
    task, learnables = tuned(clip, method)
    raw, images = weights_common.pictures(16, 5)
    biases = measured(task, learnables, raw)
    for tower, measure in biases.items():
        tuned_bias = learnables[f"{tower}_bias"]
        by_kind = tuned_bias if tuned_bias.ndim == 3 else np.repeat(tuned_bias[:, None], 2, axis=1)
        np.testing.assert_allclose(measure.kind, by_kind, atol=2e-6)
        others = 16 if tower == "vision" else np.mean(task.tokens.eos)  # tokens beside the one that is read out
        np.testing.assert_allclose(measure.vector, (by_kind[:, 0] + others * by_kind[:, 1]) / (1 + others), atol=2e-6)
    replacement = {"bias": "vector", "bias_by_kind": "kind"}[method]
    tuned_bias = reference_adaptation(task, learnables)
    classify = InterventionClassifier(task, clip.params, learnables, tuned_bias, {"own": (biases, replacement)})
    images = np.float32(images)
    frozen, added, lost = np.asarray(classify(images))
    np.testing.assert_allclose(added, jax.jit(task.logits)(clip.params, learnables, images), atol=2e-4)
    np.testing.assert_allclose(lost, frozen, atol=2e-4)
    assert np.abs(added - frozen).max() > 0.1


def nothing(task: Task, learnables: Any) -> dict[str, EquivalentBias]:
    """Zeros in place of an equivalent bias."""
    config = task.clip.config
    sizes = {"vision": config.vision.tokens, "text": config.text.context_length}
    shapes = {tower: (getattr(config, tower).layers, getattr(config, tower).width) for tower in sizes}
    return {
        tower: EquivalentBias(*(np.zeros((shapes[tower][0], *rows, shapes[tower][1]), np.float32) for rows in rows_of))
        for tower in changed_towers(task, learnables)
        for rows_of in [[(), (2,), (sizes[tower],), (3,)]]
    }


HEADS = [
    ("two_stage", {}),
    ("mmrl", {}),
    ("plot", {"tokens": 4, "sets": 2}),
    ("proda", {"tokens": 4}),
    ("plot_plus_plus", {}),
]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cocoop", {}),
        pytest.param(own_methods.Head(), {}, id="own_head", marks=pytest.mark.long),
        *(pytest.param(*each, marks=pytest.mark.long) for each in HEADS),
    ],
)
def test_nothing_is_lost_without_a_constant_and_a_head_is_kept(
    method: Any, options: dict[str, Any], clip: Clip
) -> None:
    """With zeros subtracted every method classifies as it does, inserted tokens, heads and all."""
    task = Task(clip, method, CLASS_NAMES, **options)
    learnables = moved(task)
    params = clip.params
    images = np.float32(weights_common.pictures(16, 5)[1])
    reference = reference_adaptation(task, task.init())
    zeros = nothing(task, learnables)
    classify = InterventionClassifier(
        task, params, learnables, reference, {replacement: (zeros, replacement) for replacement in ("kind", "token")}
    )
    logits = dict(zip(classify.forms, np.asarray(classify(images)), strict=True))
    frozen = logits["reference"]
    for form in ("kept:kind", "kept:token"):
        np.testing.assert_allclose(logits[form], frozen, atol=1e-4)
    if task.method.conditional:
        assert classify.forms == ("reference", "kept:kind", "kept:token")
        return
    tuned = np.asarray(jax.jit(task.logits)(params, learnables, images))
    for form in ("lost:kind", "lost:token"):
        np.testing.assert_allclose(logits[form], tuned, atol=2e-4 * np.abs(tuned).max())
    if "zero_shot" not in logits:
        assert method == "mmrl"
        return
    head = task.classifier
    plain = dataclasses.replace(task.classifier, method=make_method("zero_shot"))

    @jax.jit
    def run(params: Any, learnables: Any, reference: Adaptation, images: Any) -> tuple[jax.Array, jax.Array]:
        """The method's own head and CLIP's, of features of towers that nothing changes but the first words."""
        texts = head.encode_text(params, reference, task.text)
        features, whole = (each.encode_images(params, Adaptation(), images) for each in (head, plain))
        if (sets := passes(task)) > 1:
            features = jnp.stack([features] * sets, axis=1)
        return head.head(params, learnables, features, texts), plain.head(params, {}, whole, texts)

    added, apart = map(np.asarray, run(params, learnables, reference, images))
    np.testing.assert_allclose(frozen, added, atol=1e-4)
    np.testing.assert_allclose(logits["zero_shot"], apart, atol=1e-4)
    assert np.abs(added - apart).max() > 1e-2


def test_products_merge_in_any_parts() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(3, 1, (6, 7, 4)), draw.normal(-2, 1, (6, 7, 4))
    mask = draw.random((6, 7)) < 0.7
    x[~mask] = np.nan  # what is masked may hold anything
    of = jax.jit(Products.of)
    parts = [of(*(np.float32(z[rows]) for z in (x, y)), mask[rows]) for rows in (slice(3), slice(3, 6))]
    stacked = [jax.tree.map(lambda leaf: np.asarray(leaf)[None], part) for part in parts]
    merged = stacked[0].merge(stacked[1])
    joined = jax.jit(Products.joined)(jax.tree.map(lambda *leaves: np.stack(leaves), *stacked))
    rows = [z[mask] for z in (x, y)]
    centred = [z - z.mean(0) for z in rows]
    for products in (merged, joined):
        assert products.count[0] == mask.sum()
        np.testing.assert_allclose(products.inputs[0], rows[0].mean(0), rtol=1e-5)
        np.testing.assert_allclose(products.outputs[0], rows[1].mean(0), rtol=1e-5)
        np.testing.assert_allclose(products.squares[0], centred[0].T @ centred[0], atol=1e-4)
        np.testing.assert_allclose(products.crosses[0], centred[0].T @ centred[1], atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_maps_are_the_best_of_their_rank(rank: int) -> None:
    """Against the textbook's fit, and no map of the same rank near by is better."""
    draw = np.random.default_rng(rank)
    x = draw.normal(1, [3, 1, 0.3, 2], (60, 4))
    y = x @ draw.normal(size=(4, 4)) + draw.normal(size=(60, 4))
    products = Products(*(z[None] for z in (np.array(60), x.mean(0), y.mean(0), _sums(x, x), _sums(x, y))))
    down, up, shift = (part[0].astype(np.float64) for part in low_rank(products, rank, ridge=0.2))
    penalty = 0.2 * x.var(0).mean()
    weight, bias = calibration.ridge_map(x, y, penalty, rank)
    np.testing.assert_allclose(down @ up, weight, atol=1e-5)
    np.testing.assert_allclose(shift, bias, atol=1e-5)
    assert np.linalg.matrix_rank(down @ up, tol=1e-6) == rank

    def loss(down: np.ndarray, up: np.ndarray) -> float:
        error = (y - y.mean(0)) - (x - x.mean(0)) @ down @ up
        return float((error**2).sum() + 60 * penalty * ((down @ up) ** 2).sum())

    for _ in range(20):
        moved_down, moved_up = (z + 1e-3 * draw.normal(size=z.shape) for z in (down, up))
        assert loss(moved_down, moved_up) > loss(down, up)


def _sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)).T @ (y - y.mean(0))


def bias(depth: int = 4, width: int = 3, positions: int = 5, seed: int = 0) -> EquivalentBias:
    draw = np.random.default_rng(seed)
    kind = (draw.normal(size=(depth, 2, width)) * np.arange(1, depth + 1)[:, None, None]).astype(np.float32)
    token = draw.normal(size=(depth, positions, width)).astype(np.float32)
    token[:, -1] = 0  # where no input token stands
    return EquivalentBias(kind.mean(1), kind, token, np.concatenate([kind, kind[:, 1:]], axis=1))


def test_controls_keep_norms_and_lose_directions() -> None:
    biases = {"vision": bias(), "text": bias(seed=1)}
    replaced = controls(biases, seed=10)
    for tower, bias_of_tower in biases.items():
        norms = np.linalg.norm(bias_of_tower.kind, axis=-1)
        drawn = replaced["random"][tower].kind
        np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1), norms, rtol=1e-5)
        cosines = (drawn * bias_of_tower.kind).sum(-1) / norms**2
        assert np.abs(cosines).max() < 0.999 and np.abs(cosines).mean() < 0.9
        shuffled = replaced["shuffled"][tower].kind
        assert all(np.abs(row - other).max() > 0.1 for row, other in zip(shuffled, bias_of_tower.kind, strict=True))
        np.testing.assert_allclose(np.sort(shuffled, axis=0), np.sort(bias_of_tower.kind, axis=0))
    assert np.abs(replaced["random"]["vision"].kind - replaced["random"]["text"].kind).max() > 0.1
    again = controls(biases, seed=10)
    np.testing.assert_array_equal(again["shuffled"]["text"].kind, replaced["shuffled"]["text"].kind)


def test_forms_store_more_and_more() -> None:
    products = Products(*(np.ones((4, *shape)) for shape in ((), (3,), (3,), (3, 3), (3, 3))))
    vision = dataclasses.replace(bias(positions=100), products=products)
    both = {"vision": vision, "text": bias(seed=1)}
    stored = {replacement: numbers_stored(both, replacement) for replacement in replacement_forms(both)}
    layer = 4 * 3
    assert stored["vector"] == 2 * layer and stored["kind"] == 4 * layer and stored["outliers"] == 6 * layer
    assert stored["token"] == (99 + 4) * layer
    for rank in (1, 2, 4, 8):
        assert stored[f"rank{rank}"] == (1 + 2 * rank + 2) * layer  # texts keep two vectors
    assert replacement_forms({"text": both["text"]}) == ("vector", "kind", "outliers", "token")
    bare = {"vision": dataclasses.replace(vision, outliers=None, products=None)}
    assert replacement_forms(bare) == ("vector", "kind", "token")
    assert all(a != b for a, b in itertools.pairwise(stored.values()))
