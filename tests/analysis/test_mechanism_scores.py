"""Rules and scores of the benchmark of mechanisms: read and counted by hand, and tied to labels and rules by a hash."""

import dataclasses
import re
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pandas as pd
import pytest

from clipbias.analysis.results import Average, VerdictLabels, What, Where
from clipbias.errors import ClipbiasError
from clipbias.intervals import wilson_interval
from tests.report.synthetic import synthetic_results
from tools.mechanisms import labels, score, train
from tools.mechanisms.labels import FAMILIES, FIXED, UNDECIDED, Answer, Spec, counts, digest

SAME, DEPENDS = What.SAME.value, What.DEPENDS.value
ATTENTION, NOT_ATTENTION, NO_GAIN = Where.ATTENTION.value, Where.NOT_ATTENTION.value, Where.NO_GAIN.value


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
    """Copies of a model say no more than one: 50 of each of two families, of which one is all right."""
    answers = pd.DataFrame([row(n, *each) for n, each in enumerate(50 * [("bias", UNDECIDED, SAME)])])
    wrong = pd.DataFrame([row(n, *each) for n, each in enumerate(50 * [("map_8", UNDECIDED, SAME)])])
    rates = score.rates(pd.concat([answers, wrong])).set_index(["axis", "explainer"])
    right = rates.loc[("what", "verdict")]
    assert (right["models"], right["families"], right["right"]) == (100, 2, 50)
    assert (right["right_low"], right["right_high"]) == pytest.approx(wilson_interval(50, 2))
    assert right["right_low"] < 10


def test_no_gain_is_no_answer_about_an_axis():
    """All rules say so at once, and say nothing of where a change acts."""
    answers = pd.DataFrame([row(1, "last_bias", NOT_ATTENTION, SAME), row(2, "qk_both", ATTENTION)])
    answers.loc[1, [f"{name}: where" for name in labels.RULES]] = NO_GAIN
    rates = score.rates(answers).set_index(["axis", "explainer"])
    assert [explainer for axis, explainer in rates.index if axis == "where"] == ["verdict"]
    assert rates.loc[("where", "verdict"), "wrong"] == 50


PAGE = Path(__file__).parents[2] / "docs" / "mechanisms.md"


def test_the_page_has_all_families_with_their_labels():
    text = PAGE.read_text(encoding="utf-8")
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            names, _, *truths = (cell.strip() for cell in line.strip("|").split(" | "))
            found |= {name: tuple(truths) for name in re.findall("`([^`]+)`", names)}
    short = {None: "–", What.SAME: "the same", What.DEPENDS: "depends"}
    expected = {
        name: tuple(short.get(label) or label.value for label in (family.where, family.what))
        for name, family in FAMILIES.items()
    }
    assert found == expected


def test_the_page_says_by_which_rule_its_answers_were_made():
    """By the hashes of file and code; no hash is typed in by hand."""
    text = PAGE.read_text(encoding="utf-8")
    answers = pd.read_csv(PAGE.parent / "images" / "mechanisms.csv", keep_default_na=False)
    (made,) = set(answers["digest"])
    assert score.origin(answers).startswith(f"Made with {'the' if made == digest()[:12] else 'an earlier'} rule")
    assert ("Made with an earlier rule" in text) == (made != digest()[:12])
    assert re.findall(r"\b[0-9a-f]{12,}\b", text) == [made]


