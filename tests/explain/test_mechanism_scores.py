"""Scores of the benchmark of mechanisms: counted by hand, drawn, and tied to labels and rules by a hash."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.documents import ROOT
from tools.mechanisms import models, picture, rules, score
from tools.mechanisms.models import BOTH, CONSTANT, IMAGE, NO_GAIN, Spec, digest
from tools.mechanisms.rules import UNDECIDED, Answer
from tools.mechanisms.score import Scored, confusion

FOLDER = Path(models.__file__).parent


def scored(family, counted, where, what):
    spec = Spec(family, "demo/digits", outliers=False, seed=1)
    return Scored(spec, counted, dict.fromkeys(rules.RULES, Answer(where, what)))


def scored_by_hand():
    return [
        scored("bias", True, UNDECIDED, CONSTANT),
        scored("bias_by_kind", True, UNDECIDED, CONSTANT),
        scored("last_bias", True, "no attention", IMAGE),
        scored("map_8", True, UNDECIDED, IMAGE),
        scored("map_8", True, UNDECIDED, UNDECIDED),
        scored("map_8", False, UNDECIDED, CONSTANT),  # does not count
        scored("qk_both", True, "attention", CONSTANT),  # has no label on this axis
        scored("bias_shuffled", True, NO_GAIN, NO_GAIN),
    ]


def test_scores_are_those_counted_by_hand():
    explainer = next(iter(rules.RULES))
    rows = scored_by_hand()
    what = confusion(rows, explainer, "what")
    assert what.models == 6 and what.counts[CONSTANT] == {CONSTANT: 2, IMAGE: 1, BOTH: 0, NO_GAIN: 0, UNDECIDED: 0}
    assert what.counts[IMAGE] == {CONSTANT: 0, IMAGE: 1, BOTH: 0, NO_GAIN: 0, UNDECIDED: 1}
    # Wilson's interval of 4 of 6, from its formula with z = 1.96.
    assert what.right == pytest.approx((66.67, 30.0, 90.3), abs=0.1)
    assert what.wrong[0] == what.undecided[0] == pytest.approx(100 / 6)
    where = confusion(rows, explainer, "where")
    assert where.models == 3 and where.right[0] == 100
    written = score.as_json(rows, ["a", "a"])
    assert written["trained_under"] == ["a"] and written["digest"] == digest()
    assert written["confusion"]["what"][explainer]["counts"][CONSTANT][IMAGE] == 1
    assert f"what, {explainer}: 6 models; right 67 % (30 to 90), wrong 17 %" in score.format_table(rows)


def test_the_picture_has_the_counts_and_leaves_out_who_never_answers():
    silent = "optimal ablation"
    rows = [dataclasses.replace(row, answers={**row.answers, silent: Answer()}) for row in scored_by_hand()]
    scores = json.loads(json.dumps(score.as_json(rows, ["a"])))
    table = picture.counts(scores)
    others = [name for name in rules.RULES if name != silent]
    assert list(dict.fromkeys(table["explainer"])) == others
    rates = picture.rates(scores).set_index(["axis", "explainer"])
    for axis, models_of, right, wrong in (("where", 3, 300, 0), ("what", 6, 400, 100)):
        for name in others:
            rate = rates.loc[(axis, name)]
            assert rate["models"] == models_of
            assert (rate["right"], rate["wrong"]) == pytest.approx((right / models_of, wrong / models_of))
    assert tuple(rates.loc[("what", others[0]), ["right_low", "right_high"]]) == pytest.approx((30.0, 90.3), abs=0.1)
    figure = picture.draw(scores)
    panel = figure.axes[len(others)]
    assert panel.get_title() == f"{others[0]}\n67 % right, 17 % wrong"
    expected = {(0, 0): "2", (1, 0): "1", (0, 3): "0", (1, 1): "1", (4, 1): "1", (3, 3): "1"}
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    assert {place: texts[place] for place in expected} == expected
    assert [label.get_text() for label in panel.get_yticklabels()] == list(models.LABELS["what"])


@pytest.mark.ci
def test_the_command_draws_what_was_scored(tmp_path):
    scores = score.as_json(scored_by_hand(), ["a"])
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    command = [
        sys.executable,
        "-m",
        "tools.mechanisms",
        "draw",
        f"--workdir={tmp_path}",
        f"--to={tmp_path / 'made.png'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "levels and replacement" in done.stdout and (tmp_path / "made.png").stat().st_size > 5000
    written = pd.read_csv(tmp_path / "made.csv")
    pd.testing.assert_frame_equal(written, picture.counts(scores))


@pytest.mark.parametrize("name", ["rules.py", "models.py"])
def test_the_hash_is_of_labels_and_rules(tmp_path, name):
    for each in ("rules.py", "models.py"):
        shutil.copy(FOLDER / each, tmp_path)
    assert digest(tmp_path) == digest()
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace("HALF", "MOST") if name == "rules.py" else text.replace("0.02", "0.03"))
    assert digest(tmp_path) != digest()
