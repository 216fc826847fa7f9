"""`kill -9` at random moments: the continued run ends with the same bits as an undisturbed one, and leaves no more."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.end_to_end import binaries
from tools.disturb import COMMANDS, comparable, disturb


@pytest.mark.parametrize("name", ["train", "table1", "explain"])
def test_nothing_is_lost(name: str, model: Path, cache: Path, tmp_path: Path) -> None:
    """Two kills of each; `python -m tools.disturb` is for many."""
    environment, command = binaries.environment(cache), COMMANDS[name]
    if name == "explain":  # a part of the figures, in a part of the time
        few = "--config.figures=vision_attention,decomposition,examples"
        command = dataclasses.replace(command, arguments=f"{command.arguments} {few}")
    assert disturb(command, tmp_path, model, kills=2, environment=environment, twice=False) == []


def test_what_is_lost_is_noticed(tmp_path: Path) -> None:
    """The comparison itself: a file in the making, a changed file and a missing one are told."""
    for name in ("a", "b"):
        (tmp_path / name / "checkpoints" / "12").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "12" / "made").write_text(name)
        (tmp_path / name / "result.json").write_text(json.dumps({"accuracy": 1.0, "seconds": ord(name)}))
    assert comparable(tmp_path / "a") == comparable(tmp_path / "b") != {}
    (tmp_path / "b" / "result.json").write_text('{"accuracy": 2.0}')
    (tmp_path / "b" / ".clipbias-part-x.json").write_text("{}")
    first, second = comparable(tmp_path / "a"), comparable(tmp_path / "b")
    assert {name for name in second if second[name] != first.get(name)} == {".clipbias-part-x.json", "result.json"}
