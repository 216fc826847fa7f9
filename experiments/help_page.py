"""The help of a binary: what it does, its flags, its configurations, and every setting with type and meaning."""

import ast
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict

from experiments import settings

WIDEST = 100
ASKS = ("--help", "-help", "-h", "--helpshort", "-helpshort")
# As the binaries are started within a checkout, and as they are once they are installed.
MODULE, COMMAND = "python -m experiments.", "clipbias "


def is_asked(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for help instead of work."""
    return any(word in ASKS for word in arguments[1:])


def render(binary: str, doc: str, program: str, config: ConfigDict | None, given: str = "", *, names: str = "") -> str:
    """The help of a binary.

    Args:
      binary: its name, such as "train".
      doc: its docstring.
      program: how it was started, the first word of the command line.
      config: the configuration whose settings are listed; `None` where it takes none.
      given: the file of the configuration, with its preset.
      names: what stands behind its flags where it takes no configuration.
    """
    installed = program.startswith(COMMAND)
    start = f"{COMMAND}{binary}" if installed else f"{MODULE}{binary}"
    summary, _, rest = doc.strip().partition("\n")
    parts = [f"{start}: {summary}"]
    if config is None:
        parts.append(f"usage: {start} [FLAGS] {names}")
    else:
        parts.append(f"usage: {start} [--config=FILE[:PRESET]] [--config.NAME=VALUE …] [--workdir=FOLDER] [FLAGS]")
    rest = textwrap.dedent(rest).strip("\n")
    parts.append(rest.replace(MODULE, COMMAND) if installed else rest)
    parts.append("\n".join(["Flags", "", *own_flags(program, with_workdir=config is not None)]))
    if config is not None:
        parts.append("\n".join(["Configurations, for --config", "", *configurations(binary)]))
        parts += _settings(config, binary, given)
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings(config: ConfigDict, binary: str, given: str) -> Iterator[str]:
    path = given.partition(":")[0]
    name = path.rpartition("/")[2].removesuffix(".py")
    found = settings.describe(config, name, binary)
    for common, title in ((False, f"Settings of {given}"), (True, "Settings that every configuration has")):
        lines = [title, ""]
        for one in found:
            if one.common == common:
                lines += _entry(f"--config.{one.name}", f"{one.kind}; {settings.shown(one.default)}", one.meaning)
        if len(lines) > 2:
            yield "\n".join(lines)


def own_flags(program: str, *, with_workdir: bool = True) -> Iterator[str]:
    """The flags of a binary that are no settings, without those of libraries."""
    by_module = flags.FLAGS.flags_by_module_dict()
    for module in (*(["experiments.common"] if with_workdir else []), program, "__main__"):
        for flag in by_module.get(module, ()):
            if flag.name != "config" and not flag.name.startswith("config."):
                default = "" if flag.default in (None, "") else f"; {flag.default}"
                yield from _entry(f"--{flag.name}", f"{flag.flag_type()}{default}", flag.help or "")


def of_binary(binary: str) -> list[str]:
    """The configurations of this package that are for a binary: its own, and those that start from it."""
    return [binary, *(name for name in settings.files() if name != binary and binary in settings.ancestors(name))]


def summary(name: str) -> str:
    """The first paragraph of a configuration's docstring, on one line."""
    doc = ast.get_docstring(ast.parse((settings.FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return " ".join(doc.partition("\n\n")[0].split())


def configurations(binary: str) -> Iterator[str]:
    """The configurations of a binary and their presets."""
    for name in of_binary(binary):
        yield from _entry(f"configs/{name}.py", "", summary(name))
        known = settings.presets(name)
        if len(known) > 8:
            yield from _wrapped(f"{name}.py:PRESET, one of {', '.join(known)}")
        else:
            for preset, meaning in known.items():
                yield from _wrapped(f"{name}.py:{preset}: {meaning}")


def _entry(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"  {name}  ({kind})" if kind else f"  {name}"
    yield from _wrapped(meaning)


def _wrapped(text: str) -> Iterator[str]:
    width = max(50, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))
    yield from textwrap.wrap(" ".join(text.split()), width, initial_indent=" " * 6, subsequent_indent=" " * 6)
