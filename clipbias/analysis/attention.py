"""Attention statistics: shares by token type (Fig. 4), distance and entropy (Fig. 5), `[cls]` maps and distances to
prompts (Fig. 6), and the part of the output that comes from prompts (Eq. 12, Fig. 1).

    attention_out_i = W_o cat_h(Σ_{j input} A_ij v_j) + W_o cat_h(Σ_{k prompt} A_ik v_k) + b_o

In each head the input part is `(1 − m_ih)` times the output renormalised over the input tokens, where `m_ih` is the
attention of query `i` to prompts. If prompts are a bias, the prompt part is the same for every sample.

An observer reduces each layer's `LayerView` to a small array per sample during the forward pass, so a dataset of any
size needs the memory of one batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.analysis.model import Model, by_pass, of_texts, why_no_text_attention, why_no_vision_attention
from clipbias.analysis.results import TEXT_TYPES, Average, Missing
from clipbias.analysis.sections import Section
from clipbias.analysis.statistics import Moments, Totals, merge, rank_correlation, stretched
from clipbias.analysis.study import Batch, Computation, Request, Step, Study, divide, for_each
from clipbias.analysis.words import prompt_text, text_types
from clipbias.clip import Adaptation, LayerView, TextTokens, encode_image, encode_text
from clipbias.clip.config import VisionConfig
from clipbias.clip.params import Params
from clipbias.clip.tower import Observe
from clipbias.clip.vision import head_attention
from clipbias.training import placement
from clipbias.tuning import Classifier, Learnables, Task


@dataclasses.dataclass(frozen=True)
class TextAttention:
    """Fig. 4: the EOS row's attention by token type, averaged over classes."""

    shares: Average  # `[L, H, 6]`, in the order of `TEXT_TYPES`
    count: int  # of texts
    texts: int  # of each class
    text: str  # with {} for the class name


@dataclasses.dataclass(frozen=True)
class AttentionVariant:
    """Attention distance in pixels, and entropies in nats, `[L, H]`."""

    distance: Average
    entropy: Average
    cls_entropy: Average | None  # of the `[cls]` query, where there is one


@dataclasses.dataclass(frozen=True)
class VisionAttention:
    """Fig. 5: `clip` of a model without vision prompts, else `without_prompt` and `with_prompt`."""

    count: int
    clip: AttentionVariant | None
    without_prompt: AttentionVariant | None
    with_prompt: AttentionVariant | None
    no_cls_entropy: str | None  # why there is no entropy of the `[cls]` query

    @property
    def variants(self) -> dict[str, dict[str, Average]]:
        """Quantities by name of each variant that was measured."""
        measured = {name: vars(each) for name, each in vars(self).items() if isinstance(each, AttentionVariant)}
        return {variant: {name: x for name, x in each.items() if x is not None} for variant, each in measured.items()}


@dataclasses.dataclass(frozen=True)
class TowerDecomposition:
    """Eq. 12 in one tower; samples are images, or classes for text."""

    count: int  # of samples
    depth: int  # layers with prompts of their own
    prompt_mass: Average  # `[L, H]`, attention on prompts, mean over input queries
    pooled_mass: Average | None  # `[L, H]`, attention of the pooled query to prompts; `None` under a pooling head
    norm_share: Average  # `[L]`, the norm of the prompt part over the sum of both norms
    # `[L]`, shares of the prompt part's mean square, corrected for chance (`constancy`), so they may fall below 0:
    constancy: np.ndarray  # explained by its mean over samples, token by token
    bias_likeness: np.ndarray  # explained by one vector for all tokens
    bias_cosine: dict[str, np.ndarray]  # `[L]` by bias model: between that vector and the learned bias


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """Eq. 12 and Fig. 1 by tower in which a model has prompts."""

    towers: dict[str, TowerDecomposition]


@struct.dataclass
class Roles:
    """Roles of a tower's tokens, `[N]` or `[B, N]`."""

    prompts: jax.Array | np.ndarray  # learned prompts and contexts
    queries: jax.Array | np.ndarray  # input tokens with an influence that see a prompt


def vision_roles(config: VisionConfig, prompts: int) -> Roles:
    """Returns the roles `[N]` of `[cls]`, patches, then `V` prompts."""
    is_prompt = np.arange(config.tokens + prompts) >= config.tokens
    return Roles(is_prompt, ~is_prompt)


