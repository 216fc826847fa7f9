"""Adapt CLIP with prompts or biases, and see why it works.

    clip = clipbias.load("demo")
    task = clipbias.Task(clip, "bias", class_names)
    learnables = task.init(seed=0)
    logits = task.logits(clip.params, learnables, images)

Names are imported when first used, so that `import clipbias` is quick and touches no device.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
