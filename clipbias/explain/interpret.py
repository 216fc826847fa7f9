"""What tuned adapters learned: the words nearest to their prompts, their lengths, and how they lie to one another.

`interpret` returns plain JSON values (layers, prompts and ranks counted from 0):

    format         1
    clip           {name, fingerprint, text_layers, vision_layers, vocabulary}
    adapters       list of {name, source, method, dataset, shots, seed, accuracy, parameters {total, …}}
    words          list of {adapter, layer, class or null, prompt, mean_distance, nearest: [{id, word, distance}, …]};
                   layer 0 in the space of token embeddings, others in that of the layer's input (`explain/words.py`)
    norms          list of {adapter, tower, part, layer, prompt, norm, tokens_norm} (`explain/norms.py`)
    projections    list of {tower, arrays, adapters (names), pca [n, 2], explained [2], tsne [n, 2] or null, perplexity
                   or null, silhouette {dataset, method, seed: number or null}, sentence}: adapters whose learned arrays
                   of a tower have the same shapes, each flattened to one vector (`explain/projection.py`)
    remarks        sentences on what was left out
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.explain.norms import norms
from clipbias.explain.projection import project, separation
from clipbias.explain.results import plain
from clipbias.explain.words import Nearest, context_words, prompt_words, readable_token
from clipbias.tuning import Learnables, Task, parameter_count
from clipbias.tuning.adapter import Adapter

FORMAT = 1
TOWERS = {
    "vision": ("vision_prompts", "vision_bias"),
    "text": ("text_context", "text_prompts", "text_bias", "text_residual"),
}


@dataclasses.dataclass(frozen=True)
class Learned:
    """One adapter with its task, its name here, and images of its dataset (uint8 `[B, R, R, 3]`) if any."""

    name: str
    source: str
    adapter: Adapter
    task: Task
    images: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """What is computed.

    Attributes:
      words: nearest words per prompt.
      deeper: also for deeper prompts, which costs passes of the text tower over the vocabulary.
      chunk: words of the vocabulary per pass.
      classes: texts per adapter whose tokens' norms are averaged.
      change: project the change from the initial values of the adapter's seed instead of the values.
      seed: of t-SNE.
    """

    words: int = 5
    deeper: bool = False
    chunk: int = 1024
    classes: int = 64
    change: bool = False
    seed: int = 0


def require_one_base(adapters: Sequence[tuple[str, Adapter]]) -> None:
    """Refuses adapters of several base models, whose vectors live in different spaces."""
    bases = {adapter.base_fingerprint: (name, adapter.base) for name, adapter in adapters}
    if len(bases) > 1:
        (first, base), (second, other) = list(bases.values())[:2]
        raise ClipbiasError(
            f"the adapters belong to {len(bases)} base models, whose vectors cannot be compared: {first} to {base!r}, "
            f"{second} to {other!r}; interpret those of one base at a time."
        )


def interpret(
    clip: Clip, learned: Sequence[Learned], options: Options, *, advance: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Everything that the module's docstring lists; `advance` is told the name of each adapter that is done."""
    adapters, words, lengths, remarks = [], [], [], []
    for one in learned:
        notes, learnables = one.adapter.notes, one.adapter.learnables
        facts = {key: notes.get(key) for key in ("dataset", "shots", "seed", "accuracy")}
        about = {"name": one.name, "source": one.source, "method": one.adapter.method, **facts}
        adapters.append({**about, "parameters": parameter_count(learnables)})
        found, left_out = _words(one, options)
        words += [{"adapter": one.name, **entry} for entry in found]
        remarks += left_out
        own = norms(one.task, learnables, classes=options.classes, images=one.images)
        lengths += [{"adapter": one.name, **dataclasses.asdict(norm)} for norm in own]
        advance(one.name)
    if not lengths:
        raise ClipbiasError("nothing was learned in any of these adapters; give prompts, biases or residuals.")
    projections, left_out = _projections(learned, options)
    result = {
        "format": FORMAT,
        "clip": {
            "name": clip.name,
            "fingerprint": clip.fingerprint,
            "text_layers": clip.config.text.layers,
            "vision_layers": clip.config.vision.layers,
            "vocabulary": clip.config.text.vocabulary_size,
        },
        "adapters": adapters,
        "words": words,
        "norms": lengths,
        "projections": projections,
        "remarks": remarks + left_out,
    }
    return plain(result)


