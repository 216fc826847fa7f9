"""The README and the pages beside it: the code blocks and the commands in them."""

import dataclasses
import itertools
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("bash", "python", "text", "toml", "math")
ELLIPSIS = "…"

# What a command line begins with. A program that is not listed here is refused: nobody checks what it does.
PROGRAMS = ("clipbias", "python", ".", "cd", "git", "pip", "srun", "gcloud", "hf")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
      page: where it stands.
      variables: the environment variables set before it.
      words: program and arguments as a shell would split them.
    """

    page: str
    variables: dict[str, str]
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The command on one line."""
        return " ".join(self.words)

    @property
    def module(self) -> str:
        """What `python -m` or `clipbias` runs, or nothing."""
        if self.words[0] == "clipbias":
            return f"experiments.{self.words[1]}"
        return self.words[2] if self.words[:2] == ("python", "-m") else ""

    @property
    def arguments(self) -> list[str]:
        """What that module is given; left-out arguments are left out."""
        return [word for word in self.words[2 if self.words[0] == "clipbias" else 3 :] if word != ELLIPSIS]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return [code for fence, code in fences(page) if fence == language]


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and content of every fenced code block."""
    return re.findall(r"^```(.*?)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def files(page: Path) -> dict[str, str]:
    """The Python blocks that a page shows as files, by their paths: the last code span of the paragraph before."""
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(r"`([\w/]+\.py)`[^`]*\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def inline(page: Path) -> list[str]:
    """The code spans of a page, those in its fenced blocks excepted."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    spans = [span for paragraph in prose.split("\n\n") for span in re.findall(r"`([^`]+)`", paragraph)]
    return [" ".join(span.split()) for span in spans]


def commands(page: Path) -> list[Command]:
    """Every command of a page: in shell blocks, in indented blocks, in code spans, in comments of Python blocks."""
    text = page.read_text(encoding="utf-8")
    lines = [line for code in blocks(page, "bash") for line in code.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += re.findall(r"^ {4}(\S.*)$", prose.replace("\\\n", " "), re.MULTILINE)
    spans = [span for span in inline(page) if span != "clipbias"]  # the package
    lines += [span for span in spans if span.split()[0] in PROGRAMS or "python -m" in span]
    comments = [line for code in blocks(page, "python") for line in code.splitlines() if line.startswith("#")]
    lines += [match[0] for line in comments if (match := re.search(r"(python -m|\bclipbias [a-z]).*", line))]
    return list({command.text: command for line in lines for command in _commands(page.name, line)}.values())


def _commands(page: str, line: str) -> list[Command]:
    """The commands of one line, those that another program is given to start among them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&")
    lexer.whitespace_split = True
    tokens = list(lexer)
    commands_of_page = []
    for joined, words in itertools.groupby(tokens, lambda token: token == "&&"):
        if not joined:
            commands_of_page += _command(page, list(words))
    return commands_of_page


def _command(page: str, words: list[str]) -> list[Command]:
    variables = {}
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    inside = [place for place, word in enumerate(words) if place and word in ("python", "clipbias")]
    if words[0] == "srun" and inside:  # what it starts comes after its own options
        (start, *_) = inside
        return [Command(page, variables, ("srun",)), *_command(page, words[start:])]
    if words[0] == "python3" or words[0].endswith("/python"):  # as it is called before there is an environment
        words[0] = "python"
    inner = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    outer = Command(page, variables, tuple(words))
    return [outer, *(command for line in inner if line != ELLIPSIS for command in _commands(page, line))]
