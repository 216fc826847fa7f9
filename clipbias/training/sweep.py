"""A sweep: axes to specs, specs to rows.

Every group has one file, `results/NAME.json`, written whole when it ends; `results.jsonl` is made of them. So a sweep
that was stopped or killed continues when the same command is given again, and independent jobs can share a work folder:
part `i/n` runs every n-th method, dataset and number of shots.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from clipbias import hosts
from clipbias.checks import shown
from clipbias.data import Dataset, held_out, protocols
from clipbias.errors import ClipbiasError, UnreadableImage, sentence
from clipbias.identity import identity
from clipbias.io import read_json, write_text
from clipbias.training.context import SweepContext
from clipbias.training.device import drop_programs
from clipbias.training.predictions import PREDICTIONS, stored_identity
from clipbias.training.progress import Progress
from clipbias.training.rates import Rates
from clipbias.training.run import run_group, spec_facts
from clipbias.training.select import as_options, searches_options, with_given
from clipbias.training.spec import TEST, UNSELECTED, Group, Row, RunSpec, make_groups, part_of, run_names
from clipbias.training.workdir import SweepPaths, note_runs
from clipbias.tuning.prompts import Classes
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import method_options, resolve_method, source_digest
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
    """Runs what is not finished yet. A group that fails is reported in its rows, and the rest goes on.

    Args:
      specs, context, workdir: all runs of the sweep, what they share, and its folder.
      common: the recipe of methods that have none of their own.
      part: `(i, n)` of jobs that share the work folder.
      most_runs: runs side by side; `None` for as many as are worth it.
      calibrates: see `run_group`; a run without prediction sets counts as not finished.
      facts: what is added to a row and its adapter, by the key of its spec.

    Returns:
      The rows of all specs that are there, other parts' too, in the order of the specs.
    """
    hosts.assert_same("the runs of the sweep", [spec.key for spec in specs])
    paths = SweepPaths(workdir, run_names(specs))
    if other := hosts.from_first(paths.other_kind):
        raise ClipbiasError(
            f"{workdir} holds {other}, which `predict` and others would take; choose another --workdir."
        )
    rows = hosts.from_first(lambda: read_rows(workdir, specs))

    def is_replaced(row: Row) -> bool:
        """Whether a run on other images, or with other settings, wrote its files under the same names later."""
        names: Mapping[str, str] = row.get("predictions", {})
        stored = {name: stored_identity(workdir / PREDICTIONS / f"{file}.npz") for name, file in names.items()}
        return any(value not in (None, row["identities"][name]) for name, value in stored.items())

    replaced = hosts.from_first(lambda: [row["key"] for row in rows if is_replaced(row)])
    done = {row["key"] for row in rows if row["status"] == "ok" and (not calibrates or "prediction_sets" in row)}
    done -= set(replaced)
    groups = make_groups(part_of(specs, part), most_runs)
    left = [tuple(spec for spec in group if spec.key not in done) for group in groups]
    todo = [group for group in left if group]
    folder = workdir / "checkpoints"
    if hosts.is_first() and folder.is_dir():
        # Those of finished groups: a process left them that was killed after it wrote their rows.
        there = {path.name for path in folder.iterdir()}
        finished = [group for group, specs_left in zip(groups, left, strict=True) if not specs_left]
        for checkpoints in map(paths.checkpoints, finished):
            if checkpoints.name in there:
                epath.Path(checkpoints).rmtree(missing_ok=True)
    write_results(workdir, rows)
    if specs[0].score_on == TEST:
        note_runs(workdir, len(specs))
    total = sum(map(len, todo))
    if done and todo:
        logging.info("%d of %d runs are finished already", len(done), len(specs))
    title = "runs" if all(spec.score_on == TEST for spec in specs) else "runs on validation images"
    with contextlib.closing(Progress(total, unit="run", title=title)) as bar:
        before: tuple[str, str] | None = None
        ended = 0
        for group in todo:
            hosts.check()
            # The groups of a method on a dataset, with more and fewer shots, share most of their programs.
            owner = group[0].method, group[0].dataset
            if before not in (None, owner):
                drop_programs()
            before = owner
            context.begin(group[0].dataset)
            for attempted, new in _attempt(group, context, paths, common, calibrates, facts or {}, bar):
                rows = _in_order([*rows, *new], specs)
                write_group(attempted, new, paths)
                write_results(workdir, rows)
                accuracies = [row.get("accuracy", row.get("validation_accuracy")) for row in new]
                scored = [value for value in accuracies if value is not None]
                mean = f" {sum(scored) / len(scored):.1f} %" if scored else ""
                last = f"{attempted[0].method} on {attempted[0].dataset}{mean}"
                ended += len(attempted)
                bar.advance_to(ended, {"last": last})
    rows = hosts.from_first(lambda: read_rows(workdir, specs))  # other parts may have ended meanwhile
    write_results(workdir, rows)
    return rows


# The share of a run on the bar that its training is; evaluation is the rest.
_TRAINED = 0.9


def _attempt(
    group: Group,
    context: SweepContext,
    paths: SweepPaths,
    common: Recipe,
    calibrates: bool,
    facts: Mapping[str, Row],
    bar: Progress,
) -> list[tuple[Group, list[Row]]]:
    """A group and its rows. Where it fails its learning rates are tried one by one, so that none costs another."""
    began = time.monotonic()
    title = f"{group[0].method} on {group[0].dataset}, {group[0].shots_words}"
    part = bar.part(_TRAINED * len(group), title)
    try:
        rows = run_group(group, context, paths, common, part, calibrates=calibrates, facts=facts)
    except Exception as error:
        # Among several processes only what all of them meet alike may be survived: the others would wait for ever.
        alike = isinstance(error, ClipbiasError) and not isinstance(error, UnreadableImage)
        alike = alike and not hosts.lost_peer(error)
        if hosts.multi_process() and not alike:
            raise
        rates = dict.fromkeys(spec.learning_rate for spec in group)
        if len(rates) > 1:
            by_rate = [tuple(spec for spec in group if spec.learning_rate == rate) for rate in rates]
            attempts = [_attempt(alike, context, paths, common, calibrates, facts, bar) for alike in by_rate]
            return list(itertools.chain.from_iterable(attempts))
        if not isinstance(error, ClipbiasError):
            logging.error("%s", "".join(traceback.format_exception(error)))
        bar.say(f"failed: {title}: {sentence(error)}")
        failure = {"status": "failed", "error": sentence(error)}
        rows = [spec_facts(spec, common) | failure | facts.get(spec.key, {}) for spec in group]
    seconds = (time.monotonic() - began) / len(group)
    return [(group, [row | {"seconds": round(seconds, 2)} for row in rows])]


def write_group(group: Group, rows: Sequence[Row], paths: SweepPaths) -> None:
    """Writes the rows of a group in one go, and removes its checkpoints."""
    if hosts.is_first():
        text = json.dumps(list(rows), indent=1)
        write_text(paths.workdir / GROUP_RESULTS / f"{paths.group_file(group)}.json", text + "\n")
        if all(row["status"] == "ok" for row in rows):
            epath.Path(paths.checkpoints(group)).rmtree(missing_ok=True)


def read_rows(workdir: Path, specs: Sequence[RunSpec]) -> list[Row]:
    rows: list[Row] = []
    for path in sorted((workdir / GROUP_RESULTS).glob("*.json")):
        rows += read_json(path, list, what="a file of results")
    return _in_order(rows, specs)


def _in_order(rows: Sequence[Row], specs: Sequence[RunSpec]) -> list[Row]:
    """The last row of each spec, in the order of the specs. Of a run that failed and ran again, the good row."""
    by_key: dict[str, Row] = {}
    for row in rows:
        if row["status"] == "ok" or by_key.get(row["key"], row)["status"] != "ok":
            by_key[row["key"]] = row
    return [by_key[spec.key] for spec in specs if spec.key in by_key]


def write_results(workdir: Path, rows: Sequence[Row]) -> None:
    if hosts.is_first():
        name = VALIDATED if rows and rows[0]["score_on"] != TEST else RESULTS
        write_text(workdir / name, "".join(json.dumps(row) + "\n" for row in rows))


def parse_part(text: str | None) -> tuple[int, int]:
    """`"2/4"` as `(1, 4)`; `None` as all of it, `(0, 1)`. Raises `ClipbiasError` for anything else."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ClipbiasError(f"part is {text!r}; give its number and that of all parts, such as 1/4, from 1 on.")
    return int(match[1]) - 1, int(match[2])


