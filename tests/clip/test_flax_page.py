"""The section of docs/models.md for users of `FlaxCLIPModel` runs on a file that it wrote."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FLAX = ROOT / "tests" / "data_files" / "formats" / "flax"


@pytest.mark.ci  # two trainings at full length
def test_the_code_for_users_of_flax_clip_model() -> None:
    page = (ROOT / "docs" / "models.md").read_text().split("## From `FlaxCLIPModel`")[1]
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    code = code.replace('"openai/clip-vit-base-patch16"', repr(str(FLAX)))
    picture = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    names: dict = {"picture": picture}
    exec(code, names)
    clip = names["clip"]
    np.testing.assert_allclose(names["features"], clip.encode_images([picture]), atol=1e-5)
    assert float(names["loss"]) > 0
    for tree in (names["gradients"]["vision"], names["learned"]):
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))
