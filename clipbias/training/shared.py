"""What the packs of a grid share, each made once: draws, methods, tasks and test images."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.clip.params import Params
from clipbias.data import Dataset, protocols
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import Evaluator
from clipbias.training.programs import ZERO_SHOT, Pack
from clipbias.training.settings import GridSettings
from clipbias.training.workdir import stable_hash
from clipbias.tuning import Task, make_method
from clipbias.tuning.method import Method

# Resized test images that are kept for the next method, of all datasets that share a program.
EVALUATION_CACHE_BYTES = 1 << 30


class Shared:
    """Makes what a pack needs, and keeps it for the next one."""

    def __init__(
        self, clip: Clip, params: Params, settings: GridSettings, load_dataset: Callable[[str], Dataset], mesh: Mesh
    ) -> None:
        self._clip, self._params, self._settings, self._mesh = clip, params, settings, mesh
        self._load_dataset = load_dataset
        self._sources: frozenset[str] = frozenset()
        self._datasets: dict[str, Dataset] = {}
        self._drawn: dict[tuple[Any, ...], list[protocols.Plan]] = {}
        self._methods: dict[str, Method] = {}
        self._evaluators: dict[tuple[str, str], Evaluator] = {}
        self._tasks: dict[tuple[Any, ...], Task] = {}

    def keep_only(self, sources: frozenset[str]) -> None:
        """Frees test images and tasks unless they are of the datasets that come next."""
        if self._sources != sources:
            self._sources = sources
            self._evaluators.clear()
            self._tasks.clear()

    def options(self, pack: Pack) -> dict[str, Any]:
        """The method's options on the pack's dataset."""
        options = self._settings.method_options
        return {**options.get(pack.method, {}), **options.get(f"{pack.method}@{pack.dataset}", {})}

    def plans(self, pack: Pack) -> list[protocols.Plan]:
        """One plan per seed, drawn once for all methods and learning rates."""

        def load(name: str) -> Dataset:
            if name not in self._datasets:
                self._datasets[name] = self._load_dataset(name)
            return self._datasets[name]

        shots = max(pack.shots, 1)  # zero-shot takes from a plan what to evaluate on, not what to train on
        protocol = self._settings.protocol if pack.shots or pack.method == ZERO_SHOT else "full"
        key = (protocol, pack.dataset, shots, pack.seeds)
        if key not in self._drawn:
            self._drawn[key] = [
                protocols.make_plan(
                    protocol, pack.dataset, load, shots=shots, seed=seed, targets=self._settings.targets
                )
                for seed in pack.seeds
            ]
        return self._drawn[key]

    def evaluator(self, pack: Pack, evaluation: protocols.Evaluation) -> Evaluator:
        """Of the test images of one evaluation of a pack's dataset."""
        key = (pack.dataset, evaluation.name)
        if key not in self._evaluators:
            self._evaluators[key] = Evaluator(
                self._clip,
                self._params,
                evaluation.dataset.split("test"),
                mesh=self._mesh,
                batch_size=self._settings.eval_batch_size,
                on_error=self._settings.on_image_error,
                cache_bytes=EVALUATION_CACHE_BYTES // max(len(self._sources), 1),
            )
        return self._evaluators[key]

    def method(self, pack: Pack) -> Method:
        """Made once, so that the functions of a file of one's own are the same for all datasets."""
        options = self.options(pack)
        key = f"{pack.method} {stable_hash(options)}"
        if key not in self._methods:
            self._methods[key] = make_method(pack.method, **options)
        return self._methods[key]

    def task(self, pack: Pack, dataset: Dataset, **memory: Any) -> Task:
        """The pack's method bound to the classes of a dataset; `memory` are the options of a `StepPlan`."""
        method = self.method(pack)
        key = (method, dataset.class_names, dataset.template, *memory.values())
        if key not in self._tasks:
            self._tasks[key] = Task(
                self._clip,
                method,
                dataset.class_names,
                template=dataset.template,
                dtype=self._settings.dtype,
                groups=self._mesh.shape[meshes.DATA],
                **memory,
            )
        return self._tasks[key]
