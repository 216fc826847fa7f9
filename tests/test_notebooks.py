"""The notebooks: what their scripts say, and what they showed when they were run; their cells on another model."""

import ast
import json
from pathlib import Path

import jupytext
import pytest
from matplotlib.figure import Figure

from tests.documents import ROOT

SCRIPTS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))


def notebook(script: Path) -> dict:
    return json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))


def cells_of(script: Path) -> list:
    return jupytext.read(script, fmt="py:percent").cells


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_notebook_is_its_script(script):
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook(script)["cells"]]
    expected = [(cell.cell_type, cell.source) for cell in cells_of(script)]
    assert cells == expected, f"make the notebook of {script.name} anew (CONTRIBUTING.md)"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_notebook_was_run_from_top_to_bottom_without_a_complaint(script):
    code = [cell for cell in notebook(script)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    shown = {kind for output in outputs for kind in output.get("data", ())}
    assert {"image/png", "text/html", "text/plain"} <= shown


@pytest.mark.long
def test_the_first_hour_runs_with_another_model(model, tmp_path, monkeypatch):
    """And with less of everything: one cell alone has to be changed for it."""
    monkeypatch.chdir(tmp_path)
    other = {
        "MODEL": model,
        "SHOTS": 1,
        "EPOCHS": 1,
        "LEARNING_RATES": dict.fromkeys(("ivlp", "bias", "bias_by_kind"), 0.1),
        "IMAGES": 20,
    }
    settings, *rest = [cell.source for cell in cells_of(SCRIPTS[0]) if cell.cell_type == "code"]
    names: dict = {}
    exec(settings, names)
    assert other.keys() <= names.keys()
    names |= other
    shown = [run(source, names) for source in rest]
    assert sum(isinstance(value, Figure) for value in shown) == 3
    assert "<table>" in shown[3] and len(names["rows"]) == 4
    assert names["again"].accuracy == names["rows"][2][-1].accuracy  # of bias tuning, folded into the weights
    for written in ("bias.safetensors", "checkpoint/model.safetensors", "study/results.json"):
        assert (tmp_path / names["FOLDER"] / written).is_file()


def run(source: str, names: dict) -> object:
    """Runs a cell; the value of its last line, which a notebook shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
