"""What a tuned model can be exchanged for: numbers against NumPy, words, and the section in a small study."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax

from clipbias.analysis import replacement
from clipbias.analysis.causal_section import halves
from clipbias.analysis.model import Model
from clipbias.analysis.replacement import (
    Origin,
    Word,
    by_image,
    compare,
    conclude,
    fewer,
    plain_form,
    sentence,
)
from clipbias.analysis.results import Missing
from clipbias.analysis.results_file import load_results
from clipbias.analysis.run import run_study
from clipbias.analysis.study import Study, StudyOptions
from clipbias.errors import ClipbiasError
from clipbias.intervals import Estimate, interval, resample
from clipbias.training import loop, students, teacher
from clipbias.training.calibration import fit_temperatures
from clipbias.training.students import (
    cycle_lengths,
    divergences,
    mean_divergence,
    select_learning_rate,
    until_plateau,
)
from clipbias.tuning import Task
from clipbias.tuning.tuned import Tuned
from tests.analysis.models import CLASS_NAMES, moved
from tests.report.synthetic import STUDENTS, form_outputs, model_replacements
from tests.training.conftest import colour_split
from tests.tuning.weights_common import drawn

NORMAL = 1.959963984540054


def log_likelihoods(logits, labels):
    """Of the true class in nats, each half with the temperature of the other one."""
    second = halves(labels)
    values = np.empty(len(labels))
    for part, other in ((~second, second), (second, ~second)):
        (temperature,) = fit_temperatures(logits[other][:, None], labels[other])
        values[part] = log_softmax(logits[part].astype(np.float64) / temperature, -1)[
            np.arange(part.sum()), labels[part]
        ]
    return values


def test_numbers_against_numpy():
    logits, features, labels = form_outputs()
    features[:7, 1] = features[:7, 0]  # images whose feature tuning leaves as it was
    stored = by_image(STUDENTS, logits, features, labels)
    gain, rows = compare([stored])
    assert gain is not None and [row.student for row in rows] == list(STUDENTS)
    decisions = logits.argmax(-1)
    r, p = decisions[:, 0], decisions[:, 1]
    right = [r == labels, p == labels]
    nats = [log_likelihoods(logits[:, k], labels).mean() for k in range(logits.shape[1])]
    assert gain.accuracy.value == pytest.approx(100 * (right[1].mean() - right[0].mean()))
    # The same interval as the causal test has of this gain: a plain bootstrap over images.
    ends = 100 * interval(resample(1.0 * right[1][:, None] - right[0][:, None]))
    assert (gain.accuracy.low, gain.accuracy.high) == pytest.approx(tuple(ends[:, 0]), abs=1e-9)
    assert gain.log_likelihood.value == pytest.approx(nats[1] - nats[0], rel=1e-5)
    groups = {"moved": p != r, "fixed": (p == labels) & (r != labels), "broken": (p != labels) & (r == labels)}
    assert rows[0].moved_images == groups["moved"].sum()
    ceiling = decisions[:, 2] == p
    for k, row in enumerate(rows, start=2):
        decided = decisions[:, k]
        for name, images in {**groups, "agreement": p >= 0}.items():
            number = getattr(row, name)
            same = (decided == p)[images]
            assert len(same) > 3 and number.value == pytest.approx(same.mean())
            wilson = stats.binomtest(int(same.sum()), len(same)).proportion_ci(method="wilson")
            np.testing.assert_allclose((number.low, number.high), wilson, atol=1e-9)
        assert row.accuracy == pytest.approx((decided == labels).mean())
        assert row.difference is not None and row.gain is not None and row.gain.accuracy.share is not None
        assert row.difference.value == pytest.approx((decided == labels).mean() - right[1].mean())
        kept = (decided == labels).mean() - right[0].mean()
        assert row.gain.accuracy.value == pytest.approx(100 * kept)
        assert row.gain.accuracy.share.value == pytest.approx(kept / (right[1].mean() - right[0].mean()))
        of_student = nats[k] - nats[0]
        assert row.gain.log_likelihood.value == pytest.approx(of_student, abs=1e-5) and row.share is not None
        assert row.share.value == pytest.approx(of_student / (nats[1] - nats[0]), abs=1e-5)
        log_p, log_q = log_softmax(logits[:, 1], -1), log_softmax(logits[:, k], -1)
        assert row.divergence.value == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-6)
        changes = [(features[:, each] - features[:, 0])[7:] for each in (1, k)]
        units = [change / np.linalg.norm(change, axis=1)[:, None] for change in changes]
        assert row.cosine is not None and row.cosine.value == pytest.approx((units[0] * units[1]).sum(1).mean())
        if row.student.kind is Origin.FITTED:
            less = ((decided == p).astype(float) - ceiling)[groups["moved"]]
            assert row.less_ceiling is not None and row.less_ceiling.value == pytest.approx(less.mean())
            assert row.word is conclude(row.share, row.less_ceiling)
        else:
            assert row.less_ceiling is None and row.word is None
    np.testing.assert_array_equal(stored.decisions, decisions)


def test_without_labels_or_features():
    logits, features, labels = form_outputs()
    gain, rows = compare([by_image(STUDENTS, logits)])
    _, labelled = compare([by_image(STUDENTS, logits, features, labels)])
    assert gain is None
    for row, full in zip(rows, labelled, strict=True):
        assert (row.accuracy, row.difference, row.gain, row.margin, row.fixed, row.cosine) == (None,) * 6
        assert (row.agreement, row.moved, row.moved_images) == (full.agreement, full.moved, full.moved_images)


def resampled(columns, resamples=6000):
    """Resamples of means of columns `[n]` of several seeds: the same images for all, and Student's part of seeds."""
    draw = np.random.default_rng(7)
    images = len(next(iter(columns[0].values())))
    chosen = draw.integers(0, images, (resamples, images))
    names = list(columns[0])
    values = [np.stack([each[name] for name in names], 1) for each in columns]
    drawn = np.mean([[of_seed[rows].mean(0) for rows in chosen] for of_seed in values], axis=0)
    if (seeds := len(columns)) > 1:
        # As many numbers as there are seeds, whose mean is 0, times Student's t: right for each number by itself.
        deviations = np.stack([of_seed.mean(0) for of_seed in values]) - np.mean(values, axis=(0, 1))
        mixed = draw.normal(size=(resamples, seeds)) / np.sqrt(draw.chisquare(seeds - 1, (resamples, 1)) * seeds)
        drawn = drawn + mixed @ deviations
    return dict(zip(names, drawn.T, strict=True))


