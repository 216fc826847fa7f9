"""Every command of the README and the pages beside it.

What works on the embedded model is run, with a smaller budget; of what needs data, a network, a cluster or many minutes
the command line is read by the program itself, so that every option, configuration and setting in it exists. A command
that is neither fails: there is no third kind.
"""

import functools
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from clipbias.cli import COMMANDS as COMMANDS_OF_THE_PACKAGE
from clipbias.io import read_json_lines
from tests.documents import LANGUAGES, PAGES, PROGRAMS, ROOT, Command, blocks, commands, fences, inline
from tests.end_to_end.conftest import in_forks

COMMANDS = [command for page in PAGES for command in commands(page)]

# What makes a command one of the embedded model, which needs nothing but the package.
EMBEDDED = ("configs/demo.py", "workdir/demo", "--config.model=demo")
# The demonstration with all its shots and seeds: no budget leaves it its meaning.
FULL = "configs/demo.py:full"

# How it is run in seconds: the program's arguments after its own. Without an entry it is run as it stands.
BUDGET = {
    "experiments.table1": (
        "--config.epochs=1",
        "--config.datasets=('demo/fashion',)",
        "--config.seeds=(1,)",
        "--config.eval_batch_size=300",
    ),
    "experiments.explain": (
        "--config.batch_size=50",
        # All of them are in `end_to_end/test_explain.py`.
        "--config.sections=text_attention,vision_attention",
        "--config.image_limit=100",
    ),
    "experiments.distil": ("--config.steps=3",),
    "experiments.train": ("--config.epochs=1",),
}


def jobs(commands_given: list[tuple[Command, list[str]]], folder: Path, *, run: bool) -> list[dict[str, Any]]:
    """Runs commands in turn, or has their command lines read alone."""
    named = [(command.module, arguments) for command, arguments in commands_given]
    return in_forks(named, cache=folder / "cache", folder=folder, run=run)


def reduced(command: Command) -> list[str]:
    """A command's arguments within the budget: of a grid the methods that others need, or one, the page's own if any.

    Others read what lies in the demonstration's own folder. That each of the page's own methods learns is found in
    `test_method_docs`.
    """
    budget = list(BUDGET.get(command.module, ()))
    if command.module == "experiments.table1":
        programs = tuple(re.findall(r"[=,](\w+\.py)", command.text))
        if "--workdir=" in command.text:
            budget += [f"--config.methods={programs[:1] or ('bias',)}", "--config.shots=(2,)"]
        else:
            budget += ["--config.methods=('ivlp', 'bias', 'coop')", "--config.shots=(16,)"]
    changed = {word.partition("=")[0] for word in budget}
    return [word for word in command.arguments if word.partition("=")[0] not in changed] + budget


def computation(command: Command) -> tuple[str, frozenset[str]]:
    """What is the same for commands that compute the same, whether or not they say where, or name the default."""
    default = f"--config=configs/{command.module.rpartition('.')[2]}.py"
    words = (word for word in command.arguments if word != default and not word.startswith("--workdir="))
    return command.module, frozenset(words)