def test_models_are_scored_under_the_rules_that_they_were_trained_under(tmp_path, monkeypatch):
    specs = labels.table(["bias", "map_8"])[:3]
    train.choose_model(tmp_path, "demo")
    notes = {"digest": digest(), "validation": {"counts": False}}
    monkeypatch.setattr(score, "notes_of", lambda path: MappingProxyType(notes))
    for spec in specs[:2]:
        path = score.adapter_path(tmp_path, spec)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    answers = score.score(tmp_path, specs)  # studies none that does not count
    assert list(answers["model"]) == [spec.key for spec in specs[:2]] and not answers["counts"].any()
    assert set(answers["layers"]) == {4}
    assert list(answers["truth: what"]) == [SAME, DEPENDS] and set(answers["verdict: what"]) == {""}
    notes["digest"] = "another"
    with pytest.raises(ClipbiasError, match="trained under other labels or rules"):
        score.score(tmp_path, specs)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("labels.py", "0.02", "0.03"),
        ("verdict.py", "MAIN_SHARE", "MOST"),
        ("causal.py", "spread", "scatter"),
        ("planted.py", "SCALE = 10.0", "SCALE = 11.0"),
        ("train.py", "ROUNDS = 6", "ROUNDS = 7"),
    ],
)
def test_the_hash_is_of_rule_labels_and_recipes(tmp_path, name, old, new):
    """Prose and layout keep it."""
    files = [tmp_path / path.name for path in FIXED]
    for path, copy in zip(FIXED, files, strict=True):
        copy.write_text(path.read_text())
    changed = tmp_path / name
    text = changed.read_text()
    (docstring,) = re.findall(r'\A"""(?s:.*?)"""', text)
    changed.write_text(
        text.replace(docstring, '"""Other words."""\n').replace("  # ", "    # other ") + "\n\n# Words.\n"
    )
    assert digest(files) == digest() and changed.read_text() != text
    changed.write_text(text.replace(old, new))
    assert digest(files) != digest()


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
def test_a_model_is_trained_on_the_images_of_its_seed(tmp_path):
    (spec, *_) = labels.table(["map_three_quarters"])
    train.choose_model(tmp_path, "demo")
    few = train.training_images(train.dataset_of(tmp_path, spec), spec)
    assert len(few) == 160
    model = train.train_model(tmp_path, spec, steps=2)
    before = model.task.init(spec.seed)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), model.learnables, before)
    assert not all(jax.tree.leaves(same)) and train.adapter_path(tmp_path, spec).exists()


def test_which_models_count():
    assert counts(FAMILIES["bias"], 1, 0.0, None) and not counts(FAMILIES["bias"], 0, 99.0, None)
    for shuffled in (FAMILIES["bias_shuffled"], FAMILIES["planted_none"]):
        assert counts(shuffled, 0, 0.0, None) and counts(shuffled, -1, 0.0, None) and not counts(shuffled, 1, 0.0, None)
    assert counts(FAMILIES["marked"], 1, 51.0, 50.0) and not counts(FAMILIES["marked"], 1, 49.0, 50.0)


@pytest.mark.parametrize(("order", "expected"), [(0.96, "not attention"), (0.80, "attention"), (0.91, UNDECIDED)])
def test_the_rule_of_patches(order, expected):
    results = synthetic_results()
    for key in ("ivlp", "bias"):
        groups = results.sections["relevancy"][key]
        corrected = dataclasses.replace(groups.corrected, order=Average(np.array([order]), np.array([0.01])))
        results.sections["relevancy"][key] = dataclasses.replace(groups, corrected=corrected)
    assert labels.patch_relevancy(results, "ivlp") == Answer(where=expected)
    assert labels.patch_relevancy(results, "bias") == Answer()  # without prompts


@pytest.mark.parametrize(("factor", "expected"), [(1.04, "not attention"), (1.06, "attention")])
def test_the_rule_of_distance_and_entropy(factor, expected):
    results = synthetic_results()
    attention = results.sections["vision_attention"]
    frozen = attention["zero_shot"].clip
    entropy = dataclasses.replace(frozen.entropy, mean=frozen.entropy.mean * factor)
    scaled = dataclasses.replace(frozen, entropy=entropy)
    attention["ivlp"] = dataclasses.replace(attention["ivlp"], clip=scaled, without_prompt=scaled)
    assert labels.attention_statistics(results, "ivlp") == Answer(where=expected)
    assert labels.attention_statistics(results, "bias") == Answer()


def test_the_verdict_is_the_packages():
    results = synthetic_results()
    for method in results.methods:
        assert labels.verdict(results, method.models[0]) == Answer(method.labels.where.value, method.labels.what.value)
    for said, expected in ((VerdictLabels(Where.NO_GAIN, None), Answer(where=NO_GAIN)), (None, Answer())):
        methods = tuple(dataclasses.replace(method, labels=said) for method in results.methods)
        found = labels.explain(dataclasses.replace(results, methods=methods), "ivlp")
        assert found["verdict"] == expected and (said is None or set(found.values()) == {expected})
