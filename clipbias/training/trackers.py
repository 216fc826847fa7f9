"""Where metrics go besides `metrics.jsonl`: TensorBoard, Weights & Biases, trackio, each where it is installed."""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from absl import logging

from clipbias.errors import ClipbiasError, sentence

AUTO = "auto"
PROJECT = "clipbias"


class Tracker(Protocol):
    """What is told metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""

    def close(self) -> None:
        """Ends the record."""


class TensorBoard:
    """Event files in `tensorboard` below the folder, for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Run:
    """A run of Weights & Biases or of trackio, whose interface is the same.

    It is named after its folder. A training that continues goes on with its run.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _name(folder: Path) -> str:
    return "-".join(folder.resolve().parts[-2:])


def _wandb(folder: Path) -> Tracker:
    import wandb

    name = _name(folder)
    return Run(wandb.init(project=PROJECT, name=name, id=name, resume="allow", dir=str(folder)))


def _trackio(folder: Path) -> Tracker:
    import trackio

    return Run(trackio.init(project=PROJECT, name=_name(folder), resume="allow"))


# By name: the package that must be installed, and what opens it.
TRACKERS: Mapping[str, tuple[str, Callable[[Path], Tracker]]] = {
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", _wandb),
    "trackio": ("trackio", _trackio),
}


class Trackers:
    """All that a configuration names. One that fails on the way is left out: the training goes on."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        """Opens them.

        Args:
          names: of `TRACKERS`, or "auto": TensorBoard where it is installed.
          folder: of the run.

        Raises:
          ClipbiasError: there is no such tracker, it is not installed, or it does not start.
        """
        self._open: dict[str, Tracker] = {}
        for name in check_trackers(names):
            try:
                self._open[name] = TRACKERS[name][1](folder)
            except Exception as error:  # what another program refuses, such as a missing login
                self.close()
                raise ClipbiasError(
                    f"{name} does not start ({sentence(error)}); mend that, or leave it out of --config.trackers."
                ) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Passes on all numbers; those of several runs side by side are told apart by their place, as in `loss/0`."""
        numbers: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, int | float):
                numbers[name] = value
            elif isinstance(value, Sequence) and all(isinstance(one, int | float) for one in value):
                numbers |= {f"{name}/{place}": one for place, one in enumerate(value)}
        for name, tracker in [*self._open.items()]:
            try:
                tracker.write(step, numbers)
            except Exception as error:
                logging.warning("%s is told no more (%s); metrics.jsonl has all of it.", name, sentence(error))
                del self._open[name]

    def close(self) -> None:
        """Ends all records."""
        for tracker in self._open.values():
            with contextlib.suppress(Exception):  # nothing of the result is there
                tracker.close()
        self._open.clear()


def check_trackers(names: Sequence[str]) -> list[str]:
    """The trackers that names stand for. Raises `ClipbiasError` for one that is unknown or not installed."""
    found = []
    for name in names:
        if name == AUTO:
            found += ["tensorboard"] * _is_installed("tensorboardX")
            continue
        if name not in TRACKERS:
            raise ClipbiasError(f"trackers has {name!r}; choose from {AUTO}, {', '.join(TRACKERS)}.")
        module = TRACKERS[name][0]
        if not _is_installed(module):
            raise ClipbiasError(f"trackers has {name!r}, which needs {module}: pip install {module}.")
        found.append(name)
    return list(dict.fromkeys(found))


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
