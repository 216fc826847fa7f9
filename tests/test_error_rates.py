"""The study of the causal test's error rates: its towers do what they say, and wrong claims count as wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

from clipbias.constants import ZERO_SHOT
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.factorial import mix_texts
from clipbias.explain.uncertainty import shapley
from clipbias.tuning import Task
from tests.documents import ROOT
from tools import error_rates, planted_pool
from tools.error_rates import (
    CONSTANT,
    MEAN,
    SOURCE,
    TOKENS_ALONE,
    Size,
    judge,
    measure_pool,
    rates,
    run,
    true_verdicts,
    truths,
    wrong,
)
from tools.planted import CONFIG, DEPTH, MECHANISMS, METHOD, NAMES, PROMPT, PROMPTS, pictures, planted, prompts_of
from tools.planted_pool import CORNERS, classify, make_pool

# What each mechanism is at full strength: what the gain comes through, what the mean has of all that is added, and
# whether tokens alone have more than half of the gain, and the mean of what is added.
NEXT_TO_NOTHING = "more than half or no gain"
EXPECTED = {
    "attention": ("attention", NEXT_TO_NOTHING, "not shown", "not shown"),
    "scale": ("tokens", NEXT_TO_NOTHING, "shown", "not shown"),
    "constant": ("tokens", "more than half", "shown", "shown"),
    "kinds": ("tokens", "more than half", "shown", "shown"),
    "image": ("tokens", "less than half", "shown", "not shown"),
    "both": ("together", "more than half", "not shown", "shown"),
    "together": ("tokens", "more than half", "shown", "shown"),
    "none": ("no gain", NEXT_TO_NOTHING, "not shown", "not shown"),
}


@pytest.mark.long
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_planted_is_the_truth(mechanism):
    pool = make_pool(mechanism, 1.0, trainings=3, images=1500, seed=5)
    truth = truths(measure_pool(pool))
    assert np.ptp(pool[0][:, :, 7], axis=0).max() > 1e-4 and not np.ptp(pool[0][:, :, 0], axis=0).any()
    for outcome, gain in (("accuracy", 8.0), ("calibrated", 0.08)):
        effects = truth[outcome]
        source, mean, *confirmed = (" or ".join(words) for words in true_verdicts(effects, mechanism).values())
        assert (source, *confirmed) == (EXPECTED[mechanism][0], *EXPECTED[mechanism][2:]), effects
        if mechanism in error_rates.ADDS_NOTHING:  # of which the mean has one share or another
            assert abs(effects["all added"]) < 0.1 * gain and "no gain" in mean
        else:
            assert mean == EXPECTED[mechanism][1], effects
        if mechanism == "none":
            assert abs(effects["gain"]) < gain / 2
        else:
            assert effects["gain"] > gain
        assert sum(effects[name] for name in error_rates.EFFECTS) == pytest.approx(effects["gain"])
        if mechanism == "together":
            assert effects["scale × values"] > 0.4 * effects["gain"]  # an interaction as large as what is explained


# What each mechanism does in texts at full strength: by effect, what it adds to the number that EOS reads, the mean of
# both classes, and to half the distance of the classes. All else is random and small.
IN_TEXTS = {
    "attention": ({"attention": 0.38}, {"attention": 0.25}),
    "scale": ({"scale": 0.8}, {}),
    "constant": ({"values": 0.12}, {}),
    "kinds": ({"values": 0.12}, {}),
    "image": ({}, {"values": 0.45}),
    "both": ({"attention": 0.38, "values": 0.12}, {"attention": 0.25}),
    "together": ({"values": 0.12}, {"scale": -0.55}),
    "none": ({}, {}),
}


@pytest.fixture(scope="module")
def mixed_texts():
    return jax.jit(lambda params, *runs: mix_texts(params, CONFIG, *runs, CORNERS).streams)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_texts_do_what_is_planted(mechanism, mixed_texts):
    task = Task(planted(mechanism, 1.0, seed=1), METHOD, NAMES)
    tuned = METHOD.adapt(prompts_of(3))
    features = mixed_texts(task.clip.params, task.tokens, tuned, reference_adaptation(task, task.init()))
    constant, read = np.moveaxis(np.asarray(features), -1, 0)
    np.testing.assert_allclose(constant, 1, atol=0.01)
    for numbers, expected in zip((read.mean(1), (read[:, 0] - read[:, 1]) / 2), IN_TEXTS[mechanism], strict=True):
        for effect, value in zip(error_rates.EFFECTS, shapley(numbers[None])[0], strict=True):
            assert value == pytest.approx(expected.get(effect, 0), abs=0.08), effect


@pytest.mark.ci
def test_both_towers_have_the_same_corner():
    """The first and the last are the frozen and the tuned model; those between differ from one tower's alone."""
    task = Task(planted("attention", 1.0, seed=1), METHOD, NAMES)
    learnables = prompts_of(3)
    pixels = pictures("attention", 40, seed=2)[0]
    logits = np.moveaxis(classify(task, learnables, jnp.asarray(pixels), pixels), 1, 0)
    frozen = Task(task.clip, ZERO_SHOT, NAMES)
    plain, tuned = jax.jit(lambda p, x: (frozen.logits(p, {}, x), task.logits(p, learnables, x)))(
        task.clip.params, pixels
    )
    np.testing.assert_allclose(logits[0], plain, atol=1e-3)
    np.testing.assert_allclose(logits[7], tuned, atol=1e-3)
    by_name = dict(zip(planted_pool.FORMS, logits, strict=True))
    assert np.abs(by_name["PRR"] - tuned).max() < 0.5 < np.abs(by_name["RPP"] - tuned).max()
    # While what is added to images varies, texts are as tuned.
    assert np.abs(by_name["nothing"] - tuned).max() < 0.5 and np.abs(by_name["mean"] - tuned).max() < 0.5


