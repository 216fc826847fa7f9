"""What attention does: shares by kind of token (Fig. 4), distance and entropy (Fig. 5), `[cls]` maps, how near patches
are to prompts (Fig. 6), and what of its output comes from prompts (Eq. 12, Fig. 1).

    attention_out_i = W_o cat_h(Σ_{j input} A_ij v_j) + W_o cat_h(Σ_{k prompt} A_ik v_k) + b_o

Per head the input part is `(1 − m_ih)` times the output renormalised over the input tokens, where `m_ih` is the
attention that query `i` spends on prompts.

An observer reduces one layer's `LayerView` to one small array per sample while the forward pass runs, so that a dataset
of any size needs the memory of one batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip import Adaptation, LayerView, TextTokens, encode_image, encode_text
from clipbias.clip.config import VisionConfig
from clipbias.clip.params import Params
from clipbias.clip.tokenizer import encode
from clipbias.clip.tower import Observe
from clipbias.clip.vision import head_attention
from clipbias.explain.model import Model, additions, by_pass, of_texts, why_no_text_attention, why_no_vision_attention
from clipbias.explain.results import TEXT_KINDS, AttentionVariant, Missing, TextAttention, VisionAttention
from clipbias.explain.statistics import Moments, Totals, merge, rank_correlation, stretched
from clipbias.explain.study import Batch, Section, Step, Study, SumRequest, divide
from clipbias.training import mesh as meshes
from clipbias.tuning import Classifier, Learnables, Task
from clipbias.tuning.prompts import name_tokens

SOS, PROMPT, WORDS, CATEGORY, DOT, EOS = range(len(TEXT_KINDS))
PAD = len(TEXT_KINDS)
# The most bytes of a character, and what stands for some of them alone.
_BYTES = 4
_BROKEN = "\ufffd"


@struct.dataclass
class Roles:
    """Roles of a tower's tokens, `[N]` or `[B, N]`."""

    prompts: jax.Array | np.ndarray  # learned prompts and contexts
    queries: jax.Array | np.ndarray  # input tokens that have an influence and see at least one prompt


def vision_roles(config: VisionConfig, prompts: int) -> Roles:
    """`[cls]`, patches, then `V` prompts: `[N]`."""
    is_prompt = np.arange(config.tokens + prompts) >= config.tokens
    return Roles(is_prompt, ~is_prompt)


def text_roles(task: Task) -> Roles:
    """Contexts at their places in every text: `[n · C, N]`."""
    is_prompt = np.asarray(task.tokens.context_rows) >= 0
    positions = np.arange(is_prompt.shape[1])
    first = np.argmax(is_prompt, axis=1)[:, None] if task.clip.config.text.causal else -1
    return Roles(is_prompt, ~is_prompt & (positions > first) & np.asarray(task.tokens.counted))