def text_roles(task: Task) -> Roles:
    """Returns the roles of all texts' tokens, `[n · C, N]`."""
    # Rows that hold a learned context are prompts, wherever they stand in the text.
    is_prompt = np.asarray(task.tokens.context_rows) >= 0
    # Under a causal mask, tokens before the first prompt see none: their share of 0 says nothing about prompts.
    first = np.argmax(is_prompt, axis=1)[:, None] if task.clip.config.text.causal else -1
    return Roles(is_prompt, ~is_prompt & (np.arange(is_prompt.shape[1]) > first) & np.asarray(task.tokens.counted))


def entropy(probabilities: jax.Array) -> jax.Array:
    """Computes `−Σ a ln a` over the last axis, in nats, with `0 ln 0 = 0`."""
    return jax.scipy.special.entr(probabilities).sum(-1)


def renormalise(probabilities: jax.Array) -> jax.Array:
    """Scales attention to some of the keys, `[…, N]`, to rows that sum to 1; a row of zeros stays."""
    return probabilities / jnp.maximum(probabilities.sum(-1, keepdims=True), jnp.finfo(probabilities.dtype).tiny)


def distance_and_entropy(probabilities: jax.Array, config: VisionConfig) -> dict[str, jax.Array]:
    """Computes statistics `[B, H]` of attention `[B, H, N, N]` whose first tokens are `[cls]`, if any, and the patches.

    Distance: mean over patch queries of `Σ_j A_ij · pixels` over patch keys, of rows that are not renormalised.
    Entropy: mean over the `[cls]` and patch queries; "cls_entropy" of the `[cls]` query.
    """
    first = config.first_patch
    inputs = config.tokens
    rows, columns = np.divmod(np.arange(config.patches), config.grid)
    # Between the centres of every two patches, `[M, M]`.
    pixels = jnp.asarray(config.patch_size * np.hypot(rows[:, None] - rows, columns[:, None] - columns), jnp.float32)
    # Not renormalised: attention that goes to prompts has no distance to travel.
    among_patches = probabilities[..., first:inputs, first:inputs]
    # Prompts are keys of the entropy but no queries: they are no part of the image.
    of_queries = entropy(probabilities[..., :inputs, :])
    return {
        "distance": jnp.einsum("BHNM,NM->BHN", among_patches, pixels).mean(-1),  # in two sums: each stays exact longer
        "entropy": of_queries.mean(-1),
        **({"cls_entropy": of_queries[..., 0]} if first else {}),
    }


def type_sums(rows: jax.Array, types: jax.Array) -> jax.Array:
    """Sums rows `[C, …, N]` over the tokens of each type, given by `types [C, N]`: `[C, …, 6]`."""
    member = jax.nn.one_hot(types, len(TEXT_TYPES), dtype=rows.dtype)
    # Full precision: an accelerator's default would round the rows, and the six shares would not sum to 1.
    return jnp.einsum("C...N,CNK->C...K", rows, member, precision="highest")


def prompt_distances(tokens: jax.Array, patches: int, first: int = 1) -> jax.Array:
    """Computes `‖p_k − x_j‖₂` between prompts and patches: tokens `[B, N, D]` at a block's input to `[B, V, M]`."""
    x = tokens[:, first : first + patches]
    prompts = tokens[:, first + patches :]
    # Differences, not `|p|² + |x|² − 2 p·x`: that loses the digits of small distances between long vectors.
    return jnp.sqrt(jnp.square((prompts[:, :, None] - x[:, None]).astype(jnp.float32)).sum(-1))


def to_image(maps: jax.Array, image_size: int) -> jax.Array:
    """Resizes patch maps `[…, M]` to `[…, R, R]`, bilinear with half-pixel centres, and scales them to 0 … 1."""
    *leading, patches = maps.shape
    side = round(patches**0.5)
    shape = (*leading, image_size, image_size)
    images = jax.image.resize(maps.reshape(*leading, side, side), shape, "bilinear")
    return stretched(images.reshape(*leading, -1)).reshape(shape)