@pytest.mark.parametrize("seeds", [(3,), (3, 4, 5)])
def test_intervals_against_resampling_written_out(seeds):
    models = [model_replacements(seed, 400).by_image for seed in seeds]
    columns = []
    for seed in seeds:
        logits, _, labels = form_outputs(seed, 400)
        r, p, ceiling, form, *_ = logits.argmax(-1).T
        nats = [log_likelihoods(logits[:, k], labels) for k in range(4)]
        columns.append(
            {
                "gain": nats[1] - nats[0],
                "form": nats[3] - nats[0],
                "moved": 1.0 * (p != r),
                "same": (p != r) * (form == p),
                "less": (p != r) * ((form == p).astype(float) - (ceiling == p)),
                "difference": 1.0 * (form == labels) - (p == labels),
                "divergence": divergences(logits[:, 1], logits[:, 3]),
            }
        )
    draws = resampled(columns)
    _, rows = compare(models)
    row = rows[1]
    assert row.models == len(seeds) and row.student.kind is Origin.FITTED
    expected = {
        "share": (row.share, draws["form"] / draws["gain"]),
        "moved": (row.moved, draws["same"] / draws["moved"]),
        "less": (row.less_ceiling, draws["less"] / draws["moved"]),
        "difference": (row.difference, draws["difference"]),
        "divergence": (row.divergence, draws["divergence"]),
    }
    for name, (number, values) in expected.items():
        assert number is not None and number.low is not None and number.high is not None
        low, high = np.quantile(values, [0.025, 0.975])
        # Student's distribution with two degrees of freedom has far quantiles; a proportion ends at 0 and 1.
        tolerance = 0.12 * (high - low)
        ends = np.clip((low, high), 0, 1) if name == "moved" else (low, high)
        assert (number.low, number.high) == pytest.approx(tuple(ends), abs=tolerance), name
    assert row.margin == max(0.0, -row.difference.low)


