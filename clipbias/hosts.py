"""Several processes, and a notice to stop, by JAX's own means.

All processes run the same command and the same code. Values that may differ between hosts are compared (`assert_same`)
or decided by the first process (`from_first`). If a process dies, JAX ends the others within about a minute, with its
own message, and the same command continues from the last checkpoint.

In a single process SIGTERM and Ctrl-C set a flag, which the program checks between steps and batches. In several
processes JAX's preemption service takes SIGTERM and names a step at which all of them stop; Ctrl-C ends them at once.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

import numpy as np

from clipbias.errors import ClipbiasError

_T = TypeVar("_T")

PEER_ENDED = (
    "another process of this job ended, and its output says why; the same command continues from the last checkpoint."
)
# Words in errors of gloo, gRPC and JAX's coordination service after the end of another process.
_GONE = re.compile(r"Connection (reset|closed|refused)|Broken pipe|Socket closed|heartbeat|[Bb]arrier|oordination|Gloo")

# A process without a heartbeat for this time counts as dead.
HEARTBEAT_SECONDS = 60
# A process that ends waits this time for the others.
SHUTDOWN_SECONDS = 10

# The number of the signal that the process got within `stoppable`, 0 before any; `None` outside.
_signal: int | None = None
# Number of calls of `stops`, which is the step for JAX's preemption service.
_calls = 0
# This process's number, once it has left the others.
_left: int | None = None


class Stopped(BaseException):
    """Raised after a notice to stop. Not an `Exception`: no handler of failures may catch it."""

    def __init__(self, message: str = "stopped; the same command continues.") -> None:
        super().__init__(message)
        # The exit status of a process that the signal ended: 130 for Ctrl-C, 143 for SIGTERM.
        self.status = 128 + (_signal or signal.SIGTERM)


def start() -> None:
    """Joins the processes of a cluster, if there is one, before any device is touched.

    Raises `ClipbiasError` if one of the variables is not a number.
    """
    # A cluster is announced by the variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, by
    # SLURM or Open MPI with several tasks, or by a TPU pod.
    # JAX detects clusters by itself, but its defaults wait five minutes for a dead process, and an explicit address
    # must not be overruled by SLURM's variables.
    import jax

    join = functools.partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        join(
            coordinator_address=address,
            num_processes=_number("JAX_NUM_PROCESSES", 1),
            process_id=_number("JAX_PROCESS_ID", 0),
            local_device_ids=_local_devices(),
        )
    elif _number("SLURM_NTASKS", 1) > 1 or _number("OMPI_COMM_WORLD_SIZE", 1) > 1:
        join(local_device_ids=_local_devices())
    elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        join()
    elif importlib.util.find_spec("libtpu") and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0"))):
        with contextlib.suppress(ValueError):  # a TPU of a single host has no cluster to join
            join()


def _number(variable: str, default: int) -> int:
    try:
        return int(os.environ.get(variable) or default)
    except ValueError as error:
        raise ClipbiasError(f"{variable} is {os.environ[variable]!r}; give a number.") from error


def _local_devices() -> list[int] | None:
    """All devices (an empty list) if each node runs one process, else one device for each process (`None`)."""
    # By itself JAX gives each process of SLURM and Open MPI one device, even if no other process takes the rest. It
    # reads JAX_LOCAL_DEVICE_IDS itself.
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    slurm = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # as in "8", "1(x4)" or "2(x3),1"
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", slurm) or [os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")]
    return [] if set(counts) == {"1"} else None


def multi_process() -> bool:
    """Whether there are other processes. Touches a device only if a cluster was joined."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    if _left is not None:
        return _left == 0
    return not multi_process() or sys.modules["jax"].process_index() == 0


def lost_peer(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, is JAX's for another process that is gone."""
    if not multi_process():
        return False
    # The error may be wrapped by others, such as a checkpointer's: the whole chain is searched.
    runtime_error = sys.modules["jax"].errors.JaxRuntimeError
    while error is not None:
        if isinstance(error, runtime_error) and _GONE.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def silence() -> None:
    """Hides what JAX writes to stderr while one of several processes ends, so that the cause is the last line."""
    if multi_process():
        # The C++ runtime writes to the descriptor itself, past `sys.stderr`.
        sys.stderr.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def leave() -> None:
    """Ends the joint work: only the first process goes on, for any time. All processes must call this."""
    # Else the others would wait at their end for `SHUTDOWN_SECONDS`, and fail while the first one draws figures.
    global _left
    if multi_process():
        jax = sys.modules["jax"]
        _left = jax.process_index()
        jax.distributed.shutdown()


def gather(value: _T) -> list[_T]:
    """The JSON values of all processes, in the order of the processes. All processes must call this."""
    if not multi_process():
        return [value]
    from jax.experimental import multihost_utils

    # Arrays of one shape are all that JAX exchanges: the lengths first, then the texts in the longest one's room. Each
    # shape is a compiled program, so the room is a power of two: JSON ignores blanks at its end.
    encoded = json.dumps(value).encode()
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(encoded)))))
    room = 1 << max(8, (longest - 1).bit_length())
    rows = multihost_utils.process_allgather(np.frombuffer(encoded.ljust(room), np.uint8))
    return [json.loads(row.tobytes()) for row in np.asarray(rows)]


def from_first(decide: Callable[[], _T]) -> _T:
    """The JSON value that `decide` returns in the first process, in all of them. All processes must call this."""
    return gather(decide() if is_first() else None)[0]  # type: ignore[return-value]


def assert_same(what: str, value: object) -> None:
    """Raises `ClipbiasError` in all processes, which must call this, if their JSON values differ; `what` names them."""
    first, *others = gather(value)
    for process, other in enumerate(others, start=1):
        if other != first:
            raise ClipbiasError(
                f"process {process} and process 0 do not agree on {what}; give all hosts the same files and command."
            )


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within the block, SIGTERM and Ctrl-C set the flag of `check` and `stops`. A second Ctrl-C is Python's own."""
    # In several processes signals stay with JAX's preemption service and Python. Only the main thread may set handlers.
    # An inner block leaves the flag to the outer one.
    global _signal
    if multi_process() or _signal is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that the process ignores (`nohup`) stays ignored.
    _signal = 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _note)
    try:
        yield
    finally:
        _signal = None
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _note(number: int, frame: FrameType | None) -> None:
    # The handler only sets a flag: it may run between any two instructions. After the first notice Ctrl-C is Python's
    # again, for a user who does not want to wait.
    global _signal
    _signal = _signal or number
    if signal.getsignal(signal.SIGINT) is _note:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check() -> None:
    """Raises `Stopped` after a notice to stop, in one process; called where no work is lost."""
    if _signal:
        raise Stopped


def stops() -> bool:
    """Whether to stop now. All processes must call this equally often, between steps.

    In several processes, SIGTERM to any of them makes this true in all of them at the same call.
    """
    # JAX's service wants a step number that grows alike in all processes: the number of calls.
    global _calls
    if not multi_process():
        return bool(_signal)
    from jax.experimental import multihost_utils

    _calls += 1
    return multihost_utils.reached_preemption_sync_point(_calls)
