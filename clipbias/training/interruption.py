"""A notice to stop (SIGTERM, as schedulers send before they take a machine back): work is saved, then the program ends.

Inside training steps it is seen between two of them, and the state is saved first. Anywhere else it ends the block at
once, as Ctrl-C would: files in the making are removed, and the work since the last save is done again.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """Raised after a notice to stop. Not an `Exception`, so that nothing takes it for a failure to recover from."""


class Notice:
    """Whether a notice to stop has come."""

    def __init__(self) -> None:
        self.given = False

    def _give(self, _signal: int, _frame: FrameType | None) -> None:
        self.given = True

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        if not self.given:  # a second one must not disturb the cleaning up
            self.given = True
            raise Interrupted("stopped; the same command continues.")

    def _again(self, _unraisable: Any) -> None:
        """Gives the notice again, a moment later, after Python dropped what was raised at the first."""
        self.given = False
        again = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()


@contextmanager
def stop_notice() -> Iterator[Notice]:
    """Turns SIGTERM into `Notice.given` for the length of the block."""
    notice = Notice()
    with _handler(notice._give):
        yield notice


@contextmanager
def ended_by_notice() -> Iterator[None]:
    """Turns SIGTERM into `Interrupted` for the length of the block, outside `stop_notice`."""
    notice = Notice()
    with _handler(notice._end), _dropped(notice._again):
        yield


@contextmanager
def _dropped(answer: Callable[[Any], None]) -> Iterator[None]:
    """Answers an `Interrupted` that Python drops for the length of the block.

    A signal may come while a finaliser (`__del__`) or a callback of the garbage collector runs, such as JAX has one.
    Nobody can catch what is raised there: Python hands it to this hook and goes on.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, Interrupted):
            answer(unraisable)
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _handler(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
