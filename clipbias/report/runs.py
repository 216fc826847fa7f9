"""Work folders of the binaries as records: what was run, how far it came, what came out, and on what.

Only files are read; no device is touched and no model loaded. `training/workdir.py` says what lies in a work folder.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias.data.confusion import binomial_error
from clipbias.errors import ClipbiasError
from clipbias.io import is_locked, read_json, read_json_lines, user_path
from clipbias.report.names import shown_shots
from clipbias.sentences import counted

_ROW = ("method", "dataset", "seed", "key", "status")  # fields that a line of results needs

# What tells the configuration of one binary from another's where the command does not.
BINARIES = {
    "table1": "methods",
    "predict": "texts",
    "explain": "sections",
    "evaluate": "ood",
    "train": "method",
}


Setting = str | int | float
Settings = Setting | Sequence[Setting | None] | None  # a list where a run has several values
Numbers = float | Sequence[float | None] | Mapping[str, float] | None  # a list by model, a dictionary by evaluation


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run, or a whole sweep. A field is a list where a run has several values, and `None` where it has none.

    Attributes:
      name: the folder as it was given; for a run of a sweep also its number.
      binary: "train", "table1", "evaluate", …
      state: in words: finished, in progress at step x of y, failed with its sentence, …
      accuracy: in percent, or several by the name of an evaluation; of a study one for each model. A sweep has rows.
      error: the standard error that the choice of test images makes, likewise; images: how many there are.
      rows: of a sweep's `results.jsonl`.
      loss: of the last training step, per seed.
      seconds: computing time, all processes that worked on it.
      waiting: share of its steps' time, in the last process, that was spent waiting for images; of a sweep the mean.
      validation: the images on which something was selected, "none" where nothing was.
      environment: what `environment.json` holds; config: what `config.json` holds.
    """

    name: str
    binary: str
    state: str
    method: Settings = None
    dataset: Settings = None
    shots: Settings = None
    seed: Settings = None
    learning_rate: Settings = None
    accuracy: Numbers = None
    error: Numbers = None
    images: Numbers = None
    parameters: Settings = None
    loss: Settings = None
    seconds: float | None = None
    waiting: float | None = None
    validation: Settings = None
    rows: Sequence[Mapping[str, Any]] = ()
    started: str | None = None
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_workdir(folder: str | Path, *, cells: bool = False) -> list[RunRecord]:
    """Reads a work folder: one record; of a sweep with `cells` one per run; of a study of several datasets one each.

    Raises:
      ClipbiasError: there is no such folder, it is not one of ours, or a file in it is damaged.
    """
    path = user_path(folder)
    if not path.is_dir():
        raise ClipbiasError(f"there is no folder {folder}; give the --workdir of a run.")
    config = read_object(path / "config.json")
    if config is None or not {"model", "workdir"} <= config.keys():
        raise ClipbiasError(f"{folder} is not the work folder of a run: it holds no configuration of an experiment.")
    parts = sorted(path.glob("parts/*/"))
    environments = (read_object(inside / "environment.json") for inside in (path, *parts))
    environment: Mapping[str, Any] = next(filter(None, environments), {})
    state = read_object(path / "state.json") or {}
    binary = _binary(config, environment)
    metrics = metric_lines(path)
    common = RunRecord(
        name=str(folder),
        binary=binary,
        state="",
        seconds=state.get("seconds") or sum(line.get("seconds") or 0 for line in metrics) or None,
        started=state.get("started"),
        environment=environment,
        config=config,
    )
    if binary == "table1":
        return _sweep(path, common, state, parts, cells=cells)
    if binary == "explain":
        return _study(path, common, state)
    result = read_object(path / "result.json") or {}
    last: Mapping[str, Any] = metrics[-1] if metrics else {}
    progress = f" at step {last['step']} of {last['steps']}" if last.get("steps") is not None else ""
    finished = bool(result) or (path / "predictions.json").exists()
    return [
        dataclasses.replace(
            common,
            state=state_in_words(path, state, finished=finished, progress=progress),
            method=result.get("method", config.get("method")),
            dataset=result.get("dataset", config.get("dataset")),
            shots=shown_shots(result) if "shots" in result else config.get("shots"),
            seed=result.get("seed", config.get("seed")),
            learning_rate=config.get("learning_rate") if binary == "train" else None,
            accuracy=result.get("accuracy"),
            error=_error(result),
            images=_images(result),
            parameters=result.get("parameters"),
            loss=result.get("loss", last.get("loss")),
            waiting=result.get("waiting_share"),
            validation=result.get("validation"),
        )
    ]


