"""Checkpoints of a run in progress, through orbax: asynchronous, atomic, restored onto any mesh.

Only this module knows orbax. A step counts once its folder has its final name; a save that was cut short is removed.
Among several processes the first writes and reads for all: orbax would have each write its part, and all of them wait
for ever for one that cannot.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from clipbias.errors import ClipbiasError
from clipbias.training import processes
from clipbias.training.mesh import fetch, from_first

# The file in which orbax keeps what belongs to a checkpoint besides its arrays. The name is orbax's own affair, used by
# `_metadata` alone: orbax reads these files of all steps when it opens a folder, and where one of them is damaged it
# opens none and does not say which, so damage is looked for before. Were the file called otherwise one day, every
# checkpoint would be set aside at the next start, which this module's tests would show.
METADATA = "_CHECKPOINT_METADATA"
# How the name of a folder ends whose checkpoint is damaged.
DAMAGED = ".damaged"


class Checkpoints:
    """The checkpoints in one folder, the latest two kept. All processes of a job must call its methods alike."""

    def __init__(
        self, folder: str | os.PathLike, *, identity: dict[str, Any], earlier: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Opens or creates the folder.

        Args:
          folder: where the checkpoints lie.
          identity: JSON values that must be equal for a checkpoint to be continued (recipe, images, model, …).
          earlier: what is taken for the same, since earlier versions wrote it so.

        Raises:
          ClipbiasError: the folder cannot be written, or no checkpoint in it can be read.
        """
        self._folder = Path(folder).resolve()
        self._identity, *self._earlier = json.loads(json.dumps([identity, *earlier]))
        self._manager: Any = None  # of the first process
        self._failed = False
        with processes.agreed():
            if jax.process_index() == 0:
                try:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._manager = self._open()
                except OSError as error:
                    raise ClipbiasError(
                        f"cannot write {folder}: {error.strerror}; choose another --workdir."
                    ) from error

    def _open(self) -> Any:
        """Orbax's view of the folder, once steps whose metadata is damaged are out of its way."""
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(2),
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}),
        )

        def attempt() -> Any:
            return ocp.CheckpointManager(self._folder, options=options)

        steps = sorted((p for p in self._folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))[::-1]
        for step in [step for step in steps if not _is_sealed(step)]:
            _set_aside(step)
            steps.remove(step)
        try:
            return attempt()
        except OSError:
            raise
        except Exception as error:  # one of them is not what orbax wrote, and it does not say which
            for step in steps:
                aside = _set_aside(step)
                try:
                    return attempt()
                except Exception:  # another one
                    aside.rename(step)
            raise ClipbiasError(
                f"the checkpoints in {self._folder} are damaged ({str(error).splitlines()[0]}); remove that folder to "
                "start anew."
            ) from error

    def save(self, step: int, state: Any, losses: Sequence[float]) -> None:
        """Starts saving `state` as of `step`; returns before it is on disk.

        Args:
          step: how many steps are done.
          state: arrays.
          losses: of each run at that step, for a run that is continued with no step left.

        Raises:
          ClipbiasError: this or the previous one could not be written.
        """
        import orbax.checkpoint as ocp

        # Copies: the next step may write into the memory of those on a device.
        named = {name: np.array(leaf, order="C") for name, leaf in _named(fetch(state)).items()}
        metadata = {"identity": self._identity, "digest": _digest(named), "losses": [float(loss) for loss in losses]}
        metadata["step"] = step
        metadata["seal"] = _seal(metadata)
        with processes.agreed(), self._saving():
            if self._manager is not None:
                self._manager.wait_until_finished()
                if step in self._manager.all_steps():
                    self._manager.delete(step)
                arguments = ocp.args.Composite(state=ocp.args.StandardSave(named))
                self._manager.save(step, args=arguments, custom_metadata=metadata, force=True)

    def wait(self) -> None:
        """Waits until what was saved is on disk. Raises `ClipbiasError` if it could not be written."""
        with processes.agreed(), self._saving():
            if self._manager is not None:
                self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax wraps the file system's errors in its own
            self._failed = True
            self._remove_unfinished()  # so that a full disk has room for a few words
            system = next((e.strerror for e in _causes(error) if isinstance(e, OSError) and e.strerror), "")
            # The storage library puts the system's words at the end of its own, before a code in brackets.
            words = re.search(r": ([^:\[]+?) \[os_error_code", str(error))
            reason = system or (words[1] if words else str(error).splitlines()[0])
            intact = "the previous checkpoint is intact, " if self._has_steps() else ""
            raise ClipbiasError(
                f"cannot save a checkpoint in {self._folder}: {reason}; {intact}make room, or see to the disk, and run "
                "the same command again."
            ) from error

    def _has_steps(self) -> bool:
        try:
            return any(path.name.isdecimal() for path in self._folder.iterdir())
        except OSError:
            return False

    def _remove_unfinished(self) -> None:
        """Removes what neither is a checkpoint nor once was one."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if not (path.name.isdecimal() or path.name.endswith(DAMAGED)):
                    shutil.rmtree(path, ignore_errors=True)

    def restore(self, like: Any) -> tuple[int, Any, list[float] | None] | None:
        """The latest whole checkpoint that fits.

        Args:
          like: a state with the shapes and types wanted.

        Returns:
          Its step, state, as arrays on the host, and losses, which the first versions did not save; or `None` where
          there is none.

        Raises:
          ClipbiasError: the folder belongs to another run.
        """
        state = None

        def latest() -> tuple[int, list[float] | None] | None:
            nonlocal state
            found = self._latest(like)
            if found is None:
                return None
            step, state, losses = found
            return step, losses

        told = processes.tell(latest)
        return None if told is None else (told[0], from_first(state, like), told[1])

    def _latest(self, like: Any) -> tuple[int, Any, list[float] | None] | None:
        import orbax.checkpoint as ocp

        saved = sorted(self._manager.all_steps(), reverse=True)
        wanted = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _named(like).items()}
        for step in saved:
            problem = "its content is not what was saved"
            try:
                metadata = _metadata(self._folder / str(step))
                if metadata.get("identity") not in (self._identity, *self._earlier):
                    raise ClipbiasError(
                        f"{self._folder} holds checkpoints of another run "
                        f"({_difference(metadata.get('identity'), self._identity)}); choose another --workdir, or "
                        "remove that folder to start anew."
                    )
                arguments = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
                loaded = self._manager.restore(step, args=arguments)["state"]
                found = {name: np.asarray(loaded[name]) for name in wanted}
                if _digest(found) == metadata.get("digest"):
                    return step, jax.tree.unflatten(jax.tree.structure(like), found.values()), metadata.get("losses")
            except ClipbiasError:
                raise
            except Exception as error:  # any kind of damage: fall back to the checkpoint before it
                problem = str(error)
            logging.warning(
                "checkpoint %d in %s is damaged (%s); trying the one before it", step, self._folder, problem
            )
        if saved:
            logging.warning("no checkpoint in %s is whole; training starts anew", self._folder)
        return None

    def close(self) -> None:
        """Waits for what is being saved and releases the folder; the other processes are not waited for."""
        if self._manager is not None:
            told = self._failed
            try:
                with self._saving():
                    self._manager.close()
            except ClipbiasError:
                if not told:  # else it comes back here
                    raise


def _named(state: Any) -> dict[str, Any]:
    """The leaves of a state by their path, which does not depend on the classes of its containers."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _seal(metadata: dict[str, Any]) -> str:
    """What tells damaged metadata from that of another run."""
    # Earlier versions sealed the first two alone, for there was no more.
    later = [name for name in ("losses", "step") if name in metadata]
    told = json.dumps([metadata[name] for name in ("identity", "digest", *later)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _metadata(step: Path) -> dict[str, Any]:
    """What was saved with a checkpoint besides its arrays."""
    return json.loads((step / METADATA).read_text(encoding="utf-8"))["custom_metadata"]


def _is_sealed(step: Path) -> bool:
    """Whether a checkpoint's metadata is as it was written, for that step."""
    try:
        metadata = _metadata(step)
        if metadata.get("step", int(step.name)) != int(step.name):  # its folder was copied or renamed
            return False
        return metadata.get("seal", _seal(metadata)) == _seal(metadata)  # the first versions wrote none
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _set_aside(step: Path) -> Path:
    aside = step.with_name(f"{step.name}{DAMAGED}")
    shutil.rmtree(aside, ignore_errors=True)
    step.rename(aside)
    logging.warning("checkpoint %s is damaged (its metadata); trying the one before it", step)
    return aside


def _digest(named: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, leaf in named.items():
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.array(leaf, order="C").tobytes())
    return digest.hexdigest()


def _difference(old: Any, new: Any) -> str:
    if not isinstance(old, dict):
        return "it says nothing about itself"
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return f"differs in {', '.join(keys)}"


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
