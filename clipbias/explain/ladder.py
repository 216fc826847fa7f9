"""What must be known to stand for a method: from one vector per layer to an affine map of the token, and controls."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from clipbias.explain.added import Added
from clipbias.explain.affine import low_rank
from clipbias.explain.amounts import Amount
from clipbias.explain.rungs import PLAIN, RANDOM, RANKS, RUNGS, SHUFFLED


def rungs(amounts: Mapping[str, Amount]) -> tuple[str, ...]:
    """The rungs that there are: affine maps only where the vision tower is changed and its products were measured."""
    maps = "vision" in amounts and amounts["vision"].products is not None
    outliers = all(amount.outliers is not None for amount in amounts.values())
    return tuple(rung for rung in RUNGS if (outliers or rung != "outliers") and (maps or not rung.startswith("rank")))


def numbers_stored(amounts: Mapping[str, Amount], rung: str) -> int:
    """How many numbers a rung holds in all towers together; a text's positions count as far as texts reach."""
    total = 0
    for tower, amount in amounts.items():
        depth, width = amount.vector.shape
        positions = int(np.any(amount.token != 0, axis=(0, 2)).sum())
        kinds = amount.kind.shape[1]
        rows = {"vector": 1, "kind": kinds, "outliers": kinds + 1, "token": positions}
        if tower == "vision" and rung.startswith("rank"):
            rows[rung] = 1 + 2 * int(rung.removeprefix("rank"))
        total += depth * width * rows.get(rung, rows[PLAIN])
    return total


def random_control(amount: Amount, *, seed: int) -> Amount:
    """Vectors of random directions with the norms of each layer's and kind's constant."""
    draw = np.random.default_rng(seed).normal(size=amount.kind.shape)
    norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (amount.kind, draw)]
    return dataclasses.replace(amount, kind=(draw * norms[0] / norms[1]).astype(np.float32))


def shuffled_control(amount: Amount, *, seed: int) -> Amount:
    """The constants of other layers: each layer gets another one's, and every one is used once."""
    depth, draw = len(amount.kind), np.random.default_rng(seed)
    order = draw.permutation(depth)
    # Along one cycle through all layers none keeps its own.
    source = np.empty(depth, int)
    source[order] = np.roll(order, 1)
    return dataclasses.replace(amount, kind=amount.kind[source])


def controls(amounts: Mapping[str, Amount], *, seed: int) -> dict[str, dict[str, Amount]]:
    """Amounts of which nothing should be kept or lost, by "random" and "shuffled", whose constants are by kind."""
    made = {RANDOM: random_control, SHUFFLED: shuffled_control}
    return {
        name: {tower: make(amount, seed=seed + place) for place, (tower, amount) in enumerate(amounts.items())}
        for name, make in made.items()
    }


def vision_added(amount: Amount, rung: str) -> Added:
    """What a rung adds to image tokens: a row for each position, whatever the rung, so that one program serves all."""
    positions = amount.token.shape[1]
    rank = max(RANKS) if amount.products is not None else 0
    maps, outlier = None, None
    if rung.startswith("rank") and amount.products is not None:
        down, up, shift = low_rank(amount.products, int(rung.removeprefix("rank")))
        maps, table = (down, up), np.repeat(shift[:, None], positions, axis=1)
    elif rung == "token":
        table = amount.token
    elif rung == "vector":
        table = np.repeat(amount.vector[:, None], positions, axis=1)
    else:
        kinds = amount.kind
        if rung == "outliers" and amount.outliers is not None:
            kinds, outlier = amount.outliers[:, :-1], amount.outliers[:, -1]
        others = positions + 1 - kinds.shape[1]  # `[cls]` is a kind of its own
        table = np.concatenate([kinds[:, :-1], np.repeat(kinds[:, -1:], others, axis=1)], axis=1)
    return Added.constant(table, outlier, rank, maps)


def text_added(amount: Amount, rung: str) -> Added:
    """What a rung adds to text tokens: rows by position, or one for EOS and one for all others."""
    if rung == "token":
        return Added.constant(amount.token)
    if rung == "vector":
        return Added.constant(np.repeat(amount.vector[:, None], 2, axis=1))
    if rung == "outliers" and amount.outliers is not None:
        return Added.constant(amount.outliers[:, :2], amount.outliers[:, 2])
    return Added.constant(amount.kind)
