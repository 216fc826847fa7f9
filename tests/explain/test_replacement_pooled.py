"""What a method can be exchanged for over seeds and datasets, against resampling written out in NumPy."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
from scipy import stats

from clipbias.explain.replacement import Candidates, Fit, summarize
from clipbias.explain.replacement_pooled import PooledWay, pool_replacements
from clipbias.explain.results import FittedReplacements, StudyResults
from tests.explain.test_replacement import made
from tests.report.synthetic import only_sections, synthetic_results

SHARES = {"frozen": 0.3, "tuned": 0.8, "form": 0.75, "mean": 0.4, "again": 0.78, "untaught": 0.6}
WAYS = ("reference", "tuned", "fitted:kind", "mean:kind", "retrained:again", "untaught:labels")


@functools.cache
def result(images: int, seed: int, controls: bool = True) -> FittedReplacements:
    """One model of a dataset, whose images have the same labels for all seeds."""
    labels = np.random.default_rng(images).integers(0, 4, images)
    outputs = [made(labels, right, 100 * seed + place) for place, right in enumerate(SHARES.values())]
    frozen, tuned, form, mean, again, untaught = outputs
    candidates = Candidates(
        frozen,
        tuned,
        {"kind": form},
        {"kind": mean},
        {"again": again} if controls else {},
        {"kind": {"labels": untaught}} if controls else {},
    )
    fits = {"kind": Fit("two vectors per layer", 0.1, 0.2)}
    return summarize("IVLP", candidates, labels, fits, images=np.arange(images), counts=(80, 20))


def study(dataset: str, results: list[FittedReplacements]) -> StudyResults:
    """A study of two seeds of IVLP, of which the results are."""
    plain = only_sections(synthetic_results(pictures=1, twins=True), "replacement")
    keys = ("ivlp", "ivlp_seed2")
    return dataclasses.replace(
        plain,
        dataset=dataclasses.replace(plain.dataset, name=dataset),
        replacement=dict(zip(keys, results, strict=False)),
    )


def columns(of: FittedReplacements) -> dict[str, np.ndarray]:
    """By name a number of each image."""
    place = {name: of.ways.index(name) for name in of.ways}
    nats, right, decided = of.outcomes.calibrated.astype(float), of.outcomes.correct.astype(float), of.decisions
    moved = decided[:, place["tuned"]] != decided[:, place["reference"]]
    same = {name: (decided[:, at] == decided[:, place["tuned"]]) & moved for name, at in place.items()}
    return (
        {"moved": moved, "gain": nats[:, place["tuned"]] - nats[:, place["reference"]]}
        | {f"gain {name}": nats[:, at] - nats[:, place["reference"]] for name, at in place.items()}
        | {f"lost {name}": right[:, at] - right[:, place["tuned"]] for name, at in place.items()}
        | {f"same {name}": each for name, each in same.items()}
    )


@pytest.mark.ci
def test_values_over_seeds_and_datasets() -> None:
    strata = [[result(400, 1), result(400, 2, controls=False)], [result(250, 3)]]
    names = ("demo/digits", "demo/fashion")
    studies = [study(name, results) for name, results in zip(names, strata, strict=True)]
    (pooled,) = pool_replacements(studies)
    assert (pooled.name, pooled.method, pooled.teachers, pooled.datasets) == ("IVLP", "ivlp", 3, names)
    numbers = [[columns(each) for each in stratum] for stratum in strata]

    def mean(name: str, which: list = numbers) -> float:
        return float(np.mean([np.mean([each[name].mean() for each in stratum]) for stratum in which]))

    controlled = [[numbers[0][0]], numbers[1]]
    places = {
        "fitted:kind": numbers,
        "mean:kind": numbers,
        "untaught:labels": controlled,
        "retrained:again": controlled,
    }
    for way, (name, which) in zip(pooled.ways, places.items(), strict=True):
        assert way.teachers == (3 if which is numbers else 2)
        assert way.share is not None and way.moved is not None
        assert way.share.value == pytest.approx(mean(f"gain {name}", which) / mean("gain", which))
        assert way.difference.value == pytest.approx(mean(f"lost {name}", which))
        assert way.moved.value == pytest.approx(mean(f"same {name}", which) / mean("moved", which))
    form = pooled.forms["kind"]
    moved, same = mean("moved", controlled), mean("same fitted:kind", controlled)
    for name, less in (("retrained:again", form.beside_retraining), ("untaught:labels", form.beside_untaught)):
        assert less is not None
        assert less.value == pytest.approx((same - mean(f"same {name}", controlled)) / moved)
    share = form.way.share
    assert share is not None and form.way.moved is not None
    assert form.sentence.startswith("IVLP (3 models on 2 datasets) ") and form.sentence.endswith(
        f"two vectors per layer fitted to its predictions: {100 * share.value:.0f} % ({100 * share.low:.0f} to "
        f"{100 * share.high:.0f}) of the gain in calibrated log-likelihood, {100 * form.way.moved.value:.0f} % of the "
        "moved decisions."
    )


def test_intervals_against_resampling_by_hand() -> None:
    """Two datasets; one has two seeds, whose images are the same."""
    strata = [[result(400, 1), result(400, 2)], [result(250, 3)]]
    studies = [study(name, results) for name, results in zip(("demo/digits", "demo/fashion"), strata, strict=True)]
    form = pool_replacements(studies)[0].forms["kind"]
    draw = np.random.default_rng(7)
    resamples = 6000
    names = ("gain", "gain fitted:kind", "lost fitted:kind", "moved", "same fitted:kind", "same retrained:again")
    total = np.zeros((resamples, len(names)))
    for stratum in strata:
        values = [np.stack([columns(each)[name] for name in names], 1).astype(float) for each in stratum]
        n = len(values[0])
        picks = draw.integers(0, n, (resamples, n))
        drawn = np.mean(values, axis=0)[picks].mean(1)
        if len(values) == 2:  # Student's t times the standard error of two numbers, half their difference
            deviation = (values[0].mean(0) - values[1].mean(0)) / 2
            drawn = drawn + stats.t.rvs(1, size=(resamples, 1), random_state=draw) * deviation
        total += drawn / len(strata)
    ratios = {
        "share": total[:, 1] / total[:, 0],
        "difference": total[:, 2],
        "moved": total[:, 4] / total[:, 3],
        "beside": (total[:, 4] - total[:, 5]) / total[:, 3],
    }
    found = {
        "share": form.way.share,
        "difference": form.way.difference,
        "moved": form.way.moved,
        "beside": form.beside_retraining,
    }
    for name, draws in ratios.items():
        number = found[name]
        assert number is not None and number.low is not None and number.high is not None
        low, high = np.quantile(draws, [0.025, 0.975])
        assert (number.low, number.high) == pytest.approx((low, high), abs=0.12 * (high - low)), name
    assert form.not_inferior == (form.way.difference.low > -0.01)


def test_conclusions_and_non_inferiority() -> None:
    """A form that is the tuned model stands for it; without controls only mostly; and its accuracy is not inferior."""
    of = copy.deepcopy(result(800, 1))
    tuned, fitted = of.ways.index("tuned"), of.ways.index("fitted:kind")
    for array in (of.outcomes.correct, of.outcomes.calibrated, of.decisions):
        array[:, fitted] = array[:, tuned]
    form = pool_replacements([study("demo/digits", [of])])[0].forms["kind"]
    assert form.conclusion == "replaces" and form.not_inferior and form.way.difference.value == 0
    assert form.way.difference.low < 0 < form.way.difference.high
    alone = dataclasses.replace(of, retrainings={}, untaught={})
    form = pool_replacements([study("demo/digits", [alone])])[0].forms["kind"]
    assert form.conclusion == "mostly" and form.beside_retraining is None


def test_a_method_without_a_mean_has_none() -> None:
    """As where no block is changed."""
    head = dataclasses.replace(result(400, 1), means={})
    kinds = [way.kind for way in pool_replacements([study("demo/digits", [head])])[0].ways]
    assert kinds == ["fitted", "untaught", "retrained"]
    assert all(isinstance(way, PooledWay) for way in pool_replacements([study("demo/digits", [head])])[0].others)
