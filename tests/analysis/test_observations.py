"""Each observation's number and interval from plain loops over samples in float64, and what the rule says of it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from clipbias.analysis import observations
from clipbias.analysis.observations import ClaimOutcome, Observations, ObservedModel, decide, estimate_over, observe
from clipbias.analysis.results import ByMetric, CausalNumbers, ImageAblations, Predictions, VerdictLabels, What, Where
from clipbias.intervals import RESAMPLES, Estimate

KINDS = ("sos", "prompt", "words", "category", "dot", "eos")
IMAGES = 60
CLASSES = 12
LAYERS = 3


def model(key, method, vision=2, text=2):
    return SimpleNamespace(
        key=key,
        label=method.upper(),
        name=method.upper(),
        method=method,
        options={},
        training="demo/fashion",
        vision_prompts=vision,
        text_prompts=text,
        has_prompts=bool(vision or text),
    )


def observed(draw):
    def dirichlet(*shape):
        return draw.dirichlet(np.ones(shape[-1]), shape[:-1])

    distance, entropy = draw.uniform(1, 2, (2, IMAGES, LAYERS))
    return ObservedModel(
        text_relevancy=dirichlet(IMAGES, 2, 5),
        patch_variation=draw.uniform(0, 0.2, IMAGES),
        eos_attention=dirichlet(CLASSES, 6),
        distance=distance,
        entropy=entropy,
        nearness=draw.uniform(-1, 0.4, IMAGES),
        cls_variation=draw.uniform(0, 0.3, IMAGES),
    )


@pytest.fixture
def study():
    """Zero-shot and one IVLP over random numbers; no causal test."""
    draw = np.random.default_rng(3)
    zero, tuned = model("zero_shot", "zero_shot", 0, 0), model("ivlp", "ivlp")
    labels = draw.integers(0, 3, IMAGES)
    predicted = {"zero_shot": draw.integers(0, 3, IMAGES), "ivlp": labels.copy()}
    predicted["ivlp"][::5] = (labels[::5] + 1) % 3
    models = {"zero_shot": observed(draw), "ivlp": observed(draw)}
    models["ivlp"].patch_variation[4] = np.nan  # an image that could not be read
    others = (predicted["zero_shot"] == labels) | (predicted["ivlp"] != labels)
    models["ivlp"].text_relevancy[others] = models["ivlp"].patch_variation[others] = np.nan
    return SimpleNamespace(
        zero_shot=zero,
        tuned=[tuned],
        sections={"observations": Observations(models, ())},
        predictions=Predictions(labels, predicted),
        methods=[SimpleNamespace(models=("ivlp",), name="IVLP", numbers=None, labels=None, images=IMAGES)],
    )


def resampled(rows, statistic, seed=0):
    """The statistic of the means of rows, and its 95 % percentile interval over images drawn with replacement."""
    rows = np.asarray(rows, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES, len(rows)))
    values = sorted(statistic(np.mean([rows[i] for i in indices], axis=0)) for indices in drawn)
    return statistic(rows.mean(0)), *np.quantile(values, [0.025, 0.975])


def expected(study):
    """By claim the number and its interval."""
    plain, tuned = (study.sections["observations"].models[key] for key in ("zero_shot", "ivlp"))
    labels, predicted = study.predictions.labels, study.predictions.models
    corrected = [
        i for i in range(IMAGES) if predicted["zero_shot"][i] != labels[i] and predicted["ivlp"][i] == labels[i]
    ]
    assert 10 < len(corrected) < IMAGES

    def change(*kinds):
        places = [KINDS.index(kind) for kind in kinds]
        return [100 * (tuned.text_relevancy[i, 1, places].sum() - tuned.text_relevancy[i, 0, places].sum())
                for i in corrected]  # fmt: skip

    def eos(side, *kinds):
        return np.array([sum(row[KINDS.index(kind)] for kind in kinds) for row in side.eos_attention])

    def sizes(means):
        return np.mean([100 * abs(means[layer] / means[LAYERS + layer] - 1) for layer in range(LAYERS)])

    def larger(means):
        return max(100 * abs(means[0] / means[2] - 1), 100 * abs(means[1] / means[3] - 1))

    first = [(tuned.distance[i, 0], tuned.entropy[i, 0], plain.distance[i, 0], plain.entropy[i, 0])
             for i in range(IMAGES)]  # fmt: skip
    both = list(zip(eos(tuned, "category"), eos(plain, "category"), strict=True))
    return {
        "Relevancy of the category falls": resampled(change("category"), float),
        "Relevancy of SOS falls": resampled(change("sos"), float),
        "Relevancy of prompts rises": resampled(change("prompt", "words"), float),
        "Patches keep their relative relevancy": resampled(
            [100 * tuned.patch_variation[i] for i in corrected if i != 4], float
        ),
        "EOS looks at SOS": resampled(100 * eos(plain, "sos"), float),
        "EOS's attention moves to prompts": resampled(
            100 * (eos(tuned, "prompt", "words") - eos(plain, "prompt", "words")), float
        ),
        "The category keeps its part of EOS's attention": resampled(both, lambda m: 100 * (m[0] / m[1] - 1)),
        "Attention distance is unchanged": resampled(np.hstack([tuned.distance, plain.distance]), sizes),
        "Attention entropy is unchanged": resampled(np.hstack([tuned.entropy, plain.entropy]), sizes),
        "Layer 1 is identical without prompts": resampled(first, larger),
        "Prompts resemble background": resampled(tuned.nearness, float),
        "The [cls] map is unchanged": resampled(100 * tuned.cls_variation, float),
    }


def test_every_number_and_interval(study):
    rows = {row.claim: row for row in observe(study).rows}
    numbers = expected(study)
    hypotheses = ["Prompts change where input tokens look", "Prompts add a bias, the same for every image"]
    assert list(rows) == [*numbers, *hypotheses, "Both are indispensable"]
    for claim, number in numbers.items():
        got = rows[claim].number
        np.testing.assert_allclose((got.value, got.low, got.high), number, rtol=1e-9, err_msg=claim)
        assert rows[claim].method == ("ZERO_SHOT" if claim == "EOS looks at SOS" else "IVLP")
    assert {rows[claim].samples for claim in rows if "EOS" in claim} == {CLASSES}
    assert rows["The [cls] map is unchanged"].samples == IMAGES
    for claim in (*hypotheses, "Both are indispensable"):  # without a causal test
        assert rows[claim].number is None and rows[claim].outcome is ClaimOutcome.UNDECIDED


RANGES = {
    "Relevancy of the category falls": (-np.inf, 0),
    "Relevancy of SOS falls": (-np.inf, 0),
    "Relevancy of prompts rises": (0, np.inf),
    "Patches keep their relative relevancy": (-np.inf, 10),
    "EOS looks at SOS": (50, np.inf),
    "EOS's attention moves to prompts": (0, np.inf),
    "The category keeps its part of EOS's attention": (-10, 10),
    "Attention distance is unchanged": (-np.inf, 10),
    "Attention entropy is unchanged": (-np.inf, 10),
    "Layer 1 is identical without prompts": (-np.inf, 0.1),
    "Prompts resemble background": (-np.inf, 0),
    "The [cls] map is unchanged": (-np.inf, 10),
}


def test_each_claim_has_its_range(study, monkeypatch):
    """Where the claim is surely true, surely false, and neither."""
    for claim, (low, high) in RANGES.items():
        edge = low if np.isfinite(low) else high
        inside = (low + high) / 2 if np.isfinite(low + high) else edge + (1 if edge == low else -1)
        outside = edge - 1 if edge == low else edge + 1
        near = edge + 0.005 * np.sign(inside - edge)
        for middle, outcome in ((inside, "HOLDS"), (outside, "DOES_NOT"), (edge, "UNDECIDED"), (near, "UNDECIDED")):
            number = Estimate(middle, middle - 0.01, middle + 0.01)
            monkeypatch.setattr(observations, "estimate_over", lambda *_, number=number, **__: (number, 50))
            rows = {row.claim: row.outcome for row in observe(study).rows}
            assert rows[claim] is ClaimOutcome[outcome], (claim, middle)


def test_claims_are_about_methods_with_such_prompts(study):
    def claims(vision, text):
        study.tuned = [model("ivlp", "ivlp", vision, text)]
        return {row.source for row in observe(study).rows}, [row.claim for row in observe(study).rows]

    sources, names = claims(2, 0)
    assert sources == {"Fig. 3", "Fig. 4", "Fig. 5", "Fig. 6", "Sec. 4.2.1"}
    assert [name for name in names if "EOS" in name] == ["EOS looks at SOS"]
    sources, names = claims(0, 2)
    assert sources == {"Fig. 2", "Fig. 4", "Sec. 4.2.1"} and "Prompts add a bias, the same for every image" not in names
    assert claims(0, 0)[1] == ["EOS looks at SOS"]


def test_below_ten_samples_nothing_is_decided():
    rows = np.arange(10.0)[:, None]
    number, samples = estimate_over([rows], lambda means: means[..., 0])
    assert samples == 10 and number.low is not None and decide(number, 0, 9) is ClaimOutcome.HOLDS
    number, samples = estimate_over([rows[:9]], lambda means: means[..., 0])
    assert samples == 9 and number == Estimate(4.0) and decide(number, 0, 9) is ClaimOutcome.UNDECIDED
    number, samples = estimate_over([np.full((3, 1), np.nan)], lambda means: means[..., 0])
    assert samples == 0 and np.isnan(number.value)


def test_seeds_are_crossed(study):
    """Two seeds have one row, with the mean of both; `test_effects` has the interval."""
    draw = np.random.default_rng(1)
    twins = dataclasses.replace(
        study.sections["observations"], models=study.sections["observations"].models | {"ivlp_seed2": observed(draw)}
    )
    study.sections["observations"] = twins
    study.predictions.models["ivlp_seed2"] = study.predictions.models["ivlp"]
    study.tuned = [model("ivlp", "ivlp"), model("ivlp_seed2", "ivlp")]
    study.methods[0].models = ("ivlp", "ivlp_seed2")
    rows = [row for row in observe(study).rows if row.claim == "Prompts resemble background"]
    nearness = [twins.models[key].nearness.mean() for key in ("ivlp", "ivlp_seed2")]
    assert len(rows) == 1
    np.testing.assert_allclose(rows[0].number.value, np.mean(nearness))
    half = (rows[0].number.high - rows[0].number.low) / 2
    # Student's factor times the standard error over seeds, of 2,000 resamples.
    assert half > 0.9 * 12.706 * abs(nearness[0] - nearness[1]) / 2


def method_of(attention, tokens, exchange, where, what):
    """A method's part of the verdict: of 0.05 to either side of each share, and its labels."""

    def estimate(middle):
        share = None if middle is None else Estimate(middle, middle - 0.05, middle + 0.05)
        return Estimate(1.0, 0.5, 1.5, share)

    numbers = CausalNumbers(
        reference=Estimate(0.0),
        gain=Estimate(1.0, 0.5, 1.5),
        attention=estimate(attention),
        tokens=estimate(tokens),
        towers={},
        image=ImageAblations(estimate(1.0), estimate(0.1), estimate(exchange), means={}, explained={}),
        text=None,
    )
    labels = VerdictLabels(where, what)
    return SimpleNamespace(models=("ivlp",), name="IVLP", numbers=ByMetric(None, numbers), labels=labels, images=300)


