"""A notice to stop ends what is being done, wherever it comes."""

import gc
import os
import signal
import time

import pytest

from clipbias.training.interruption import Interrupted, ended_by_notice, stop_notice


def give() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_notice_ends_the_block_once() -> None:
    with pytest.raises(Interrupted), ended_by_notice():
        try:
            give()
            time.sleep(10)
        finally:
            give()  # while it cleans up
            time.sleep(0.1)


def test_steps_look_for_it_themselves() -> None:
    with ended_by_notice(), stop_notice() as notice:
        assert not notice.given
        give()
        assert notice.given


def test_a_notice_while_garbage_is_collected_is_not_lost() -> None:
    def running(phase: str, _: dict) -> None:
        if phase == "start":
            give()
            time.sleep(0.01)

    gc.callbacks.append(running)
    try:
        with pytest.raises(Interrupted), ended_by_notice():
            gc.collect()
            gc.callbacks.remove(running)
            time.sleep(10)
    finally:
        if running in gc.callbacks:
            gc.callbacks.remove(running)


def test_a_notice_in_a_finaliser_is_not_lost() -> None:
    class Finalised:
        def __del__(self) -> None:
            give()
            time.sleep(0.01)

    with pytest.raises(Interrupted), ended_by_notice():
        Finalised()
        time.sleep(10)