def test_models_of_one_method_that_lack_a_control():
    """Rows are means over the models that have them; what stands in their place counts by its numbers."""
    both, without = model_replacements(1), model_replacements(2, students=STUDENTS[:3])
    _, rows = compare([both.by_image, without.by_image])
    assert [row.models for row in rows] == [2, 2, 2, 1, 1]
    alone = compare([both.by_image])[1]
    assert rows[3] == alone[3]
    more = [dataclasses.replace(student, numbers=student.numbers + 20) for student in STUDENTS[:3]]
    other = dataclasses.replace(without.by_image, students=tuple(more))
    assert compare([both.by_image, other])[1][1].student.numbers == STUDENTS[1].numbers + 10
    with pytest.raises(ValueError, match="on the same images"):
        compare([both.by_image, model_replacements(2, 200).by_image])


def test_equal_decisions_are_no_certainty():
    """A student that never differs has an interval all the same, which shrinks with the images."""
    margins = []
    for images in (20, 200, 2000):
        logits, features, labels = form_outputs(0, images)
        same = [0, 1, 1]
        _, (row,) = compare([by_image(STUDENTS[1:2], logits[:, same], features[:, same], labels)])
        assert row.difference is not None and row.difference.value == 0 and row.margin is not None
        margins.append(row.margin)
    np.testing.assert_allclose(margins, [NORMAL * 0.5 / images for images in (20, 200, 2000)], rtol=0.1)


ABOVE, MOST = Estimate(0.95, 0.91, 1.0), Estimate(0.8, 0.6, 0.95)
BELOW, AROUND = Estimate(0.3, 0.2, 0.4), Estimate(0.6, 0.4, 0.8)
EQUAL, WORSE = Estimate(0.0, -0.04, 0.04), Estimate(-0.02, -0.06, 0.02)


@pytest.mark.parametrize(
    ("share", "less_ceiling", "word", "said"),
    [
        (ABOVE, EQUAL, Word.REPLACES, "can replace IVLP"),
        (ABOVE, WORSE, Word.GAIN, "have the gain"),  # below the ceiling by more than the margin, perhaps
        (Estimate(1.37, 1.16, 1.8), WORSE, Word.GAIN, "have more than the gain"),
        (ABOVE, None, Word.GAIN, "there is no ceiling"),
        (MOST, EQUAL, Word.MOST, "have most of the gain"),
        (BELOW, EQUAL, Word.NOT_MATCHED, "did not match the gain"),
        (AROUND, EQUAL, Word.UNDECIDED, "is undecided"),
        (None, EQUAL, Word.UNDECIDED, "IVLP has no sure gain"),
    ],
)
def test_words(share, less_ceiling, word, said):
    assert conclude(share, less_ceiling) is word
    ceiling, form, *_ = compare([model_replacements().by_image])[1]
    log_likelihood = dataclasses.replace(form.gain.log_likelihood, share=share)
    gain = dataclasses.replace(form.gain, log_likelihood=log_likelihood)
    form = dataclasses.replace(form, gain=gain, word=word, less_ceiling=less_ceiling)
    assert said in sentence("IVLP", [form] if less_ceiling is None else [ceiling, form])


def test_where_no_gap_is_known_the_sentence_says_why():
    ceiling, form, *_ = compare([model_replacements().by_image])[1]
    form = dataclasses.replace(form, less_ceiling=None, moved_images=1, images=3_000, models=2)
    said = sentence("IVLP", [ceiling, form])
    assert said.endswith("too uncertain to compare them with the ceiling: 1 of 3,000 images, 2 seeds.")
    assert sentence("IVLP", [form], "GDA cannot be fitted.").endswith("GDA cannot be fitted.")
    assert sentence("IVLP", [dataclasses.replace(form, moved=None)]).endswith("No prediction changed.")
    assert sentence("IVLP", []) == "" and plain_form([]) is None


