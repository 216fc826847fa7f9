"""What must be known to stand for a method: from one vector per layer to an affine map of the token, and controls."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from clipbias.explain.affine import low_rank
from clipbias.explain.equivalent_bias import EquivalentBias
from clipbias.explain.intervention import Intervention
from clipbias.explain.replacement_names import PLAIN, RANDOM, RANKS, REPLACEMENT_FORMS, SHUFFLED


def replacement_forms(biases: Mapping[str, EquivalentBias]) -> tuple[str, ...]:
    """The forms that there are: affine maps only where the vision tower is changed and its products were measured."""
    maps = "vision" in biases and biases["vision"].products is not None
    outliers = all(bias.outliers is not None for bias in biases.values())

    def is_measured(form: str) -> bool:
        if form == "outliers":
            return outliers
        return maps or not form.startswith("rank")

    return tuple(filter(is_measured, REPLACEMENT_FORMS))


def numbers_stored(biases: Mapping[str, EquivalentBias], form: str) -> int:
    """How many numbers a form holds in all towers together; a text's positions count as far as texts reach."""
    total = 0
    for tower, bias in biases.items():
        depth, width = bias.vector.shape
        positions = int(np.any(bias.token != 0, axis=(0, 2)).sum())
        kinds = bias.kind.shape[1]
        rows = {"vector": 1, "kind": kinds, "outliers": kinds + 1, "token": positions}
        if tower == "vision" and form.startswith("rank"):
            rows[form] = 1 + 2 * int(form.removeprefix("rank"))
        total += depth * width * rows.get(form, rows[PLAIN])
    return total


def random_control(bias: EquivalentBias, *, seed: int) -> EquivalentBias:
    """Vectors of random directions with the norms of each layer's and kind's constant."""
    draw = np.random.default_rng(seed).normal(size=bias.kind.shape)
    norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (bias.kind, draw)]
    return dataclasses.replace(bias, kind=(draw * norms[0] / norms[1]).astype(np.float32))


def shuffled_control(bias: EquivalentBias, *, seed: int) -> EquivalentBias:
    """The constants of other layers: each layer gets another one's, and every one is used once."""
    depth = len(bias.kind)
    draw = np.random.default_rng(seed)
    order = draw.permutation(depth)
    # Along one cycle through all layers none keeps its own.
    source = np.empty(depth, int)
    source[order] = np.roll(order, 1)
    return dataclasses.replace(bias, kind=bias.kind[source])


def controls(biases: Mapping[str, EquivalentBias], *, seed: int) -> dict[str, dict[str, EquivalentBias]]:
    """Amounts of which nothing should be kept or lost, by "random" and "shuffled", whose constants are by kind."""
    made = {RANDOM: random_control, SHUFFLED: shuffled_control}
    return {
        name: {tower: make(bias, seed=seed + place) for place, (tower, bias) in enumerate(biases.items())}
        for name, make in made.items()
    }


def vision_intervention(bias: EquivalentBias, form: str) -> Intervention:
    """What a form adds to image tokens: a row for each position, whatever the form, so that one program serves all."""
    positions = bias.token.shape[1]
    rank = max(RANKS) if bias.products is not None else 0
    maps = None
    outlier = None
    if form.startswith("rank") and bias.products is not None:
        down, up, shift = low_rank(bias.products, int(form.removeprefix("rank")))
        maps = (down, up)
        table = np.repeat(shift[:, None], positions, axis=1)
    elif form == "token":
        table = bias.token
    elif form == "vector":
        table = np.repeat(bias.vector[:, None], positions, axis=1)
    else:
        kinds = bias.kind
        if form == "outliers" and bias.outliers is not None:
            kinds = bias.outliers[:, :-1]
            outlier = bias.outliers[:, -1]
        others = positions + 1 - kinds.shape[1]  # `[cls]` is a kind of its own
        table = np.concatenate([kinds[:, :-1], np.repeat(kinds[:, -1:], others, axis=1)], axis=1)
    return Intervention.constant(table, outlier, rank, maps)


def text_intervention(bias: EquivalentBias, form: str) -> Intervention:
    """What a form adds to text tokens: rows by position, or one for EOS and one for all others."""
    if form == "token":
        return Intervention.constant(bias.token)
    if form == "vector":
        return Intervention.constant(np.repeat(bias.vector[:, None], 2, axis=1))
    if form == "outliers" and bias.outliers is not None:
        return Intervention.constant(bias.outliers[:, :2], bias.outliers[:, 2])
    return Intervention.constant(bias.kind)
