"""The numbers of a study's sections, sample by sample in float64: attention's shares, distances, entropies, Eq. 12.

For prompts at the front of a text. A *run* is a method's inputs (`methods.prepare`) with the numbers of its learned
tokens.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from tests.reference import methods, relevancy
from tests.reference.methods import Forward, Inputs, Reference
from tests.reference.numpy_clip import Block, merge_heads

KINDS = ("sos", "prompt", "words", "category", "dot", "eos")
WORDS = 4  # of "a photo of a"


def text_shares(row: np.ndarray, end: int, prompts: int, words: int) -> dict[str, float]:
    """Fig. 4: how an EOS row [N] of attention divides among the token kinds; the six sum to 1."""
    kinds = {kind: 0.0 for kind in KINDS}
    for index in range(end + 1):
        if index == 0:
            kind = "sos"
        elif index <= prompts:
            kind = "prompt"
        elif index <= prompts + words:
            kind = "words"
        elif index <= end - 2:
            kind = "category"
        elif index == end - 1:
            kind = "dot"
        else:
            kind = "eos"
        kinds[kind] += float(row[index])
    return kinds


def of_variant(attention: np.ndarray, prompts: int, name: str) -> np.ndarray:
    """Fig. 5: "clip" and "with_prompt" keep all; "without_prompt" drops the prompts and renormalises."""
    if name != "without_prompt" or not prompts:
        return attention
    inputs = attention[..., :-prompts, :-prompts]
    return inputs / inputs.sum(-1, keepdims=True)


def attention_distance(attention: np.ndarray, grid: int, patch_size: int) -> np.ndarray:
    """[H, N, N] -> [H]: mean over patch queries of Σ A · distance in pixels over patch keys.

    `[cls]` is dropped and rows are not normalised again; prompts, if any, come after the patches and count 0.
    """
    totals = np.zeros(len(attention))
    for query in range(grid * grid):
        for key in range(grid * grid):
            rows = query // grid - key // grid
            columns = query % grid - key % grid
            totals += attention[:, 1 + query, 1 + key] * patch_size * math.hypot(rows, columns)
    return totals / (grid * grid)


def attention_entropy(attention: np.ndarray, patches: int) -> np.ndarray:
    """[H, N, N] -> [H, 1 + M]: −Σ a ln a of the `[cls]` and patch queries, with 0 ln 0 = 0."""
    rows = attention[:, : 1 + patches]
    terms = np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1.0)), 0.0)
    return -terms.sum(-1)


def decompose(clip: Reference, tower: str, layer: int, block: Block, prompts: slice) -> dict[str, np.ndarray]:
    """Eq. 12: the attention's output by source, for the queries of one layer.

    `attended = input + prompt + bias`, [B, N, D] each; `mass` [B, H, N] is the attention on the prompts, and
    `renormalised` [B, H, N, D/H] each head's output over the input tokens alone: its input part is (1 - mass)
    times that.
    """
    name = f"{tower}_model.encoder.layers.{layer}.self_attn.out_proj"
    kernel, bias = clip.state[f"{name}.weight"], clip.state[f"{name}.bias"]
    count = block.attention.shape[-1]
    on_prompts = np.zeros(count, bool)
    on_prompts[prompts] = True
    inside = block.attention[..., ~on_prompts] @ block.value[:, :, ~on_prompts]
    outside = block.attention[..., on_prompts] @ block.value[:, :, on_prompts]
    mass = block.attention[..., on_prompts].sum(-1)
    return {
        "input": merge_heads(inside) @ kernel.T,
        "prompt": merge_heads(outside) @ kernel.T,
        "bias": bias,
        "mass": mass,
        "renormalised": inside / (1 - mass)[..., None],
    }


def prompt_distance(tokens: np.ndarray, patches: int) -> np.ndarray:
    """Fig. 6: [B, N, D] block inputs -> [B, V, M] Euclidean distances of each prompt to each patch token."""
    prompts, places = tokens[:, 1 + patches :], tokens[:, 1 : 1 + patches]
    return np.sqrt(((prompts[:, :, None] - places[:, None]) ** 2).sum(-1))


@dataclasses.dataclass(frozen=True)
class Run:
    """A model of the study."""

    inputs: Inputs
    vision_prompts: int
    text_prompts: int


def mean_and_error(samples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Over samples; the error is NaN below two."""
    values = np.stack(samples)
    count = len(values)
    deviation = np.sqrt(((values - values.mean(0)) ** 2).sum(0) / (count - 1)) if count > 1 else np.nan
    return values.mean(0), deviation / np.sqrt(count) * np.ones(values.shape[1:])


def relevancy_samples(
    clip: Reference, run: Run, images: np.ndarray, labels: Sequence[int], patches: int
) -> dict[str, list[np.ndarray]]:
    """Each image's rows for its class, divided by their sums, their sums by kind, and the row as it is."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("vision", "text", "vision_types", "text_types", "raw")}
    for image, label in zip(images, labels, strict=True):
        vision, text = relevancy.relevancy(clip, run.inputs, image, int(label))
        rows["raw"].append(vision[:patches])
        vision, text = vision / vision.sum(), text / text.sum()
        rows["vision"].append(vision)
        rows["vision_types"].append(np.array([vision[:patches].sum(), vision[patches:].sum()]))
        rows["text"].append(np.pad(text, (0, run.inputs.tokens.shape[1] - len(text))))
        shares = text_shares(np.append(text, 0), len(text), run.text_prompts, WORDS - run.text_prompts)
        rows["text_types"].append(np.array([shares[kind] for kind in KINDS if kind != "eos"]))
    return rows


def order(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation."""
    return float(scipy.stats.spearmanr(x, y).statistic)


