"""Tasks: what is counted and what is refused."""

import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip, ClipConfig, TextConfig, VisionConfig
from clipbias.errors import ClipbiasError
from clipbias.tuning import parameter_count

VIT_B_16 = ClipConfig(
    VisionConfig(768, 12, 12, 3072, image_size=224, patch_size=16),
    TextConfig(512, 12, 8, 2048, vocabulary_size=49408, context_length=77, eos_token_id=49407),
    512,
)


@pytest.mark.parametrize(
    ("method", "count"), [("bias", 15_360), ("ivlp_matched", 15_360), ("maple", 3_555_072), ("coop", 2_048)]
)
def test_parameter_counts_of_vit_b_16(clip: Clip, method: str, count: int) -> None:
    import dataclasses

    text = {**clip.params["text"], "token_embedding": np.zeros((len(clip.tokenizer), 512), np.float32)}
    large = dataclasses.replace(clip, config=VIT_B_16, params={**clip.params, "text": text})
    task = clipbias.Task(large, method, ("cat", "dog"))
    assert parameter_count(task.shapes)["total"] == count


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ((), {}, "no class names"),
        (("cat", " "), {}, "class 1 has an empty name"),
        (("cat",), {"template": "no place"}, "must contain '{}' exactly once"),
        (("cat " * 30,), {}, "this model reads at most 24"),
    ],
)
def test_names_that_cannot_be_used(clip: Clip, names: tuple, options: dict, message: str) -> None:
    with pytest.raises(ClipbiasError, match=message):
        clipbias.Task(clip, "zero_shot", names, **options)
