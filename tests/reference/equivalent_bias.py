"""The equivalent bias of a method, token by token in float64.

For each block, the tuned run's input is given to the tuned and to the frozen block, and what the first gives beyond the
second is averaged over input tokens: all but learned prompts, in texts up to the end. The frozen block sees no prompt;
in the places of a learned context it sees what a run of the frozen model with the initial context has there.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tests.reference import methods, numpy_clip
from tests.reference.methods import Inputs, Reference
from tests.reference.numpy_clip import Tower
from tests.reference.weights import State

Forms = dict[str, np.ndarray]  # "vector" [L, D], "kind" [L, 2, D]
Pair = tuple[np.ndarray, np.ndarray]  # the tokens [B, N, D] before and after a tuned block


def of_images(clip: Reference, tuned: State, inputs: Inputs, images: np.ndarray) -> Forms:
    """Of a tuned model's weights and its method's inputs, on images [B, R, R, 3], CLIP-normalised."""
    run = methods.run_image(dataclasses.replace(clip, state=tuned), images, inputs)
    count = 1 + (clip.config["vision_config"]["image_size"] // clip.config["vision_config"]["patch_size"]) ** 2
    return _average(clip, "vision", [(block.tokens[:, :count], block.after) for block in run.blocks], run.rows)


def of_texts(clip: Reference, tuned: State, inputs: Inputs, initial: Inputs) -> Forms:
    """Of a tuned model's weights and its method's inputs, and the inputs before training."""
    run = methods.run_text(dataclasses.replace(clip, state=tuned), inputs)
    frozen = methods.run_text(clip, Inputs(initial.tokens, initial.embeddings, initial.places))  # no later prompts
    pairs = []
    for block, before in zip(run.blocks, frozen.blocks, strict=True):
        x = block.tokens.copy()
        for c, slots in enumerate(inputs.places):
            x[c, slots] = before.tokens[c, slots]
        pairs.append((x, block.after))
    return _average(clip, "text", pairs, run.rows, inputs.places)


def of_inserted(clip: Reference, tower: str, run: Tower) -> Forms:
    """Of a run whose last blocks may have more tokens than the first, behind the first token."""
    length = run.blocks[0].tokens.shape[1]
    pairs = []
    for block in run.blocks:
        places = [0, *range(1 + block.tokens.shape[1] - length, block.tokens.shape[1])]
        pairs.append((block.tokens[:, places], block.after[:, places]))
    rows = run.rows - (run.blocks[-1].tokens.shape[1] - length if tower == "text" else 0)
    return _average(clip, tower, pairs, rows)


def _average(
    clip: Reference, tower: str, pairs: Sequence[Pair], rows: np.ndarray, slots: np.ndarray | None = None
) -> Forms:
    """Means over the input tokens, by whether a token is read out; those in `slots` are none."""
    forms: dict[str, list[np.ndarray]] = {"vector": [], "kind": []}
    for l, (before, after) in enumerate(pairs):
        name = f"{tower}_model.encoder.layers.{l}"
        mask = numpy_clip.causal_mask(before.shape[1]) if tower == "text" else np.zeros(())
        frozen = numpy_clip.block(clip.state, name, clip.config[f"{tower}_config"], before, mask, 0.0).output
        changes: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for sample, row in enumerate(rows):
            for i in range(row + 1 if tower == "text" else before.shape[1]):
                if slots is None or i not in slots[sample]:
                    changes[bool(i == row)].append(after[sample, i] - frozen[sample, i])
        forms["vector"].append(np.mean(changes[True] + changes[False], axis=0))
        forms["kind"].append(np.stack([np.mean(changes[read], axis=0) for read in (True, False)]))
    return {name: np.stack(layers) for name, layers in forms.items()}
