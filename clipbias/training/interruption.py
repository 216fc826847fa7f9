"""A notice to stop (SIGTERM, as schedulers send before they take a machine back) seen between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """Raised between two steps after a notice to stop, once the state is saved."""


class Notice:
    """Whether a notice to stop has come."""

    def __init__(self) -> None:
        self.given = False

    def _give(self, _signal: int, _frame: FrameType | None) -> None:
        self.given = True


@contextmanager
def stop_notice() -> Iterator[Notice]:
    """Turns SIGTERM into `Notice.given` for the length of the block."""
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield notice
        return
    before = signal.signal(signal.SIGTERM, notice._give)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before)
