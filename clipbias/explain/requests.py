"""One pass over images that serves every section of a study that needs them.

A `Section` is a generator. It yields a `SumRequest` or a `RowRequest` for all that it needs of images, and receives the
results by name. Its next requests may depend on them: the causal test needs means over images, then runs with these
means. `Study.run` collects the requests of all sections, and reads each list of images once for all of them. Requests
of the same name are one request.

Every minute, and whatever ends a pass, each request's state is written to `parts/`. An interrupted study continues from
there.
"""

import dataclasses
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from clipbias.checks import check_int
from clipbias.data import Split
from clipbias.errors import ClipbiasError
from clipbias.explain.results import load_arrays, save_arrays
from clipbias.explain.statistics import Moments, Totals, merge

Batch = Mapping[str, jax.Array]
Step = Callable[[Batch], Mapping[str, Any]]
T = TypeVar("T")
SAVE_SECONDS = 60.0
_FINGERPRINT = "__fingerprint__"
_EXAMPLES = "__examples__"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a section needs of images.

    Attributes:
      name: unique in a study; a file name.
      title: for a progress bar.
      indices: numbers of the images in the split.
      step: from a batch (uint8 "images" `[B, R, R, 3]`, "labels", "mask" and "numbers" `[B]`) to arrays or `Moments`.
      split: the images; `None` takes the study's.
      crops: views of each image besides itself; images are then `[B, 1 + crops, R, R, 3]`.
    """

    name: str
    title: str
    indices: np.ndarray
    step: Step
    split: Split | None = None
    crops: int = 0

    def start(self) -> Any:
        """The state before the first batch."""
        raise NotImplementedError

    def add(self, state: Any, batch: dict[str, Any], examples: np.ndarray, read: np.ndarray) -> Any:
        """The state after a batch.

        Args:
          state: before it; not changed.
          batch: what `step` returned, on the host.
          examples: the images of the batch, without what fills it up.
          read: which of them could be read.
        """
        raise NotImplementedError

    def pack(self, state: Any) -> dict[str, np.ndarray]:
        """The state as arrays."""
        raise NotImplementedError

    def unpack(self, arrays: dict[str, np.ndarray]) -> Any:
        """The state that `pack` made arrays of; `KeyError` where they are not such."""
        raise NotImplementedError

    def result(self, state: Any) -> Any:
        """What the section receives."""
        return state


class SumRequest(Request):
    """For `Moments` by name, summed over all images: `Totals`."""

    def start(self) -> Totals:
        return {}

    def add(self, state: Totals, batch: dict[str, Any], examples: np.ndarray, read: np.ndarray) -> Totals:
        return merge(state, batch)

    def pack(self, state: Totals) -> dict[str, np.ndarray]:
        arrays = {}
        for name, moments in state.items():
            for field in dataclasses.fields(moments):
                arrays[f"{name}|{field.name}"] = np.asarray(getattr(moments, field.name), np.float64)
        return arrays

    def unpack(self, arrays: dict[str, np.ndarray]) -> Totals:
        parts: dict[str, dict[str, np.ndarray]] = {}
        for place, value in sorted(arrays.items()):
            name, _, field = place.rpartition("|")
            parts.setdefault(name, {})[field] = value
        return {name: _moments(fields) for name, fields in parts.items()}


def _moments(fields: Mapping[str, np.ndarray]) -> Moments:
    return Moments(fields["count"], fields["mean"], fields["squares"])


class RowRequest(Request):
    """For arrays `[n, …]` by name, a row per image that could be read; "images" are the numbers of these."""

    def start(self) -> list[dict[str, np.ndarray]]:
        return []

    def add(self, state: Any, batch: dict[str, Any], examples: np.ndarray, read: np.ndarray) -> Any:
        rows = {name: np.asarray(value)[: len(examples)][read] for name, value in batch.items()}
        return [*state, rows | {"images": examples[read].astype(np.int32)}]

    def pack(self, state: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([rows[name] for rows in state]) for name in (state[0] if state else ())}

    def unpack(self, arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        return [arrays] if arrays else []

    def result(self, state: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return self.pack(state)


# Yields requests, receives their results by name, returns the section's result.
Section = Generator[Sequence[Request], dict[str, Any], T]


class RequestProgress:
    """How far a request is: its state, and how many of its images are in it, always together."""

    def __init__(self, request: Request, folder: Path, fingerprint: str) -> None:
        """Takes up what the folder holds of the same study; nothing where a file is damaged or of another study."""
        self.request = request
        self._path = folder / f"{request.name}.npz"
        self._fingerprint = fingerprint
        self.state, self.done = self._load()
        self._saved = self.done

    def add(self, batch: dict[str, Any], count: int, mask: np.ndarray) -> None:
        """Adds a batch of the next `count` images; `mask [B]` says which could be read."""
        examples = self.request.indices[self.done : self.done + count]
        self.state = self.request.add(self.state, batch, examples, mask[: len(examples)])
        self.done += len(examples)

    def save(self) -> None:
        """Writes the state, whole, if there is anything new."""
        if self.done != self._saved:
            marks = {_FINGERPRINT: np.asarray(self._fingerprint), _EXAMPLES: np.asarray(self.done)}
            save_arrays(self._path, {**self.request.pack(self.state), **marks})
            self._saved = self.done

    def _load(self) -> tuple[Any, int]:
        if self._path.exists():
            try:
                arrays = load_arrays(self._path)
                if str(arrays.pop(_FINGERPRINT, None)) == self._fingerprint:
                    done = check_int("the number of examples", arrays.pop(_EXAMPLES).item())
                    return self.request.unpack(arrays), done
            except (ClipbiasError, KeyError, ValueError):
                pass
        return self.request.start(), 0


class Saver:
    """Says when a minute has passed since the last time."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether to save now; if so the next minute begins."""
        due = time.monotonic() - self._last > SAVE_SECONDS
        if due:
            self._last = time.monotonic()
        return due
