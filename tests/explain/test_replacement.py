"""What a tuned model can be exchanged for: numbers against NumPy, conclusions, and the section in a small study."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from clipbias.clip import Clip
from clipbias.data import Split
from clipbias.explain import replacement_section
from clipbias.explain.agreement import accuracy_difference, mean_cosine
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.replacement import CONCLUSIONS, Candidates, Fit, Outputs, conclude, summarize
from clipbias.explain.results import FittedReplacements, Missing, load_results
from clipbias.explain.run import run_study
from clipbias.explain.study import Study
from clipbias.explain.temperature import calibrate
from clipbias.explain.uncertainty import Estimate
from clipbias.training import loop, teacher
from clipbias.tuning import Task
from tests.explain.models import CLASS_NAMES, moved
from tests.training.conftest import colour_split
from tests.tuning.weights_common import drawn

FIT = {"kind": Fit("two vectors per layer", 0.1, 0.2)}


def made(labels: np.ndarray, right: float, seed: int) -> Outputs:
    """A model that is right on so large a share of the images."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), 4))
    logits[
        np.arange(len(labels)), np.where(rng.random(len(labels)) < right, labels, rng.integers(0, 4, len(labels)))
    ] += 4
    features = rng.normal(size=(len(labels), 6)) + right * np.arange(6)
    return Outputs(logits, features / np.linalg.norm(features, axis=-1, keepdims=True), 10 + seed)


def test_numbers_against_numpy() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 300)
    frozen, tuned, form, mean, again, untaught = (
        made(labels, share, n) for n, share in enumerate((0.3, 0.9, 0.7, 0.4, 0.8, 0.5))
    )
    tuned.features[:7] = frozen.features[:7]  # images whose feature tuning leaves as it was
    candidates = Candidates(frozen, tuned, {"kind": form}, {"kind": mean}, {"again": again}, {"kind": {"by": untaught}})
    numbers = np.arange(300) * 2
    found = summarize("IVLP", candidates, labels, FIT, images=numbers, counts=(80, 20))
    models = [frozen, tuned, form, mean, again, untaught]
    right = [100 * (each.logits.argmax(-1) == labels).mean() for each in models]
    nats = calibrate(np.stack([each.logits for each in models], 1), labels).values
    assert found.gain.accuracy.value == pytest.approx(right[1] - right[0])
    r, p = frozen.logits.argmax(-1), tuned.logits.argmax(-1)
    shares = {
        "every": p >= 0,
        "moved": p != r,
        "fixed": (p == labels) & (r != labels),
        "broken": (p != labels) & (r == labels),
    }
    comparisons = [
        found.forms["kind"].comparison,
        found.means["kind"],
        found.retrainings["again"],
        found.untaught["kind"]["by"],
    ]
    for place, comparison in enumerate(comparisons, start=2):
        other = models[place]
        decided = other.logits.argmax(-1)
        for name, rows in shares.items():
            assert rows.sum() > 3
            assert getattr(comparison.agreement, name).value == pytest.approx((p == decided)[rows].mean())
        assert comparison.numbers == 10 + place
        assert comparison.kept.accuracy.share.value == pytest.approx((right[place] - right[0]) / (right[1] - right[0]))
        gains = (nats - nats[:, :1]).mean(0)
        assert comparison.kept.calibrated.share.value == pytest.approx(gains[place] / gains[1])
        log_p, log_q = log_softmax(tuned.logits, -1), log_softmax(other.logits, -1)
        assert comparison.divergence.value == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
        assert comparison.difference.value == pytest.approx((right[place] - right[1]) / 100)
        cosines = []
        for index in range(7, 300):
            a, b = tuned.features[index] - frozen.features[index], other.features[index] - frozen.features[index]
            cosines.append(a @ b / np.sqrt((a @ a) * (b @ b)))
        assert comparison.cosine.value == pytest.approx(np.mean(cosines))
        half = 1.968065 * np.std(cosines, ddof=1) / np.sqrt(293)  # Student's quantile for 292 degrees of freedom
        assert comparison.cosine.high - comparison.cosine.low == pytest.approx(2 * half, rel=1e-4)
    assert found.moved_images == (p != r).sum() and (found.fitted_images, found.held_back_images) == (80, 20)
    # What is stored of each image.
    assert found.ways == ("reference", "tuned", "fitted:kind", "mean:kind", "retrained:again", "untaught:by")
    decided = np.stack([each.logits.argmax(-1) for each in models], 1)
    np.testing.assert_array_equal(found.decisions, decided)
    np.testing.assert_array_equal(found.outcomes.correct, decided == labels[:, None])
    np.testing.assert_allclose(found.outcomes.calibrated, nats, rtol=1e-5)
    np.testing.assert_array_equal(found.outcomes.images, numbers)


