"""Sweeps of a tiny model and dataset, as tests run them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.data import Dataset, Split
from clipbias.training import mesh as meshes
from clipbias.training.compute import Compute
from clipbias.training.evaluate import evaluate
from clipbias.training.group import Row, SweepPaths
from clipbias.training.spec import RunSpec, make_specs, run_names
from clipbias.training.sweep import sweep
from clipbias.training.sweep_context import SweepContext
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

    def __post_init__(self) -> None:
        if isinstance(self.datasets, Dataset):
            self.datasets = {self.datasets.name: self.datasets}
        self.mesh = self.mesh or meshes.single_device()
        self.shared = SweepContext(self.clip, self.datasets, self.compute, self.mesh)

    def specs(
        self, *methods: str, shots: Sequence[int] = (2,), seeds: Sequence[int] = (1, 2), **options: Any
    ) -> list[RunSpec]:
        """The runs of some methods on all datasets that are no targets."""
        learned = [name for name in self.datasets if name not in self.targets]
        given = dict(methods=methods, datasets=learned, shots=shots, seeds=seeds, options=self.options)
        given |= dict(protocol=self.protocol, targets=self.targets)
        return make_specs(self.clip, self.datasets, self.recipe, **given, **options)

    def run(self, specs: Sequence[RunSpec], **options: Any) -> list[Row]:
        """Runs specs; returns their rows."""
        return sweep(specs, self.shared, self.folder, self.recipe, **options)

    def rows(self, *methods: str, **options: Any) -> list[Row]:
        """Runs some methods; options as of `specs`."""
        return self.run(self.specs(*methods, **options))

    def adapter(self, spec: RunSpec, specs: Sequence[RunSpec] = ()) -> Adapter:
        """The adapter of a run of a sweep over `specs`, or over `spec` alone."""
        return read_adapter(SweepPaths(self.folder, run_names(specs or [spec])).adapter(spec))


def score_of(adapter: Adapter, clip: Clip, split: Split, own_methods: Sequence[str] = (), **options: Any) -> Row:
    """What an adapter scores on images."""
    task, learnables = adapter.bind(clip, own_methods=own_methods)
    given = dict(mesh=meshes.single_device(), eval_batch_size=8, on_image_error="raise")
    return evaluate(task, learnables, split, **given | options)
