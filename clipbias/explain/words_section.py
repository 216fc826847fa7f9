"""The section of a study about words: the vocabulary's words that lie nearest to learned text prompts."""

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.explain.model import Model
from clipbias.explain.results import Missing, ModelWords, PromptWords
from clipbias.explain.stream import Section
from clipbias.explain.study import Study
from clipbias.explain.words import Nearest, context_words, place_words, prompt_prefixes, readable_token

_CHUNK = 1024  # words of the vocabulary per pass
_NO_PROMPTS = "There are no learned text prompts."
_NOT_REQUESTED = "The words of deeper prompts were not requested; --config.deeper_words has them."


def compute_words(study: Study) -> Section[dict[str, ModelWords | Missing]]:
    """The words nearest to contexts, and with `deeper_words` to the prompts of deeper layers."""
    results: dict[str, ModelWords | Missing] = {}
    deeper, remarks = _deeper_words(study)
    for model in study.tuned:
        prompts = _context_words(study, model) + deeper[model.key]
        remark = remarks.get(model.key)
        if prompts or remark:
            results[model.key] = ModelWords(tuple(sorted(prompts, key=lambda prompt: prompt.layer)), remark)
        else:
            results[model.key] = Missing(_NO_PROMPTS)
    yield ()  # a section is a generator, and this one reads no image
    return results


def _context_words(study: Study, model: Model) -> list[PromptWords]:
    """Of the context, in the space of token embeddings."""
    context = model.task.method.adapt(model.learnables).text_context
    if context is None or not context.size:
        return []
    count = context.shape[-2]
    rows = np.asarray(context).reshape(-1, context.shape[-1])
    table = np.asarray(study.clip.params["text"]["token_embedding"])
    near = context_words(rows, table, study.options.nearest_words)
    by_class = context.ndim == 3 and len(context) == len(model.task.texts)
    names = model.task.class_names
    words = []
    for row in range(len(rows)):
        class_name = names[row // count % len(names)] if by_class else None
        words.append(_words(study, near, row, layer=0, prompt=row % count, class_name=class_name))
    return words


def _deeper_words(study: Study) -> tuple[dict[str, list[PromptWords]], dict[str, str]]:
    """By model the words of deeper prompts; and why a model has none. Models that share a place share its passes."""
    words: dict[str, list[PromptWords]] = {model.key: [] for model in study.tuned}
    remarks = {}
    places: dict[tuple[int, ...], list[tuple[str, int, np.ndarray]]] = {}
    for model in study.tuned:
        prompts = model.task.method.adapt(model.learnables).text_prompts
        if prompts is None or not prompts.size:
            continue
        if not study.options.deeper_words:
            remarks[model.key] = _NOT_REQUESTED
            continue
        try:
            prefixes = prompt_prefixes(model.task, prompts.shape[1])
        except ClipbiasError as error:
            remarks[model.key] = str(error)
            continue
        for place, prefix in enumerate(prefixes):
            places.setdefault(tuple(prefix.tolist()), []).append((model.key, place, np.asarray(prompts[:, place])))
    for prefix_ids, members in places.items():
        vectors = [rows for _, _, rows in members]
        nearest = place_words(study.clip, np.array(prefix_ids), vectors, study.options.nearest_words, chunk=_CHUNK)
        for (key, place, _), layers in zip(members, nearest, strict=True):
            words[key] += [
                _words(study, near, 0, layer=layer, prompt=place, class_name=None)
                for layer, near in enumerate(layers, start=1)
            ]
    return words, remarks


def _words(study: Study, near: Nearest, row: int, *, layer: int, prompt: int, class_name: str | None) -> PromptWords:
    ids = near.ids[row].tolist()
    return PromptWords(
        layer=layer,
        prompt=prompt,
        class_name=class_name,
        ids=tuple(ids),
        words=tuple(readable_token(study.clip.tokenizer, token) for token in ids),
        distances=tuple(near.distances[row].tolist()),
        mean_distance=float(near.mean_distance[row]),
    )
