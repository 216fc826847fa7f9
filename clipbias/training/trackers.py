"""Where metrics go besides `metrics.jsonl`: TensorBoard, Weights & Biases, trackio, each where it is installed."""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from clipbias.errors import ClipbiasError, sentence

AUTO = "auto"
PROJECT = "clipbias"

# Takes the numbers of one step; and the call that ends the record.
Tracker = tuple[Callable[[int, dict[str, float]], Any], Callable[[], Any]]


def _tensorboard(folder: Path) -> Tracker:
    """Event files in `tensorboard` below the folder, for `tensorboard --logdir`."""
    import tensorboardX

    writer = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def _wandb(folder: Path) -> Tracker:
    """A run named after its folder; a training that continues goes on with it."""
    import wandb

    name = _name(folder)
    run = wandb.init(project=PROJECT, name=name, id=name, resume="allow", dir=str(folder))
    return lambda step, values: run.log(values, step=step), run.finish


def _trackio(folder: Path) -> Tracker:
    """As that of Weights & Biases."""
    import trackio

    run = trackio.init(project=PROJECT, name=_name(folder), resume="allow")
    return lambda step, values: run.log(values, step=step), run.finish


def _name(folder: Path) -> str:
    return "-".join(folder.resolve().parts[-2:])


# By name: the package that must be installed, and the function that opens the tracker.
TRACKERS: Mapping[str, tuple[str, Callable[[Path], Tracker]]] = {
    "tensorboard": ("tensorboardX", _tensorboard),
    "wandb": ("wandb", _wandb),
    "trackio": ("trackio", _trackio),
}


class Trackers:
    """All trackers of a configuration. One that fails later is left out, and the training goes on."""

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
            except Exception as error:  # another program's refusal, such as a missing login
                self.close()
                raise ClipbiasError(
                    f"{name} does not start ({sentence(error)}); mend that, or leave it out of --config.trackers."
                ) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Passes on all numbers; those of several runs side by side are told apart by their place, as in `loss/0`."""
        numbers: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, list):
                numbers |= {f"{name}/{place}": number for place, number in enumerate(value)}
            elif isinstance(value, int | float):
                numbers[name] = value
        for name, (write, _) in list(self._open.items()):
            try:
                write(step, numbers)
            except Exception as error:
                logging.warning("%s gets no more metrics (%s); metrics.jsonl has all.", name, sentence(error))
                del self._open[name]

    def close(self) -> None:
        """Ends all records."""
        for _, close in self._open.values():
            with contextlib.suppress(Exception):  # no result depends on it
                close()
        self._open.clear()


def check_trackers(names: Sequence[str]) -> list[str]:
    """The trackers of these names. Raises `ClipbiasError` for one that is unknown or not installed."""
    checked = []
    for name in names:
        if name == AUTO:
            if _is_installed("tensorboardX"):
                checked.append("tensorboard")
            continue
        if name not in TRACKERS:
            raise ClipbiasError(f"trackers has {name!r}; choose from {AUTO}, {', '.join(TRACKERS)}.")
        module = TRACKERS[name][0]
        if not _is_installed(module):
            raise ClipbiasError(f"trackers has {name!r}, which needs {module}: pip install {module}.")
        checked.append(name)
    return list(dict.fromkeys(checked))


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
