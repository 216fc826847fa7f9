"""A notice to stop: SIGTERM, which schedulers send before they take a machine back, or SIGINT, which Ctrl-C sends.

Both go one way. A handler notes the signal and does nothing else: what is raised in a handler is lost where it lands in
a finaliser or a callback, and tears compilers out of what they cannot leave. The program looks for the notice between
two steps or batches, saves, and ends with `Interrupted`.

Where it compiles, or computes a large batch, it does not look for long. So a thread watches over it (`watch`) and ends
the process a few seconds after the notice, and at once at a second one. Before that it removes the files in the making
and has the record of the run written (`last_words`). Files appear whole or not at all, so any moment will do.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from clipbias import io as files

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How long a program that looks for a notice may take to end, and how long once it saves.
GRACE, SAVING = 8.0, 25.0
# Signals that come so soon after the first one are the same notice, sent to the process and to its group.
SAME = 0.1
# How long the cleaning up may take that the watching thread does.
CLEANING = 2.0

# What a program says that was stopped: of one that keeps what it did, and of one that begins anew.
CONTINUES = "stopped; the same command continues."
STARTS_AGAIN = "stopped; nothing unfinished is left, the same command starts again."


class Interrupted(BaseException):
    """Raised after a notice to stop. Not an `Exception`, so that nothing takes it for a failure to recover from.

    Attributes:
      status: what a shell reports for a process that the signal ended: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, message: str = CONTINUES, *, number: int = 0) -> None:
        super().__init__(message)
        self.status = 128 + (number or (_notice.given if _notice else 0) or signal.SIGTERM)


class Notice:
    """Whether a notice to stop has come.

    Attributes:
      given: the signal's number; 0 as long as none has come.
      grace: seconds from the notice to the end of the process.
    """

    def __init__(self) -> None:
        self.given = 0
        self.grace = GRACE

    def saving(self) -> None:
        """Says that the program saw the notice and saves, which may take longer."""
        self.grace = SAVING


# Signals come to the whole process, so who looks for them, and who watches, is known to the whole process too.
_notice: Notice | None = None
_watch: "_Watch | None" = None
_words: list[Callable[[str], None]] = []


def check() -> None:
    """Raises `Interrupted` where a notice to stop has come. To be called where nothing is lost by it."""
    if _notice is not None and _notice.given:
        raise Interrupted


@contextlib.contextmanager
def noted() -> Iterator[Notice]:
    """Has SIGINT and SIGTERM noted for the length of the block; blocks inside it share its notice.

    Without `watch`, a second signal does what it would do outside the block.
    """
    global _notice
    if _notice is not None or threading.current_thread() is not threading.main_thread():
        yield _notice or Notice()  # only the main thread may set handlers
        return
    _notice = notice = Notice()
    before: dict[int, Any] = {} if _watch else {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        handler = before[number]
        if not notice.given:
            _note(number, frame)
        elif callable(handler):
            handler(number, frame)
        else:
            signal.signal(number, handler)
            os.kill(os.getpid(), number)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield notice
    finally:
        _notice = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(number: int, _frame: FrameType | None) -> None:
    if _notice is not None and not _notice.given:
        _notice.given = number


@contextlib.contextmanager
def last_words(say: Callable[[str], None]) -> Iterator[None]:
    """Has `say(sentence)` called where the process is ended within the block before the block is."""
    _words.append(say)
    try:
        yield
    finally:
        _words.remove(say)


class _Watch:
    """The thread that ends a process which does not end by itself."""

    def __init__(self) -> None:
        self.sentence = CONTINUES
        self.outcome: int | None = None
        self._ends = threading.Lock()  # taken for good by whoever ends the process
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # Unlike a handler, which runs between two of the main thread's instructions, this is told at once.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._wait, name="notice", daemon=True).start()

    def _wait(self) -> None:
        first, came, at_once = 0, 0.0, False
        while True:
            left = None
            if first:
                grace = 0.0 if at_once or _notice is None else _notice.grace
                left = came + grace - time.monotonic()
                if left <= 0:
                    self._end(first)
                    return
            if not select.select([self._reader], [], [], left)[0]:
                continue
            for number in os.read(self._reader, 64):
                if number not in SIGNALS:
                    continue
                if not first:
                    first, came = number, time.monotonic()
                    _note(number, None)
                elif time.monotonic() - came > SAME:
                    at_once = True

    def _end(self, number: int) -> None:
        if not self.claim():  # the program itself is about to end
            time.sleep(SAVING)
            os._exit(128 + number if self.outcome is None else self.outcome)
        if self.outcome is not None:  # the work is done and told, only the process is still there
            os._exit(self.outcome)

        def clean() -> None:
            files.abandon()
            for say in reversed(_words):
                with contextlib.suppress(Exception):
                    say(self.sentence)

        cleaning = threading.Thread(target=clean, daemon=True)
        cleaning.start()
        cleaning.join(CLEANING)
        # Whoever should read it may be gone, and the main thread may be writing to the same stream.
        with contextlib.suppress(OSError):
            if select.select([], [2], [], 1.0)[1]:
                bar = "\n" if os.isatty(2) else ""  # which may stand in the last line
                os.write(2, f"{bar}{self.sentence}\n".encode())
        os._exit(128 + number)

    def claim(self) -> bool:
        return self._ends.acquire(blocking=False)


def watch(sentence: str = CONTINUES) -> None:
    """Has SIGINT and SIGTERM end this process with `sentence` and status 130 or 143, from now on and to its end.

    Inside `noted` the program has a few seconds to end by itself. For programs, in their main thread; a signal that the
    process was told to ignore stays ignored.
    """
    global _watch
    if _watch is None:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _note)
        _watch = _Watch()
        os.register_at_fork(after_in_child=_unwatch)
        atexit.register(_ignore)  # first, so that it is called last
    _watch.sentence = sentence


def _ignore() -> None:
    """The interpreter gives signals their default back while it takes itself down, but for those that are ignored."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _unwatch() -> None:
    """A fork has no thread that watches: its signals do what they do to any process."""
    global _watch
    if _watch is not None:
        _watch = None
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) is _note:
                signal.signal(number, signal.SIG_DFL)


def claimed() -> bool:
    """Whether the caller is the one to end the process: a single thread may, and says why."""
    return _watch is None or _watch.claim()


def claim() -> None:
    """Called before the program itself says that it was stopped: returns unless another thread was faster."""
    if not claimed():
        threading.Event().wait()  # for the end of the process


def leave(status: int, *, now: bool = False) -> int:
    """Called once the work is over: from here on a signal ends the process with `status`, which is returned.

    Args:
      status: of the work.
      now: end the process. Stopped in the middle of its work, the interpreter may crash while it takes itself down, or
        wait for threads that are stuck.
    """
    if _watch is not None:
        _watch.outcome = status
        if now:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # whoever should read it is gone
                    stream.flush()
            os._exit(status)
    return status
