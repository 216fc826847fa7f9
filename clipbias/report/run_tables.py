"""Runs side by side: what they were, what they ran on, and in which settings they differ."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from clipbias.data.counts import interval_words
from clipbias.io import user_path
from clipbias.report.accuracy_tables import make_accuracy_tables
from clipbias.report.frames import read_sweep
from clipbias.report.names import method_name
from clipbias.report.runs import RunRecord, differences, is_number
from clipbias.report.table import MISSING, Table, cells, render

FORMATS = ("text", "markdown", "json")
ALWAYS = ("clipbias", "jax")  # versions that are shown even where they are the same everywhere

# More values than these do not fit a cell.
MOST_IN_A_CELL = 4
# Columns that hold words.
_WORDS = ("What", "Method", "Dataset", "Validation", "State")


def run_table(runs: Sequence[RunRecord]) -> Table:
    """One row per run."""
    columns: dict[str, Callable[[RunRecord], str]] = {
        "Run": lambda run: run.name,
        "What": lambda run: run.binary,
        "Method": lambda run: in_words(run.method, "methods"),
        "Dataset": lambda run: in_words(run.dataset, "datasets"),
        "Shots": lambda run: in_words(run.shots, "values"),
        "Seed": lambda run: in_words(run.seed, "seeds"),
        "Rate": lambda run: in_words(run.learning_rate, "values", "{:g}"),
        "Accuracy": _accuracies,
        "Parameters": lambda run: in_words(run.parameters, "values", "{:,}"),
        "Loss": lambda run: in_words(run.loss, "values", "{:.4g}"),
        "Time": lambda run: duration(run.seconds),
        "Waiting": lambda run: in_words(run.waiting, "values", "{:.0%}"),
        "Validation": lambda run: in_words(run.validation, "policies"),
        "State": lambda run: run.state,
    }
    if not any(map(_validates, runs)):
        del columns["Validation"]
    rows = tuple(cells(*(show(run) for show in columns.values())) for run in runs)
    caption = (
        "Top-1 accuracy in percent ± one standard error, or of few test images its 95 % interval, and their number; "
        "what each run was and what it took."
    )
    note = (
        "Several values belong to several models or seeds, in this order; a sweep's accuracies stand below. Loss: of"
        " the last training step. Time: of all processes. Waiting: the share of training time spent waiting for"
        " images." + " Validation: the images on which something was selected." * ("Validation" in columns)
    )
    words = [number for number, name in enumerate(columns) if name in _WORDS]
    return Table("Runs", caption, tuple(columns), rows, words=words, note=note)


def _validates(run: RunRecord) -> bool:
    """Whether something was selected on validation images."""
    policies = run.validation if isinstance(run.validation, list) else [run.validation]
    return bool({*policies} - {None, "none"})


def environment_table(runs: Sequence[RunRecord]) -> Table:
    """What each run depends on besides its configuration.

    Of the packages' versions those that differ are shown, and always those of `ALWAYS`.
    """
    packages = [run.environment.get("packages") or {} for run in runs]
    names = sorted({name for versions in packages for name in versions})
    shown = [name for name in names if name in ALWAYS or len({versions.get(name) for versions in packages}) > 1]
    rows = tuple(
        cells(
            run.name,
            git_words(run.environment.get("git")),
            devices_words(run.environment.get("devices") or ()),
            str(run.environment.get("python") or MISSING),
            *(str(versions.get(name) or MISSING) for name in shown),
        )
        for run, versions in zip(runs, packages, strict=True)
    )
    caption = "+ marks a source tree with changes that were not committed."
    columns = ("Run", "Commit", "Devices", "python", *shown)
    return Table("Environments", caption, columns, rows, words=range(len(columns)))


def difference_table(runs: Sequence[RunRecord]) -> Table | None:
    """The settings in which the runs' configurations differ, one row each; `None` where there are none."""
    settings = differences(runs)
    rows = tuple(cells(key, *map(_setting, values)) for key, values in settings.items())
    columns = ["Setting"] + [run.name for run in runs]
    return Table("Settings that differ", "", columns, rows, words=range(len(columns))) if settings else None


