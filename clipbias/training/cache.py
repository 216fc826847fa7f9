"""What the packs of a grid have in common, each made once: draws, methods, tasks and test images."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.clip.params import Params
from clipbias.data import Dataset, Split, protocols
from clipbias.data.contents import contents
from clipbias.data.few_shot import MAX_VAL_SHOTS, confident
from clipbias.data.images import ImageCache, Images
from clipbias.data.pipeline import without_unreadable
from clipbias.data.protocols import validation_beside
from clipbias.data.workers import Workers
from clipbias.training import mesh as meshes
from clipbias.training.evaluator import Budget, Evaluator
from clipbias.training.features import TrainingFeatures, support_features
from clipbias.training.loop import Run
from clipbias.training.packs import Pack, choice_splits
from clipbias.training.settings import GridSettings
from clipbias.training.step import place_text
from clipbias.training.workdir import stable_hash
from clipbias.tuning import Samples, Sampling, Task, make_method
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.method import Method
from clipbias.tuning.registry import method_options, resolve

PSEUDO_LABELS = "pseudo_labels"  # the protocol under which no method sees a label


class Cache:
    """Makes what a pack needs, and keeps it for the next one."""

    def __init__(
        self, clip: Clip, params: Params, settings: GridSettings, load_dataset: Callable[[str], Dataset], mesh: Mesh
    ) -> None:
        self._clip, self._params, self._settings, self._mesh = clip, params, settings, mesh
        self.workers = Workers(settings.workers)
        third = int(settings.cache_gb * 1e9 / 3)
        self._kept, self._budget = ImageCache(2 * third), Budget(third)
        self._load = functools.cache(load_dataset)
        self._dataset = ""
        self._plans: dict[tuple[Any, ...], list[protocols.Plan]] = {}
        self._image_hashes: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._methods: dict[str, Method] = {}
        self._evaluators: dict[str, Evaluator] = {}
        self._tasks: dict[tuple[Any, ...], Task] = {}
        self._features: dict[tuple[Any, ...], TrainingFeatures] = {}
        self._labels: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

    def keep_only(self, dataset: str) -> None:
        """Frees test images and tasks of all packs but those of one dataset."""
        if self._dataset != dataset:
            self._dataset = dataset
            self._kept.keep_only()
            self._budget.clear()
            self._evaluators.clear()
            self._features.clear()
            self._labels.clear()
            self._tasks.clear()

    def options(self, pack: Pack) -> dict[str, Any]:
        """The method's options on the pack's dataset and number of images."""
        options = self._settings.method_options
        given = {**options.get(pack.method, {}), **options.get(f"{pack.method}@{pack.dataset}", {})}
        given = {name: value for name, value in given.items() if value is not None}
        return method_options(resolve(pack.method, given, dataset=pack.dataset, shots=pack.shots))

    def method(self, pack: Pack) -> Method:
        """Made once, so that the functions of a user's own file are the same for all datasets."""
        return self._make(pack.method, self.options(pack))

    def _make(self, name: str, options: Mapping[str, Any]) -> Method:
        key = f"{name} {stable_hash(options)}"
        if key not in self._methods:
            self._methods[key] = make_method(name, **options)
        return self._methods[key]

    def dataset(self, name: str) -> Dataset:
        """A dataset, opened once. Raises `ClipbiasError` where it is not there."""
        return self._load(name)

    def plans(self, pack: Pack) -> list[protocols.Plan]:
        """What each seed trains and evaluates on, drawn once for all methods and learning rates."""
        key = self._draw(pack)
        if key not in self._plans:
            protocol, dataset, shots, seeds = key
            options: dict[str, Any] = dict(shots=shots, targets=self._settings.targets)
            self._plans[key] = [protocols.make_plan(protocol, dataset, self._load, seed=s, **options) for s in seeds]
        return self._plans[key]

    def _draw(self, pack: Pack) -> tuple[str, str, int, tuple[int, ...]]:
        # Where nothing is trained, any draw says what to evaluate on.
        full = not pack.shots and self.method(pack).draws and self._settings.protocol != PSEUDO_LABELS
        return "full" if full else self._settings.protocol, pack.dataset, max(pack.shots, 1), pack.seeds

    def image_hash(self, pack: Pack) -> str:
        """A short hash of which images, by name, label and content, and which classes a pack trains and evaluates on.

        Of a trial these are validation images.

        Raises:
          ClipbiasError: an image cannot be read, unless those are skipped.
        """
        return self.image_hashes(pack)[0]

    def image_hashes(self, pack: Pack) -> tuple[str, str]:
        """`image_hash`, and the one that earlier versions wrote, which told images apart by name and label alone."""
        method = self.method(pack)
        sampling = sampling_of(method)
        validates = (sampling is not None and sampling.validation) or pack.tries
        unlabelled = self.is_unlabelled(pack)
        key = (method.draws, validates, unlabelled, pack.tries, *self._draw(pack))
        if key not in self._image_hashes:
            plans = self.plans(pack)
            trained = [
                plan.unlabelled() if unlabelled else plan.source.split("train") for plan in plans if method.draws
            ]
            used = [(plan.source, train) for plan, train in zip(plans, trained, strict=False)]
            tested = () if pack.tries else plans[0].evaluations  # of a trial not even the test images' bytes are read
            used += [(one.dataset, one.dataset.split("test")) for one in tested]
            chosen_on = [split for plan in plans if validates and (split := plan.validation()) is not None]
            used += [(plans[0].source, split) for split in chosen_on]
            named = [_images(*one) for one in used]
            content = [contents(split, on_error=self._settings.on_image_error) for _, split in used]
            self._image_hashes[key] = stable_hash([named, content]), stable_hash(named)
        return self._image_hashes[key]

    def train_images(self, pack: Pack, draws: Sequence[protocols.Plan]) -> dict[int, Images]:
        """The training images of each seed, which share what of them is kept; those of other packs are dropped.

        With "skip" they are without those that cannot be read.
        """
        # Where nothing can be run, as many labelled images stand for those.
        labelled = not self.is_unlabelled(pack) or not meshes.is_there(self._mesh)
        splits = [draw.source.split("train") if labelled else self._pseudo_labelled(pack, draw) for draw in draws]
        self._kept.keep_only(splits)
        images = [Images(split, self._kept) for split in splits]
        if self._settings.on_image_error == "skip":
            images = [without_unreadable(one, workers=self.workers) for one in images]
        return dict(zip(pack.seeds, images, strict=True))

    def is_unlabelled(self, pack: Pack) -> bool:
        """Whether a pack trains on labels that plain CLIP gives."""
        return self.method(pack).unlabelled or self._settings.protocol == PSEUDO_LABELS

    def _pseudo_labelled(self, pack: Pack, plan: protocols.Plan) -> Split:
        """The images that plain CLIP is most certain of, as many of a class as there are shots, with its labels."""
        source, split = plan.source, plan.unlabelled()
        if source.class_names not in self._labels:
            task = self._bind(make_method("zero_shot"), source)
            evaluator = Evaluator(
                *(self._clip, self._params, split),
                mesh=self._mesh,
                batch_size=self._settings.eval_batch_size,
                on_error=self._settings.on_image_error,
                workers=self.workers,
            )
            text = place_text(self._mesh, task, self._params)
            self._labels[source.class_names] = evaluator.pseudo_labels(task.classifier, text)
        predicted, doubt = self._labels[source.class_names]
        chosen = confident(predicted, doubt, shots=pack.shots)
        return dataclasses.replace(split.subset(chosen), labels=predicted[chosen])

    def features(self, pack: Pack, run: Run, sampling: Sampling) -> TrainingFeatures:
        """Of a run's training images under the frozen tower."""
        key = (*self._draw(pack), self.is_unlabelled(pack), run.seed, sampling.crop, sampling.projected)
        if key not in self._features:
            self._features[key] = self._frozen(Images.of(run.train), run.seed, sampling)
        return self._features[key]

    def samples(
        self, pack: Pack, draws: Sequence[protocols.Plan], task: Task, runs: Sequence[Run]
    ) -> list[Samples] | None:
        """Features of each run's training images, where the method asks for them."""
        sampling = sampling_of(task.method)
        if sampling is None:
            return None
        placed = place_text(self._mesh, task, self._params)
        assert isinstance(placed, jax.Array), "a method on features of images leaves the text tower alone"
        text = np.asarray(task.classifier.by_text(placed))
        plans = dict(zip(pack.seeds, draws, strict=True))
        return [
            Samples(
                features=support_features(self.features(pack, run, sampling), sampling),
                labels=np.asarray(run.train.labels),
                text=text,
                scale=float(np.exp(np.float32(self._clip.params["logit_scale"]))),
                seed=run.seed,
                **self.validation(pack, plans[run.seed], run.seed, sampling),
            )
            for run in runs
        ]

    def validation(self, pack: Pack, plan: protocols.Plan, seed: int, sampling: Sampling) -> dict[str, Any]:
        """Features and labels of a run's validation images, for `Samples`; empty where there are none."""
        split = plan.validation() if sampling.validation else None
        if split is None:
            return {}
        key = ("validation", *self._draw(pack), seed, sampling.projected)
        images = Images(split)
        if key not in self._features:
            self._features[key] = self._frozen(images, seed, sampling)
        return {"validation": self._features[key].plain()[0], "validation_labels": images.labels}

    def _frozen(self, images: Images, seed: int, sampling: Sampling) -> TrainingFeatures:
        return TrainingFeatures(
            *(self._clip, self._params, images),
            mesh=self._mesh,
            batch_size=self._settings.eval_batch_size,
            seed=seed,
            crop=sampling.crop,
            projected=sampling.projected,
            dtype=self._settings.dtype,
            workers=self.workers,
        )

    def evaluator(self, evaluation: protocols.Evaluation) -> Evaluator:
        """Of the test images of one evaluation on the dataset whose packs run now."""
        if evaluation.name not in self._evaluators:
            self._evaluators[evaluation.name] = Evaluator(
                self._clip,
                self._params,
                evaluation.dataset.split("test"),
                mesh=self._mesh,
                batch_size=self._settings.eval_batch_size,
                on_error=self._settings.on_image_error,
                timed=True,
                workers=self.workers,
                budget=self._budget,
            )
        return self._evaluators[evaluation.name]

    def choice_evaluators(self, pack: Pack) -> list[tuple[Evaluator, list[int]]]:
        """Of the validation images that a trial is judged by, with the seeds whose images they are.

        Raises:
          ClipbiasError: there are none.
        """
        found = []
        for split, seeds in choice_splits(pack, self.plans(pack)):
            key = f"choice on {stable_hash([*split.keys])}"
            if key not in self._evaluators:
                self._evaluators[key] = Evaluator(
                    *(self._clip, self._params, split),
                    mesh=self._mesh,
                    batch_size=self._settings.eval_batch_size,
                    on_error=self._settings.on_image_error,
                    workers=self.workers,
                    budget=self._budget,
                )
            found.append((self._evaluators[key], seeds))
        return found

    def validation_evaluator(self, pack: Pack, evaluation: protocols.Evaluation) -> Evaluator | None:
        """Of the validation images of an evaluation's classes that a temperature is fitted on; `None` without any.

        At most 4 of a class and no more than there are shots, the same whatever the seeds of the pack.
        """
        plan = self.plans(pack)[0]
        if "val" not in plan.source.splits or evaluation.dataset.class_names != plan.source.class_names:
            return None
        key = f"validation of {evaluation.name} {pack.shots}"
        if key not in self._evaluators:
            # Where the dataset's own are all evaluated, no others take their place here.
            drawn = validation_beside(evaluation.dataset.split("test"), plan.source.split("val"))
            split = plan.validation()
            if drawn is None or split is None:
                return None
            most = min(pack.shots or MAX_VAL_SHOTS, MAX_VAL_SHOTS)
            order = np.random.default_rng(0).permutation(len(split))
            own = [order[split.labels[order] == label][:most] for label in np.unique(split.labels)]
            self._evaluators[key] = Evaluator(
                self._clip,
                self._params,
                split.subset(np.sort(np.concatenate(own))),
                mesh=self._mesh,
                batch_size=self.evaluator(evaluation).batch_size,
                on_error="skip",  # what is missing here is no reason to lose a result
                fill=True,
                workers=self.workers,
                budget=self._budget,
            )
        return self._evaluators[key]

    def task(self, pack: Pack, dataset: Dataset, method: Method | None = None, **memory: Any) -> Task:
        """The pack's method, or that of one of its stages, bound to the classes of a dataset.

        `memory` are options that `training.plan` chose, or `groups` for another mesh.
        """
        return self._bind(method or self.method(pack), dataset, **memory)

    def _bind(self, method: Method, dataset: Dataset, **memory: Any) -> Task:
        described = dataset.descriptions
        key = (method, dataset.class_names, dataset.template, described and described.digest, *memory.values())
        if key not in self._tasks:
            self._tasks[key] = Task(
                self._clip,
                method,
                dataset,
                dtype=self._settings.dtype,
                **{"groups": self._mesh.shape[meshes.DATA], **memory},
            )
        return self._tasks[key]


def _images(dataset: Dataset, split: Split) -> list[Any]:
    described = [] if dataset.descriptions is None else [dataset.descriptions.digest]
    return [dataset.class_names, dataset.template, [*split.keys], split.labels.tolist(), *described]
