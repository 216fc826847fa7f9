"""What groups share: the frozen model on the mesh, few-shot splits, decoded images, features, and test images.

All of it is made when it is first asked for. What belongs to one dataset is dropped when the next one begins.
"""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split, held_out, protocols
from clipbias.data.few_shot import most_confident
from clipbias.data.images import ImageCache, Images, Workers
from clipbias.training import mesh as meshes
from clipbias.training.batches import FeatureStatic, TrainingFeatures
from clipbias.training.calibration import temperature_images
from clipbias.training.device import Compute
from clipbias.training.evaluate import TEMPERATURE, Budget, Evaluator, make_evaluation
from clipbias.training.spec import Group
from clipbias.tuning import Sampling, Task
from clipbias.tuning.method import Method
from clipbias.tuning.prompts import Classes
from clipbias.tuning.registry import make_method


class SweepContext:
    """What the groups of a sweep share: the model with its weights on the mesh, the opened datasets by name, caches."""

    def __init__(
        self,
        clip: Clip,
        datasets: Mapping[str, Dataset],
        compute: Compute,
        mesh: Mesh,
        *,
        dtype: str = "float32",
        on_image_error: str = "raise",
    ) -> None:
        """Places the weights; of a mesh that is not there (`training.ahead`) only their shapes."""
        self.clip = clip
        self.datasets = datasets
        self.compute = compute
        self.mesh = mesh
        self.dtype = dtype
        self.on_image_error = on_image_error
        self.params = meshes.place_weights(mesh, clip.params, dtype, shapes=not meshes.is_there(mesh))
        self.workers = Workers(compute.workers)
        third = int(compute.cache_gb * 1e9 / 3)
        self._images = ImageCache(2 * third)
        self._budget = Budget(third)
        self._dataset: str | None = None
        self._evaluators: dict[Hashable, Evaluator] = {}
        self._features: dict[Hashable, TrainingFeatures] = {}
        self._pseudo_labels: dict[Hashable, tuple[np.ndarray, np.ndarray]] = {}
        self._tasks: dict[Hashable, Task] = {}
        # Of teachers and their students, by model and images.
        self.known_logits: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        self._protocols: dict[Hashable, tuple[protocols.EvalProtocol, ...]] = {}

    def begin(self, dataset: str) -> None:
        if dataset != self._dataset:
            self._dataset = dataset
            self._images.keep_only()
            self._budget.clear()
            for cache in (
                self._evaluators,
                self._features,
                self._pseudo_labels,
                self._tasks,
                self._protocols,
                self.known_logits,
            ):
                cache.clear()

    def protocols_of(self, group: Group) -> dict[int, protocols.EvalProtocol]:
        """The few-shot split of each of a group's seeds, by seed, in the order in which they first appear."""
        first = group[0]
        seeds = tuple(dict.fromkeys(spec.seed for spec in group))
        key = first.protocol, first.dataset, first.shots, seeds, first.targets, first.concentration
        if key not in self._protocols:
            self._protocols[key] = tuple(
                protocols.make_protocol(
                    first.protocol,
                    first.dataset,
                    self.datasets.__getitem__,
                    shots=1 if first.shots is None else first.shots,  # with nothing trained, any has the test images
                    seed=seed,
                    targets=first.targets or None,
                    concentration=protocols.CONCENTRATION if first.concentration is None else first.concentration,
                )
                for seed in seeds
            )
        by_seed = self._protocols[key]
        if first.validation == held_out.POLICY:
            by_seed = tuple(map(held_out.by_the_rule, by_seed, seeds))
        if first.validation == held_out.SHOT:
            by_seed = tuple(map(held_out.hold_out_a_shot, by_seed, seeds))
        return dict(zip(seeds, by_seed, strict=True))

    def bind(self, method: Method, dataset: Dataset, method_name: str | None = None) -> Task:
        """A task of a method and a dataset's classes, kept: the texts of a thousand classes take seconds."""
        classes = Classes.of(dataset)
        key = method, method_name, classes.class_names, classes.identity
        if key not in self._tasks:
            task = Task(self.clip, method, classes, method_name=method_name, dtype=self.dtype)
            self._tasks[key] = task.with_memory(class_shards=self.mesh.shape[meshes.DATA])
        return self._tasks[key]

    def training_images(self, splits: Sequence[Split]) -> list[Images]:
        """The images of some splits, in a cache of the sweep; those of other splits are dropped."""
        self._images.keep_only(splits)
        return [Images(split, self._images) for split in splits]

    def pseudo_labelled(self, task: Task, protocol: protocols.EvalProtocol, shots: int | None) -> Split:
        """The images that plain CLIP is most certain of, as many of a class as there are shots, with its labels.

        It classifies by the texts of the task's classes: their template, descriptions or free text.
        """
        split = protocol.unlabelled()
        teacher = task.with_method(make_method(ZERO_SHOT)).with_memory(class_shards=self.mesh.shape[meshes.DATA])
        key = split.digest, teacher.texts
        if key not in self._pseudo_labels:
            static, inputs = make_evaluation(teacher, self.params, {}, runs=1, mesh=self.mesh)
            evaluation = self.evaluator(split, budget=None).evaluate(static, inputs)
            other_odds = np.full(len(split), np.inf, np.float32)
            other_odds[evaluation.predicted[0] >= 0] = evaluation.outcomes[0].other_odds
            self._pseudo_labels[key] = evaluation.predicted[0], other_odds
        predicted, other_odds = self._pseudo_labels[key]
        picks = most_confident(predicted, other_odds, shots=shots)
        return dataclasses.replace(split.subset(picks), labels=predicted[picks])

    def features(self, images: Images, seed: int, sampling: Sampling) -> TrainingFeatures:
        key = images.split.digest, seed, sampling.crop, sampling.projected
        if key not in self._features:
            self._features[key] = TrainingFeatures(
                FeatureStatic(self.clip.config, self.clip.preprocessing, self.dtype, sampling.projected),
                self.params,
                images,
                mesh=self.mesh,
                batch_size=self.compute.eval_batch_size,
                seed=seed,
                crop=sampling.crop,
                on_error=self.on_image_error,
                workers=self.workers,
            )
        return self._features[key]

    def evaluator(self, split: Split, **options: Any) -> Evaluator:
        """Evaluates runs on a split, and keeps features that all runs share; `options` are those of `Evaluator`."""
        key = split.digest, *options.items()
        if key not in self._evaluators:
            evaluator = functools.partial(
                Evaluator,
                mesh=self.mesh,
                batch_size=self.compute.eval_batch_size,
                on_error=self.on_image_error,
                workers=self.workers,
                budget=self._budget,
            )
            self._evaluators[key] = evaluator(split, **options)
        return self._evaluators[key]

    def temperature_evaluator(
        self, protocol: protocols.EvalProtocol, evaluation: protocols.EvaluationSet
    ) -> Evaluator | None:
        """Of the images that a temperature is fitted on (`calibration.temperature_images`); `None` without any."""
        source = protocol.source
        tested = evaluation.dataset.split("test")
        images = temperature_images(tested, source.splits.get("val"))
        # Where all of the dataset's validation images are tested, no others take their place here.
        if images is not None and evaluation.dataset.class_names == source.class_names:
            images = temperature_images(tested, (protocol.calibration or protocol.validation)())
            if images is not None:
                return self.evaluator(images, **TEMPERATURE, batch_size=self.evaluator(tested).batch_size)
        return None


def make_context(
    clip: Clip, mesh: Mesh | None, *, dtype: str, on_image_error: str = "raise", workers: int | None = None
) -> SweepContext:
    """A model on devices, without datasets or files; `None` takes all devices, and as many threads as there are."""
    compute = Compute(workers=workers)
    return SweepContext(clip, {}, compute, meshes.as_mesh(mesh), dtype=dtype, on_image_error=on_image_error)
