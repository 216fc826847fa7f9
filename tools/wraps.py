"""Finds docstrings and comments whose lines are broken where a paragraph has no reason to, and fills them anew.

    python -m tools.wraps clipbias tools tests          # prints them
    python -m tools.wraps --fill clipbias tools tests   # rewrites them

A formatter of code leaves text as it is, so a paragraph that was edited, moved or indented keeps line ends that belong
to another width: a word alone on a line, or a short line in the middle of a sentence.
"""

import argparse
import ast
import io
import itertools
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipbias.io import write_text

WIDTH = 120  # columns; `line-length` of pyproject.toml
NARROW = 100  # a paragraph of no longer lines is narrow by choice

_ITEM = re.compile(r"- |\* |\d+\. |[*\w`\"'./-]+(?:, [*\w`]+)*: ")  # of a list, or "name: what it is"
_ALONE = re.compile(r"[|>$#]|\.\. |```|---|={3}|~{3}|python |from |import |\w+ = ")  # tables, commands, code


@dataclass
class Paragraph:
    """Consecutive lines of text, at least two.

    Attributes:
      first: The number of the first line in its file, from 1.
      lines: The lines without their end, with indentation and, in comments, `# `.
      prefix: What the lines after the first begin with.
      summary: Whether it opens a docstring.
    """

    first: int
    lines: list[str]
    prefix: str
    summary: bool = False

    def broken(self) -> bool:
        """Whether some line would have held the beginning of the next one, or a summary ends with a word or two alone.

        A line would have held it where the next line's first word fits into the width that the paragraph itself has, or
        the whole next line fits into `WIDTH`: a paragraph that is narrow throughout is somebody's choice.
        """
        longest = max(map(len, self.lines))
        for line, after in itertools.pairwise(self.lines):
            following = after.removeprefix(self.prefix).split()
            if len(line) + 1 + len(following[0]) <= longest:
                return True
            if len(line) + 1 + len(" ".join(following)) <= WIDTH and (len(self.lines) == 2 or longest > NARROW):
                return True
        return self.summary and len(self.lines) == 2 and len(self.lines[1].rstrip("\"'").split()) <= 2

    def filled(self) -> list[str]:
        """The same words in lines of at most `WIDTH` columns; a summary that is too long needs other words."""
        start = re.match(r"\s*(?:# )?", self.lines[0])
        assert start is not None  # every text begins with nothing at least
        return textwrap.wrap(
            " ".join(line.strip().removeprefix("# ") for line in self.lines),
            WIDTH,
            initial_indent=start[0],
            subsequent_indent=self.prefix,
            break_long_words=False,
            break_on_hyphens=False,
        )


def docstrings(source: str) -> Iterator[tuple[int, list[str]]]:
    """First line's number and lines of every docstring, and of every string that stands alone as one would."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            yield node.lineno, lines[node.lineno - 1 : node.end_lineno]


def comments(source: str) -> Iterator[tuple[int, list[str]]]:
    """First line's number and lines of every block of comments that stand on lines of their own, at one depth."""
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        line = token.line.rstrip("\n")
        row, column = token.start
        if block and (row != block[-1][0] + 1 or len(block[-1][1]) - len(block[-1][1].lstrip()) != column):
            yield block[0][0], [text for _, text in block]
            block = []
        block.append((row, line))
    if block:
        yield block[0][0], [text for _, text in block]


def paragraphs(first: int, lines: list[str], *, comment: bool) -> Iterator[Paragraph]:
    """The paragraphs of one docstring or comment; code, tables and headings are none."""
    bare = [line.replace("#", " ", 1) if comment else line for line in lines]
    texts = [line.strip().removeprefix('r"""').lstrip('"') for line in bare]
    depths = [len(line) - len(line.lstrip()) for line in bare]
    start = 0
    while start < len(lines):
        stop, depth = start + 1, depths[start]
        is_item = bool(_ITEM.match(texts[start]))
        if not texts[start] or _ALONE.match(texts[start]):
            pass
        elif depth >= depths[0] + 4 and start > 0 and not is_item:  # code, to its end
            while stop < len(lines) and (not texts[stop] or depths[stop] >= depths[0] + 4):
                stop += 1
        else:
            hanging = is_item and stop < len(lines) and depths[stop] > depth
            inner = depths[stop] if hanging else depth
            while stop < len(lines) and _continues(texts[stop - 1], texts[stop]):
                back = stop + 1 < len(lines) and depths[stop + 1] == depth and _continues(texts[stop], texts[stop + 1])
                if depths[stop] > depth and back:  # a line that a formatter tore off: the next one goes on
                    inner = depth
                elif depths[stop] != inner:
                    break
                stop += 1
            if stop - start > 1 and not any("  " in text for text in texts[start:stop]):
                prefix = " " * (inner - 2) + "# " if comment else " " * inner
                summary = not comment and start == 0
                yield Paragraph(first + start, lines[start:stop], prefix, summary=summary)
        start = stop


def _continues(before: str, text: str) -> bool:
    """Whether a line goes on with the line before rather than beginning something new."""
    return bool(text) and not before.endswith(":") and not _ALONE.match(text) and not _ITEM.match(text)


def found(source: str) -> list[Paragraph]:
    """All paragraphs of a Python file that are broken badly, in order."""
    every = [p for first, lines in docstrings(source) for p in paragraphs(first, lines, comment=False)]
    every += [p for first, lines in comments(source) for p in paragraphs(first, lines, comment=True)]
    return sorted((p for p in every if p.broken()), key=lambda p: p.first)


def fill(source: str) -> str:
    """The source with those paragraphs filled."""
    lines = source.splitlines()
    for paragraph in reversed(found(source)):
        start = paragraph.first - 1
        lines[start : start + len(paragraph.lines)] = paragraph.filled()
    return "".join(f"{line}\n" for line in lines)


def files_in(places: Iterable[str | Path]) -> Iterator[Path]:
    """Python files: those named, and those below named folders."""
    for place in map(Path, places):
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.wraps", description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="+", help="Python files and folders")
    parser.add_argument("--fill", action="store_true", help="rewrite what is found")
    given = parser.parse_args()
    status = 0
    for path in files_in(given.places):
        source = path.read_text(encoding="utf-8")
        for paragraph in found(source):
            status = 1
            print(f"{path}:{paragraph.first}")
            if not given.fill:
                print(*paragraph.lines, sep="\n")
        if given.fill and (new := fill(source)) != source:
            write_text(path, new)
    return 0 if given.fill else status


if __name__ == "__main__":
    sys.exit(main())
