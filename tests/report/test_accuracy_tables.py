"""What a reader finds in the tables, in each rendering."""

import statistics

import pytest

from clipbias.report import published, summarize, to_html, to_latex, to_markdown, to_text
from clipbias.report.accuracy_tables import tables
from clipbias.report.table import Table, cells, latex_table, markdown_table, text_table
from clipbias.tuning.recipe import MOST
from tests.report.markup import Page

ELEVEN = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)
RENDERINGS = (to_html, to_latex, to_markdown, to_text)


def run(method="bias", dataset="demo/digits", shots=16, seed=1, accuracy=70.0, **others):
    facts = {"parameters": 15360, "parameters_vision": 9216, "parameters_text": 6144, "learning_rate": 0.0025}
    row = {"method": method, "dataset": dataset, "shots": shots, "seed": seed, "accuracy": accuracy}
    return row | facts | {"seconds": 3.25} | others


def a_few():
    rows = [run("zero_shot", shots=0, seed=None, accuracy=43.2, parameters=0)]
    rows += [run("coop", seed=seed, accuracy=accuracy) for seed, accuracy in ((1, 60.0), (2, 61.0), (3, 65.0))]
    return rows + [run("bias", seed=seed, accuracy=accuracy) for seed, accuracy in ((1, 70.0), (2, 71.0), (3, 72.0))]


def entries(table, name):
    return next(row for row in table.rows if row[0].text == name)


def test_numbers_spread_and_rank_of_a_table():
    table = tables(summarize(a_few()))[0]
    assert table.columns == ("Method", "demo/digits", "Parameters")
    best, second, plain = (entries(table, name)[1] for name in ("Bias tuning", "CoOp", "Zero-shot"))
    assert (best.text, best.spread, best.rank) == ("71.0", "± 0.6", 1)
    error = statistics.stdev([60, 61, 65]) / 3**0.5
    assert (second.text, second.spread, second.rank) == ("62.0", f"± {error:.1f}", 2)
    assert (plain.text, plain.spread, plain.rank) == ("43.2", "", 0)
    assert entries(table, "Bias tuning")[2].text == "15,360"


def test_caption_states_seeds_spread_and_learning_rate():
    caption = tables(summarize(a_few()))[0].caption
    for words in ("± its standard error over them", "n = 3 seeds (1, 2, 3)", "Learning rate 0.0025", "Top-1 accuracy"):
        assert words in caption


def test_equal_numbers_share_their_rank():
    rows = [run("coop", accuracy=70.0), run("bias", accuracy=70.01), run("vpt", accuracy=60.0)]
    table = tables(summarize(rows))[0]
    assert [entries(table, name)[1].rank for name in ("CoOp", "Bias tuning", "VPT")] == [1, 1, 2]


def test_a_lone_method_is_not_the_best_of_anything():
    assert tables(summarize([run()]))[0].rows[0][1].rank == 0


def test_cells_with_fewer_seeds_say_so():
    table = tables(summarize([*a_few(), run("vpt", seed=2)]))[0]
    assert entries(table, "VPT")[1].note == "n = 1"
    assert entries(table, "CoOp")[1].note == entries(table, "Zero-shot")[1].note == ""


def test_missing_datasets_leave_a_dash_and_no_average():
    rows = [run(dataset="a"), run(dataset="b"), run("coop", dataset="a", accuracy=50.0)]
    averages, table, _ = tables(summarize(rows))
    assert [entry.text for entry in entries(table, "CoOp")] == ["CoOp", "50.0", "–", "–", "15,360"]
    assert [entry.text for entry in entries(averages, "CoOp")] == ["CoOp", "–"]
    assert "only where all 2 datasets have a result" in table.caption
    assert "only where all 2 datasets have a result" in averages.caption


def test_failed_cells_are_shown_with_their_errors_in_every_rendering():
    lost = run("vpt", seed=1, accuracy=None, status="failed", error="loss is\n  not finite at step 3")
    summary = summarize([*a_few(), lost])
    assert entries(tables(summary)[0], "VPT")[1].text == "failed"
    for render in RENDERINGS:
        assert "VPT, demo/digits, 16 shots, seed 1: loss is not finite at step 3" in render(summary)


