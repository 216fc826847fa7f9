"""Writes a page of the public API from docstrings and annotations: what the packages' `__all__` name.

    python -m tools.make_api_reference build/api.md

The page is not kept in the repository: `.ci/run` makes it, and fails where a docstring cannot be rendered.
"""

import ast
import importlib
import inspect
import logging
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from griffe import ParameterKind as Kind

import clipbias
from clipbias.errors import ClipbiasError
from clipbias.tuning import METHODS
from tools.pages import write_page

ROOT = Path(__file__).resolve().parents[1]
JOINED = "\N{NO-BREAK SPACE}"
# Types are in the signatures, and `_sections` looks for the names of arguments itself.
OPTIONS: Any = {
    "warn_missing_types": False,
    "warn_unknown_params": False,
    "returns_named_value": False,
    "returns_multiple_items": False,
}
TITLES = {"other parameters": "Options", "parameters": "Arguments", "attributes": "Attributes", "raises": "Raises"}


def packages() -> list[str]:
    """`clipbias` and each of its packages."""
    inner = [module.name for module in pkgutil.iter_modules(clipbias.__path__) if module.ispkg]
    return ["clipbias", *(f"clipbias.{name}" for name in inner)]


def public(package: str) -> dict[str, Any]:
    """The functions and classes that a package's `__all__` names, and the built-in methods among those of `tuning`."""
    module = importlib.import_module(package)
    found = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    if package == "clipbias.tuning":
        found |= {kind.__name__: kind for kind, _ in METHODS.values()}
    return {name: value for name, value in found.items() if getattr(value, "__module__", "").startswith("clipbias.")}


def reference() -> str:
    """The whole page.

    Raises:
      ClipbiasError: a public name has no docstring, or one that cannot be rendered.
    """
    complaints = _Complaints()
    logging.getLogger("griffe").addHandler(complaints)
    tree: Any = griffe.load("clipbias", search_paths=[str(ROOT)], docstring_parser="google", docstring_options=OPTIONS)
    parts = [
        "# API reference\n\nMade from the docstrings by `python -m tools.make_api_reference`; change those."
        " Letters in shapes: `B` images, `C` classes, `N` tokens, `M` patches, `T`/`V` text and vision prompts, `L`"
        " layers, `H` heads, `K` width of a head, `D` width, `d` joint width."
    ]
    shown: set[str] = set()
    for package in packages():
        part = tree[package.removeprefix("clipbias").removeprefix(".")] if package != "clipbias" else tree
        parts.append(f"## {package}\n\n{_opening(part)}")
        for name, value in public(package).items():
            written = f"{value.__module__}.{value.__qualname__}"
            if written in shown:
                continue
            shown.add(written)
            found = tree[written.removeprefix("clipbias.")]
            if not found.docstring:
                raise ClipbiasError(f"{package}.{name} is public and has no docstring; write one in {found.filepath}.")
            parts += [text for text in (*_heading(package, name, found), *_body(found)) if text]
    if complaints.lines:
        raise ClipbiasError("a docstring cannot be rendered; correct it.\n" + "\n".join(complaints.lines))
    return "\n\n".join(parts) + "\n"


