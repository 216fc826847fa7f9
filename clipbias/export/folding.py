"""Folds changes of weights, and the biases of bias tuning, into the weights.

`x + MLP(x) + b` is the network whose MLP output bias is increased by `b`. A BERT's block ends in a LayerNorm: there it
is that LayerNorm's bias.
"""

import numpy as np

from clipbias.clip import Adaptation
from clipbias.clip.layers import check_changes, fold_changes
from clipbias.clip.params import Params
from clipbias.errors import ClipbiasError


def fold(params: Params, adaptation: Adaptation) -> Params:
    """The weights of a plain CLIP that computes what `params` with `adaptation` does.

    Args:
      params: the frozen weights, which stay unchanged; the result shares those that the adaptation does not change.
      adaptation: any of `text_bias [Lt, Dt]`, `vision_bias [Lv, Dv]`, `text_weights` and `vision_weights`.

    Raises:
      ClipbiasError: the adaptation holds something else.
    """
    if adaptation.bias_differs_between_tokens:
        raise ClipbiasError(
            "a bias by kind of token or by token does not fold into the weights of a plain CLIP, which are the same "
            "for all tokens; one vector per layer ([L, D]) does."
        )
    if not adaptation.only_changes_weights:
        raise ClipbiasError(
            "only biases and other changes of weights fold into the weights, and this adaptation holds something else "
            "or nothing."
        )
    folded = dict(params)
    for tower in ("vision", "text"):
        bias = getattr(adaptation, f"{tower}_bias")
        change = getattr(adaptation, f"{tower}_weights")
        if change is not None:
            check_changes(change, params[tower], f"{tower}_weights")
            folded[tower] = fold_changes(folded[tower], change)
        if bias is not None:
            rows = np.asarray(bias).reshape(len(bias), -1)
            last = "norm2" if "embedding_norm" in params[tower] else "fc2"
            folded[tower] = fold_changes(folded[tower], {"layers": {last: {"bias": rows}}})
    return folded
