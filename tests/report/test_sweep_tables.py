"""What a reader finds in a sweep's tables, in each form."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from clipbias.data.confusion import CLASS_MEASURES
from clipbias.errors import ClipbiasError
from clipbias.report import make_tables, names, read_sweep, render, render_tables
from clipbias.report.sweep_tables import advice, check_policies, check_published, class_tables
from clipbias.report.table import TABLE_FORMATS, Table
from clipbias.tuning.recipe import MOST
from tests.report.markup import Page
from tests.report.test_sweep import run

ELEVEN = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)


def a_few():
    rows = [run("zero_shot", shots=None, seed=0, accuracy=43.2, parameters=0, learning_rate=None)]
    rows += [run("coop", seed=seed, accuracy=accuracy) for seed, accuracy in ((1, 50.0), (2, 51.0), (3, 55.0))]
    return rows + [run("bias", seed=seed, accuracy=accuracy) for seed, accuracy in ((1, 70.0), (2, 71.0), (3, 72.0))]


def tables(rows):
    return {table.title: table for table in make_tables(read_sweep(rows))}


def entries(table, name):
    return next(list(row) for row in table.body if row[0] == name)


def test_numbers_seeds_and_parameters_of_a_table():
    made = tables([*a_few(), run("vpt", seed=2)])
    table = made["Accuracy, 16 shots"]
    assert table.columns == ("Method", "demo/digits", "Parameters")
    assert entries(table, "Zero-shot") == ["Zero-shot", "43.2 ± 5.0", "0"]
    assert entries(table, "VPT")[1] == "70.0 ± 4.6 (n = 1)"
    assert entries(table, "Bias tuning")[1:] == ["71.0 ± 4.6", "15,360"]
    assert table.bold == {(2, 1), (3, 1)}
    assert "in percent ± one standard error, 16 training images a class, mean of 3 seeds." in table.caption
    assert list(made) == ["Accuracy, 16 shots", "Size"]
    full = [run(shots=None, seed=seed, accuracy=90.0 + seed, protocol="full") for seed in (1, 2)]
    assert "all training images, mean of 2 seeds" in tables(full)["Accuracy"].caption


def test_counts_are_the_true_ones_and_few_test_images_have_an_interval():
    """Of a class of 6 images where 16 are asked for, and 12 test images; the interval against SciPy's."""
    counts = {"images": 12, "train_images": 38, "images_per_class": [6, 16]}
    rows = [run("coop", accuracy=100 * 6 / 12, **counts), run("bias", accuracy=100 * 11 / 12, **counts)]
    table = tables(rows)["Accuracy, 16 shots"]
    assert "standard error, 6 to 16 training images a class." in table.caption
    low, high = binomtest(11, 12).proportion_ci(0.95, "wilson")
    assert entries(table, "Bias tuning")[1] == f"91.7 ({100 * low:.0f} to {100 * high:.0f})" == "91.7 (65 to 99)"
    assert entries(table, "CoOp")[1] == "50.0 (25 to 75)"
    # Seeds of 10 and 12 right add 1.96 times their error on each side, in squares.
    seeds = [run(seed=seed, accuracy=100 * right / 12, **counts) for seed, right in ((1, 10), (2, 12))]
    error = 1.959963984540054 * 100 * np.std([10 / 12, 1], ddof=1) / np.sqrt(2)
    below, above = (100 * np.hypot(end - 11 / 12, error / 100) for end in (low, high))
    shown = f"91.7 ({1100 / 12 - below:.0f} to {min(100, 1100 / 12 + above):.0f})"
    assert entries(tables(seeds)["Accuracy, 16 shots"], "Bias tuning")[1] == shown


def test_missing_and_failed_cells():
    lost = run("vpt", "a", accuracy=None, status="failed", error="loss is\n  not finite at step 3")
    rows = [run(dataset="a"), run(dataset="b"), run("coop", dataset="a", accuracy=50.0), lost]
    table = tables(rows)["Accuracy, 16 shots"]
    assert entries(table, "CoOp")[2:4] == ["–", "–"] and entries(table, "VPT")[1:4] == ["failed", "–", "–"]
    for form in TABLE_FORMATS:
        assert "VPT, a, 16 shots, seed 1: loss is not finite at step 3" in render_tables(read_sweep(rows), form)
        assert "There are no results yet." in render_tables(read_sweep([]), form)


