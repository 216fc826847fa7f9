"""The equivalent bias of a method, token by token in float64.

For each block, the tuned run's input is given to the tuned and to the frozen block, and what the first gives beyond the
second is averaged over input tokens: all but learned prompts, in texts up to the end. The frozen block sees no prompt;
in the places of a learned context it sees what a run of the frozen model with the initial context has there.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import numpy_clip
from tests.reference.methods import Inputs, Reference
from tests.reference.numpy_clip import Block
from tests.reference.weights import State

Forms = dict[str, np.ndarray]  # "vector" [L, D], "kind" [L, 2, D]


def _frozen(state: State, tower: str, sizes: Mapping, l: int, x: np.ndarray, *, causal: bool) -> np.ndarray:
    """The frozen block l of one sequence `x` [N, D]."""
    mask = numpy_clip.causal_mask(len(x)) if causal else np.zeros(())
    return numpy_clip.block(state, f"{tower}.encoder.layers.{l}", sizes, x[None], mask, 0.0).output[0]


def _forms(changes: list[list[tuple[bool, np.ndarray]]]) -> Forms:
    """Averages of (whether it is read out, change) that each layer lists."""
    forms: dict[str, list[np.ndarray]] = {"vector": [], "kind": []}
    for layer in changes:
        forms["vector"].append(np.mean([change for _, change in layer], axis=0))
        kinds = [[change for read, change in layer if read is is_pooled] for is_pooled in (True, False)]
        forms["kind"].append(np.stack([np.mean(kind, axis=0) for kind in kinds]))
    return {name: np.stack(layers) for name, layers in forms.items()}


def of_images(clip: Reference, tuned: State, inputs: Inputs, images: np.ndarray) -> Forms:
    """Args:
    clip: the frozen model.
    tuned: the weights that the tuned model has.
    inputs: the method's.
    images: [B, R, R, 3], CLIP-normalised.
    """
    sizes = clip.config["vision_config"]
    bias = inputs.vision_bias
    run = numpy_clip.encode_image(tuned, clip.config, images, prompts=inputs.vision_prompts, bias=bias)
    count = 1 + (sizes["image_size"] // sizes["patch_size"]) ** 2
    changes: list[list[tuple[bool, np.ndarray]]] = [[] for _ in run.blocks]
    for l, block in enumerate(run.blocks):
        for tokens, output in zip(block.tokens, block.output, strict=True):
            frozen = _frozen(clip.state, "vision_model", sizes, l, tokens[:count], causal=False)
            added = 0.0 if bias is None else bias[l]
            changes[l] += [(i == 0, output[i] + added - frozen[i]) for i in range(count)]
    return _forms(changes)


def of_texts(clip: Reference, tuned: State, inputs: Inputs, initial: Inputs) -> Forms:
    """Args:
    clip: the frozen model.
    tuned: the weights that the tuned model has.
    inputs: the method's.
    initial: the same before training.
    """
    sizes = clip.config["text_config"]
    bias = inputs.text_bias
    run = numpy_clip.encode_text(
        tuned, clip.config, inputs.tokens, embeddings=inputs.embeddings, prompts=inputs.text_prompts, bias=bias
    )
    before = numpy_clip.encode_text(clip.state, clip.config, initial.tokens, embeddings=initial.embeddings)
    changes: list[list[tuple[bool, np.ndarray]]] = [[] for _ in run.blocks]
    for l, block in enumerate(run.blocks):
        for c, slots in enumerate(inputs.places):
            x = block.tokens[c].copy()
            x[slots] = before.blocks[l].tokens[c, slots]
            frozen = _frozen(clip.state, "text_model", sizes, l, x, causal=True)
            output = block.output[c] + (0.0 if bias is None else bias[l])
            end = int(run.rows[c])
            changes[l] += [(i == end, output[i] - frozen[i]) for i in range(end + 1) if i not in slots]
    return _forms(changes)


def of_tokens(clip: Reference, tower: str, tokens: list[np.ndarray], rows: np.ndarray) -> Forms:
    """Args:
    clip: the frozen model.
    tower: "vision" or "text".
    tokens: L + 1 arrays [B, N, D], at the input of every block and after the last, none of them learned.
    rows: [B], which token is read out.
    """
    sizes = clip.config[f"{tower}_config"]
    causal = tower == "text"
    changes: list[list[tuple[bool, np.ndarray]]] = []
    for l, (before, after) in enumerate(itertools.pairwise(tokens)):
        layer = []
        for x, y, row in zip(before, after, rows, strict=True):
            change = y - _frozen(clip.state, f"{tower}_model", sizes, l, x, causal=causal)
            layer += [(i == int(row), change[i]) for i in range(int(row) + 1 if causal else len(x))]
        changes.append(layer)
    return _forms(changes)


def of_inserted(clip: Reference, tower: str, blocks: Sequence[Block], rows: np.ndarray, length: int) -> Forms:
    """Args:
    clip: the frozen model.
    tower: "vision" or "text".
    blocks: of the tuned run, whose last ones have more tokens than `length`, the others behind the first.
    rows: [B], which token is read out, without these.
    """
    sizes = clip.config[f"{tower}_config"]
    causal = tower == "text"
    changes: list[list[tuple[bool, np.ndarray]]] = []
    for l, block in enumerate(blocks):
        places = [0, *range(1 + block.tokens.shape[1] - length, block.tokens.shape[1])]
        layer = []
        for x, y, row in zip(block.tokens[:, places], block.output[:, places], rows, strict=True):
            change = y - _frozen(clip.state, f"{tower}_model", sizes, l, x, causal=causal)
            layer += [(i == int(row), change[i]) for i in range(int(row) + 1 if causal else length)]
        changes.append(layer)
    return _forms(changes)
