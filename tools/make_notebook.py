"""Makes a notebook of a script in percent format: runs its cells and keeps what they show.

    python -m tools.make_notebook docs/notebooks/first_hour.py

Writes `first_hour.ipynb` beside it. Needs the extra `notebook`. A test holds the notebook's cells to the script: change
that, and run this again.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app

from clipbias.errors import ClipbiasError
from clipbias.io import read_text, write_text
from experiments import common

SECONDS = 3600  # that a cell may take


def notebook_of(script: Path) -> Any:
    """The notebook that a script is made into, before its cells are run."""
    import jupytext

    notebook = jupytext.reads(read_text(script), "py:percent")
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"  # which does not change from one time to the next
        cell.metadata = {}
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def run(notebook: Any) -> Any:
    """Runs cells from top to bottom in a folder of their own; the notebook with what they show.

    Raises:
      ClipbiasError: a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        options: dict[str, Any] = {"timeout": SECONDS, "record_timing": False, "coalesce_streams": True}
        try:
            NotebookClient(notebook, resources=resources, **options).execute()
        except CellExecutionError as error:
            raise ClipbiasError(f"a cell fails:\n{error}") from error
    notebook.metadata["language_info"] = {"name": "python"}  # and nothing of this machine's Python
    nbformat.validate(notebook)
    return notebook


def main(names: Sequence[str]) -> int:
    """Makes the notebooks; returns the exit status."""
    try:
        for name in names:
            path = Path(name).with_suffix(".ipynb")
            content = json.dumps(run(notebook_of(Path(name))), indent=1, ensure_ascii=False, sort_keys=True)
            write_text(path, content + "\n")
            print(path, file=sys.stderr)
    except ImportError as error:
        raise ClipbiasError(f'{error}; install what runs notebooks: pip install -e ".[notebook]"') from error
    return 0


if __name__ == "__main__":
    app.run(lambda words: common.status_of(lambda: main(words[1:])))