def test_sizes_rates_and_recipes():
    recipe = {"optimizer": "adamw", "steps": 500, "keep_last": True, "batch_size": MOST}
    shared = {"parameters": 50432, "parameters_vision": 0, "parameters_text": 768, "parameters_shared": 49664}
    rows = [
        run("maple", **shared),
        run("bias", learning_rate=0.1),
        run("taskres", learning_rate=2e-4, own_recipe=recipe, parameters=5120),
        run("taskres", shots=4, learning_rate=2e-4, own_recipe={**recipe, "steps": 2000}, parameters=16384),
        run("gda", parameters=0, learning_rate=None),
    ]
    made = tables(rows)
    size = made["Size"]
    note = made["Accuracy, 16 shots"].note
    assert entries(size, "MaPLe") == ["MaPLe", "50,432", "0", "768", "49,664", "0.0025"]
    assert entries(size, "TaskRes")[1] == "5,120–16,384" and entries(size, "GDA")[-1] == "–"
    assert "Learning rates: see Size." in note and "Not trained by the common recipe: TaskRes; see Size." in note
    assert "optimizer adamw; steps 500 or 2000; keep last True; batch size of all images." in size.note


def test_the_validation_policy_is_a_column_where_anything_was_selected_and_two_are_refused():
    assert not any("Validation" in table.columns for table in tables([run(validation="none")]).values())
    rows = [run(validation="few-shot"), run("vpt", validation="none", accuracy=60.0), run("coop", accuracy=50.0)]
    table = tables(rows)["Accuracy, 16 shots"]
    assert table.columns[-2:] == ("Validation", "Parameters") and table.words == {2}
    assert [entries(table, name)[-2] for name in ("Bias tuning", "VPT", "CoOp")] == ["few-shot", "none", "–"]
    check_policies(rows)
    with pytest.raises(ClipbiasError, match=r"two validation policies, 'few-shot'.* and 'validation split'"):
        check_policies([*rows, run("coop", validation="validation split")])


def test_base_to_new_of_one_dataset_is_one_table_and_of_several_one_for_each_measure():
    measures = {"accuracies": {"base": 80.0, "new": 60.0}, "tested_images": {"base": 100, "new": 200}}
    measures |= {"accuracy": None, "images": None}
    table = tables([run(**measures)])["Accuracy, 16 shots of demo/digits"]
    assert table.columns == ("Method", "base", "new", "H", "Parameters") and "harmonic mean" in table.caption
    assert [text[:4] for text in table.body[0][1:4]] == ["80.0", "60.0", "68.6"]
    both = tables([run(dataset=name, **measures) for name in "ab"])
    assert list(both) == [*(f"Accuracy, 16 shots: {measure}" for measure in ("base", "new", "H")), "Size"]


def test_base_to_new_stands_beside_no_published_numbers(tmp_path):
    measures = {"accuracies": {"base": 80.0, "new": 60.0}, "accuracy": None, "protocol": "base_to_new"}
    rows = [run(dataset=name, **measures) for name in ELEVEN]
    assert not any("Published" in title for title in tables(rows))
    with pytest.raises(ClipbiasError, match="results of the protocol base_to_new; published numbers are of training"):
        check_published(rows, tmp_path)


def test_published_numbers_stand_beside_the_eleven_and_nowhere_else():
    rows = [run(dataset=name, shots=shots) for name in ELEVEN for shots in (1, 4, 16)]
    rows += [{**row, "method": "zero_shot", "accuracy": 50.0} for row in rows]
    made = tables(rows)
    table = made["Accuracy, average over datasets"]
    heads = ("1 shot", "4 shots", "4 shots, published", "16 shots", "16 shots, published")
    assert table.columns == ("Method", *heads)
    theirs = dict(zip((4, 8, 16), names.published()["averages"]["accuracy"]["bias"], strict=True))
    assert entries(table, "Bias tuning")[3::2] == [f"{theirs[4]:.1f}", f"{theirs[16]:.1f}"]
    assert entries(table, "Zero-shot")[3::2] == ["–", "–"] and "2312.11570" in table.note
    assert table.bold == {(1, 1), (1, 2), (1, 4)}  # never a published number
    others = [table for title, table in made.items() if title.startswith("Published")]
    assert len(others) == len(names.published()["sixteen_shots"]) > 0
    name, numbers = next(iter(names.published()["sixteen_shots"][0]["accuracy"].items()))
    assert entries(others[0], name)[1] == f"{numbers['ImageNet']:.1f}"
    for rows in (a_few(), [run(dataset=name, shots=shots) for name in (*ELEVEN, "demo/digits") for shots in (1, 4)]):
        assert "ublished" not in render_tables(read_sweep(rows), "markdown")


