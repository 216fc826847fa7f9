"""What `train` and `table1` have in common: the grid that a configuration describes, and its dry run."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import clipbias
import configs
from clipbias import hosts
from clipbias.clip import precision
from clipbias.io import data_path, is_remote, user_path
from clipbias.training import mesh as meshes
from clipbias.training.account import account_lines
from clipbias.training.choosing import ChoosingGrid
from clipbias.training.dealing import Part
from clipbias.training.forecast import forecast
from clipbias.training.grid import Grid
from clipbias.training.packs import Pack, cells_of
from clipbias.training.plan import OTHER_SHARE, device_rate
from clipbias.training.rates import NONE, Rates
from clipbias.training.settings import GridSettings
from clipbias.training.topology import Topology, open_topology
from clipbias.tuning.recipe import Recipe
from experiments import common

# Settings of the datasets that numbers depend on and that no name of theirs tells.
INPUTS = ("template", "split", "split_dir", "index_file")


def open_grid(
    config: ConfigDict,
    options: Mapping[str, Any],
    packs: Sequence[Pack],
    workdir: Path,
    *,
    single: bool = False,
    part: Part | None = None,
    topology: Topology | None = None,
) -> Grid:
    """The grid that a configuration describes.

    Args:
      config: of `train` or `table1`.
      options: options by method name.
      packs: all that it is to run.
      workdir: where all files go.
      single, part: see `Grid`.
      topology: devices to compile for, in place of those of this job.
    """
    targets = tuple(config.get("targets", ()))
    inputs = {name: config[name] for name in INPUTS if config[name]}
    if config.on_image_error != "raise":
        inputs["on_image_error"] = config.on_image_error
    if {"folder", "csv"} & {*(pack.dataset for pack in packs), *targets}:  # the place is all that tells these apart
        place = data_path(config.data_dir)
        inputs["data_dir"] = str(place if is_remote(place) else place.resolve())
    settings = GridSettings(
        method_options=options,
        dtype=config.dtype,
        eval_batch_size=config.eval_batch_size,
        checkpoint_seconds=config.checkpoint_seconds,
        on_image_error=config.on_image_error,
        protocol=config.get("protocol", "few_shot"),
        targets=targets or None,
        remat=config.remat,
        class_chunks=config.class_chunks,
        micro_batch=config.micro_batch,
        workers=config.workers,
        cache_gb=config.cache_gb,
        on_missing=config.get("on_missing", "raise"),
        trackers=tuple(config.trackers),
        profile=config.profile,
        inputs=inputs,
    )
    if config.descriptions:  # named by their content
        names = {pack.dataset for pack in packs}
        inputs["descriptions"] = {name: common.load_descriptions(config, name).digest for name in sorted(names)}
    if config.rates_file:
        settings = dataclasses.replace(settings, rates=Rates.read(rates_path(config.rates_file)))
    mesh = meshes.make_mesh(**config.mesh, devices=None if topology is None else topology.devices)
    clip, recipe = clipbias.load(config.model), Recipe.from_config(config)
    hosts.assert_same(f"the model {config.model}", clip.fingerprint)
    arguments = clip, recipe, settings, lambda name: common.load_dataset(config, name), workdir
    if config.get("learning_rates") and config.choose != NONE:
        return ChoosingGrid(*arguments, mesh=mesh, part=part, scope=config.choose)
    return Grid(*arguments, mesh=mesh, single=single, part=part)


def rates_path(name: str) -> Path:
    """A file of learning rates: where its name says, or among the configurations that come with the program."""
    path = user_path(name)
    own = Path(configs.__file__).parent / name
    return own if own.is_file() and not path.exists() else path


def dry_run(config: ConfigDict, options: Mapping[str, Any], packs: Sequence[Pack]) -> None:
    """Prints what each program would do and need, and the whole; trains nothing and leaves no file.

    With `config.topology` that is for devices that are not there, by their own compiler.
    """
    topology = open_topology(config.topology) if config.topology else None
    total, part = 0.0, Part.named(config.get("part", ""))
    with topology() if topology else contextlib.nullcontext():
        if topology:
            config.dtype = precision.resolve(config.dtype)
        rate = device_rate(config.dtype)
        with tempfile.TemporaryDirectory() as nowhere:
            grid = open_grid(config, options, packs, Path(nowhere), part=part, topology=topology)
        planned = grid.planned(packs)
        if topology:
            common.tell(f"compiled for {topology}, by {topology.compiler}")
        for pack, learned in planned:
            text, seconds = forecast(grid.trainer, pack, rate, learned=learned)
            common.tell(*text.split("\n"))
            if topology:
                common.tell(*account_lines(grid.trainer, pack, devices=topology.devices, learned=learned))
            total += seconds
    trials, cells = (cells_of(pack for pack, _ in planned if pack.tries == tries) for tries in (True, False))
    counted = f"{trials} trials and {cells} cells" if trials else f"{cells} cells"
    assumed = f", an estimate at {OTHER_SHARE:.0%} of the peak of {rate / 1e12:,.0f} TFLOP/s" if topology else ""
    print(f"{counted}: about {total:,.0f} s, without compiling and reading{assumed}")
