"""`--help` of each command: its own settings, a line each, of which the first clause fits."""

import importlib
import re

import pytest

from clipbias.cli import COMMANDS
from clipbias.settings import fields_of
from experiments import common
from experiments.command_line import settings_type
from experiments.help_page import ROOM, WIDTH, help_page, summary


def page(command: str, *, full: bool) -> str:
    main = importlib.import_module(f"experiments.{command}").main
    config = common.own_config(main)
    return help_page(main, settings_type(main), config, file=f"configs/{command}.py", full=full)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_shows_its_own_settings_a_line_each(command):
    known = fields_of(settings_type(importlib.import_module(f"experiments.{command}").main))
    text = page(command, full=False)
    lines = [line for line in text.splitlines() if line.startswith("  --config.")]
    named = [re.match(r"  --config\.([a-z_.]+?)(?=[=.])", line)[1] for line in lines]
    assert len({line.partition("=")[0] for line in lines}) == len(lines)
    assert {name for name in known if name not in named} <= {"method_options", "mesh.run", "mesh.data"}
    assert {name.partition(".")[0] for name in named} == {name.partition(".")[0] for name in known}
    assert max(map(len, text.splitlines())) <= WIDTH
    for name, field in known.items():
        first = re.split(r"(?<=[.;]) ", field.help)[0]
        assert summary(field.help, ROOM).startswith(first.removesuffix(";")), f"{name}: shorten the first clause"