def test_selected_rates_have_a_table():
    def choice(tried):
        tried = [{"learning_rate": rate, "accuracy": accuracy} for rate, accuracy in tried.items()]
        return {"for": "method", "cells": 2, "tried": tried}

    chosen = {"learning_rate": 0.2, "choice": choice({0.1: 70.0, 0.2: 75.0, 0.4: None})}
    rows = [run(**chosen), run(dataset="b", **chosen)]
    rows.append(run("vpt", learning_rate=0.1, choice=choice({0.1: 71.0, 0.2: 70.0})))
    table = tables(rows)["Learning rates"]
    assert table.columns == ["Method", "Dataset", "Shots", "0.1", "0.2", "0.4"]
    assert {tuple(row) for row in table.body} == {
        ("VPT", "all", "all", "71.0", "70.0", "–"),
        ("Bias tuning", "all", "all", "70.0", "75.0", "failed"),
    }
    assert {(table.body[row][0], column) for row, column in table.bold} == {("VPT", 3), ("Bias tuning", 4)}
    by_cell = [{**row, "choice": {**row["choice"], "for": "cell"}} for row in rows[:2]]
    assert [list(row[1:3]) for row in tables(by_cell)["Learning rates"].body] == [["demo/digits", "16"], ["b", "16"]]


def test_calibration_is_the_mean_over_seeds_and_datasets():
    measured = [({"ece": 3.0 + seed, "ece_at_temperature": 2.0}, name, seed) for name in "ab" for seed in (1, 2)]
    rows = [run(dataset=name, seed=seed, calibration=values) for values, name, seed in measured]
    rows.append(run("vpt", dataset="a"))  # whose calibration was not measured
    table = tables(rows)["Calibration"]
    assert table.columns == ("Method", "ECE, 16 shots", "ECE at temperature, 16 shots")
    assert entries(table, "Bias tuning")[1:] == ["4.50", "2.00"] and entries(table, "VPT")[1:] == ["–", "–"]
    for row in rows[1:4:2]:  # a fit without a minimum
        del row["calibration"]["ece_at_temperature"]
    assert entries(tables(rows)["Calibration"], "Bias tuning")[1:] == ["4.50", "2.00 (n = 1)"]
    both = {"base": {"ece": 4.0}, "new": {"ece": 9.0}}
    (row,) = tables([run(accuracy=None, accuracies={"base": 80.0, "new": 60.0}, calibrations=both)])["Calibration"].body
    assert [*row[1:]] == ["4.00", "9.00"]


def test_html_is_well_formed_self_contained_and_escaped():
    hostile = "<script>alert('x')</script> & \"quotes\""
    rows = [*a_few(), run(hostile, hostile, accuracy=None, status="failed", error=hostile, validation="few-shot")]
    text = render_tables(read_sweep(rows), "html", figure_svg="<svg xmlns='http://www.w3.org/2000/svg'/>")
    page = Page(text)
    assert "script" not in page.tags and "<script>" not in text
    assert [source[:26] for source in page.links] == ["data:image/svg+xml;base64,"]
    assert f"{hostile}, {hostile}, 16 shots, seed 1: {hostile}" in page.words
    assert "<td><b>71.0 ± 4.6</b></td>" in text


def test_names_of_any_kind_stay_in_their_cells():
    """A line end, a bar or a bracket in a name makes no new row, column or argument."""
    name = "[a]|b\n\n# c\r`d` \x1b[31m$x_1$ \\end{table}"
    rows = [*a_few(), run(name, accuracy=40.0), run("vpt", accuracy=None, status="failed", error=name)]
    rendered = {form: render_tables(read_sweep(rows), form) for form in TABLE_FORMATS}
    lines = [line for line in rendered["markdown"].splitlines() if line.startswith("|")]
    row = next(line for line in lines if line.startswith(r"| \[a\]\|b\\n\\n# c\\r\`d\` \\x1b\[31m$x\_1$"))
    assert row.replace(r"\|", "").count("|") == lines[0].count("|")
    assert r"{[}a{]}|b\textbackslash{}n\textbackslash{}n\# c" in rendered["latex"]
    assert r"\$x\_1\$ \textbackslash{}end\{table\}" in rendered["latex"]
    assert rendered["latex"].count(r"\begin{table}") == rendered["latex"].count(r"\end{table}")
    for form, text in rendered.items():
        assert "\x1b" not in text and "\r" not in text
        # The order in which seeds finish changes nothing.
        assert text == render_tables(read_sweep([rows[0], *rows[1:-2][::-1], *rows[-2:]]), form)
        numbers = Table("Title", "", ("Name", "Other"), (("1e3", "0012"), ("007", "1_000")), words={1})
        assert all(name in render(numbers, form) for name in ("1e3", "0012", "007", "000"))  # nor a number of a name