def _words(one: Learned, options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    adaptation = jax.tree.map(np.asarray, one.task.method.adapt(one.adapter.learnables))
    context, prompts = adaptation.text_context, adaptation.text_prompts
    tokenizer = one.task.clip.tokenizer
    entries: list[dict[str, Any]] = []
    remarks: list[str] = []

    def entry(layer: int, class_name: str | None, prompt: int, near: Nearest, row: int) -> dict[str, Any]:
        pairs = zip(near.ids[row].tolist(), near.distances[row].tolist(), strict=True)
        return {
            "layer": layer,
            "class": class_name,
            "prompt": prompt,
            "mean_distance": near.mean_distance[row],
            "nearest": [{"id": i, "word": readable_token(tokenizer, i), "distance": d} for i, d in pairs],
        }

    if context is not None and context.size:
        rows = context.reshape(-1, context.shape[-1])
        near = context_words(rows, np.asarray(one.task.clip.params["text"]["token_embedding"]), options.words)
        tokens = context.shape[-2]
        names = one.task.class_names if context.ndim == 3 else None
        for i in range(len(rows)):
            entries.append(entry(0, names[i // tokens] if names else None, i % tokens, near, i))
    if prompts is None or not prompts.size:
        return entries, remarks
    if not options.deeper:
        return entries, [f"{one.name}: the words of deeper prompts were not asked for (--config.deeper=True)."]
    try:
        for prompt, layers in enumerate(prompt_words(one.task, prompts, options.words, chunk=options.chunk)):
            entries += [entry(layer, None, prompt, near, 0) for layer, near in enumerate(layers, start=1)]
    except ClipbiasError as error:
        remarks.append(f"{one.name}: {error}")
    return entries, remarks


def learned_vector(task: Task, learnables: Learnables, tower: str) -> tuple[str, np.ndarray] | None:
    """All that acts in a tower as one float64 vector, and the names and shapes of its arrays; `None` for nothing.

    It is what the model is given, not what is trained: MaPLe's vision prompts are the products of its maps.
    """
    adaptation = task.method.adapt(learnables)
    parts = {name: np.asarray(value) for name in TOWERS[tower] if (value := getattr(adaptation, name)) is not None}
    parts = {name: value for name, value in parts.items() if value.size}
    if not parts:
        return None
    arrays = ", ".join(f"{name} {list(value.shape)}" for name, value in parts.items())
    return arrays, np.concatenate([value.ravel() for value in parts.values()]).astype(np.float64)


def _projections(learned: Sequence[Learned], options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    groups: dict[tuple[str, str], list[tuple[Learned, np.ndarray]]] = {}
    for tower in TOWERS:
        for one in learned:
            found = learned_vector(one.task, one.adapter.learnables, tower)
            if found is None:
                continue
            arrays, vector = found
            if options.change:
                initial = learned_vector(one.task, one.task.init(int(one.adapter.notes.get("seed") or 0)), tower)
                assert initial is not None and initial[0] == arrays
                vector = vector - initial[1]
            groups.setdefault((tower, arrays), []).append((one, vector))
    projections, remarks = [], []
    for (tower, arrays), members in groups.items():
        vectors = np.stack([vector for _, vector in members])
        projection = project(vectors, seed=options.seed)
        if projection is None:
            remarks.append(f"{tower} tower, {arrays}: {len(members)} adapter(s), nothing to compare; no picture.")
            continue
        labels: dict[str, list[Any]] = {
            "dataset": [one.adapter.notes.get("dataset") for one, _ in members],
            "method": [one.adapter.method for one, _ in members],
            "seed": [one.adapter.notes.get("seed") for one, _ in members],
        }
        silhouettes, sentence = separation(vectors, labels)
        projections.append(
            {
                "tower": tower,
                "arrays": arrays,
                "adapters": [one.name for one, _ in members],
                **dataclasses.asdict(projection),
                "silhouette": silhouettes,
                "sentence": sentence,
            }
        )
    return projections, remarks


def adapter_names(sources: Sequence[str], *, generic: str) -> list[str]:
    """A short name for each file: its stem, or its folder's name where the file is called `generic`; each name once."""
    names: list[str] = []
    for source in sources:
        path = Path(source)
        base = name = path.parent.name if path.name == generic else path.stem
        number = 1
        while name in names:
            number += 1
            name = f"{base} ({number})"
        names.append(name)
    return names
