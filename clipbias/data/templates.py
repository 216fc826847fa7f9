"""Prompt ensembles: several templates whose normalised text features are averaged and normalised again."""

import importlib.resources

# The seven that do best together on ImageNet, as CLIP's authors found; CoOp's zero-shot baseline uses them as well.
IMAGENET_SELECT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def imagenet_full() -> tuple[str, ...]:
    """CLIP's 80 templates for ImageNet."""
    text = importlib.resources.files("clipbias").joinpath("assets", "imagenet_templates.txt").read_text("utf-8")
    return tuple(text.splitlines())


def ensemble(template: str, *, imagenet: bool = False) -> tuple[str, ...]:
    """CoOp's zero-shot ensemble: the seven, and the dataset's own template besides except on ImageNet."""
    return IMAGENET_SELECT if imagenet else (*IMAGENET_SELECT, template)
