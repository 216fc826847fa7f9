"""Threads that make elements ahead: their order, their errors, what is dropped, and what counts as waiting."""

import threading
from concurrent.futures import CancelledError

import pytest

from clipbias.data import images
from clipbias.data.images import Ahead, Workers


def ahead(count: int, make, *, pieces: int = 3, threads: int = 2, **options) -> Ahead:
    """Elements that are lists of what `make(number, piece)` returns."""

    def begin(number):
        pieces_made = [None] * pieces

        def one(piece):
            pieces_made[piece] = make(number, piece)

        return [lambda piece=piece: one(piece) for piece in range(pieces)], lambda: pieces_made

    return Ahead(Workers(threads), range(count), begin, pieces=pieces, **options)


def test_elements_come_whole_and_in_order():
    elements = list(ahead(20, lambda number, piece: (number, piece), threads=4))
    assert elements == [[(number, piece) for piece in range(3)] for number in range(20)]


def test_no_more_is_made_ahead_than_it_takes():
    begun = []
    gate = threading.Event()

    def make(number, piece):
        begun.append(number)
        gate.wait(10)

    bytes_each = images.MOST_BYTES // 5
    for threads, size, depth in ((1, 1 << 40, 1), (1, 1, 4), (1, bytes_each, 2), (16, 1, 7), (16, bytes_each, 5)):
        begun.clear()
        gate.clear()
        made = ahead(100, make, threads=threads, size=size)
        made._refill()
        assert len(made._elements) == depth  # 16 threads have work while one element of three pieces is in use
        gate.set()
        assert list(next(made)) == [None] * 3
        made.close()
        assert len(set(begun)) <= depth + 1


def test_the_first_pieces_error_is_raised_and_the_rest_goes_on():
    late = threading.Event()

    def make(number, piece):
        if number == 1 and piece == 0:
            late.wait(10)
            raise ValueError("first")
        if number == 1 and piece == 2:
            late.set()
            raise KeyError("third")
        return number

    made = ahead(3, make)
    assert next(made) == [0, 0, 0]
    with pytest.raises(ValueError, match="first"):
        next(made)
    assert next(made) == [2, 2, 2]
    with pytest.raises(StopIteration):
        next(made)


def test_what_is_dropped_is_not_made():
    gate = threading.Event()
    made = []

    def make(number, piece):
        gate.wait(10)
        made.append((number, piece))

    elements = ahead(50, make, threads=1)
    elements._refill()
    pending = [element for element, _ in elements._elements]
    elements.close()
    gate.set()
    for future in pending:
        with pytest.raises(CancelledError):
            future.result(10)
    assert len(made) <= 1  # what had begun
    with pytest.raises(StopIteration):
        next(elements)


class Late:
    """An element that is there after so many seconds of a clock of the test's own."""

    def __init__(self, clock, seconds):
        self._clock = clock
        self._at = seconds

    def done(self):
        return self._at <= 0

    def cancel(self):
        pass

    def result(self):
        self._clock[0] += max(self._at, 0)


def test_waiting_is_what_the_steps_wait_for(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(images.time, "perf_counter", lambda: clock[0])
    elements = ahead(0, None)
    elements._elements.extend((Late(clock, seconds), []) for seconds in (5, 1, 0, 2))
    for work in (100, 3, 3, 0):  # the first one compiles
        next(elements)
        clock[0] += work
    assert elements.seconds_waiting == 8 and elements.waiting_share == pytest.approx(3 / 9)


def test_processors_are_those_of_this_process_and_its_container(monkeypatch, tmp_path):
    monkeypatch.setattr(images.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for text, expected in (("max 100000", 6), ("250000 100000", 3), ("5000 100000", 1), ("9000000 100000", 6), ("", 6)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(images, "Path", lambda _: tmp_path / "cpu.max")
        assert images.processors() == expected
    assert Workers(3).count == Workers.of(3).count == 3 and Workers.of(None).count == 6
