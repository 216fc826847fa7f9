"""Comparison of work folders: a row per run, and the settings in which they differ.

Only files are read: no device is touched, no model loaded. `training/workdir.py` describes a work folder.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias.errors import ClipbiasError
from clipbias.intervals import binomial_error
from clipbias.io import is_locked, read_json, read_json_lines, user_path
from clipbias.report.frames import read_sweep
from clipbias.report.names import shown_shots
from clipbias.report.sweep_tables import make_accuracy_tables
from clipbias.report.table import MISSING, Table, render
from clipbias.sentences import counted

FORMATS = ("text", "markdown", "json")
# A setting of each command that no other command has.
_BINARIES = {"methods": "table1", "texts": "predict", "sections": "explain", "ood": "evaluate", "method": "train"}
_ROW = ("method", "dataset", "seed", "key", "status")  # required fields of a line of results
_MOST_IN_A_CELL = 4
# Fields of a run, each with its column and the format of its numbers.
_COLUMNS = {
    "name": ("Run", "{}"),
    "binary": ("What", "{}"),
    "method": ("Method", "{}"),
    "dataset": ("Dataset", "{}"),
    "shots": ("Shots", "{}"),
    "seed": ("Seed", "{}"),
    "learning_rate": ("Rate", "{:g}"),
    "accuracy": ("Accuracy", "{:.2f}"),
    "error": ("±", "{:.2f}"),
    "images": ("Images", "{:,}"),
    "parameters": ("Parameters", "{:,}"),
    "loss": ("Loss", "{:.4g}"),
    "progress": ("Progress", "{}"),
    "seconds": ("Seconds", "{:,.1f}"),
    "state": ("State", "{}"),
}
_CAPTION = (
    "Accuracy: top-1 in percent, with its standard error and the number of test images; those of a sweep stand below."
    " Loss: of the last training step. Seconds: of all processes. Several values belong to several models or seeds."
)


@dataclasses.dataclass(frozen=True)
class Workdir:
    summary: Mapping[str, Any]  # its row, by `_COLUMNS`: JSON values, lists over models or seeds, or values by name
    settings: Mapping[str, Any]  # configuration and environment, `{"method_options.depth": 9}`
    runs: Sequence[Mapping[str, Any]] = ()  # a row per run of a sweep, or per model of a study
    results: Sequence[Mapping[str, Any]] = ()  # lines of a sweep's `results.jsonl`


def read_workdir(folder: str | Path) -> Workdir:
    """Reads the work folder of a run. Raises `ClipbiasError` if it is missing, of no run, or has a damaged file."""
    path = user_path(folder)
    if not path.is_dir():
        raise ClipbiasError(f"there is no folder {folder}; give the --workdir of a run.")
    config = _read_object(path / "config.json")
    if not {"model", "workdir"} <= config.keys():
        raise ClipbiasError(f"{folder} is not the work folder of a run: it holds no configuration.")
    parts = sorted(path.glob("parts/*/"))  # of jobs that share a sweep
    # Jobs that share a sweep write their environment to folders of their own.
    environment = next(filter(None, (_read_object(inside / "environment.json") for inside in (path, *parts))), {})
    states = {inside: _read_object(inside / "state.json") for inside in (path, *parts)}
    summary: dict[str, Any] = {
        "name": str(folder),
        "binary": next((binary for setting, binary in _BINARIES.items() if setting in config), "unknown"),
        "method": config.get("methods", config.get("method")),
        "dataset": config.get("datasets") or config.get("dataset"),
        "shots": config.get("shots"),
        "seed": config.get("seeds", config.get("seed")),
        "seconds": sum(each.get("seconds") or 0 for each in states.values()) or None,
        "state": _state_words(path, states[path]),
    }
    entries: list[dict[str, Any]] = []  # of each run or model
    results: list[dict[str, Any]] = []
    if summary["binary"] == "table1":
        results = entries = _read_lines(path / "results.jsonl", _ROW)
        failed = [row for row in entries if row["status"] != "ok"]
        done = len(entries) - len(failed)
        # How many runs a sweep has is known only once learning rates are selected.
        expected = environment.get("runs")  # known when runs on test images begin
        if parts:
            words = {part.name.replace("-of-", "/"): _state_words(part, states[part]) for part in parts}
            alike = {each: [name for name in words if words[name] == each] for each in words.values()}
            summary["state"] = "; ".join(f"part {', '.join(names)} {each}" for each, names in alike.items())
            if done == expected and "in progress" not in alike:
                summary["state"] = "finished"
        if failed:
            summary["state"] += f"; {counted(len(failed), 'run')} failed: {failed[0].get('error')}"
        summary["progress"] = f"{done} of {counted(expected, 'run')}" if expected else counted(done, "run")
        summary["learning_rate"] = sorted({row.get("learning_rate") for row in entries} - {None})
    elif summary["binary"] == "explain":
        # A study of several datasets has a folder for each, a study of one dataset has this one.
        folders = [path / name.replace("/", "_") for name in config.get("datasets") or ()] or [path]
        studies = [study for inside in folders if (study := _read_object(inside / "results.json"))]
        for study in studies:
            facts = {"dataset": study.get("dataset", {}).get("name"), "status": "ok"}
            entries += [{**model, **facts} for model in study.get("models", ())]
        models = [_results(row) for row in entries]
        summary |= {name: [row[name] for row in models] for name in ("method", "accuracy", "error", "images")}
        summary["parameters"] = [row["parameters"] for row in models]
        summary["dataset"] = summary["dataset"] or list(dict.fromkeys(row["dataset"] for row in models))
        summary["progress"] = f"{len(studies)} of {counted(len(folders), 'dataset')}"
    else:
        last = (_read_lines(path / "metrics.jsonl", ["step"]) or [{}])[-1]
        if last.get("steps") is not None:
            summary["progress"] = f"{last['step']} of {counted(last['steps'], 'step')}"
        summary |= {"learning_rate": config.get("learning_rate"), "loss": last.get("loss")}
        result = _results(_read_object(path / "result.json"))
        summary |= {name: value for name, value in result.items() if value is not None}
    runs = [
        {
            "name": f"{summary['name']}#{number}",
            "binary": summary["binary"],
            **_results(row),
            "seconds": row.get("seconds"),
            "state": "finished" if row["status"] == "ok" else f"failed: {row.get('error')}",
        }
        for number, row in enumerate(entries, start=1)
    ]
    return Workdir(summary, _settings(config, environment), runs, results)


def _results(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a run from its result; accuracies of several evaluations by name."""
    values = {name: row.get(name) for name in ("method", "dataset", "seed", "learning_rate", "parameters", "loss")}
    if isinstance(values["parameters"], dict):  # of a study, by tower
        values["parameters"] = values["parameters"].get("total")
    accuracy, images = row.get("accuracy"), row.get("images")
    # An error without the number of images would be a guess.
    error: Any = None
    if several := row.get("accuracies"):
        counts = row.get("tested_images") or {}
        accuracy, images = several, [counts.get(name) for name in several]
        error = [binomial_error(value, counts[name]) if counts.get(name) else None for name, value in several.items()]
    elif accuracy is not None and images:
        error = binomial_error(accuracy, images)
    shots = shown_shots(row) if "shots" in row else None
    return {**values, "shots": shots, "accuracy": accuracy, "error": error, "images": images}