def test_learning_rates_that_differ_are_named_by_dataset():
    rows = [run(dataset="a", learning_rate=0.1), run(dataset="b", learning_rate=0.0025)]
    assert "Learning rate 0.0025 on b; 0.1 on a." in tables(summarize(rows))[0].caption


def test_parameters_that_depend_on_the_classes_are_a_range():
    rows = [run("taskres", "a", parameters=5120), run("taskres", "b", parameters=512000)]
    assert tables(summarize(rows))[1].rows[0][-1].text == "5,120–512,000"


def test_sizes_give_both_towers_and_no_time_since_that_differs_when_a_grid_is_continued():
    table = tables(summarize([run(seconds=2.0), run(seed=2, seconds=4.0)]))[-1]
    assert [entry.text for entry in table.rows[0]] == ["Bias tuning", "15,360", "9,216", "6,144", "0.0025"]


def test_a_recipe_of_a_methods_own_is_told_and_its_rate_is_not_mixed_with_the_others():
    own = {"optimizer": "adamw", "steps": 500, "keep_last": True, "batch_size": MOST}
    rows = [
        run("bias"),
        run("taskres", learning_rate=2e-4, own_recipe=own),
        run("taskres", shots=4, learning_rate=2e-4, own_recipe={**own, "steps": 2000}),
    ]
    made = tables(summarize(rows))
    assert "Learning rate 0.0025." in made[0].caption
    assert "Not trained by the common recipe: TaskRes; see the table of sizes." in made[0].caption
    told = "TaskRes differs from the common recipe in: optimizer adamw; steps 500–2000; keep last True; "
    told += "batch size of all images."
    assert told in made[-1].caption
    assert [entry.text for entry in entries(made[-1], "TaskRes")][-1] == "0.0002"
    assert "common recipe" not in " ".join(table.caption for table in tables(summarize([run()])))


def test_what_was_selected_on_which_images_is_a_column_where_anything_was():
    assert not any("Validation" in table.columns for table in tables(summarize([run(validation="none")])))
    rows = [run(validation="few-shot"), run("vpt", validation="none", accuracy=60.0), run("coop", accuracy=50.0)]
    several = [run(accuracy=None, accuracies={"base": 80.0, "new": 60.0}, validation="validation split")]
    for some, last in ((rows, ["few-shot", "15,360"]), (several, ["validation split", "15,360"])):
        table = tables(summarize(some))[0]
        assert table.columns[-2:] == ("Validation", "Parameters") and [*table.words] == [len(table.columns) - 2]
        assert [cell.text for cell in entries(table, "Bias tuning")[-2:]] == last
        assert (
            "Validation: the images on which" in table.caption
            and "Validation" not in tables(summarize(some))[-1].columns
        )
    table = tables(summarize(rows))[0]
    assert [entries(table, name)[-2].text for name in ("VPT", "CoOp")] == ["none", "–"]
    assert [entries(table, name)[1].rank for name in ("Bias tuning", "VPT", "CoOp")] == [1, 2, 0]
    pairs = [
        run(name, data, validation=kind) for name, kind in (("bias", "few-shot"), ("vpt", "none")) for data in "ab"
    ]
    table = next(table for table in tables(summarize(pairs)) if table.title == "16 shots")
    assert table.columns == ("Method", "a", "b", "Average", "Validation", "Parameters")
    assert "only where all" not in table.caption


def test_a_closed_form_has_shots_and_seeds_and_no_rate():
    rows = [run("gda", seed=seed, parameters=0, learning_rate=None, accuracy=50.0 + seed) for seed in (1, 2, 3)]
    made = tables(summarize(rows))
    cell = entries(made[0], "GDA")[1]
    assert (cell.text, cell.spread) == ("52.0", "± 0.6")
    assert made[0].title == "16 shots" and "n = 3 seeds" in made[0].caption
    assert entries(made[-1], "GDA")[-1].text == "–"


def test_base_to_new_of_one_dataset_is_one_table_with_the_harmonic_mean():
    rows = [
        run(accuracy=None, accuracies={"base": 80.0, "new": 60.0}),
        run(accuracy=None, seed=2, accuracies={"base": 82.0, "new": 58.0}),
    ]
    table = tables(summarize(rows))[0]
    assert table.title == "16 shots of demo/digits"
    assert table.columns == ("Method", "base", "new", "H", "Parameters")
    harmonic = [2 * 80 * 60 / 140, 2 * 82 * 58 / 140]
    assert [entry.text for entry in table.rows[0][1:4]] == ["81.0", "59.0", f"{sum(harmonic) / 2:.1f}"]
    assert table.rows[0][3].spread == f"± {statistics.stdev(harmonic) / 2**0.5:.1f}"
    assert "harmonic mean" in table.caption


