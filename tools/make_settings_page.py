"""Writes the page of settings, docs/settings.md, from the configurations and the comments in them.

    python -m tools.make_settings_page docs/settings.md

A test holds the page to the configurations: change the comments there, and run this again.
"""

from collections.abc import Sequence

from clipbias.cli import COMMANDS
from clipbias.report.table import MISSING
from experiments import help_page, settings
from experiments.settings import Setting
from tools.pages import write_page

OPENING = """# Settings

<!-- Made by `python -m tools.make_settings_page docs/settings.md` from the comments in configs/; change those. -->

Every command takes a configuration, such as `--config=configs/table1.py`, and changes of single settings, such as
`--config.learning_rate=0.01`; its `--help` lists them with their types and defaults, and so does this page. A colon
picks a variant where a file has several: `--config=configs/demo.py:full` ([presets](#presets)). A file in the working
folder is taken before one of the package that has the same name. Lists are written as Python does,
`--config.seeds="(1, 2, 3)"`, or, with one entry, `--config.seeds=1`. Of a setting that is given twice the last one
counts. What a run was given is in its `config.json`, whole."""

COMMON = """## Settings that every configuration has

Where a command's own configuration has another default, or means something else by a setting, it is listed there
again."""

PRESETS = "## Presets"


def page() -> str:
    """The whole page."""
    binaries = [name for name in COMMANDS if name in settings.files()]
    common = {
        one.name: one for one in settings.describe(settings.load("configs/base.py"), settings.COMMON, settings.COMMON)
    }
    parts = [OPENING, COMMON, table(list(common.values()))]
    for binary in binaries:
        path = f"configs/{binary}.py"
        found = settings.describe(settings.load(path), binary, binary)
        own = [one for one in found if not one.common]
        own += [one for one in found if one.common and differs(one, common[one.name])]
        parts += [f"## {binary}", f"`clipbias {binary}`, `{path}`: {sentence(binary)}", table(own)]
        others = help_page.of_binary(binary)[1:]
        if others:
            parts.append("Other configurations of it:")
            parts.append("\n".join(f"- `configs/{name}.py`: {sentence(name)}" for name in others))
    parts.append(PRESETS)
    for name in settings.files():
        if known := settings.presets(name):
            rows = [f"| `configs/{name}.py:{preset}` | {cell(meaning)} |" for preset, meaning in known.items()]
            parts.append("\n".join(["| preset | what it is |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def differs(one: Setting, other: Setting) -> bool:
    """Whether a common setting has another default or meaning in a command's own configuration."""
    return (one.default, one.meaning) != (other.default, other.meaning)


def table(found: Sequence[Setting]) -> str:
    """Settings, one a row."""
    rows = []
    for one in found:
        default = MISSING if one.default in ("", None, ()) else f"`{settings.shown(one.default)}`"
        rows.append(f"| `{one.name}` | {cell(one.kind)} | {default} | {cell(one.meaning)} |")
    return "\n".join(["| setting | type | default | what it is |", "| --- | --- | --- | --- |", *rows])


def sentence(name: str) -> str:
    """The first paragraph of a configuration's docstring."""
    return help_page.summary(name).removesuffix(".") + "."


def cell(text: str) -> str:
    """A text as a cell of a table."""
    return text.replace("|", r"\|")


def main() -> None:
    write_page("tools.make_settings_page", __doc__, lambda _: page())


if __name__ == "__main__":
    main()
