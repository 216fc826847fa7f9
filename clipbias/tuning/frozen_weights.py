"""What the methods share that tune weights which CLIP has: biases, LayerNorms, or low-rank changes of its kernels."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp

from clipbias.checks import Choices, Range
from clipbias.clip import Adaptation, Clip
from clipbias.clip.params import Params
from clipbias.constants import TOWERS
from clipbias.errors import ClipbiasError
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.preset import Kind
from clipbias.tuning.recipe import AUTHORS, COMMON, MOST, Recipe, RecipeName

# LayerNorms outside the blocks, two in the vision tower and one in the text tower.
OUTER_NORMS = ("pre_norm", "post_norm", "final_norm")
TowerNames = tuple[Annotated[str, Choices(TOWERS)], ...]

# What weight decay draws towards zero: the tuned weights themselves, or only what tuning adds to them.
WEIGHTS, CHANGES = "weights", "changes"
Decay = Annotated[str, Choices((WEIGHTS, CHANGES))]


@dataclasses.dataclass(frozen=True)
class WeightTuning(Method):
    """Learns changes of weights that CLIP has, `{"vision_weights": …, "text_weights": …}`.

    Attributes:
      towers: which towers are tuned.
      decay: what weight decay draws towards zero: the whole weights ("weights"), as the authors' AdamW does, or the
        "changes" alone.
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

    def recipe_for(self, common: Recipe, shots: int) -> Recipe:
        return lora_recipe(self.recipe, common, shots, self.steps_per_shot)


def no_changes(clip: Clip, names: Collection[tuple[str, ...]], towers: Sequence[str] = TOWERS) -> Learnables:
    """Zeros of the shapes of each tower's biases and scales of these paths, such as ("layers", "fc2", "bias").

    LayerNorms outside the blocks that a tower lacks are left out there.
    """
    found: dict[str, Any] = {}
    for tower in towers:
        geometry = getattr(clip.config, tower)
        widths = {"qkv": 3 * geometry.width, "fc1": geometry.mlp_width}
        tree: dict[str, Any] = {}
        for *outer, part, leaf in names:
            if not outer and part not in clip.params[tower]:
                continue
            node = tree.setdefault("layers", {}) if outer else tree
            stack = (geometry.layers,) if outer else ()
            node.setdefault(part, {})[leaf] = jnp.zeros((*stack, widths.get(part, geometry.width)))
        found[f"{tower}_weights"] = tree
    return found


def tuned_weights(learnables: Learnables, params: Params) -> Learnables:
    """The weights that changes `{"vision_weights": …, "text_weights": …}` of several runs make, run by run."""
    return {name: _added(change, params[name.removesuffix("_weights")]) for name, change in learnables.items()}


def _added(change: Any, weights: Any) -> Any:
    if isinstance(change, Mapping):
        return {name: _added(part, weights[name]) for name, part in change.items()}
    return weights.astype(change.dtype) + change


def lora_recipe(recipe: str, common: Recipe, shots: int, steps_per_shot: int) -> Recipe:
    """The recipe of CLIP-LoRA's authors, which those after them took over, or `common` unless it is "authors".

    AdamW at 2e-4 with decay 1e-2, a cosine from step to step down to 1e-6, batches of 32 with the incomplete ones, and
    so many steps per shot, all images counting as 16 shots.
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
        steps=steps_per_shot * (shots or 16),
        batch_size=32,
        keep_last=True,
        crop=0.08,
    )


def check_towers(towers: Sequence[str]) -> None:
    """Raises `ClipbiasError` where there is no tower to tune."""
    if not towers:
        raise ClipbiasError("neither tower is tuned, so there is nothing to learn; choose one.")


def block_numbers(first: int, last: int, layers: int, tower: str) -> range:
    """Blocks `first` to `last`, counted from 1, as indices; 0 stands for a tower's last block.

    Raises:
      ClipbiasError: the tower has no such blocks.
    """
    end = last or layers
    if not 1 <= first <= end <= layers:
        raise ClipbiasError(
            f"blocks {first} to {end} are to be tuned, and the {tower} tower has blocks 1 to {layers}; change "
            "first_block or last_block."
        )
    return range(first - 1, end)
