"""Named ensembles of templates for zero-shot classification."""

from clipbias.errors import ClipbiasError

# The seven that CoOp's ZeroshotCLIP2 takes from CLIP's prompt-engineering notebook.
IMAGENET_SELECT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

ENSEMBLES = {"imagenet_select": IMAGENET_SELECT}


def choose_templates(choice: str | tuple[str, ...], own: str) -> tuple[str, ...]:
    """Resolves "dataset" (the dataset's `own` template), an ensemble's name, one template or several."""
    if not isinstance(choice, str):
        return tuple(choice)
    if choice == "dataset":
        return (own,)
    if choice in ENSEMBLES:
        return ENSEMBLES[choice]
    if "{}" in choice:
        return (choice,)
    raise ClipbiasError(
        f"unknown templates {choice!r}; choose 'dataset', one of {sorted(ENSEMBLES)}, or write templates with '{{}}'."
    )