def observe_parts(roles: Roles, pooled: jax.Array | None, mask: jax.Array | None = None) -> Observe:
    """Makes an observer of the terms of Eq. 12; `pooled [B]` is the row of `[cls]` or EOS.

    For each sample: `prompt_mass [B, H]`, a mean over queries; `pooled_mass [B, H]` of the pooled row; `norm_share
    [B]`, the prompt part's norm over the sum of both norms. As `Moments` over the samples of `mask [B]`: `part [N, D]`,
    the prompt part behind the output projection; `total [D]`, its sum over a sample's queries; `tokens`, their number.
    """

    def observe(view: LayerView) -> dict[str, Any]:
        # Projection behind the sum over heads is linear without its bias, so both parts add up to Eq. 12's output.
        on_prompts = jnp.where(roles.prompts[..., None, None, :], view.probabilities, 0)
        mass = on_prompts.sum(-1)
        projected = view.project(view.heads_output(on_prompts)).astype(jnp.float32)
        norms = jnp.linalg.norm(projected, axis=-1)
        of_inputs = view.project(view.heads_output(view.probabilities - on_prompts))
        both = norms + jnp.linalg.norm(of_inputs.astype(jnp.float32), axis=-1)
        share = norms / jnp.maximum(both, jnp.finfo(jnp.float32).tiny)
        batch, length = view.tokens.shape[:2]
        counted = jnp.broadcast_to(roles.queries, (batch, length))
        if mask is not None:
            counted = counted & mask[:, None]
        rows = None if pooled is None else pooled[:, None, None]
        return {
            "prompt_mass": mass.mean(-1, where=roles.queries[..., None, :]),
            **({} if rows is None else {"pooled_mass": jnp.take_along_axis(mass, rows, axis=2)[..., 0]}),
            "norm_share": share.mean(-1, where=roles.queries),
            "part": Moments.of(projected, counted),
            "total": Moments.of(jnp.where(counted[..., None], projected, 0).sum(1), mask),
            "tokens": Moments.of(counted.sum(-1), mask),
        }

    return observe


def observe_layers(
    classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array
) -> dict[str, jax.Array]:
    """Observes every layer on normalised images.

    Returns "attention" of `[cls]` to patches and prompts, mean over heads, `[B, L, M + V]`, and, with prompts, their
    "distance" to patches, `[B, L, V, M]`. A pooling head's attention stands for `[cls]` in all layers.
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
        # The head reads no prompts: zeros stand in their columns.
        head = jnp.pad(head, [(0, 0), (0, prompts)])
        seen["attention"] = jnp.broadcast_to(head, (config.vision.layers, *head.shape))
    return {name: jnp.moveaxis(value, 0, 1) for name, value in seen.items()}


def layer_maps(study: Study, model: Model, images: jax.Array) -> dict[str, jax.Array]:
    """Computes `observe_layers` for raw images `[B, R, R, 3]`."""

    def maps(params: Params, learnables: Learnables, images: jax.Array) -> dict[str, jax.Array]:
        return observe_layers(model.task.classifier, params, learnables, study.normalize(images))

    return study.program("layers", model, maps)(study.params, study.learnables[model.key], images)


# Moments of the prompt part. They stay apart for each pass over an image, since each pass has its own prompts.
PARTS = ("part", "total", "tokens")


def compute_text_attention(study: Study) -> Computation[dict[str, TextAttention | Missing]]:
    """Computes Fig. 4 over all texts of all classes."""
    models, left_out = divide((study.worded, *study.tuned), why_no_text_attention)
    by_model: dict[str, TextAttention | Missing] = {**left_out}
    for model in models:
        # Shares of several texts of a class are pooled: each text is a sample.
        shares = functools.reduce(Moments.merge, map(over_texts, eos_shares(study, model)))
        text = prompt_text(model.task)
        by_model[model.key] = TextAttention(shares.average, count=shares.samples, texts=model.texts, text=text)
    yield ()  # a section is a generator, and this one reads no image
    return by_model


TEXT_ATTENTION = Section(
    name="text_attention",
    title="Attention of the end-of-text token",
    result=dict[str, TextAttention | Missing],
    compute=compute_text_attention,
)


def eos_shares(study: Study, model: Model) -> list[np.ndarray]:
    """Computes the EOS query's attention by `TEXT_TYPES` (Fig. 4), `[L, C, H, 6]`, for each text of a class."""

    def observe(tokens: TextTokens, types: jax.Array) -> Observe:
        # A row for each text, gathered before types are summed: whole matrices would be `N` times as large.
        rows = jnp.asarray(tokens.eos)[:, None, None, None]
        return lambda view: type_sums(jnp.take_along_axis(view.probabilities, rows, axis=2)[:, :, 0], types)

    return observe_texts(study, model, observe, text_types(model.task))


