"""The picture of replacements and its table: what is drawn is what the CSV says, and that what the arrays say."""

import copy
import dataclasses
import types

import numpy as np
import pandas as pd
import pytest

from clipbias.errors import ClipbiasError
from clipbias.explain.replacement_pooled import pool_replacements
from clipbias.explain.results import save_results
from clipbias.report.replacement_figure import pooled_table, replacement_figure, replacement_message
from tests.explain.test_replacement_pooled import columns, result, study
from tools import draw_replacements, study_pictures

pytestmark = pytest.mark.ci

DATASETS = ("demo/digits", "demo/fashion")
WAYS = {
    "fitted": "fitted:kind",
    "mean": "mean:kind",
    "untaught": "untaught:labels",
    "retrained": "retrained:again",
}
LABELS = {
    "fitted": "fitted",
    "on labels": "untaught",
    "mean": "mean",
    "retrained": "retrained",
}


@pytest.fixture(scope="module")
def strata():
    return [[result(400, 1), result(400, 2)], [result(250, 3), result(250, 4)]]


@pytest.fixture(scope="module")
def studies(strata):
    return [study(name, results) for name, results in zip(DATASETS, strata, strict=True)]


def test_the_numbers_are_the_arrays_and_the_picture_is_the_numbers(strata, studies, tmp_path):
    figure = replacement_figure(studies)
    assert figure is not None
    numbers = figure.numbers
    assert len(numbers) == len(DATASETS) * len(WAYS)
    for dataset, stratum in zip(DATASETS, strata, strict=True):
        arrays = [columns(each) for each in stratum]
        gain, moved = (np.mean([each[name].mean() for each in arrays]) for name in ("gain", "moved"))
        for kind, name in WAYS.items():
            (row,) = numbers[(numbers["dataset"] == dataset) & (numbers["kind"] == kind)].to_dict("records")
            assert row["method"] == "IVLP" and row["models"] == 2
            assert row["value"] == pytest.approx(100 * np.mean([each[f"gain {name}"].mean() for each in arrays]) / gain)
            assert row["moved_value"] == pytest.approx(
                100 * np.mean([each[f"same {name}"].mean() for each in arrays]) / moved
            )
            assert row["difference_value"] == pytest.approx(
                100 * np.mean([each[f"lost {name}"].mean() for each in arrays])
            )
    drawn = {}
    for axes, dataset in zip(figure.figure.axes, DATASETS, strict=True):
        for container in axes.containers:
            (line,) = [part for part in container.get_children() if hasattr(part, "get_xdata")]
            (bars,) = container.lines[2]
            drawn[dataset, LABELS[container.get_label()]] = (line.get_xydata()[0], bars.get_segments()[0][:, 1])
        assert axes.get_xscale() == "log"
    assert len(drawn) == len(numbers)
    for row in numbers.to_dict("records"):
        point, ends = drawn[row["dataset"], row["kind"]]
        np.testing.assert_allclose(point, (row["numbers"], row["value"]))
        np.testing.assert_allclose(ends, (row["low"], row["high"]))
    figure.save(tmp_path)
    stored = pd.read_csv(tmp_path / "replacements.csv")
    pd.testing.assert_frame_equal(stored.fillna({"form": ""}), numbers, check_dtype=False)


def test_the_message_and_the_caption_have_the_numbers(studies):
    figure = replacement_figure(studies)
    medians = figure.numbers.groupby("kind")["value"].median()
    message = (
        f"Of the gain in calibrated log-likelihood two vectors per layer keep {medians['fitted']:.0f} % if they are "
        f"fitted to the tuned model's predictions, {medians['untaught']:.0f} % if they are trained on labels, "
        f"{medians['mean']:.0f} % as the mean of what its blocks add. Medians over 2 pairs of method and dataset."
    )
    assert replacement_message(figure.numbers) == message and figure.caption.startswith(message)
    assert "IVLP: 4 models" in figure.caption
    unsure = figure.numbers.assign(value=np.nan)
    assert replacement_message(unsure) == "No gain is sure, so there is none to share out."
    with pytest.raises(ClipbiasError, match="nothing was fitted to 'VPT'; there are IVLP"):
        replacement_figure(studies, ["VPT"])


def test_without_a_sure_gain_there_is_no_picture():
    of = copy.deepcopy(result(250, 3))
    of.outcomes.calibrated[:] = -1
    assert replacement_figure([study("demo/digits", [of])]) is None


def test_the_pooled_table(studies):
    methods = pool_replacements(studies)
    table = pooled_table(methods)
    (row,) = (dict(zip(table.columns, texts, strict=True)) for texts in table.rows)
    form = methods[0].forms["kind"]
    share, difference, less = form.way.share, form.way.difference, form.beside_retraining
    assert row["Models"] == "4" and row["Stands for it"] == "two vectors per layer"
    assert row["Share of the gain"] == f"{100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"
    ends = [100 * end for end in (difference.value, difference.low, difference.high)]
    assert row["Accuracy less the models'"] == "{:+.1f} ({:+.1f} to {:+.1f})".format(*ends)
    assert row["Less retraining's"].startswith(f"{100 * less.value:+.1f} (")
    assert row["Less labels'"].startswith(f"{100 * form.beside_untaught.value:+.1f} (")
    assert row["Same moved decisions"].startswith(f"{100 * form.way.moved.value:.0f} % (")
    assert row["Conclusion"] == form.conclusion
    assert row["Not inferior within 1 point"] == ("yes" if difference.low > -0.01 else "not shown")


def test_the_command(studies, tmp_path, capsys, monkeypatch):
    for each in studies:
        save_results(tmp_path / "study" / each.dataset.name.replace("/", "_"), each)
    picture = tmp_path / "replacements.png"
    monkeypatch.setattr(study_pictures, "TO", types.SimpleNamespace(value=str(picture)))
    monkeypatch.setattr(draw_replacements, "METHODS", types.SimpleNamespace(value=[]))
    assert draw_replacements.main([str(tmp_path / "study")]) == 0
    printed = capsys.readouterr().out
    assert pool_replacements(studies)[0].forms["kind"].sentence in printed
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert len(pd.read_csv(picture.with_suffix(".csv"))) == len(DATASETS) * len(WAYS)
    pooled = pd.read_csv(tmp_path / "replacements_pooled.csv", dtype=str)
    assert pooled.values.tolist() == [list(row) for row in pooled_table(pool_replacements(studies)).rows]
    save_results(tmp_path / "plain", dataclasses.replace(studies[0], replacement=None))
    with pytest.raises(ClipbiasError, match="nothing was fitted in these studies"):
        draw_replacements.main([str(tmp_path / "plain")])
