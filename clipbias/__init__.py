"""Adapt CLIP with prompts or biases, and see why it works.

    clip = clipbias.load("demo")
    model = clipbias.fit(clip, "bias", "demo/fashion", shots=4)
    model.predict(pictures)
    model.task.logits(clip.params, model.learnables, images)

Names are imported when first used, so that `import clipbias` is quick and touches no device.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