@pytest.mark.parametrize(
    ("less", "text"),
    [(Estimate(-0.172, -0.216, -0.131), "17 (13 to 22) fewer"), (Estimate(0.03, -0.01, 0.07), "3 (-1 to 7) more")],
)
def test_the_gap_in_words(less, text):
    assert fewer(less) == text


def models_of(clip):
    """IVLP, the same with another start, on other images, and the form trained on labels."""
    ivlp, again, elsewhere = (Task(clip, "ivlp", CLASS_NAMES) for _ in range(3))
    kind = Task(clip, "bias_by_kind", CLASS_NAMES)
    facts = {"training": "colours", "few_shot_split": "1"}
    others = {"training": "colours", "few_shot_split": "2"}
    return [
        Model("zero_shot", "Zero-shot", Tuned(Task(clip, "zero_shot", CLASS_NAMES))),
        Model("ivlp", "IVLP", Tuned(ivlp, moved(ivlp)), seed=1, **facts),
        Model("again", "IVLP", Tuned(again, drawn(ivlp.shapes, 0.6, 8)), seed=2, **facts),
        Model("kind", "By kind", Tuned(kind, drawn(kind.shapes, 0.2)), seed=1, **facts),
        Model("elsewhere", "IVLP", Tuned(elsewhere, drawn(ivlp.shapes, 0.3, 9)), seed=2, **others),
    ]


def test_which_models_stand_beside_the_forms(clip, tmp_path):
    models = models_of(clip)
    study = Study(models, colour_split(1, 3), StudyOptions(), tmp_path)
    beside = [(kind, form, each.key) for kind, form, each in replacement.controls(study, models[1])]
    assert beside == [(Origin.RETRAINED, "ivlp", "again"), (Origin.LABELS, "kind", "kind")]
    assert not replacement.controls(study, models[4])
    # The same two methods with more epochs: no retraining, and another row.
    longer = [dataclasses.replace(model, key=f"{model.key}-2", training="longer") for model in models[2:4]]
    study = Study([*models, *longer], colour_split(1, 3), StudyOptions(), tmp_path)
    beside += [(Origin.LABELS, "kind (2)", "kind-2")]
    assert [(kind, form, each.key) for kind, form, each in replacement.controls(study, models[1])] == beside


def test_what_is_not_fitted_and_why(clip, tmp_path):
    images = colour_split(5, 0)
    study = Study(models_of(clip), colour_split(1, 3), StudyOptions(), tmp_path, unlabelled=images)
    reasons = [replacement.why_not_fitted(study, model) for model in study.tuned]
    assert [bool(reason) for reason in reasons] == [False, True, True, False]
    assert "another start" in reasons[1] and "the form of a replacement" in reasons[2]
    off = Study(study.models, images, StudyOptions(replacement_steps=0), tmp_path, unlabelled=images)
    assert "replacement_steps is 0" in replacement.why_not_fitted(off, off.tuned[0])
    without = Study(study.models, images, StudyOptions(), tmp_path)
    for each in (off, without):
        results = each.run({"it": replacement.compute_replacement(each)})["it"]
        assert not results.methods and all(isinstance(found, Missing) for found in results.models.values())
    assert "there are none, or too few" in results.models["ivlp"].reason


@pytest.mark.parametrize(
    ("method", "why"),
    [("ivlp", ""), ("gda", "made of features and labels"), ("tpt", "test image"), ("zero_shot", "no trainable")],
)
def test_methods_without_a_ceiling(clip, method, why):
    task = Task(clip, method, CLASS_NAMES)
    found = replacement.no_ceiling(Model("it", "It", Tuned(task, task.shapes)))
    assert why in found and bool(found) == bool(why)


@pytest.mark.parametrize(("best", "tried"), [(0.005, 3), (0.08, 5), (0.00125, 4), (1e9, 8)])
def test_the_rate_is_the_lowest_that_is_tried(best, tried):
    seen = []

    def divergence(rate):
        seen.append(rate)
        return abs(np.log(rate / best))

    found = select_learning_rate(divergence)
    assert found == min(seen, key=lambda rate: abs(np.log(rate / best))) and len(seen) == len(set(seen)) == tried
    assert found == pytest.approx(best) or best == 1e9
    assert select_learning_rate(lambda rate: np.nan if rate > 0.004 else 1.0) < 0.004


