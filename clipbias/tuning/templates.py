"""Prompt ensembles: several templates whose normalised text features are averaged and normalised again."""

import importlib.resources

from clipbias.errors import ClipbiasError

# The best seven templates on ImageNet, selected by CLIP's authors and used in CoOp's zero-shot baseline.
IMAGENET_SELECT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

CHOICES = ("dataset", "imagenet_select", "imagenet_select_and_dataset", "imagenet_60", "imagenet_full")


def imagenet_full() -> tuple[str, ...]:
    """CLIP's 80 templates for ImageNet."""
    text = importlib.resources.files("clipbias").joinpath("assets", "imagenet_templates.txt").read_text("utf-8")
    return tuple(text.splitlines())


def choose_templates(choice: str | tuple[str, ...], dataset_template: str) -> tuple[str, ...]:
    """The templates of a choice.

    Args:
      choice: one of `CHOICES`: "dataset" is the dataset's own template, "imagenet_select" the seven,
        "imagenet_select_and_dataset" both (CoOp's ensemble for all datasets but ImageNet), "imagenet_full" the eighty,
        "imagenet_60" the first sixty of them (PromptSRC's teacher); or templates with `{}`.
      dataset_template: the dataset's own template.

    Raises:
      ClipbiasError: no such choice.
    """
    if not isinstance(choice, str):
        if not choice:
            raise ClipbiasError("there is no template; give at least one with '{}' for the class name.")
        return tuple(choice)
    if choice == "imagenet_full":
        return imagenet_full()
    if choice == "imagenet_60":
        return imagenet_full()[:60]
    if choice == "dataset":
        return (dataset_template,)
    if choice == "imagenet_select":
        return IMAGENET_SELECT
    if choice == "imagenet_select_and_dataset":
        return (*IMAGENET_SELECT, dataset_template)
    if "{}" in choice:
        return (choice,)
    raise ClipbiasError(
        f"unknown templates {choice!r}; choose from {', '.join(CHOICES)}, or write templates with '{{}}'."
    )