@pytest.mark.parametrize(
    ("attention", "tokens", "exchange", "labels", "outcomes", "loss"),
    [
        (0.6, 0.6, 0.1, (Where.ATTENTION, What.SAME), ("holds", "holds", "holds"), 40),
        (0.1, 0.9, 0.9, (Where.NOT_ATTENTION, What.DEPENDS), ("does not", "does not", "does not"), 10),
        (0.9, 0.1, 0.4, (Where.ATTENTION, What.UNDECIDED), ("holds", "undecided", "does not"), 10),
        (0.4, 0.5, 0.21, (Where.UNDECIDED, What.NOTHING), ("undecided", "does not", "holds"), 50),
        (0.1, 0.72, 0.52, (Where.OUTSIDE, What.UNDECIDED), ("does not", "undecided", "undecided"), 28),
        (None, None, None, (Where.NO_GAIN, None), ("undecided",) * 3, None),
    ],
)
def test_hypotheses(study, attention, tokens, exchange, labels, outcomes, loss):
    study.methods = [method_of(attention, tokens, exchange, *labels)]
    rows = [row for row in observe(study).rows if row.source == "Sec. 4.2.1"]
    assert tuple(row.outcome.value for row in rows) == outcomes
    if loss is None:
        assert [row.number for row in rows] == [None] * 3
        return
    numbers = [(row.number.value, row.number.low, row.number.high) for row in rows]
    middles = [100 * attention, 100 * exchange, loss]
    np.testing.assert_allclose(numbers, [(middle, middle - 5, middle + 5) for middle in middles])
    assert {row.samples for row in rows} == {300}
