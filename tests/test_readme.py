"""What the README and the pages beside it promise besides commands (`test_commands.py`).

The README's lines of Python are run by `end_to_end/test_wheel.py`, as a user who installed the package does.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import PAGES, ROOT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_and_picture_that_is_linked_exists(page: Path) -> None:
    for link in set(re.findall(r"\]\(((?!http)[^)#]+)", page.read_text(encoding="utf-8"))):
        assert (page.parent / link).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_function_that_is_linked_is_in_its_file(page: Path) -> None:
    for name, link in set(re.findall(r"\[`([\w.]+)`\]\((\S+\.py)\)", page.read_text(encoding="utf-8"))):
        if name.endswith(".py"):  # the file itself, of which links are checked elsewhere
            continue
        body = ast.parse((page.parent / link).read_text(encoding="utf-8")).body
        for part in name.split("."):
            definitions = [node for node in body if getattr(node, "name", None) == part]
            assert definitions, f"{page.name}: {link} has no {name}"
            body = getattr(definitions[0], "body", [])


def test_importing_is_light() -> None:
    code = "import sys, clipbias; print(sorted({'jax', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
