"""The vocabulary's words that lie nearest to learned text prompts, as CoOp's authors look at theirs (Zhou et al. 2022).

A *context* (`text_context`) stands where token embeddings stand, so its words are the rows of the token-embedding
table, by Euclidean distance. Deeper prompts replace hidden states, and no word is a hidden state.

Nearest is not near: every result carries the mean distance over the whole vocabulary beside it. A prompt that is much
shorter than the embeddings is nearest to the shortest of them, whatever its direction.
"""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_chunked

from clipbias.clip.tokenizer import Tokenizer
from clipbias.explain.model import Model
from clipbias.explain.results import Missing, ModelWords, PromptWords
from clipbias.explain.study import Section, Study

NEAREST = 5  # words of each prompt


class Nearest(NamedTuple):
    """The nearest words of `n` vectors."""

    ids: np.ndarray  # `[n, k]` token ids, the nearest first; equally near ones by id
    distances: np.ndarray  # `[n, k]` Euclidean distances, float64
    mean_distance: np.ndarray  # `[n]`, to the whole vocabulary


def context_words(context: np.ndarray, token_embedding: np.ndarray, count: int) -> Nearest:
    """The `count` words nearest to contexts `[n, D]` in the embedding table `[vocabulary, D]`, both float32."""

    def nearest(distances: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        ids = distances.argsort(axis=1, kind="stable")[:, :count]
        return ids, distances.mean(axis=1, dtype=np.float64)

    parts = pairwise_distances_chunked(context, token_embedding, reduce_func=nearest)
    ids, mean_distance = (np.concatenate(each) for each in zip(*parts, strict=True))
    # Those came from products. From differences a vector's own row is at distance 0.
    differences = token_embedding[ids].astype(np.float64) - context[:, None]
    distances = np.linalg.norm(differences, axis=-1)
    order = np.lexsort((ids, distances))
    return Nearest(np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1), mean_distance)


def readable_token(tokenizer: Tokenizer, token: int) -> str:
    """A token as readers know it: its word, with a hyphen after it where it is only a word's beginning or middle."""
    piece = tokenizer.convert_ids_to_tokens(int(token))
    if token in tokenizer.all_special_ids:
        return str(piece)
    text = tokenizer.decode([int(token)]).strip()
    return text if piece.endswith("</w>") else f"{text}-"


def compute_words(study: Study) -> Section[dict[str, ModelWords | Missing]]:
    """The words nearest to each model's context."""
    results: dict[str, ModelWords | Missing] = {}
    for model in study.tuned:
        prompts = _prompt_words(study, model)
        results[model.key] = ModelWords(prompts) if prompts else Missing("There are no learned text prompts.")
    yield ()  # a section is a generator, and this one reads no image
    return results


def _prompt_words(study: Study, model: Model) -> tuple[PromptWords, ...]:
    context = model.task.method.adapt(model.learnables).text_context
    if context is None or not context.size:
        return ()
    count = context.shape[-2]
    rows = np.asarray(context).reshape(-1, context.shape[-1])
    table = np.asarray(study.clip.params["text"]["token_embedding"])
    near = context_words(rows, table, NEAREST)
    by_class = context.ndim == 3 and len(context) == len(model.task.texts)
    names = model.task.class_names
    return tuple(
        PromptWords(
            prompt=row % count,
            class_name=names[row // count % len(names)] if by_class else None,
            words=tuple(readable_token(study.clip.tokenizer, token) for token in ids),
            distances=tuple(near.distances[row].tolist()),
            mean_distance=float(near.mean_distance[row]),
        )
        for row, ids in enumerate(near.ids.tolist())
    )