# From the axes of a sweep to its specs.


@dataclasses.dataclass(frozen=True)
class SweepAxes:
    """What a sweep combines: each method on each dataset, with each number of shots, seed and learning rate.

    Attributes:
      shots: `None` stands for all images. A method that takes no image is one run per dataset.
      learning_rates: the rates that are compared, for methods trained with the common recipe; empty for one rate.
      options: options by method name, or by `method@dataset`.
      protocol, targets: see `data.protocols`; empty targets are the literature's.
      concentration: of the protocol "imbalanced".
      hold_out_shot: whether one training image of each class selects settings (`data.held_out.SHOT`).
      start_seed, score_on: see `RunSpec`.
      given: settings of the recipe, and options of methods as `method_options.NAME`, that the user asked for: methods
        have them in place of their authors'.
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    shots: tuple[int | None, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...] = ()
    options: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    start_seed: int | None = None
    protocol: str = "few_shot"
    targets: tuple[str, ...] = ()
    concentration: float = protocols.CONCENTRATION
    hold_out_shot: bool = False
    score_on: str = TEST
    given: tuple[str, ...] = ()

    def given_recipe(self, common: Recipe, method: str, dataset: str) -> dict[str, Any]:
        """Given settings that replace a method's own recipe, but those that are given as its options, too."""
        places = ("method_options", f"method_options.{method}", f"method_options.{method}@{dataset}")
        names = [name for name in self.given if not {f"{place}.{name}" for place in places} & set(self.given)]
        return {name: value for name, value in vars(common).items() if name in names}


