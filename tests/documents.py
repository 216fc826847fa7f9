"""The README and the pages beside it: the code blocks and the commands in them."""

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("bash", "python")
ELLIPSIS = "…"

# What a command line begins with. A program that is not listed here is refused: nobody checks what it does.
PROGRAMS = ("python", ".", "pip", "srun", "gcloud", "hf")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
      page: where it stands.
      text: as it is written, on one line.
      variables: the environment variables set before it.
      words: program and arguments as a shell would split them.
      wrapper: the program that starts it elsewhere, with its own arguments; empty where there is none.
    """

    page: str
    text: str
    variables: dict[str, str]
    words: tuple[str, ...]
    wrapper: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """What `python -m` runs, or nothing."""
        return self.words[2] if self.words[:2] == ("python", "-m") else ""

    @property
    def arguments(self) -> list[str]:
        """What that module is given; left-out arguments are left out."""
        return [word for word in self.words[3:] if word != ELLIPSIS]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return [code for found, code in fences(page) if found == language]


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and content of every fenced code block."""
    return re.findall(r"^```(.*?)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def inline(page: Path) -> list[str]:
    """The code spans of a page, those in its fenced blocks excepted."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def commands(page: Path) -> list[Command]:
    """Every command of a page: in shell blocks, in indented blocks, in code spans, in comments of Python blocks."""
    text = page.read_text(encoding="utf-8")
    lines = [line for code in blocks(page, "bash") for line in code.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^ {4}(\S.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    lines += [span for span in inline(page) if span.split()[0] in PROGRAMS or "python -m" in span]
    comments = [line for code in blocks(page, "python") for line in code.splitlines() if line.startswith("#")]
    lines += [line[line.index("python -m") :] for line in comments if "python -m" in line]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    found = [_command(page.name, part) for part in parts if part and not part.startswith("#")]
    return list({command.text: command for command in found}.values())


def _command(page: str, text: str) -> Command:
    words = shlex.split(text, comments=True)
    variables = {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    wrapper: list[str] = []
    if words[0] == "srun":  # what it starts comes after its own options
        while words[0] != "python":
            wrapper.append(words.pop(0))
    return Command(page, " ".join(text.split()), variables, tuple(words), tuple(wrapper))
