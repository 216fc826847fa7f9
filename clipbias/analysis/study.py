"""A study: a zero-shot model, tuned models and a dataset, with one pass over the images for all sections.

A section's `Computation` is a generator. It yields `Request`s and receives their results by name. Its next requests may
depend on them: the causal test needs means over images first, then runs with these means. `Study.run` collects the
requests of all sections and reads each list of images once. Requests of the same name are one request.

The state of each request is written to `parts/` every minute and at the end of each pass, even of a failed one. An
interrupted study continues from there.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.analysis.model import Model
from clipbias.analysis.results import FORMAT, Missing
from clipbias.analysis.statistics import Moments, Totals, merge
from clipbias.checks import Choices, Count, Positive, Range, check_fields, check_int
from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights
from clipbias.constants import ZERO_SHOT
from clipbias.data import Split
from clipbias.data.images import Images, Workers, check_readable, pictures
from clipbias.data.pipeline import ImageReading, OnImageError, WorkerCount
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.io import load_arrays, save_arrays
from clipbias.sentences import counted
from clipbias.settings import setting, setting_of
from clipbias.training import placement
from clipbias.training.batches import Reading
from clipbias.training.predictor import Predictor
from clipbias.training.students import STUDENT_FORMS
from clipbias.tuning import Task
from clipbias.tuning.prompts import Classes
from clipbias.tuning.tuned import Tuned

Batch = Mapping[str, jax.Array]
Step = Callable[[Batch], Mapping[str, Any]]
T = TypeVar("T")
Program = TypeVar("Program", bound=Callable[..., object])
SAVE_SECONDS = 60.0
_STAGE = "texts and statistics"  # between passes over images
_IDENTITY = "__identity__"
_EXAMPLES = "__examples__"
_FIELDS = ("count", "mean", "squares")  # of `Moments`


# Default images per batch. Larger batches fall out of CPU caches.
_BATCH = 32
_BATCH_ON_CPU = 8


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Options of a study, stored with its results."""

    batch_size: Positive | None = setting(
        None,
        f"Images per batch, over all devices. Default: {_BATCH_ON_CPU} on a CPU, {_BATCH} elsewhere.",
        no_effect="sums over images are the same to rounding",
    )
    image_limit: Positive | None = setting(
        None,
        "Largest number of images to explain, spread evenly. Default: all. Accuracies are of all images where every "
        "model, zero-shot among them, has stored predictions.",
    )
    training_images: Positive | None = setting(
        1024, "Training and validation images that mean ablations average over; None for all."
    )
    explore_images: Annotated[int, Range(1, 1000)] = setting(
        48, "Images to explore in the report, layer by layer; fewer where their maps would exceed 15 MB of the page."
    )
    replacement_forms: tuple[Annotated[str, Choices(tuple(STUDENT_FORMS))], ...] = setting(
        ("kind",), f"Forms to fit to each adapter's outputs: some of {', '.join(STUDENT_FORMS)}."
    )
    replacement_steps: Count = setting(
        600,
        "Largest number of steps of each fit, of a form or of the adapter's own method; a plateau ends it before. 0 "
        "leaves replacements out.",
    )
    rank_curve: bool = setting(
        False, "Whether to fit maps of rising rank beside two vectors per layer; eight fits per adapter."
    )
    on_image_error: OnImageError | None = setting(None, 'As for `evaluate`: "raise" or "skip"; None is "raise".')
    workers: WorkerCount | None = setting_of(ImageReading, "workers", no_effect="threads that read images")
    seed: Count = setting(0, "Seed of random orders, of resample ablation, and of fits.")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Request:
    """Request of a section for one pass over images.

    Its result holds the values of `step` by name: `Moments`, summed over all images; arrays `[B, …]`, as rows `[n, …]`
    of the images that could be read, with their numbers under "images".
    """

    name: str  # unique in a study; a file name
    title: str  # for a progress bar
    indices: np.ndarray  # numbers of the images in the split
    # From a batch (uint8 "images" `[B, R, R, 3]`, "labels", "mask" and "numbers" `[B]`) to arrays or `Moments`.
    step: Step
    split: Split | None = None  # default: the study's
    crops: int = 0  # crops of each image; with any, images are `[B, 1 + crops, R, R, 3]`


