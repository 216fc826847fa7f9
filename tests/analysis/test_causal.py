"""Path patching and ablations of the two runs, in both towers, for every kind of method, against plain NumPy."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from clipbias.analysis.causal import (
    Ablation,
    Added,
    GroupMeans,
    PatchedRun,
    PathPatch,
    added_to_images,
    added_to_texts,
    mix_images,
    mix_texts,
)
from clipbias.analysis.causal_section import Way, _clusters, _numbered, compute_causal, halves, why_no_ablations
from clipbias.analysis.model import Model
from clipbias.analysis.study import Study, StudyOptions
from clipbias.clip import Adaptation, encode_image, tables
from clipbias.clip.layers import fold_changes
from clipbias.data.held_out import without_labels
from clipbias.data.images import pictures
from clipbias.data.transforms import Resizing
from clipbias.tuning import Learnables, Task
from clipbias.tuning.tuned import Tuned
from tests import helpers, own_methods
from tests.analysis.models import moved
from tests.analysis.test_study import split
from tests.helpers import short
from tests.reference import calibration, causal, methods, numpy_clip, weights
from tests.reference.cases import CLASS_NAMES

TOLERANCE = 2e-5  # of an array's largest number, in float32


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with its options, those that the reference knows it by, and the towers that are worth comparing."""

    method: Any
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    towers: Sequence[str] = ("vision", "text")
    bias_rows: int = 0  # of a layer's bias, in place of the method's own one: 2 by kind, one for each token


CASES = {
    "ivlp": Case("ivlp"),
    # Prompts that live on beyond their depth, and fewer of them than the text has words.
    "maple": Case("maple", {"tokens": 2, "depth": 2}, towers=["text"]),
    "coop_class_specific_front": Case(
        "coop",
        {"class_specific": True, "words": "", "position": "front"},
        {"worded": False, "position": "front"},
        ["text"],
    ),
    "bias_by_kind": Case("bias", bias_rows=2),
    "lora": Case("clip_lora", {"parts": ("q", "v", "o")}, towers=["vision"]),
    "layer_norm": Case("layer_norm", {"outer": True}, towers=["vision"]),
    # Pixels, a bias for each token, prompts, pairs of low rank and the projection at once.
    "everything": Case(own_methods.Everything(), towers=["vision"], bias_rows=17),
}
# The text tower of IVLP is that of the study below, and pairs of low rank are among the ablations.
PARTS = [(name, tower) for name, case in CASES.items() for tower in case.towers]
PARTS = [part for part in PARTS if part not in (("ivlp", "text"), ("lora", "vision"))]


@pytest.fixture(scope="module")
def images(reference):
    return helpers.random_images(reference.config, 3, seed=4)


@dataclasses.dataclass
class Bound:
    """A task, learnables before and after tuning, and what both runs have."""

    task: Task
    tuned: Adaptation
    reference: Adaptation
    learnables: Learnables


def bind(clip, name, seed=0):
    case = CASES[name]
    task = Task(clip, case.method, CLASS_NAMES, **case.options)
    before = task.init(seed)
    after = moved(task)
    tuned = task.method.adapt(after)
    for tower in case.towers if case.bias_rows else ():
        bias = getattr(tuned, f"{tower}_bias")
        factors = np.linspace(-1, 2, case.bias_rows, dtype=np.float32)[:, None]
        tuned = dataclasses.replace(tuned, **{f"{tower}_bias": bias[:, None] * factors})
    reference = Adaptation(text_context=task.method.adapt(before).text_context)
    return Bound(task, tuned, reference, after)


def run_product(bound, clip, tower, images, patched, means=None, donors=None):
    def mix(params, tuned, reference):
        if tower == "vision":
            return mix_images(params, clip.config, images, tuned, patched, means, donors)
        return mix_texts(params, clip.config, bound.task.tokens, tuned, reference, patched, means)

    return jax.device_get(jax.jit(mix)(clip.params, bound.tuned, bound.reference))


def with_changes(reference, clip, tuned):
    """The reference's weights with the method's changes in them."""
    changes = {"vision": tuned.vision_weights, "text": tuned.text_weights}
    params = {
        name: fold_changes(tree, changes[name]) if changes.get(name) else tree for name, tree in clip.params.items()
    }
    state = weights.double(tables.to_tensors(clip.config, jax.tree.map(np.asarray, params)))
    return dataclasses.replace(reference, state=state)


