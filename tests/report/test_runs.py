"""Work folders as records, from files written by hand; and the tables and curves drawn from them."""

import fcntl
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipbias import io
from clipbias.errors import ClipbiasError
from clipbias.report.curves import Curve, curve_labels, curves_figure, read_curves, save_curves
from clipbias.report.run_tables import devices_words, difference_table, duration, in_words, render_runs, run_table
from clipbias.report.runs import differences, read_workdir
from clipbias.report.table import render

BASE = {"model": "demo", "mesh": {"run": 1, "data": -1}, "workdir": "w", "learning_rate": 0.1}
TRAIN = {**BASE, "method": "bias", "dataset": "demo/digits", "shots": 4, "seed": 1}
GRID = {**BASE, "methods": ["zero_shot", "bias"], "datasets": ["a", "b"], "shots": [4], "seeds": [1, 2]}
ENVIRONMENT = {
    "command": ["/somewhere/experiments/train.py"],
    "python": "3.11.7",
    "packages": {"jax": "0.10", "clipbias": "0.1.0", "numpy": "2.0"},
    "devices": ["gpu H100", "gpu H100"],
    "git": {"commit": "0123456789abcdef", "changed": True},
}


def write(folder: Path, **files: Any) -> Path:
    """A work folder; `metrics` and `results` are JSONL, the others JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, list):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def trained(folder: Path, steps: int = 4, **files: Any) -> Path:
    lines = [
        {"step": s, "steps": 8, "loss": 1 / s, "accuracy": 10 * s, "learning_rate": 0.1, "seconds": 2.0}
        for s in range(1, steps + 1)
    ]
    return write(folder, **{"config": TRAIN, "environment": ENVIRONMENT, "metrics": lines} | files)


def state(name: str, error: str | None = None) -> dict[str, Any]:
    return {"state": name, "started": "2026-01-01T00:00:00+00:00", "seconds": 75.0, "error": error}


def test_a_finished_run(tmp_path: Path) -> None:
    result = {"method": "bias", "dataset": "demo/digits", "shots": 4, "seed": 1, "accuracy": 71.5, "parameters": 96}
    (run,) = read_workdir(
        trained(tmp_path, 8, result={**result, "loss": 0.125, "waiting_share": 0.4}, state=state("finished"))
    )
    assert (run.binary, run.state, run.accuracy, run.parameters, run.loss) == ("train", "finished", 71.5, 96, 0.125)
    assert (run.method, run.dataset, run.shots, run.seed, run.seconds) == ("bias", "demo/digits", 4, 1, 75.0)
    assert run.environment == ENVIRONMENT and run.config == TRAIN and run.waiting == 0.4


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (state("failed", "the disk is full."), "failed at step 4 of 8: the disk is full."),
        (state("interrupted", "stopped"), "interrupted at step 4 of 8"),
        (state("running"), "killed at step 4 of 8"),
        (None, "not finished at step 4 of 8"),
    ],
)
def test_a_run_that_is_not_finished(recorded: dict | None, expected: str, tmp_path: Path) -> None:
    (run,) = read_workdir(trained(tmp_path, **({"state": recorded} if recorded else {})))
    assert (run.state, run.accuracy, run.loss, run.method) == (expected, None, 0.25, "bias")
    assert run.seconds == (75.0 if recorded else 8.0)


def test_a_run_that_a_process_works_on(tmp_path: Path) -> None:
    trained(tmp_path, state=state("running"))
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_workdir(tmp_path)[0].state == "in progress at step 4 of 8"
    assert read_workdir(tmp_path)[0].state == "killed at step 4 of 8"


def cell(method: str, dataset: str, seed: int, **values: Any) -> dict[str, Any]:
    drawn = {"shots": None, "learning_rate": None} if method == "zero_shot" else {"shots": 4, "learning_rate": 0.1}
    named = {"protocol": "few_shot", "method": method, "dataset": dataset, "seed": seed, "key": "a"}
    return {**named, **drawn, "status": "ok", **values}


def test_a_sweep_and_its_runs(tmp_path: Path) -> None:
    """How far it is is known once its runs on test images begin."""
    rows = [
        cell("zero_shot", "a", 0, accuracy=50.0, images=100, parameters=0, seconds=1.0),
        cell("bias", "a", 1, accuracy=60.0, parameters=96, loss=0.5, seconds=2.0, waiting_share=0.25),
        cell("bias", "a", 2, status="failed", error="no images."),
    ]
    write(tmp_path, config=GRID, results=rows, state=state("running"), environment={"runs": 6})
    (grid,) = read_workdir(tmp_path)
    assert grid.state == "killed after 2 of 6 runs; 1 of 6 runs failed: no images."
    assert (grid.method, grid.seed, grid.learning_rate) == (["zero_shot", "bias"], [1, 2], [0.1])
    assert grid.waiting == 0.25 and "25%" in render(run_table([grid]), "text")
    cells = read_workdir(tmp_path, cells=True)
    assert [(c.method, c.seed, c.accuracy, c.error, c.state) for c in cells] == [
        ("zero_shot", 0, 50.0, 5.0, "finished"),
        ("bias", 1, 60.0, None, "finished"),
        ("bias", 2, None, None, "failed: no images."),
    ]
    assert [c.name for c in cells] == [f"{tmp_path}#{n}" for n in (1, 2, 3)]
    write(tmp_path, config=GRID, results=[], environment={})
    assert read_workdir(tmp_path)[0].state == "killed after 0 runs"


def test_accuracies_of_a_sweep_are_those_of_its_own_tables(tmp_path: Path) -> None:
    """The rate of its configuration is not said to be that of methods with rates of their own."""
    rates = {"bias": 0.2, "vpt": 0.5}
    base = {"bias": 60.0, "vpt": 70.0}
    rows = [
        cell(method, "a", seed, learning_rate=rate, images=100, accuracy=base[method] + seed + shots) | {"shots": shots}
        for method, rate in rates.items()
        for shots in (4, 16)
        for seed in (1, 2)
    ]
    config = {**GRID, "methods": ["bias", "vpt"], "datasets": ["a"], "shots": [4, 16], "learning_rate": 0.05}
    write(tmp_path, config=config, results=rows, state=state("finished"))
    (sweep,) = read_workdir(tmp_path)
    assert sweep.learning_rate == [0.2, 0.5] and sweep.accuracy is None
    text = render_runs([sweep], [sweep], [])
    assert "0.2, 0.5" in text and "0.05" not in text and "see below" in text
    for shots in (4, 16):
        lines = text.split(f"Accuracy, {shots} shots\n")[1].split("\n\n")[0].splitlines()[2:]
        means = [np.mean([base[method] + seed + shots for seed in (1, 2)]) for method in ("vpt", "bias")]
        assert [float(line.replace("tuning", "").split()[1]) for line in lines] == means
    accuracies = json.loads(render_runs([sweep], [sweep], [], form="json"))["runs"][0]["accuracies"]
    assert {(row["method"], row["shots"]): row["mean"] for row in accuracies}["vpt", 16] == 87.5


def test_accuracies_of_several_evaluations_and_of_many_models(tmp_path: Path) -> None:
    result = {"accuracies": {"base": 50.0, "new": 90.0}, "tested_images": {"base": 100, "new": 400}}
    rows = [cell("bias", "a", 1, **result)]
    write(tmp_path / "sweep", config={**GRID, "datasets": ["a"]}, results=rows)
    (run,) = read_workdir(tmp_path / "sweep", cells=True)
    assert "base 50.00 ± 5.00 of 100, new 90.00 ± 1.50 of 400" in render(run_table([run]), "text")
    names = ["zero_shot", "coop", "vpt", "maple", "bias"]
    models = [{"method": name, "accuracy": 50.0, "images": 100} for name in names]
    content = {"dataset": {"name": "a"}, "models": models, "seconds": 3.0}
    write(tmp_path / "study", config={**BASE, "adapters": "x", "sections": "all"}, results=content)
    (study,) = read_workdir(tmp_path / "study")
    text = render_runs([study], [study], [])
    assert "see below" in text and re.search(r"VPT +50\.00 ± 5\.00", text)


def test_parts_of_a_sweep(tmp_path: Path) -> None:
    """They have one file of results, and each its state; a part that did not start yet has none."""
    rows = [cell("zero_shot", name, 0, accuracy=50.0) for name in "ab"]
    write(tmp_path, config=GRID, results=rows, environment={"runs": 6})
    write(tmp_path / "parts" / "1-of-4", state=state("finished"))
    write(tmp_path / "parts" / "2-of-4", state=state("interrupted"))
    write(tmp_path / "parts" / "3-of-4", state=state("finished"))
    (run,) = read_workdir(tmp_path)
    assert run.state == "parts 1/4, 3/4 finished; part 2/4 interrupted; after 2 of 6 runs"
    assert (run.seconds, len(run.rows)) == (225.0, 2)
    rows += [cell("bias", name, seed, accuracy=60.0) for name in "ab" for seed in (1, 2)]
    write(tmp_path, results=rows)
    assert read_workdir(tmp_path)[0].state == "finished"
    with io.lock(tmp_path / "parts" / "2-of-4"):
        words = "parts 1/4, 3/4 finished; part 2/4 in progress; after 6 of 6 runs"
        assert read_workdir(tmp_path)[0].state == words


def test_validation_is_shown_where_anything_was_selected(tmp_path: Path) -> None:
    rows = [cell("zero_shot", "a", 0, validation="none"), cell("bias", "a", 1, validation="few-shot")]
    (sweep,) = read_workdir(write(tmp_path / "sweep", config=GRID, results=rows))
    assert sweep.validation == ["none", "few-shot"]
    assert [run.validation for run in read_workdir(tmp_path / "sweep", cells=True)] == ["none", "few-shot"]
    result = {"accuracy": 50.0, "validation": "none"}
    (single,) = read_workdir(trained(tmp_path / "single", result=result, state=state("finished")))
    assert single.validation == "none" and "Validation" not in run_table([single]).columns
    table = run_table([single, sweep])
    assert [row[table.columns.index("Validation")] for row in table.rows] == ["none", "none, few-shot"]
    assert "Validation: the images on which" in table.note


def test_a_study_of_several_datasets(tmp_path: Path) -> None:
    def result(name: str) -> dict:
        models = [{"method": m, "accuracy": a, "parameters": {"total": 9}} for m, a in (("zero_shot", 1.0), ("b", 2.0))]
        return {"format": 1, "dataset": {"name": name}, "models": models, "seconds": 3.0}

    config = {**BASE, "sections": "all", "datasets": ["demo/a", "demo/b"]}
    write(tmp_path, config=config, state=state("interrupted"))
    write(tmp_path / "demo_a", results=result("demo/a"))
    first, second = read_workdir(tmp_path)
    assert (first.name, first.dataset, first.accuracy) == (f"{tmp_path}/demo_a", "demo/a", [1.0, 2.0])
    assert (second.dataset, second.accuracy, second.state) == ("demo/b", None, "interrupted")


def test_only_settings_that_differ(tmp_path: Path) -> None:
    first = trained(tmp_path / "1", config={**TRAIN, "method_options": {"depth": 1}})
    second = trained(tmp_path / "2", config={**TRAIN, "learning_rate": 0.2, "workdir": "v", "mesh": {"run": 1}})
    runs = [read_workdir(folder)[0] for folder in (first, second)]
    assert differences(runs) == {
        "learning_rate": [0.1, 0.2],
        "mesh.data": [-1, None],
        "method_options.depth": [1, None],
    }
    assert difference_table(runs[:1]) is None


def test_tables_in_three_formats(tmp_path: Path) -> None:
    trained(tmp_path / "one", state=state("finished"))
    trained(tmp_path / "two", environment={**ENVIRONMENT, "packages": {"jax": "0.11"}, "git": None, "devices": []})
    runs = [read_workdir(tmp_path / name)[0] for name in ("one", "two")]
    text = render_runs(runs, runs, [])
    assert "finished" in text and "not finished at step 4 of 8" in text and "1 min 15 s" in text
    assert "0123456789+" in text and "2 x gpu H100" in text
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("Run") and "State" in line)
    assert [line.index("finished") for line in lines if line.endswith("  finished")] == [head.index("State")]
    assert "Settings that differ" not in text
    markdown = render_runs(runs, runs, [], form="markdown")
    assert "0.10" in markdown and "0.11" in markdown
    rule = next(line for line in markdown.splitlines() if line.startswith("|:-"))
    assert [cell.endswith(":") for cell in rule.split("|")[1:6]] == [False] * 4 + [True]
    content = json.loads(render_runs(runs, runs, ["a problem"], form="json"))
    assert [run["loss"] for run in content["runs"]] == [0.25, 0.25]
    assert content["problems"] == ["a problem"]
    assert render_runs([], [], ["a problem"]) == ""


def test_values_in_words() -> None:
    assert in_words([1, 2], "values") == "1, 2" and in_words(list("abcde"), "methods") == "5 methods"
    assert (
        in_words([1.0, None], "values", "{:.1f}") == "1.0, –" and in_words({"base": 1.25}, "", "{:.1f}") == "base 1.2"
    )
    assert [duration(s) for s in (None, 3.21, 125, 3 * 3600 + 120)] == ["–", "3.2 s", "2 min 05 s", "3 h 02 min"]
    assert devices_words(["cpu a", "gpu b", "cpu a"]) == "2 x cpu a, 1 x gpu b"


def test_curves_of_a_run_and_of_a_sweep(tmp_path: Path) -> None:
    trained(tmp_path / "one", state=state("finished"))
    grid = write(tmp_path / "grid", config=GRID)
    lines = [{"step": s, "loss": [1.0 / s, 3.0 / s], "learning_rate": 0.1} for s in (1, 2)]
    for pack in ("bias-a-4shots-0123456789ab", "vpt-a-4shots-0123456789ab"):
        write(grid / "runs" / pack, metrics=lines)
    curves = [c for name in ("one", "grid") for c in read_curves(read_workdir(tmp_path / name)[0])]
    assert [c.method for c in curves] == ["bias", "bias", "vpt"]
    np.testing.assert_array_equal(curves[1].values["loss"], [[1.0, 3.0], [0.5, 1.5]])
    for number in (1, 5):  # a name each; then colours by method
        figure = curves_figure(curves * number)
        loss, accuracy, rate = figure.axes
        drawn = [np.asarray(container.lines[0].get_ydata(), float) for container in loss.containers]
        np.testing.assert_allclose(drawn[1], [2.0, 1.0])
        (band,) = loss.containers[1].lines[2]  # from the smallest to the largest seed
        np.testing.assert_allclose([ends[:, 1] for ends in band.get_segments()], [[1.0, 3.0], [0.5, 1.5]])
        shown = np.asarray(accuracy.containers[0].lines[0].get_ydata(), float)
        np.testing.assert_allclose(shown, [10, 20, 30, 40])
        assert len(rate.containers) == 3 * number
        assert len(figure.legends[0].get_texts()) == (3 if number == 1 else 2)
        named = [text.get_text() for text in figure.legends[0].get_texts()]
        assert named == (["Bias tuning, demo/digits", "Bias tuning, a", "VPT, a"] if number == 1 else named)
    assert save_curves(curves, tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ClipbiasError, match=r"ends with \.png"):
        save_curves(curves, tmp_path / "c.jpg")


def test_labels_of_curves_are_what_differs_between_them() -> None:
    def curve(folder: str = "w", runs: int = 1, **facts: str) -> Curve:
        named = {"method": "VPT", "shots": "4shots", **facts, "folder": folder}
        return Curve(named, "vpt", np.arange(2), {"loss": np.ones((2, runs))})

    assert curve_labels([curve()]) == ["VPT"]
    assert curve_labels([curve(rate="rate 0.1"), curve("x", rate="rate 0.5")]) == ["rate 0.1", "rate 0.5"]
    assert curve_labels([curve(), curve("x")]) == ["w", "x"]
    of_folders = [curve(), curve(method="IVLP"), curve("x"), curve("x", method="IVLP")]
    assert curve_labels(of_folders) == ["VPT, w", "IVLP, w", "VPT, x", "IVLP, x"]
    # Rates that are compared and the runs that follow have the same facts.
    assert curve_labels([curve(runs=4), curve(runs=1)]) == ["VPT, 4 runs", "VPT, 1 run"]
    assert curve_labels([curve(), curve()]) == ["VPT, number 1", "VPT, number 2"]


def test_runs_are_counted_in_the_singular_and_the_plural(tmp_path: Path) -> None:
    row = {"method": "bias", "dataset": "a", "seed": 1, "key": "k", "status": "ok"}
    for rows, expected, words in ((1, None, "1 run"), (1, 1, "1 of 1 run"), (1, 4, "1 of 4 runs"), (2, None, "2 runs")):
        files = {"config": GRID, "results": [row] * rows, "state": state("running")}
        folder = write(tmp_path / f"{rows}-{expected}", **files, environment={"runs": expected})
        assert read_workdir(folder)[0].state == f"killed after {words}"


def test_a_metrics_file_of_uneven_lines(tmp_path: Path) -> None:
    run = read_workdir(trained(tmp_path, metrics=[{"step": 1, "loss": [1, 2]}, {"step": 2, "loss": 1}]))[0]
    with pytest.raises(ClipbiasError, match=r"metrics\.jsonl is damaged"):
        read_curves(run)
