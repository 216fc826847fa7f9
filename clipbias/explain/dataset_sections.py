"""Sections of a study that go over a dataset: predictions, relevancy, attention, similarity, decomposition."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import LayerView, encode_image, encode_text
from clipbias.clip.tower import Observe
from clipbias.explain.attention import QUANTITIES, kind_sums, observe_distance_and_entropy, observe_text_shares
from clipbias.explain.decomposition import constancy, observe_parts
from clipbias.explain.jackknife import left_out, observe_products, standard_error
from clipbias.explain.passes import classify, relevancy_maps
from clipbias.explain.results import GROUPS, TEXT_KINDS
from clipbias.explain.similarity import observe_similarity
from clipbias.explain.statistics import Moments, Totals, merge, normalise_maps, rank_correlation, total_variation
from clipbias.explain.streaming import Relevancy
from clipbias.explain.study import Batch, Model, Section, Study
from clipbias.explain.tokens import index_kinds, prompt_text, text_kinds, text_roles, vision_roles


def compute_predictions(study: Study) -> Section:
    """The class that each model gives every image; -1 for those that could not be read, or that not all models saw.

    An evaluation has seen the whole split, a study that images are limited for only so many of them.
    """
    found = {}
    for model in study.models:
        compute = functools.partial(_predict, study, model)
        found[model.key] = study.once(f"predictions-{model.key}", compute)[0]["predicted"]
    seen = np.min(list(found.values()), axis=0) >= 0
    arrays = {f"predictions/{key}": np.where(seen, own, -1).astype(np.int32) for key, own in found.items()}
    return {"predictions/labels": np.asarray(study.split.labels, np.int32), **arrays}, {}


def _predict(study: Study, model: Model) -> Section:
    known = study.known(model)
    if known is not None and ((known >= 0).all() or study.options.on_image_error == "skip"):
        return {"predicted": known}, {}
    indices, found = study.spread(study.options.images), []
    for batch, number, total in study.batches(indices):
        logits, mask = study.devices.fetch((classify(study, model, batch["images"]), batch["mask"]))
        found.append(np.where(mask, logits.argmax(-1), -1))
        study.advance(f"{model.label}: predictions", number, total)
    predicted = np.full(len(study.split), -1, np.int32)
    predicted[indices] = np.concatenate(found)[: len(indices)]
    return {"predicted": predicted}, {}


def corrected(arrays: dict[str, np.ndarray], model: Model) -> np.ndarray:
    """Numbers of the images that zero-shot gets wrong and the tuned model right."""
    labels, before = arrays["predictions/labels"], arrays["predictions/zero_shot"]
    return np.flatnonzero((before >= 0) & (before != labels) & (arrays[f"predictions/{model.key}"] == labels))


def relevancy_groups(study: Study, predicted: dict[str, np.ndarray], model: Model) -> np.ndarray:
    """Which images belong to which of `GROUPS`: bool `[n, 3]`.

    The corrected ones are all that are known; the control and "all" are spread over the split where the options limit
    images.
    """
    labels = predicted["predictions/labels"]
    groups = np.zeros((len(labels), len(GROUPS)), bool)
    groups[corrected(predicted, model), GROUPS.index("corrected")] = True
    spread = study.spread(study.options.images)
    both = (predicted["predictions/zero_shot"] == labels) & (predicted[f"predictions/{model.key}"] == labels)
    groups[spread, GROUPS.index("both_right")] = both[spread]
    groups[spread, GROUPS.index("all")] = True
    return groups


def compute_relevancy(study: Study, predicted: dict[str, np.ndarray]) -> Section:
    """Fig. 2 and 3: both models' normalised rows for the true class, for every group of images."""
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    groups = {model.key: relevancy_groups(study, predicted, model) for model in study.tuned}
    totals: dict[str, Totals] = {model.key: {} for model in study.tuned}
    # Images that the same models are asked about go together, so that zero-shot's maps are computed once for all.
    asked = np.stack([own.any(1) for own in groups.values()], axis=1)
    for pattern in np.unique(asked[asked.any(1)], axis=0):
        models = [model for model, own in zip(study.tuned, pattern, strict=True) if own]
        found = study.accumulate(
            f"relevancy-{''.join(map(str, pattern.astype(int)))}",
            f"{', '.join(model.label for model in models)}: relevancy",
            np.flatnonzero((asked == pattern).all(1)),
            _relevancy_step(study, models, groups),
        )
        for model in models:
            own = {
                name.removeprefix(f"{model.key}/"): x for name, x in found.items() if name.startswith(f"{model.key}/")
            }
            totals[model.key] = merge(totals[model.key], own)
    for model in study.tuned:
        about: dict[str, Any] = {"normalisation": study.options.normalisation}
        for name, moments in totals[model.key].items():
            if moments.samples:
                arrays |= moments.arrays(f"relevancy/{model.key}/{name}")
        for group in GROUPS:
            about[group] = {"count": totals[model.key][f"{group}/order"].samples}
        for side, shown in (("zero_shot", study.worded), ("tuned", model)):
            about[side] = {"text": prompt_text(shown.task), "index_kinds": index_kinds(text_kinds(shown.task))}
        scalars[model.key] = about
    return arrays, scalars