def reference_runs(bound, reference, clip, name, tower, images):
    """The reference and the tuned run in float64."""
    case = CASES[name]
    changed = with_changes(reference, clip, bound.tuned)
    arrays = {
        field.name: None if getattr(bound.tuned, field.name) is None else weights.double({"": value})[""]
        for field in dataclasses.fields(bound.tuned)
        if not isinstance(value := getattr(bound.tuned, field.name), dict)
    }
    if tower == "vision":
        inputs = dataclasses.replace(
            methods.prepare(reference, "zero_shot", CLASS_NAMES, {}),
            vision_prompts=arrays["vision_prompts"],
            vision_bias=arrays["vision_bias"],
        )
        shown = images if arrays["pixels"] is None else images + arrays["pixels"]
        return causal.vision_run(reference, images), causal.vision_run(changed, shown, inputs)
    method = case.method if case.method in ("coop", "ivlp") else "ivlp"
    learnables = {
        key: np.asarray(value) for key, value in bound.learnables.items() if key in ("text_context", "text_prompts")
    }
    before = causal.reference_inputs(reference, method, CLASS_NAMES, bound.reference.text_context, **case.text)
    after = methods.prepare(reference, method, CLASS_NAMES, learnables, **case.text)
    after = dataclasses.replace(after, text_bias=arrays["text_bias"])
    return causal.text_run(reference, before), causal.text_run(changed, after)


def assert_close(actual, expected, what=""):
    error = np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE, f"{what} differs by {error:.1e} of its largest number"


@pytest.mark.ci
@pytest.mark.parametrize(("name", "tower"), PARTS)
def test_every_path_equals_the_reference(name, tower, clip, reference, images):
    bound = bind(clip, name)
    runs = reference_runs(bound, reference, clip, name, tower, images)
    patched = [PatchedRun.path(patch) for patch in PathPatch]
    before, after, *paths = run_product(bound, clip, tower, np.float32(images), patched)
    assert_close(before, runs[0].forward.features, "the reference")
    assert_close(after, runs[1].forward.features, "the tuned model")
    for patch, features in zip(PathPatch, paths, strict=True):
        assert_close(features, causal.corner(*runs, *patch.name), patch.name)
    assert_close(paths[0], np.asarray(before, np.float64), "path RR")
    assert_close(paths[-1], np.asarray(after, np.float64), "path PP")


# "everything" has slots, pixels, a bias by token, weights and the projection at once.
@pytest.mark.ci
@pytest.mark.parametrize("name", short(["ivlp", "lora", "everything", "layer_norm", "bias_by_kind"], "ivlp", "lora"))
def test_image_ablations_equal_the_reference(name, clip, reference, images):
    """Means over groups of images that are not those of the test; other images' values token by token."""
    training = helpers.random_images(reference.config, 4, seed=5)
    bound = bind(clip, name)
    runs = reference_runs(bound, reference, clip, name, "vision", images)
    others = reference_runs(bound, reference, clip, name, "vision", training)
    every = causal.added(*others)
    groups = np.array([0, 1, 1, 0])  # of training images; all images are a group as well
    members = np.stack([np.ones(4, bool), groups == 0, groups == 1], axis=1)
    wanted = np.array([[0, 1], [0, 2], [0, 1]])  # by test image its place among the means, in both groupings
    sums = added_to_images(clip.config, clip.params, np.float32(training), members, bound.tuned)
    means = GroupMeans(Added.mean(jax.device_get(sums)), wanted)
    drawn = np.array([[2, 0, 1], [1, 2, 0]])
    runs_of = {
        PatchedRun.ablated(Ablation.NOTHING): (causal.nothing(runs[0]), "R"),
        PatchedRun.ablated(Ablation.MEAN): (causal.mean_of_groups(every, np.zeros(4), [0, 0, 0]), "P"),
        PatchedRun.ablated(Ablation.MEAN, 1): (causal.mean_of_groups(every, groups, [0, 1, 0]), "P"),
        PatchedRun.ablated(Ablation.OWN): (causal.added(*runs), "P"),
    }
    for draw, rows in enumerate(drawn):
        runs_of[PatchedRun.ablated(Ablation.RESAMPLE, draw)] = causal.of_samples(every, rows), "P"
    _, tuned, *mixed = run_product(
        bound, clip, "vision", np.float32(images), list(runs_of), means, np.float32(training)[drawn]
    )
    seen: list[np.ndarray] = []
    for (run, (ablation, mass)), features in zip(runs_of.items(), mixed, strict=True):
        features_of_ablation = causal.features(*runs, ablation, mass=mass)
        assert_close(features, features_of_ablation, str(run))
        if name in ("ivlp", "everything"):  # what a bias adds is the same under all ablations
            assert all(np.abs(features_of_ablation - other).max() > 1e-3 for other in seen), run
        seen.append(features_of_ablation)
    assert_close(mixed[3], np.asarray(tuned, np.float64), "own")


