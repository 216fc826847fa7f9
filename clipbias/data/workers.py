"""Threads that read and decode images, shared by all consumers, and elements that they make ahead of use."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Generic, TypeVar

# Elements made ahead of the current one, and the bytes that they may take. If more are needed to keep all threads busy,
# these may take up to `MOST_BYTES`. One is always made ahead, whatever its size.
AHEAD = 4
AHEAD_BYTES = 64 << 20
MOST_BYTES = 256 << 20
# Seconds between two checks whether the device is done.
POLL_SECONDS = 1e-3

_T = TypeVar("_T")
# The pieces of an element, which any threads call in any order, and the function that returns the finished element.
ElementWork = tuple[Sequence[Callable[[], None]], Callable[[], _T]]


class Workers(ThreadPoolExecutor):
    """A fixed number of threads; consumers that run at the same time share them.

    Attributes:
      count: number of threads.
    """

    def __init__(self, count: int | None = None) -> None:
        """`count` threads; `None` takes one for each processor that this process may use."""
        self.count = count or processors()
        super().__init__(self.count, thread_name_prefix="images")

    @classmethod
    def of(cls, workers: "Workers | int | None") -> "Workers":
        """`workers` itself, or as many new threads; `None` takes one for each processor."""
        return workers if isinstance(workers, Workers) else cls(workers)


def processors() -> int:
    """Number of processors that this process may use: by its affinity and by its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # "max": the container has no limit
        return count


class Ahead(Iterator[_T], Generic[_T]):
    """Elements in the order of their numbers, each made in pieces by shared threads ahead of its use.

    Attributes:
      seconds_waiting: total time that `next` waited while nothing else could be done.
    """

    def __init__(
        self,
        workers: Workers,
        numbers: range,
        begin: Callable[[int], ElementWork[_T]],
        *,
        pieces: int,
        size: int = 0,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Makes nothing yet.

        Args:
          workers: the threads.
          numbers: numbers of the elements.
          begin: returns an element's pieces; called in the consumer's thread.
          pieces: pieces of an element.
          size: bytes of an element.
          busy: whether the consumer's device still has work, so that waiting for the next element costs nothing.
        """
        self._workers = workers
        self._numbers = iter(numbers)
        self._begin = begin
        self._busy = busy
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="batches")
        # All threads have work while the consumer holds one element and the next is ready.
        needed = 1 + -(-workers.count // max(pieces, 1))
        size = max(size, 1)
        self._depth = max(1, min(needed, MOST_BYTES // size), min(AHEAD, AHEAD_BYTES // size))
        self._elements: deque[tuple[Future[_T], list[Future[None]]]] = deque()
        self.seconds_waiting = 0.0
        self._count = 0  # of calls of `next`
        self._second_call = 0.0  # its time, and what was waited before it
        self._waited_before = 0.0

    def __next__(self) -> _T:
        self._refill()
        if not self._elements:
            raise StopIteration
        if self._count == 1:
            self._second_call = time.perf_counter()
            self._waited_before = self.seconds_waiting
        self._count += 1
        element, _ = self._elements.popleft()
        self._refill()
        while self._busy() and not element.done():
            wait([element], POLL_SECONDS)
        idle = time.perf_counter()
        try:
            return element.result()
        finally:
            self.seconds_waiting += time.perf_counter() - idle

    def _refill(self) -> None:
        while len(self._elements) < self._depth and (number := next(self._numbers, None)) is not None:
            pieces, finish = self._begin(number)
            futures = [self._workers.submit(piece) for piece in pieces]
            self._elements.append((self._finisher.submit(_finished, futures, finish), futures))

    @property
    def waiting_share(self) -> float:
        """Share of the time since the second `next` that was spent waiting, between 0 and 1.

        The time before it, such as compiling the program that takes the first element, does not count.
        """
        if self._count < 2:
            return 0.0
        elapsed = max(time.perf_counter() - self._second_call, 1e-9)
        return min(1.0, (self.seconds_waiting - self._waited_before) / elapsed)

    def close(self) -> None:
        """Drops the elements made ahead."""
        self._numbers = iter(())
        while self._elements:
            element, pieces = self._elements.pop()
            element.cancel()
            for piece in pieces:
                piece.cancel()
        self._finisher.shutdown(wait=False)

    def __del__(self) -> None:
        if hasattr(self, "_elements"):
            self.close()


def _finished(pieces: list[Future[None]], finish: Callable[[], _T]) -> _T:
    """Waits for the pieces and returns the element. Raises the error of the first piece that failed."""
    wait(pieces)
    for piece in pieces:
        piece.result()
    return finish()
