"""Shared objects of a sweep's groups: the frozen model on the mesh, few-shot splits, decoded images, and features.

Each is made when it is first needed. Objects of a dataset are dropped when the next dataset begins.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split, protocols
from clipbias.data.few_shot import most_confident
from clipbias.data.images import ImageCache, Images, Workers
from clipbias.training import placement
from clipbias.training.batches import FeatureStatic, Reading, TrainingFeatures
from clipbias.training.calibration import temperature_images
from clipbias.training.device import Compute
from clipbias.training.evaluator import Budget, Evaluator
from clipbias.training.forward import make_evaluation
from clipbias.training.spec import RunSpec
from clipbias.tuning import Sampling, Task
from clipbias.tuning.method import Method
from clipbias.tuning.prompts import Classes
from clipbias.tuning.registry import make_method

T = TypeVar("T")


class SweepContext:
    """Model with its weights on the mesh, opened datasets by name, and caches, for all groups of a sweep."""

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
        """Places the weights; for an absent mesh (`training.ahead`) only their shapes."""
        self.clip = clip
        self.datasets = datasets
        self.compute = compute
        self.mesh = mesh
        self.dtype = dtype
        # Once: all tasks of the sweep read the same frozen weights, as arguments of their programs.
        self.params = placement.place_weights(mesh, clip.params, dtype, shapes=not placement.is_there(mesh))
        self.reading = Reading(mesh, on_image_error, Workers(compute.workers))
        # Two thirds for training images, which every epoch reads again.
        self._third = int(compute.cache_gb * 1e9 / 3)
        self._images = ImageCache(2 * self._third)
        self.checked: set[str] = set()  # paths of images that were readable before a training
        self._budget = Budget(self._third)
        self._dataset: str | None = None
        self._kept: dict[Hashable, Any] = {}

    def begin(self, dataset: str) -> None:
        # Decoded images and features of one dataset fill the memory, and the next dataset uses none of them.
        if dataset != self._dataset:
            self._dataset = dataset
            self._images.keep_only()
            self._budget = Budget(self._third)
            self._kept.clear()
            self.checked.clear()

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the object of a key, made when it is first asked for, and kept until another dataset begins."""
        # Keys hold identities and digests: an object's `id` may come again.
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def drawn(self, spec: RunSpec) -> protocols.EvalProtocol:
        """Returns the few-shot split of a run, before its validation policy; methods share it."""
        of_draw = spec.protocol, spec.dataset, spec.shots, spec.seed, spec.targets, spec.concentration
        make = functools.partial(
            protocols.make_protocol,
            spec.protocol,
            spec.dataset,
            self.datasets.__getitem__,
            # A method that takes no training image has no shots; any number gives the same test images.
            shots=1 if spec.shots is None else spec.shots,
            seed=spec.seed,
            targets=spec.targets or None,
            concentration=protocols.CONCENTRATION if spec.concentration is None else spec.concentration,
        )
        return self.keep(("drawn", of_draw), make)

    def bind(self, method: Method, dataset: Dataset, method_name: str | None = None) -> Task:
        # Kept: tokenizing and packing the texts of a thousand classes takes seconds.
        classes = Classes.of(dataset)

        def make() -> Task:
            task = Task(self.clip, method, classes, method_name=method_name, dtype=self.dtype)
            return task.with_memory(class_shards=self.mesh.shape[placement.DATA])

        return self.keep(("task", method, method_name, classes.class_names, classes.identity), make)

    def training_images(self, splits: Sequence[Split]) -> list[Images]:
        """Opens the images of some splits in the cache of the sweep, and drops those of other splits."""
        self._images.keep_only(splits)
        return [Images(split, self._images) for split in splits]

    def pseudo_labelled(self, task: Task, protocol: protocols.EvalProtocol, shots: int | None) -> Split:
        """Returns the images that plain CLIP is most certain of, `shots` of each class, its predictions as labels."""
        split = protocol.unlabelled()
        # By the texts of the task's classes: template, descriptions or free text.
        teacher = task.with_method(make_method(ZERO_SHOT)).with_memory(class_shards=self.mesh.shape[placement.DATA])

        def label() -> tuple[np.ndarray, np.ndarray]:
            static, inputs = make_evaluation(teacher, self.params, {}, runs=1, mesh=self.mesh)
            # Not kept: features of a whole dataset would take the budget of its test images.
            evaluation = self.evaluator(split, keeps=False).evaluate(static, inputs)
            # Unreadable images are the least certain of all.
            other_odds = np.full(len(split), np.inf, np.float32)
            other_odds[evaluation.predicted[0] >= 0] = evaluation.outcomes[0].other_odds
            return evaluation.predicted[0], other_odds

        predicted, other_odds = self.keep(("pseudo labels", split.digest, teacher.texts), label)
        picks = most_confident(predicted, other_odds, shots=shots)
        return dataclasses.replace(split.subset(picks), labels=predicted[picks])

    def features(self, images: Images, seed: int, sampling: Sampling) -> TrainingFeatures:
        # Methods with the same crops share them.
        static = FeatureStatic(self.clip.config, self.clip.preprocessing, self.dtype, sampling.projected)
        batch_size, crop = self.compute.eval_batch_size, sampling.crop
        make = functools.partial(
            TrainingFeatures, static, self.params, images, self.reading, batch_size=batch_size, seed=seed, crop=crop
        )
        return self.keep(("features", images.split.digest, seed, crop, sampling.projected), make)

    def evaluator(self, split: Split, *, keeps: bool = True) -> Evaluator:
        """Returns the evaluator of a split; it `keeps` features that runs share, within the budget of the sweep."""
        budget = self._budget if keeps else None
        make = functools.partial(Evaluator, split, self.reading, batch_size=self.compute.eval_batch_size, budget=budget)
        return self.keep(("evaluator", split.digest, keeps), make)

    def temperature_evaluator(
        self, protocol: protocols.EvalProtocol, evaluation: protocols.EvaluationSet
    ) -> Evaluator | None:
        """Returns the evaluator of the images that fit a temperature; `None` without such images."""
        source = protocol.source
        tested = evaluation.dataset.split("test")
        images = temperature_images(tested, source.splits.get("val"))
        # Where a dataset tests all of its validation images, as ImageNet does, no training images take their place:
        # `evaluate`, which has no few-shot split, must fit the same temperature.
        if images is not None and evaluation.dataset.class_names == source.class_names:
            images = temperature_images(tested, (protocol.calibration or protocol.validation)())
            if images is not None:
                evaluator = self.evaluator(tested)
                key = "temperature", images.digest, evaluator.batch_size
                return self.keep(key, functools.partial(evaluator.for_temperature, images))
        return None


def make_context(
    clip: Clip, mesh: Mesh | None, *, dtype: str, on_image_error: str = "raise", workers: int | None = None
) -> SweepContext:
    """Makes a context without datasets or files. Default: all devices, and a thread for each core."""
    compute = Compute(workers=workers)
    return SweepContext(clip, {}, compute, placement.as_mesh(mesh), dtype=dtype, on_image_error=on_image_error)
