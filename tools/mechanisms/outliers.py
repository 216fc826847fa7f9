"""Plants outlier tokens in a frozen model: a few patches become massive, as in large CLIPs (arXiv 2309.16588).

One hidden unit of the first block's MLP, the one that adds least, is replaced. Its inputs are those of a ridge
regression that tells the patches at `places` from all other tokens, so that it is on there and off elsewhere. Its
output is a large vector along one direction: that of mean zero which keys and values of later blocks read least. It is
all that LayerNorm leaves of an outlier, and zero-shot accuracy stays as it is (of 1,120 test images 490 are right with
outliers and 489 without on clothes, and 757 and 761 on digits).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Clip, LayerView
from clipbias.clip.block import Record, run_block
from clipbias.clip.layers import ATTENDED, HIDDEN, activate, layer_norm
from clipbias.clip.params import Params
from clipbias.clip.vision import embed_image, encode_image

SIZE = 100.0  # the median norm of an outlier over that of a token
STEEP = 60.0  # the unit's input between off and on
RIDGE = 1e-4


def places(clip: Clip) -> np.ndarray:
    """The tokens that become massive: the patches in the two lower corners, which show background."""
    vision = clip.config.vision
    return np.array([vision.patches - vision.grid, vision.patches - 1]) + vision.first_patch


def plant(clip: Clip, images: np.ndarray) -> Params:
    """Frozen weights with outliers; the unit is fitted to normalised images `[B, R, R, 3]`."""
    params: Params = jax.tree.map(np.array, clip.params)
    tower = params["vision"]["layers"]
    config = clip.config.vision
    inputs = embed_image(clip.params, clip.config, jnp.asarray(images))
    layer = jax.tree.map(lambda leaf: leaf[0], inputs.layers)
    seen = Record()
    hooks = dataclasses.replace(inputs.hooks(inputs.attend_fused), keep=seen)
    norm = np.linalg.norm(run_block(inputs.tokens, layer, config, hooks), axis=-1).mean()
    normed = np.asarray(layer_norm(seen[ATTENDED], layer.weights["norm2"], config.layer_norm_epsilon), np.float64)
    active = np.abs(activate(seen[HIDDEN], config.activation)).mean((0, 1))
    adds = active * np.linalg.norm(tower["fc2"]["kernel"][0], axis=-1)
    unit = int(adds.argmin())
    weights, offset = _separate(normed, places(clip))
    tower["fc1"]["kernel"][0, :, unit] = STEEP * weights
    tower["fc1"]["bias"][0, unit] = STEEP * offset
    on = np.median(STEEP * (normed[:, places(clip)] @ weights + offset))
    tower["fc2"]["kernel"][0, unit] = SIZE * norm / on * least_read(params)
    return params


def _separate(tokens: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and offset by ridge regression: above 0 at tokens `[B, N, D]` of these places, below at the others."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    target = np.tile(np.isin(np.arange(tokens.shape[1]), where), len(tokens)).astype(float)
    balance = np.where(target > 0, 1 / target.mean(), 1 / (1 - target.mean()))
    centre = np.average(rows, axis=0, weights=balance)
    x = rows - centre
    gram = (x * balance[:, None]).T @ x / len(x) + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, (x * balance[:, None]).T @ (target - 0.5) / len(x))
    score = rows @ weights
    on = score[target > 0].min()
    off = score[target == 0].max()
    if on <= off:
        raise ValueError(f"the patches at {where.tolist()} are not told from the others: {on:.3f} is below {off:.3f}")
    return weights / (on - off), -(on + off) / 2 / (on - off)


def least_read(params: Params) -> np.ndarray:
    """The unit vector of mean zero whose keys and values, behind the LayerNorms of later blocks, are smallest."""
    tower = params["vision"]["layers"]
    width = tower["norm1"]["scale"].shape[-1]
    read = tower["norm1"]["scale"][1:, :, None] * tower["qkv"]["kernel"][1:, :, width:]
    squares = np.einsum("LDE,LFE->DF", read, read)
    even = np.eye(width) - 1 / width
    # The direction of all ones gets a large value, so that it is not the least.
    return np.linalg.eigh(even @ squares @ even + np.trace(squares) / width)[1][:, 0]


def token_norms(clip: Clip, params: Params, images: np.ndarray) -> np.ndarray:
    """Norms of the tokens at the input of each block, `[L, B, N]`."""

    def observe(view: LayerView) -> jax.Array:
        return jnp.linalg.norm(view.tokens, axis=-1)

    return np.asarray(encode_image(params, clip.config, jnp.asarray(images), observe=observe)[1])
