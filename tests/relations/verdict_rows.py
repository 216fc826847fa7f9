"""Rows of the table about the verdict: what changes no function changes no number of the causal test."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import clipbias
from clipbias import TunedModel
from clipbias.analysis.causal_section import CausalTest, Way
from clipbias.analysis.model import additions
from clipbias.analysis.study import StudyOptions
from clipbias.clip import Clip
from clipbias.clip.config import TowerConfig
from clipbias.clip.params import Params
from clipbias.constants import TOWERS
from clipbias.data import Dataset, Split
from clipbias.tuning import CONSTANTS, Task
from tests.relations.cases import IN_COMMON, Case
from tests.relations.command_rows import dataset_of
from tests.relations.table import relation

OTHERS = Way.IMAGE_OTHER.value  # its images are drawn by a seed
NATS = 2e-3


def causal_test(model: TunedModel, dataset: Dataset, folder: Path, seed: int = 0) -> CausalTest:
    """The scores of every image in every way to classify it."""
    options = StudyOptions(seed=seed)
    found = clipbias.explain(model, dataset, folder, sections=("causal",), options=options, progress=False).results
    return found.sections["causal"].models[found.models[1].key]


def scores(test: CausalTest, *, others: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Right predictions and log-likelihoods `[n, K]`, with or without the ways that other images are drawn for."""
    ways = [k for k, way in enumerate(test.ways) if others or way != OTHERS]
    assert len(ways) > 3, "the model has no patched runs"
    return test.outcomes.correct[:, ways], test.outcomes.log_likelihood[:, ways]


def tunes_tokens(case: Case) -> bool:
    """Whether a method has prompts or biases in the towers, without weights and without a head of its own."""
    if case.kind.patches or CONSTANTS in case.task.shapes or case.method in IN_COMMON:
        return False
    added = additions(case.task)
    weights = added.vision_weights, added.text_weights, added.vision_adapters, added.text_adapters
    changes = added.changes_vision or added.changes_text
    return changes and not added.inserts_tokens and not any(jax.tree.leaves(each) for each in weights)


def turned(tree: Params, config: TowerConfig) -> Params:
    """A tower with its heads in reverse, values doubled and halved again, as are the normed tokens."""
    layers: Params = jax.tree.map(np.array, tree["layers"])
    qkv, out = layers["qkv"], layers["out"]
    for name, leaf in qkv.items():
        heads = leaf.reshape(*leaf.shape[:-1], 3, config.heads, -1)[..., ::-1, :]
        heads[..., 2, :, :] *= 2
        qkv[name] = heads.reshape(leaf.shape)
    kernel = out["kernel"]
    rows = kernel.reshape(len(kernel), config.heads, -1, kernel.shape[-1])[:, ::-1]
    out["kernel"] = rows.reshape(kernel.shape) / 2
    layers["norm1"] = jax.tree.map(lambda leaf: 2 * leaf, layers["norm1"])
    qkv["kernel"] /= 2
    return {**tree, "layers": layers}


def same_function(clip: Clip) -> Clip:
    """The frozen model with `turned` towers."""
    towers = {name: turned(clip.params[name], getattr(clip.config, name)) for name in TOWERS}
    return dataclasses.replace(clip, params={**clip.params, **towers})


@relation(
    "The causal test says the same of a frozen model with its heads in another order and rescalings that cancel.",
    over=(),
    quick=0,
    ci=4,
    applies=tunes_tokens,
)
def _(case: Case, folder: Path) -> None:
    arguments: dict[str, Any] = {**case.texts.options, **case.options}
    task = Task(same_function(case.task.clip), case.method, case.texts.classes, **arguments)
    model = TunedModel(task, case.model.learnables, notes=dict(case.model.notes))
    expected, found = (
        scores(causal_test(each, dataset_of(case), folder / str(n))) for n, each in enumerate((case.model, model))
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=NATS)


@relation(
    "The causal test predicts the same for images and classes in another order, and with other images drawn.",
    over=(),
    quick=0,
    ci=4,
    applies=tunes_tokens,
)
def _(case: Case, folder: Path) -> None:
    dataset = dataset_of(case)
    expected = causal_test(case.model, dataset, folder / "first")
    drawn = causal_test(case.model, dataset, folder / "drawn", seed=7)
    for found, known in zip(scores(drawn, others=False), scores(expected, others=False), strict=True):
        np.testing.assert_array_equal(found, known)
    names = case.texts.classes[::-1]
    order = np.random.default_rng(0).permutation(len(dataset.split("test")))

    def renamed(split: Split) -> Split:
        return dataclasses.replace(split, labels=len(names) - 1 - split.labels)

    splits = {"train": renamed(dataset.split("train")), "test": renamed(dataset.split("test").subset(order))}
    other = dataclasses.replace(dataset, class_names=names, splits=splits)
    found = causal_test(case.model.with_classes(names, **case.texts.again), other, folder / "other")
    np.testing.assert_array_equal(scores(found, others=False)[0], scores(expected, others=False)[0][order])
