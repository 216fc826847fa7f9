"""How the tools that take names end: as the binaries of `experiments` do, and also after a notice to stop."""

import os
import sys
from collections.abc import Callable, Sequence

from clipbias.errors import ClipbiasError
from clipbias.training import interruption
from experiments import app

# What a shell reports for a process that Ctrl-C ended.
EXIT_CTRL_C = 130


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Runs a tool: `main(names)`, see `answer`. A wrong flag ends it with one sentence and status 1."""

    def ended(names: Sequence[str]) -> int:
        status = answer(main, names)
        if status in (app.EXIT_INTERRUPTED, EXIT_CTRL_C):
            # Torn out of JAX's tracing, the interpreter often crashes while it takes itself down. All is cleaned up.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status

    app.run_arguments(ended)


def answer(main: Callable[[Sequence[str]], int], names: Sequence[str]) -> int:
    """The exit status of `main(names)`; 143 after SIGTERM and 130 after Ctrl-C, when files in the making are removed.

    A `ClipbiasError` ends it with its message alone and status 1.
    """
    try:
        with interruption.ended_by_notice():
            return main(names)
    except ClipbiasError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except interruption.Interrupted:
        print("stopped; nothing unfinished is left, the same command starts again.", file=sys.stderr)
        return app.EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted; nothing unfinished is left, the same command starts again.", file=sys.stderr)
        return EXIT_CTRL_C
