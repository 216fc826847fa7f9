"""Shared parts of methods that tune CLIP's own weights: biases, LayerNorms, or low-rank changes of its kernels."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp

from clipbias.checks import Choices, Range
from clipbias.clip import Adaptation, Clip
from clipbias.clip.params import Params
from clipbias.constants import TOWERS
from clipbias.errors import ClipbiasError
from clipbias.tuning.method import Kind, Learnables, Method
from clipbias.tuning.recipe import AUTHORS, COMMON, MOST, Recipe, RecipeName

# LayerNorms outside the blocks, two in the vision tower and one in the text tower: the last, or BERT's first.
OUTER_NORMS = ("pre_norm", "post_norm", "final_norm", "embedding_norm")
TowerNames = tuple[Annotated[str, Choices(TOWERS)], ...]

# Weight decay pulls the tuned weights themselves towards zero, or only their changes.
WEIGHTS = "weights"
CHANGES = "changes"
Decay = Annotated[str, Choices((WEIGHTS, CHANGES))]


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

    kind: ClassVar[Kind | None] = Kind.WEIGHTS

    towers: TowerNames = TOWERS
    decay: Decay = WEIGHTS
    recipe: RecipeName = COMMON
    steps_per_shot: Annotated[int, Range(1, MOST)] = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        check_towers(self.towers)

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(**learnables)

    def decayed_weights(self, learnables: Learnables, params: Params) -> Learnables:
        return tuned_weights(learnables, params) if self.decay == WEIGHTS else learnables

    def recipe_for(self, common: Recipe, shots: int | None) -> Recipe:
        return lora_recipe(self.recipe, common, shots, self.steps_per_shot)


def no_changes(clip: Clip, paths: Collection[tuple[str, ...]], towers: Sequence[str] = TOWERS) -> Learnables:
    """Zeros with the shapes of each tower's biases and scales at `paths`, such as ("layers", "fc2", "bias").

    LayerNorms outside the blocks that a tower lacks are left out.
    """
    changes: dict[str, Learnables] = {}
    for tower in towers:
        geometry = getattr(clip.config, tower)
        widths = {"qkv": 3 * geometry.width, "fc1": geometry.mlp_width}
        tree: dict[str, Any] = {}
        for *outer, part, leaf in paths:
            if not outer and part not in clip.params[tower]:
                continue
            node = tree.setdefault("layers", {}) if outer else tree
            stack = (geometry.layers,) if outer else ()
            node.setdefault(part, {})[leaf] = jnp.zeros((*stack, widths.get(part, geometry.width)))
        changes[f"{tower}_weights"] = tree
    return changes


def tuned_weights(learnables: Learnables, params: Params) -> Learnables:
    """The tuned weights of several runs, from their changes `{"vision_weights": …, "text_weights": …}`."""
    return {name: _added(change, params[name.removesuffix("_weights")]) for name, change in learnables.items()}


def _added(change: Any, weights: Any) -> Any:
    if isinstance(change, Mapping):
        return {name: _added(part, weights[name]) for name, part in change.items()}
    return weights.astype(change.dtype) + change


def lora_recipe(recipe: str, common: Recipe, shots: int | None, steps_per_shot: int) -> Recipe:
    """The recipe of CLIP-LoRA's authors, which later methods use as well; `common` unless `recipe` is "authors".

    AdamW at 2e-4 with weight decay 1e-2, a cosine schedule per step down to 1e-6, batches of 32 including incomplete
    ones, and `steps_per_shot` steps per shot. All images count as 16 shots.
    """
    if recipe != AUTHORS:
        return common
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


def check_towers(towers: Sequence[str]) -> None:
    if not towers:
        raise ClipbiasError("neither tower is tuned, so there is nothing to learn; choose one.")


def block_numbers(first: int, last: int | None, layers: int, tower: str) -> range:
    """Indices of the blocks `first` to `last`, counted from 1; a `last` of `None` is the tower's last block."""
    end = layers if last is None else last
    if not 1 <= first <= end <= layers:
        raise ClipbiasError(
            f"blocks {first} to {end} are to be tuned, and the {tower} tower has blocks 1 to {layers}; change "
            "first_block or last_block."
        )
    return range(first - 1, end)
