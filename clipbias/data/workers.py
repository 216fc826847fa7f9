"""Threads that read and decode images, shared by all who take some, and what they make ahead of its use."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Generic, TypeVar

# Elements made ahead of the one that is taken, as long as they fit so many bytes. As many as keep all threads at work
# may have more, and one is made whatever its size: it is in the making while the one before it is used.
AHEAD, AHEAD_BYTES, MOST_BYTES = 4, 64 << 20, 256 << 20
# How long to look again whether a device has come to its end, in seconds.
LOOK = 1e-3

_T = TypeVar("_T")
# The pieces of an element, which any threads call in any order, and what makes the element when all are done.
Begun = tuple[Sequence[Callable[[], None]], Callable[[], _T]]


class Workers(ThreadPoolExecutor):
    """So many threads. Those who take images at the same time share them, and so never have more of them together.

    Attributes:
      count: how many there are.
    """

    def __init__(self, count: int | None = None) -> None:
        """`count` threads; `None` takes one for each processor that this process may use."""
        self.count = count or processors()
        super().__init__(self.count, thread_name_prefix="images")

    @classmethod
    def of(cls, workers: "Workers | int | None") -> "Workers":
        """`workers` itself, or new threads: so many, or one for each processor."""
        return workers if isinstance(workers, Workers) else cls(workers)


def processors() -> int:
    """How many processors this process may use: those that it is bound to, and no more than its container's share."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # "max" where a container has no limit of its own
        return count


class Ahead(Iterator[_T], Generic[_T]):
    """Elements in the order of their numbers, made ahead of their use by shared threads, each in pieces.

    Attributes:
      seconds_waiting: time in `next` in which there was nothing else to do, in total.
    """

    def __init__(
        self,
        workers: Workers,
        numbers: range,
        begin: Callable[[int], Begun[_T]],
        *,
        pieces: int,
        size: int = 0,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Makes nothing yet.

        Args:
          workers: the threads.
          numbers: of the elements.
          begin: the pieces of an element, called in the thread of the user.
          pieces: how many pieces elements have.
          size: bytes of an element.
          busy: whether there is work beside that for which the next element is awaited, so that nothing is lost by it.
        """
        self._workers, self._numbers, self._begin, self._busy = workers, iter(numbers), begin, busy
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="batches")
        # All threads have work while the user holds one element and the next is ready.
        needed = 1 + -(-workers.count // max(pieces, 1))
        size = max(size, 1)
        self._depth = max(1, min(needed, MOST_BYTES // size), min(AHEAD, AHEAD_BYTES // size))
        self._elements: deque[tuple[Future[_T], list[Future[None]]]] = deque()
        self._taken, self._since = 0, 0.0
        self.seconds_waiting, self._waited_before = 0.0, 0.0

    def __next__(self) -> _T:
        self._refill()
        if not self._elements:
            raise StopIteration
        began = time.perf_counter()
        if self._taken == 1:
            self._since, self._waited_before = began, self.seconds_waiting
        self._taken += 1
        element, _ = self._elements.popleft()
        self._refill()
        while self._busy() and not element.done():
            wait([element], LOOK)
        idle = time.perf_counter()
        try:
            return element.result()
        finally:
            self.seconds_waiting += time.perf_counter() - idle

    def _refill(self) -> None:
        while len(self._elements) < self._depth and (number := next(self._numbers, None)) is not None:
            pieces, finish = self._begin(number)
            made = [self._workers.submit(piece) for piece in pieces]
            self._elements.append((self._finisher.submit(_finished, made, finish), made))

    @property
    def waiting_share(self) -> float:
        """Share of the time since the second `next` that was spent waiting, between 0 and 1.

        What comes before it, such as compiling the program that takes the first element, is left out.
        """
        if self._taken < 2:
            return 0.0
        spent = max(time.perf_counter() - self._since, 1e-9)
        return min(1.0, (self.seconds_waiting - self._waited_before) / spent)

    def close(self) -> None:
        """Drops what is made ahead."""
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
    """The element when its pieces are made. Raises the error of the first piece that has one."""
    wait(pieces)
    for piece in pieces:
        piece.result()
    return finish()