def state_in_words(folder: Path, state: Mapping[str, Any], *, finished: bool, progress: str = "") -> str:
    """How a run stands: its `state.json`, or where there is none its results, and whether a process works on it."""
    known = state.get("state")
    if is_locked(folder):
        return f"in progress{progress}"
    if known == "failed":
        return f"failed{progress}: {state.get('error')}"
    if known == "finished" or (known is None and finished):
        return "finished"
    return {"interrupted": "interrupted", "running": "killed"}.get(str(known), "not finished") + progress


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or `None` if there is no such file. Raises `ClipbiasError` if it is damaged."""
    return read_json(path, dict) if path.exists() else None


def read_lines(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a JSONL file that have the needed fields. Raises `ClipbiasError` if no line is a JSON object."""
    lines = read_json_lines(path)
    # The first line of all, cut short, is what a run leaves that was killed as it began.
    content = path.read_bytes().strip() if not lines and path.is_file() else b""
    if content and not content.startswith(b"{"):
        raise ClipbiasError(f"{path} is damaged: no line of it is a JSON object.")
    return [line for line in lines if all(line.get(name) is not None for name in needed)]


def metric_lines(folder: Path) -> Sequence[Mapping[str, Any]]:
    """The lines of a folder's `metrics.jsonl`."""
    return read_lines(folder / "metrics.jsonl", ["step"])


