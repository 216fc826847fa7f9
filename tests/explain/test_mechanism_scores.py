"""Scores of the benchmark of mechanisms: counted by hand, drawn, and tied to labels and rules by a hash."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.options import StudyOptions
from tests.documents import ROOT
from tools import make_demo_tables
from tools.mechanisms import models, picture, rules, score, train
from tools.mechanisms.models import BOTH, CONSTANT, IMAGE, NO_GAIN, Spec, digest
from tools.mechanisms.rules import UNDECIDED, Answer
from tools.mechanisms.score import confusion

FOLDER = Path(models.__file__).parent
SILENT = "optimal ablation"


def row(number, family, where="", what=""):
    """A model that counts if it has answers; one explainer says nothing but "no gain"."""
    spec = Spec(family, "demo/digits", outliers=False, seed=number)
    said = dict.fromkeys(rules.RULES, Answer(where, what))
    if NO_GAIN not in (where, what):
        said[SILENT] = Answer()
    return score.row(spec, 4, bool(where), said if where else {})


def by_hand():
    answers = [
        ("bias", UNDECIDED, CONSTANT),
        ("bias_by_kind", UNDECIDED, CONSTANT),
        ("last_bias", "no attention", IMAGE),
        ("map_8", UNDECIDED, IMAGE),
        ("map_8", UNDECIDED, UNDECIDED),
        ("map_8",),  # does not count
        ("qk_both", "attention", CONSTANT),  # has no label on this axis
        ("bias_shuffled", NO_GAIN, NO_GAIN),
    ]
    return pd.DataFrame([row(number, *answer) for number, answer in enumerate(answers)])


def test_scores_are_those_counted_by_hand(tmp_path):
    explainer = next(iter(rules.RULES))
    answers = by_hand()
    what = confusion(answers, explainer, "what")
    assert what.models == 6 and what.counts[CONSTANT] == {CONSTANT: 2, IMAGE: 1, BOTH: 0, NO_GAIN: 0, UNDECIDED: 0}
    assert what.counts[IMAGE] == {CONSTANT: 0, IMAGE: 1, BOTH: 0, NO_GAIN: 0, UNDECIDED: 1}
    # Wilson's interval of 4 of 6, from its formula with z = 1.96.
    assert what.right == pytest.approx((66.67, 30.0, 90.3), abs=0.1)
    assert what.wrong[0] == what.undecided[0] == pytest.approx(100 / 6)
    where = confusion(answers, explainer, "where")
    assert where.models == 3 and where.right[0] == 100
    answers.to_csv(tmp_path / "answers.csv", index=False)
    pd.testing.assert_frame_equal(score.read_answers(tmp_path / "answers.csv"), answers)


def test_the_picture_has_the_counts_and_leaves_out_who_never_answers():
    answers = by_hand()
    others = [name for name in rules.RULES if name != SILENT]
    rates = score.rates(answers).set_index(["axis", "explainer"])
    assert list(rates.index) == [(axis, name) for axis in models.LABELS for name in others]
    for axis, models_of, right, wrong in (("where", 3, 300, 0), ("what", 6, 400, 100)):
        for name in others:
            rate = rates.loc[(axis, name)]
            assert rate["models"] == models_of
            assert (rate["right"], rate["wrong"]) == pytest.approx((right / models_of, wrong / models_of))
    assert tuple(rates.loc[("what", others[0]), ["right_low", "right_high"]]) == pytest.approx((30.0, 90.3), abs=0.1)
    figure = picture.draw(answers)
    panel = figure.axes[len(others)]
    assert panel.get_title() == f"{others[0]}\n67 % right, 17 % wrong"
    expected = {(0, 0): "2", (1, 0): "1", (0, 3): "0", (1, 1): "1", (4, 1): "1", (3, 3): "1"}
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    assert {place: texts[place] for place in expected} == expected
    assert [label.get_text() for label in panel.get_yticklabels()] == list(models.LABELS["what"])


def test_the_tables_say_who_is_right_and_what_is_said_of_each_family():
    answers = by_hand()
    rows = [{name: str(value) for name, value in each.items()} for each in answers.to_dict("records")]
    rates, families = make_demo_tables.mechanisms(rows).split("\n\n")[1:]
    assert make_demo_tables.mechanisms(rows).startswith("Of 3 with a label *where* and 6 with a label *what*")
    lines = [line.strip("| ").split(" | ") for line in rates.splitlines()]
    assert lines[0] == ["explainer", "where: right (%)", "where: wrong (%)", "what: right (%)", "what: wrong (%)"]
    assert lines[2] == [next(iter(rules.RULES)), "100 (44 to 100)", "0 (0 to 56)", "67 (30 to 90)", "17 (3 to 56)"]
    assert lines[2 + list(rules.RULES).index(SILENT)] == [SILENT, *["–"] * 4]
    heads, _, *lines = [line.strip("| ").split(" | ") for line in families.splitlines()]
    assert heads[:5] == ["family", "count", "truth: where", "truth: what", "corners with levels: where"]
    by_family = {line[0]: line[1:] for line in lines}
    assert by_family["`map_8`"][:3] == ["2 of 3", "–", IMAGE]
    assert by_family["`map_8`"][heads.index("corners with levels: what") - 1] == f"{IMAGE} 1, {UNDECIDED} 1"
    assert by_family["`qk_both`"][:4] == ["1 of 1", "attention", "–", "attention 1"]


def test_models_are_scored_under_the_rules_that_they_were_trained_under(tmp_path, monkeypatch):
    specs = models.table(["bias", "map_8"])[:3]
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
    assert list(answers["truth: what"]) == [CONSTANT, IMAGE] and set(answers[f"{SILENT}: what"]) == {""}
    notes["digest"] = "another"
    with pytest.raises(ClipbiasError, match="trained under other labels or rules"):
        score.score(tmp_path, specs, StudyOptions())


@pytest.mark.ci
def test_the_command_draws_what_was_scored(tmp_path):
    answers = by_hand()
    parts = [tmp_path / "first.csv", tmp_path / "second.csv"]
    answers[:5].to_csv(parts[0], index=False)
    answers[5:].to_csv(parts[1], index=False)

    def draw(*files):
        command = [sys.executable, "-m", "tools.mechanisms", "draw", *map(str, files), f"--to={tmp_path / 'made.png'}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = draw(*parts)
    assert "levels and replacement" in done.stdout and (tmp_path / "made.png").stat().st_size > 5000
    pd.testing.assert_frame_equal(score.read_answers(tmp_path / "made.csv"), answers)
    assert "have a model twice" in draw(parts[0], parts[0]).stderr


@pytest.mark.parametrize("name", ["rules.py", "models.py"])
def test_the_hash_is_of_labels_and_rules(tmp_path, name):
    for each in ("rules.py", "models.py"):
        shutil.copy(FOLDER / each, tmp_path)
    assert digest(tmp_path) == digest()
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace("HALF", "MOST") if name == "rules.py" else text.replace("0.02", "0.03"))
    assert digest(tmp_path) != digest()
