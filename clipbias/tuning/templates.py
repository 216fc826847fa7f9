"""Prompt ensembles: several templates whose normalised text features are averaged and normalised again."""

import importlib.resources

from clipbias.errors import ClipbiasError

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

CHOICES = ("dataset", "imagenet_select", "imagenet_select_and_dataset", "imagenet_60", "imagenet_full")


def imagenet_full() -> tuple[str, ...]:
    """CLIP's 80 templates for ImageNet."""
    text = importlib.resources.files("clipbias").joinpath("assets", "imagenet_templates.txt").read_text("utf-8")
    return tuple(text.splitlines())


def choose_templates(choice: str | tuple[str, ...], own: str) -> tuple[str, ...]:
    """Resolves one of `CHOICES`, one template or several.

    Args:
      choice: "dataset" is the dataset's own template, "imagenet_select" the seven, "imagenet_select_and_dataset" both
        (CoOp's ensemble for all datasets but ImageNet), "imagenet_full" the eighty, "imagenet_60" the first sixty of
        them (PromptSRC's teacher); or templates with `{}`.
      own: the dataset's own template.

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
    named = {"dataset": (own,), "imagenet_select": IMAGENET_SELECT}
    named["imagenet_select_and_dataset"] = (*IMAGENET_SELECT, own)
    if choice in named:
        return named[choice]
    if "{}" in choice:
        return (choice,)
    raise ClipbiasError(
        f"unknown templates {choice!r}; choose from {', '.join(CHOICES)}, or write templates with '{{}}'."
    )