def is_embedded(command: Command) -> bool:
    # A page, open until somebody ends it, which `tests/app` looks at.
    if command.module == "experiments.app":
        return False
    # A dry run for absent devices needs their compiler, which `.ci/accelerators` has.
    # The last three are trainings that others stand for.
    elsewhere = (FULL, ".topology", "workdir/paper", "workdir/calibrated", "workdir/held_out_shot")
    return any(mark in command.text for mark in EMBEDDED) and not any(mark in command.text for mark in elsewhere)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a user has who followed the pages: the configurations, and the methods that the pages write as files."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for page in PAGES:
        codes = [code for code in blocks(page, "python") if "def adapt" in code]
        files = dict.fromkeys(re.findall(r"[=,](\w+\.py)", " ".join(command.text for command in commands(page))))
        for name, code in zip(files, codes, strict=True):
            (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


@pytest.mark.ci
def test_commands_on_the_embedded_model_run(folder):
    different = {computation(command): command for command in reversed(COMMANDS) if is_embedded(command)}
    command_jobs = [(command, reduced(command)) for command in reversed(different.values())]
    for (command, arguments), result in zip(command_jobs, jobs(command_jobs, folder, run=True), strict=True):
        assert result["status"] == 0, f"{command.page}: {command.text}\n({arguments})\n{result['said'][-3000:]}"
    for workdir, method in (("demo", "coop"), ("low_rank", "low_rank.py")):
        cells = read_json_lines(folder / "workdir" / workdir / "results.jsonl")
        assert method in {cell["method"] for cell in cells if cell["status"] == "ok"}
    assert (folder / "workdir" / "why" / "report" / "report.html").is_file()


@pytest.mark.ci
def test_command_lines_are_read_by_their_programs(folder):
    # A module that is only named is checked for being there.
    command_jobs = [
        (command, command.arguments)
        for command in COMMANDS
        if command.module.startswith(("experiments.", "tools.")) and command.arguments
    ]
    assert len(command_jobs) > 10
    for (command, _), result in zip(command_jobs, jobs(command_jobs, folder, run=False), strict=True):
        assert result["status"] == 0, f"{command.page}: {command.text}\n{result['said'][-3000:]}"


@functools.cache
def sources() -> str:
    """All of the package."""
    return "".join(path.read_text(encoding="utf-8") for path in (ROOT / "clipbias").rglob("*.py"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.text[:60])
def test_every_command_is_of_a_known_kind(command):
    program = command.words[0]
    assert program in PROGRAMS, f"{command.page}: nobody checks {program!r}"
    assert all(f'"{name}"' in sources() for name in command.variables), command.text
    if program == "pip":
        what, *others = command.words[3:]
        assert command.words[:3] == ("pip", "install", "-e"), command.text
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert set(re.findall(r"[\w-]+", what)) <= set(project["optional-dependencies"]), command.text
        needed = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
        assert {re.match(r"[\w-]+", other)[0] for other in others} <= needed, command.text
    elif program == "clipbias":
        assert command.words[1] in COMMANDS_OF_THE_PACKAGE, command.text
    elif program == "python":
        known = command.module in ("venv", "pytest", "mkdocs") or command.module.startswith(("experiments.", "tools."))
        assert known, f"{command.page}: nobody checks {command.text!r}"
        assert importlib.util.find_spec(command.module) is not None, command.text
        tests = [word for word in command.arguments if word.startswith("tests")]
        assert all((ROOT / path).exists() for path in tests), command.text
    else:  # a shell's own, or a program of the place where it runs
        assert program in (".", "cd", "git", "srun", "gcloud", "hf")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides(page):
    languages = {language for language, _ in fences(page)}
    assert languages <= {*LANGUAGES}, f"{page.name}: say what the blocks in {languages - {*LANGUAGES}} are"
    # Two blocks may hold one command; none may hold one that is not found.
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    modules = {command.module for command in commands(page)}
    assert set(re.findall(r"python3? -m ([\w.]+)", text)) <= modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_are_named_exist(page):
    settings = known_settings()
    flags = known_flags()
    # A cluster's own, which the page's scripts set, and pytest's.
    of_others = {"hypothesis-profile"} | set(
        re.findall(r"--([\w-]+)", " ".join(re.findall(r"^#SBATCH.*", page.read_text("utf-8"), re.MULTILINE)))
    )
    for span in inline(page):
        for name, value in re.findall(r"(?:^|[ …])--([\w.-]+)(?:=(\S*))?", span):
            if name.startswith("config."):
                assert name.removeprefix("config.") in settings, f"{page.name}: there is no {span}"
            elif name == "config":
                path, _, argument = value.partition(":")
                module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
                module.get_config(*[argument] if argument else [])
            else:
                assert name in flags | of_others, f"{page.name}: there is no {span}"


def known_settings() -> set[str]:
    """The settings of all configurations, by their path."""
    names = set()
    for path in (ROOT / "configs").glob("[!_]*.py"):
        config = importlib.import_module(f"configs.{path.stem}").get_config()
        names |= {*config, *(f"{name}.{inner}" for name in config for inner in getattr(config[name], "keys", tuple)())}
    return names


def known_flags() -> set[str]:
    """The flags that binaries and tools define."""
    sources = "".join(path.read_text() for folder in ("experiments", "tools") for path in (ROOT / folder).rglob("*.py"))
    return set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", sources)) | set(re.findall(r"\"--([\w-]+)\"", sources))