def test_every_layer_has_prompts_and_every_seed_others():
    of_seeds = [prompts_of(seed) for seed in range(200)]
    vision = np.stack([each["vision_prompts"] for each in of_seeds])
    text = np.stack([np.concatenate([each["text_context"][None], each["text_prompts"]]) for each in of_seeds])
    sizes = []
    for prompts in (vision, text):
        assert prompts.shape[1:3] == (DEPTH, PROMPTS)
        size = prompts[..., PROMPT]
        assert size.mean() == pytest.approx(1, abs=0.02) and size.std() == pytest.approx(0.1, abs=0.02)
        np.testing.assert_array_equal(size, size[:, :1, :1] + np.zeros_like(size))  # the same in every layer
        sizes.append(size[:, 0, 0])
    assert abs(np.corrcoef(sizes)[0, 1]) < 0.2  # each tower by itself
    np.testing.assert_array_equal(prompts_of(3)["vision_prompts"], vision[3])


@pytest.fixture
def pool(monkeypatch):
    """Random logits of two trainings that differ by much, in place of towers."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 300)
    logits = draw.normal(size=(2, 300, len(error_rates.FORMS), 2))
    logits[:, np.arange(300), :, labels] += np.arange(len(error_rates.FORMS))[:, None, None].T / 8
    logits[1, np.arange(300), 7, labels] += 2
    monkeypatch.setattr(error_rates, "make_pool", lambda *place, **size: (logits, labels))
    monkeypatch.setattr(error_rates, "IMAGES", 60)
    monkeypatch.setattr(error_rates, "RESAMPLES", 100)
    return logits, labels


def test_studies_draw_five_trainings_and_truths_are_means_over_all(pool, monkeypatch):
    logits, labels = pool
    crossed = []
    over_seeds = error_rates.over_seeds

    def remember(measured, *, seed):
        crossed.append((len(measured), seed))
        return over_seeds(measured, seed=seed)

    monkeypatch.setattr(error_rates, "over_seeds", remember)
    right = 100.0 * (logits.argmax(-1) == labels[:, None])
    gains = (right[..., 7] - right[..., 0]).mean(1)
    measured = rates("constant", 1.0, Size(studies=2, trainings=2, images=300), seed=0)["accuracy"]
    assert crossed == [(5, 0), (5, 1)]
    assert measured["truth"]["gain"] == pytest.approx(gains.mean())
    above = (right[..., 3] - right[..., 0]).mean() - gains.mean() / 2
    assert measured["truth"][TOKENS_ALONE] == pytest.approx(above)
    above = (right[..., 9] - right[..., 8]).mean() - gains.mean() / 2
    assert measured["truth"][CONSTANT] == pytest.approx(above)
    # By hand: the trainings' own variance, less what 300 images add to it, over all of the variance of a study's mean.
    each = right[..., 7] - right[..., 0]
    rest = ((each - each.mean(1, keepdims=True) - each.mean(0) + each.mean()) ** 2).sum() / 299
    seeds = gains.var(ddof=1) - rest / 300
    images = max(0.0, each.mean(0).var(ddof=1) - rest / 2)
    total = images / 60 + seeds / 5 + rest / 300
    assert measured["seed_share"] == pytest.approx(seeds / 5 / total)


TRUTH = {
    "tokens alone": 1.0,
    "constant": -1.0,
    "gain": 10.0,
    "attention alone": 1.0,
    "tokens, attention frozen": 9.0,
    "mean added": 2.0,
    "all added": 8.0,
}


@pytest.mark.parametrize(
    ("kind", "verdict", "expected"),
    [
        (SOURCE, "tokens", False),
        (SOURCE, "attention", True),
        (SOURCE, "either", True),
        (SOURCE, "together", True),
        (SOURCE, "undecided", False),
        (MEAN, "more than half", True),
        (MEAN, "less than half", False),
        (MEAN, "no gain", False),
        (TOKENS_ALONE, "shown", False),
        (TOKENS_ALONE, "not shown", False),
        (CONSTANT, "shown", True),
    ],
)
def test_what_is_not_so_counts_as_wrong(kind, verdict, expected):
    assert wrong(kind, verdict, TRUTH, "constant") is expected
    claims = kind != MEAN and verdict not in ("undecided", "no gain", "not shown")
    assert wrong(kind, verdict, TRUTH, "none") is (claims or (kind == MEAN and expected))
    assert wrong(TOKENS_ALONE, "shown", TRUTH | {TOKENS_ALONE: 0.0}, "constant")


@pytest.mark.parametrize(
    ("attention", "tokens", "source"), [(9, 1, "attention"), (1, 9, "tokens"), (6, 7, "either"), (4, 4, "together")]
)
def test_true_verdicts_are_those_of_shares(attention, tokens, source):
    truth = TRUTH | {"attention alone": attention, "tokens, attention frozen": tokens}
    assert true_verdicts(truth, "constant")[SOURCE] == (source,)

    for claim in ("attention", "tokens", "either", "together"):
        is_so = claim == source or (source == "either" and claim in ("attention", "tokens"))
        assert wrong(SOURCE, claim, truth, "constant") is not is_so, claim
        assert wrong(SOURCE, claim, truth | {"gain": -10.0}, "constant")
    loss = TRUTH | {"gain": -1.0}
    assert true_verdicts(loss, "constant")[TOKENS_ALONE] == ("not shown",)
    assert wrong(TOKENS_ALONE, "shown", loss, "constant")
    for mean, everything, expected in ((5, 8, "more than half"), (3, 8, "less than half"), (3, -1, "no gain")):
        truth = TRUTH | {"mean added": mean, "all added": everything}
        assert true_verdicts(truth, "constant")[MEAN] == (expected,)
        assert set(true_verdicts(truth, "scale")[MEAN]) == {expected, "no gain"}


def test_an_interrupted_program_goes_on_where_it_stopped(tmp_path, monkeypatch):
    made = []

    def remember(mechanism, strength, size, *, seed):
        made.append((mechanism, seed))
        if mechanism == "none" and len(made) < 3:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(error_rates, "MECHANISMS", ("constant", "none"))
    monkeypatch.setattr(error_rates, "STRENGTHS", (1.0,))
    monkeypatch.setattr(error_rates, "rates", remember)
    monkeypatch.setattr(error_rates, "_line", str)
    size = Size(studies=3, trainings=2, images=600)
    with pytest.raises(KeyboardInterrupt):
        run(size, tmp_path / "records", seed=1)
    with (tmp_path / "records").open("a") as file:
        file.write('{"design": {"stu')  # cut off
    records = run(size, tmp_path / "records", seed=1)
    assert made == [("constant", 1), ("none", 101), ("none", 101)]
    assert [(each["mechanism"], each["strength"]) for each in records] == [("constant", 1.0), ("none", 1.0)]
    run(Size(studies=4, trainings=2, images=600), tmp_path / "records", seed=1)  # another design has its own
    assert len(made) == 5


@pytest.mark.long
def test_rates_are_judged_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(error_rates, "MECHANISMS", ("constant", "none"))
    monkeypatch.setattr(error_rates, "STRENGTHS", (1.0,))
    monkeypatch.setattr(error_rates, "QUICK", Size(studies=3, trainings=2, images=600))
    with flagsaver.flagsaver(rates=str(tmp_path / "rates"), quick=True):
        error_rates.main([])
    report = json.loads((tmp_path / "rates.json").read_text())
    assert (report["studies"], report["trainings"], report["pool"], report["seeds"]) == (3, 2, 600, 5)
    assert (tmp_path / "rates.png").stat().st_size > 5000
    assert not (tmp_path / "rates.unfinished.jsonl").exists()
    first, second = report["records"]
    assert first["outcomes"]["accuracy"]["verdicts"][SOURCE]["right"] == 1 and first["strength"] == 1
    assert first["outcomes"]["calibrated"]["verdicts"][TOKENS_ALONE]["truth"] == "shown"
    assert second["outcomes"]["calibrated"]["verdicts"][SOURCE]["truth"] == "no gain"
    assert second["outcomes"]["calibrated"]["verdicts"][MEAN]["truth"].endswith("no gain")
    assert not any("wrong" in line for line in report["broken"]), report["broken"]


def test_every_limit_is_judged():
    rate = {"truth": "tokens", "said": {}, "right": 0.79, "wrong": 0.06}
    outcome = {
        "truth": TRUTH,
        "verdicts": {SOURCE: rate, MEAN: rate | {"wrong": 0.05, "right": 0.8}},
        "coverage": {"gain": 0.92, "scale": 0.93},
    }
    record = {"mechanism": "constant", "strength": 1.0, "outcomes": {"calibrated": outcome}}
    assert len(judge([record])) == 3
    assert len(judge([record | {"strength": 0.3}])) == 2  # power counts at the named strength


def test_the_docs_say_what_was_measured():
    facts = json.loads((ROOT / "docs/images/error_rates.json").read_text())
    assert (facts["studies"], facts["seeds"], facts["images"]) == (360, 5, 560)
    assert facts["broken"] == judge(facts["records"])
    text = " ".join((ROOT / "docs/report.md").read_text().split())
    assert error_rates.summary(facts["records"], facts["studies"]) in text
    assert "The standard error of a rate is 1.1 points at 5 % and 2.1 at 80 %." in text  # √(p (1 − p) / 360)
    outcomes = {(r["mechanism"], r["strength"], name): o for r in facts["records"] for name, o in r["outcomes"].items()}
    # By hand: the greatest of all wrong rates, and how many limits of intervals are broken.
    worst = max(rate["wrong"] for outcome in outcomes.values() for rate in outcome["verdicts"].values())
    assert f"At most {100 * worst:.1f} % of the verdicts" in text and worst <= 0.05
    full = [outcome["verdicts"] for (_, strength, _), outcome in outcomes.items() if strength == 1]
    assert all(rate["right"] == 1 for each in full for kind, rate in each.items() if kind in (TOKENS_ALONE, CONSTANT))
    least = min(rate["right"] for each in full for rate in each.values())
    assert f"At full strength at least {100 * least:.0f} % are right." in text and least >= 0.8
    nothing = [
        outcomes["kinds", 0.6, name]["verdicts"][SOURCE]["said"]["no gain"] for name in ("accuracy", "calibrated")
    ]
    assert f"at least {100 * min(nothing) / 360:.0f} % of the studies say so" in text
    intervals = sum(len(outcome["coverage"]) for r in facts["records"] for outcome in r["outcomes"].values())
    broken = sum("of the intervals of" in line for line in facts["broken"])
    assert f"{intervals - broken} of {intervals} intervals keep their limit" in text


@pytest.mark.long
def test_a_broken_interval_is_found(monkeypatch):
    """Intervals of half the width cover less, and more of the verdicts are wrong where nothing is gained."""
    from clipbias.explain import uncertainty

    def covered():
        measured = rates("none", 1.0, Size(studies=5, trainings=3, images=1000), seed=4)["accuracy"]
        return np.mean([measured["coverage"][name] for name in ("gain", "attention", "all added")])

    before = covered()
    monkeypatch.setattr(uncertainty, "LEVEL", 0.3)
    assert before > 0.85 > 0.7 > covered()
