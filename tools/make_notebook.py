"""Makes a notebook of a script in percent format: runs its cells and keeps what they show.

    python -m tools.make_notebook docs/notebooks/first_hour.py

Writes `first_hour.ipynb` beside it. Needs the extra `notebook`. A test holds the notebook's cells to the script: change
that, and run this again. Where pyproject.toml names the repository (`[project.urls]`), a badge opens the notebook in
Colab, and its first cell installs the package there.
"""

import json
import re
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app

from clipbias.errors import ClipbiasError
from clipbias.io import read_text, write_text
from experiments import common

ROOT = Path(__file__).resolve().parents[1]
MARK = "# %%"
SECONDS = 3600  # that a cell may take
INSTALL = """# In Colab, where it is not installed yet.
import importlib.util

if importlib.util.find_spec("clipbias") is None:
    %pip install --quiet "clipbias @ git+{address}" """.rstrip()


class Cell(NamedTuple):
    """A cell: its kind, "markdown" or "code", and its text."""

    kind: str
    source: str


def cells(script: str, name: str, address: str | None) -> list[Cell]:
    """The cells of a notebook.

    Args:
      script: in percent format: a line `# %%` begins a cell of code, `# %% [markdown]` one of text in comments.
      name: the notebook's path in the repository.
      address: of the repository on GitHub; `None` where nobody says.

    Raises:
      ClipbiasError: the script does not begin with a cell.
    """
    before, *parts = re.split(rf"^{MARK}", script, flags=re.MULTILINE)
    if before.strip() or not parts:
        raise ClipbiasError(f"the script of {name} does not begin with a line {MARK!r}.")
    parsed = []
    for part in parts:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            parsed.append(Cell("markdown", re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)))
        else:
            parsed.append(Cell("code", body.strip()))
    if address:
        place = f"https://colab.research.google.com/github/{address.partition('github.com/')[2]}/blob/main/{name}"
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({place})"
        parsed[:1] = [parsed[0]._replace(source=f"{parsed[0].source}\n\n{badge}")]
        parsed.insert(1, Cell("code", INSTALL.format(address=address)))
    return parsed


def repository() -> str | None:
    """The repository's address on GitHub, where pyproject.toml names one."""
    project = tomllib.loads(read_text(ROOT / "pyproject.toml"))["project"]
    address = str(project.get("urls", {}).get("Repository", "")).removesuffix("/")
    return address if "github.com/" in address else None


def cells_of(script: Path) -> list[Cell]:
    """The cells of the notebook that a script of this repository is made into."""
    name = script.resolve().with_suffix(".ipynb")
    return cells(read_text(script), name.relative_to(ROOT).as_posix(), repository())


def run(sources: Sequence[Cell]) -> dict[str, Any]:
    """Runs cells from top to bottom in a folder of their own; the notebook with what they show.

    Raises:
      ClipbiasError: the extra is not installed, or a cell fails.
    """
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError as error:
        raise ClipbiasError(f'{error}; install what runs notebooks: pip install -e ".[notebook]"') from error
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    # A name of each cell that does not change from one time to the next.
    made = [make[cell.kind](cell.source, id=f"cell-{number}") for number, cell in enumerate(sources, start=1)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel})
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=SECONDS, resources=resources, record_timing=False, coalesce_streams=True
        )
        try:
            client.execute()
        except CellExecutionError as error:
            raise ClipbiasError(f"a cell fails:\n{error}") from error
    notebook.metadata["language_info"] = {"name": "python"}  # and nothing of this machine's Python
    nbformat.validate(notebook)
    return notebook


def main(names: Sequence[str]) -> int:
    """Makes the notebooks; returns the exit status."""
    if not names:
        raise ClipbiasError("give a script: python -m tools.make_notebook docs/notebooks/first_hour.py.")
    for name in names:
        path = Path(name).with_suffix(".ipynb")
        content = json.dumps(run(cells_of(Path(name))), indent=1, ensure_ascii=False, sort_keys=True)
        write_text(path, content + "\n")
        print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