# Yields requests, receives their results by name, returns the section's result.
Computation = Generator[Sequence[Request], dict[str, Any], T]


class RequestProgress:
    """State of a request: its sums and rows, and the number of images in them."""

    def __init__(self, request: Request, folder: Path, study: str) -> None:
        """Reads the state of the same study from the folder; starts anew if a file is damaged or of another study."""
        self.request = request
        self._path = folder / f"{request.name}.npz"
        self._study = study
        self._sums: Totals = {}
        self._rows: dict[str, list[np.ndarray]] = {}
        self.done = 0
        if self._path.exists():
            # A file that was cut off by a kill costs its sums, not the study.
            with contextlib.suppress(ClipbiasError, KeyError, ValueError):
                arrays = load_arrays(self._path)
                if str(arrays.pop(_IDENTITY, None)) == study:
                    done = check_int("the number of examples", arrays.pop(_EXAMPLES).item())
                    names = sorted({name.rpartition("|")[0] for name in arrays if "|" in name})
                    sums = {name: Moments(*(arrays.get(f"{name}|{field}") for field in _FIELDS)) for name in names}
                    rows = {name: [values] for name, values in arrays.items() if "|" not in name}
                    self._sums, self._rows, self.done = sums, rows, done
        self._saved = self.done

    def add(self, batch: dict[str, Any], count: int, mask: np.ndarray) -> None:
        """Adds the results of `step` on the next `count` images, on the host; `mask [B]`: could be read."""
        # The last batch is padded: rows beyond the request's images, and unreadable ones, are dropped here.
        examples = self.request.indices[self.done : self.done + count]
        read = mask[: len(examples)]
        sums = {name: value for name, value in batch.items() if isinstance(value, Moments)}
        rows = {name: np.asarray(value)[: len(examples)][read] for name, value in batch.items() if name not in sums}
        if rows:
            rows["images"] = examples[read].astype(np.int32)
        self._sums = merge(self._sums, sums)
        self._rows = {name: [*self._rows.get(name, ()), values] for name, values in rows.items()}
        self.done += len(examples)

    @property
    def result(self) -> dict[str, Any]:
        """Result that the section receives."""
        return self._sums | {name: np.concatenate(parts) for name, parts in self._rows.items()}

    def save(self) -> None:
        """Writes sums and rows, whole, if there is anything new."""
        if self.done == self._saved:
            return
        # Sums and their number of images go to one file: a kill between two files would count images twice.
        arrays = {_IDENTITY: np.asarray(self._study), _EXAMPLES: np.asarray(self.done)}
        for name, value in self.result.items():
            if isinstance(value, Moments):
                arrays |= {
                    f"{name}|{field}": np.asarray(each, np.float64)
                    for field in _FIELDS
                    if (each := getattr(value, field)) is not None
                }
            else:
                arrays[name] = value
        save_arrays(self._path, arrays)
        self._saved = self.done


