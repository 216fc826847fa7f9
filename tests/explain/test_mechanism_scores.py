"""Scores of the benchmark of mechanisms: counted by hand, and tied to labels and rules by a hash."""

import shutil
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pandas as pd
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain import verdict
from clipbias.explain.results import What, Where
from clipbias.explain.study import StudyOptions
from tools.mechanisms import labels, score, train
from tools.mechanisms.labels import UNDECIDED, Answer, Spec, digest

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


@pytest.mark.parametrize(("name", "word"), [("labels.py", "0.02"), ("labels.py", "SAME_ORDER"), ("verdict.py", "HALF")])
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
