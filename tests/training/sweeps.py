"""Sweeps of a tiny model and dataset, as tests run them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.data import Dataset, Split
from clipbias.training import mesh as meshes
from clipbias.training.context import SweepContext
from clipbias.training.device import Compute
from clipbias.training.evaluate import evaluate
from clipbias.training.select import Rates
from clipbias.training.spec import Row, RunSpec, run_names
from clipbias.training.sweep import SweepAxes, make_specs, sweep
from clipbias.training.workdir import SweepPaths
from clipbias.tuning.adapter import Adapter, read_adapter
from clipbias.tuning.recipe import Recipe


@dataclasses.dataclass
class TinySweep:
    """A sweep over `datasets` (one, or several by name) in `folder`.

    Attributes:
      options: of methods, by their names.
      targets: datasets that are tested besides.
      compute: how it is computed.
    """

    clip: Clip
    datasets: Dataset | Mapping[str, Dataset]
    recipe: Recipe
    folder: Path
    mesh: Mesh | None = None
    protocol: str = "few_shot"
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    targets: Sequence[str] = ()
    compute: Compute = Compute(trackers=(), eval_batch_size=8)  # noqa: RUF009 (it is frozen)
    dtype: str = "float32"
    on_image_error: str = "raise"

    def __post_init__(self) -> None:
        if isinstance(self.datasets, Dataset):
            self.datasets = {self.datasets.name: self.datasets}
        self.mesh = self.mesh or meshes.single_device()
        self.context = SweepContext(
            self.clip, self.datasets, self.compute, self.mesh, dtype=self.dtype, on_image_error=self.on_image_error
        )

    def specs(
        self,
        *methods: str,
        shots: Sequence[int | None] = (2,),
        seeds: Sequence[int] = (1, 2),
        rates: Rates | None = None,
        **axes: Any,
    ) -> list[RunSpec]:
        """The runs of some methods on all datasets that are no targets; `axes` are further ones."""
        combined = SweepAxes(
            methods=methods,
            datasets=tuple(name for name in self.datasets if name not in self.targets),
            shots=tuple(shots),
            seeds=tuple(seeds),
            options=self.options,
            protocol=self.protocol,
            targets=tuple(self.targets),
            **axes,
        )
        return make_specs(self.context, self.recipe, combined, rates)

    def run(self, specs: Sequence[RunSpec], **options: Any) -> list[Row]:
        """Runs specs; returns their rows."""
        return sweep(specs, self.context, self.folder, self.recipe, **options)

    def rows(self, *methods: str, **options: Any) -> list[Row]:
        """Runs some methods; options as of `specs`."""
        return self.run(self.specs(*methods, **options))

    def adapter(self, spec: RunSpec, specs: Sequence[RunSpec] = ()) -> Adapter:
        """The adapter of a run of a sweep over `specs`, or over `spec` alone."""
        return read_adapter(SweepPaths(self.folder, run_names(specs or [spec])).adapter(spec))


def score_of(adapter: Adapter, clip: Clip, split: Split, own_methods: Sequence[str] = (), **options: Any) -> Row:
    """What an adapter scores on images."""
    task, learnables = adapter.bind(clip, own_methods=own_methods)
    settings = dict(mesh=meshes.single_device(), eval_batch_size=8, on_image_error="raise")
    return evaluate(task, learnables, split, **settings | options)[0]