def _relevancy_step(study: Study, tuned: Sequence[Model], groups: dict[str, np.ndarray]) -> Any:
    """Averages of every tuned model and of zero-shot beside it, `{key}/{group}/{what}`."""
    normalisation, patches = study.options.normalisation, study.clip.config.vision.patches

    @jax.jit
    def summed(
        maps: dict[str, Relevancy], kinds: dict[str, jax.Array], members: jax.Array, batch: Batch
    ) -> dict[str, Moments]:
        values, among_patches = {}, []
        for side, own in maps.items():
            kind = kinds[side][batch["labels"]]
            vision = normalise_maps(own.vision, normalisation)
            text = normalise_maps(own.text, normalisation, kind < TEXT_KINDS.index("eos"))
            among_patches.append(own.vision[:, :patches])
            values[f"vision/{side}"], values[f"text/{side}"] = vision, text
            by_source = jnp.stack([vision[:, :patches].sum(-1), vision[:, patches:].sum(-1)], axis=-1)
            values[f"vision_kinds/{side}"] = by_source
            values[f"text_kinds/{side}"] = kind_sums(text, kind)[:, : TEXT_KINDS.index("eos")]
        values["order"] = rank_correlation(*among_patches)[:, None]
        values["variation"] = total_variation(*among_patches)[:, None]
        counted = batch["mask"][:, None] & members[batch["numbers"]]
        return {
            f"{group}/{name}": Moments.of(value, counted[:, i])
            for i, group in enumerate(GROUPS)
            for name, value in values.items()
        }

    models = (study.worded, *tuned)
    kinds = [study.devices.replicate(np.asarray(text_kinds(model.task))) for model in models]
    members = study.devices.replicate({model.key: groups[model.key] for model in tuned})

    def step(batch: Batch) -> dict[str, Moments]:
        maps = [relevancy_maps(study, model, batch["images"], batch["labels"])[0] for model in models]
        found: dict[str, Moments] = {}
        for model, own, kind in zip(tuned, maps[1:], kinds[1:], strict=True):
            sides = {"zero_shot": maps[0], "tuned": own}
            sums = summed(sides, {"zero_shot": kinds[0], "tuned": kind}, members[model.key], batch)
            found |= {f"{model.key}/{name}": moments for name, moments in sums.items()}
        return found

    return step


def compute_text_attention(study: Study) -> Section:
    """Fig. 4, over the classes."""
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    for model in (study.worded, *study.tuned):
        task = model.task
        observe = observe_text_shares(
            jnp.asarray(task.tokens.eos), jnp.asarray(text_kinds(task)), reduction=study.options.reduction
        )
        shares = Moments.of(jnp.moveaxis(_observe_text(study, model, observe), 0, 1))
        arrays |= shares.arrays(f"text_attention/{model.key}")
        text = prompt_text(task)
        scalars[model.key] = {"count": shares.samples, "reduction": study.options.reduction, "text": text}
    return arrays, scalars


def _observe_text(study: Study, model: Model, observe: Observe) -> Any:
    @jax.jit
    def run(params: Any, learnables: Any) -> Any:
        tokens = jax.tree.map(jnp.asarray, model.task.tokens)
        adaptation = model.task.method.adapt(learnables)
        dtype = jnp.dtype(model.task.classifier.dtype)
        return encode_text(params, study.clip.config, tokens, adaptation, observe=observe, dtype=dtype)[1]

    return study.devices.fetch(run(study.params, study.learnables[model.key]))


def vision_totals(study: Study, model: Model) -> Totals:
    """Every average over images that one observed forward pass gives: attention, similarity, decomposition."""
    indices = study.spread(study.options.images)
    return study.accumulate(f"attention-{model.key}", f"{model.label}: attention", indices, _vision_step(study, model))


def _vision_step(study: Study, model: Model) -> Any:
    config, prompts = study.clip.config, model.prompts[0]
    statistics = observe_distance_and_entropy(config.vision, prompts)
    similarity = observe_similarity(config.vision.patches, prompts=prompts, prompt=study.options.prompt)

    @jax.jit
    def step(params: Any, learnables: Any, batch: Batch) -> dict[str, Moments]:
        images, mask = study.normalize(batch["images"]), batch["mask"]
        roles = vision_roles(config.vision, prompts)
        source = observe_parts(roles, jnp.zeros(images.shape[0], jnp.int32), mask)

        def observe(view: LayerView) -> dict[str, Any]:
            seen = {
                f"attention/{variant}/{quantity}": value
                for variant, quantities in statistics(view).items()
                for quantity, value in quantities.items()
            }
            if prompts:
                maps = similarity(view)
                seen["rank_correlation"] = rank_correlation(maps["cls"], -maps["distance"])
                seen |= source(view)
            return seen

        dtype = jnp.dtype(model.task.classifier.dtype)
        adaptation = model.task.method.adapt(learnables)
        seen = encode_image(params, config, images, adaptation, observe=observe, dtype=dtype)[1]
        means = {
            f"{name}/each": Moments.each(value.mean((0, 2)), batch["numbers"], len(study.split), mask)
            for name, value in seen.items()
            if name == "prompt_mass" or name.startswith("attention/")
        }
        return means | {
            name: value if isinstance(value, Moments) else Moments.of(jnp.moveaxis(value, 0, 1), mask)
            for name, value in seen.items()
        }

    return lambda batch: step(study.params, study.learnables[model.key], batch)