def test_base_to_new_of_several_datasets_has_a_table_per_measure():
    rows = [run(dataset=name, accuracy=None, accuracies={"base": 80.0, "new": 60.0}) for name in "ab"]
    titles = [table.title for table in tables(summarize(rows))]
    assert titles == [
        title
        for measure in ("base", "new", "H")
        for title in (f"Average over datasets: {measure}", f"16 shots: {measure}")
    ] + ["Size"]


def test_training_on_everything_keeps_its_seeds_and_stays_out_of_the_shots():
    full = [run(shots=0, seed=seed, accuracy=90.0 + seed, protocol="full") for seed in (1, 2)]
    assert tables(summarize(full))[0].title == "All training images"
    assert tables(summarize(full))[0].rows[0][1].text == "91.5"
    mixed = tables(summarize([*full, run(shots=4, accuracy=50.0), run("coop", shots=4)]))[0]
    assert entries(mixed, "Bias tuning")[1].text == "50.0"


def test_published_averages_stand_beside_the_eleven_and_nowhere_else():
    assert "2312.11570" not in to_markdown(summarize(a_few()))
    summary = summarize(run(dataset=name, shots=shots) for name in ELEVEN for shots in (1, 4, 16))
    table = tables(summary)[0]
    assert table.columns == ("Method", "1 shot", "4 shots", "published", "16 shots", "published")
    theirs = published.published_averages().averages["bias"]
    assert [entry.text for entry in table.rows[0] if entry.published] == [f"{theirs[4]:.1f}", f"{theirs[16]:.1f}"]
    assert "not results of this run" in table.caption and "2312.11570" in table.caption
    assert not any(entry.rank for row in table.rows for entry in row if entry.published)
    other_papers = [table for table in tables(summary) if table.title == "Published, 16 shots"]
    assert len(other_papers) == len(published.published_sixteen_shots()) > 0


def test_a_twelfth_dataset_makes_the_averages_incomparable():
    summary = summarize(run(dataset=name) for name in (*ELEVEN, "demo/digits"))
    assert "published" not in tables(summary)[0].columns


def test_no_rows_say_so():
    for render in RENDERINGS:
        assert "There are no results yet." in render(summarize([]))


def test_markdown_rows_have_as_many_cells_as_columns():
    lines = [line for line in to_markdown(summarize(a_few())).splitlines() if line.startswith("|")]
    head, rule, *rows = ([text.strip() for text in line.strip("|").split("|")] for line in lines[:5])
    assert head == ["Method", "demo/digits", "Parameters"]
    assert [(text[0], text[-1]) for text in rule] == [(":", "-"), ("-", ":"), ("-", ":")]
    assert rows[0] == ["Zero-shot", "43.2", "0"]
    assert rows[1] == ["CoOp", "<u>62.0</u> ± 1.5", "15,360"]
    assert rows[2] == ["Bias tuning", "**71.0** ± 0.6", "15,360"]


def test_latex_marks_and_escapes():
    latex = to_latex(summarize([*a_few(), run("my_method", "50%_{odd}")]))
    assert r"\textbf{71.0} $\pm$ 0.6" in latex and r"\underline{62.0} $\pm$ 1.5" in latex
    assert r"my\_method" in latex and r"50\%\_\{odd\}" in latex
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 3


def test_latex_fits_the_page_and_wide_tables_are_set_tight():
    narrow, wide = (
        to_latex(summarize(a_few())),
        to_latex(summarize(row | {"dataset": name} for name in ELEVEN for row in a_few())),
    )
    assert r"\ifdim\width>\textwidth" in narrow
    assert r"\tiny" not in narrow and r"\tabcolsep" not in narrow
    assert r"\textbf{71.0}{\tiny\,$\pm$0.6}" in wide and r"\setlength{\tabcolsep}{2pt}" in wide