def observe_texts(study: Study, model: Model, observe: Callable[[TextTokens, Any], Observe], facts: Any) -> list[Any]:
    """Observes the text tower, `[L, C, …]`, for each of a model's `S` texts of a class.

    `observe` makes an observer from tokens and `facts`, arrays with a row per text.
    """
    task = model.task
    texts = np.arange(len(task.tokens.ids))

    @jax.jit
    def run(params: Params, learnables: Learnables, tokens: TextTokens, facts: Any, rows: jax.Array) -> Any:
        adaptation = of_texts(task.method.adapt(learnables), rows, len(texts))
        observer = observe(tokens, facts)
        dtype = task.classifier.dtype
        return encode_text(params, study.clip.config, tokens, adaptation, observe=observer, dtype=dtype)[1]

    results = []
    # One text of every class at a time: the attention of all of them would take `S` times the memory.
    for rows in np.split(texts, model.texts):
        tokens, of_rows = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], (task.tokens, facts))
        results.append(placement.device_get(run(study.params, study.learnables[model.key], tokens, of_rows, rows)))
    return results


def _over_samples(value: Any, mask: jax.Array | None = None) -> Moments:
    """Computes moments over samples of values `[L, B, …]`; moments stay as they are."""
    return value if isinstance(value, Moments) else Moments.of(jnp.moveaxis(value, 0, 1), mask)


over_texts = jax.jit(_over_samples)


def vision_totals(study: Study, models: Sequence[Model]) -> Computation[dict[str, dict[str, Any]]]:
    """Averages over images all statistics of one observed forward pass, by model key.

    Several sections read them: attention, similarity, decomposition, observations. Rows of images for the last are
    `{name}/layers [n, L]`. Several passes over an image are averaged, except for `PARTS`.
    """

    def request_of(model: Model) -> Request:
        return Request(f"attention-{model.key}", f"{model.label}: attention", study.images, _vision_step(study, model))

    return (yield from for_each(models, request_of))


def _vision_step(study: Study, model: Model) -> Step:
    config = study.clip.config
    prompts = model.prompts[0]
    dtype = model.task.classifier.dtype
    patches, first = config.vision.patches, config.vision.first_patch
    inputs = slice(config.vision.tokens)
    is_read_at_cls = config.vision.pooling == "cls"

    @jax.jit
    def step(params: Params, learnables: Learnables, batch: Batch) -> dict[str, Any]:
        images = study.normalize(batch["images"])
        mask = batch["mask"]
        roles = vision_roles(config.vision, prompts)
        source = observe_parts(roles, jnp.zeros(images.shape[0], jnp.int32) if is_read_at_cls else None, mask)

        def observe(view: LayerView) -> dict[str, Any]:
            # One forward pass serves four sections: running it is far more than reducing it.
            variants = {"clip": view.probabilities}
            if prompts:
                # W/O Prompt as in the paper: the same run, with attention to prompts removed and the rest scaled to 1.
                among_inputs = renormalise(view.probabilities[..., inputs, inputs])
                variants = {"without_prompt": among_inputs, "with_prompt": view.probabilities}
            seen = {
                f"attention/{variant}/{quantity}": value
                for variant, probabilities in variants.items()
                for quantity, value in distance_and_entropy(probabilities, config.vision).items()
            }
            if prompts:
                distance = prompt_distances(view.tokens, patches, first).mean(1)
                if is_read_at_cls:
                    attention = view.probabilities[:, :, 0, 1 : 1 + patches].mean(1)
                    seen["rank_correlation"] = rank_correlation(attention, -distance)
                else:
                    seen["distance"] = distance
                seen |= source(view)
            return seen

        def look(adaptation: Adaptation) -> dict[str, Any]:
            seen = encode_image(params, config, images, adaptation, observe=observe, dtype=dtype)[1]
            # A pooling head has one attention for all layers, so each layer's distances are correlated with the head's.
            if "distance" in seen:
                head = head_attention(params, config, images, adaptation, dtype=dtype)
                seen["rank_correlation"] = jax.vmap(rank_correlation, (None, 0))(head, -seen.pop("distance"))
            return seen

        # Parts of each pass stay apart: means over passes with other prompts would look less constant than each is.
        each = [look(adaptation) for adaptation in by_pass(model.task.method.adapt(learnables))]
        apart = {f"{name}/{i}": seen[name] for i, seen in enumerate(each) for name in PARTS if name in seen}
        means = {name: sum(seen[name] for seen in each) / len(each) for name in each[0] if name not in PARTS}
        by_layer = {  # rows of images, `[n, L]`, for observations
            f"{name}/layers": value.mean(2).T for name, value in means.items() if name.startswith("attention/")
        }
        if "rank_correlation" in means:
            by_layer["rank_correlation/layers"] = means["rank_correlation"].T
        return by_layer | {name: _over_samples(value, mask) for name, value in (means | apart).items()}

    return lambda batch: step(study.params, study.learnables[model.key], batch)


