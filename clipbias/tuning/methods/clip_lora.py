"""CLIP-LoRA (Zanella & Ben Ayed 2024, arXiv 2405.18541): low-rank changes of kernels in both towers.

The preset `lora` is plain LoRA (Hu et al. 2022, arXiv 2106.09685) on all kernels of the blocks, with CLIP's own scale
and the project's recipe.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Choices, Range
from clipbias.clip import Adaptation, Clip
from clipbias.clip.params import Params
from clipbias.constants import TOWERS, WORDS
from clipbias.errors import ClipbiasError
from clipbias.tuning.features import COSINE_SCALE
from clipbias.tuning.method import CONSTANTS, Kind, Learnables, Method, Preset, PromptText
from clipbias.tuning.methods.weight_tuning import TowerNames, lora_recipe
from clipbias.tuning.prompts import choose_templates
from clipbias.tuning.recipe import AUTHORS, COMMON, MOST, Recipe, RecipeName

ATTENTION_INPUTS = ("q", "k", "v")
# The kernels of a block by the products that they are parts of.
PRODUCTS = {"qkv": ATTENTION_INPUTS, "out": ("o",), "fc1": ("fc1",), "fc2": ("fc2",)}
ATTENTION = ("qkv", "out")
ALL_PARTS = (*ATTENTION_INPUTS, "o", "fc1", "fc2")
Part = Annotated[str, Choices(ALL_PARTS)]


@dataclasses.dataclass(frozen=True)
class ClipLora(Method):
    """`h W + γ drop(h) down up` for the kernels W of queries, keys and values, each with its own `down` and `up`.

    `γ = α/√r`. `down [D, r]` starts uniform within ±1/√D, `up [r, D]` at zero. Dropout acts on the input of the
    low-rank branch, with a mask per kernel, in training steps only. After training `W + γ down up` is a plain CLIP.

    Attributes:
      parts: tuned kernels: "q", "k", "v", "o" for the attention's output, "fc1" and "fc2" of the MLP.
      towers: tuned towers. Without the text tower the classifier is made of the frozen texts.
      first_block, last_block: in each tower, counted from 1; a `last_block` of `None` is the tower's last.
      rank, alpha: `r` and `α`.
      dropout: share of the inputs that are dropped.
      templates: templates with `{}`, or a choice of `tuning.prompts`.
      recipe: the "authors'": AdamW at 2e-4, with 32 images a step; or "common".
      steps_per_shot: of the authors' recipe.
      clip_scale: whether cosines are multiplied by CLIP's own factor in place of the authors' 100.
    """

    presets = {
        "clip_lora": Preset("CLIP-LoRA", order=630),
        "lora": Preset(
            "LoRA (all kernels)", {"parts": ALL_PARTS, "dropout": 0.0, "recipe": COMMON, "clip_scale": True}, order=631
        ),
    }
    kind = Kind.WEIGHTS
    scale = COSINE_SCALE

    parts: tuple[Part, ...] = ATTENTION_INPUTS
    towers: TowerNames = TOWERS
    first_block: Annotated[int, Range(1, 1000)] = 1
    last_block: Annotated[int, Range(1, 1000)] | None = None
    rank: Annotated[int, Range(1, 10_000)] = 2
    alpha: float = 1.0
    dropout: Annotated[float, Range(0, 0.99)] = 0.25
    templates: str | tuple[str, ...] = f"{WORDS} {{}}."
    recipe: RecipeName = AUTHORS
    steps_per_shot: Annotated[int, Range(1, MOST)] = 500
    clip_scale: bool = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        """`down` and `up` of the tuned blocks, `[blocks, parts, …]`, by tower and product, a key of `PRODUCTS`."""
        learnables: dict[str, Learnables] = {}
        constants = {}
        # Each tower has its own key, so that a run of one tower starts as the same tower in a run of both.
        for tower, key in zip(TOWERS, jax.random.split(rng), strict=True):
            geometry = getattr(clip.config, tower)
            if tower not in self.towers:
                continue
            last = geometry.layers if self.last_block is None else self.last_block
            if not self.first_block <= last <= geometry.layers:
                raise ClipbiasError(
                    f"blocks {self.first_block} to {last} are to be tuned, and the {tower} tower has blocks 1 to "
                    f"{geometry.layers}; change first_block or last_block."
                )
            blocks = range(self.first_block - 1, last)
            pairs = {}
            # The MLP's keys are folded in apart: methods that tune the attention alone keep their start.
            down_keys = [*jax.random.split(key), *jax.random.split(jax.random.fold_in(key, 1))]
            for name, down_key in zip(PRODUCTS, down_keys, strict=True):
                if count := len(self._tuned_parts(name)):
                    inputs = geometry.mlp_width if name == "fc2" else geometry.width
                    outputs = geometry.mlp_width if name == "fc1" else geometry.width
                    shape = (len(blocks), count, inputs, self.rank)
                    down = jax.random.uniform(down_key, shape, minval=-1, maxval=1) / inputs**0.5
                    pairs[name] = {"down": down, "up": jnp.zeros((len(blocks), count, self.rank, outputs))}
            learnables[tower] = pairs
            constants[tower] = jnp.zeros(geometry.layers).at[jnp.asarray(blocks)].set(1)
        # Constants `[L]` mark the tuned blocks where these are not all: `adapt` gets no geometry.
        return learnables if self.first_block == 1 and self.last_block is None else {**learnables, CONSTANTS: constants}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(**self._changes(learnables))

    def adapt_in_training(self, learnables: Learnables, rng: jax.Array) -> Adaptation:
        changes = self._changes(learnables)
        # With dropout the first tokens of all texts differ, so that a step encodes every text by itself.
        if self.dropout:
            for i, tower in enumerate(changes.values()):
                for j, pair in enumerate(tower["layers"].values()):
                    layers = pair["down"].shape[0]
                    # A number from 0 to 7 for each tower and product: no two draw the same masks, and those of the
                    # attention do not change where the MLP is tuned too.
                    number = 2 * i + j if j < len(ATTENTION) else 2 + 2 * i + j
                    pair["key"] = jax.random.split(jax.random.fold_in(rng, number), layers)
                    pair["rate"] = jnp.full(layers, self.dropout)
        return Adaptation(**changes)

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(choose_templates(self.templates, template))

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        return lora_recipe(common, shots, self.steps_per_shot)

    def logit_scale(self, params: Params) -> jax.Array:
        return params["logit_scale"].astype(jnp.float32) if self.clip_scale else super().logit_scale(params)

    def _tuned_parts(self, name: str) -> list[int]:
        return [index for index, part in enumerate(PRODUCTS[name]) if part in self.parts]

    def _changes(self, learnables: Learnables) -> Learnables:
        """`down` and `up` for every block and part, zeros where nothing is tuned."""
        # `γ = α/√r` as in the authors' code; LoRA's paper has `α/r`. In `up`, where it costs r numbers per output.
        gamma = self.alpha / self.rank**0.5
        blocks = learnables.get(CONSTANTS, {})
        changes: dict[str, Learnables] = {}
        for tower, pairs in learnables.items():
            if tower == CONSTANTS:
                continue
            layers: dict[str, Learnables] = {}
            for name, pair in pairs.items():
                scaled = {"down": pair["down"], "up": gamma * pair["up"]}
                depth = blocks[tower].shape[0] if blocks else pair["down"].shape[0]
                layers[name] = {key: self._all_blocks(name, value, depth) for key, value in scaled.items()}
            changes[f"{tower}_weights"] = {"layers": layers}
        return changes

    def _all_blocks(self, name: str, value: jax.Array, depth: int) -> jax.Array:
        """`[blocks, parts, …]` as `[L, P, …]`."""
        parts = 3 if name == "qkv" else 1
        tuned = self._tuned_parts(name)
        if value.shape[0] == depth and len(tuned) == parts:
            return value
        # Zeros, not a shorter stack: one scan runs over all blocks, and a zero pair adds nothing to its kernel.
        first = self.first_block - 1
        rows = np.arange(first, first + value.shape[0])[:, None]
        return jnp.zeros((depth, parts, *value.shape[2:]), value.dtype).at[rows, np.asarray(tuned)].set(value)