def test_html_is_well_formed_self_contained_and_escaped():
    hostile = "<script>alert('x')</script> & \"quotes\""
    text = to_html(summarize([*a_few(), run(hostile, hostile, accuracy=None, status="failed", error=hostile)]))
    page = Page(text)
    assert "script" not in page.tags and "<script>" not in text
    assert f"{hostile}, {hostile}, 16 shots, seed 1: {hostile}" in page.words
    assert "<b>71.0</b>" in text and "<u>62.0</u>" in text
    assert '<td class="failed">failed</td>' in text


def test_names_of_any_kind_stay_in_their_cells():
    """A line end, a bar or a bracket in a name makes no new row, column or argument."""
    name = "[a]|b\n\n# c\r`d` \x1b[31m$x_1$ \\end{table}"
    rows = [*a_few(), run(name, accuracy=40.0), run("vpt", accuracy=None, status="failed", error=name)]
    plain, hostile = (to_markdown(summarize(some)).splitlines() for some in (a_few(), rows))
    row = next(line for line in hostile if line.startswith(r"| \[a\]\|b\\n\\n# c\\r\`d\` \\x1b\[31m$x\_1$"))
    assert row.replace(r"\|", "").count("|") == plain[2].count("|")
    latex = to_latex(summarize(rows))
    assert r"{[}a{]}|b\textbackslash{}n\textbackslash{}n\# c" in latex
    assert r"\$x\_1\$ \textbackslash{}end\{table\}" in latex
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}")
    for text in (latex, to_text(summarize(rows)), to_html(summarize(rows)), "\n".join(hostile)):
        assert "\x1b" not in text and "\r" not in text


def test_names_that_look_like_numbers_are_not_rewritten():
    table = Table("Title", "", ("Name", "Other"), (cells("1e3", "0012"), cells("007", "1_000")), words={1})
    for show in (text_table, markdown_table, latex_table):
        assert all(name in show(table) for name in ("1e3", "0012", "007", "000"))


def test_html_inlines_its_picture():
    page = Page(to_html(summarize(a_few()), figure_svg="<svg xmlns='http://www.w3.org/2000/svg'/>"))
    assert [source[:26] for source in page.links] == ["data:image/svg+xml;base64,"]


@pytest.mark.parametrize("render", RENDERINGS)
def test_the_order_in_which_seeds_finish_changes_nothing(render):
    rows = a_few()
    assert render(summarize(rows)) == render(summarize(rows[:1] + rows[1:][::-1]))


def test_plain_text_lines_up():
    lines = to_text(summarize([*a_few(), run("vpt", seed=2)])).splitlines()
    rule = lines[1]
    body = lines[4 : lines.index(rule, 4)]
    assert [line.index("± ") for line in body if "±" in line] == [body[1].index("± ")] * 2
    assert len({line.index(".") for line in body}) == 1
    assert all(len(line) <= len(rule) for line in body)
    assert any("71.0*" in line for line in body) and any("70.0'" in line for line in body)


def test_calibration_has_a_table_of_its_own():
    errors = {"ece": 4.0, "adaptive_ece": 5.0, "temperature": 1.5, "ece_at_temperature": 2.0}
    rows = [
        *(run(dataset=name, seed=seed, calibration={**errors, "ece": 3.0 + seed}) for name in "ab" for seed in (1, 2)),
        *(run("coop", dataset=name, calibration={**errors, "ece": 9.0}) for name in "ab"),
        *(run("vpt", dataset=name) for name in "ab"),  # whose calibration was not measured
    ]
    summary = summarize(rows)
    (table,) = (table for table in tables(summary) if "calibration" in table.title)
    assert table.title == "16 shots: calibration"
    assert table.columns == ("Method", "ECE", "adaptive ECE", "temperature", "ECE at it")
    assert [row[0].text for row in table.rows] == ["CoOp", "Bias tuning"]
    found = entries(table, "Bias tuning")
    assert [cell.text for cell in found[1:]] == ["4.50", "5.00", "1.50", "2.00"]
    assert found[1].spread == "± 0.71" and not any(cell.rank for cell in found)
    assert "averaged over 2 datasets" in table.caption and "at most 4 of a class" in table.caption
    for render in RENDERINGS:
        assert "adaptive ECE" in render(summary)
    assert not any("calibration" in table.title for table in tables(summarize(a_few())))
