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
    """Of a tuned model's weights and its method's inputs, on images [B, R, R, 3], CLIP-normalised."""
    bias = inputs.vision_bias
    run = numpy_clip.encode_image(tuned, clip.config, images, prompts=inputs.vision_prompts, bias=bias)
    count = 1 + (clip.config["vision_config"]["image_size"] // clip.config["vision_config"]["patch_size"]) ** 2
    outputs = [block.output + (0.0 if bias is None else bias[l]) for l, block in enumerate(run.blocks)]
    pairs = [(block.tokens[:, :count], output) for block, output in zip(run.blocks, outputs, strict=True)]
    return _of_pairs(clip, "vision", pairs, run.rows, count)


def of_texts(clip: Reference, tuned: State, inputs: Inputs, initial: Inputs) -> Forms:
    """Of a tuned model's weights and its method's inputs, and the inputs before training."""
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
    """Of L + 1 arrays [B, N, D], at the input of every block and after the last, none of them learned."""
    return _of_pairs(clip, tower, list(itertools.pairwise(tokens)), rows, tokens[0].shape[1])


def of_inserted(clip: Reference, tower: str, blocks: Sequence[Block], rows: np.ndarray, length: int) -> Forms:
    """Of blocks of which the last ones have more tokens than `length`, the others behind the first."""
    pairs = []
    for block in blocks:
        places = [0, *range(1 + block.tokens.shape[1] - length, block.tokens.shape[1])]
        pairs.append((block.tokens[:, places], block.output[:, places]))
    return _of_pairs(clip, tower, pairs, rows, length)


def _of_pairs(clip: Reference, tower: str, pairs: Sequence, rows: np.ndarray, length: int) -> Forms:
    """Of the tokens before and after each tuned block, and which of them are read out."""
    sizes = clip.config[f"{tower}_config"]
    causal = tower == "text"
    changes: list[list[tuple[bool, np.ndarray]]] = []
    for l, (before, after) in enumerate(pairs):
        layer = []
        for x, y, row in zip(before, after, rows, strict=True):
            frozen = _frozen(clip.state, f"{tower}_model", sizes, l, x, causal=causal)
            layer += [(i == int(row), y[i] - frozen[i]) for i in range(int(row) + 1 if causal else length)]
        changes.append(layer)
    return _forms(changes)
