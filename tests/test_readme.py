"""What the README and the pages beside it promise besides commands (`test_commands.py`).

The README's lines of Python are run by `end_to_end/test_wheel.py`, as a user who installed the package does.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipbias.data.dataset import Split
from clipbias.data.folder import complete_splits
from clipbias.data.held_out import hold_out
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


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (caption,) = re.findall(r"^!\[.*?\)\n\n\*(.*?)\*$", text, re.DOTALL | re.MULTILINE)
    assert len(text.split()) <= 800 and len(caption.split()) <= 60


def calibration_images(classes: int, pictures: int) -> int:
    """How many images `train` leaves to calibrate, of a folder with so many pictures in each class."""
    labels = np.repeat(np.arange(classes, dtype=np.int32), pictures)
    split = Split([f"{index:06d}" for index in range(len(labels))], labels, lambda index: b"")
    splits = complete_splits({"all": split}, "pictures")
    held = hold_out(splits["train"], splits["val"], seed=1, calibrates=True)
    return 0 if held.calibrate is None else len(held.calibrate)


def test_from_how_many_pictures_on_there_are_prediction_sets() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    fewest = {
        classes: next(pictures for pictures in range(1, 100) if calibration_images(classes, pictures))
        for classes in (2, 10)
    }
    assert {classes: calibration_images(classes, pictures) for classes, pictures in fewest.items()} == {2: 10, 10: 10}
    assert f"of two classes these are left from {fewest[2]} pictures each on, of ten from {fewest[10]}." in text


def test_importing_is_light() -> None:
    code = "import sys, clipbias; print(sorted({'jax', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
