"""Biases folded into the weights: `x + MLP(x) + b` is the network whose MLP output bias is increased by `b`."""

import numpy as np

from clipbias.clip import Adaptation
from clipbias.clip.params import Params
from clipbias.errors import ClipbiasError


def fold(params: Params, adaptation: Adaptation) -> Params:
    """The weights of a plain CLIP that computes what `params` with `adaptation` does.

    Args:
      params: the frozen weights; they are not changed, and all but `fc2/bias` are shared with the result.
      adaptation: `text_bias [Lt, Dt]`, `vision_bias [Lv, Dv]` or both.

    Raises:
      ClipbiasError: the adaptation holds something else.
    """
    if not adaptation.is_bias:
        raise ClipbiasError("only biases fold into the weights, and this adaptation holds something else or nothing.")
    folded = dict(params)
    for tower, bias in (("vision", adaptation.vision_bias), ("text", adaptation.text_bias)):
        if bias is None:
            continue
        layers = params[tower]["layers"]
        increased = np.asarray(layers["fc2"]["bias"], np.float32) + np.asarray(bias, np.float32)
        folded[tower] = {**params[tower], "layers": {**layers, "fc2": {**layers["fc2"], "bias": increased}}}
    return folded
