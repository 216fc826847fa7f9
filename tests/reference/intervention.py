"""A tower with something added to its input tokens after every block, one token after another in float64."""

from collections.abc import Callable, Mapping

import numpy as np

from tests.reference import numpy_clip
from tests.reference.factorial import LAST_NORM, PROJECTION, Run

# From a layer, a sequence, a position and the block's input token there: what is added after the block.
Add = Callable[[int, int, int, np.ndarray], np.ndarray]


def features(run: Run, prompts: Mapping[int, np.ndarray], add: Add) -> np.ndarray:
    """[B, d] of a run whose input tokens get that besides.

    Args:
      run: which tokens are inputs, their start, and the weights.
      prompts: by layer, what the others are replaced by at the block's input; layers without keep them.
      add: called for input tokens alone.
    """
    sizes = run.sizes
    rows = []
    for b, inputs in enumerate(run.inputs):
        x = run.forward.blocks[0].tokens[b]
        slots = np.setdiff1d(np.arange(len(x)), inputs)
        causal = np.where(np.tril(np.ones((len(x), len(x)), bool)), 0.0, -np.inf)
        mask = causal if run.tower == "text" else np.zeros(())
        for l in range(len(run.forward.blocks)):
            x = x.copy()
            if l in prompts:
                x[slots] = prompts[l]
            before = x
            x = numpy_clip.block(run.state, f"{run.tower}_model.encoder.layers.{l}", sizes, x[None], mask, 0.0).output[
                0
            ]
            if run.bias is not None:
                x = x + numpy_clip.spread(run.bias[l], run.forward.rows[[b]], len(x))[0]
            for i in inputs:
                x[i] = x[i] + add(l, b, i, before[i])
        rows.append(x[run.forward.rows[b]])
    normed = numpy_clip.layer_norm(run.state, LAST_NORM[run.tower], sizes["layer_norm_eps"], np.stack(rows))
    return normed @ run.state[PROJECTION[run.tower]].T


def changes(tuned: Run, frozen: Run, words: Run) -> list[list[tuple[int, int, np.ndarray]]]:
    """By layer: sequence, position and what the tuned block gives beyond the frozen one.

    Args:
      tuned: the tuned run.
      frozen: the reference run, for the frozen weights.
      words: the run whose tokens stand in the slots of texts.
    """
    layers = []
    for l, seen in enumerate(tuned.forward.blocks):
        layer = []
        for b, inputs in enumerate(tuned.inputs):
            x = seen.tokens[b]
            if tuned.tower == "vision":
                x = x[inputs]
                mask = np.zeros(())
            else:
                slots = np.setdiff1d(np.arange(len(x)), inputs)
                x = x.copy()
                x[slots] = words.forward.blocks[l].tokens[b, slots]
                mask = np.where(np.tril(np.ones((len(x), len(x)), bool)), 0.0, -np.inf)
            name = f"{tuned.tower}_model.encoder.layers.{l}"
            plain = numpy_clip.block(frozen.state, name, tuned.sizes, x[None], mask, 0.0).output[0]
            output = seen.output[b]
            if tuned.bias is not None:
                output = output + numpy_clip.spread(tuned.bias[l], tuned.forward.rows[[b]], len(output))[0]
            end = int(tuned.forward.rows[b]) if tuned.tower == "text" else len(output)
            layer += [(b, int(i), output[i] - plain[i]) for i in inputs if i <= end]
        layers.append(layer)
    return layers
