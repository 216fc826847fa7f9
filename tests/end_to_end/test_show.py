"""The binary `show` as a user runs it, on folders of which some cannot be read."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

import experiments.show
from tests import helpers
from tests.end_to_end import binaries
from tests.report.test_runs import state, trained


def test_what_can_be_read_is_shown(tmp_path):
    first, second = trained(tmp_path / "runs" / "one", state=state("finished")), trained(tmp_path / "runs" / "two")
    (tmp_path / "broken").mkdir()
    runs = (f"{tmp_path}/runs/*", tmp_path / "broken", tmp_path / "nowhere")
    settings = {"runs": ",".join(map(str, runs)), "format": "json"}
    with redirect_stdout(io.StringIO()) as printed:
        status, errors_printed = binaries.answer_here(experiments.show, settings)
    assert status == 1 and "Traceback" not in errors_printed
    errors = [line for line in errors_printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "broken is not the work folder" in errors[0] and "nowhere" in errors[1]
    content = json.loads(printed.getvalue())
    assert [run["name"] for run in content["runs"]] == [str(first), str(second)]
    assert [f"error: {problem}" for problem in content["problems"]] == errors


@pytest.mark.ci
@pytest.mark.parametrize("line", helpers.short(["", "show --help", "show --config.runs=FOLDER"], "show --help"))
def test_a_reader_that_stops_reading_ends_a_command_quietly(line, tmp_path):
    """As `clipbias show --help | head` does, here before the first line."""
    words = line.replace("FOLDER", str(trained(tmp_path))).split()
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "clipbias", *words]
    done = subprocess.run(command, cwd=binaries.ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


LOGS = """
import logging, warnings
from absl import app
from experiments import common
common.quiet()

def main(words):
    logging.getLogger("orbax").warning("of orbax")
    logging.getLogger("orbax").error("an error of orbax")
    warnings.warn("of Python")
    record = ("clipbias", logging.WARNING, common.__file__, 1, "ours", (), None)
    if logging.getLogger().isEnabledFor(logging.WARNING):
        logging.getLogger().handle(logging.LogRecord(*record))

app.run(main)
"""
OURS = ["error: an error of orbax", "warning: ours"]


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [("-1", OURS), ("1", ["warning: of orbax", OURS[0], "warning: <string>:10: UserWarning: of Python", OURS[1]])],
)
def test_log_lines_are_sentences(verbosity, shown):
    """Without times and numbers of threads, and those of other libraries only where they are asked for."""
    command = [sys.executable, "-c", LOGS, f"--verbosity={verbosity}"]
    done = subprocess.run(command, cwd=binaries.ROOT, capture_output=True, text=True, check=True)
    lines = [line.split("\\n")[0] for line in done.stderr.splitlines() if not line.startswith("debug: ")]
    assert lines == shown
