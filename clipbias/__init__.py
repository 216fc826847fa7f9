"""Adapt CLIP with prompts or biases, and see why it works.

    clip = clipbias.load("demo")
    model = clipbias.fit(clip, "bias", "demo/fashion", shots=4)
    model.predict(pictures)
    model.task.logits(clip.params, model.learnables, images)

Names are imported when first used, so that `import clipbias` is quick and touches no device.
"""

from typing import Any

import lazy_loader

_of_stub, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name != "explain":
        return _of_stub(name)
    import clipbias.explain as package  # that may be called: always this object, whatever was imported before

    return package
