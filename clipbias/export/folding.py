"""Folding of weight changes and biases into the weights."""

import numpy as np

from clipbias.clip import Adaptation
from clipbias.clip.layers import check_changes, fold_changes
from clipbias.clip.params import Params
from clipbias.errors import ClipbiasError


def fold(params: Params, adaptation: Adaptation) -> Params:
    """Returns the weights of a plain CLIP with the features of `params` and `adaptation`, which stay unchanged.

    The adaptation has any of `text_bias [Lt, Dt]`, `vision_bias [Lv, Dv]`, `text_weights` and `vision_weights`. Raises
    `ClipbiasError` if it has other parts, or none.
    """
    # Before the general message: these biases look like changes of weights.
    if adaptation.bias_differs_between_tokens:
        raise ClipbiasError(
            "a bias by token type or by token does not fold into the weights of a plain CLIP, which are equal for all "
            "tokens; a vector per layer ([L, D]) does."
        )
    if not adaptation.only_changes_weights:
        raise ClipbiasError(
            "only biases and other changes of weights fold into the weights; this adaptation has other parts, or none."
        )
    folded = dict(params)
    for tower in ("vision", "text"):
        bias = getattr(adaptation, f"{tower}_bias")
        change = getattr(adaptation, f"{tower}_weights")
        # Weights first: both may change the bias of fc2, and the second adds to the first.
        if change is not None:
            check_changes(change, params[tower], f"{tower}_weights")
            folded[tower] = fold_changes(folded[tower], change)
        if bias is not None:
            # `x + MLP(x) + b` is a block whose MLP has the output bias of fc2 plus `b`. A BERT's block ends with a
            # LayerNorm, and `b` adds to its bias.
            rows = np.asarray(bias).reshape(len(bias), -1)
            last = "norm2" if "embedding_norm" in params[tower] else "fc2"
            folded[tower] = fold_changes(folded[tower], {"layers": {last: {"bias": rows}}})
    return folded
