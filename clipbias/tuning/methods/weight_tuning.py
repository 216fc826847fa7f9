"""BitFit (Ben Zaken et al. 2021, arXiv 2106.10199) and LayerNorm tuning: CLIP's own biases and scales are tuned.

LayerNorm tuning, BitFit's choice of biases and `recipe="authors"` follow the code of Farina et al. 2025 (arXiv
2503.11609), which tunes CLIP's towers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from clipbias.checks import Choices, Range
from clipbias.clip import Clip
from clipbias.clip.params import Params
from clipbias.constants import TOWERS
from clipbias.tuning.method import Kind, Learnables, Method, Preset
from clipbias.tuning.recipe import COMMON, MOST, Recipe, RecipeName

# The parts of a block that have a bias besides "qkv".
BLOCK_PARTS = ("out", "fc1", "fc2", "norm1", "norm2")
QKV_PART = "qkv"
# LayerNorms outside the blocks, two in the vision tower and one in the text tower: the last, or BERT's first.
OUTER = "outer_norms"
OUTER_NORMS = ("pre_norm", "post_norm", "final_norm", "embedding_norm")

TowerNames = tuple[Annotated[str, Choices(TOWERS)], ...]
Part = Annotated[str, Choices((*BLOCK_PARTS, OUTER, QKV_PART))]
# Weight decay pulls the tuned weights themselves towards zero, or only their changes.
DECAY_WEIGHTS = "weights"
DECAY_CHANGES = "changes"


@dataclasses.dataclass(frozen=True)
class WeightTuning(Method):
    """Learns changes of weights that CLIP has, `{"vision_weights": …, "text_weights": …}`.

    Attributes:
      towers: which towers are tuned.
      decay: what weight decay pulls towards zero: the whole weights ("weights"), as the authors' AdamW does, or only
        their changes ("changes").
      recipe: "common", or the "authors'": AdamW at 2e-4, with 32 images a step.
      steps_per_shot: of the authors' recipe.
    """

    # Leaves of the same name as CLIP's are added to them in the block, and fold into a plain CLIP for export.
    kind = Kind.WEIGHTS

    towers: TowerNames = TOWERS
    decay: Annotated[str, Choices((DECAY_WEIGHTS, DECAY_CHANGES))] = DECAY_WEIGHTS
    recipe: RecipeName = COMMON
    steps_per_shot: Annotated[int, Range(1, MOST)] = 300

    def decayed_weights(self, learnables: Learnables, params: Params) -> Learnables:
        # Learnables are changes, from zero. AdamW on whole weights pulls these to zero, so the decay sees `W + Δ`.
        if self.decay == DECAY_CHANGES:
            return learnables
        return {name: _added(change, params[name.removesuffix("_weights")]) for name, change in learnables.items()}

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        return lora_recipe(common, shots, self.steps_per_shot)


@dataclasses.dataclass(frozen=True)
class BitFit(WeightTuning):
    """Changes of the biases of both towers' output projections, MLPs and LayerNorms, zero at the start.

    With `only=("fc2",)` it tunes the output bias of every MLP, as bias tuning does. With `decay="changes"` the training
    is then the same.

    Attributes:
      only: parts whose biases are tuned, from `BLOCK_PARTS`, "outer_norms" (pre-, post- and final LayerNorm) and "qkv";
        empty for all but "qkv".
      qkv: also tunes the biases of queries, keys and values.
    """

    presets = {"bitfit": Preset("BitFit", order=620)}

    only: tuple[Part, ...] = ()
    qkv: bool = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        parts = set(self.only or (*BLOCK_PARTS, OUTER))
        # Not by default: torch keeps them as `in_proj_bias`, which the authors' code does not look for.
        if self.qkv:
            parts.add(QKV_PART)
        if OUTER in parts:
            parts = parts - {OUTER} | {*OUTER_NORMS}
        return no_changes(clip, parts, ("bias",), self.towers)


@dataclasses.dataclass(frozen=True)
class LayerNormTuning(WeightTuning):
    """Changes of scale and bias of the two LayerNorms of every block of both towers, zero at the start.

    Attributes:
      outer: also tunes the pre-, post- and final LayerNorm.
    """

    presets = {"layer_norm": Preset("LayerNorm tuning", order=610)}

    outer: bool = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        # The authors list the LayerNorms outside the blocks, too, but their code freezes them before training: the
        # published numbers are without them, and so is the default.
        norms = {"norm1", "norm2", *(OUTER_NORMS if self.outer else ())}
        return no_changes(clip, norms, ("scale", "bias"), self.towers)


def no_changes(clip: Clip, parts: set[str], leaves: Sequence[str], towers: Sequence[str]) -> Learnables:
    """Zeros with the shapes of each tower's biases or scales: `leaves` of `parts` of a block and of `OUTER_NORMS`."""
    changes: dict[str, Learnables] = {}
    for tower in towers:
        geometry = getattr(clip.config, tower)
        # Biases of queries, keys and values are stored as one array, `[3 D]`.
        widths = {QKV_PART: 3 * geometry.width, "fc1": geometry.mlp_width}
        tree: dict[str, Any] = {}
        for part in sorted(parts):
            if part not in OUTER_NORMS:
                shape = geometry.layers, widths.get(part, geometry.width)
                tree.setdefault("layers", {})[part] = {leaf: jnp.zeros(shape) for leaf in leaves}
            elif part in clip.params[tower]:
                tree[part] = {leaf: jnp.zeros(geometry.width) for leaf in leaves}
        changes[f"{tower}_weights"] = tree
    return changes


def _added(change: Any, weights: Any) -> Any:
    if isinstance(change, Mapping):
        return {name: _added(part, weights[name]) for name, part in change.items()}
    return weights.astype(change.dtype) + change


def lora_recipe(common: Recipe, shots: int | None, steps_per_shot: int) -> Recipe:
    """The recipe of CLIP-LoRA's authors, which later methods use as well; all images count as 16 shots."""
    return dataclasses.replace(
        common,
        learning_rate=2e-4,
        optimizer="adamw",
        weight_decay=1e-2,
        epsilon=1e-8,
        schedule="steps",
        final_learning_rate=1e-6,
        steps=steps_per_shot * (16 if shots is None else shots),
        batch_size=32,
        keep_last=True,
        crop=0.08,
    )
