"""Levels between nothing and all of what a tuned run adds, token by token in float64.

What the tuned run adds to each of its input tokens, beyond the frozen model with the same attention: before the first
block; from slots; and behind each block, what the tuned block gives that the frozen one on the same tokens, with the
same attention, mass and slots, does not. A level is the frozen model with attention and mass of either run and with all
of that, or with its mean by kind, or with another image's. The readout is the tuned run's.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tests.reference import factorial, numpy_clip
from tests.reference.factorial import Run


@dataclasses.dataclass
class Added:
    """Of every sample and input token."""

    start: np.ndarray  # [B, n, D]
    slots: np.ndarray  # [L, B, n, D]
    blocks: np.ndarray  # [L, B, n, D]


def _at_inputs(run: Run, tokens: np.ndarray) -> np.ndarray:
    return np.stack([x[at] for x, at in zip(tokens, run.inputs, strict=True)])


def added(reference: Run, tuned: Run) -> Added:
    """What the tuned run adds."""
    slots, blocks = [], []
    for l, seen in enumerate(tuned.forward.blocks):
        parts = factorial.parts(tuned, l)
        x = _at_inputs(tuned, seen.tokens)
        frozen = [
            factorial.block(reference, l, *sample)
            for sample in zip(x, parts.attention, parts.mass, parts.added, strict=True)
        ]
        output = seen.output
        if tuned.bias is not None:
            output = output + numpy_clip.spread(tuned.bias[l], tuned.forward.rows, output.shape[1])
        slots.append(parts.added)
        blocks.append(_at_inputs(tuned, output) - np.stack(frozen))
    return Added(tuned.start - reference.start, np.stack(slots), np.stack(blocks))


def mean(tuned: Run, values: Added) -> Added:
    """Means over samples and tokens of a kind, the one that is read out and all others, in every token's place."""
    groups: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for b, inputs in enumerate(tuned.inputs):
        for n, position in enumerate(inputs):
            read = int(tuned.forward.rows[b])
            if tuned.tower == "vision" or position <= read:
                groups[bool(position == read)].append((b, n))
    means = Added(*(np.zeros_like(getattr(values, part)) for part in ("start", "slots", "blocks")))
    for part in ("start", "slots", "blocks"):
        for b, inputs in enumerate(tuned.inputs):
            for n, position in enumerate(inputs):
                listed = [getattr(values, part)[..., c, m, :] for c, m in groups[position == tuned.forward.rows[b]]]
                getattr(means, part)[..., b, n, :] = sum(listed) / len(listed)
    return means


def of_samples(values: Added, samples: np.ndarray) -> Added:
    """Those of other samples, in the places of these."""
    return Added(values.start[samples], values.slots[:, samples], values.blocks[:, samples])


def features(reference: Run, tuned: Run, takes: Mapping[str, str], level: Added) -> np.ndarray:
    """[B, d] of the frozen blocks with a level; `takes` has "R" or "P" for "attention" and "scale"."""
    runs = {"R": reference, "P": tuned}
    x = reference.start + level.start
    for l in range(len(reference.forward.blocks)):
        attention = factorial.parts(runs[takes["attention"]], l).attention
        mass = factorial.parts(runs[takes["scale"]], l).mass
        outputs = [
            factorial.block(reference, l, *sample) for sample in zip(x, attention, mass, level.slots[l], strict=True)
        ]
        x = np.stack(outputs) + level.blocks[l]
    return factorial.readout(tuned, x)
