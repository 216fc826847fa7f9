"""Processes that agree before they act, played by threads over a store in memory."""

import importlib.util
import json
import os
import re
import threading
import types
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clipbias.data.pipeline import Batches
from clipbias.errors import ClipbiasError
from clipbias.training import job as jobs
from clipbias.training import processes
from clipbias.training.job import Job


class Memory:
    """A store as that of the coordination service."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self.kept[key] = value
            self._changed.notify_all()

    def wait(self, key: str, seconds: float) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: key in self.kept, seconds)
            return self.kept.get(key)

    def below(self, folder: str) -> dict[str, str]:
        with self._changed:
            found = {key: value for key, value in self.kept.items() if key.startswith(f"{folder}/")}
        return {key.rpartition("/")[2]: value for key, value in found.items()}

    def delete(self, key: str) -> None:
        with self._changed:
            for one in [one for one in self.kept if one == key or one.startswith(f"{key}/")]:
                del self.kept[one]


def module() -> ModuleType:
    """The module under test anew: what it keeps belongs to a process, and here every thread stands for one."""
    found = importlib.util.spec_from_file_location(f"processes_{uuid.uuid4().hex}", processes.__file__)
    assert found is not None and found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def play(act: Callable[[ModuleType, int], Any], *, count: int = 3) -> list[Any]:
    """What `act(processes, number)` returns in each of so many processes, or the exception that it raises."""
    store, modules = Memory(), [module() for _ in range(count)]
    found: dict[int, Any] = {}

    def run(number: int) -> None:
        own = modules[number]
        own.enter(own.Job(store, number, count))
        try:
            found[number] = act(own, number)
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == count, f"only {sorted(found)} came to an end"
    return [found[number] for number in range(count)]


def sentences(found: list[Any]) -> set[str]:
    """What all processes raised, which must be what they agreed on."""
    assert {type(error).__name__ for error in found} == {"Agreed"}, found
    return {str(error) for error in found}


def test_a_process_by_itself_waits_for_nobody() -> None:
    assert processes.gather(1) == [1] and processes.tell(lambda: 2) == 2
    processes.same("a thing", 3)
    with pytest.raises(KeyError), processes.agreed():
        raise KeyError


def test_all_have_what_each_has_and_what_the_first_decides() -> None:
    def act(own: ModuleType, number: int) -> Any:
        own.same("a thing", "same")
        return own.gather({"number": number}), own.tell(lambda: [f"decided by {number}"])

    told = [{"number": number} for number in range(3)], ["decided by 0"]
    assert play(act) == [told] * 3


def test_a_failure_ends_the_block_in_all_wherever_they_are() -> None:
    """One fails before an exchange that the others make, and is gone from the block before they come to its end."""

    def act(own: ModuleType, number: int) -> Any:
        with own.agreed():
            if number == 2:
                raise ClipbiasError("the image is damaged")
            own.tell(lambda: 1)
            pytest.fail("went on")

    (said,) = sentences(play(act))
    assert re.fullmatch(r"process 2 \(.+\): the image is damaged", said)


def test_after_a_failure_all_go_on_alike() -> None:
    def act(own: ModuleType, number: int) -> Any:
        for cell in range(3):
            try:
                with own.agreed(), own.agreed():
                    if cell == number == 1:
                        raise ClipbiasError("no")
            except own.Agreed:
                assert cell == 1
        return own.gather(number)

    assert play(act) == [[0, 1, 2]] * 3


def test_a_failure_of_all_is_told_without_a_process() -> None:
    def act(own: ModuleType, number: int) -> Any:
        with own.agreed():
            raise ClipbiasError("nothing is there")

    assert sentences(play(act)) == {"nothing is there"}


def test_what_hosts_see_otherwise_is_named() -> None:
    (said,) = sentences(play(lambda own, number: own.same("checkpoint 7", number == 1)))
    assert re.match(r"process 1 \(.+\) sees checkpoint 7 otherwise than process 0", said)


def test_processes_that_do_different_things() -> None:
    (said,) = sentences(play(lambda own, number: own.same("a", 1) if number else own.gather(1)))
    assert said.startswith("the processes do different things (gather, same)")


def test_what_was_exchanged_is_forgotten() -> None:
    store = Memory()
    jobs = [Job(store, number, 2) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            list(pool.map(lambda job: job.exchange("gather", 1), jobs))
    assert {key.split("/")[1] for key in store.kept} == {"4", "5"}


class Unreadable(Batches):
    """Five batches of two black images, of which one cannot be read."""

    def __init__(self, bad: int | None) -> None:
        self._numbers, self._bad, self.count = iter(range(5)), bad, 5
        self.source = types.SimpleNamespace(shape=(2, 4, 4, 3), dtype=np.uint8)

    def __next__(self) -> dict[str, np.ndarray]:
        if (number := next(self._numbers)) == self._bad:
            raise ClipbiasError(f"cannot read batch {number}")
        return {"images": np.full(self.source.shape, number, np.uint8)}


def test_no_process_takes_a_batch_that_another_cannot_read() -> None:
    taken: list[int] = [0, 0]

    def act(own: ModuleType, number: int) -> Any:
        for _ in own.together(Unreadable(2 if number else None)):
            taken[number] += 1

    (said,) = sentences(play(act, count=2))
    assert said.endswith("cannot read batch 2") and taken == [2, 2]


class Ended(Exception):
    """In place of the end of the process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit statuses of processes that were ended."""
    found: list[int] = []

    def end(status: int) -> None:
        found.append(status)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(jobs, "FAREWELL", 0.0)
    monkeypatch.setattr(jobs.files, "abandon", lambda: None)  # which lets nothing be written any more
    return found


def watched(store: Memory, seconds: float, *, every: float = 1.0, count: int = 3) -> list[tuple[str, str]]:
    """What the first process records if it watches over the others for so long, without waiting that long."""
    job, recorded, seen = Job(store, 0, count), [], {}
    job.record = lambda state, words: recorded.append((state, words))
    for step in range(round(seconds / every)):
        try:
            job._lead(seen, step * every)
        except Ended:
            break
    return recorded


def alive(store: Memory, *numbers: int) -> None:
    for number in numbers:
        store.set(f"alive/{number}", f'["host{number}", {len(store.kept)}]')


def test_a_process_without_a_sign_of_life_ends_all(ends: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    store = Memory()
    alive(store, 1, 2)
    said = "process 1 (host1) ended or stands still; the same command continues."
    assert watched(store, 55) == [] and ends == []
    assert watched(store, 65) == [("failed", said)] and ends == [1]
    assert capfd.readouterr().err == f"error: {said}\n"
    assert store.kept["over"] == f'[1, "{said}", true]'  # so that the others end likewise


def test_what_is_alive_is_left_alone(ends: list[int]) -> None:
    store, job, seen = Memory(), None, {}
    job = Job(store, 0, 2)
    for second in range(300):
        store.set("alive/1", f'["host1", {second}]')
        job._lead(seen, float(second))
    assert ends == []


def test_a_process_that_failed_where_others_wait_in_a_program_ends_all(ends: list[int]) -> None:
    store = Memory()
    job = Job(store, 0, 2)
    job.record = lambda state, words: None
    seen: dict = {}
    store.set("failed/1", '[7, {"host": "b", "failed": "out of memory"}]')
    with pytest.raises(Ended):
        for second in range(70):
            store.set("alive/1", f'["b", {second}]')
            job._lead(seen, float(second))
    assert ends == [1] and '"process 1 (b): out of memory"' in store.kept["over"]


@pytest.mark.parametrize(("at_once", "seconds"), [(False, 7), (True, 1)])
def test_a_process_that_was_told_to_stop_ends_all_with_its_status(at_once: bool, seconds: int, ends: list[int]) -> None:
    """The others have a few seconds to end by themselves, unless it was told twice."""
    store = Memory()
    alive(store, 1, 2)
    said = "stopped; the same command continues."
    store.set("ended/2", json.dumps([143, said, at_once]))
    assert watched(store, seconds) == [("interrupted", f"Interrupted: {said}")] and ends == [143]
    ends.clear()
    store.delete("over")
    assert at_once or watched(store, 5) == ends == []


def test_a_process_that_ended_is_not_waited_for(ends: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be gone before it hears that the job is over; all others are waited for."""
    store = Memory()
    alive(store, 1, 2)
    store.set("ended/2", json.dumps([143, "stopped", True]))
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        store.set("heard/1", "")

    monkeypatch.setattr(jobs, "FAREWELL", 60.0)
    monkeypatch.setattr(jobs.time, "sleep", sleep)
    assert watched(store, 1) and ends == [143] and len(waited) == 1


def test_another_process_ends_as_the_first_says(ends: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    store = Memory()
    store.set("over", '[1, "process 2 (c): no", false]')
    with pytest.raises(Ended):
        Job(store, 1, 3)._follow(0.0)
    assert ends == [1] and capfd.readouterr().err == "error: process 2 (c): no\n" and "heard/1" in store.kept


def test_a_process_that_is_leaving_is_not_ended(ends: list[int]) -> None:
    store = Memory()
    job = Job(store, 1, 2)
    job.finish()
    store.set("over", '[1, "no", false]')
    job._follow(0.0)
    job.lost(0)
    assert ends == []
