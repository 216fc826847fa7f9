"""All results of a study, on disk: arrays in `results.npz`, all else in `results.json`, by one codec (cattrs).

An array's name in the archive is its place among the results, such as `relevancy/ivlp/corrected/vision/tuned/mean`. The
JSON has `{"npz": name}` in that place. A digest of each file is kept, so that nobody reads a damaged file, or arrays
of another study.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import cattrs
import cattrs.v
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.explain.results.effects import CausalTests, Kind, MethodResult, ReplacementResults, Word
from clipbias.explain.results.facts import ClipFacts, DatasetFacts, Missing, ModelFacts, Predictions
from clipbias.explain.results.sections import (
    Decomposition,
    Examples,
    Exploration,
    Faithfulness,
    ModelWords,
    Observations,
    Relevancy,
    Similarity,
    TextAttention,
    VisionAttention,
)
from clipbias.io import atomic_path, check_file, read_json, sha256, shorten, write_text

SECTIONS = (
    "predictions",
    "relevancy",
    "text_attention",
    "vision_attention",
    "similarity",
    "decomposition",
    "causal",
    "faithfulness",
    "examples",
    "explore",
    "words",
    "replacement",
    "observations",
)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """All that a study found: facts, then the sections of `SECTIONS`, then what follows from them."""

    dataset: DatasetFacts
    clip: ClipFacts
    models: tuple[ModelFacts, ...]
    sections: tuple[str, ...]
    config: dict[str, object]
    seconds: float
    predictions: Predictions
    relevancy: dict[str, Relevancy | Missing] | None = None
    text_attention: dict[str, TextAttention | Missing] | None = None
    vision_attention: dict[str, VisionAttention | Missing] | None = None
    similarity: Similarity | None = None
    decomposition: dict[str, Decomposition | Missing] | None = None
    causal: CausalTests | None = None
    faithfulness: Faithfulness | None = None
    examples: Examples | None = None
    explore: Exploration | None = None
    words: dict[str, ModelWords | Missing] | None = None
    replacement: ReplacementResults | None = None
    observations: Observations | None = None
    methods: tuple[MethodResult, ...] = ()

    @property
    def zero_shot(self) -> ModelFacts:
        return self.models[0]

    @property
    def tuned(self) -> tuple[ModelFacts, ...]:
        return self.models[1:]

    def why_missing(self, section: str) -> dict[str, str]:
        """By model the reason why a section leaves it out."""
        result = getattr(self, section)
        models = result if isinstance(result, dict) else getattr(result, "models", {})
        return {key: model.reason for key, model in models.items() if isinstance(model, Missing)}

    @property
    def sentence(self) -> str:
        """The verdicts in words, a sentence for each method."""
        return " ".join(method.sentence for method in self.methods)


def present(results: Mapping[str, T | Missing] | None) -> dict[str, T]:
    """Of a section's results by model those that there are."""
    return {key: result for key, result in (results or {}).items() if not isinstance(result, Missing)}


def same_but_for_seed(models: Sequence[T]) -> list[list[T]]:
    """Models by method, options and training set, in the order in which they come."""
    groups: dict[tuple[str, str, str | None], list[T]] = {}
    for model in models:
        facts: Any = model  # of a study (`Model`), or of its results (`ModelFacts`)
        settings = facts.method, json.dumps(facts.options, sort_keys=True), facts.trained_on
        groups.setdefault(settings, []).append(model)
    return list(groups.values())


FORMAT = 9
ARRAYS = "results.npz"
SCALARS = "results.json"
_DIGEST = "sha256"
_ARRAYS_DIGEST = "arrays_sha256"
_ARRAY = "npz"