def fitted_to_curve(divergence, most_steps, rates=(0.02,)):
    """A fit whose student is its number of steps and its rate, and the cycles that it made."""
    cycles = []

    def cycle(rate, steps, start):
        cycles.append((rate, steps, start))
        if rate not in rates:
            raise ClipbiasError("the loss is nan")
        return (steps + (start[0] if start else 0), rate)

    return until_plateau(cycle, lambda student: divergence(*student), rate=0.02, most_steps=most_steps), cycles


def test_a_fit_ends_at_the_plateau_of_its_curve():
    """By hand: of 0.1 + 2 / steps the cycles that end at 40, 120, 280, 600, 1240 have 0.15, 0.117, 0.107, 0.103, …"""

    def curve(steps, rate):
        return 0.1 + 2 / steps

    fit, cycles = fitted_to_curve(curve, 5080)
    # 0.117 is 22 % below 0.15, and 0.107 is 8 % below 0.117: that is a plateau.
    assert (fit.student, fit.steps, fit.plateau, fit.learning_rate) == ((280, 0.02), 280, True, 0.02)
    assert cycles == [
        (0.02, 40, None),
        (0.08, 40, None),
        (0.005, 40, None),
        (0.02, 80, (40, 0.02)),
        (0.02, 160, (120, 0.02)),
    ]
    fit, _ = fitted_to_curve(curve, 120)
    assert (fit.steps, fit.plateau) == (120, False)  # the bound came first
    # A slow start is no plateau: the second cycle, which lowers nothing, ends no fit; the third starts at the first.
    fit, cycles = fitted_to_curve(lambda steps, rate: 1.0 if steps == 40 else 2.0 if steps == 120 else 1 / steps, 600)
    assert (fit.steps, fit.plateau) == (600, False) and cycles[-2][2] == (40, 0.02)
    # A cycle that raises the divergence ends the fit, and the student before it stays.
    fit, _ = fitted_to_curve(lambda steps, rate: abs(steps - 120) + 1, 5080)
    assert (fit.student, fit.steps, fit.plateau) == ((120, 0.02), 280, True)


def test_the_rate_of_a_fit_is_searched_in_its_first_cycle():
    def curve(steps, rate):
        return abs(np.log(rate / 0.32)) + 1 / steps

    fit, cycles = fitted_to_curve(curve, 120, rates=(0.005, 0.02, 0.08, 0.32, 1.28))
    assert fit.learning_rate == pytest.approx(0.32) and [steps for _, steps, _ in cycles] == [40] * 5 + [80]
    with pytest.raises(ClipbiasError, match="the loss is nan"):
        fitted_to_curve(curve, 120, rates=())


@pytest.mark.parametrize("most", [1, 119, 120, 300, 1500])
def test_each_cycle_is_at_least_twice_as_long(most):
    lengths = cycle_lengths(most)
    assert sum(lengths) == most and lengths[0] == (40 if most >= 120 else most)
    assert all(after >= 2 * before for before, after in itertools.pairwise(lengths))