def test_the_sentence_and_what_stands_beside_a_form() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 300)
    frozen, tuned, form, again = (made(labels, share, n) for n, share in enumerate((0.3, 0.9, 0.7, 0.8)))
    candidates = Candidates(frozen, tuned, {"kind": form}, {}, {"again": again}, {})
    found = summarize("IVLP", candidates, labels, FIT, images=np.arange(300), counts=(80, 20))
    r, p, f, a = (each.logits.argmax(-1) for each in (frozen, tuned, form, again))
    rows = p != r
    assert found.forms["kind"].beside_retraining["again"] == accuracy_difference((f == p)[rows], (a == p)[rows])
    share = found.forms["kind"].comparison.kept.calibrated.share
    words = CONCLUSIONS[found.forms["kind"].conclusion]
    ends = f"{100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"
    assert found.forms["kind"].sentence == (
        f"IVLP {words} two vectors per layer fitted to its predictions: {ends} of "
        f"the gain in calibrated log-likelihood, {100 * (p == f)[rows].mean():.0f} % of the moved decisions."
    )


def test_no_cosine_where_image_features_stay() -> None:
    frozen, other = made(np.zeros(20, int), 0.5, 0).features, made(np.zeros(20, int), 0.5, 1).features
    assert mean_cosine(frozen, frozen + 1e-8, other) is None and mean_cosine(frozen, other, frozen) is None
    same = mean_cosine(frozen, other, other)
    assert same is not None and same.value == pytest.approx(1)


ABOVE, BELOW, AROUND = Estimate(0.95, 0.91, 1.0), Estimate(0.3, 0.2, 0.4), Estimate(0.6, 0.4, 0.8)
EQUAL, WORSE, BETTER = Estimate(0.0, -0.04, 0.04), Estimate(-0.02, -0.06, 0.02), Estimate(0.1, 0.02, 0.2)


@pytest.mark.parametrize(
    ("share", "retrained", "untaught", "conclusion"),
    [
        (ABOVE, [EQUAL], [BETTER], "replaces"),
        (ABOVE, [EQUAL, WORSE], [BETTER], "mostly"),  # below one retraining by more than the margin, perhaps
        (ABOVE, [EQUAL], [EQUAL], "mostly"),  # not above the form that labels trained
        (ABOVE, [], [], "mostly"),  # there is nothing to compare with
        (AROUND, [EQUAL], [BETTER], "undecided"),
        (BELOW, [EQUAL], [BETTER], "not found"),
        (None, [EQUAL], [BETTER], "undecided"),
    ],
)
def test_conclusions(share: Estimate | None, retrained: list, untaught: list, conclusion: str) -> None:
    assert conclude(share, retrained, untaught) == conclusion


def models_of(clip: Clip) -> list[Model]:
    """IVLP, the same with another start, on other images, and the form trained on labels."""
    ivlp, again, elsewhere = (Task(clip, "ivlp", CLASS_NAMES) for _ in range(3))
    kind = Task(clip, "bias_by_kind", CLASS_NAMES)
    facts: dict[str, Any] = {"trained_on": "colours", "few_shot_split": "1"}
    others: dict[str, Any] = {"trained_on": "colours", "few_shot_split": "2"}
    return [
        Model("zero_shot", "Zero-shot", "zero_shot", Task(clip, "zero_shot", CLASS_NAMES), {}),
        Model("ivlp", "IVLP", "ivlp", ivlp, moved(ivlp), seed=1, **facts),
        Model("again", "IVLP", "ivlp", again, drawn(ivlp.shapes, 0.6, 8), seed=2, **facts),
        Model("kind", "By kind", "bias_by_kind", kind, drawn(kind.shapes, 0.2), seed=1, **facts),
        Model("elsewhere", "IVLP", "ivlp", elsewhere, drawn(ivlp.shapes, 0.3, 9), seed=2, **others),
    ]


def test_which_models_stand_beside_the_forms(clip: Clip, tmp_path: Path) -> None:
    models = models_of(clip)
    study = Study(models, colour_split(1, 3), StudyOptions(), tmp_path)
    assert [each.key for each in replacement_section.retrainings(study, models[1])] == ["again"]
    assert [each.key for each in replacement_section.untaught(study, models[1], "kind")] == ["kind"]
    assert not replacement_section.untaught(study, models[1], "vector")
    assert not replacement_section.retrainings(study, models[4])


def test_controls_are_not_fitted(clip: Clip, tmp_path: Path) -> None:
    study = Study(models_of(clip), colour_split(1, 3), StudyOptions(), tmp_path)
    reasons = [replacement_section.why_not_fitted(study, model) for model in study.tuned]
    assert [bool(reason) for reason in reasons] == [False, True, True, False]
    assert "another start" in reasons[1] and "one of the forms" in reasons[2]


