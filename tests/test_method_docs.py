"""What docs/methods.md says of the methods: the table's numbers, the hooks, and that its examples learn."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import clipbias
from clipbias import data
from clipbias.clip import Clip
from clipbias.training.device import Compute
from clipbias.tuning import METHODS, FeatureMethod, Method, Recipe, TestTimeMethod
from clipbias.tuning.method import Kind, without_constants
from tests.documents import ROOT, blocks
from tests.training.conftest import TinySweep
from tests.tuning.test_task import VIT_B_16

PAGE = ROOT / "docs" / "methods.md"
CLASSES = 100
SHOTS = 16
GROUPS = {
    "Without": Kind.TRAINING_FREE,
    "Heads": Kind.HEAD,
    "Prompts": Kind.PROMPTS,
    "Weights": Kind.WEIGHTS,
    "Test-time": Kind.TEST_TIME,
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clipbias.load("demo")


@pytest.fixture(scope="module")
def large(clip: Clip) -> Clip:
    """ViT-B/16 by its geometry; of its weights only the token embeddings are looked at."""
    text = {**clip.params["text"], "token_embedding": np.zeros((len(clip.tokenizer), 512), np.float32)}
    return dataclasses.replace(clip, config=VIT_B_16, params={**clip.params, "text": text})


def parameters(method: Method, clip: Clip) -> int:
    """An axis without a length has as many entries as there are images."""
    names = [f"class {i}" for i in range(CLASSES)]
    shapes = jax.eval_shape(lambda rng: method.init(rng, clip, names), jax.random.key(0))
    leaves = jax.tree.leaves(without_constants(shapes))
    return sum(int(np.prod([n or CLASSES * SHOTS for n in leaf.shape])) for leaf in leaves)


def trains_as_its_authors_do(method: Method) -> bool:
    common = Recipe(epochs=10)
    return method.trains and method.recipe_for(common, SHOTS) != common


def test_the_lists_have_methods_as_their_own_files_have_them(large: Clip) -> None:
    section = PAGE.read_text("utf-8").partition("## The built-in methods")[2].partition("\nVariants")[0]
    groups = re.split(r"^\*\*([\w-]+)", section.replace("\n  ", " "), flags=re.MULTILINE)[1:]
    row = re.compile(r"^- `(\w+)` \(([\d,]+)\): (.*)$", re.MULTILINE)
    rows = {}
    for head, group in zip(groups[::2], groups[1::2], strict=True):
        rows |= {name: rest for name, *rest in row.findall(group)}
        assert {METHODS[name][0].kind for name, *_ in row.findall(group)} == {GROUPS[head]}
    # The first of each file has a row; each of the others has one, or is named below the lists.
    assert set(rows) >= {next(iter(vars(kind)["presets"])) for kind, _ in METHODS.values()}
    assert all(f"`{name}`" in PAGE.read_text("utf-8") for name in METHODS)
    own_recipes = set()
    for name, (count, _) in rows.items():
        kind, preset = METHODS[name]
        method = kind(**preset.options)
        assert count == f"{parameters(method, large):,}", name
        if trains_as_its_authors_do(method):
            own_recipes.add(name)
    text = " ".join(PAGE.read_text("utf-8").split())
    named = text.partition("`clipbias.tuning.Recipe()`, but ")[2].partition(" as their")[0]
    assert set(re.findall(r"`(\w+)`", named)) == own_recipes


def test_the_hooks_are_those_of_the_class():
    section = PAGE.read_text("utf-8").partition("## Hooks")[2].partition("\n## ")[0]
    lists = " ".join(section.partition("\n- ")[2].split())
    names = r"`([a-z]\w+)`"  # capitals are classes
    examples = dict(re.findall(names + rf"(?: [a-z ]+)? \({names}\)", lists))
    named = set(re.findall(names, lists)) - set(examples.values()) | set(examples)
    hooks = {
        name
        for kind in (Method, FeatureMethod, TestTimeMethod)
        for name, value in vars(kind).items()
        if (callable(value) or isinstance(value, classmethod)) and not name.startswith("_")
    }
    assert hooks - {"bind", "cosine_logits", "logit_scale", "recipe_for"} <= named
    bases = Method, FeatureMethod, TestTimeMethod
    assert named - set(examples) == {"init", "adapt"}
    for hook, name in examples.items():
        kind = METHODS[name][0]
        assert all(getattr(kind, hook) not in [getattr(base, hook, None)] for base in bases), hook


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's method as a file, under the name that it gives it."""
    (code,) = [code for code in blocks(PAGE, "python") if "def adapt" in code]
    path = tmp_path_factory.mktemp("examples") / "low_rank.py"
    path.write_text(code, encoding="utf-8")
    return path


@pytest.mark.long
def test_the_example_learns(clip: Clip, example: Path, tmp_path: Path) -> None:
    recipe = Recipe(learning_rate=0.08, epochs=10)
    datasets = {"demo/fashion": data.load("demo/fashion")}
    tiny = TinySweep(
        clip, datasets, recipe, tmp_path, compute=Compute(trackers=(), eval_batch_size=300, checkpoint_seconds=600.0)
    )
    zero_shot, tuned = tiny.rows("zero_shot", str(example), shots=(SHOTS,), seeds=(1,))
    assert tuned["status"] == "ok", tuned
    assert tuned["accuracy"] > zero_shot["accuracy"] + 0.5, tuned