def compute_vision_attention(study: Study) -> Computation[dict[str, VisionAttention | Missing]]:
    models, left_out = divide(study.models, why_no_vision_attention)
    totals = yield from vision_totals(study, models)
    return left_out | {model.key: _vision_attention(study, model, totals[model.key]) for model in models}


VISION_ATTENTION = Section(
    name="vision_attention",
    title="Attention distance and entropy",
    result=dict[str, VisionAttention | Missing],
    compute=compute_vision_attention,
)


def _vision_attention(study: Study, model: Model, totals: Totals) -> VisionAttention:
    has_cls = bool(study.clip.config.vision.first_patch)

    def variant(name: str) -> AttentionVariant:
        distance, entropy = (totals[f"attention/{name}/{quantity}"].average for quantity in ("distance", "entropy"))
        return AttentionVariant(distance, entropy, totals[f"attention/{name}/cls_entropy"].average if has_cls else None)

    # A model without prompts has one variant.
    names = ("without_prompt", "with_prompt") if model.prompts[0] else ("clip",)
    variants = dict.fromkeys(("clip", "without_prompt", "with_prompt")) | {name: variant(name) for name in names}
    return VisionAttention(
        count=totals[f"attention/{names[-1]}/distance"].samples,
        **variants,
        no_cls_entropy=None if has_cls else "This vision tower has no [cls], so that no query of it has an entropy.",
    )


def compute_decomposition(study: Study) -> Computation[dict[str, Decomposition | Missing]]:
    """Computes Eq. 12 and Fig. 1 for the towers in which a model has prompts."""
    by_model: dict[str, Decomposition | Missing] = {}
    towers: dict[str, list[str]] = {}
    for model in study.tuned:
        reasons = {"vision": why_no_vision_attention(model.task), "text": why_no_text_attention(model.task)}
        counts = dict(zip(reasons, model.prompts, strict=True))
        towers[model.key] = [tower for tower, reason in reasons.items() if counts[tower] and not reason]
        if not towers[model.key]:
            # A model may lack each tower for its own reason; the first is said.
            reason = next(filter(None, reasons.values()), "There are no prompts that attention could go to.")
            by_model[model.key] = Missing(reason)
    totals = yield from vision_totals(study, [model for model in study.tuned if "vision" in towers[model.key]])
    for model in study.tuned:
        of_model = {}
        for tower in towers[model.key]:
            if tower == "vision":
                means = totals[model.key]
                runs = [{name: means[f"{name}/{number}"] for name in PARTS} for number in range(model.passes)]
            else:
                # Classes are the samples, for each of the texts of a class.
                roles = text_roles(model.task)
                texts = observe_texts(
                    study, model, lambda tokens, of_text: observe_parts(of_text, jnp.asarray(tokens.eos)), roles
                )
                runs = [{name: jax.device_get(over_texts(x)) for name, x in seen.items()} for seen in texts]
                means = functools.reduce(merge, runs)  # over the samples of all runs together
            of_model[tower] = _decompose(study, model, tower, means, runs)
        if of_model:
            by_model[model.key] = Decomposition(of_model)
    return by_model


DECOMPOSITION = Section(
    name="decomposition",
    title="What prompts do to attention",
    result=dict[str, Decomposition | Missing],
    compute=compute_decomposition,
)


