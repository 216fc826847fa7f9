"""How the tools that take names end: as the binaries of `experiments` do, and also after a notice to stop."""

import sys
from collections.abc import Callable, Sequence

from clipbias import interruption
from clipbias.errors import ClipbiasError
from experiments import common
from tools import STOPPED


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Runs a tool: `main(names)`, see `answer`. A wrong flag ends it with one sentence and status 1."""
    interruption.watch(STOPPED)

    def ended(names: Sequence[str]) -> int:
        status = answer(main, names)
        return interruption.leave(status, now=status != 0)

    common.run_arguments(ended)


def answer(main: Callable[[Sequence[str]], int], names: Sequence[str]) -> int:
    """The exit status of `main(names)`; 143 after SIGTERM and 130 after SIGINT, when files in the making are removed.

    A `ClipbiasError` ends it with its message alone and status 1.
    """
    try:
        with interruption.noted():
            return main(names)
    except ClipbiasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        return common.broken_disk(error)
    except interruption.Interrupted as error:
        interruption.claim()
        print(STOPPED, file=sys.stderr)
        return error.status
