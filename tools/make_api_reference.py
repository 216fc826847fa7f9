"""Writes docs/api.md, the reference of the public API, from docstrings and annotations.

    python -m tools.make_api_reference docs/api.md

The sources are read, not imported, so the page is the same whatever is installed. A test compares it with the file.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from griffe import ParameterKind as Kind

from clipbias.files import write_text

ROOT = Path(__file__).resolve().parents[1]

# What each part offers: names as a user writes them after the part's own. Other modules are their workings.
PUBLIC: dict[str, tuple[str, ...]] = {
    "clipbias": ("load", "Task", "relevancy", "save_adapter", "load_adapter", "Adaptation", "ClipbiasError"),
    "clipbias.clip": (
        *("Clip", "ClipConfig", "VisionConfig", "TextConfig", "Preprocessing", "encode_image", "encode_text"),
        *("TextTokens", "PackedTokens", "pack", "encode_packed_text", "LayerView", "ClipModule", "init_params"),
        "abstract_params",
    ),
    "clipbias.tuning": (
        *("Method", "PromptText", "make_method", "Classifier", "cross_entropy", "parameter_count", "adapter.Adapter"),
        *("zero_shot.ZeroShot", "coop.CoOp", "vpt.VPT", "ivlp.IVLP", "maple.MaPLe", "taskres.TaskRes"),
        "bias.BiasTuning",
    ),
    "clipbias.data": ("load", "Dataset", "Split", "few_shot", "pipeline.train_batches", "pipeline.test_batches"),
    "clipbias.training": (
        *(
            "single.train_and_evaluate",
            "single.evaluate",
            "settings.Recipe",
            "settings.GridSettings",
            "loop.train",
            "loop.Run",
            "loop.Trained",
        ),
        *("grid.Grid", "mesh.make_mesh", "mesh.start_distributed", "results.Results"),
    ),
    "clipbias.explain": (
        *("streaming.Relevancy", "relevancy.plain_relevancy", "baselines.explanations", "attention.entropy"),
        *("attention.distance_and_entropy", "decomposition.parts", "interventions.intervention"),
        *("perturbation.perturbed_predictions", "perturbation.area_under_curve", "study.Study", "study.Model"),
        *("study.Options", "study.Devices", "run.run_study", "verdict.verdict", "results.load_results"),
    ),
    "clipbias.report": (
        *("summarize", "Summary", "to_markdown", "to_latex", "to_html", "to_text", "accuracy_figure"),
        *("write_report", "write_overview", "write_interpretation", "Overlay", "save_overlay"),
    ),
    "clipbias.export": ("export", "natural_form", "fold"),
}
JOINED = "\N{NO-BREAK SPACE}"
OPTIONS: Any = {"warnings": False, "returns_named_value": False, "returns_multiple_items": False}
TITLES = {"other parameters": "Options", "parameters": "Arguments", "attributes": "Attributes", "raises": "Raises"}


def reference() -> str:
    """The whole page."""
    package: Any = griffe.load(
        "clipbias", search_paths=[str(ROOT)], docstring_parser="google", docstring_options=OPTIONS, resolve_aliases=True
    )
    parts = [
        "# API reference\n\nMade from the docstrings by `python -m tools.make_api_reference docs/api.md`; change those."
        " Letters in shapes: `B` images, `C` classes, `N` tokens, `M` patches, `T`/`V` text and vision prompts, `L`"
        " layers, `H` heads, `K` width of a head, `D` width, `d` joint width."
    ]
    for name, members in PUBLIC.items():
        part = package[name.removeprefix("clipbias.")] if name != "clipbias" else package
        parts.append(f"## {name}\n\n{_opening(part)}")
        for member in members:
            found = _resolved(part, member)
            parts += [text for text in (*_heading(name, member, found), *_body(found)) if text]
    return "\n\n".join(parts) + "\n"


def _resolved(part: Any, name: str) -> Any:
    """The object that a public name stands for, where it is written."""
    found = part[name]
    found = found.final_target if found.is_alias else found
    return found[name] if found.is_module else found  # a function that its file is named after


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
    if found.docstring:
        # Several names may share a line; the parser takes what follows a space for a type.
        found.docstring.value = re.sub(r"^ +\w+(, \w+)+:", _joined, found.docstring.value, flags=re.MULTILINE)
        yield from map(_section, found.docstring.parsed)
    if found.is_class:
        members = [_member(member) for member in found.members.values() if _is_shown(member)]
        if members:
            yield "**Methods and properties**\n\n" + "\n".join(members)


def _joined(names: re.Match) -> str:
    return names[0].replace(", ", f",{JOINED}")


def _is_shown(member: Any) -> bool:
    return not member.name.startswith("_") and bool(member.docstring) and (member.is_function or _is_property(member))


def _is_property(member: Any) -> bool:
    return "property" in member.labels


def _member(member: Any) -> str:
    head = member.name if _is_property(member) else _signature(member, width=10_000)
    return f"- `{head}`: {_line(member.docstring.parsed[0].value)}"


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
    raise ValueError(f"a docstring has a section {kind!r}, which this page does not show")


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


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: name the file to write: python -m tools.make_api_reference docs/api.md")
    write_text(sys.argv[1], reference())
