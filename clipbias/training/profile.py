"""A trace of a few training steps, as `--config.profile=steps` asks for."""

from collections.abc import Mapping
from pathlib import Path

import jax

# Steps before the first that is traced: they compile, and fill what is kept. And how many are traced.
BEFORE = 2
TRACED = 5
FOLDER = "profile"


class StepProfile:
    """Traces a few steps of process 0 into `profile` below a folder, to be looked at with XProf or Perfetto."""

    def __init__(self, folder: Path | None, *, first: int, total: int) -> None:
        """Prepares nothing yet.

        Args:
          folder: of the run; `None` traces nothing.
          first: the step that this process begins with, from 0.
          total: steps of the whole training; where there are few, the last ones are traced.
        """
        self._folder = folder
        begin = min(first + BEFORE, max(total - TRACED, first))
        self._steps = range(begin, min(begin + TRACED, total))
        self._runs = False

    def before(self, step: int) -> None:
        """To be called before each step, numbered from 0."""
        if self._folder is not None and step == self._steps.start and jax.process_index() == 0:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of a function would slow the steps down
            jax.profiler.start_trace(str(self._folder / FOLDER), profiler_options=options)
            self._runs = True

    def after(self, step: int, result: Mapping[str, jax.Array]) -> None:
        """To be called after each step with its results; the trace ends with those of the last traced step."""
        if self._runs and step == self._steps.stop - 1:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends the trace, also of a training that ends early."""
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()
