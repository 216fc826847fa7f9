"""Checkpoints of a run in progress, through orbax: asynchronous, atomic, restored onto any mesh.

Only this module knows orbax. A step counts once its folder has its final name; a save that was cut short is removed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from clipbias.errors import ClipbiasError
from clipbias.training import processes
from clipbias.training.mesh import fetch

# The file in which orbax keeps what belongs to a checkpoint besides its arrays. The name is orbax's own affair, used by
# `_is_sealed` alone: orbax reads these files of all steps when it opens a folder, and where one of them is damaged it
# opens none and does not say which, so damage is looked for before. Were the file called otherwise one day, every
# checkpoint would be set aside at the next start, which this module's tests would show.
METADATA = "_CHECKPOINT_METADATA"


class Checkpoints:
    """The checkpoints in one folder, the latest two kept."""

    def __init__(
        self, folder: str | os.PathLike, *, identity: dict[str, Any], earlier: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Opens or creates the folder.

        Args:
          folder: where the checkpoints lie.
          identity: JSON values that must be equal for a checkpoint to be continued (recipe, images, model, …).
          earlier: what is taken for the same, since earlier versions wrote it so.
        """
        self._folder = Path(folder).resolve()
        self._identity, *self._earlier = json.loads(json.dumps([identity, *earlier]))
        self._pending: Any = None
        self._failed = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer = self._open()
        except OSError as error:
            raise ClipbiasError(f"cannot write {folder}: {error.strerror}; choose another --workdir.") from error

    def _open(self) -> Any:
        """Orbax's view of the folder, once steps whose metadata is damaged are out of its way."""
        from orbax.checkpoint import v1 as ocp

        def attempt() -> Any:
            opened = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(2),
                cleanup_tmp_directories=True,
            )
            assert opened.checkpoints is not None  # read now, where damage is answered
            return opened

        steps = sorted((p for p in self._folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))[::-1]
        with processes.agreed():
            if jax.process_index() == 0:
                for step in [step for step in steps if not _is_sealed(step)]:
                    _set_aside(step)
                    steps.remove(step)
        try:
            return attempt()
        except OSError:
            raise
        except Exception as error:  # one of them is not what orbax wrote, and it does not say which
            for step in () if processes.several() else steps:
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
        """Starts saving `state` as of `step`; returns before it is on disk. Raises if the previous save failed.

        Args:
          step: how many steps are done.
          state: arrays.
          losses: of each run at that step, for a run that is continued with no step left.
        """
        with processes.agreed():
            self.wait()
        metadata = {"identity": self._identity, "digest": _digest(state), "losses": [float(loss) for loss in losses]}
        metadata["step"] = step
        metadata["seal"] = _seal(metadata)
        try:
            self._pending = self._checkpointer.save_checkpointables_async(
                step, {"state": _named(state)}, custom_metadata=metadata, force=True, overwrite=True
            )
        except Exception as error:  # orbax wraps the file system's errors in its own
            raise self._cannot_save(error) from error

    def wait(self) -> None:
        """Waits until what was saved is on disk. Raises `ClipbiasError` if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result(timeout=processes.patience() if processes.several() else None)
        except TimeoutError:
            # Where one process cannot write, orbax waits for ever, in all of them.
            processes.abort(
                f"cannot save a checkpoint in {self._folder}: not all processes could write their part; the previous "
                "checkpoint is intact, make room and run the same command again."
            )
        except Exception as error:  # orbax wraps the file system's errors in its own
            raise self._cannot_save(error) from error

    def _cannot_save(self, error: Exception) -> ClipbiasError:
        self._failed = True
        system = next((e.strerror for e in _causes(error) if isinstance(e, OSError) and e.strerror), "")
        # The storage library puts the system's words at the end of its own, before a code in brackets.
        words = re.search(r": ([^:\[]+?) \[os_error_code", str(error))
        reason = system or (words[1] if words else str(error).splitlines()[0])
        return ClipbiasError(
            f"cannot save a checkpoint in {self._folder}: {reason}; the previous checkpoint is intact, "
            "make room and run the same command again."
        )

    def restore(self, like: Any) -> tuple[int, Any, list[float] | None] | None:
        """The latest whole checkpoint that fits.

        Args:
          like: a state with the shapes, types and shardings wanted.

        Returns:
          Its step, state and losses, which the first versions did not save; or `None` where there is none.

        Raises:
          ClipbiasError: the folder belongs to another run.
        """
        saved = processes.tell(self._steps)
        for step in saved:
            # Orbax waits for all processes, so that none may fail in it alone: all must find the same in the files.
            where = f"checkpoint {step} of {self._folder.name}"
            processes.same(where, _content(self._folder / str(step)))
            digest, problem = "", "its content is not what was saved"
            try:
                metadata = self._checkpointer.metadata(step).custom_metadata or {}
                if metadata.get("identity") not in (self._identity, *self._earlier):
                    raise ClipbiasError(
                        f"{self._folder} holds checkpoints of another run "
                        f"({_difference(metadata.get('identity'), self._identity)}); choose another --workdir, or "
                        "remove that folder to start anew."
                    )
                loaded = self._checkpointer.load_checkpointables(step, {"state": _abstract(_named(like))})["state"]
                state = jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in _named(like)])
                digest = _digest(state)
            except ClipbiasError:
                raise
            except Exception as error:  # any kind of damage: fall back to the checkpoint before it
                problem = str(error)
            processes.same(where, digest)
            if digest and digest == metadata.get("digest"):
                return step, state, metadata.get("losses")
            logging.warning(
                "checkpoint %d in %s is damaged (%s); trying the one before it", step, self._folder, problem
            )
        if saved:
            logging.warning("no checkpoint in %s is whole; training starts anew", self._folder)
        return None

    def _steps(self) -> list[int]:
        """The steps that are saved, the latest first."""
        return sorted((checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True)

    def close(self) -> None:
        """Waits for what is being saved and releases the folder."""
        try:
            self.wait()
        finally:
            try:
                self._checkpointer.close()
            except Exception as error:  # what was already reported comes back here
                if not self._failed:
                    raise self._cannot_save(error) from error


def _named(state: Any) -> dict[str, Any]:
    """The leaves of a state by their path, which does not depend on the classes of its containers."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _abstract(named: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding) for k, v in named.items()}


def _seal(metadata: dict[str, Any]) -> str:
    """What tells damaged metadata from that of another run."""
    # Earlier versions sealed the first two alone, for there was no more.
    later = [name for name in ("losses", "step") if name in metadata]
    told = json.dumps([metadata[name] for name in ("identity", "digest", *later)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _is_sealed(step: Path) -> bool:
    """Whether a checkpoint's metadata is as it was written, for that step."""
    try:
        metadata = json.loads((step / METADATA).read_text(encoding="utf-8"))["custom_metadata"]
        if metadata.get("step", int(step.name)) != int(step.name):  # its folder was copied or renamed
            return False
        return metadata.get("seal", _seal(metadata)) == _seal(metadata)  # the first versions wrote none
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _set_aside(step: Path) -> Path:
    aside = step.with_name(f"{step.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    step.rename(aside)
    logging.warning("checkpoint %s is damaged (its metadata); trying the one before it", step)
    return aside


def _content(folder: Path) -> str:
    """A digest of the files of a checkpoint, where other processes read them too."""
    if not processes.several():
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(state: Any) -> str:
    digest = hashlib.sha256()
    for name, leaf in _named(fetch(state)).items():
        leaf = np.array(leaf, order="C")
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
        digest.update(leaf.tobytes())
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
