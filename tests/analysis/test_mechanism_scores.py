"""Rules and scores of the benchmark of mechanisms: read and counted by hand, and tied to labels and rules by a hash."""

import dataclasses
import shutil
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pandas as pd
import pytest

from clipbias.analysis import verdict
from clipbias.analysis.replacement import Origin
from clipbias.analysis.results import Average, VerdictLabels, What, Where
from clipbias.analysis.study import StudyOptions
from clipbias.errors import ClipbiasError
from clipbias.intervals import Estimate
from tests.report.synthetic import synthetic_results
from tools.mechanisms import labels, score, train
from tools.mechanisms.labels import FAMILIES, UNDECIDED, Answer, Spec, counts, digest

SAME, DEPENDS = What.SAME.value, What.DEPENDS.value
ATTENTION, NOT_ATTENTION, NO_GAIN = Where.ATTENTION.value, Where.NOT_ATTENTION.value, Where.NO_GAIN.value
FITTED = "fitted constant: share"


def row(number, family, where="", what=""):
    """A model that counts if it has answers; all explainers but the verdict say nothing of *where*."""
    spec = Spec(family, "demo/digits", outliers=False, seed=number)
    said = {name: Answer(where if name == "verdict" else UNDECIDED, what) for name in labels.RULES}
    return score.row(spec, 4, bool(where), said if where else {})


def by_hand():
    answers = [
        ("bias", UNDECIDED, SAME),
        ("bias", UNDECIDED, SAME),
        ("last_bias", NOT_ATTENTION, DEPENDS),
        ("map_8", UNDECIDED, DEPENDS),
        ("map_8", UNDECIDED, UNDECIDED),
        ("map_8",),  # does not count
        ("last_mlp", ATTENTION, SAME),  # has no label what
        ("bias_shuffled", NO_GAIN, UNDECIDED),
        ("qk_shuffled", UNDECIDED, UNDECIDED),
    ]
    return pd.DataFrame([row(number, *answer) for number, answer in enumerate(answers)])


