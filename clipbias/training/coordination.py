"""JAX's coordination service, and all that this package knows of it beyond JAX's documentation.

The processes of a job must be able to talk where no device program can run: one of them failed, or waits for another
that failed. The service which JAX starts in process 0 for itself keeps texts under keys, but what reaches it
(`global_state.client`) is not part of JAX's public interface.

And JAX aborts a process (SIGABRT, with a page of frames) as soon as its connection to the service breaks, before
anybody can say why. No option prevents that. So a relay stands between: where the service is gone, the client's
connection stays open, and the relay says that it is.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed
from jax._src.lib import _jax as library  # type: ignore[attr-defined]

# JAX's own watch over the processes, which aborts all of them, comes only where that of `processes` was of no use.
HEARTBEAT_SECONDS, SHUTDOWN_SECONDS = 600, 60
# Seconds in which all processes of a job must have come, unless this variable says otherwise.
JOIN, JOIN_VARIABLE = 90.0, "CLIPBIAS_JOIN_SECONDS"


class Store:
    """Texts under keys that all processes see. What cannot be had is `None`: whether for ever, the caller decides."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def set(self, key: str, value: str) -> None:
        """Sets a value, in place of the one before."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(key, value, True)

    def wait(self, key: str, seconds: float) -> str | None:
        """The value of a key, once it is there; `None` after so many seconds."""
        try:
            return self._client.blocking_key_value_get(key, max(1, round(1000 * seconds)))
        except jax.errors.JaxRuntimeError:
            return None

    def below(self, folder: str) -> dict[str, str] | None:
        """All values whose keys begin with `folder/`, by the rest of their keys; `None` where the service is gone."""
        try:
            found = self._client.key_value_dir_get(f"{folder}/")
        except jax.errors.JaxRuntimeError:
            return None
        return {key.rpartition("/")[2]: value for key, value in found}

    def delete(self, key: str) -> None:
        """Forgets a key and those below it."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_delete(key)


def join(*arguments: Any, lost: Callable[[], None], seconds: float, **options: Any) -> None:
    """`jax.distributed.initialize`.

    Args:
      *arguments, **options: those of that function.
      lost: called in a thread where the service is gone before this process has left it.
      seconds: how long the other processes are waited for. Then this one ends with a sentence and status 1, where JAX
        would abort it.
    """
    original, reached = library.get_distributed_runtime_client, threading.Event()
    first = ""

    def relayed(address: str, process: int, **rest: Any) -> Any:
        nonlocal first
        if process:
            first, address = f"process 0, at {address},", relay(address, lost, reached)
        return original(address, process, **rest)

    def give_up() -> None:
        who = "another process" if reached.is_set() or not first else first
        words = f"{who} did not join the job within {seconds:.0f} s; see why it did not start, or raise {JOIN_VARIABLE}"
        with contextlib.suppress(OSError):
            os.write(2, f"error: {words}, and start all of them again.\n".encode())
        os._exit(1)

    options |= {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "shutdown_timeout_seconds": SHUTDOWN_SECONDS}
    options |= {"initialization_timeout": round(seconds) + SHUTDOWN_SECONDS}
    waiting = threading.Timer(seconds, give_up)
    waiting.daemon = True
    library.get_distributed_runtime_client = relayed
    waiting.start()
    try:
        jax.distributed.initialize(*arguments, **options)
    finally:
        waiting.cancel()
        library.get_distributed_runtime_client = original


def place() -> tuple[Store, int, int] | None:
    """The store of this job, the number of this process, and how many there are; `None` for a process by itself.

    No device is asked, unlike `jax.process_index`: devices would wait for all processes.
    """
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return None
    return Store(state.client), state.process_id, state.num_processes


def relay(address: str, lost: Callable[[], None], reached: threading.Event) -> str:
    """Passes on whatever connects to the address that is returned.

    Args:
      address: `host:port` to pass it on to.
      lost: called where that end breaks off. The other end is not told.
      reached: set once somebody answered there.
    """
    host, _, port = address.rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
            except OSError:
                near.close()  # not there yet: JAX tries again
                continue
            reached.set()
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _start(_outward, near, far)
            _start(_inward, far, near, lost)

    _start(serve)
    return f"127.0.0.1:{listener.getsockname()[1]}"


def _start(run: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=run, args=arguments, daemon=True, name="relay").start()


def _parts(end: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while part := end.recv(1 << 16):
            yield part


def _outward(near: socket.socket, far: socket.socket) -> None:
    for part in _parts(near):
        with contextlib.suppress(OSError):  # nobody is there any more, and the sender must not know
            far.sendall(part)
    near.close()
    with contextlib.suppress(OSError):  # closed alone it would stay open as long as the other thread reads from it
        far.shutdown(socket.SHUT_RDWR)
    far.close()


def _inward(far: socket.socket, near: socket.socket, lost: Callable[[], None]) -> None:
    for part in _parts(far):
        try:
            near.sendall(part)
        except OSError:  # the near end was closed: this process ends its connection
            return
    if near.fileno() != -1:
        lost()
