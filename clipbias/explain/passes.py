"""The computations that sections of a study share, each one compiled program: logits, relevancy, maps of all layers."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from clipbias.clip import LayerView, encode_image
from clipbias.clip.params import Params
from clipbias.clip.vision import head_attention
from clipbias.explain.attention import prompt_distances
from clipbias.explain.model import Model
from clipbias.explain.relevancy import Relevancy, relevancy
from clipbias.explain.study import Study
from clipbias.training.evaluate import Predictor
from clipbias.tuning import Classifier, Learnables
from clipbias.tuning.task import Text

Program = TypeVar("Program", bound=Callable[..., object])


def predictor(study: Study, model: Model) -> Predictor:
    """The model with its texts encoded, once for all sections."""
    place = ("predictor", model.task)
    if place not in study.shared:
        study.shared[place] = Predictor.of(model.task, study.learnables[model.key], study.params)
    return study.shared[place]


def _program(study: Study, name: str, model: Model, function: Program) -> Program:
    """`function` compiled, once for all sections."""
    return study.shared.setdefault((name, model.task), jax.jit(function))


def chunk(model: Model, images: jax.Array) -> int | None:
    """The images that `relevancy` takes at a time: fewer where a class has several texts; `None` for all."""
    return None if model.texts == 1 else max(1, len(images) // model.texts)


def relevancy_maps(study: Study, model: Model, images: jax.Array, targets: jax.Array) -> Relevancy:
    """Relevancy of raw images `[B, R, R, 3]` for a class of each, `[B]`."""

    def maps(
        params: Params, learnables: Learnables, text: Text | None, images: jax.Array, targets: jax.Array
    ) -> Relevancy:
        return relevancy(
            model.task,
            params,
            learnables,
            study.normalize(images),
            targets,
            chunk=chunk(model, images),
            text=text,
        )

    text = predictor(study, model).text if model.has_own_head else None
    run = _program(study, "relevancy", model, maps)
    return run(study.params, study.learnables[model.key], text, images, targets)


def layer_maps(study: Study, model: Model, images: jax.Array) -> dict[str, jax.Array]:
    """`observe_layers` of raw images `[B, R, R, 3]`."""

    def maps(params: Params, learnables: Learnables, images: jax.Array) -> dict[str, jax.Array]:
        return observe_layers(model.task.classifier, params, learnables, study.normalize(images))

    return _program(study, "layers", model, maps)(study.params, study.learnables[model.key], images)


def observe_layers(
    classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array
) -> dict[str, jax.Array]:
    """Attention of `[cls]` and distances between patches and prompts in every layer, of normalised images.

    Returns:
      "attention" of `[cls]` to patches and prompts, mean over heads, `[B, L, M + V]`; with prompts "distance"
      `[B, L, V, M]`. A tower with a pooling head has the attention of that head, the same in all layers.
    """
    adaptation = classifier.method.adapt(learnables)
    config = classifier.config
    prompts = 0 if adaptation.vision_prompts is None else adaptation.vision_prompts.shape[-2]

    def observe(view: LayerView) -> dict[str, jax.Array]:
        seen = {"attention": view.probabilities[:, :, 0, 1:].mean(1)} if is_read_at_cls else {}
        if prompts:
            seen["distance"] = prompt_distances(view.tokens, config.vision.patches, config.vision.first_patch)
        return seen

    is_read_at_cls = config.vision.pooling == "cls"
    seen = encode_image(params, config, images, adaptation, observe=observe, dtype=classifier.dtype)[1]
    if not is_read_at_cls:
        head = head_attention(params, config, images, adaptation, dtype=classifier.dtype)
        head = jnp.pad(head, [(0, 0), (0, prompts)])
        seen["attention"] = jnp.broadcast_to(head, (config.vision.layers, *head.shape))
    return {name: jnp.moveaxis(value, 0, 1) for name, value in seen.items()}