def save_results(folder: str | os.PathLike, results: StudyResults) -> None:
    """Writes both files, each atomically, the arrays first. NaN is no JSON: it is written as null.

    A process that is killed between the two leaves what `load_results` refuses.
    """
    folder = Path(folder)
    arrays: dict[str, np.ndarray] = {}
    content = _without_arrays(_CODEC.unstructure(results), "", arrays)
    save_arrays(folder / ARRAYS, arrays)
    content = {"format": FORMAT, **content, _ARRAYS_DIGEST: sha256(folder / ARRAYS)}
    content[_DIGEST] = _digest(content)
    write_text(folder / SCALARS, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load_results(folder: str | os.PathLike) -> StudyResults:
    """Reads what `save_results` wrote.

    Raises:
      ClipbiasError: the folder holds no results, or they are damaged or of another format.
    """
    scalars_path = Path(folder) / SCALARS
    arrays_path = Path(folder) / ARRAYS
    for path in (scalars_path, arrays_path):
        if not path.is_file():
            raise ClipbiasError(f"{folder} holds no {path.name}; run experiments/explain.py with this output folder.")
    content = read_json(scalars_path, dict, what="a study's results")
    if content.get("format") != FORMAT:
        raise ClipbiasError(
            f"{scalars_path} has format {content.get('format')!r}; this version reads {FORMAT}. Run the study again."
        )
    if content.pop(_DIGEST, None) != _digest(content):
        raise ClipbiasError(f"{scalars_path} is not as it was written; delete it and run again.")
    if content.pop(_ARRAYS_DIGEST, None) != sha256(arrays_path):
        raise ClipbiasError(
            f"{arrays_path} is damaged, or of another study than {scalars_path.name} beside it; run the study again."
        )
    del content["format"]
    try:
        return _CODEC.structure(_with_arrays(content, "", load_arrays(arrays_path)), StudyResults)
    except Exception as error:  # of a file that was edited: of whatever kind, with an error for each field in it
        problem, _, field = cattrs.v.transform_error(error, "", _problem)[0].rpartition(" @ ")
        raise ClipbiasError(
            f"{scalars_path} is not as it was written: {field.removeprefix('.') or 'the whole'} {problem}; delete it "
            "and run the study again."
        ) from error


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed `.npz` atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a `.npz`, never unpickling. Raises `ClipbiasError` if it is damaged."""
    check_file(Path(path))
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    # A truncated archive raises nearly anything, from BadZipFile to EOFError and zlib's own error.
    except Exception as error:
        raise ClipbiasError(f"{path} is damaged ({error}); delete it and run again.") from error


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_arrays(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` in JSON's own types; its arrays go to `arrays` by their places."""
    if isinstance(value, Mapping):
        return {
            str(key): _without_arrays(item, f"{place}/{key}" if place else str(key), arrays)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_arrays(item, f"{place}/{number}", arrays) for number, item in enumerate(value)]
    if isinstance(value, np.ndarray):
        arrays[place] = value
        return {_ARRAY: place}
    return value


def _with_arrays(value: Any, place: str, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if value == {_ARRAY: place} and place in arrays:
            return arrays[place]
        return {key: _with_arrays(item, f"{place}/{key}" if place else key, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_arrays(item, f"{place}/{number}", arrays) for number, item in enumerate(value)]
    return value


def _problem(error: BaseException, kind: type | None) -> str:
    """A field's error in words."""
    if isinstance(error, ClipbiasError):
        return str(error)
    if isinstance(error, KeyError):
        return "is missing"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"has an unknown field {min(error.extra_fields)}"
    return "holds values of the wrong kind"


def _check(value: object, kinds: type | tuple[type, ...], words: str) -> None:
    """Raises `ClipbiasError` for a value of another kind, which cattrs would convert."""
    if not isinstance(value, kinds):
        raise ClipbiasError(f"holds {shorten(repr(value))}, not {words}")


def _codec() -> cattrs.Converter:
    codec = cattrs.Converter(forbid_extra_keys=True)
    codec.register_unstructure_hook(float, lambda value: float(value) if np.isfinite(value) else None)

    def array(value: Any, _: Any) -> np.ndarray:
        _check(value, np.ndarray, "an array")
        return value

    def text(value: Any, _: Any) -> str:
        _check(value, str, "a text")
        return value

    def boolean(value: Any, _: Any) -> bool:
        _check(value, bool, "true or false")
        return value

    def whole(value: Any, _: Any) -> int:
        is_key = isinstance(value, str) and value.isdecimal()  # of a dictionary by numbers; JSON has texts there
        _check(int(value) if is_key else value, int, "a whole number")
        return int(value)

    def number(value: Any, _: Any) -> float:
        _check(value, (int, float, type(None)), "a number")
        return np.nan if value is None else float(value)

    def is_tuple(kind: Any) -> bool:
        return get_origin(kind) is tuple

    def values(value: Any, kind: Any) -> tuple[Any, ...]:
        _check(value, list, "a list")
        return tuple(codec.structure(item, get_args(kind)[0]) for item in value)

    for kind, hook in ((np.ndarray, array), (str, text), (bool, boolean), (int, whole), (float, number)):
        codec.register_structure_hook(kind, hook)
    for words in (Kind, Word):
        codec.register_structure_hook(words, lambda value, kind: kind(text(value, kind)))
    codec.register_structure_hook_func(is_tuple, values)
    codec.register_structure_hook_func(lambda kind: kind is object, lambda value, _: value)
    return codec


_CODEC = _codec()