@pytest.mark.ci
def test_the_section(clip, tmp_path, monkeypatch):
    def one_rate(divergence, *, first):
        assert np.isfinite(divergence(first))
        return first

    def measure(*args):
        measured.append((yield from plain_measure(*args)))
        return measured[-1]

    def logits_of(self, static, *rest):
        evaluated.append(static)
        return plain_logits(self, static, *rest)

    measured, evaluated = [], []
    plain_measure, plain_logits = replacement.measure_equivalent_biases, teacher.Evaluator.logits
    monkeypatch.setattr(replacement, "measure_equivalent_biases", measure)
    monkeypatch.setattr(replacement, "METHOD_OF_FORM", {"kind": "bias_by_kind"})
    monkeypatch.setattr(teacher.Evaluator, "logits", logits_of)
    monkeypatch.setattr(students, "select_learning_rate", one_rate)
    models = models_of(clip)[:4]
    test = colour_split(4, 3)
    images = colour_split(5, 0)
    options = StudyOptions(replacement_steps=2)
    study = Study(models, test, options, tmp_path, training=images, unlabelled=images)
    run_study(study, tmp_path, dataset="colours", sections=("replacement",))
    # Of the teacher and of both students those of the fitted images and those held back, once: the trial is the fit.
    assert len(evaluated) == 6 and len(set(evaluated)) == 2
    results = load_results(tmp_path).sections["replacement"]
    found = results.models["ivlp"]
    assert not isinstance(found, Missing) and isinstance(results.models["again"], Missing)
    kinds = [(each.kind, each.form) for each in found.by_image.students]
    assert kinds == [
        (Origin.CEILING, "ivlp"),
        (Origin.FITTED, "kind"),
        (Origin.MEAN, "kind"),
        (Origin.RETRAINED, "ivlp"),
        (Origin.LABELS, "kind"),
    ]
    assert (found.steps, found.fitted_images, found.held_back_images, found.no_ceiling) == (2, 12, 3, "")
    kind = Task(clip, "bias_by_kind", CLASS_NAMES)
    numbers = [sum(np.prod(leaf.shape) for leaf in task.shapes.values()) for task in (models[1].task, kind)]
    assert [each.numbers for each in found.by_image.students[:2]] == numbers
    assert [(each.steps, each.plateau) for each in found.by_image.students[:3]] == [(2, False)] * 2 + [(None, None)]
    (method,) = results.methods
    assert method.name == "IVLP" and method.models == ("ivlp",)
    assert (method.gain, method.rows) == compare([found.by_image])
    assert method.sentence == sentence("IVLP", method.rows) != ""
    # The decisions and features are those of the models themselves, and of the bias that the tuned model amounts to.
    pixels = clip.preprocess(np.stack([test.image(index) for index in range(len(test))]))
    (bias,) = measured
    mean = {f"{tower}_bias": each.kind for tower, each in bias["ivlp"].items()}
    learnables = [*(model.learnables for model in (study.worded, *models[1:])), mean]
    tasks = [study.worded.task, models[1].task, models[1].task, kind, kind]
    features = []
    for place, task, each in zip((0, 1, 5, 6, 4), tasks, learnables, strict=True):
        logits = jax.jit(task.logits)(clip.params, each, pixels)
        np.testing.assert_array_equal(found.by_image.decisions[:, place], np.asarray(logits).argmax(-1))
        features.append(np.asarray(jax.jit(task.image_features)(clip.params, each, pixels), np.float64))
    before, after, again = features[:3]
    a, b = after - before, again - before
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(found.by_image.cosines[:, 5], cosine, atol=1e-4)
    # A study with one model less continues from the fits, and makes no step.
    folders = sorted((tmp_path / "parts" / "replacement").iterdir())
    assert len(folders) == 2  # the trial is the ceiling
    monkeypatch.setattr(loop, "train_step", None)
    more = Study(models_of(clip)[:2], test, options, tmp_path, unlabelled=images)
    more.run({"it": replacement.compute_replacement(more)})["it"]
    assert sorted((tmp_path / "parts" / "replacement").iterdir()) == folders


@pytest.mark.ci
def test_the_ceiling_reaches_a_teacher_of_its_own_form(clip, tmp_path):
    """A bias, fitted to itself from another order of images, comes nearer to itself than it was."""
    bias = Task(clip, "bias", CLASS_NAMES)
    models = [models_of(clip)[0], Model("bias", "Bias", Tuned(bias, drawn(bias.shapes, 0.1)), seed=1)]
    images = colour_split(6, 0)
    study = Study(models, colour_split(4, 3), StudyOptions(replacement_steps=60), tmp_path, unlabelled=images)
    fits = replacement.Fits(study, 1)
    zero = Tuned(bias, bias.init(0))
    ceiling = fits.fit(models[1], bias, rate=replacement.FIRST_RATE)
    assert ceiling.student.task == bias
    assert ceiling.fitted_divergence < 0.5 * mean_divergence(models[1].tuned, zero, fits.fitted, fits.context)