@pytest.mark.ci
@pytest.mark.parametrize("name", ["maple", "bias_by_kind"])
def test_text_ablations_equal_the_reference(name, clip, reference):
    bound = bind(clip, name)
    runs = reference_runs(bound, reference, clip, name, "text", None)
    mean = Added.mean(added_to_texts(clip.config, clip.params, bound.task.tokens, bound.tuned, bound.reference))
    patched = [PatchedRun.ablated(Ablation.NOTHING), PatchedRun.ablated(Ablation.MEAN)]
    _, _, *mixed = run_product(bound, clip, "text", None, patched, mean)
    ablations = [(causal.nothing(runs[0]), "R"), (causal.mean_by_kind(runs[1], causal.added(*runs)), "P")]
    for run, (ablation, mass), features in zip(patched, ablations, mixed, strict=True):
        assert_close(features, causal.features(*runs, ablation, mass=mass), str(run))


def test_networks_beside_blocks_are_added(clip, images):
    """Of MMA path RR is CLIP and PP the tuned model; attention alone and tokens alone are neither."""
    task = Task(clip, "mma", CLASS_NAMES, blocks=2, width=4, factor=1.0)
    tuned = task.method.adapt(moved(task))
    patched = [PatchedRun.path(patch) for patch in PathPatch]

    @jax.jit
    def run(params, tuned, images):
        ends = [encode_image(params, clip.config, images, each)[0] for each in (Adaptation(), tuned)]
        return mix_images(params, clip.config, images, tuned, patched), ends

    mixed, ends = jax.device_get(run(clip.params, tuned, images))
    for run, expected in zip((mixed[2], mixed[-1]), ends, strict=True):
        np.testing.assert_allclose(run, expected, atol=TOLERANCE * np.abs(expected).max())
    assert all(np.abs(mixed[k] - end).max() > 1e-3 for k in (3, 4) for end in ends)


@pytest.fixture(scope="module")
def study(clip, tmp_path_factory):
    """Of IVLP, whose both towers have slots."""
    task = Task(clip, "ivlp", CLASS_NAMES)
    models = [
        Model("zero_shot", "Zero-shot", Tuned(Task(clip, "zero_shot", CLASS_NAMES))),
        Model("ivlp", "IVLP", Tuned(task, moved(task)), seed=1),
    ]
    folder = tmp_path_factory.mktemp("causal")
    return Study(
        models,
        split(),
        StudyOptions(batch_size=4),
        folder,
        unlabelled=without_labels(split().subset([6, 5, 3, 1])),
    )


@pytest.fixture(scope="module")
def tests_of_study(study):
    return study.run({"it": compute_causal(study)})["it"]


@pytest.mark.ci
def test_a_study_has_all_ways_of_every_image(study, tests_of_study, clip, reference):
    """From files to each image's likelihood: means over groups, other images by the seed, texts as tuned."""
    bound = bind(clip, "ivlp", seed=1)
    shown, training = (
        np.float64(study.normalize(pictures(split(), rows, Resizing(16)))) for rows in (np.arange(7), [6, 5, 3, 1])
    )
    vision, others = (reference_runs(bound, reference, clip, "ivlp", "vision", x) for x in (shown, training))
    texts = reference_runs(bound, reference, clip, "ivlp", "text", None)
    every = causal.added(*others)
    drawn = np.random.default_rng(0).integers(0, 4, (7, 3))
    ends = {tower: [causal.corner(*pair, run, run) for run in "RP"] for tower, pair in (("v", vision), ("t", texts))}
    frozen_text, tuned_text = ends["t"]
    expected = [
        (Way.REFERENCE, ends["v"][0], frozen_text),
        (Way.ATTENTION, causal.corner(*vision, "P", "R"), causal.corner(*texts, "P", "R")),
        (Way.TOKENS, causal.corner(*vision, "R", "P"), causal.corner(*texts, "R", "P")),
        (Way.TUNED, ends["v"][1], tuned_text),
        (Way.VISION, ends["v"][1], frozen_text),
        (Way.TEXT, ends["v"][0], tuned_text),
    ]

    def classes(pair, run, text):
        return numpy_clip.logits(reference.state, causal.corner(*pair, run, run), text).argmax(-1)

    plain = causal.text_run(reference, methods.prepare(reference, "zero_shot", CLASS_NAMES, {})).forward.features
    zero_shot, tuned_classes = (
        (classes(pair, "R", plain), classes(pair, "P", tuned_text)) for pair in (others, vision)
    )
    zero_shot, tuned_classes = zip(zero_shot, tuned_classes, strict=True)
    ablations = {
        Way.IMAGE_MEAN: causal.mean_of_groups(every, np.zeros(4), np.zeros(7)),
        Way.IMAGE_CLASS: causal.mean_of_groups(every, *zero_shot),
        Way.IMAGE_TUNED_CLASS: causal.mean_of_groups(every, *tuned_classes),
    }
    expected.append((Way.IMAGE_NOTHING, causal.corner(*vision, "P", "R"), tuned_text))
    expected += [(way, causal.features(*vision, ablation), tuned_text) for way, ablation in ablations.items()]
    for k in range(3):
        other = causal.features(*vision, causal.of_samples(every, drawn[:, k]))
        expected.append((Way.IMAGE_OTHER, other, tuned_text))
    mean = causal.features(*texts, causal.mean_by_kind(texts[1], causal.added(*texts)))
    of_texts = {Way.TEXT_NOTHING: causal.corner(*texts, "P", "R"), Way.TEXT_MEAN: mean}
    expected += [(way, ends["v"][0], features) for way, features in of_texts.items()]
    test = tests_of_study.models["ivlp"]
    assert test.ways == tuple(way.value for way, *_ in expected) and not test.why and not test.why_no_ablations
    logits = np.stack([numpy_clip.logits(reference.state, *pair) for _, *pair in expected], axis=1)
    second = halves(split().labels)
    for k, (way, *_) in enumerate(expected):
        likelihood = calibration.cross_fitted(logits[:, k], split().labels, second)
        np.testing.assert_allclose(test.outcomes.log_likelihood[:, k], likelihood, atol=2e-3, err_msg=way.value)
        right = logits[:, k].argmax(-1) == split().labels
        np.testing.assert_array_equal(test.outcomes.correct[:, k], right, err_msg=way.value)


