"""A notice to stop (SIGTERM, as schedulers send before they take a machine back): work is saved, then the program ends.

Inside training steps it is seen between two of them, and the state is saved first. Anywhere else it ends the block at
once, as Ctrl-C would: files in the making are removed, and the work since the last save is done again.
"""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Raised after a notice to stop. Not an `Exception`, so that nothing takes it for a failure to recover from."""


class Notice:
    """Whether a notice to stop has come."""

    def __init__(self) -> None:
        self.given = False

    def _give(self, _signal: int, _frame: FrameType | None) -> None:
        self.given = True

    def _end(self, _signal: int, frame: FrameType | None) -> None:
        if self.given:  # a second one must not disturb the cleaning up
            return
        if _collects_garbage(frame):  # Python drops what is raised there: the notice comes again a moment later
            again = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGTERM))
            again.daemon = True
            again.start()
            return
        self.given = True
        raise Interrupted("stopped; the same command continues.")


def _collects_garbage(frame: FrameType | None) -> bool:
    """Whether a frame is inside a callback of the garbage collector, such as JAX has one."""
    codes = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


@contextmanager
def stop_notice() -> Iterator[Notice]:
    """Turns SIGTERM into `Notice.given` for the length of the block."""
    notice = Notice()
    with _handler(notice._give):
        yield notice


@contextmanager
def ended_by_notice() -> Iterator[None]:
    """Turns SIGTERM into `Interrupted` for the length of the block, outside `stop_notice`."""
    with _handler(Notice()._end):
        yield


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