def scores(seed, **more):
    numbers = np.random.default_rng(seed).uniform(0, 100, 3)
    return dict(zip(CLASS_MEASURES, map(float, numbers), strict=True)) | {"worst_class": "ant"} | more


def test_scores_of_classes_are_means_over_seeds_and_datasets():
    runs = [(dataset, seed) for dataset in ("demo/digits", "demo/emoji") for seed in (1, 2, 3)]
    rows = [run(dataset=name, seed=seed, class_summary=scores(seed + len(name))) for name, seed in runs]
    frozen = [("demo/digits", 20), ("demo/emoji", 21)]
    rows += [
        run("zero_shot", name, None, 0, class_summary=scores(seed, untested_classes=["bee"] if seed == 20 else []))
        for name, seed in frozen
    ]
    rows.append(run("coop", "demo/digits"))  # of before
    made = class_tables(read_sweep(rows), ("macro_f1", "worst_accuracy"))
    for table, measure in zip(made, ("macro_f1", "worst_accuracy"), strict=True):
        assert table.columns == ("Method", "demo/digits", "demo/emoji", "Average")
        by_seed = np.array([[scores(seed + len(name))[measure] for seed in (1, 2, 3)] for name, _ in frozen])
        errors = by_seed.std(axis=1, ddof=1) / np.sqrt(3)
        means = [*by_seed.mean(axis=1), by_seed.mean()]
        texts = [
            f"{mean:.1f} ± {error:.1f}" for mean, error in zip(means, [*errors, np.hypot(*errors) / 2], strict=True)
        ]
        assert entries(table, "Bias tuning")[1:] == texts
        plain = [scores(seed)[measure] for _, seed in frozen]
        assert entries(table, "Zero-shot")[1:] == [f"{value:.1f}" for value in (*plain, np.mean(plain))]
        assert entries(table, "CoOp")[1:] == ["–"] * 3
        assert "demo/digits: 1 class without test images (bee)." in table.note and "emoji:" not in table.note
    assert class_tables(read_sweep(rows), ()) == [] and class_tables(read_sweep([run()]), CLASS_MEASURES) == []
    # Evaluations have columns of their own.
    summaries = {"base": scores(1), "new": scores(2)}
    row = run(accuracy=None, accuracies={"base": 80.0, "new": 60.0}, class_summaries=summaries)
    (table,) = class_tables(read_sweep([row]), ("balanced_accuracy",))
    assert table.columns == ("Method", "demo/digits, base", "demo/digits, new")
    assert entries(table, "Bias tuning")[1:] == [f"{scores(seed)['balanced_accuracy']:.1f}" for seed in (1, 2)]


def test_the_last_sentence_is_the_best_method_its_rivals_and_the_next_command(tmp_path):
    (line,) = advice(read_sweep(a_few()), tmp_path)
    assert line.startswith("Take Bias tuning: 71.0 % on demo/digits") and line.endswith(", surely the best here.")
    rows = [row for row in a_few() if row["method"] != "coop"] + [run("coop", seed=1, accuracy=72.0)]
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "coop-demo_digits-16shots-seed1.safetensors").touch()
    line, following = advice(read_sweep(rows), tmp_path)
    assert line.startswith("Take CoOp: 72.0 %") and line.endswith("; Bias tuning may be as good.")
    assert f"--config.adapters='{tmp_path}/adapters/coop-demo_digits-*'" in following
    (tmp_path / "config.json").write_text('{"data_dir": "/my data"}')
    (tmp_path / "adapters" / "own.py-demo_digits-16shots-seed1.safetensors").touch()
    own = [row for row in a_few() if row["method"] != "coop"] + [run("own.py", seed=1, accuracy=72.0)]
    assert "--config.data_dir='/my data' --config.own_methods=own.py --work" in advice(read_sweep(own), tmp_path)[1]
    equal = [run(name, seed=1, accuracy=72.0, parameters=size) for name, size in (("coop", 4), ("vpt", 2), ("ivlp", 3))]
    for order in itertools.permutations(equal):
        assert advice(read_sweep(list(order)), tmp_path / "none")[0].startswith("Take VPT: 72.0 %")
    assert advice(read_sweep(rows[-1:]), tmp_path) == advice(read_sweep([]), tmp_path) == []
    apart = [run("coop", dataset="a"), run("bias", dataset="b")]  # neither has an average over datasets
    assert advice(read_sweep(apart), tmp_path) == []
