"""Checkpoints of a run. Only this module knows orbax."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias import hosts
from clipbias.errors import ClipbiasError
from clipbias.training import placement


class Checkpoints:
    """The latest two checkpoints of one run in a folder of its own. All processes call its methods alike.

    Saves are asynchronous, atomic, and restored onto any mesh. Every failure is a `ClipbiasError`.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        import orbax.checkpoint as ocp  # takes a second: only runs that save pay for it

        class Manager(ocp.CheckpointManager):
            def reached_preemption(self, step: int) -> bool:
                # JAX's preemption service counts the calls of `hosts.stops`, and takes each number that it is asked
                # about as the latest. Orbax would ask it about steps, which are smaller: the processes would then
                # agree on a number that `hosts.stops` has passed, and never stop.
                return False

        self._args = ocp.args
        self._folder = os.fspath(folder)
        with self._explained("open the checkpoints"):
            self._manager = Manager(
                self._folder if "://" in self._folder else Path(self._folder).resolve(),
                # Two, so that a kill within a save leaves the one before.
                options=ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True),
            )

    def restore(self, like: Any) -> tuple[int, Any, list[float]] | None:
        """Step, state (on the host) and losses of the latest checkpoint, shaped as `like`; `None` without one."""
        step = hosts.from_first(self._manager.latest_step)  # not all hosts may see it yet
        if step is None:
            return None
        shapes = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _named(like).items()}
        with self._explained(f"read the checkpoint of step {step}"):
            loaded = self._manager.restore(step, args=self._args.StandardRestore(shapes))
            losses = self._manager.metadata(step).custom_metadata["losses"]
            arrays = {name: np.asarray(loaded[name]) for name in shapes}
            # Orbax returns an array as it was saved where another shape is asked for, without an error.
            for name, leaf in arrays.items():
                if (leaf.shape, leaf.dtype) != (shapes[name].shape, shapes[name].dtype):
                    raise ValueError(f"{name} has the shape {leaf.shape}, not {shapes[name].shape}")
        return step, jax.tree.unflatten(jax.tree.structure(like), arrays.values()), losses

    def save(self, step: int, state: Any, losses: Sequence[float]) -> None:
        """Starts saving the state after `step` steps, and each run's loss, once the save before it is on disk."""
        # Whole, since learnables are small: the first process writes, and any mesh restores. Copies, since the next
        # step takes the donated memory of those on a device.
        named = {name: np.array(leaf, order="C") for name, leaf in _named(placement.device_get(state)).items()}
        metadata = {"losses": [float(loss) for loss in losses]}
        with self._explained("save a checkpoint"):
            self._manager.wait_until_finished()
            self._manager.save(step, args=self._args.StandardSave(named), force=True, custom_metadata=metadata)

    def wait(self) -> None:
        with self._explained("save a checkpoint"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._explained("save a checkpoint"):
            self._manager.close()

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax wraps errors of the disk in its own
            words = re.search(r": ([^:\[]+?) \[os_error_code", f"{error} {error.__cause__}")
            reason = words[1] if words else (str(error) or type(error).__name__).splitlines()[0]
            raise ClipbiasError(
                f"cannot {action} in {self._folder}: {reason}; see to the disk and run the same command again, or "
                "remove that folder to start anew."
            ) from error


def _named(state: Any) -> dict[str, Any]:
    # By path, which does not depend on the classes of the state's containers.
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