def variation(x: np.ndarray, y: np.ndarray) -> float:
    """Half the sum of absolute differences of two rows, each divided by its sum."""
    return float(np.abs(x / x.sum() - y / y.sum()).sum() / 2)


def text_attention(saved: Forward, run: Run) -> np.ndarray:
    """Fig. 4: `[L, H, kinds]`, mean over the classes."""
    layers = []
    for block in saved.text.blocks:
        classes = []
        for attention, end in zip(block.attention, saved.text.rows, strict=True):
            heads = [text_shares(h[end], end, run.text_prompts, WORDS - run.text_prompts) for h in attention]
            classes.append([list(shares.values()) for shares in heads])
        layers.append(np.mean(classes, axis=0))
    return np.stack(layers)


def vision_attention(saved: Forward, run: Run, variant: str, grid: int, patch_size: int) -> dict[str, np.ndarray]:
    """Fig. 5: `[B, L, H]` of each quantity."""
    quantities: dict[str, list] = {"distance": [], "entropy": [], "cls_entropy": []}
    for image in range(len(saved.vision.features)):
        maps = [of_variant(b.attention[image], run.vision_prompts, variant) for b in saved.vision.blocks]
        entropies = [attention_entropy(attention, grid * grid) for attention in maps]
        quantities["distance"].append([attention_distance(attention, grid, patch_size) for attention in maps])
        quantities["entropy"].append([entropy.mean(-1) for entropy in entropies])
        quantities["cls_entropy"].append([entropy[:, 0] for entropy in entropies])
    return {name: np.asarray(values) for name, values in quantities.items()}


def cls_attention(saved: Forward, patches: int) -> np.ndarray:
    """Fig. 6: attention of `[cls]` to the patches, mean over heads, `[B, L, M]`."""
    return np.stack([block.attention[:, :, 0, 1 : 1 + patches].mean(1) for block in saved.vision.blocks], 1)


def distance_to_prompts(saved: Forward, patches: int) -> np.ndarray:
    """Fig. 6: of every patch, mean over the prompts, `[B, L, M]`."""
    return np.stack([prompt_distance(block.tokens, patches).mean(1) for block in saved.vision.blocks], 1)


def enlarged(row: np.ndarray, size: int) -> np.ndarray:
    """A square map `[M]` at `[size, size]`: bilinear with half-pixel centres, scaled to 0 … 1."""
    grid = round(len(row) ** 0.5)
    centres = np.clip((np.arange(size) + 0.5) * grid / size - 0.5, 0, grid - 1)
    low = np.minimum(centres.astype(int), grid - 2)
    weights = np.zeros((size, grid))
    weights[np.arange(size), low] = 1 - (centres - low)
    weights[np.arange(size), low + 1] = centres - low
    image = weights @ row.reshape(grid, grid) @ weights.T
    return (image - image.min()) / (image.max() - image.min())


def decomposition(
    clip: Reference, saved: Forward, tower: str, slots: slice, queries: Sequence[np.ndarray], rows: Sequence[int]
) -> dict[str, np.ndarray]:
    """Eq. 12 of every layer.

    Args:
      slots: where the prompts stand.
      queries: of each sample the input tokens that see a prompt.
      rows: of each sample the row that is read out.
    """
    statistics_by_name: dict[str, list] = {}
    for layer, block in enumerate(getattr(saved, tower).blocks):
        parts = decompose(clip, tower, layer, block, slots)
        samples = range(len(queries))
        lengths = {name: np.linalg.norm(parts[name], axis=-1) for name in ("prompt", "input")}
        values = {
            "prompt_mass": np.mean([parts["mass"][i][:, queries[i]].mean(-1) for i in samples], 0),
            "pooled_mass": np.mean([parts["mass"][i][:, rows[i]] for i in samples], 0),
            "norm_share": np.mean(
                [(lengths["prompt"] / (lengths["prompt"] + lengths["input"]))[i][queries[i]].mean() for i in samples]
            ),
            **constancy([dict(zip(queries[i].tolist(), parts["prompt"][i][queries[i]], strict=True)) for i in samples]),
        }
        for name, value in values.items():
            statistics_by_name.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in statistics_by_name.items()}


def constancy(samples: Sequence[Mapping[int, np.ndarray]]) -> dict[str, np.ndarray]:
    """How constant the parts of samples, by token, are: from products of different samples, which are not biased."""
    tokens = sorted({token for sample in samples for token in sample})
    constant = square = 0.0
    for token in tokens:
        vectors = [sample[token] for sample in samples if token in sample]
        if len(vectors) > 1:
            constant += len(vectors) * np.mean([a @ b for a, b in itertools.permutations(vectors, 2)])
            square += sum(x @ x for x in vectors)
    pairs = list(itertools.permutations(samples, 2))
    products = sum(sum(a.values()) @ sum(b.values()) for a, b in pairs) / sum(len(a) * len(b) for a, b in pairs)
    every = [x for sample in samples for x in sample.values()]
    return {
        "constancy": np.asarray(constant / square),
        "bias_likeness": np.asarray(products / np.mean([x @ x for x in every])),
        "vector": np.mean(every, axis=0),
    }


def run_of(clip: Reference, method: str, class_names: Sequence[str], learnables: Mapping, **options: str) -> Run:
    """A method with its learnables."""
    inputs = methods.prepare(clip, method, class_names, learnables, **options)
    prompts = 0 if inputs.vision_prompts is None else inputs.vision_prompts.shape[1]
    return Run(inputs, prompts, inputs.places.shape[1])
