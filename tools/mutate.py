"""Plants bugs and runs the tests: bugs that survive show gaps of the tests.

A seed draws the bugs, over the packages in proportion to their lines: a sign, a comparison, an axis, a number that is
larger by 1, a flag, two arguments swapped, a divisor or a term left out, a condition turned round. Each is planted in a
clone of the last commit. The tests run that name its module most, then those of its package, then all, until one fails:

    python -m tools.mutate --count=60 --seed=0 | tee bugs.jsonl
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OPPOSITES: dict[type[ast.AST], str] = {
    **{ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.And: " or ", ast.Or: " and "},
    **{ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="},
}


class Bug(NamedTuple):
    """A change of a file.

    Attributes:
      file: from the repository's root.
      line: from 1, where the change begins.
      kind: of the bug, in a word.
      start: of the bytes that are replaced.
      stop: after the last of them.
      new: what replaces them.
    """

    file: str
    line: int
    kind: str
    start: int
    stop: int
    new: str


def bugs_in(file: str, content: bytes) -> Iterator[Bug]:
    """All bugs that can be planted in a file."""
    lengths = [0]
    for line in content.splitlines(keepends=True):
        lengths.append(lengths[-1] + len(line))
    tree = ast.parse(content)
    types = [getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")]
    untouched = {id(part) for root in types if root is not None for part in ast.walk(root)}

    def start(node: ast.expr) -> int:
        return lengths[node.lineno - 1] + node.col_offset

    def stop(node: ast.expr) -> int:
        return lengths[(node.end_lineno or 1) - 1] + (node.end_col_offset or 0)

    def text(node: ast.expr) -> str:
        return content[start(node) : stop(node)].decode()

    def bug(kind: str, node: ast.expr, new: str, last: ast.expr | None = None) -> Bug:
        return Bug(file, node.lineno, kind, start(node), stop(last or node), new)

    for node in ast.walk(tree):
        if id(node) in untouched:
            continue
        match node:
            case ast.BinOp(left=left, right=right, op=op) if type(op) in OPPOSITES:
                yield bug("sign", node, f"({text(left)}) {OPPOSITES[type(op)]} ({text(right)})")
                yield bug("divisor" if isinstance(op, ast.Div) else "term", node, f"({text(left)})")
            case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
                yield bug("sign", node, text(operand))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPPOSITES:
                yield bug("comparison", node, f"{text(left)} {OPPOSITES[type(op)]} {text(right)}")
            case ast.keyword(arg="axis", value=ast.Constant(value=int()) | ast.UnaryOp() as axis):
                yield bug("axis", axis, f"{text(axis)} {'-' if isinstance(axis, ast.UnaryOp) else '+'} 1")
            case ast.Constant(value=bool() as flag):
                yield bug("flag", node, str(not flag))
            case ast.Constant(value=int() as number):
                yield bug("number", node, str(number + 1))
            case ast.Call(args=[first, second, *_]) if text(first) != text(second):
                if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
                    yield bug("arguments", first, f"{text(second)}, {text(first)}", second)
            case ast.If(test=test) | ast.IfExp(test=test):
                yield bug("condition", test, f"not ({text(test)})")
            case ast.BoolOp(op=op, values=values):
                yield bug("condition", node, OPPOSITES[type(op)].join(map(text, values)))


def draw(root: Path, count: int, seed: int) -> list[Bug]:
    """Different bugs of the package: a folder by its lines, then a kind, then a place."""
    lines: dict[str, int] = defaultdict(int)
    bugs: dict[str, dict[str, list[Bug]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((root / "clipbias").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        content = path.read_bytes()
        lines[path.parent.name] += content.count(b"\n")
        for bug in bugs_in(file, content):
            bugs[path.parent.name][bug.kind].append(bug)
    generator = random.Random(seed)
    folders = sorted(bugs)
    drawn: dict[Bug, None] = {}
    while len(drawn) < count:
        (folder,) = generator.choices(folders, [lines[name] for name in folders])
        kind = generator.choice(sorted(bugs[folder]))
        drawn[generator.choice(bugs[folder][kind])] = None
    return list(drawn)


def test_files(root: Path, file: str) -> Iterator[list[str]]:
    """Where a bug is looked for, one after another: four files that name its module, its package's, all."""
    path = Path(file)
    word = re.compile(rf"\b{path.parent.name if path.stem == '__init__' else path.stem}\b")

    def score(test: Path) -> int:
        near = 20 * (path.stem in test.stem) + 5 * (path.parent.name == test.parent.name)
        return near + len(word.findall(test.read_text(encoding="utf-8")))

    files = [test for test in sorted((root / "tests").rglob("test_*.py")) if test.parent.name != "accelerators"]
    yield [str(test.relative_to(root)) for test in sorted(files, key=score, reverse=True)[:4]]
    if (root / "tests" / path.parts[1]).is_dir():
        yield [f"tests/{path.parts[1]}"]
    yield ["tests"]


def failure(root: Path, bug: Bug, workers: int) -> str | None:
    """The first test that fails with a bug, or none."""
    path = root / bug.file
    content = path.read_bytes()
    path.write_bytes(content[: bug.start] + bug.new.encode() + content[bug.stop :])
    try:
        for tests in test_files(root, bug.file):
            command = [sys.executable, "-m", "pytest", "-x", f"-n{workers}", "-m", "not long", *tests]
            environment = {**os.environ, "PYTHONPATH": str(root)}
            done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
                return (failed or [done.stdout[-200:] + done.stderr[-200:]])[0]
    finally:
        path.write_bytes(content)
        # Of the same second and size as the file with the bug, this would be taken for compiled already.
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    return None


def main(arguments: list[str] | None = None) -> None:
    """Prints a JSON line for each bug."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="bugs")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--workers", type=int, default=2, help="processes that run tests")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        root = Path(folder)
        for bug in draw(root, options.count, options.seed):
            old = (root / bug.file).read_bytes()[bug.start : bug.stop].decode()
            row = {"file": bug.file, "line": bug.line, "kind": bug.kind, "old": old, "new": bug.new}
            print(json.dumps(row | {"failed": failure(root, bug, options.workers)}), flush=True)


if __name__ == "__main__":
    main()