def render_runs(
    runs: Sequence[RunRecord], folders: Sequence[RunRecord], problems: Sequence[str], *, form: str = "text"
) -> str:
    """The tables as text, Markdown or JSON.

    Args:
      runs: one per row of the first table.
      folders: one per work folder.
      problems: what could not be read, a sentence each; told in JSON only.
      form: one of `FORMATS`.
    """
    if form == "json":
        content = {
            "runs": [{**dataclasses.asdict(run), "rows": None, **_means(run)} for run in runs],
            "differences": differences(folders) if folders else {},
            "problems": list(problems),
        }
        return json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n"
    if not runs and not folders:
        return ""
    tables = [run_table(runs)]
    for run in folders:
        tables += accuracies_of(run)
    tables.append(environment_table(folders))
    if len(folders) > 1 and (table := difference_table(folders)) is not None:
        tables.append(table)
    return "\n\n".join(render(table, form) for table in tables) + "\n"


def _means(run: RunRecord) -> dict[str, Any]:
    """A sweep's means and standard errors, as its tables have them."""
    if not run.rows:
        return {}
    frame = read_sweep(run.rows).cells.drop(columns=["correct", "drawn"]).reset_index()
    return {"accuracies": frame.astype(object).where(frame.notna(), None).to_dict("records")}


def in_words(value: object, many: str, form: str = "{}") -> str:
    """A value, several separated by commas, or more than four as their number: `6 methods`."""
    if value is None or value == [] or value == "":
        return MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(item, many, form)}" for key, item in value.items())
    if isinstance(value, list):
        if len(value) > MOST_IN_A_CELL:
            return f"{len(value)} {many}"
        return ", ".join(in_words(item, many, form) for item in value)
    return form.format(value) if is_number(value) else str(value)


def accuracies_of(run: RunRecord) -> list[Table]:
    """The accuracies that have no place in a run's line: those of a sweep, as `table1` has them, or of many models."""
    if run.rows:
        tables = make_accuracy_tables(read_sweep(run.rows, user_path(run.name) / "predictions"))
        return [dataclasses.replace(table, title=f"{run.name}: {table.title}") for table in tables]
    if not isinstance(run.accuracy, list) or len(run.accuracy) <= MOST_IN_A_CELL or not isinstance(run.method, list):
        return []
    rows = [
        cells(method_name(str(method)), accuracy)
        for method, accuracy in zip(run.method, _each_with_error(run.accuracy, run.error), strict=True)
    ]
    caption = "Top-1 accuracy in percent ± one standard error."
    return [Table(f"Accuracies of {run.name}", caption, ("Method", "Accuracy"), rows)]


def _accuracies(run: RunRecord) -> str:
    many = isinstance(run.accuracy, list) and len(run.accuracy) > MOST_IN_A_CELL
    return "see below" if run.rows or many else _with_error(run.accuracy, run.error, run.images)


def _with_error(value: object, error: object, images: object = None) -> str:
    """A number, numbers by name or in a list, each with its error and the number of images where these are known."""
    if isinstance(value, Mapping):
        errors = error if isinstance(error, Mapping) else {}
        counts = images if isinstance(images, Mapping) else {}
        words = (f"{key} {_with_error(item, errors.get(key), counts.get(key))}" for key, item in value.items())
        return ", ".join(words) or MISSING
    if isinstance(value, list) and value:
        shared = set(images) if isinstance(images, list) else set()
        return ", ".join(_each_with_error(value, error)) + (_of(*shared) if len(shared) == 1 else "")
    number = in_words(value, "values", "{:.2f}")
    if not is_number(value) or not is_number(error):
        return number
    if isinstance(value, float) and isinstance(images, int) and (interval := interval_words(value, images)):
        return f"{number} ({interval}){_of(images)}"
    return f"{number} ± {error:.2f}{_of(images)}"


def _of(images: object) -> str:
    return f" of {images:,}" if is_number(images) else ""


def _each_with_error(values: Sequence[object], errors: object) -> Iterator[str]:
    return map(_with_error, values, errors if isinstance(errors, list) and errors else itertools.repeat(None))


def duration(seconds: float | None) -> str:
    """`8.3 s`, `2 min 05 s`, `3 h 12 min`."""
    if seconds is None or not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def git_words(git: Mapping[str, Any] | None) -> str:
    """The first letters of a commit, with a + where the tree had changes; a dash outside a repository."""
    return f"{str(git.get('commit'))[:10]}{'+' if git.get('changed') else ''}" if git else MISSING


def devices_words(devices: Sequence[str]) -> str:
    """`8 x gpu NVIDIA H100`: equal devices counted."""
    kinds = dict.fromkeys(devices)
    return ", ".join(f"{list(devices).count(kind)} x {kind}" for kind in kinds) or MISSING


def _setting(value: object) -> str:
    return {"": "''", "[]": "()"}.get(str(value)) or in_words(value, "values")


def _plain(value: object) -> object:
    """`value` in JSON's own types; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