def _binary(config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    command = environment.get("command")
    # A path, or "clipbias train".
    name = Path(str(command[0]).rpartition(" ")[2]).stem if isinstance(command, list) and command else ""
    return name if name in BINARIES else next((binary for binary, key in BINARIES.items() if key in config), "unknown")


def _error(result: Mapping[str, Any]) -> float | dict[str, float] | None:
    """What the choice of test images makes of an accuracy, or of each of several."""
    if accuracies := result.get("accuracies"):
        counts = result.get("tested_images") or {}
        return {name: binomial_error(value, counts[name]) for name, value in accuracies.items() if counts.get(name)}
    return _binomial_error(result)


def _images(result: Mapping[str, Any]) -> Numbers:
    """The number of test images of an accuracy, or of each of several."""
    return result.get("tested_images") if result.get("accuracies") else result.get("images")


def _binomial_error(result: Mapping[str, Any]) -> float | None:
    accuracy = result.get("accuracy")
    images = result.get("images")
    return binomial_error(accuracy, images) if accuracy is not None and images else None


def _sweep(
    folder: Path, common: RunRecord, state: Mapping[str, Any], parts: Sequence[Path], *, cells: bool
) -> list[RunRecord]:
    """A sweep's line, or one line per run that ended."""
    rows = read_lines(folder / "results.jsonl", _ROW)
    if cells:
        return [_run(common, number, row) for number, row in enumerate(rows, start=1)]
    expected = common.environment.get("runs")  # known when runs on test images begin
    failed = [row for row in rows if row["status"] != "ok"]
    progress = f" after {_of_runs(len(rows) - len(failed), expected)}"
    finished = len(rows) == expected
    if parts:
        words, seconds = _parts(parts, finished=finished and not failed, progress=progress)
        common = dataclasses.replace(common, seconds=(common.seconds or 0) + seconds)
    else:
        words = state_in_words(folder, state, finished=finished, progress=progress)
    if failed:
        words += f"; {_of_runs(len(failed), expected)} failed: {failed[0].get('error')}"
    rates = {row["learning_rate"] for row in rows if row.get("learning_rate") is not None}
    waiting = [row["waiting_share"] for row in rows if row.get("waiting_share") is not None]
    record = dataclasses.replace(
        common,
        state=words,
        method=_values(common.config, "methods"),
        dataset=_values(common.config, "datasets"),
        shots=_values(common.config, "shots"),
        seed=_values(common.config, "seeds"),
        learning_rate=sorted(rates) or None,
        waiting=sum(waiting) / len(waiting) if waiting else None,
        validation=list(dict.fromkeys(row["validation"] for row in rows if row.get("validation"))),
        rows=rows,
    )
    return [record]


def _of_runs(count: int, expected: int | None) -> str:
    """`1 run`, or `1 of 4 runs` where their number is known."""
    return f"{count} of {counted(expected, 'run')}" if expected else counted(count, "run")


def _parts(parts: Sequence[Path], *, finished: bool, progress: str) -> tuple[str, float]:
    """How the jobs that share a sweep stand, each in words where they differ, and the seconds of all."""
    states = {inside.name.replace("-of-", "/"): read_object(inside / "state.json") or {} for inside in parts}
    seconds = sum(state.get("seconds") or 0 for state in states.values())
    words = {
        name: state_in_words(inside, state, finished=False)
        for inside, (name, state) in zip(parts, states.items(), strict=True)
    }
    if finished and "in progress" not in words.values():
        return "finished", seconds
    by_state: dict[str, list[str]] = {}
    for name, state_words in words.items():
        by_state.setdefault(state_words, []).append(name)
    each = "; ".join(
        f"part{'s' * (len(names) > 1)} {', '.join(names)} {state_words}" for state_words, names in by_state.items()
    )
    return f"{each}{progress}" if len(by_state) == 1 else f"{each};{progress}", seconds


def _run(common: RunRecord, number: int, row: Mapping[str, Any]) -> RunRecord:
    state = "finished" if row.get("status") == "ok" else f"failed: {row.get('error')}"
    return dataclasses.replace(
        common,
        name=f"{common.name}#{number}",
        state=state,
        waiting=row.get("waiting_share"),
        accuracy=row.get("accuracy", row.get("accuracies")),
        error=_error(row),
        images=_images(row),
        method=row.get("method"),
        dataset=row.get("dataset"),
        shots=shown_shots(row),
        seed=row.get("seed"),
        learning_rate=row.get("learning_rate"),
        parameters=row.get("parameters"),
        loss=row.get("loss"),
        seconds=row.get("seconds"),
        validation=row.get("validation"),
    )


def _values(config: Mapping[str, Any], axis: str) -> list[Any]:
    values = config.get(axis) or []
    return values if isinstance(values, list) else [values]


def _study(folder: Path, common: RunRecord, state: Mapping[str, Any]) -> list[RunRecord]:
    """A line per dataset of a study, with the accuracies of all models, zero-shot first."""
    names = common.config.get("datasets") or [""]
    runs = []
    for name in names:
        inside = folder / name.replace("/", "_") if name else folder
        results = read_object(inside / "results.json") or {}
        models = results.get("models") or []
        runs.append(
            dataclasses.replace(
                common,
                name=common.name if not name else str(Path(common.name) / inside.name),
                state=state_in_words(folder, state, finished=bool(results)),
                method=[model.get("method") for model in models] or None,
                dataset=(results.get("dataset") or {}).get("name") or name or common.config.get("dataset") or None,
                accuracy=[model.get("accuracy") for model in models] or None,
                error=[_binomial_error(model) for model in models] or None,
                images=[model.get("images") for model in models] or None,
                parameters=[(model.get("parameters") or {}).get("total") for model in models] or None,
                seconds=results.get("seconds", common.seconds),
            )
        )
    return runs


def differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The settings in which configurations differ, `{"method_options.depth": value per run}`; absent ones are `None`.

    The folder that is written to differs always and is left out.
    """
    flat = [dict(_flat(run.config)) for run in runs]
    keys = sorted({key for settings in flat for key in settings} - {"workdir"})
    values = {key: [settings.get(key) for settings in flat] for key in keys}
    return {key: of_runs for key, of_runs in values.items() if any(value != of_runs[0] for value in of_runs)}


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in config.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def is_number(value: object) -> bool:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
