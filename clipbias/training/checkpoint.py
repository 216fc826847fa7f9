"""Checkpoints of a run in progress, through orbax: asynchronous, atomic, restored onto any mesh.

Only this module knows orbax. A step counts once its folder has its final name; a save that was cut short is removed.
States are small: each is fetched whole, the first process writes it, and a restored one lies on the host.
"""

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
from clipbias.training.mesh import device_get


class Checkpoints:
    """The checkpoints of one run in a folder of its own, the latest two kept. All processes call its methods alike."""

    def __init__(self, folder: str | os.PathLike) -> None:
        """Opens or creates the folder. Raises `ClipbiasError` if it cannot be read or written."""
        from orbax.checkpoint import v1 as ocp

        self._folder = os.fspath(folder)
        with self._explained("open the checkpoints"):
            self._checkpointer = ocp.training.Checkpointer(
                self._folder if "://" in self._folder else Path(self._folder).resolve(),
                preservation_policy=ocp.training.preservation_policies.LatestN(2),
                cleanup_tmp_directories=True,
            )
            # It would ask JAX for a notice to stop, counting steps by other numbers than `hosts.stops` does.
            self._checkpointer._manager.reached_preemption = lambda step: False

    def restore(self, like: Any) -> tuple[int, Any, list[float]] | None:
        """The latest checkpoint.

        Args:
          like: a state with the shapes and types shapes.

        Returns:
          Its step, state, as arrays on the host, and losses; `None` if there is no checkpoint.

        Raises:
          ClipbiasError: it cannot be read, or is not of such a state.
        """
        latest = self._checkpointer.latest
        step = hosts.from_first(lambda: None if latest is None else latest.step)  # not all hosts may see it yet
        if step is None:
            return None
        shapes = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _named(like).items()}
        with self._explained(f"read the checkpoint of step {step}"):
            loaded = self._checkpointer.load(step, shapes)
            losses = self._checkpointer.metadata(step).custom_metadata["losses"]
            arrays = {name: np.asarray(loaded[name]) for name in shapes}
            for name, leaf in arrays.items():
                if (leaf.shape, leaf.dtype) != (shapes[name].shape, shapes[name].dtype):
                    raise ValueError(f"{name} has the shape {leaf.shape}, not {shapes[name].shape}")
        return step, jax.tree.unflatten(jax.tree.structure(like), arrays.values()), losses

    def save(self, step: int, state: Any, losses: Sequence[float]) -> None:
        """Starts saving `state` as of `step`, once the save before it is on disk.

        Args:
          step: how many steps are done.
          state: arrays.
          losses: of each run at that step.

        Raises:
          ClipbiasError: this or the previous one could not be written.
        """
        # Copies: the next step may write into the memory of those on a device.
        named = {name: np.array(leaf, order="C") for name, leaf in _named(device_get(state)).items()}
        metadata = {"losses": [float(loss) for loss in losses]}
        with self._explained("save a checkpoint"):
            self._checkpointer.wait()
            self._checkpointer.save_async(step, named, force=True, custom_metadata=metadata)

    def wait(self) -> None:
        """Waits until what was saved is on disk. Raises `ClipbiasError` if it could not be written."""
        with self._explained("save a checkpoint"):
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits for what is being saved and releases the folder."""
        with self._explained("save a checkpoint"):
            self._checkpointer.close()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax wraps errors of the disk in its own
            words = re.search(r": ([^:\[]+?) \[os_error_code", f"{error} {error.__cause__}")
            reason = words[1] if words else (str(error) or type(error).__name__).splitlines()[0]
            raise ClipbiasError(
                f"cannot {what} in {self._folder}: {reason}; see to the disk and run the same command again, or remove "
                "that folder to start anew."
            ) from error


def _named(state: Any) -> dict[str, Any]:
    """The leaves of a state by their path, which does not depend on the classes of its containers."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
