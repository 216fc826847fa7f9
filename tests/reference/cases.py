"""The methods, depths and texts at which the package, the reference and the authors' rules in PyTorch are compared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Names of different lengths, one with underscore and apostrophe, one that is all single characters.
CLASS_NAMES = ("cat", "maine_coon", "Golden Retriever's pup", "bird", "757-200")
LABELS = (4, 0, 2, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with the sizes of its learnables (`methods.random_learnables`) and its options (`methods.prepare`)."""

    method: str
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# The tiny towers have three layers: depths of 2 stop before the last block, others use the whole tower.
CASES = {
    "zero_shot": Case("zero_shot", {}, {"template": "a centered satellite photo of {}."}),
    "coop": Case("coop", {"text": 4}),
    "coop_middle": Case("coop", {"text": 4}, {"position": "middle"}),
    "coop_front": Case("coop", {"text": 4}, {"position": "front"}),
    "coop_placeholders_middle": Case("coop", {"text": 7}, {"position": "middle", "worded": False}),
    "coop_class_specific": Case("coop", {"text": 4, "class_specific": True}, {"worded": False}),
    "coop_class_specific_front": Case(
        "coop", {"text": 4, "class_specific": True}, {"worded": False, "position": "front"}
    ),
    "vpt_deep": Case("vpt", {"vision": 4}),
    "vpt_two_layers": Case("vpt", {"vision": 3, "vision_depth": 2}),
    "vpt_shallow": Case("vpt", {"vision": 4, "vision_depth": 1}),
    "ivlp": Case("ivlp", {"text": 4, "vision": 4}),
    "ivlp_matched": Case("ivlp", {"text": 1, "vision": 1}),
    "ivlp_two_and_one_layers": Case("ivlp", {"text": 2, "vision": 2, "text_depth": 2, "vision_depth": 1}),
    "ivlp_one_and_two_layers": Case("ivlp", {"text": 2, "vision": 5, "text_depth": 1, "vision_depth": 2}),
    "ivlp_long": Case("ivlp", {"text": 6, "vision": 2, "text_depth": 2, "vision_depth": 2}),
    "ivlp_vision_only": Case("ivlp", {"text": 0, "vision": 2}),
    "ivlp_text_only": Case("ivlp", {"text": 2, "vision": 0}),
    "maple": Case("maple", {"text": 2, "text_depth": 3}),
    "maple_two_layers": Case("maple", {"text": 2, "text_depth": 2}),
    "maple_shallow": Case("maple", {"text": 3, "text_depth": 1}),
    "taskres": Case("taskres", {}, {"template": "a photo of a {}, a type of painting.", "alpha": 0.5}),
    "taskres_alpha_one": Case("taskres", {}, {"alpha": 1.0}),
    "bias": Case("bias"),
}
LEARNING_RATE = 0.05
STEPS = 10

# Two tiny geometries that transformers wrote, and ViT-B/16 whose weights are drawn anew where they are needed.
TINY: dict[str, dict[str, Any]] = {
    "tiny_quick_gelu": {"vision": (24, 3, 2), "text": (16, 3, 2), "image_size": 16, "patch_size": 4},
    "tiny_gelu": {
        "vision": (16, 3, 4),
        "text": (24, 3, 3),
        "projection": 10,
        "image_size": 18,
        "patch_size": 6,
        "activation": "gelu",
    },
}
VIT_B_16: dict[str, Any] = {
    "vision": (768, 12, 12),
    "text": (512, 12, 8),
    "projection": 512,
    "image_size": 224,
    "patch_size": 16,
    "vocabulary": 49408,
    "context_length": 77,
}
