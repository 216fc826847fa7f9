"""Attention of patches to `[cls]` by layer."""

import dataclasses
import functools

import jax

from clipbias.analysis.model import Model, by_pass, why_no_vision_attention
from clipbias.analysis.results import Average, Missing
from clipbias.analysis.sections import Section
from clipbias.analysis.statistics import Moments
from clipbias.analysis.study import Batch, Computation, Request, Step, Study, divide
from clipbias.clip import LayerView, encode_image
from clipbias.clip.params import Params
from clipbias.tuning import Learnables, Task


@dataclasses.dataclass(frozen=True)
class ToCls:
    """Attention of patch queries to `[cls]`, mean over heads and queries, `[L]`, with its error over `count` images."""

    attention: Average
    count: int


def why_no_to_cls(task: Task) -> str:
    """Returns why attention to `[cls]` is not measured, or ""."""
    if not task.clip.config.vision.class_token:
        return "The image tower has no [cls] token."
    return why_no_vision_attention(task)


def compute_to_cls(study: Study) -> Computation[dict[str, ToCls | Missing]]:
    """Averages over the study's images; models without such attention have a reason."""
    models, left_out = divide(study.models, why_no_to_cls)
    requests = [
        Request(f"to_cls-{model.key}", f"{model.label}: attention to [cls]", study.images, _step(study, model))
        for model in models
    ]
    results = yield requests
    measured: dict[str, ToCls | Missing] = {**left_out}
    for model, request in zip(models, requests, strict=True):
        attention = results[request.name]["attention"]
        measured[model.key] = ToCls(attention.average, attention.samples)
    return measured


def _step(study: Study, model: Model) -> Step:
    config = study.clip.config
    first = config.vision.first_patch

    @jax.jit
    def step(params: Params, learnables: Learnables, batch: Batch) -> dict[str, Moments]:
        images = study.normalize(batch["images"])

        def observe(view: LayerView) -> jax.Array:  # [B, H, N, N] of one layer
            return view.probabilities[:, :, first : first + config.vision.patches, 0].mean((1, 2))

        encode = functools.partial(encode_image, params, config, images, observe=observe)
        seen = [encode(adaptation)[1] for adaptation in by_pass(model.task.method.adapt(learnables))]
        # Some images of the last batch only fill it up: the mask leaves them out.
        return {"attention": Moments.of(sum(seen).T / len(seen), batch["mask"])}

    return lambda batch: step(study.params, study.learnables[model.key], batch)


TO_CLS = Section(
    name="to_cls",
    title="How much patches look at [cls]",
    result=dict[str, ToCls | Missing],
    compute=compute_to_cls,
)