def _decompose(study: Study, model: Model, tower: str, means: Totals, runs: list[Totals]) -> TowerDecomposition:
    """Decomposes one tower by averages over all samples, and over each text of a class or pass over an image."""
    # Constancy is computed within a run and then averaged: runs have other prompts, and so other constants.
    biases = {}
    for each in study.tuned:
        if (bias := getattr(each.task.method.adapt(each.learnables), f"{tower}_bias")) is not None:
            values = np.asarray(bias)
            # They are compared with a mean over tokens: a bias by kind gives its vector of all but the pooled token, a
            # bias by token its mean.
            if values.ndim == 3:
                values = values[:, 1] if values.shape[1] == 2 else values.mean(1)
            biases[each.key] = values
    constancies = [constancy(sums, biases) for sums in runs]
    return TowerDecomposition(
        count=means["norm_share"].samples,
        depth=model.depths[tower == "text"],
        prompt_mass=means["prompt_mass"].average,
        pooled_mass=means["pooled_mass"].average if "pooled_mass" in means else None,
        norm_share=means["norm_share"].average,
        constancy=np.mean([run["constancy"] for run in constancies], axis=0),
        bias_likeness=np.mean([run["bias_likeness"] for run in constancies], axis=0),
        bias_cosine={key: np.mean([run["bias_cosine"][key] for run in constancies], axis=0) for key in biases},
    )


def constancy(totals: Mapping[str, Moments], bias: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Computes how nearly constant the prompt part is, corrected for chance, from totals of `observe_parts`.

    Returns shares of its mean square, `[L]`, NaN below two samples: `constancy`, which the mean of each token explains,
    and `bias_likeness`, which one vector for all tokens explains; and `bias_cosine`, of this vector and each learned
    `bias [L, D]` of the tower.
    """
    # A mean of few samples is longer than the true mean: that of `n` samples of noise has `1/n` of their square. So
    # products of two different samples estimate the square of the true mean. For a token `j` that counts in `n_j`
    # samples `x_ij` with mean `x̄_j`,
    #     |μ_j|² ≈ |x̄_j|² − Σ_i |x_ij − x̄_j|² / (n_j (n_j − 1)),
    # and for one vector for all tokens, from each sample's sum `u_i` over its `m_i` tokens, which vary together,
    #     |v|² ≈ (|Σ_i u_i|² − Σ_i |u_i|²) / ((Σ_i m_i)² − Σ_i m_i²).
    # Estimates may fall a little below 0, and the second a little above the first.
    part = totals["part"]
    count = np.asarray(part.count, np.float64)
    mean = np.asarray(part.mean, np.float64)
    # Moments hold means and squared deviations, not squares: `Σ|x|² − n|x̄|²` of nearly constant parts would cancel.
    length = np.square(mean).sum(-1)
    spread = np.asarray(part.squares, np.float64).sum(-1)
    square = count * length + spread  # `Σ_i |x_ij|²` of each token
    # A token in one sample has no product of two different samples: it counts in neither numerator nor denominator.
    repeated = count > 1
    of_mean = np.where(repeated, count * length - spread / np.maximum(count - 1, 1), 0).sum(-1)
    tiny = np.finfo(np.float64).tiny
    of_repeated = np.maximum((repeated * square).sum(-1), tiny)
    # Weighted by samples: tokens near the end of texts occur in few of them.
    vector = (count[..., None] * mean).sum(1) / np.maximum(count.sum(1), 1)[:, None]
    # Ratios of two estimates, each unbiased: the ratio of their sums over tokens is nearly so, a mean of ratios is not.
    pairs = _product_of_two(totals["tokens"])
    one_vector = _product_of_two(totals["total"]) / np.where(pairs > 0, pairs, np.nan)
    return {
        "constancy": of_mean / np.where(repeated.any(-1), of_repeated, np.nan),
        "bias_likeness": one_vector * count.sum(-1) / np.maximum(square.sum(-1), tiny),
        "bias_cosine": {name: _cosine(vector, np.asarray(value, np.float64)) for name, value in bias.items()},
    }


def _product_of_two(sums: Moments) -> np.ndarray:
    """Computes `|Σ_i x_i|² − Σ_i |x_i|²`, `[L]`, of samples `x [L, …]`: the sum over pairs of different samples."""
    count = np.asarray(sums.count, np.float64)
    squares = [np.square(np.asarray(sums.mean, np.float64)), np.asarray(sums.squares, np.float64)]
    length, spread = (x.reshape(len(x), -1).sum(-1) for x in squares)
    return count * (count - 1) * length - spread


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(scale, np.finfo(np.float64).tiny)