def test_numbers_of_towers_and_texts_are_differences(tests_of_study):
    """`tests/report/test_verdict.py` recomputes all others."""
    test = tests_of_study.models["ivlp"]
    outcomes = {"accuracy": 100.0 * test.outcomes.correct, "log_likelihood": np.float64(test.outcomes.log_likelihood)}
    for outcome, values in outcomes.items():
        mean = dict(zip(map(Way, test.ways), values.mean(0), strict=True))
        numbers = tests_of_study.of(("ivlp",))[outcome]
        pairs = [
            (numbers.reference, mean[Way.REFERENCE]),
            (numbers.towers["vision"], mean[Way.VISION] - mean[Way.REFERENCE]),
            (numbers.towers["text"], mean[Way.TEXT] - mean[Way.REFERENCE]),
            (numbers.text.all, mean[Way.TEXT] - mean[Way.TEXT_NOTHING]),
            (numbers.text.mean, mean[Way.TEXT_MEAN] - mean[Way.TEXT_NOTHING]),
        ]
        for place, (number, expected) in enumerate(pairs):
            assert number.value == pytest.approx(expected, abs=1e-5), (outcome, place)


def test_images_are_in_the_cluster_of_the_nearest_centre():
    """Around centres that lie far apart, every cluster is the images of a centre; groups are numbered through."""
    draw = np.random.default_rng(0)
    centres = np.linalg.qr(draw.normal(size=(8, 8)))[0][:4]
    of_images, of_unlabelled = draw.integers(0, 4, 30), np.arange(60) % 4
    features = [centres[of] + 0.02 * draw.normal(size=(len(of), 8)) for of in (of_images, of_unlabelled)]
    unread = features[1].copy()
    unread[7] = 0
    found, clusters = _clusters(4, np.delete(np.arange(60), 7), (features[0], unread), seed=3)
    name = dict(zip(of_unlabelled.tolist(), clusters.tolist(), strict=True))
    assert len(set(name.values())) == 4 and [name[of] for of in of_images.tolist()] == found.tolist()
    assert all(name[of] == at for n, (of, at) in enumerate(zip(of_unlabelled, clusters, strict=True)) if n != 7)
    split, unlabelled = _numbered([(np.array([0, 1]), np.array([1, 1, 0])), (np.array([0, 0]), np.array([0, 2, 0]))])
    np.testing.assert_array_equal(split, [[0, 2], [1, 2]])
    np.testing.assert_array_equal(unlabelled, [[1, 2], [1, 4], [0, 2]])


def test_what_has_no_ablations_says_why(clip, study, tmp_path):
    task = Task(clip, "cocoop", CLASS_NAMES)
    assert "depend on the image" in why_no_ablations(study, Model("a", "A", Tuned(task, task.init())), "text")
    bare = Study(study.models, split(), StudyOptions(), tmp_path)
    ivlp = study.models[1]
    assert "training and validation images" in why_no_ablations(bare, ivlp, "vision") and not why_no_ablations(
        bare, ivlp, "text"
    )