class Study:
    """Models, images, devices, and a folder in which unfinished sums are kept."""

    def __init__(
        self,
        models: Sequence[Model],
        split: Split,
        options: StudyOptions,
        folder: Path,
        *,
        training: Split | None = None,
        unlabelled: Split | None = None,
        mesh: Mesh | None = None,
        # Called before the first and after every batch with a title, batches done and in all; with 0 and 0 for a stage
        # without batches, without a title where another bar shows progress.
        advance: Callable[[str, int, int], None] = lambda title, done, total: None,
        # Stored predictions of the whole split, whatever `options.image_limit`: int32 `[n]`, -1 for unreadable images.
        known: Callable[[Model], np.ndarray | None] = lambda model: None,
    ) -> None:
        """Prepares a study of models, zero-shot first, on labelled images; `folder` is for `parts/`.

        Without `training` images (for means) or `unlabelled` ones (for ablations and replacements, none of them in
        `split`), sections leave out what needs them. `mesh` is by default this process's first device.

        Raises `ClipbiasError` for keys that are not unique or not valid, or without an image.
        """
        keys = [model.key for model in models]
        if keys[:1] != [ZERO_SHOT] or len(set(keys)) != len(keys) or any("/" in key for key in keys):
            raise ClipbiasError(
                f"the models of a study are {keys}; give 'zero_shot' first, then unique keys without '/'."
            )
        if not len(split):
            raise ClipbiasError("there is no image to explain; check the data folder and the class selection.")
        self.models = tuple(models)
        self.split = split
        self.options = options
        self.training = training
        self.unlabelled = unlabelled
        self.mesh = placement.single_device() if mesh is None else placement.as_mesh(mesh)
        self.advance = advance
        self.known = known
        self.parts = Path(folder) / "parts"
        self._workers = Workers(options.workers)
        # Every process reads only its part of each batch.
        self._share = placement.share(self.mesh)
        self.clip = models[0].task.clip
        # Cast and placed once, then passed as an argument of every jitted function: a program that closes over weights
        # compiles them too, and holds a copy.
        self.params: Params = self.replicate(cast_weights(self.clip.params, models[0].task.classifier.dtype))
        self.learnables = {model.key: self.replicate(model.learnables) for model in models}
        self.shared: dict[tuple[str, str], Any] = {}  # predictors and programs of several sections, by identity

    @property
    def zero_shot(self) -> Model:
        return self.models[0]

    @functools.cached_property
    def worded(self) -> Model:
        """Zero-shot with the paper's text, whatever the dataset's template, for relevancy and the text tower."""
        model = self.zero_shot
        task = Task(self.clip, ZERO_SHOT, Classes(model.task.class_names), dtype=model.task.classifier.dtype)
        return model if task.texts == model.task.texts else dataclasses.replace(model, tuned=Tuned(task))

    def reference(self, model: Model) -> Model:
        """Returns zero-shot with the text that a model's training started from: the paper's, or that of the classes."""
        return self.worded if model.task.texts == self.worded.task.texts else self.zero_shot

    @property
    def tuned(self) -> tuple[Model, ...]:
        return self.models[1:]

    def replicate(self, tree: Any) -> Any:
        return placement.replicate(self.mesh, tree)

    def predictor(self, model: Model) -> Predictor:
        """Returns the model with its texts encoded, once for all sections."""
        # By the identity of task and learnables, not by the model's key: two keys may share one adapter.
        place = ("predictor", model.tuned.identity)
        if place not in self.shared:
            self.shared[place] = Predictor.of(model.tuned, self.params, self.learnables[model.key])
        return self.shared[place]

    def program(self, name: str, model: Model, function: Program) -> Program:
        """Compiles `function` once for all sections and models of the same task."""
        return self.shared.setdefault((name, model.task.identity), jax.jit(function))

    @functools.cached_property
    def identity(self) -> str:
        """Identity of an unfinished study's parts: models, images and options."""
        training = self.training and self.training.subset(self.training_images)
        # The split counts by its content: moved data are the same study, other images are another one.
        models = {model.key: [model.tuned, model.seed] for model in self.models}
        return identity([FORMAT, models, self.split, training, self.unlabelled, self.options])

    @property
    def images(self) -> np.ndarray:
        """Numbers of the images that most sections look at."""
        return spread(len(self.split), self.options.image_limit)

    @property
    def training_images(self) -> np.ndarray:
        """Numbers of the training images that equivalent biases are measured on."""
        return spread(len(self.training or ()), self.options.training_images)

    def run(self, sections: Mapping[str, Computation[T]]) -> dict[str, T]:
        """Returns the results of sections by name."""
        finished: dict[str, T] = {}
        results: dict[str, Any] = {}
        waiting: dict[str, Sequence[Request]] = {}

        def advance(name: str, section: Computation[T], received: Any) -> None:
            try:
                waiting[name] = section.send(received)
            except StopIteration as end:
                waiting.pop(name, None)
                finished[name] = end.value

        self.advance(_STAGE, 0, 0)
        for name, section in sections.items():
            advance(name, section, None)
        # In rounds: all sections yield their requests before a pass starts, so sections that need the same images read
        # them once. A section that ends early takes no part in later rounds.
        while waiting:
            open_requests = [request for requests in waiting.values() for request in requests]
            # Several sections may ask for one measurement; it is computed once and kept for later rounds.
            new_requests = {request.name: request for request in open_requests if request.name not in results}
            passes = self._by_images(new_requests.values())
            if passes and not results and self.options.on_image_error != "skip":
                # An error amid the passes would come after minutes.
                lists = [(self.split, self.images), *([(self.training, self.training_images)] if self.training else ())]
                images = [Images(split.subset(numbers)) for split, numbers in lists]
                check_readable(images, self.clip.preprocessing.resizing, self._workers, set())
            for passed in passes:
                self._pass(passed)
                results |= {progress.request.name: progress.result for progress in passed}
            self.advance(_STAGE, 0, 0)
            for name, requests in list(waiting.items()):
                advance(name, sections[name], {request.name: results[request.name] for request in requests})
        return finished

    def _by_images(self, requests: Iterable[Request]) -> list[list[RequestProgress]]:
        groups: dict[Any, list[RequestProgress]] = {}
        for request in requests:
            progress = RequestProgress(request, self.parts, self.identity)
            hosts.assert_same(f"what is kept in {self.parts}", progress.done)
            # A killed process may have saved some requests later than others, which then have a pass of their own.
            indices = np.asarray(request.indices, np.int64).tobytes()
            images = (id(request.split), request.crops, indices, progress.done)
            # Requests with the same images but unequal progress do not share a pass: sums would count some images
            # twice.
            groups.setdefault(images, []).append(progress)
        return list(groups.values())

    def _pass(self, requests: Sequence[RequestProgress]) -> None:
        """Completes requests for the same images, equally far, in one pass."""
        first = requests[0].request
        several = f"{len(requests)} measurements of {counted(len(first.indices), 'image')}"
        title = several if len(requests) > 1 else first.title
        size = self._size(first.split, first.crops)
        before, total = _batches_done(requests[0].done, len(first.indices), size)
        if before < total:
            self.advance(title, before, total)  # shows the bar before the first batch, which compiles
        saved = time.monotonic()
        # Two threads, since compiling keeps one core busy. Several processes take one: their collectives must come in
        # the same order everywhere.
        at_once = 1 if hosts.multi_process() else 2
        try:
            with ThreadPoolExecutor(at_once) as threads:
                for batch, number, total in self.batches(
                    first.indices, requests[0].done, split=first.split, crops=first.crops
                ):
                    mask = placement.device_get(batch["mask"])
                    # Each thread fetches its own result: one transfer overlaps the other thread's computation.
                    computed = threads.map(
                        lambda progress, batch=batch: placement.device_get(dict(progress.request.step(batch))), requests
                    )
                    for progress, results in zip(requests, computed, strict=True):
                        progress.add(results, size, mask)
                    self.advance(title, number, total)
                    # By the clock, not by batches: how long a batch takes differs by orders of magnitude between
                    # devices.
                    if number == total or time.monotonic() - saved > SAVE_SECONDS:
                        saved = time.monotonic()
                        self._save(requests)
                    if hosts.stops():  # all processes stop at the same batch
                        raise hosts.Stopped
        finally:  # also at a notice to stop or an unreadable image
            self._save(requests)

    def _save(self, requests: Sequence[RequestProgress]) -> None:
        if hosts.is_first():
            for progress in requests:
                progress.save()

    def _size(self, split: Split | None = None, crops: int = 0) -> int:
        """Returns the images per batch; with `crops` of each, so many fewer."""
        # The same size for all sections, so that they share compiled programs.
        # A batch is never larger than its list: a study of ten images would otherwise compute mostly padding.
        is_training = split is not None and split is self.training
        count = len(self.training_images) if is_training else len(self.images)
        images = self.options.batch_size or (_BATCH_ON_CPU if jax.default_backend() == "cpu" else _BATCH)
        at_once = max(1, images // (1 + crops))
        return placement.rows(self.mesh, min(at_once, max(count, 1)))

    def in_passes(self, compute: Callable[..., Any], *rows: np.ndarray) -> Any:
        """Maps `compute(*rows, mask)`, of arrays `[B, …]`, over host rows `[n, …]`, the same in all processes."""
        # Batches of one size, whatever `n` is, compile one program. The last is filled up with zeros, outside the mask.
        size = self._size()
        local = size // self._share.parts
        count = len(rows[0])
        results = []
        for start in range(self._share.part * local, self._share.part * local + count, size):
            hosts.check()
            # Each process takes its rows of every batch; `place_rows` joins them to a global array.
            shards = [values[start : start + local] for values in (*rows, np.ones(count, bool))]
            padded = [np.concatenate([x, np.zeros((local - len(x), *x.shape[1:]), x.dtype)]) for x in shards]
            results.append(compute(*(placement.place_rows(self.mesh, x) for x in padded)))
            # Waits for the batch before this one: the device stays busy, and no more than two batches are in memory.
            jax.block_until_ready(results[-2:-1])
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *placement.device_get(results))

    def batches(
        self, indices: np.ndarray, start: int = 0, *, split: Split | None = None, crops: int = 0
    ) -> Iterator[tuple[Batch, int, int]]:
        """Yields device batches of the examples `indices[start:]`, the batches done with each, and those in all.

        Batches hold uint8 images, labels, mask, and numbers in the split (default: the study's); the last is padded.
        With `crops`, images are `[B, 1 + crops, R, R, 3]`, the image itself first. Batches done include those before
        `start`.
        """
        size = self._size(split, crops)
        rest = indices[start:]
        if not len(rest):
            return
        before, total = _batches_done(start, len(indices), size)
        reading = Reading(self.mesh, self.options.on_image_error or "raise", self._workers)
        images = (split or self.split).subset(rest)
        host = reading.batches(images, resizing=self.clip.preprocessing.resizing, batch_size=size, crops=crops)
        for number, batch in enumerate(host, before + 1):
            local = size // self._share.parts
            first = (number - before - 1) * size + self._share.part * local
            numbers = rest[first : first + local].astype(np.int32)
            # Numbers identify images where rows are drawn or stored by image; padding is 0, and masked.
            batch["numbers"] = np.pad(numbers, (0, local - len(numbers)))
            yield {name: placement.place_rows(self.mesh, values) for name, values in batch.items()}, number, total

    def normalize(self, images: jax.Array) -> jax.Array:
        return self.clip.preprocessing.normalize(images)

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the examples as the model sees them, uint8 `[K, R, R, 3]`, whole on every process."""
        return pictures(self.split, indices, self.clip.preprocessing.resizing)


def _batches_done(done: int, count: int, size: int) -> tuple[int, int]:
    """Returns the batches of the first `done` of `count` examples, and these with the batches of the rest."""
    # Two roundings: the last batch of an interrupted run may not have been full.
    before = -(-done // size)
    return before, before - (-(count - done) // size)


def at_numbers(rows: Mapping[str, np.ndarray], name: str, count: int, fill: float) -> np.ndarray:
    """Places the rows `name` of a request at the numbers of their images, `[count, …]`; `fill` elsewhere."""
    placed = np.full((count, *rows[name].shape[1:]), fill, rows[name].dtype)
    placed[rows["images"]] = rows[name]
    return placed


def for_each(models: Iterable[Model], request_of: Callable[[Model], Request]) -> Computation[dict[str, Any]]:
    """Makes a request for each model; returns the results by model key."""
    requests = {model.key: request_of(model) for model in models}
    results = yield list(requests.values())
    return {key: results[request.name] for key, request in requests.items()}


def divide(models: Sequence[Model], why_not: Callable[[Task], str]) -> tuple[list[Model], dict[str, Missing]]:
    """Splits models into supported ones and reasons for the others."""
    reasons = {model.key: why_not(model.task) for model in models}
    kept = [model for model in models if not reasons[model.key]]
    return kept, {key: Missing(reason) for key, reason in reasons.items() if reason}


def spread(total: int, count: int | None) -> np.ndarray:
    """Returns `count` of the numbers below `total`, spread evenly; for `None`, or too few, all."""
    if count is None or count >= total:
        return np.arange(total)
    # Spread over the whole list: datasets are often sorted by class, and the first images would be of few classes.
    return np.linspace(0, total - 1, count).round().astype(int)
