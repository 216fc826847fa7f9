"""What the README and the pages beside it promise, taken from the files themselves.

The README's ten lines of Python are run by `end_to_end/test_wheel.py`, as a user who installed the package does.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import PAGES, ROOT, blocks


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_a_method_of_ones_own(page: str, tmp_path: Path) -> None:
    code = next(block for block in blocks(ROOT / page, "python") if "def adapt" in block)
    (tmp_path / "own.py").write_text(code)
    use = (
        "import clipbias, jax, numpy as np\n"
        "clip = clipbias.load('demo')\n"
        "task = clipbias.Task(clip, 'own.py', ['circle', 'star'])\n"
        "images = np.zeros((1, 48, 48, 3), np.float32)\n"
        "gradients = jax.grad(task.loss, argnums=1)(clip.params, task.init(), images, np.array([1]))\n"
        "print(all(np.any(leaf) for leaf in jax.tree.leaves(gradients)))\n"
    )
    done = run(use, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_configuration_and_page_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in set(re.findall(r"python -m ((?:experiments|tools)[\w.]*)", text)):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for config in set(re.findall(r"--config=(configs/[\w/]+\.py)", text)):
        assert (ROOT / config).is_file(), config
    for link in set(re.findall(r"\]\(((?!http)[^)#]+)", text)):
        assert (page.parent / link).is_file(), link


def test_importing_is_light() -> None:
    code = "import sys, clipbias; print(sorted({'jax', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = run(code, ROOT)
    assert done.stdout.strip() == "[]", done.stderr