def test_scores_are_those_counted_by_hand(tmp_path):
    answers = by_hand()
    rates = score.rates(answers).set_index(["axis", "explainer"])
    assert list(rates.index) == [
        ("where", "verdict"),
        *(("what", name) for name in labels.RULES if name not in score.PAPER),
        (NO_GAIN, "verdict"),
    ]
    of_what = rates.loc[("what", "verdict")]
    assert of_what["models"] == 5
    assert of_what[["right", "wrong", "undecided"]].tolist() == pytest.approx([60, 20, 20])
    of_where = rates.loc[("where", "verdict")]
    assert of_where["models"] == 2 and of_where[["right", "wrong"]].tolist() == pytest.approx([50, 50])
    none = rates.loc[(NO_GAIN, "verdict")]
    assert none["models"] == 2 and none[["right", "wrong"]].tolist() == pytest.approx([50, 50])
    answers.to_csv(tmp_path / "answers.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "answers.csv", keep_default_na=False), answers)


def test_intervals_are_over_families():
    """Copies of a model say no more than one: of two families, one all right, the interval is everything."""
    answers = pd.DataFrame([row(n, *each) for n, each in enumerate(50 * [("bias", UNDECIDED, SAME)])])
    wrong = pd.DataFrame([row(n, *each) for n, each in enumerate(50 * [("map_8", UNDECIDED, SAME)])])
    rates = score.rates(pd.concat([answers, wrong])).set_index(["axis", "explainer"])
    right = rates.loc[("what", "verdict")]
    assert (right["right"], right["right_low"], right["right_high"]) == (50, 0, 100)


def test_models_are_scored_under_the_rules_that_they_were_trained_under(tmp_path, monkeypatch):
    specs = labels.table(["bias", "map_8"])[:3]
    train.choose_model(tmp_path, "demo")
    notes = {"digest": digest(), "validation": {"counts": False}}
    monkeypatch.setattr(score, "notes_of", lambda path: MappingProxyType(notes))
    for spec in specs[:2]:
        path = score.adapter_path(tmp_path, spec)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    answers = score.score(tmp_path, specs, StudyOptions())  # studies none that does not count
    assert list(answers["model"]) == [spec.key for spec in specs[:2]] and not answers["counts"].any()
    assert set(answers["layers"]) == {4}
    assert list(answers["truth: what"]) == [SAME, DEPENDS] and set(answers["verdict: what"]) == {""}
    notes["digest"] = "another"
    with pytest.raises(ClipbiasError, match="trained under other labels or rules"):
        score.score(tmp_path, specs, StudyOptions())


@pytest.mark.parametrize(
    ("name", "word"), [("labels.py", "0.02"), ("labels.py", "SAME_ORDER"), ("verdict.py", "MAIN_SHARE")]
)
def test_the_hash_is_of_labels_and_rules(tmp_path, name, word):
    for path in (Path(labels.__file__), Path(verdict.__file__)):
        shutil.copy(path, tmp_path)
    files = tmp_path / "labels.py", tmp_path / "verdict.py"
    assert digest(*files) == digest()
    (tmp_path / name).write_text((tmp_path / name).read_text().replace(word, "MOST"))
    assert digest(*files) != digest() and np.isscalar(digest())


def test_a_work_folder_has_one_frozen_model(tmp_path, clip):
    clip.save(tmp_path / "other", exact=True)
    for _ in range(2):
        train.choose_model(tmp_path / "work", str(tmp_path / "other"))
    (spec,) = labels.table(["last_mlp"])[:1]
    stored = train.frozen_model(tmp_path / "work", spec)
    jax.tree.map(np.testing.assert_array_equal, stored.params, clip.params)
    with pytest.raises(ClipbiasError, match="another frozen one than demo; give another --workdir"):
        train.choose_model(tmp_path / "work", "demo")


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::UserWarning")  # two steps gain nothing
@pytest.mark.parametrize("family", ["map_8", "query_bias", "bias_by_position"])
def test_a_model_is_trained_on_the_images_of_its_seed(tmp_path, family):
    (spec, *_) = labels.table([family])
    train.choose_model(tmp_path, "demo")
    few = train.training_images(train.dataset_of(tmp_path, spec), spec)
    assert len(few) == 160
    model = train.train_model(tmp_path, spec, steps=2)
    before = model.task.init(spec.seed)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), model.learnables, before)
    assert not all(jax.tree.leaves(same)) and train.adapter_path(tmp_path, spec).exists()


def number(low, high):
    return Estimate((low + high) / 2, low, high)


def changed(value, path, new):
    """A tree of dataclasses and dictionaries with one value replaced."""
    if path and path[0] in getattr(value, "sections", ()):
        path = ["sections", *path]
    if not path:
        return new
    name, *rest = path
    if isinstance(value, dict):
        return {**value, name: changed(value[name], rest, new)}
    return dataclasses.replace(value, **{name: changed(getattr(value, name), rest, new)})


@pytest.mark.parametrize(("order", "expected"), [(0.96, "not attention"), (0.80, "attention"), (0.91, UNDECIDED)])
def test_the_rule_of_patches(order, expected):
    results = synthetic_results()
    for key in ("ivlp", "bias"):
        average = Average(np.array([order]), np.array([0.01]))
        results = changed(results, ["relevancy", key, "corrected", "order"], average)
    assert labels.patch_relevancy(results, "ivlp") == Answer(where=expected)
    assert labels.patch_relevancy(results, "bias") == Answer()  # without prompts


@pytest.mark.parametrize(("factor", "expected"), [(1.04, "not attention"), (1.06, "attention")])
def test_the_rule_of_distance_and_entropy(factor, expected):
    results = synthetic_results()
    frozen = results.sections["vision_attention"]["zero_shot"].clip
    scaled = changed(frozen, ["entropy", "mean"], frozen.entropy.mean * factor)
    for name in ("clip", "without_prompt"):
        results = changed(results, ["vision_attention", "ivlp", name], scaled)
    assert labels.attention_statistics(results, "ivlp") == Answer(where=expected)
    assert labels.attention_statistics(results, "bias") == Answer()


