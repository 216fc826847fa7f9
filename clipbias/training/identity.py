"""What a number depends on. Equal identities are one result; a result whose identity changed is not used again."""

from collections.abc import Mapping
from typing import Any

from clipbias.clip import Clip
from clipbias.clip.precision import named
from clipbias.data.images import Images
from clipbias.training.loop import Run
from clipbias.training.packs import Pack
from clipbias.training.settings import GridSettings
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import source_digest


def identity(
    pack: Pack, clip: Clip, options: Mapping[str, Any], settings: GridSettings, recipe: Recipe | None
) -> dict[str, Any]:
    """All settings behind the cells of a pack with one learning rate, as JSON values.

    Its hash names the cells in `results.jsonl`, so it must stay as it is. The images, which it does not name, have a
    hash of their own beside it (`Cache.image_hash`).

    Args:
      pack: with the one learning rate that `recipe` has.
      clip: the frozen model, named by its weights and not by its path.
      options: the method's.
      settings, recipe: of the grid; no recipe where nothing is trained.
    """
    source = source_digest(pack.method)
    # What differs from dataset to dataset is there by their names.
    inputs = {
        name: value.get(pack.dataset) if isinstance(value, Mapping) else value
        for name, value in settings.inputs.items()
    }
    return {
        **({} if source is None else {"source": source}),
        **({"inputs": _json(inputs)} if inputs else {}),
        "model": clip.fingerprint,
        "method": pack.method,
        "options": _json(options),
        "protocol": settings.protocol,
        "targets": settings.targets,
        "dataset": pack.dataset,
        "shots": pack.shots,
        "seeds": pack.seeds,
        "dtype": named(settings.dtype),
        "recipe": {} if recipe is None else recipe.facts(),
    }


def earlier_identity(task: Task, pack: Pack, run: Run, recipe: Recipe) -> dict[str, Any]:
    """How checkpoints of `experiments.train` named their run before it was a grid of one cell."""
    images = Images.of(run.train)
    return {
        "method": pack.method,
        "dataset": pack.dataset,
        "shots": pack.shots,
        "seed": run.seed,
        "model": task.clip.name,
        "fingerprint": task.clip.fingerprint,
        "options": _json(task.options()),
        "class_names": list(task.class_names),
        "images": list(images.split.keys),
        "template": task.template,
        "source": source_digest(pack.method),
        "dtype": named(task.classifier.dtype),
        "recipe": recipe.facts(),
    }


def _json(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
