"""The place that each call of the tables gets, and how cases are made."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clipbias import TunedModel
from clipbias.clip import Clip
from clipbias.tuning import Task
from clipbias.tuning.adapter import write_adapter


@dataclasses.dataclass(frozen=True)
class Place:
    """An empty folder, and the tiny random model where a call asks for it."""

    tmp_path: Path
    request: pytest.FixtureRequest

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.request.getfixturevalue("model")

    @property
    def clip(self) -> Clip:
        """The same, loaded."""
        return self.request.getfixturevalue("clip")

    def task(self, method: str = "bias", names: tuple[str, ...] = ("cat", "dog"), **options: Any) -> Task:
        return Task(self.clip, method, names, **options)

    def learned(self, *args: Any, **options: Any) -> tuple[Task, Any, Any]:
        """A task, the frozen weights and learnables that are zeros."""
        task = self.task(*args, **options)
        return task, self.clip.params, zeros(task)

    def tuned(self, *args: Any, **options: Any) -> TunedModel:
        """A model of zeros."""
        task = self.task(*args, **options)
        return TunedModel(task, zeros(task))

    def adapter(self, method: str = "bias", names: tuple[str, ...] = ("cat", "dog"), **options: Any) -> Path:
        """A file of an adapter of zeros."""
        path = self.tmp_path / "a.safetensors"
        write_adapter(path, self.tuned(method, names, **options))
        return path


def zeros(task: Task) -> Any:
    """Learnables without a program to compile."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), task.shapes)


# Words of the message, as a regular expression, and the call that is refused.
Case = tuple[str, Callable[[Place], Any]]


def case(call: Callable[..., Any]) -> Callable[..., Case]:
    """Makes cases of words and of the arguments that a call takes after the place."""
    return lambda words, /, *args, **options: (words, lambda place: call(place, *args, **options))


pure = case(lambda place, call, *args, **options: call(*args, **options))