def _state_words(folder: Path, state: Mapping[str, Any]) -> str:
    # A killed process leaves "running" behind; only the lock shows whether a process still works.
    if is_locked(folder):
        return "in progress"
    name = state.get("state", "not started")
    return f"failed: {state.get('error')}" if name == "failed" else {"running": "killed"}.get(name, name)


def _read_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file, empty without a file. Raises `ClipbiasError` if it is damaged."""
    return read_json(path, dict) if path.exists() else {}


def _read_lines(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    return [line for line in read_json_lines(path) if all(line.get(name) is not None for name in needed)]


def _settings(config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens configuration and environment, without the output folder, which always differs."""
    # Host names and times always differ, and say nothing about results.
    facts = {name: environment.get(name) for name in ("git", "python", "packages")}
    facts["devices"] = [f"{number} x {kind}" for kind, number in Counter(environment.get("devices") or ()).items()]
    flat: dict[str, Any] = {}
    nested: list[tuple[str, Any]] = [*config.items(), ("environment", facts)]
    for key, value in nested:
        if isinstance(value, dict):
            nested += [(f"{key}.{name}", item) for name, item in value.items()]
        elif key != "workdir":
            flat[key] = value
    return flat


def differences(workdirs: Sequence[Workdir]) -> dict[str, list[Any]]:
    """Returns the settings in which folders differ, `{"method_options.depth": value per folder}`; `None` if absent."""
    keys = sorted({key for workdir in workdirs for key in workdir.settings})
    # Versions differ in their settings: one that a folder lacks counts as `None`.
    values = {key: [workdir.settings.get(key) for workdir in workdirs] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def render_runs(
    workdirs: Sequence[Workdir], problems: Sequence[str], *, form: str = "text", every_run: bool = False
) -> str:
    """Renders runs (with `every_run` those of sweeps), accuracies, differing settings, and, as JSON, `problems`."""
    shown = [run for workdir in workdirs for run in (workdir.summary, *(workdir.runs if every_run else ()))]
    runs = [{name: run.get(name) for name in _COLUMNS} for run in shown]
    differing = differences(workdirs)
    if form == "json":
        content = json.dumps({"runs": runs, "differences": differing, "problems": list(problems)})
        # JSON has no NaN, such as the loss of a run that failed.
        return json.dumps(json.loads(content, parse_constant=lambda _: None), indent=2, ensure_ascii=False) + "\n"
    if not runs:
        return ""
    rows = [[_in_words(run[name], form=numbers) for name, (_, numbers) in _COLUMNS.items()] for run in runs]
    words = [number for number, (_, numbers) in enumerate(_COLUMNS.values()) if numbers == "{}"]
    tables = [Table("Runs", _CAPTION, [head for head, _ in _COLUMNS.values()], rows, words=words)]
    for workdir in [workdir for workdir in workdirs if workdir.results]:
        name = workdir.summary["name"]
        accuracies = make_accuracy_tables(read_sweep(workdir.results, user_path(name) / "predictions"))
        tables += [dataclasses.replace(table, title=f"{name}: {table.title}") for table in accuracies]
    if differing:
        rows = [[key, *map(_in_words, values)] for key, values in differing.items()]
        heads = ["Setting", *(workdir.summary["name"] for workdir in workdirs)]
        tables.append(Table("Settings that differ", "", heads, rows, words=range(len(heads))))
    return "\n\n".join(render(table, form) for table in tables) + "\n"


def _in_words(value: object, *, form: str = "{}") -> str:
    """Writes a value, several with commas or by name, more than four as their number: `6 values`."""
    if value in (None, [], "", {}):
        return MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(item, form=form)}" for key, item in value.items())
    if isinstance(value, list):
        # A terminal is narrow, and a sweep has hundreds of values.
        few = len(value) <= _MOST_IN_A_CELL
        return ", ".join(_in_words(item, form=form) for item in value) if few else f"{len(value)} values"
    return str(value) if isinstance(value, bool | str) else form.format(value)