class _Complaints(logging.Handler):
    """Keeps what griffe warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _opening(part: Any) -> str:
    return part.docstring.value.partition("\n\n")[0]


def _heading(part: str, name: str, found: Any) -> Iterator[str]:
    where = Path(found.filepath).relative_to(ROOT)
    yield f"### {part}.{name}"
    yield f"```python\n{_signature(found)}\n```"
    yield f"In [{where.as_posix()}](../{where.as_posix()})."


def _signature(found: Any, *, width: int = 100) -> str:
    """Name, arguments and what comes back; one argument per line where they do not fit."""
    of_class = found.is_class or (found.parent.is_class and "staticmethod" not in found.labels)
    written: list[str] = []
    for parameter in list(found.parameters)[of_class and bool(list(found.parameters)) :]:
        if parameter.kind is Kind.keyword_only and "*" not in [text[:1] for text in written]:
            written.append("*")
        mark = {Kind.var_positional: "*", Kind.var_keyword: "**"}.get(parameter.kind, "")
        annotation = "" if parameter.annotation is None else f": {parameter.annotation}"
        default = "" if parameter.default is None or mark else f" = {parameter.default}"
        written.append(f"{mark}{parameter.name}{annotation}{default}")
    name = f"class {found.name}" if found.is_class else found.name
    returned = "" if found.is_class or found.returns is None else f" -> {found.returns}"
    line = f"{name}({', '.join(written)}){returned}"
    if found.is_class and not written:
        return name
    return line if len(line) <= width else f"{name}(\n" + "".join(f"    {text},\n" for text in written) + f"){returned}"


def _body(found: Any) -> Iterator[str]:
    yield from map(_section, _sections(found))
    if found.is_class:
        own = [*found.members.values(), *(member for base in _parts(found) for member in base.members.values())]
        members = [_member(member) for member in own if _is_shown(member)]
        if members:
            yield "**Methods and properties**\n\n" + "\n".join(members)


def _sections(found: Any) -> list[Any]:
    """The parts of a docstring."""
    # Several names may share a line; the parser takes what follows a space for a type.
    found.docstring.value = re.sub(r"^ +\w+(, \w+)+:", _joined, found.docstring.value, flags=re.MULTILINE)
    if found.is_function:
        known = {parameter.name for parameter in found.parameters}
        listed = [section.value for section in found.docstring.parsed if section.kind.value == "parameters"]
        for name in re.findall(r"\w+", " ".join(item.name for items in listed for item in items)):
            if name not in known:
                raise ClipbiasError(
                    f"{found.path} has no argument {name!r}, which its docstring describes; correct it."
                )
    return found.docstring.parsed


def _joined(names: re.Match) -> str:
    return names[0].replace(", ", f",{JOINED}")


def _parts(found: Any) -> list[Any]:
    """The bases of a class that are no public classes themselves: a part of it in a file of its own."""
    known = {name for package in packages() for name in public(package)}
    return [base for base in found.mro() if base.name not in known]


def _is_shown(member: Any) -> bool:
    return not member.name.startswith("_") and bool(member.docstring) and (member.is_function or _is_property(member))


def _is_property(member: Any) -> bool:
    return "property" in member.labels


def _member(member: Any) -> str:
    head = member.name if _is_property(member) else _signature(member, width=10_000)
    return f"- `{head}`: {_line(_sections(member)[0].value)}"


def _section(section: Any) -> str:
    kind = section.kind.value
    if kind == "text":
        return "\n\n".join(map(_paragraph, inspect.cleandoc(section.value).split("\n\n")))
    if kind == "admonition":  # a sentence that ends with a colon, and what it announces
        return f"{section.title}:\n\n{_fenced(inspect.cleandoc(section.value.description))}"
    if kind == "returns":
        return "**Returns** " + " ".join(_line(item.description) for item in section.value)
    if kind in TITLES:
        items = [
            f"- `{item.annotation if kind == 'raises' else item.name.replace(JOINED, ' ')}`: {_line(item.description)}"
            for item in section.value
        ]
        return f"**{TITLES[kind]}**\n\n" + "\n".join(items)
    raise ClipbiasError(f"a docstring has a section {kind!r}, which this page does not show.")


def _paragraph(text: str) -> str:
    return _fenced(textwrap.dedent(text)) if text.startswith("    ") else text


def _fenced(code: str) -> str:
    try:
        ast.parse(code)
    except SyntaxError:
        return f"```text\n{code}\n```"
    return f"```python\n{code}\n```"


def _line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    write_page("tools.make_api_reference", __doc__, lambda _: reference())


if __name__ == "__main__":
    main()
