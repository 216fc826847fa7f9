"""One process among those of a job: what it tells the others, and the threads that see whether they are there.

Each process gives a sign of life every second. Where one is missed for long, or one fails where the others cannot
learn of it because they wait for its part of a program, a thread ends all processes, with the same sentence and the
same status. It leaves whatever is being written unfinished, which is no worse than being killed.
"""

import atexit
import contextlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from absl import logging

from clipbias import interruption
from clipbias import io as files
from clipbias.errors import ClipbiasError, sentence
from clipbias.terminal import printable
from clipbias.training.coordination import Store

# Seconds after which a process that gives no sign of life counts as lost, unless this variable says otherwise.
PATIENCE, PATIENCE_VARIABLE = 60.0, "CLIPBIAS_PATIENCE_SECONDS"
# Seconds in which the others may end by themselves after one has ended, and in which all hear that the job is over.
GRACE, FAREWELL = 5.0, 10.0

Record = Callable[[str, str], None]


class Agreed(ClipbiasError):
    """What went wrong in one process, raised in all of them."""


class Job:
    """This process among those of its job. All processes must call `exchange` equally often."""

    def __init__(self, store: Store, index: int, count: int, *, patience: float = PATIENCE) -> None:
        self.index, self.count = index, count
        self._store, self._patience = store, patience
        self._number, self.host = 0, printable(socket.gethostname())
        self._leaving = threading.Event()
        self._heard = time.monotonic()
        self._names = {number: f"process {number}" for number in range(count)}
        self.record: Record = lambda state, words: None
        self._ending = threading.Lock()
        self._threads: list[threading.Thread] = []

    def watch(self) -> None:
        """Starts the threads that give signs of life and look for those of the others."""
        self._threads = [threading.Thread(target=run, daemon=True, name="job") for run in (self._pulse, self._watch)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.finish)

    def exchange(self, kind: str, value: Any = None, error: Exception | None = None) -> list[Any]:
        """What all processes have, in their order.

        Args:
          kind: names what this is about, the same in all of them.
          value: what this process has, as JSON.
          error: what went wrong in this process instead.

        Raises:
          Agreed: something went wrong in one of them, or they are about different things.
        """
        self._number += 1
        folder, own = f"exchange/{self._number}", {"host": self.host, "kind": kind, "value": value}
        if error is not None:
            own = {"host": self.host, "failed": sentence(error)}
            self._store.set(f"failed/{self.index}", json.dumps([self._number, own]))
        if self.index == 0:
            found = [own, *(json.loads(self._read(f"{folder}/{number}")) for number in range(1, self.count))]
            self._store.set(f"{folder}/all", json.dumps(found))
            self._store.delete(f"exchange/{self._number - 2}")  # which all have read: they answered the one after it
        else:
            self._store.set(f"{folder}/{self.index}", json.dumps(own))
            found = json.loads(self._read(f"{folder}/all"))
        if error is not None:
            self._store.delete(f"failed/{self.index}")
            if not isinstance(error, ClipbiasError | OSError):  # a defect
                logging.error("%s", "".join(traceback.format_exception(error)))
        self._names = {number: f"process {number} ({one['host']})" for number, one in enumerate(found)}
        failed = [(number, one) for number, one in enumerate(found) if "failed" in one]
        if failed:
            raise Agreed(_words(failed, self.count)) from error
        kinds = sorted({one["kind"] for one in found})
        if len(kinds) > 1:  # a defect, or different versions of this package
            raise Agreed(f"the processes do different things ({', '.join(kinds)}); run the same in all of them.")
        return [one["value"] for one in found]

    def _read(self, key: str) -> str:
        """A value that is sure to come, or else the watching thread ends this process."""
        while (value := self._store.wait(key, 1.0)) is None:
            time.sleep(0.05)  # where the service is gone it answers at once
        return value

    def leave(self, status: int, words: str, *, at_once: bool = False) -> None:
        """Tells the others that this process ends, and waits a moment until they know.

        Args:
          status: its exit status.
          words: why, in one sentence.
          at_once: gives the others no time to end by themselves.
        """
        self._leaving.set()
        told = json.dumps([status, words, at_once])
        deadline = time.monotonic() + FAREWELL
        if self.index == 0:
            self._store.set("over", told)
            self._farewell(deadline)
            return
        self._store.set(f"ended/{self.index}", told)
        if self._store.wait("over", FAREWELL) is not None:
            self._store.set(f"heard/{self.index}", "")

    def _farewell(self, deadline: float, lost: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """Waits until the others know that the job is over: they hear it from a service that ends with this process."""
        others = {str(number) for number in range(1, self.count) if number not in lost}
        while time.monotonic() < deadline and not others <= (self._store.below("heard") or {}).keys():
            time.sleep(0.05)

    def _pulse(self) -> None:
        beat = 0
        while not self._leaving.is_set():
            self._store.set(f"alive/{self.index}", json.dumps([self.host, beat := beat + 1]))
            if self._store.below("alive") is not None:
                self._heard = time.monotonic()
            self._leaving.wait(self._interval)

    @property
    def _interval(self) -> float:
        return min(1.0, self._patience / 10)

    def _watch(self) -> None:
        seen: dict[str, tuple[str, float]] = {}
        before = time.monotonic()
        while not self._leaving.wait(self._interval):
            now = time.monotonic()
            # What this thread slept through, all of them may have: a machine that was suspended.
            if (slept := now - before) > 5 * self._interval:
                seen = {key: (value, since + slept) for key, (value, since) in seen.items()}
                self._heard += slept
            before = now
            if self.index:
                self._follow(now)
            else:
                self._lead(seen, now)

    def _follow(self, now: float) -> None:
        told = self._store.wait("over", self._interval)
        if told is not None:
            self._store.set(f"heard/{self.index}", "")
            status, words, _ = json.loads(told)
            self._end(status, words)
        if now - self._heard > self._patience + GRACE:  # the first process itself would have told by now
            self.lost(0)

    def _lead(self, seen: dict[str, tuple[str, float]], now: float) -> None:
        """Looks for what the other processes cannot tell by themselves."""

        def age(key: str, value: str) -> float:
            if seen.get(key, ("", 0.0))[0] != value:
                seen[key] = value, now
            return now - seen[key][1]

        alive = self._store.below("alive") or {}
        for number in range(1, self.count):
            value = alive.get(str(number), "[null, 0]")
            if host := json.loads(value)[0]:
                self._names[number] = f"process {number} ({host})"
            if age(f"alive/{number}", value) > self._patience:
                self.lost(number)
        for one, told in (self._store.below("ended") or {}).items():
            status, words, at_once = json.loads(told)
            if at_once or age(f"ended/{one}", told) > GRACE:  # the others do not end by themselves
                self._over(status, words, {int(one)})  # which may be gone before it hears
        for one, told in (self._store.below("failed") or {}).items():
            if age(f"failed/{one}", told) > self._patience:  # they wait for it in a program
                _, own = json.loads(told)
                self._over(1, _words([(int(one), own)], self.count))

    def lost(self, number: int) -> None:
        """Ends all processes because one of them is gone."""
        words = f"{self._names[number]} ended or stands still; the same command continues."
        if number:
            self._over(1, words, {number})
        elif not self._leaving.is_set():
            time.sleep(min(2.0, self._patience / 10))  # it may be that all are at their end
            self._end(1, words, speaks=self.index == 1)

    def _over(self, status: int, words: str, lost: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """Ends all processes, this one last, for the store ends with it."""
        if self._leaving.is_set():
            return
        self._store.set("over", json.dumps([status, words, True]))
        self._farewell(time.monotonic() + FAREWELL, lost)
        self._end(status, words)

    def _end(self, status: int, words: str, *, speaks: bool | None = None) -> None:
        """Ends this process at once, unless its own main thread is about to."""
        if self._leaving.is_set() or not self._ending.acquire(blocking=False) or not interruption.claimed():
            return
        files.abandon()
        if self.index == 0 if speaks is None else speaks:
            with contextlib.suppress(Exception):
                self.record(*(("failed", words) if status == 1 else ("interrupted", f"Interrupted: {words}")))
        with contextlib.suppress(OSError):
            os.write(2, f"{'error: ' if status == 1 else ''}{printable(words)}\n".encode())
        os._exit(status)

    def finish(self) -> None:
        """Ends the watch: all processes have come to their good end.

        Its threads must not be inside the store when the interpreter takes itself down, which would abort the process.
        """
        self._leaving.set()
        for thread in self._threads:
            thread.join(FAREWELL)


def _words(failed: list[tuple[int, dict[str, str]]], count: int) -> str:
    """What went wrong, with the process that it went wrong in unless it was all of them."""
    if len({one["failed"] for _, one in failed}) == 1 and len(failed) == count:
        return failed[0][1]["failed"]
    number, one = failed[0]
    return f"process {number} ({one['host']}): {one['failed']}"
