"""A notebook as a page of the site: its texts, its code, and what that shows."""

import base64
import json
import re
from typing import Any

CODE = "~~~~"


def page(notebook: str, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures that it links to by name.

    Args:
      notebook: the content of its file.
      name: what its pictures' names begin with.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(notebook)["cells"]:
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"{CODE}python\n{source}\n{CODE}")
        for output in cell["outputs"]:
            parts.append(_shown(output, pictures, name))
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def _shown(output: dict[str, Any], pictures: dict[str, bytes], name: str) -> str:
    """What one output shows, in the richest form that a page can hold."""
    if output["output_type"] == "stream":
        return _listing(_text(output["text"]))
    data = output.get("data", {})
    if "image/png" in data:
        picture = f"{name}-{len(pictures) + 1}.png"
        pictures[picture] = base64.b64decode(_text(data["image/png"]))
        return f"![{name}]({picture})"
    if "text/html" in data:  # a blank line would end it
        return re.sub(r"\n\s*\n", "\n", _text(data["text/html"]).strip())
    return _listing(_text(data.get("text/plain", "")))


def _listing(text: str) -> str:
    return f"{CODE}text\n{text.rstrip()}\n{CODE}" if text.strip() else ""


def _text(given: str | list[str]) -> str:
    """A notebook's text, which may be kept in lines."""
    return given if isinstance(given, str) else "".join(given)
