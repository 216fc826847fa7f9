"""A work folder in an object store: worked on here, and copied there as the work goes on.

What the store has is fetched first, into a folder of this machine; every `SECONDS`, and at the end, what is new is
copied back: checkpoints and adapters before the results that speak of them. So a run that is killed, with its machine
too, continues from what was copied last. Nothing is locked.
"""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from clipbias import remote
from clipbias.errors import ClipbiasError
from clipbias.io import PART, reason
from clipbias.training import processes

SECONDS = 30.0
# What speaks of other files is copied after them, in this order.
LAST = ("results.jsonl", "results.json", "result.json", "state.json")
# In the names of what is still being written, or is of this machine alone.
UNFINISHED = (PART, ".orbax-checkpoint-tmp", ".unfinished", ".lock")


@contextlib.contextmanager
def local_folder(workdir: str) -> Iterator[Path]:
    """The folder to work in for `workdir`: itself where it lies on a disk.

    Raises:
      ClipbiasError: it is in an object store, and that cannot be read or written, or several processes share the work.
    """
    if not remote.is_remote(workdir):
        yield Path(workdir)
        return
    if processes.several():
        raise ClipbiasError(
            f"several processes cannot share the work folder {workdir}, because an object store has no locks; "
            "mount the bucket, or give a --workdir on a disk that all see."
        )
    logging.warning(
        "%s is worked on in a folder here, and copied there every %.0f s and at the end; it has no lock: see to it "
        "that no other process works there.",
        workdir,
        SECONDS,
    )
    with tempfile.TemporaryDirectory(prefix="clipbias-work-") as name:
        copy = Copy(workdir, Path(name))
        copy.fetch()
        with copy.kept_up():
            yield Path(name)


class Copy:
    """A folder here and its copy in an object store."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address, self._folder = address.rstrip("/"), folder
        self._copied: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Brings what the store has. Raises `ClipbiasError` where it cannot be read."""
        try:
            with contextlib.suppress(FileNotFoundError):
                for name in remote.below(self._address):
                    path = self._folder / name
                    if not path.resolve().is_relative_to(self._folder.resolve()):
                        raise ClipbiasError(f"{self._address} holds {name!r}, which is no plain path; remove it.")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(remote.read(f"{self._address}/{name}"))
                    self._copied[name] = self._version(path)
        except OSError as error:
            raise ClipbiasError(f"cannot read {self._address}: {reason(error)}; check --workdir.") from error

    def send(self) -> None:
        """Copies what is new or has changed, and removes what is gone. Raises `ClipbiasError` where it cannot."""
        # Folders may go while they are walked through, which this passes over.
        found = (Path(place, name) for place, _, names in os.walk(self._folder) for name in names)
        names = [path.relative_to(self._folder).as_posix() for path in found]
        names = [name for name in names if not any(word in name for word in UNFINISHED)]
        order = {name: number for number, name in enumerate(LAST, start=1)}
        try:
            for name in sorted(names, key=lambda name: (order.get(name.rpartition("/")[2], 0), name)):
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    version = self._version(self._folder / name)
                    if self._copied.get(name) != version:
                        content = (self._folder / name).read_bytes()
                        remote.write(f"{self._address}/{name}", content)
                        self._copied[name] = version
            for name in [*self._copied]:
                if not (self._folder / name).exists():
                    remote.remove(f"{self._address}/{name}")
                    del self._copied[name]
        except OSError as error:
            raise ClipbiasError(f"cannot write {self._address}: {reason(error)}; check --workdir.") from error

    @contextlib.contextmanager
    def kept_up(self) -> Iterator[None]:
        """Sends what is new every now and then while the block runs, and all of it at its end."""
        self.send()  # where nothing can be written, it is told before the work
        over = threading.Event()

        def keep_up() -> None:
            while not over.wait(SECONDS):
                try:
                    self.send()
                except ClipbiasError as error:
                    logging.warning("%s; it is tried again.", error)

        thread = threading.Thread(target=keep_up, name="copying to the work folder", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.send()

    @staticmethod
    def _version(path: Path) -> tuple[int, int]:
        found = path.stat()
        return found.st_size, found.st_mtime_ns
