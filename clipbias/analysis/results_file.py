"""Results of a study on disk: arrays in `results.npz`, everything else in `results.json`, by one codec (cattrs).

An array's name in the archive is its path among the results, such as `relevancy/ivlp/corrected/vision/tuned/mean`. The
JSON has `{"npz": name}` at that path. Digests of both files detect damage, edits, and arrays of another study.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cattrs
import numpy as np

from clipbias.analysis.results import FORMAT, StudyResults
from clipbias.analysis.sections import all_sections
from clipbias.errors import ClipbiasError
from clipbias.io import load_arrays, read_json, save_arrays, sha256, write_text

ARRAYS = "results.npz"
SCALARS = "results.json"
_DIGEST = "sha256"
_ARRAYS_DIGEST = "arrays_sha256"
_ARRAY = "npz"


def save_results(folder: str | os.PathLike, results: StudyResults) -> None:
    """Writes both files, each atomically. NaN is written as null, since JSON has no NaN."""
    folder = Path(folder)
    arrays: dict[str, np.ndarray] = {}
    content = _without_arrays(_CODEC.unstructure(results), "", arrays)
    # Arrays first: after a kill between the two files, the JSON's digest of the arrays does not fit, and
    # `load_results` refuses them.
    save_arrays(folder / ARRAYS, arrays)
    content = {"format": FORMAT, **content, _ARRAYS_DIGEST: sha256(folder / ARRAYS)}
    content[_DIGEST] = _digest(content)
    write_text(folder / SCALARS, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load_results(folder: str | os.PathLike) -> StudyResults:
    """Reads stored results. Raises `ClipbiasError` for missing or damaged files, or another format."""
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
        raise ClipbiasError(f"{scalars_path} was edited or damaged; delete it and run again.")
    if content.pop(_ARRAYS_DIGEST, None) != sha256(arrays_path):
        raise ClipbiasError(
            f"{arrays_path} is damaged, or belongs to another study than {scalars_path.name}; run the study again."
        )
    del content["format"]
    content = _with_arrays(content, "", load_arrays(arrays_path))
    known = all_sections()
    # The record cannot name the types of its sections' results, since each section defines its own. A section that is
    # not here, of another version or of a user who added it, does not cost the others.
    content["sections"] = {
        name: _CODEC.structure(value, known[name].result)
        for name, value in content["sections"].items()
        if name in known
    }
    return _CODEC.structure(content, StudyResults)


def _digest(content: Mapping[str, Any]) -> str:
    # Sorted keys: the digest is of the content, not of the order in which it was written.
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_arrays(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """Converts `value` to JSON's types; moves its arrays to `arrays`, by their paths."""
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
        # Only a marker at its own path is an array: a user's configuration may hold a dictionary that looks like one.
        if value == {_ARRAY: place} and place in arrays:
            return arrays[place]
        return {key: _with_arrays(item, f"{place}/{key}" if place else key, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_arrays(item, f"{place}/{number}", arrays) for number, item in enumerate(value)]
    return value


_CODEC = cattrs.Converter(forbid_extra_keys=True)
_CODEC.register_unstructure_hook(float, lambda value: float(value) if np.isfinite(value) else None)
_CODEC.register_structure_hook(float, lambda value, _: np.nan if value is None else float(value))
_CODEC.register_structure_hook(np.ndarray, lambda value, _: value)
_CODEC.register_structure_hook_func(lambda kind: kind in (object, Any), lambda value, _: value)
