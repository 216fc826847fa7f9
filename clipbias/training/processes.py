"""The processes of a job: they agree before they act, and none waits for one that is gone.

Between two programs that all devices take part in, the processes tell each other whether they failed (`agreed`), and
the first decides what may look different from another host (`tell`). All of this passes through a store of texts, not
through devices, so that it works where a device waits. Who looks whether the others are there is `job.py`.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from clipbias import interruption
from clipbias.data.pipeline import Batch, Batches
from clipbias.errors import ClipbiasError
from clipbias.interruption import Interrupted
from clipbias.training.job import Agreed, Job, Record

# The job belongs to the process as JAX's own state of it does (`jax.distributed`). `None` for a process by itself.
_job: Job | None = None


def enter(job: Job | None) -> None:
    """Makes a job that of this process."""
    global _job
    _job = job


def lost_first() -> None:
    """Called where the first process is gone."""
    if _job is not None:
        _job.lost(0)


def seconds(variable: str, usual: float) -> float:
    """The seconds that a variable of the environment gives, or else the usual ones; at least one."""
    try:
        return max(1.0, float(os.environ.get(variable, usual)))
    except ValueError as error:
        raise ClipbiasError(f"{variable} is {os.environ[variable]!r}; give seconds.") from error


def several() -> bool:
    """Whether this process has others beside it."""
    return _job is not None


def gather(value: Any) -> list[Any]:
    """What all processes have, as JSON values, in their order. Raises `Agreed` where one of them failed instead."""
    return [value] if _job is None else _job.exchange("gather", value)


def agree(error: Exception | None = None) -> None:
    """Learns whether any process failed, as this one did with `error`. Raises it, in all as `Agreed`."""
    if _job is not None:
        _job.exchange("agree", error=error)
    elif error is not None:
        raise error


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Ends the block in all processes as in the first that failed: with `Agreed`. All of them wait at its end."""
    if _job is None:
        yield
        return
    try:
        yield
    except Agreed:  # all know
        raise
    except Exception as error:
        _job.exchange("agree", error=error)
        raise AssertionError("an exchanged failure is raised") from error
    _job.exchange("agree")


def tell(decide: Callable[[], Any]) -> Any:
    """What `decide` returns in the first process, a JSON value, in all of them."""
    if _job is None:
        return decide()
    value, failed = None, None
    if _job.index == 0:
        try:
            value = decide()
        except Agreed:
            raise
        except Exception as error:
            failed = error
    return _job.exchange("tell", value, failed)[0]


def held(batches: Batches) -> Iterator[Batch]:
    """All batches."""
    for _ in range(batches.count):
        yield next(batches)


def together(batches: Batches) -> Iterator[Batch]:
    """Batches that all processes could read: each of them is waited for. Raises `Agreed` at the first that was not."""
    for _ in range(batches.count):
        with agreed():
            batch = next(batches)
        yield batch


def same(what: str, value: Any) -> None:
    """Raises `Agreed` where not all processes have the same JSON value, such as a hash.

    Args:
      what: names it in the sentence: "the images of demo/digits".
      value: what this process has.
    """
    if _job is None:
        return
    found = _job.exchange("same", [_job.host, value])
    for number, (host, other) in enumerate(found):
        if other != found[0][1]:
            raise Agreed(
                f"process {number} ({host}) sees {what} otherwise than process 0 ({found[0][0]}); see that all hosts "
                "read the same files, and run the same command again."
            )


def on_end(record: Record) -> None:
    """Has `record(state, sentence)` called where a thread ends the process."""
    if _job is not None:
        _job.record = record


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Has a program end in all processes alike: well where it does in all, else for the same reason."""
    job = _job
    if job is None:
        yield
        return
    try:
        with interruption.last_words(lambda words: job.leave(Interrupted(words).status, words, at_once=True)):
            yield
            agree()
        job.finish()
    except Agreed as error:
        job.leave(1, str(error))
        raise
    except Exception as error:
        # The others learn of it where they are next, and so does this process where it fails because one of them is
        # gone. Where they do not come, the watch ends all.
        try:
            job.exchange("agree", error=error)
        except Agreed as agreed:
            job.leave(1, str(agreed))
            raise
    except Interrupted as error:
        job.leave(error.status, str(error))
        raise