def compute_vision_attention(study: Study) -> Section:
    """Fig. 5."""
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    for model in study.models:
        totals, count = vision_totals(study, model), 0
        for variant in ("without_prompt", "with_prompt") if model.prompts[0] else ("clip",):
            for quantity in QUANTITIES:
                moments = totals[f"attention/{variant}/{quantity}"]
                name = f"vision_attention/{model.key}/{variant}/{quantity}"
                arrays |= moments.arrays(name)
                arrays[f"{name}/each"] = totals[f"attention/{variant}/{quantity}/each"].values
                count = moments.samples
        scalars[model.key] = {"count": count}
    return arrays, scalars


def text_parts(study: Study, model: Model) -> dict[str, Moments]:
    """Eq. 12 in the text tower, with classes for samples."""
    roles = text_roles(model.task)
    seen = _observe_text(study, model, observe_parts(roles, jnp.asarray(model.task.tokens.eos)))
    classes = jnp.arange(seen["prompt_mass"].shape[1])
    each = Moments.each(jnp.asarray(seen["prompt_mass"]).mean((0, 2)), classes, len(classes), classes >= 0)
    return {"prompt_mass/each": each} | {
        name: value if isinstance(value, Moments) else jax.device_get(Moments.of(jnp.moveaxis(value, 0, 1)))
        for name, value in seen.items()
    }


def compute_decomposition(study: Study) -> Section:
    """Eq. 12 and Fig. 1, for the towers in which a model has prompts."""
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    for model in study.tuned:
        towers = {}
        if model.prompts[0]:
            towers["vision"] = vision_totals(study, model)
        if model.prompts[1]:
            towers["text"] = text_parts(study, model)
        for tower, totals in towers.items():
            name = f"decomposition/{model.key}/{tower}"
            for quantity in ("prompt_mass", "readout_mass", "mass_by_query", "norm_share"):
                arrays |= totals[quantity].arrays(f"{name}/{quantity}")
            arrays[f"{name}/prompt_mass/each"] = totals["prompt_mass/each"].values
            bias = learned_biases(study, tower)
            found, without = constancy(totals, bias), _left_out(study, model, tower, totals, bias)
            about: dict[str, Any] = {"count": totals["norm_share"].samples, "depth": model.depths[tower == "text"]}
            for quantity in ("constancy", "bias_likeness"):
                arrays[f"{name}/{quantity}"] = found[quantity]
                about[quantity] = by_depth(found[quantity], about["depth"])
            for key, cosine in found["bias_cosine"].items():
                arrays[f"{name}/bias_cosine/{key}"] = cosine
            about["error"] = {}
            for quantity, values in without.items():
                arrays[f"{name}/error/{quantity}"] = standard_error(values)
                layers = slice(None) if quantity.startswith("bias_cosine") else slice(about["depth"])
                about["error"][quantity] = float(standard_error(values[:, layers].mean(1)))
            scalars.setdefault(model.key, {})[tower] = about
    return arrays, scalars


def _left_out(study: Study, model: Model, tower: str, totals: Totals, bias: dict[str, np.ndarray]) -> dict[str, Any]:
    """The statistics of `constancy` without each image, or class, in turn."""
    if tower == "text":
        roles = text_roles(model.task)
        seen = _observe_text(study, model, observe_products(roles, totals, bias))
        return left_out(totals, {name: np.moveaxis(value, 0, 1) for name, value in seen.items()}, bias)
    observe = observe_products(vision_roles(study.clip.config.vision, model.prompts[0]), totals, bias)

    @jax.jit
    def step(params: Any, learnables: Any, batch: Batch) -> dict[str, jax.Array]:
        pixels, adaptation = study.normalize(batch["images"]), model.task.method.adapt(learnables)
        dtype = jnp.dtype(model.task.classifier.dtype)
        seen = encode_image(params, study.clip.config, pixels, adaptation, observe=observe, dtype=dtype)[1]
        return {name: jnp.moveaxis(value, 0, 1) for name, value in seen.items()}

    rows = study.collect(
        f"constancy-{model.key}",
        f"{model.label}: how sure its constancy is",
        study.spread(study.options.images),
        lambda batch: step(study.params, study.learnables[model.key], batch),
    )
    return left_out(totals, rows, bias)


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
