"""Commands that tests run as forks."""

import os
import signal
import subprocess
import time

import pytest

from tests.forks import Fork


@pytest.mark.ci
def test_a_fork_that_does_not_end_in_time_is_killed():
    fork = Fork("http.server", "0", environment={**os.environ})
    with pytest.raises(subprocess.TimeoutExpired):
        fork.communicate(timeout=1)
    deadline = time.monotonic() + 60
    while fork.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert fork.returncode == -signal.SIGKILL
