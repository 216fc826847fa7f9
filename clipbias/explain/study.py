"""A zero-shot model, tuned ones and a dataset: what every section of a study works with."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias import hosts
from clipbias.clip.params import Params
from clipbias.clip.precision import held, named
from clipbias.data import Split
from clipbias.data.images import pictures
from clipbias.data.pipeline import test_batches
from clipbias.data.workers import Workers
from clipbias.errors import ClipbiasError
from clipbias.explain.clock import Clock
from clipbias.explain.devices import Devices
from clipbias.explain.model import ZERO_SHOT, Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.results import FORMAT, plain
from clipbias.explain.statistics import (
    Totals,
    load_rows,
    load_section,
    load_totals,
    merge,
    save_rows,
    save_section,
    save_totals,
)
from clipbias.tuning import Task

Batch = Mapping[str, jax.Array]
Section = tuple[dict[str, np.ndarray], dict[str, Any]]


class Study:
    """Models, images and a folder in which finished sections and unfinished sums are kept."""

    def __init__(
        self,
        models: Sequence[Model],
        split: Split,
        options: StudyOptions,
        folder: Path,
        *,
        training: Split | None = None,
        devices: Devices | None = None,
        advance: Callable[[str, int, int], None] = lambda title, done, total: None,
        known: Callable[[Model], np.ndarray | None] = lambda model: None,
    ) -> None:
        """Prepares a study.

        Args:
          models: zero-shot first.
          split: labelled images.
          options: what is asked.
          folder: for `parts/`; what is found there of the same study is not computed again.
          training: images of the training set, for what a method amounts to; `None` leaves that out.
          devices: where to compute.
          advance: told of every step: a title, steps done, steps in all.
          known: the class that a model was already found to give every image, int32 `[n]`, -1 where one could not be
            read; or `None`. Where all models' are known, those of no other images than `options.images` are dropped.
        """
        keys = [model.key for model in models]
        if keys[:1] != [ZERO_SHOT] or len(set(keys)) != len(keys) or any("/" in key for key in keys):
            raise ClipbiasError(
                f"the models of a study are {keys}; give 'zero_shot' first, then unique keys without '/'."
            )
        if not len(split):
            raise ClipbiasError("there is no image to explain; check the data folder and the class selection.")
        self.models, self.split, self.options, self.training = tuple(models), split, options, training
        self.devices, self.advance, self.known = devices or Devices(), advance, known
        self.parts, self._workers = Path(folder) / "parts", Workers(options.workers)
        self.clip = models[0].task.clip
        self.params: Params = self.devices.replicate(held(self.clip.params, models[0].task.classifier.dtype))
        self.learnables = {model.key: self.devices.replicate(model.learnables) for model in models}
        self.shared: dict[tuple[str, Task], Any] = {}  # what several sections use (`passes`)
        self.fingerprint = self._fingerprint()
        self.clock = Clock(self.parts / "seconds.json", self.fingerprint, write=self.is_first)

    @property
    def zero_shot(self) -> Model:
        return self.models[0]

    @functools.cached_property
    def worded(self) -> Model:
        """Zero-shot with the text that figures of relevancy and of the text tower show it with.

        That is the paper's, whatever template the dataset has, unless the options ask for the dataset's.
        """
        own = self.zero_shot
        if self.options.zero_shot_text == "dataset":
            return own
        task = Task(self.clip, ZERO_SHOT, own.task.class_names, dtype=own.task.classifier.dtype)
        return own if task.texts == own.task.texts else dataclasses.replace(own, task=task)

    @property
    def tuned(self) -> tuple[Model, ...]:
        return self.models[1:]

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.devices.first

    def _fingerprint(self) -> str:
        found = hashlib.sha256()
        for model in self.models:
            facts: list[Any] = [model.key, model.method, repr(model.task.options()), model.task.texts]
            facts += [named(model.task.classifier.dtype), model.seed]
            found.update(json.dumps(facts).encode())
            for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(model.learnables), key=lambda x: str(x[0])):
                found.update(str(path).encode() + np.asarray(leaf).tobytes())
        for images in (self.split, self.training.subset(self.training_images) if self.training else None):
            found.update(json.dumps(images and images.digest).encode())
        found.update(json.dumps([FORMAT, self.clip.fingerprint, self.options.what_counts()]).encode())
        return found.hexdigest()

    def spread(self, count: int) -> np.ndarray:
        """`count` example numbers spread evenly over the split; all of them for 0."""
        return spread(len(self.split), count)

    @property
    def training_images(self) -> np.ndarray:
        """Numbers of the training images that what a method amounts to is measured on."""
        return spread(len(self.training or ()), self.options.amounts_images)

    def _size(self, split: Split | None = None, crops: int = 0) -> int:
        """Images per batch: the same for all sections, which so share programs; training images have their own.

        With `crops` of each there are so many fewer.
        """
        own, multiple = split is not None and split is self.training, self.devices.multiple
        count = len(self.training_images) if own else len(self.spread(self.options.images))
        at_once = max(1, self.options.images_at_once // (1 + crops))
        return -(-min(at_once, max(count, 1)) // multiple) * multiple

    def in_passes(self, compute: Callable[..., Any], *rows: np.ndarray) -> Any:
        """`compute(*rows)`, arrays `[B, …]`, over host rows `[n, …]` that all processes have, as batches of images.

        All passes have the same size, whatever `n > 0` is, so that one program is compiled. What fills the last one up
        is zeros.
        """
        size, (process, processes) = self._size(), self.devices.shard
        local, found = size // processes, []
        for start in range(process * local, process * local + len(rows[0]), size):
            hosts.check()
            own = [values[start : start + local] for values in rows]
            filled = (np.pad(x, [(0, local - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in own)
            found.append(compute(*map(self.devices.place, filled)))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows[0])], *self.devices.fetch(found))

    def batches(
        self, indices: np.ndarray, start: int = 0, *, split: Split | None = None, crops: int = 0
    ) -> Iterator[tuple[Batch, int, int]]:
        """Device batches of the examples `indices[start:]`: uint8 images, labels, mask, and their numbers in the split.

        They are those of the study's images, or of `split`, and the last batch is padded. With `crops` there are views
        of each image, `[B, 1 + V, R, R, 3]`, itself first. Beside each batch come the number of batches done with it
        and the number in all, those before `start` included.
        """
        size, rest = self._size(split, crops), indices[start:]
        if not len(rest):
            return
        before = -(-start // size)
        total = before - (-len(rest) // size)
        host = test_batches(
            (split or self.split).subset(rest),
            image_size=self.clip.config.vision.image_size,
            batch_size=size,
            shard=self.devices.shard,
            on_error=self.options.on_image_error,
            crops=crops,
            workers=self._workers,
        )
        process, processes = self.devices.shard
        for number, batch in enumerate(host, before + 1):
            local = size // processes
            first = (number - before - 1) * size + process * local
            numbers = rest[first : first + local].astype(np.int32)
            batch["numbers"] = np.pad(numbers, (0, local - len(numbers)))
            yield {name: self.devices.place(values) for name, values in batch.items()}, number, total

    def accumulate(
        self,
        name: str,
        title: str,
        indices: np.ndarray,
        step: Callable[[Batch], Mapping[str, Any]],
        *,
        split: Split | None = None,
        crops: int = 0,
    ) -> Totals:
        """Sums `step(batch)`, a dictionary of `Moments` per batch, over examples; saved now and then and at the end.

        Examples are those of the study's images, or of `split`, with `crops` of each.
        """
        path = self.parts / f"{name}.npz"
        start = load_totals(path, self.fingerprint)

        def add(batch: Batch, totals: Totals, done: int) -> Totals:
            return merge(totals, self._run(step, batch))

        def save(totals: Totals, done: int) -> None:
            save_totals(path, totals, done, self.fingerprint)

        return self._continue(title, indices, start, add, save, split, crops)

    def collect(
        self,
        name: str,
        title: str,
        indices: np.ndarray,
        step: Callable[[Batch], Mapping[str, Any]],
        *,
        split: Split | None = None,
        crops: int = 0,
    ) -> dict[str, np.ndarray]:
        """What `step(batch)` returns per example, arrays `[B, …]` by name, of all examples one after another.

        Saved now and then and at the end, as sums are. "images" are the numbers of the examples that could be read; the
        others are left out. Examples are those of the study's images, or of `split`.
        """
        path = self.parts / f"{name}.rows.npz"
        start = load_rows(path, self.fingerprint)

        def add(batch: Batch, rows: dict[str, np.ndarray], done: int) -> dict[str, np.ndarray]:
            examples = indices[done : done + self._size(split, crops)]
            found = self._run(step, batch) | {"mask": self.devices.fetch(batch["mask"])}
            read = np.asarray(found.pop("mask"))[: len(examples)]
            new = {key: np.asarray(value)[: len(examples)][read] for key, value in found.items()}
            new["images"] = examples[read].astype(np.int32)
            return {key: np.concatenate([rows[key], value]) if key in rows else value for key, value in new.items()}

        def save(rows: dict[str, np.ndarray], done: int) -> None:
            save_rows(path, rows, done, self.fingerprint)

        return self._continue(title, indices, start, add, save, split, crops)

    def _run(self, step: Callable[[Batch], Mapping[str, Any]], batch: Batch) -> dict[str, Any]:
        return dict(self.devices.fetch(step(batch)))

    def _continue(
        self,
        title: str,
        indices: np.ndarray,
        start: tuple[Any, int],
        add: Callable[[Batch, Any, int], Any],
        save: Callable[[Any, int], None],
        split: Split | None = None,
        crops: int = 0,
    ) -> Any:
        """Adds batch after batch to what `start` holds of the first so many examples.

        Args:
          add: from a batch, what is held so far and the number of examples in it, to what is held then.
          save: of what is held and the number of examples in it.
        """
        hosts.assert_same(f"what is kept in {self.parts}", start[1])
        reached = kept = start  # what is held and how many examples are in it, always together
        saved = time.monotonic()
        try:
            for batch, number, total in self.batches(indices, reached[1], split=split, crops=crops):
                done = min(reached[1] + self._size(split, crops), len(indices))
                reached = add(batch, *reached), done
                self.advance(title, number, total)
                if number == total or time.monotonic() - saved > self.options.save_seconds:
                    if self.is_first:
                        save(*reached)
                    self.clock.save()
                    kept, saved = reached, time.monotonic()
                if hosts.stops():  # several processes, which all stop at the same batch
                    raise hosts.Stopped
        finally:  # whatever ends it, a notice to stop or an image that cannot be read
            if reached is not kept and self.is_first:
                save(*reached)
        return reached[0]

    def once(self, name: str, compute: Callable[[], Section]) -> Section:
        """A section's arrays and scalars, from `parts/` where this study finished it before."""
        path = self.parts / f"{name}.section.npz"
        kept = load_section(path, self.fingerprint)
        hosts.assert_same(f"what is kept in {self.parts}", kept is not None)
        if kept is not None:
            return kept
        hosts.check()
        arrays, scalars = compute()
        scalars = plain(scalars)
        if self.is_first:
            save_section(path, arrays, scalars, self.fingerprint)
        return arrays, scalars

    def normalize(self, images: jax.Array) -> jax.Array:
        """Raw pixels to what the model takes."""
        return self.clip.preprocessing.normalize(images)

    def pictures(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The examples as the model sees them, uint8 `[K, R, R, 3]`, whole on every process."""
        return pictures(self.split, indices, self.clip.config.vision.image_size)


def spread(total: int, count: int) -> np.ndarray:
    """`count` of the numbers below `total`, spread evenly; all of them for 0, or where there are no more."""
    return np.arange(total) if not 0 < count < total else np.linspace(0, total - 1, count).round().astype(int)
