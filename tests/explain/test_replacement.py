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
from clipbias.explain.agreement import accuracy_difference
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.replacement import CONCLUSIONS, Fit, Logits, conclude, summarize
from clipbias.explain.results import FittedReplacements, load_results
from clipbias.explain.run import run_study
from clipbias.explain.study import Study
from clipbias.explain.temperature import calibrate
from clipbias.explain.uncertainty import Estimate
from clipbias.training.students import FORMS
from clipbias.tuning import Task
from tests.explain.models import CLASS_NAMES, moved
from tests.training.conftest import colour_split
from tests.tuning.weights_common import drawn

FIT = {"kind": Fit("two vectors per layer", 30, 0.1, 0.2)}


def made(labels: np.ndarray, right: float, seed: int) -> np.ndarray:
    """Logits `[n, 4]` of a model that is right on so large a share of the images."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), 4))
    logits[
        np.arange(len(labels)), np.where(rng.random(len(labels)) < right, labels, rng.integers(0, 4, len(labels)))
    ] += 4
    return logits


def test_numbers_against_numpy() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 300)
    frozen, tuned, form, again, untaught = (made(labels, share, n) for n, share in enumerate((0.3, 0.9, 0.7, 0.8, 0.5)))
    logits = Logits(frozen, tuned, {"kind": form}, {"again": again}, {"kind": {"labels": untaught}})
    found = summarize("IVLP", logits, labels, FIT, (80, 20))
    r, p, f, a, u = (values.argmax(-1) for values in (frozen, tuned, form, again, untaught))
    shares = {
        "every": p >= 0,
        "moved": p != r,
        "fixed": (p == labels) & (r != labels),
        "broken": (p != labels) & (r == labels),
    }
    for name, rows in shares.items():
        assert rows.sum() > 3
        assert getattr(found.forms["kind"].agreement, name).value == pytest.approx((p == f)[rows].mean())
        assert getattr(found.retrainings["again"], name).value == pytest.approx((p == a)[rows].mean())
        assert getattr(found.untaught["labels"], name).value == pytest.approx((p == u)[rows].mean())
    kept, gain = found.forms["kind"].kept, found.gain
    right = [100 * (each == labels).mean() for each in (r, p, f)]
    assert gain.accuracy.value == pytest.approx(right[1] - right[0])
    assert kept.accuracy.share.value == pytest.approx((right[2] - right[0]) / (right[1] - right[0]))
    nats = calibrate(np.stack([frozen, form, tuned], 1), labels).values.mean(0)
    assert kept.calibrated.share.value == pytest.approx((nats[1] - nats[0]) / (nats[2] - nats[0]))
    log_p, log_q = log_softmax(tuned, -1), log_softmax(form, -1)
    assert found.forms["kind"].divergence.value == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    rows = p != r
    beside = found.forms["kind"].beside_retraining["again"]
    assert beside == accuracy_difference((f == p)[rows], (a == p)[rows])
    assert found.forms["kind"].difference.value == pytest.approx((right[2] - right[1]) / 100)
    assert found.moved_images == rows.sum() and (found.fitted_images, found.held_back_images) == (80, 20)
    share = kept.calibrated.share
    words = CONCLUSIONS[found.forms["kind"].conclusion]
    ends = f"{100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"
    assert found.forms["kind"].sentence == (
        f"IVLP {words} two vectors per layer fitted to its predictions: {ends} of "
        f"the gain in calibrated log-likelihood, {100 * (p == f)[rows].mean():.0f} % of the moved decisions."
    )


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
    facts: dict[str, Any] = {"trained_on": "colours", "split_seed": 1}
    others: dict[str, Any] = {"trained_on": "colours", "split_seed": 2}
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


def test_the_section(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacement_section, "FORMS", {"kind": FORMS["kind"]})
    models = models_of(clip)[:3]
    test = colour_split(4, 3)
    study = Study(models, test, StudyOptions(replacement_steps=2), tmp_path, training=colour_split(5, 0))
    run_study(study, tmp_path, dataset="colours", sections=("replacement",))
    results = load_results(tmp_path).replacement
    assert results is not None
    found = results["ivlp"]
    assert isinstance(found, FittedReplacements)
    assert set(found.forms) == {"kind"} and set(found.retrainings) == {"again"}
    assert (found.fitted_images, found.held_back_images) == (12, 3)
    kind = Task(clip, "bias_by_kind", CLASS_NAMES)
    assert found.forms["kind"].numbers == sum(np.prod(leaf.shape) for leaf in kind.shapes.values())
    # The decisions are those of the models themselves.
    pixels = clip.preprocess(np.stack([test.image(index) for index in range(len(test))]))
    logits = [
        jax.jit(model.task.logits)(clip.params, model.learnables, pixels) for model in (study.worded, *models[1:])
    ]
    frozen, *decided = (np.asarray(each).argmax(-1) for each in logits)
    assert found.moved_images == (decided[0] != frozen).sum()
    assert found.retrainings["again"].every.value == pytest.approx((decided[0] == decided[1]).mean())


def test_without_training_images_it_is_missing(clip: Clip, tmp_path: Path) -> None:
    ivlp = Task(clip, "ivlp", CLASS_NAMES)
    zero_shot = Model("zero_shot", "Zero-shot", "zero_shot", Task(clip, "zero_shot", CLASS_NAMES), {})
    test: Split = colour_split(1, 3)
    study = Study([zero_shot, Model("ivlp", "IVLP", "ivlp", ivlp, moved(ivlp))], test, StudyOptions(), tmp_path)
    found = study.run_section(replacement_section.compute_replacement(study))
    assert "there are none, or too few" in found["ivlp"].reason
