"""What tuned adapters learned: the words nearest to their prompts, their lengths, and how they lie to one another.

`interpret` returns plain JSON values (layers, prompts and ranks counted from 0):

    format         1
    clip           {name, fingerprint, text_layers, vision_layers, vocabulary}
    adapters       list of {name, source, method, dataset, shots, seed, accuracy, parameters {total, …}}
    words          list of {adapter, layer, class or null, prompt, mean_distance, nearest: [{id, word, distance}, …]};
                   layer 0 in the space of token embeddings, others in that of the layer's input (`explain/words.py`)
    norms          list of {adapter, tower, part, layer, prompt, norm, tokens_norm} (`explain/norms.py`)
    projections    list of {tower, arrays, adapters (names), pca [n, 2], explained [2], silhouette {dataset, method,
                   seed: number or null}, sentence}: adapters whose learned arrays of a tower have the same shapes, each
                   flattened to one vector (`explain/projection.py`)
    remarks        sentences on what was left out
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias import hosts
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.explain.norms import norms
from clipbias.explain.projection import project, separation
from clipbias.explain.results import plain
from clipbias.explain.words import Nearest, context_words, place_words, prompt_prefixes, readable_token
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
class InterpretOptions:
    """What is computed.

    Attributes:
      words: nearest words per prompt.
      deeper: also for deeper prompts, which costs passes of the text tower over the vocabulary.
      chunk: words of the vocabulary per pass.
      classes: texts per adapter whose tokens' norms are averaged.
      change: project the change from the initial values of the adapter's seed instead of the values.
    """

    words: int = 5
    deeper: bool = False
    chunk: int = 1024
    classes: int = 64
    change: bool = False


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
    clip: Clip,
    learned: Sequence[Learned],
    options: InterpretOptions,
    *,
    advance: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Everything that the module's docstring lists; `advance` is told the name of each adapter that is done."""
    adapters, words, lengths, without = [], [], [], []
    for one in learned:
        notes, learnables = one.adapter.notes, one.adapter.learnables
        facts = {key: notes.get(key) for key in ("dataset", "shots", "seed", "accuracy")}
        about = {"name": one.name, "source": one.source, "method": one.adapter.method, **facts}
        adapters.append({**about, "parameters": parameter_count(learnables)})
        words += _context_words(one, options)
        own = norms(one.task, learnables, classes=options.classes, images=one.images)
        lengths += [{"adapter": one.name, **dataclasses.asdict(norm)} for norm in own]
        if not own:
            without.append(one.name)
        hosts.check()
        advance(one.name)
    if not lengths:
        raise ClipbiasError(
            "none of these adapters holds contexts, prompts, biases or residuals, which are what is interpreted: "
            f"{_first_names(without)}."
        )
    deeper, remarks = _prompt_words(clip, learned, options)
    if without:
        remarks.append(f"No contexts, prompts, biases or residuals, and so nothing to show: {_first_names(without)}.")
    order = {one.name: number for number, one in enumerate(learned)}
    words = sorted(words + deeper, key=lambda entry: (order[entry["adapter"]], entry["layer"]))
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


def _first_names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest


def _entry(one: Learned, layer: int, class_name: str | None, prompt: int, near: Nearest, row: int) -> dict[str, Any]:
    pairs = zip(near.ids[row].tolist(), near.distances[row].tolist(), strict=True)
    tokenizer = one.task.clip.tokenizer
    return {
        "adapter": one.name,
        "layer": layer,
        "class": class_name,
        "prompt": prompt,
        "mean_distance": near.mean_distance[row],
        "nearest": [{"id": i, "word": readable_token(tokenizer, i), "distance": d} for i, d in pairs],
    }


def _context_words(one: Learned, options: InterpretOptions) -> list[dict[str, Any]]:
    context = one.task.method.adapt(one.adapter.learnables).text_context
    if context is None or not context.size:
        return []
    rows, tokens = np.asarray(context).reshape(-1, context.shape[-1]), context.shape[-2]
    near = context_words(rows, np.asarray(one.task.clip.params["text"]["token_embedding"]), options.words)
    names = one.task.class_names if context.ndim == 3 and len(context) == len(one.task.texts) else None
    return [
        _entry(one, 0, names[i // tokens % len(names)] if names else None, i % tokens, near, i)
        for i in range(len(rows))
    ]


def _prompt_words(
    clip: Clip, learned: Sequence[Learned], options: InterpretOptions
) -> tuple[list[dict[str, Any]], list[str]]:
    """The words of deeper prompts, adapters that share a place in one pass; and what was left out."""
    deep: list[tuple[Learned, np.ndarray]] = []
    for one in learned:
        learned_prompts = one.task.method.adapt(one.adapter.learnables).text_prompts
        if learned_prompts is not None and learned_prompts.size:
            deep.append((one, np.asarray(learned_prompts)))
    if deep and not options.deeper:
        count = f"{len(deep)} adapter{'s' if len(deep) > 1 else ''}"
        return [], [f"The words of the deeper prompts of {count} were not asked for (--config.deeper_words)."]
    places: dict[tuple[int, ...], list[tuple[Learned, int, np.ndarray]]] = {}
    remarks = []
    for one, prompts in deep:
        try:
            prefixes = prompt_prefixes(one.task, prompts.shape[1])
        except ClipbiasError as error:
            remarks.append(f"{one.name}: {error}")
            continue
        for place, prefix in enumerate(prefixes):
            places.setdefault(tuple(prefix.tolist()), []).append((one, place, prompts[:, place]))
    entries = []
    for ids, members in places.items():
        vectors = [own for _, _, own in members]
        found = place_words(clip, np.array(ids), vectors, options.words, chunk=options.chunk)
        for (one, place, _), layers in zip(members, found, strict=True):
            entries += [_entry(one, layer, None, place, near, 0) for layer, near in enumerate(layers, start=1)]
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


def _projections(learned: Sequence[Learned], options: InterpretOptions) -> tuple[list[dict[str, Any]], list[str]]:
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
        projection = project(vectors)
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
