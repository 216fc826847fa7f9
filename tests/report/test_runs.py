"""Work folders that were written by hand, and what is shown of them."""

import json
import re

import pytest

from clipbias import io
from clipbias.report.runs import differences, read_workdir, render_runs

BASE = {"model": "demo", "mesh": {"run": 1, "data": -1}, "workdir": "w", "learning_rate": 0.1}
TRAIN = {**BASE, "method": "bias", "dataset": "demo/digits", "shots": 4, "seed": 1}
GRID = {**BASE, "methods": ["zero_shot", "bias"], "datasets": ["a", "b"], "shots": [4], "seeds": [1, 2]}
ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"jax": "0.10", "clipbias": "0.1.0"},
    "devices": ["gpu H100", "gpu H100"],
    "git": {"commit": "0123456789abcdef", "changed": True},
}


def write(folder, **files):
    """A work folder; `metrics` and `results` are JSONL, the others JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, list):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def trained(folder, steps=4, **files):
    lines = [{"step": step, "steps": 8, "loss": 1 / step} for step in range(1, steps + 1)]
    return write(folder, **{"config": TRAIN, "environment": ENVIRONMENT, "metrics": lines} | files)


def state(name, error=None):
    return {"state": name, "started": "2026-01-01T00:00:00+00:00", "seconds": 75.0, "error": error}


def cell(method, dataset, seed, **values):
    drawn = {"shots": None, "learning_rate": None} if method == "zero_shot" else {"shots": 4, "learning_rate": 0.1}
    named = {"protocol": "few_shot", "method": method, "dataset": dataset, "seed": seed, "key": "a"}
    return {**named, **drawn, "status": "ok", **values}


def rows_of(text):
    """The first table of a text by the name of the run and the column."""
    head, *lines = [re.split(r"\s{2,}", line) for line in text.split("\n\n")[0].splitlines()[1:] if "---" not in line]
    return {line[0]: dict(zip(head, line, strict=True)) for line in lines}


def test_a_finished_run(tmp_path):
    result = cell("bias", "demo/digits", 1, accuracy=80.0, images=100, parameters=9000, loss=0.125, seconds=3.0)
    result |= {"protocol": "full", "shots": None, "learning_rate": 0.5}
    folder = trained(tmp_path, 8, result=result, state=state("finished"))
    row = rows_of(render_runs([read_workdir(folder)], []))[str(folder)]
    expected = {"What": "train", "Method": "bias", "Dataset": "demo/digits", "Shots": "all", "Seed": "1", "Rate": "0.5"}
    expected |= {"Accuracy": "80.00", "±": "4.00", "Images": "100", "Parameters": "9,000", "Loss": "0.125"}
    expected |= {"Progress": "8 of 8 steps", "Seconds": "75.0", "State": "finished"}
    assert row == {"Run": str(folder), **expected}


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (state("failed", "the disk is full."), "failed: the disk is full."),
        (state("interrupted", "stopped"), "interrupted"),
        (state("running"), "killed"),
    ],
)
def test_a_run_that_is_not_finished(recorded, expected, tmp_path):
    row = read_workdir(trained(tmp_path, state=recorded)).summary
    assert (row["state"], row["progress"], row["loss"], row["method"]) == (expected, "4 of 8 steps", 0.25, "bias")
    with io.lock(tmp_path):
        assert read_workdir(tmp_path).summary["state"] == "in progress"


def test_a_sweep_and_its_runs(tmp_path):
    """The number of its runs is known once those on test images begin."""
    several = {"accuracies": {"base": 50.0, "new": 90.0}, "tested_images": {"base": 100, "new": 400}}
    rows = [
        cell("zero_shot", "a", 0, accuracy=50.0, images=100, parameters=0, seconds=1.0),
        cell("bias", "a", 1, learning_rate=0.5, **several),
        cell("bias", "a", 2, status="failed", error="no images.", loss=float("nan")),
    ]
    write(tmp_path, config=GRID, results=rows[:1] + rows[2:], state=state("running"), environment={"runs": 6})
    sweep = read_workdir(tmp_path)
    table = rows_of(render_runs([sweep], []))
    assert list(table) == [str(tmp_path)]
    row = table[str(tmp_path)]
    assert (row["State"], row["Progress"]) == ("killed; 1 run failed: no images.", "1 of 6 runs")
    assert (row["Method"], row["Seed"], row["Rate"], row["Shots"]) == ("zero_shot, bias", "1, 2", "0.1", "4")
    assert re.search(r"Zero-shot +50\.0 ± 5\.0", render_runs([sweep], []))  # the sweep's tables follow
    write(tmp_path, results=rows)
    content = json.loads(render_runs([read_workdir(tmp_path)], ["a problem"], form="json", every_run=True))
    runs = content["runs"][1:]
    assert [run["name"] for run in runs] == [f"{tmp_path}#{number}" for number in (1, 2, 3)]
    assert [run["accuracy"] for run in runs] == [50.0, {"base": 50.0, "new": 90.0}, None]
    assert [(run["error"], run["images"]) for run in runs[:2]] == [(5.0, 100), ([5.0, 1.5], [100, 400])]
    assert [run["state"] for run in runs] == ["finished", "finished", "failed: no images."]
    assert (runs[0]["seconds"], runs[2]["loss"], content["problems"]) == (1.0, None, ["a problem"])
    write(tmp_path, results=[], environment={})
    assert read_workdir(tmp_path).summary["progress"] == "0 runs"


def test_parts_of_a_sweep(tmp_path):
    """They share their results, and each has its state."""
    rows = [cell("zero_shot", name, 0, accuracy=50.0) for name in "ab"]
    write(tmp_path, config=GRID, results=rows, environment={"runs": 3})
    for number, name in enumerate(("finished", "interrupted", "finished"), start=1):
        write(tmp_path / "parts" / f"{number}-of-4", state=state(name))
    summary = read_workdir(tmp_path).summary
    assert summary["state"] == "part 1/4, 3/4 finished; part 2/4 interrupted"
    assert (summary["seconds"], summary["progress"]) == (225.0, "2 of 3 runs")
    write(tmp_path, results=[*rows, cell("bias", "a", 1, accuracy=60.0)])
    assert read_workdir(tmp_path).summary["state"] == "finished"
    with io.lock(tmp_path / "parts" / "2-of-4"):
        assert read_workdir(tmp_path).summary["state"] == "part 1/4, 3/4 finished; part 2/4 in progress"


def test_a_study_of_several_datasets(tmp_path):
    models = [
        {"method": name, "accuracy": 50.0, "images": 100, "parameters": {"total": total}}
        for name, total in (("zero_shot", 0), ("bias", 9))
    ]
    config = {**BASE, "sections": "all", "datasets": ["demo/a", "demo/b"]}
    write(tmp_path, config=config, state=state("interrupted"))
    write(tmp_path / "demo_a", results={"dataset": {"name": "demo/a"}, "models": models})
    study = read_workdir(tmp_path)
    table = rows_of(render_runs([study], [], every_run=True))
    row = table[str(tmp_path)]
    assert (row["What"], row["Method"], row["Dataset"]) == ("explain", "zero_shot, bias", "demo/a, demo/b")
    assert (row["Accuracy"], row["±"], row["Progress"]) == ("50.00, 50.00", "5.00, 5.00", "1 of 2 datasets")
    assert row["State"] == "interrupted"
    model = table[f"{tmp_path}#2"]
    assert (model["Method"], model["Dataset"], model["Parameters"]) == ("bias", "demo/a", "9")


def test_only_settings_that_differ(tmp_path):
    """Those of the environment too, but for the folder that is written to."""
    first = trained(tmp_path / "1", config={**TRAIN, "method_options": {"depth": 1}})
    other = {**ENVIRONMENT, "git": None, "packages": {"jax": "0.11", "clipbias": "0.1.0"}}
    config = {**TRAIN, "learning_rate": 0.2, "workdir": "v", "mesh": {"run": 1}}
    second = trained(tmp_path / "2", config=config, environment=other)
    workdirs = [read_workdir(folder) for folder in (first, second)]
    assert differences(workdirs) == {
        "environment.git.changed": [True, None],
        "environment.git.commit": ["0123456789abcdef", None],
        "environment.packages.jax": ["0.10", "0.11"],
        "learning_rate": [0.1, 0.2],
        "mesh.data": [-1, None],
        "method_options.depth": [1, None],
    }
    assert "Settings that differ" in render_runs(workdirs, [], form="markdown")
    assert "Settings that differ" not in render_runs(workdirs[:1], [])
    assert workdirs[0].settings["environment.devices"] == ["2 x gpu H100"]
