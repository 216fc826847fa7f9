"""Sections of a study about attention in both towers: where it goes (Fig. 4, 5) and what prompts are in it (Fig. 1)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, LayerView, TextTokens, encode_image, encode_text
from clipbias.clip.tower import Observe
from clipbias.clip.vision import head_attention
from clipbias.explain.attention import QUANTITIES, observe_distance_and_entropy, observe_text_shares
from clipbias.explain.decomposition import constancy, observe_parts
from clipbias.explain.jackknife import left_out, observe_products, standard_error
from clipbias.explain.model import Model
from clipbias.explain.scope import why_no_text_attention, why_no_vision_attention
from clipbias.explain.similarity import observe_similarity
from clipbias.explain.statistics import Moments, Totals, merge, rank_correlation
from clipbias.explain.stream import Batch, Reading, Rows, Step, Sums
from clipbias.explain.study import Section, Study
from clipbias.explain.targets import by_pass, of_texts
from clipbias.explain.tokens import prompt_text, text_kinds, text_roles, vision_roles
from clipbias.training import mesh as meshes


def compute_text_attention(study: Study) -> Reading[Section]:
    """Fig. 4, over the classes, and over all their texts where they have several."""
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    for model in (study.worded, *study.tuned):
        task = model.task
        if reason := why_no_text_attention(task):
            scalars[model.key] = {"missing": reason}
            continue
        reduction = study.options.reduction

        def observe(tokens: TextTokens, kinds: jax.Array, reduction: str = reduction) -> Observe:
            shares = observe_text_shares(jnp.asarray(tokens.eos), kinds, reduction=reduction)
            return lambda view: {"shares": shares(view)}

        totals: Totals = {}
        for each in _observe_texts(study, model, observe, text_kinds(task)):
            totals = merge(totals, {"shares": _over_texts(each["shares"])})
        arrays |= totals["shares"].arrays(f"text_attention/{model.key}")
        facts = {"count": totals["shares"].samples, "texts": model.texts, "reduction": reduction}
        scalars[model.key] = facts | {"text": prompt_text(task)}
    yield ()  # a section is a generator, and this one reads no image
    return arrays, scalars


def _observe_texts(
    study: Study, model: Model, observe: Callable[[TextTokens, Any], Observe], facts: Any
) -> list[dict[str, Any]]:
    """What is seen in the text tower, `[L, C, …]`: of each of a model's `S` texts per class by itself.

    Args:
      observe: makes an observer of the texts' tokens and their `facts`.
      facts: arrays with a row per text.
    """
    task, texts = model.task, np.arange(len(model.task.tokens.ids))

    @jax.jit
    def run(params: Any, learnables: Any, tokens: TextTokens, facts: Any, rows: jax.Array) -> dict[str, Any]:
        adaptation = of_texts(task.method.adapt(learnables), rows, len(texts))
        own: dict[str, Any] = {"observe": observe(tokens, facts), "dtype": task.classifier.dtype}
        return encode_text(params, study.clip.config, tokens, adaptation, **own)[1]

    found = []
    for rows in np.split(texts, model.texts):
        of_rows = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], (task.tokens, facts))
        found.append(meshes.device_get(run(study.params, study.learnables[model.key], *of_rows, rows)))
    return found


def _over_samples(value: Any, mask: jax.Array | None = None) -> Moments:
    """Of values `[L, B, …]` their moments; what is averaged already is left as it is."""
    return value if isinstance(value, Moments) else Moments.of(jnp.moveaxis(value, 0, 1), mask)


_over_texts = jax.jit(_over_samples)


def vision_totals(study: Study, models: Sequence[Model]) -> Reading[dict[str, Totals]]:
    """By model every average over images that one observed forward pass gives: attention, similarity, decomposition.

    Of several passes over an image it is their mean, but for what `vision_parts` tells apart.
    """
    requests = {
        model.key: Sums(f"attention-{model.key}", f"{model.label}: attention", study.images, _vision_step(study, model))
        for model in models
    }
    found = yield list(requests.values())
    return {key: found[request.name] for key, request in requests.items()}


def vision_parts(model: Model, totals: Totals) -> list[Totals]:
    """What `constancy` and the causal test need of each pass over the images, of `vision_totals` of a model."""
    return [{name: totals[f"{name}/{number}"] for name in _PARTS} for number in range(model.passes)]


def _vision_step(study: Study, model: Model) -> Any:
    config, prompts = study.clip.config, model.prompts[0]
    statistics = observe_distance_and_entropy(config.vision, prompts)
    first = config.vision.first_patch
    similarity = observe_similarity(config.vision.patches, prompts=prompts, prompt=study.options.prompt, first=first)

    @jax.jit
    def step(params: Any, learnables: Any, batch: Batch) -> dict[str, Moments]:
        images, mask = study.normalize(batch["images"]), batch["mask"]
        roles = vision_roles(config.vision, prompts)
        source = observe_parts(roles, jnp.zeros(images.shape[0], jnp.int32) if first else None, mask)

        def observe(view: LayerView) -> dict[str, Any]:
            seen = {
                f"attention/{variant}/{quantity}": value
                for variant, quantities in statistics(view).items()
                for quantity, value in quantities.items()
            }
            if prompts:
                maps = similarity(view)
                if first:
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

        dtype = model.task.classifier.dtype
        each = [look(adaptation) for adaptation in by_pass(model.task.method.adapt(learnables))]
        apart = {f"{name}/{i}": seen[name] for i, seen in enumerate(each) for name in _PARTS if name in seen}
        means = {name: sum(seen[name] for seen in each) / len(each) for name in each[0] if name not in _PARTS}
        one_by_one = {
            f"{name}/each": Moments.each(value.mean((0, 2)), batch["numbers"], len(study.split), mask)
            for name, value in means.items()
            if name == "prompt_mass" or name.startswith("attention/")
        }
        return one_by_one | {name: _over_samples(value, mask) for name, value in (means | apart).items()}

    return lambda batch: step(study.params, study.learnables[model.key], batch)


# Of the prompts' part alone, as `Moments`: each pass' own, since its prompts are.
_PARTS = ("part", "total", "tokens")
_PER_SAMPLE = ("prompt_mass", "readout_mass", "mass_by_query", "norm_share")


def compute_vision_attention(study: Study) -> Reading[Section]:
    """Fig. 5."""
    arrays: dict[str, np.ndarray] = {}
    reasons = {model.key: why_no_vision_attention(model.task) for model in study.models}
    scalars: dict[str, Any] = {key: {"missing": reason} for key, reason in reasons.items() if reason}
    looked_at = [model for model in study.models if not reasons[model.key]]
    by_model = yield from vision_totals(study, looked_at)
    for model in looked_at:
        totals, count = by_model[model.key], 0
        for variant in ("without_prompt", "with_prompt") if model.prompts[0] else ("clip",):
            for quantity in QUANTITIES if study.clip.config.vision.first_patch else QUANTITIES[:2]:
                moments = totals[f"attention/{variant}/{quantity}"]
                name = f"vision_attention/{model.key}/{variant}/{quantity}"
                arrays |= moments.arrays(name)
                arrays[f"{name}/each"] = totals[f"attention/{variant}/{quantity}/each"].values
                count = moments.samples
        scalars[model.key] = {"count": count}
        if not study.clip.config.vision.first_patch:
            scalars[model.key]["no_cls_entropy"] = (
                "This vision tower has no [cls], so that no query of it has an entropy."
            )
    return arrays, scalars


def text_parts(study: Study, model: Model) -> list[dict[str, Moments]]:
    """Eq. 12 in the text tower, with classes for samples: of each of the `S` texts that a class has."""

    def observe(tokens: TextTokens, roles: Any) -> Observe:
        return observe_parts(roles, jnp.asarray(tokens.eos))

    found = []
    for seen in _observe_texts(study, model, observe, text_roles(model.task)):
        classes = jnp.arange(seen["prompt_mass"].shape[1])
        each = Moments.each(jnp.asarray(seen["prompt_mass"]).mean((0, 2)), classes, len(classes), classes >= 0)
        moments = {name: jax.device_get(_over_texts(value)) for name, value in seen.items()}
        found.append(moments | {"prompt_mass/each": each})
    return found


def compute_decomposition(study: Study) -> Reading[Section]:
    """Eq. 12 and Fig. 1, for the towers in which a model has prompts."""
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    towers: dict[str, list[str]] = {}
    for model in study.tuned:
        reasons = {"vision": why_no_vision_attention(model.task), "text": why_no_text_attention(model.task)}
        known = [reason for reason in dict.fromkeys(reasons.values()) if reason]
        own = [tower for tower, count in zip(reasons, model.prompts, strict=True) if count and not reasons[tower]]
        towers[model.key] = own
        if not own:
            scalars[model.key] = {"missing": known[0] if known else "There are no prompts that attention could go to."}
    totals = yield from vision_totals(study, [model for model in study.tuned if "vision" in towers[model.key]])
    parts: dict[tuple[str, str], list[Totals]] = {
        (model.key, tower): vision_parts(model, totals[model.key]) if tower == "vision" else text_parts(study, model)
        for model in study.tuned
        for tower in towers[model.key]
    }
    without = yield from _left_out(study, {place: runs[0] for place, runs in parts.items() if len(runs) == 1})
    for (key, tower), runs in parts.items():
        model = next(model for model in study.tuned if model.key == key)
        means: Totals = totals[key] if tower == "vision" else {}
        for each in runs if tower == "text" else ():
            means = merge(means, {quantity: each[quantity] for quantity in _PER_SAMPLE})
        name = f"decomposition/{key}/{tower}"
        for quantity in filter(means.__contains__, _PER_SAMPLE):  # a pooling head is no query of a block
            arrays |= means[quantity].arrays(f"{name}/{quantity}")
        masses = [run["prompt_mass/each"].values for run in ([means] if tower == "vision" else runs)]
        arrays[f"{name}/prompt_mass/each"] = np.mean(masses, axis=0)
        found = [constancy(sums, learned_biases(study, tower)) for sums in runs]
        about: dict[str, Any] = {"count": means["norm_share"].samples, "depth": model.depths[tower == "text"]}
        about["runs"] = len(found)
        for quantity in ("constancy", "bias_likeness"):
            arrays[f"{name}/{quantity}"] = np.mean([one[quantity] for one in found], axis=0)
            about[quantity] = by_depth(arrays[f"{name}/{quantity}"], about["depth"])
        for bias in found[0]["bias_cosine"]:
            arrays[f"{name}/bias_cosine/{bias}"] = np.mean([one["bias_cosine"][bias] for one in found], axis=0)
        about["error"] = {}
        for quantity, values in without.get((key, tower), {}).items():
            arrays[f"{name}/error/{quantity}"] = standard_error(values)
            layers = slice(None) if quantity.startswith("bias_cosine") else slice(about["depth"])
            about["error"][quantity] = float(standard_error(values[:, layers].mean(1)))
        scalars.setdefault(key, {})[tower] = about
    return arrays, scalars


def _left_out(
    study: Study, totals: dict[tuple[str, str], Totals]
) -> Reading[dict[tuple[str, str], dict[str, np.ndarray]]]:
    """The statistics of `constancy` without each image, or class, in turn; of models with one text and one pass.

    Args:
      totals: by model and tower.
    """
    by_key, found, requests = {model.key: model for model in study.tuned}, {}, {}
    for (key, tower), sums in totals.items():
        model, bias = by_key[key], learned_biases(study, tower)
        if tower == "text":

            def observe_text(tokens: TextTokens, roles: Any, sums: Totals = sums, bias: Any = bias) -> Observe:
                return observe_products(roles, sums, bias)

            (seen,) = _observe_texts(study, model, observe_text, text_roles(model.task))
            rows = {name: np.moveaxis(value, 0, 1) for name, value in seen.items()}
            found[key, tower] = left_out(sums, rows, bias)
        else:
            title = f"{model.label}: how sure its constancy is"
            step = _products_step(study, model, sums, bias)
            requests[key, tower] = Rows(f"constancy-{key}", title, study.images, step)
    answers = yield list(requests.values())
    for (key, tower), request in requests.items():
        rows = answers[request.name]
        found[key, tower] = left_out(totals[key, tower], rows, learned_biases(study, tower))
    return found


def _products_step(study: Study, model: Model, totals: Totals, bias: dict[str, np.ndarray]) -> Step:
    observe = observe_products(vision_roles(study.clip.config.vision, model.prompts[0]), totals, bias)

    @jax.jit
    def step(params: Any, learnables: Any, batch: Batch) -> dict[str, jax.Array]:
        pixels, adaptation = study.normalize(batch["images"]), by_pass(model.task.method.adapt(learnables))[0]
        dtype = model.task.classifier.dtype
        seen = encode_image(params, study.clip.config, pixels, adaptation, observe=observe, dtype=dtype)[1]
        return {name: jnp.moveaxis(value, 0, 1) for name, value in seen.items()}

    return lambda batch: step(study.params, study.learnables[model.key], batch)


def by_depth(layers: np.ndarray, depth: int) -> dict[str, float | None]:
    """Means over the layers with prompts of their own, and over those beyond, whose slots carry what they saw."""
    groups = {"up_to_depth": layers[:depth], "beyond": layers[depth:]}
    return {name: float(values.mean()) if len(values) else None for name, values in groups.items()}


def learned_biases(study: Study, tower: str) -> dict[str, np.ndarray]:
    """The biases `[L, D]` of the models that learned any in this tower, by model.

    Of a bias by kind it is the vector of all tokens but the one that is read out, of one by token the mean: what is
    compared with them is a mean over tokens too.
    """
    found = {}
    for model in study.tuned:
        bias = getattr(model.task.method.adapt(model.learnables), f"{tower}_bias")
        if bias is not None:
            rows = np.asarray(bias)
            found[model.key] = rows if rows.ndim == 2 else rows[:, 1] if rows.shape[1] == 2 else rows.mean(1)
    return found