def make_specs(context: SweepContext, common: Recipe, axes: SweepAxes, rates: Rates | None = None) -> list[RunSpec]:
    """All combinations, dataset by dataset, without datasets that the context lacks (`on_missing=skip`).

    `common` is the recipe of all methods that have none of their own; `rates` were selected before.

    Raises:
      ClipbiasError: there is nothing to combine, an axis has a value twice, or there is no such method or option.
    """
    for name in ("methods", "datasets", "shots", "seeds"):
        if not getattr(axes, name):
            raise ClipbiasError(f"there are no {name}, so there is nothing to run; give some.")
    for name in ("methods", "datasets", "shots", "seeds", "learning_rates"):
        values = getattr(axes, name)
        if repeated := [value for place, value in enumerate(values) if value in values[:place]]:
            raise ClipbiasError(f"{name} has {shown(repeated[0])} twice; name each once.")
    if axes.protocol == "full" and axes.shots != (None,):
        raise ClipbiasError("the protocol full trains on all images; give --config.shots=None.")
    if axes.protocol not in ("few_shot", "full", "pseudo_labels") and None in axes.shots:
        raise ClipbiasError(f"the protocol {axes.protocol} draws images of each class; give --config.shots=16.")
    for name in axes.methods:  # a misspelt option is reported before any dataset is looked at
        resolve_method(name, axes.options.get(name, {}))
    specs = []
    # Files are looked at once, not for each run.
    images_of = functools.cache(
        lambda name: {part: split.identity for part, split in context.datasets[name].splits.items()}
    )
    datasets = [context.datasets[name] for name in axes.datasets if name in context.datasets]
    for dataset, name in itertools.product(datasets, axes.methods):
        options = {**axes.options.get(name, {}), **axes.options.get(f"{name}@{dataset.name}", {})}
        given = axes.given_recipe(common, name, dataset.name)
        options |= as_options(name, given)
        for shots in axes.shots if resolve_method(name, options).uses_images else (None,):
            method = resolve_method(name, options, dataset=dataset.name, shots=shots)
            # On which images is it trained and tested? "full" where all labelled images are used.
            is_full = shots is None and method.uses_images and axes.protocol != "pseudo_labels"
            protocol = "full" if is_full else axes.protocol
            targets = protocols.targets_of(axes.protocol, dataset.name, axes.targets)
            data = identity(
                [[Classes.of(context.datasets[each]), images_of(each)] for each in (dataset.name, *targets)]
            )
            # How is it trained, and at which learning rates? Those that are compared are for the common recipe, since a
            # method keeps its authors' rate; else the rate that was selected before, `None` for the recipe's.
            recipe = with_given(method.recipe_for(common, shots), given) if method.trains else None
            takes_rates = recipe is not None and recipe.learning_rate == common.learning_rate
            listed = rates.of(name, dataset.name, shots) if takes_rates and rates is not None else None
            learning_rates = axes.learning_rates if takes_rates and axes.learning_rates else (listed,)
            # Which images select its settings?
            selected = len(learning_rates) > 1 or listed is not None
            validation = _policy(axes, dataset, shots) if selected or searches_options(method) else UNSELECTED
            # With which seeds, of the few-shot split and of the start?
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
                    data=data,
                    on_image_error=context.on_image_error,
                    score_on=axes.score_on,
                    validation=validation,
                    concentration=axes.concentration if is_imbalanced else None,
                )
                specs.append(spec)
    return specs


def _policy(axes: SweepAxes, dataset: Dataset, shots: int | None) -> str:
    """The validation policy of a run for which something is selected."""
    if not axes.hold_out_shot:
        return protocols.validation_policy(dataset)
    if axes.protocol == "pseudo_labels":
        raise ClipbiasError("pseudo-labelled images have no label to select by; leave out --config.hold_out_shot.")
    if shots == 1:
        raise ClipbiasError(
            "of a single shot none is left to train on when one is held out; take more --config.shots, or leave out "
            "--config.hold_out_shot."
        )
    return held_out.SHOT
