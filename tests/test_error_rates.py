"""The study of the causal test's error rates: its towers do what they say, and wrong claims count as wrong."""

import json

import numpy as np
import pytest
from absl.testing import flagsaver

from tests.documents import ROOT
from tools import error_rates
from tools.error_rates import CARRIER, CONSTANT, judge, make_pool, rates, true_verdicts, truths, wrong
from tools.planted import MECHANISMS

# What each mechanism is at full strength: what carries the gain, and whether two vectors per layer stand for it.
EXPECTED = {
    "attention": ("attention", "stands"),
    "scale": ("scale", "not"),
    "constant": ("values", "stands"),
    "kinds": ("values", "stands"),
    "image": ("values", "not"),
    "both": ("shared", "stands"),
    "none": ("no gain", "no gain"),
}


@pytest.mark.long
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_planted_is_the_truth(mechanism):
    truth = truths(make_pool(mechanism, 1.0, images=1500, seed=5))
    for outcome, gain in (("accuracy", 8.0), ("calibrated", 0.08)):
        effects = truth[outcome]
        assert tuple(true_verdicts(effects, mechanism).values()) == EXPECTED[mechanism], effects
        if mechanism == "none":
            assert abs(effects["gain"]) < gain / 2
        else:
            assert effects["gain"] > gain
        assert sum(effects[name] for name in error_rates.EFFECTS) == pytest.approx(effects["gain"])


TRUTH = {"gain": 10.0, "attention": 1.0, "scale": 0.0, "values": 9.0, "kept": 8.0, "lost": 9.8}


@pytest.mark.parametrize(
    ("kind", "verdict", "expected"),
    [
        (CARRIER, "values", False),
        (CARRIER, "attention", True),
        (CARRIER, "shared", True),
        (CARRIER, "undecided", False),
        (CONSTANT, "stands", True),
        (CONSTANT, "most", False),
        (CONSTANT, "not", True),
        (CONSTANT, "no gain", False),
    ],
)
def test_what_is_not_so_counts_as_wrong(kind, verdict, expected):
    assert wrong(kind, verdict, TRUTH, "constant") is expected
    assert wrong(kind, verdict, TRUTH, "none") is (verdict not in ("undecided", "no gain"))


@pytest.mark.long
def test_rates_are_judged_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(error_rates, "MECHANISMS", ("constant", "none"))
    monkeypatch.setattr(error_rates, "STRENGTHS", (1.0,))
    monkeypatch.setattr(error_rates, "STUDIES", 150)
    monkeypatch.setattr(error_rates, "POOL", 10_000)
    with flagsaver.flagsaver(rates=str(tmp_path / "rates"), quick=True):
        error_rates.main([])
    report = json.loads((tmp_path / "rates.json").read_text())
    assert report["studies"] == 3 and report["pool"] == 1000 and (tmp_path / "rates.png").stat().st_size > 5000
    first, second = report["records"]
    assert first["outcomes"]["accuracy"][CARRIER]["right"] == 1 and first["strength"] == 1
    assert second["outcomes"]["calibrated"][CARRIER]["truth"] == "no gain"
    assert not any("wrong" in line for line in report["broken"])


def test_every_limit_is_judged():
    rate = {"truth": "values", "said": {}, "right": 0.79, "wrong": 0.06}
    outcome = {
        "truth": TRUTH,
        CARRIER: rate,
        CONSTANT: rate | {"wrong": 0.05, "right": 0.8},
        "coverage": {"gain": 0.98},
    }
    record = {"mechanism": "constant", "strength": 1.0, "outcomes": {"calibrated": outcome}}
    assert len(judge([record])) == 3
    assert len(judge([record | {"strength": 0.3}])) == 2  # power counts at the named strength
    rare = record | {"outcomes": {"accuracy": outcome | {"rare": ["gain"]}}}
    assert len(judge([rare])) == 2
    low = record | {"outcomes": {"accuracy": outcome | {"rare": ["gain"], "coverage": {"gain": 0.92}}}}
    assert len(judge([low])) == 3


def test_the_docs_say_what_was_measured():
    facts = json.loads((ROOT / "docs/images/error_rates.json").read_text())
    assert (facts["studies"], facts["images"], facts["pool"]) == (2000, 560, 20_000)
    assert facts["broken"] == judge(facts["records"])
    text = " ".join((ROOT / "docs/report.md").read_text().split())
    assert error_rates.summary(facts["records"]) in text
    # By hand: the greatest of all wrong rates, and how many limits of intervals are broken.
    worst = max(
        outcome[kind]["wrong"]
        for r in facts["records"]
        for outcome in r["outcomes"].values()
        for kind in (CARRIER, CONSTANT)
    )
    assert f"At most {100 * worst:.1f} % of the verdicts" in text and worst <= 0.05
    (near,) = (r["outcomes"]["accuracy"] for r in facts["records"] if (r["mechanism"], r["strength"]) == ("both", 0.6))
    assert "as for both at strength 0.6, most studies claim less than they could, and nothing wrong" in text
    assert all(near[kind]["right"] < 0.5 and near[kind]["wrong"] == 0 for kind in (CARRIER, CONSTANT))
    intervals = sum(len(outcome["coverage"]) for r in facts["records"] for outcome in r["outcomes"].values())
    broken = sum("of the intervals of" in line for line in facts["broken"])
    assert f"{intervals - broken} of {intervals} intervals keep their limits" in text


@pytest.mark.long
def test_a_broken_interval_is_found(monkeypatch):
    """Intervals of half the width cover less, and more of the verdicts are wrong where nothing is gained."""
    from clipbias.explain import uncertainty

    def covered():
        measured = rates("none", 1.0, studies=5, images=1000, seed=4)["accuracy"]
        return np.mean([measured["coverage"][name] for name in ("gain", "attention", "kept", "lost")])

    before = covered()
    monkeypatch.setattr(uncertainty, "LEVEL", 0.3)
    assert before > 0.85 > 0.7 > covered()
