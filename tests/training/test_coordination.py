"""The relay that stands between a process and the service of its job."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from clipbias.training.coordination import relay

SOON = 10.0


class Ends:
    """A relay to a service that is played here."""

    def __init__(self, opened: contextlib.ExitStack) -> None:
        self.open = opened.enter_context
        self.service = self.open(socket.create_server(("127.0.0.1", 0)))
        self.service.settimeout(SOON)
        self.lost, self.reached = threading.Event(), threading.Event()
        host, port = self.service.getsockname()
        self.address = relay(f"{host}:{port}", self.lost.set, self.reached)

    def connect(self) -> socket.socket:
        """The end of the process."""
        host, _, port = self.address.rpartition(":")
        return self.open(socket.create_connection((host, int(port)), timeout=SOON))

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """The end of the process, and that of the service."""
        near = self.connect()
        far = self.open(self.service.accept()[0])
        far.settimeout(SOON)
        return near, far


@pytest.fixture
def ends() -> Iterator[Ends]:
    with contextlib.ExitStack() as opened:
        yield Ends(opened)


def test_it_passes_on_what_either_end_says(ends: Ends) -> None:
    near, far = ends.connected()
    near.sendall(b"question")
    assert far.recv(8) == b"question"
    far.sendall(b"answer")
    assert near.recv(6) == b"answer"
    assert ends.reached.is_set() and not ends.lost.is_set()


def test_a_service_that_is_gone_is_told_but_not_to_the_connection(ends: Ends) -> None:
    """Which would abort the process as soon as it broke."""
    near, far = ends.connected()
    near.sendall(b"a")
    assert far.recv(1) == b"a"
    far.close()
    assert ends.lost.wait(SOON)
    for _ in range(3):  # the second one is refused, of which the near end must not hear
        near.sendall(b"is anybody there?")
        time.sleep(0.05)
    near.settimeout(0.2)
    with pytest.raises(TimeoutError):
        near.recv(1)


def test_a_process_that_leaves_has_lost_nobody(ends: Ends) -> None:
    near, far = ends.connected()
    near.close()
    assert far.recv(1) == b""  # the service learns of it
    far.close()
    assert not ends.lost.wait(0.2)


def test_a_service_that_is_not_there_yet_is_asked_again(ends: Ends) -> None:
    host, port = ends.service.getsockname()
    ends.service.close()
    with contextlib.suppress(ConnectionResetError):
        assert ends.connect().recv(1) == b""
    assert not ends.reached.is_set() and not ends.lost.is_set()
    ends.service = ends.open(socket.create_server((host, port)))
    near, far = ends.connected()
    near.sendall(b"now")
    assert far.recv(3) == b"now" and ends.reached.is_set()