def features_of(task: Task, params: Any, learnables: Any, pixels: Any) -> Any:
    return task.image_features(params, learnables, pixels)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Equivalent biases that the section measured, for one form alone."""
    results: list[Any] = []
    measure = replacement_section.measure_equivalent_biases

    def record(*args: Any) -> Any:
        results.append((yield from measure(*args)))
        return results[-1]

    monkeypatch.setattr(replacement_section, "measure_equivalent_biases", record)
    monkeypatch.setattr(replacement_section, "MEANS", {"kind": "bias_by_kind"})
    return results


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """By which models logits of whole lists of images were computed."""
    results: list[Any] = []
    plain = teacher.Evaluator.logits

    def logits(self: Any, static: Any, *rest: Any) -> Any:
        results.append(static)
        return plain(self, static, *rest)

    monkeypatch.setattr(teacher.Evaluator, "logits", logits)
    return results


@pytest.mark.ci
def test_the_section(
    clip: Clip, tmp_path: Path, measured: list[Any], evaluated: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of(clip)[:4]
    test = colour_split(4, 3)
    images = colour_split(5, 0)
    options = StudyOptions(replacement_steps=2, replacement_forms=("kind",))
    study = Study(models, test, options, tmp_path, training=images, unlabelled=images)
    run_study(study, tmp_path, dataset="colours", sections=("replacement",))
    # The teacher's once for the fitted images and once for those held back, and the student's.
    assert len(evaluated) == 4 and len(set(evaluated)) == 2
    results = load_results(tmp_path).replacement
    assert results is not None
    found = results["ivlp"]
    assert isinstance(found, FittedReplacements)
    assert isinstance(results["again"], Missing) and isinstance(results["kind"], Missing)
    assert set(found.forms) == set(found.means) == set(found.untaught) == {"kind"} and set(found.retrainings) == {
        "again"
    }
    assert (found.fitted_images, found.held_back_images) == (12, 3)
    kind = Task(clip, "bias_by_kind", CLASS_NAMES)
    assert found.forms["kind"].comparison.numbers == sum(np.prod(leaf.shape) for leaf in kind.shapes.values())
    # The decisions and features are those of the models themselves, and of the bias that the tuned model amounts to.
    pixels = clip.preprocess(np.stack([test.image(index) for index in range(len(test))]))
    (bias,) = measured
    mean = {f"{tower}_bias": each.kind for tower, each in bias["ivlp"].towers.items()}
    learnables = [*(model.learnables for model in (study.worded, *models[1:])), mean]
    tasks = [study.worded.task, models[1].task, models[1].task, kind, kind]
    outputs = {task: jax.jit(lambda *args, task=task: (task.logits(*args), features_of(task, *args))) for task in tasks}
    logits, features = zip(
        *(outputs[task](clip.params, each, pixels) for task, each in zip(tasks, learnables, strict=True)), strict=True
    )
    decided = [np.asarray(each).argmax(-1) for each in logits]
    assert found.moved_images == (decided[1] != decided[0]).sum()
    for name, expected in zip(
        ("reference", "tuned", "retrained:again", "untaught:kind", "mean:kind"), decided, strict=True
    ):
        np.testing.assert_array_equal(found.decisions[:, found.ways.index(name)], expected)
    before, after, again = (np.asarray(each, np.float64) for each in features[:3])
    a, b = after - before, again - before
    cosine = ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean()
    assert found.retrainings["again"].cosine.value == pytest.approx(cosine, abs=1e-4)
    # A study with one model less continues from the fit, and makes no step.
    folders = sorted((tmp_path / "parts" / "replacement").iterdir())
    monkeypatch.setattr(loop, "train_step", None)
    more = Study(models_of(clip)[:2], test, options, tmp_path, unlabelled=images)
    more.run_section(replacement_section.compute_replacement(more))
    assert sorted((tmp_path / "parts" / "replacement").iterdir()) == folders


def test_without_training_images_it_is_missing(clip: Clip, tmp_path: Path) -> None:
    ivlp = Task(clip, "ivlp", CLASS_NAMES)
    zero_shot = Model("zero_shot", "Zero-shot", "zero_shot", Task(clip, "zero_shot", CLASS_NAMES), {})
    test: Split = colour_split(1, 3)
    study = Study([zero_shot, Model("ivlp", "IVLP", "ivlp", ivlp, moved(ivlp))], test, StudyOptions(), tmp_path)
    found = study.run_section(replacement_section.compute_replacement(study))
    assert "there are none, or too few" in found["ivlp"].reason