def text_kinds(task: Task) -> np.ndarray:
    """The kind of every text token, an index into `TEXT_KINDS`, `PAD` after EOS: int32 `[n · C, N]`.

    A text that is not read at its EOS has "eos" at the position that is, and `PAD` from its end up to there.

    "prompt" are the `T` learned tokens; "words" the words that stay frozen, those of a context that are left beside
    fewer prompts and all of a text without prompts; "category" the class name's own tokens; "dot" the token before EOS
    where the template ends with ".".
    """
    text = task.prompt
    tokenizer = task.clip.tokenizer
    names = task.class_names
    lengths = name_tokens(task.clip, names, text)
    ends = np.asarray(task.tokens.end)
    pooled = np.asarray(task.tokens.eos)
    first = task.clip.config.text.first_word
    has_dots = bool(encode(tokenizer, ["."])[0])
    kinds = np.full(task.tokens.ids.shape, WORDS, np.int32)
    if _learns_context(task):
        kinds[np.asarray(task.tokens.context_rows) >= 0] = PROMPT
    for i, row in enumerate(kinds):
        template = text.templates[i // len(names)]
        before = len(encode(tokenizer, [template.partition("{}")[0].strip()])[0])
        if (place := text.before[i // len(names)]) < text.context_tokens:
            before = place
        end = int(ends[i])
        row[:first] = SOS
        row[first + before : min(first + before + lengths[i % len(names)], end)] = CATEGORY
        if template.endswith(".") and end - 1 > before and has_dots:
            row[end - 1] = DOT
        row[end:] = PAD
        row[pooled[i]] = EOS
    return kinds


def index_kinds(kinds: np.ndarray) -> list[str]:
    """The kind's name at every token index, "" where texts `[C, N]` differ in it or it lies after the end of all."""
    names = (*TEXT_KINDS, "")
    return [names[column[0]] if (column == column[0]).all() else "" for column in np.asarray(kinds).T]


def prompt_text(task: Task) -> str:
    """The text around the class name, with `{}` in its place, as the method writes it before anything is learned."""
    return task.method.text(task.template, task.clip).templates[0]


def token_labels(task: Task, text: int) -> list[str]:
    """The tokens of one text as readable pieces, up to but without EOS; learned ones as "[1]", "[2]", …

    Tokens that hold parts of one character, of letters with accents and other scripts, are "ü 1/2" and "ü 2/2".
    """
    tokenizer = task.clip.tokenizer
    end = int(task.tokens.end[text])
    rows = task.tokens.context_rows[text]
    is_learned = _learns_context(task)
    words = [int(token) for token in task.tokens.ids[text, :end]]
    labels = ["SOS" for _ in range(task.clip.config.text.first_word)]
    while (position := len(labels)) < end:
        if is_learned and rows[position] >= 0:
            labels.append(f"[{rows[position] + 1}]")
            continue
        most = min(end, position + _BYTES)
        for stop in range(position + 1, most + 1):
            piece = tokenizer.decode(words[position:stop]).strip()
            if _BROKEN not in piece:
                break
        else:  # no text
            stop = position + 1
            piece = tokenizer.decode(words[position:stop]).strip()
        count = stop - position
        labels += [f"{piece} {number}/{count}" for number in range(1, count + 1)] if count > 1 else [piece]
    return labels


def _learns_context(task: Task) -> bool:
    return additions(task).text_context is not None


def entropy(probabilities: jax.Array) -> jax.Array:
    """`−Σ a ln a` over the last axis, in nats, with `0 ln 0 = 0`."""
    return jax.scipy.special.entr(probabilities).sum(-1)


def renormalise(probabilities: jax.Array) -> jax.Array:
    """Attention to some of the keys, `[…, N]`, with rows that sum to 1 again; a row of zeros stays as it is."""
    return probabilities / jnp.maximum(probabilities.sum(-1, keepdims=True), jnp.finfo(probabilities.dtype).tiny)


def distance_and_entropy(probabilities: jax.Array, config: VisionConfig) -> dict[str, jax.Array]:
    """Statistics of attention `[B, H, N, N]` whose first tokens are `[cls]`, if any, and the patches, `[B, H]` each.

    - distance: mean over patch queries of `Σ_j A_ij · pixels` over patch keys; rows are not renormalised, so what they
      give to `[cls]` and prompts counts 0.
    - entropy: mean over the `[cls]` and patch queries; cls_entropy: of `[cls]` alone, where there is one.
    """
    first = config.first_patch
    inputs = config.tokens
    rows, columns = np.divmod(np.arange(config.patches), config.grid)
    # Between the centres of every two patches, `[M, M]`.
    pixels = config.patch_size * np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    pixels = jnp.asarray(pixels, jnp.float32)
    among_patches = probabilities[..., first:inputs, first:inputs]
    of_queries = entropy(probabilities[..., :inputs, :])
    return {
        "distance": jnp.einsum("BHNM,NM->BHN", among_patches, pixels).mean(-1),  # in two sums: each stays exact longer
        "entropy": of_queries.mean(-1),
        **({"cls_entropy": of_queries[..., 0]} if first else {}),
    }


def observe_distance_and_entropy(config: VisionConfig, prompts: int) -> Observe:
    """Fig. 5 in the variants that apply: "clip" without prompts, else "without_prompt" and "with_prompt".

    The observer returns `{variant: {quantity: [B, H]}}`.
    """

    def observe(view: LayerView) -> Mapping[str, Mapping[str, jax.Array]]:
        if not prompts:
            return {"clip": distance_and_entropy(view.probabilities, config)}
        inputs = slice(config.tokens)
        return {
            "without_prompt": distance_and_entropy(renormalise(view.probabilities[..., inputs, inputs]), config),
            "with_prompt": distance_and_entropy(view.probabilities, config),
        }

    return observe


def kind_sums(rows: jax.Array, kinds: jax.Array) -> jax.Array:
    """Rows `[C, …, N]` summed over the tokens of each kind `[C, N]`: `[C, …, 6]`."""
    member = jax.nn.one_hot(kinds, len(TEXT_KINDS), dtype=rows.dtype)
    return jnp.einsum("C...N,CNK->C...K", rows, member, precision="highest")


def observe_text_shares(eos: jax.Array, kinds: jax.Array) -> Observe:
    """Fig. 4: the attention of the EOS query by token kind, `[C, H, 6]` in the order of `TEXT_KINDS`, which sum to 1.

    `eos [C]` are the positions of EOS, `kinds [C, N]` from `text_kinds`.
    """

    def observe(view: LayerView) -> jax.Array:
        rows = jnp.take_along_axis(view.probabilities, eos[:, None, None, None], axis=2)[:, :, 0]
        return kind_sums(rows, kinds)

    return observe


def prompt_distances(tokens: jax.Array, patches: int, first: int = 1) -> jax.Array:
    """`‖p_k − x_j‖₂` between the prompts and the patch tokens at a block's input: `[B, N, D]` to `[B, V, M]`.

    `first` tokens stand before the patches.
    """
    x = tokens[:, first : first + patches]
    prompts = tokens[:, first + patches :]
    differences = (prompts[:, :, None] - x[:, None]).astype(jnp.float32)
    return jnp.sqrt(jnp.square(differences).sum(-1))


def observe_similarity(patches: int, *, prompts: int, first: int = 1) -> Observe:
    """`{"cls": [B, M]}`, attention of `[cls]` if there is one, and with prompts `{"distance": [B, M]}`, their mean."""

    def observe(view: LayerView) -> dict[str, jax.Array]:
        seen = {"cls": view.probabilities[:, :, 0, 1 : 1 + patches].mean(1)} if first else {}
        if prompts:
            seen["distance"] = prompt_distances(view.tokens, patches, first).mean(1)
        return seen

    return observe


def to_image(maps: jax.Array, image_size: int) -> jax.Array:
    """Patch maps `[…, M]` at image size, bilinear with half-pixel centres, scaled to 0 … 1: `[…, R, R]`."""
    *leading, patches = maps.shape
    side = round(patches**0.5)
    shape = (*leading, image_size, image_size)
    images = jax.image.resize(maps.reshape(*leading, side, side), shape, "bilinear")
    return stretched(images.reshape(*leading, -1)).reshape(shape)


def observe_parts(roles: Roles, pooled: jax.Array | None, mask: jax.Array | None = None) -> Observe:
    """Statistics of Eq. 12 for every layer.

    Args:
      roles: of the tokens.
      pooled: `[B]`, the row of `[cls]` or EOS; `None` in a tower that is read by a pooling head.
      mask: `[B]`, which samples count in the averages over samples.

    Returns:
      An observer of a dictionary, per sample: `prompt_mass [B, H]` over queries, `pooled_mass [B, H]` of that row,
      `norm_share [B]`, the prompt part's norm over the sum of both norms; and averaged over samples, as `Moments`:
      `part`, the prompt part per token after the output projection `[N, D]`; `total [D]`, its sum over a sample's
      queries; `tokens`, the number of these.
    """

    def observe(view: LayerView) -> dict[str, Any]:
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
    """Attention of `[cls]` and distances between patches and prompts in every layer, of normalised images.

    "attention" is that to patches and prompts, mean over heads, `[B, L, M + V]`; with prompts there is "distance"
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


def layer_maps(study: Study, model: Model, images: jax.Array) -> dict[str, jax.Array]:
    """`observe_layers` of raw images `[B, R, R, 3]`."""

    def maps(params: Params, learnables: Learnables, images: jax.Array) -> dict[str, jax.Array]:
        return observe_layers(model.task.classifier, params, learnables, study.normalize(images))

    return study.program("layers", model, maps)(study.params, study.learnables[model.key], images)


# Of the prompts' part alone, as `Moments`: of each pass by itself, since each has its prompts.
PARTS = ("part", "total", "tokens")


def compute_text_attention(study: Study) -> Section[dict[str, TextAttention | Missing]]:
    """Fig. 4, over the classes, and over all their texts where they have several."""
    results: dict[str, TextAttention | Missing] = {}
    for model in (study.worded, *study.tuned):
        if reason := why_no_text_attention(model.task):
            results[model.key] = Missing(reason)
            continue
        totals: Totals = {}
        for shares in eos_shares(study, model):
            totals = merge(totals, {"shares": over_texts(shares)})
        results[model.key] = TextAttention(
            shares=totals["shares"].average,
            count=totals["shares"].samples,
            texts=model.texts,
            text=prompt_text(model.task),
        )
    yield ()  # a section is a generator, and this one reads no image
    return results


def eos_shares(study: Study, model: Model) -> list[Any]:
    """Attention of EOS by kind of token, `[L, C, H, 6]`, of each of a model's texts per class by itself."""

    def observe(tokens: TextTokens, kinds: jax.Array) -> Observe:
        shares = observe_text_shares(jnp.asarray(tokens.eos), kinds)
        return lambda view: {"shares": shares(view)}

    return [seen["shares"] for seen in observe_texts(study, model, observe, text_kinds(model.task))]


def observe_texts(
    study: Study, model: Model, observe: Callable[[TextTokens, Any], Observe], facts: Any
) -> list[dict[str, Any]]:
    """What is seen in the text tower, `[L, C, …]`: of each of a model's `S` texts per class by itself.

    `observe` makes an observer of the texts' tokens and their `facts`, arrays with a row per text.
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
    requests = {
        model.key: SumRequest(
            f"attention-{model.key}", f"{model.label}: attention", study.images, _vision_step(study, model)
        )
        for model in models
    }
    results = yield list(requests.values())
    return {key: results[request.name] for key, request in requests.items()}


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
        by_layer = {  # of each image, `[n, L]`: what observations are made of
            f"{name}/layers": Moments.each(value.mean(2).T, batch["numbers"], len(study.split), mask)
            for name, value in means.items()
            if name.startswith("attention/")
        }
        if "rank_correlation" in means:
            nearness = means["rank_correlation"].T
            by_layer["rank_correlation/layers"] = Moments.each(nearness, batch["numbers"], len(study.split), mask)
        averages = {name: _over_samples(value, mask) for name, value in (means | apart).items()}
        return by_layer | averages

    return lambda batch: step(study.params, study.learnables[model.key], batch)


def compute_vision_attention(study: Study) -> Section[dict[str, VisionAttention | Missing]]:
    """Fig. 5."""
    models, left_out = divide(study.models, why_no_vision_attention)
    totals = yield from vision_totals(study, models)
    return left_out | {model.key: _vision_attention(study, model, totals[model.key]) for model in models}


def _vision_attention(study: Study, model: Model, totals: Totals) -> VisionAttention:
    has_cls = bool(study.clip.config.vision.first_patch)

    def variant(name: str) -> AttentionVariant:
        distance, entropy = (totals[f"attention/{name}/{quantity}"].average for quantity in ("distance", "entropy"))
        return AttentionVariant(distance, entropy, totals[f"attention/{name}/cls_entropy"].average if has_cls else None)

    names = ("without_prompt", "with_prompt") if model.prompts[0] else ("clip",)
    variants = dict.fromkeys(("clip", "without_prompt", "with_prompt")) | {name: variant(name) for name in names}
    return VisionAttention(
        count=totals[f"attention/{names[-1]}/distance"].samples,
        **variants,
        no_cls_entropy=None if has_cls else "This vision tower has no [cls], so that no query of it has an entropy.",
    )
