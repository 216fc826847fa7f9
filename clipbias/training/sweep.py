"""A sweep: axes to specs, specs to rows.

Every group has one file, `results/NAME.json`, written whole when it ends; `results.jsonl` is made of them. So the same
command continues a sweep that was stopped, and independent jobs share a work folder.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import logging
from etils import epath

from clipbias import hosts
from clipbias.checks import shown
from clipbias.data import Dataset, held_out, names, protocols
from clipbias.errors import ClipbiasError, UnreadableImage, sentence
from clipbias.io import read_json, write_text
from clipbias.training.context import SweepContext
from clipbias.training.device import drop_many_programs
from clipbias.training.predictions import PREDICTIONS_FOLDER, stored_identity
from clipbias.training.progress import Progress
from clipbias.training.rates import Rates
from clipbias.training.run import run_group, spec_facts
from clipbias.training.select import as_options, searches_options, with_given
from clipbias.training.spec import (
    TEST,
    UNSELECTED,
    VALIDATION,
    Group,
    Row,
    RunSpec,
    data_identity,
    make_groups,
    part_of,
    run_names,
)
from clipbias.training.workdir import SweepPaths, note_runs
from clipbias.tuning.prompts import Classes
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import METHODS, method_options, resolve_method, source_digest
from clipbias.tuning.task import task_identity

GROUP_RESULTS = "results"
RESULTS = "results.jsonl"
VALIDATED = "validation.jsonl"


def sweep(
    specs: Sequence[RunSpec],
    context: SweepContext,
    workdir: Path,
    common: Recipe,
    *,
    part: tuple[int, int] = (0, 1),
    most_runs: int | None = None,
    calibrates: bool = False,
    facts: Mapping[str, Row] | None = None,
) -> list[Row]:
    """Runs unfinished specs of part `(i, n)`; returns the rows of all finished specs, other parts' too, in their order.

    At most `most_runs` run side by side (`None`: as many as are worth it). For the others see `run_group`; with
    `calibrates` a run without prediction sets is unfinished.
    """
    # A group that fails is reported in its rows, and the others go on.
    # Processes with other specs would wait for one another in the middle of a group, without an error.
    hosts.assert_same("the runs of the sweep", [spec.key for spec in specs])
    paths = SweepPaths(workdir, run_names(specs))
    paths.refuse_other_kind()

    def finished_rows() -> list[Row]:
        # With today's facts: the rates that a finished run was selected from may be more by now.
        return [row | (facts or {}).get(row["key"], {}) for row in hosts.from_first(lambda: read_rows(workdir, specs))]

    rows = finished_rows()

    def is_replaced(row: Row) -> bool:
        """Whether a later run, on other images or with other settings, overwrote the files of this row."""
        names: Mapping[str, str] = row.get("predictions", {})
        stored = {name: stored_identity(workdir / PREDICTIONS_FOLDER / f"{file}.npz") for name, file in names.items()}
        # A file that is gone or damaged is no sign of another run.
        return any(value not in (None, row["identities"][name]) for name, value in stored.items())

    done = {row["key"] for row in rows if row["status"] == "ok" and (not calibrates or "prediction_sets" in row)}
    done -= set(hosts.from_first(lambda: [row["key"] for row in rows if is_replaced(row)]))
    groups = make_groups(part_of(specs, part), most_runs)
    # Groups are made of all specs, finished or not, so that a sweep that continues runs the rest of the same groups.
    left = [tuple(spec for spec in group if spec.key not in done) for group in groups]
    todo = [group for group in left if group]
    if hosts.is_first() and (folder := workdir / "checkpoints").is_dir():
        # Checkpoints of finished groups: a process was killed between writing their rows and removing these.
        there = {path.name for path in folder.iterdir()}
        finished = [group for group, specs_left in zip(groups, left, strict=True) if not specs_left]
        for checkpoints in map(paths.checkpoints, finished):
            if checkpoints.name in there:
                epath.Path(checkpoints).rmtree(missing_ok=True)
    write_results(workdir, rows)
    if specs[0].score_on == TEST:
        note_runs(workdir, len(specs))
    run = functools.partial(run_group, context=context, paths=paths, calibrates=calibrates)
    if done and todo:
        logging.info("%d of %d runs are finished already", len(done), len(specs))
    title = "runs" if all(spec.score_on == TEST for spec in specs) else "runs on validation images"
    with contextlib.closing(Progress(sum(map(len, todo)), title=title)) as bar:
        ended = 0
        for group in todo:
            # A notice to stop ends the sweep here, between groups, where nothing is lost.
            hosts.check()
            drop_many_programs()
            context.begin(group[0].dataset)
            for attempted, new in _attempt(group, run, common, facts or {}, bar):
                rows = _in_order([*rows, *new], specs)
                # After every group, so that a kill costs one group at most.
                write_group(attempted, new, paths)
                write_results(workdir, rows)
                accuracies = [row.get("accuracy", row.get("validation_accuracy")) for row in new]
                scored = [value for value in accuracies if value is not None]
                mean = f" {sum(scored) / len(scored):.1f} %" if scored else ""
                ended += len(attempted)
                bar.advance_to(ended, {"last": f"{attempted[0].method} on {attempted[0].dataset}{mean}"})
    # Read again, since other parts may have ended meanwhile: the last part to end writes all rows.
    rows = finished_rows()
    write_results(workdir, rows)
    return rows


# Share of a run's training on the bar; evaluation is the rest.
_TRAINED = 0.9


def _attempt(
    group: Group, run: Callable[..., list[Row]], common: Recipe, facts: Mapping[str, Row], bar: Progress
) -> list[tuple[Group, list[Row]]]:
    """Runs a group; returns pairs of group and rows. After a failure each learning rate runs by itself."""
    began = time.monotonic()
    title = f"{group[0].method} on {group[0].dataset}, {group[0].shots_words}"
    part = bar.part(_TRAINED * len(group), title)
    try:
        rows = run(group, common=common, facts=facts, progress=part)
    except Exception as error:
        # Several processes survive only errors that all of them meet: after any other they would wait for this one.
        alike = isinstance(error, ClipbiasError) and not isinstance(error, UnreadableImage)
        alike = alike and not hosts.lost_peer(error)
        if hosts.multi_process() and not alike:
            raise
        # One diverging rate ends the program of all rates: one by one the good ones get their rows.
        if len(rates := dict.fromkeys(spec.learning_rate for spec in group)) > 1:
            by_rate = [tuple(spec for spec in group if spec.learning_rate == rate) for rate in rates]
            return [ended for alike in by_rate for ended in _attempt(alike, run, common, facts, bar)]
        if not isinstance(error, ClipbiasError):
            logging.error("%s", "".join(traceback.format_exception(error)))
        bar.say(f"failed: {title}: {sentence(error)}")
        failure = {"status": "failed", "error": sentence(error)}
        rows = [spec_facts(spec, common) | failure | facts.get(spec.key, {}) for spec in group]
    return [(group, [row | {"seconds": round((time.monotonic() - began) / len(group), 2)} for row in rows])]


def write_group(group: Group, rows: Sequence[Row], paths: SweepPaths) -> None:
    """Writes the rows of a group, and removes its checkpoints."""
    if hosts.is_first():
        # Whole, and before the checkpoints go: killed at any moment, the group is finished or continues.
        text = json.dumps(list(rows), indent=1)
        write_text(paths.workdir / GROUP_RESULTS / f"{paths.group_file(group)}.json", text + "\n")
        if all(row["status"] == "ok" for row in rows):
            epath.Path(paths.checkpoints(group)).rmtree(missing_ok=True)


def read_rows(workdir: Path, specs: Sequence[RunSpec]) -> list[Row]:
    paths = sorted((workdir / GROUP_RESULTS).glob("*.json"))
    return _in_order([row for path in paths for row in read_json(path, list, what="a file of results")], specs)


def _in_order(rows: Sequence[Row], specs: Sequence[RunSpec]) -> list[Row]:
    """Returns the last row of each spec, in their order; for a run that failed and ran again, the good row."""
    by_key: dict[str, Row] = {}
    for row in rows:
        if row["status"] == "ok" or by_key.get(row["key"], row)["status"] != "ok":
            by_key[row["key"]] = row
    return [by_key[spec.key] for spec in specs if spec.key in by_key]


def write_results(workdir: Path, rows: Sequence[Row]) -> None:
    if hosts.is_first():
        name = VALIDATED if rows and rows[0]["score_on"] != TEST else RESULTS
        write_text(workdir / name, "".join(json.dumps(row) + "\n" for row in rows))


def parse_part(part: str | None) -> tuple[int, int]:
    """Reads `"2/4"` as `(1, 4)`, and `None` as the whole, `(0, 1)`. Raises `ClipbiasError` for anything else."""
    if part is None:
        return 0, 1
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ClipbiasError(f"part is {part!r}; give its number and that of all parts, such as 1/4, from 1 on.")
    return int(match[1]) - 1, int(match[2])


@dataclasses.dataclass(frozen=True)
class SweepAxes:
    """Axes of a sweep: each method on each dataset, with each number of shots, seed and learning rate."""

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    shots: tuple[int | None, ...]  # `None` stands for all images
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...] = ()  # to compare, for methods that train with the common recipe
    # By method name, or by `method@dataset`.
    options: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    start_seed: int | None = None
    protocol: str = "few_shot"
    targets: tuple[str, ...] = ()  # empty for the literature's
    concentration: float = protocols.CONCENTRATION
    hold_out_shot: bool = False  # one training image of each class selects settings (`data.held_out.SHOT`)
    score_on: str = TEST
    # Names of recipe settings, and of options as `method_options.NAME`, that replace those of methods' authors.
    given: tuple[str, ...] = ()


def make_specs(context: SweepContext, common: Recipe, axes: SweepAxes, rates: Rates | None = None) -> list[RunSpec]:
    """Makes the specs of all combinations, dataset by dataset, without datasets that the context lacks.

    Raises `ClipbiasError` where an axis is empty or has a value twice, or for an unknown method or option.
    """
    for name in ("methods", "datasets", "shots", "seeds", "learning_rates"):
        values = getattr(axes, name)
        if not values and name != "learning_rates":
            raise ClipbiasError(f"there are no {name}, so nothing can run; give at least one.")
        if repeated := [value for place, value in enumerate(values) if value in values[:place]]:
            raise ClipbiasError(f"{name} has {shown(repeated[0])} twice; name each once.")
    if axes.protocol == "full" and axes.shots != (None,):
        raise ClipbiasError("the protocol full trains on all images; give --config.shots=None.")
    if axes.protocol not in ("few_shot", "full", "pseudo_labels") and None in axes.shots:
        raise ClipbiasError(f"the protocol {axes.protocol} draws images of each class; give --config.shots=16.")
    if axes.concentration != protocols.CONCENTRATION and axes.protocol != protocols.IMBALANCED:
        raise ClipbiasError(f"the protocol {axes.protocol} has no concentration; leave it out, or take 'imbalanced'.")
    for key in axes.options:
        of_method, _, of_dataset = key.partition("@")
        if of_method not in (*METHODS, *axes.methods) or of_dataset not in ("", *names(), *axes.datasets):
            raise ClipbiasError(f"method_options has {shown(key)}; give METHOD or METHOD@DATASET, with known names.")
    for name in axes.methods:  # a misspelt option is reported before any dataset is looked at
        resolve_method(name, axes.options.get(name, {}))
    specs = []
    # Once for the same datasets: an identity looks at every file.
    data_of = functools.cache(lambda names: data_identity([context.datasets[name] for name in names]))
    datasets = [context.datasets[name] for name in axes.datasets if name in context.datasets]
    for dataset, name in itertools.product(datasets, axes.methods):
        options = {**axes.options.get(name, {}), **axes.options.get(f"{name}@{dataset.name}", {})}
        # Given settings replace those of a method's own recipe, unless they are given as its options.
        places = ("method_options", f"method_options.{name}", f"method_options.{name}@{dataset.name}")
        as_given = [each for each in axes.given if not {f"{place}.{each}" for place in places} & set(axes.given)]
        given = {each: value for each, value in vars(common).items() if each in as_given}
        options |= as_options(name, given)
        for shots in axes.shots if resolve_method(name, options).uses_images else (None,):
            method = resolve_method(name, options, dataset=dataset.name, shots=shots)
            if method.uses_images and len(dataset.class_names) < 2:
                raise ClipbiasError(
                    f"{dataset.name} has a single class, {dataset.class_names[0]!r}; give images of two classes at "
                    "least. A folder of images holds a folder for each class."
                )
            # All labelled images are the protocol "full", whatever the sweep draws elsewhere.
            is_full = shots is None and method.uses_images and axes.protocol != "pseudo_labels"
            protocol = "full" if is_full else axes.protocol
            targets = protocols.targets_of(axes.protocol, dataset.name, axes.targets)
            # Learning rates are compared, or taken from a selection, for the common recipe alone: a method with its own
            # recipe keeps its authors' rate.
            recipe = with_given(method, method.recipe_for(common, shots), given, options) if method.trains else None
            takes_rates = recipe is not None and recipe.learning_rate == common.learning_rate
            listed = rates.of(name, dataset.name, shots) if takes_rates and rates is not None else None
            learning_rates = axes.learning_rates if takes_rates and axes.learning_rates else (listed,)
            # The policy names the images that select something, now or in the sweep that selected the rates. Rates that
            # are all tested select nothing.
            selected = (axes.score_on == VALIDATION and len(learning_rates) > 1) or listed is not None
            validation = _policy(axes, dataset, shots) if selected or searches_options(method) else UNSELECTED
            # Without training images no seed changes anything: one run.
            seeds = axes.seeds if method.uses_images else (0,)
            is_imbalanced = protocol == protocols.IMBALANCED and method.uses_images
            for learning_rate, seed in itertools.product(learning_rates, seeds):
                spec = RunSpec(
                    method=name,
                    options=method_options(method),
                    dataset=dataset.name,
                    protocol=protocol,
                    targets=targets,
                    shots=shots,
                    seed=seed,
                    start_seed=None if axes.start_seed == seed or not method.uses_images else axes.start_seed,
                    recipe=recipe and recipe.with_learning_rate(learning_rate),
                    dtype=context.dtype,
                    task=task_identity(context.clip, method, Classes.of(dataset), context.dtype),
                    source=source_digest(type(method)),
                    data=data_of((dataset.name, *targets)),
                    on_image_error=context.reading.on_error,
                    score_on=axes.score_on,
                    validation=validation,
                    concentration=axes.concentration if is_imbalanced else None,
                )
                specs.append(spec)
    if "learning_rate" in axes.given and specs and all(spec.recipe is None for spec in specs):
        raise ClipbiasError(f"{', '.join(axes.methods)} learns without steps; leave out the learning rate.")
    return specs


def _policy(axes: SweepAxes, dataset: Dataset, shots: int | None) -> str:
    if not axes.hold_out_shot:
        return protocols.validation_policy(dataset)
    if axes.protocol == "pseudo_labels":
        raise ClipbiasError("pseudo-labelled images have no label to select by; leave out --config.hold_out_shot.")
    if shots == 1:
        raise ClipbiasError(
            "a single shot cannot both train and be held out; take more --config.shots, or leave out "
            "--config.hold_out_shot."
        )
    return held_out.SHOT