def test_the_verdict_is_the_packages():
    results = synthetic_results()
    for method in results.methods:
        assert labels.verdict(results, method.models[0]) == Answer(method.labels.where.value, method.labels.what.value)
    none = tuple(dataclasses.replace(method, labels=VerdictLabels(Where.NO_GAIN, None)) for method in results.methods)
    none = dataclasses.replace(results, methods=none)
    assert labels.gains(results, "ivlp") and not labels.gains(none, "ivlp")
    assert set(labels.explain(none, "ivlp").values()) == {Answer(where="no gain")}
    few = dataclasses.replace(
        results, methods=tuple(dataclasses.replace(method, labels=None) for method in results.methods)
    )
    assert labels.verdict(few, "ivlp") == Answer()


def with_forms(results, shares, less):
    """With these ends of both forms' shares of the gain, and of their agreement less the ceiling's."""
    (method,) = results.sections["replacement"].methods
    (any_form,) = (row for row in method.rows if row.student.kind is Origin.FITTED)
    forms = []
    for form, of_share, of_less in zip(labels.FORMS, shares, less, strict=True):
        row = changed(any_form, ["gain", "log_likelihood", "share"], number(*of_share))
        row = changed(row, ["student", "form"], form)
        forms.append(dataclasses.replace(row, less_ceiling=number(*of_less) if of_less else None))
    return changed(results, ["replacement", "methods"], (dataclasses.replace(method, rows=tuple(forms)),))


@pytest.mark.parametrize(
    ("shares", "less", "of_share", "expected"),
    [
        (((0.4, 0.9), (0.6, 0.9)), ((-0.2, 0.1), (-0.04, 0.1)), What.SAME.value, What.SAME.value),
        (((0.6, 0.9), (0.6, 0.9)), ((-0.3, -0.1), (-0.3, -0.06)), What.SAME.value, What.DEPENDS.value),
        (((0.6, 0.9), (0.6, 0.9)), ((-0.3, -0.1), (-0.3, -0.04)), What.SAME.value, UNDECIDED),
        (((0.6, 0.9), (0.6, 0.9)), ((), ()), What.SAME.value, UNDECIDED),  # nothing to compare with
        (((0.1, 0.4), (0.1, 0.4)), ((-0.1, 0.1), (-0.1, 0.1)), What.DEPENDS.value, What.DEPENDS.value),
        (((0.1, 0.4), (0.4, 0.6)), ((-0.1, 0.1), (-0.1, 0.1)), UNDECIDED, UNDECIDED),
    ],
)
def test_the_rules_of_fitted_constants(shares, less, of_share, expected):
    results = with_forms(synthetic_results(), shares, less)
    share, ceiling = (labels.RULES[f"fitted constant: {name}"] for name in ("share", "against the ceiling"))
    assert share(results, "ivlp") == Answer(what=of_share)
    assert ceiling(results, "ivlp") == Answer(what=expected)
    assert share(changed(results, ["replacement"], None), "ivlp") == Answer()
    assert ceiling(changed(results, ["replacement"], None), "ivlp") == Answer()


def test_which_models_count():
    assert counts(FAMILIES["bias"], 1, 0.0, None) and not counts(FAMILIES["bias"], 0, 99.0, None)
    for shuffled in (FAMILIES["bias_shuffled"], FAMILIES["planted_none"]):
        assert counts(shuffled, 0, 0.0, None) and counts(shuffled, -1, 0.0, None) and not counts(shuffled, 1, 0.0, None)
    assert counts(FAMILIES["marked"], 1, 51.0, 50.0) and not counts(FAMILIES["marked"], 1, 49.0, 50.0)


def test_the_table_has_all_labels_of_both_axes():
    specs = labels.table()
    trained = sum(family.mechanism is None for family in FAMILIES.values())
    assert len(specs) == len({spec.key for spec in specs}) == 8 * trained + 4 * (len(FAMILIES) - trained)
    assert {family.where for family in FAMILIES.values()} == {None, *Where} - {Where.UNDECIDED}
    assert {family.what for family in FAMILIES.values()} == {None, *What} - {What.UNDECIDED}
    assert all(family.where or family.what for family in FAMILIES.values())
