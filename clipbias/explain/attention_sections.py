"""Sections of a study about attention in both towers: where it goes (Fig. 4, 5)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, LayerView, TextTokens, encode_image, encode_text
from clipbias.clip.params import Params
from clipbias.clip.tower import Observe
from clipbias.clip.vision import head_attention
from clipbias.explain.attention import (
    observe_distance_and_entropy,
    observe_similarity,
    observe_text_shares,
    prompt_text,
    text_kinds,
    vision_roles,
)
from clipbias.explain.decomposition import observe_parts
from clipbias.explain.model import Model, why_no_text_attention, why_no_vision_attention
from clipbias.explain.results import AttentionVariant, Missing, SampledAverage, TextAttention, VisionAttention
from clipbias.explain.statistics import Moments, Totals, merge, rank_correlation
from clipbias.explain.study import Batch, Section, Step, Study, SumRequest
from clipbias.explain.targets import by_pass, of_texts
from clipbias.training import mesh as meshes
from clipbias.tuning import Learnables

# Of the prompts' part alone, as `Moments`: of each pass by itself, since each has its prompts.
PARTS = ("part", "total", "tokens")


def compute_text_attention(study: Study) -> Section[dict[str, TextAttention | Missing]]:
    """Fig. 4, over the classes, and over all their texts where they have several."""
    results: dict[str, TextAttention | Missing] = {}
    for model in (study.worded, *study.tuned):
        reason = why_no_text_attention(model.task)
        results[model.key] = Missing(reason) if reason else _text_attention(study, model)
    yield ()  # a section is a generator, and this one reads no image
    return results


def _text_attention(study: Study, model: Model) -> TextAttention:
    def observe(tokens: TextTokens, kinds: jax.Array) -> Observe:
        shares = observe_text_shares(jnp.asarray(tokens.eos), kinds)
        return lambda view: {"shares": shares(view)}

    totals: Totals = {}
    for seen in observe_texts(study, model, observe, text_kinds(model.task)):
        totals = merge(totals, {"shares": over_texts(seen["shares"])})
    return TextAttention(
        shares=totals["shares"].average,
        count=totals["shares"].samples,
        texts=model.texts,
        text=prompt_text(model.task),
    )


def observe_texts(
    study: Study, model: Model, observe: Callable[[TextTokens, Any], Observe], facts: Any
) -> list[dict[str, Any]]:
    """What is seen in the text tower, `[L, C, …]`: of each of a model's `S` texts per class by itself.

    Args:
      observe: makes an observer of the texts' tokens and their `facts`.
      facts: arrays with a row per text.
    """
    task = model.task
    texts = np.arange(len(task.tokens.ids))

    @jax.jit
    def run(params: Params, learnables: Learnables, tokens: TextTokens, facts: Any, rows: jax.Array) -> dict[str, Any]:
        adaptation = of_texts(task.method.adapt(learnables), rows, len(texts))
        observer = observe(tokens, facts)
        dtype = task.classifier.dtype
        return encode_text(params, study.clip.config, tokens, adaptation, observe=observer, dtype=dtype)[1]

    results = []
    for rows in np.split(texts, model.texts):
        tokens, of_rows = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], (task.tokens, facts))
        results.append(meshes.device_get(run(study.params, study.learnables[model.key], tokens, of_rows, rows)))
    return results


def _over_samples(value: Any, mask: jax.Array | None = None) -> Moments:
    """Of values `[L, B, …]` their moments; averages stay as they are."""
    return value if isinstance(value, Moments) else Moments.of(jnp.moveaxis(value, 0, 1), mask)


over_texts = jax.jit(_over_samples)


def vision_totals(study: Study, models: Sequence[Model]) -> Section[dict[str, Totals]]:
    """By model every average over images that one observed forward pass gives: attention, similarity, decomposition.

    Of several passes over an image it is their mean, but for what `PARTS` tells apart.
    """
    requests = {model.key: _vision_request(study, model) for model in models}
    results = yield list(requests.values())
    return {key: results[request.name] for key, request in requests.items()}


def _vision_request(study: Study, model: Model) -> SumRequest:
    step = _vision_step(study, model)
    return SumRequest(f"attention-{model.key}", f"{model.label}: attention", study.images, step)


def _vision_step(study: Study, model: Model) -> Step:
    config = study.clip.config
    prompts = model.prompts[0]
    dtype = model.task.classifier.dtype
    statistics = observe_distance_and_entropy(config.vision, prompts)
    is_read_at_cls = config.vision.pooling == "cls"
    similarity = observe_similarity(config.vision.patches, prompts=prompts, first=config.vision.first_patch)

    @jax.jit
    def step(params: Params, learnables: Learnables, batch: Batch) -> dict[str, Moments]:
        images = study.normalize(batch["images"])
        mask = batch["mask"]
        roles = vision_roles(config.vision, prompts)
        source = observe_parts(roles, jnp.zeros(images.shape[0], jnp.int32) if is_read_at_cls else None, mask)

        def observe(view: LayerView) -> dict[str, Any]:
            seen = {
                f"attention/{variant}/{quantity}": value
                for variant, quantities in statistics(view).items()
                for quantity, value in quantities.items()
            }
            if prompts:
                maps = similarity(view)
                if is_read_at_cls:
                    seen["rank_correlation"] = rank_correlation(maps["cls"], -maps["distance"])
                else:
                    seen["distance"] = maps["distance"]
                seen |= source(view)
            return seen

        def look(adaptation: Adaptation) -> dict[str, Any]:
            seen = encode_image(params, config, images, adaptation, observe=observe, dtype=dtype)[1]
            if "distance" in seen:
                head = head_attention(params, config, images, adaptation, dtype=dtype)
                seen["rank_correlation"] = jax.vmap(rank_correlation, (None, 0))(head, -seen.pop("distance"))
            return seen

        each = [look(adaptation) for adaptation in by_pass(model.task.method.adapt(learnables))]
        apart = {f"{name}/{i}": seen[name] for i, seen in enumerate(each) for name in PARTS if name in seen}
        means = {name: sum(seen[name] for seen in each) / len(each) for name in each[0] if name not in PARTS}
        one_by_one = {
            f"{name}/each": Moments.each(value.mean((0, 2)), batch["numbers"], len(study.split), mask)
            for name, value in means.items()
            if name == "prompt_mass" or name.startswith("attention/")
        }
        by_layer = {  # of each image, `[n, L]`: what observations are made of
            f"{name}/layers": Moments.each(value.mean(2).T, batch["numbers"], len(study.split), mask)
            for name, value in means.items()
            if name.startswith("attention/")
        }
        if "rank_correlation" in means:
            nearness = means["rank_correlation"].T
            by_layer["rank_correlation/layers"] = Moments.each(nearness, batch["numbers"], len(study.split), mask)
        averages = {name: _over_samples(value, mask) for name, value in (means | apart).items()}
        return one_by_one | by_layer | averages

    return lambda batch: step(study.params, study.learnables[model.key], batch)


def compute_vision_attention(study: Study) -> Section[dict[str, VisionAttention | Missing]]:
    """Fig. 5."""
    reasons = {model.key: why_no_vision_attention(model.task) for model in study.models}
    results: dict[str, VisionAttention | Missing] = {key: Missing(reason) for key, reason in reasons.items() if reason}
    models = [model for model in study.models if not reasons[model.key]]
    totals = yield from vision_totals(study, models)
    for model in models:
        results[model.key] = _vision_attention(study, model, totals[model.key])
    return results


def _vision_attention(study: Study, model: Model, totals: Totals) -> VisionAttention:
    has_cls = bool(study.clip.config.vision.first_patch)

    def quantity(name: str) -> SampledAverage:
        return totals[name].sampled(totals[f"{name}/each"])

    def variant(name: str) -> AttentionVariant:
        return AttentionVariant(
            distance=quantity(f"attention/{name}/distance"),
            entropy=quantity(f"attention/{name}/entropy"),
            cls_entropy=quantity(f"attention/{name}/cls_entropy") if has_cls else None,
        )

    prompts = model.prompts[0]
    return VisionAttention(
        count=totals[f"attention/{'with_prompt' if prompts else 'clip'}/distance"].samples,
        clip=None if prompts else variant("clip"),
        without_prompt=variant("without_prompt") if prompts else None,
        with_prompt=variant("with_prompt") if prompts else None,
        no_cls_entropy=None if has_cls else "This vision tower has no [cls], so that no query of it has an entropy.",
    )
