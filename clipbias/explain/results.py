"""What a study leaves behind: `results.npz` (arrays) and `results.json` (scalars and words), all a report needs.

Array names are paths. `{model}` is a model's key, `{tuned}` a tuned model's, `{tower}` "vision" or "text". An average
comes as two arrays, `…/mean` and `…/standard_error`; its number of samples stands in the JSON under the same section.
Layers are counted from 0. A section that was not asked for is absent: test with `in`. Where one makes no sense for a
model, `{section}.{model}` is {missing: why, in one sentence}, and the model has no arrays in it. Of a method whose
classes have several texts, or that makes several passes over an image, `texts` and `runs` count them.

JSON, always there:
    format              3
    dataset             {name, split, images, class_names, template}
    clip                {name, fingerprint, image_size, patch_size, grid, patches, tokens, vision_layers, vision_heads,
                        text_layers, text_heads}
    models              list, zero-shot first: {key, label, name: of all seeds together, method, options, trained_on:
                        a dataset or "", parameters {total, vision, text, shared},
                        vision_prompts V, text_prompts T, vision_depth, text_depth: layers with learned tokens of their
                        own, accuracy, correct, images, source}
    sections            those that were computed, in order
    config              everything the study was asked for
    arrays_sha256       of `results.npz`
    seconds             computing time of the process that ended the study

predictions — who is right
    predictions/labels [n], predictions/{model} [n]                  int32 class numbers

relevancy — Fig. 2 and 3, target the true class; `{group}` of `GROUPS` is which samples: "corrected", those that
    zero-shot gets wrong and the tuned model right; "both_right", the control; "all". The last two are of at most so
    many images as the study's options allow. `{side}` is "zero_shot" or "tuned": both models' rows on the same samples.
    relevancy/{tuned}/{group}/vision/{side}/mean [M + V]             patches row by row, then prompts (zero_shot: V = 0)
    relevancy/{tuned}/{group}/text/{side}/mean [N]                   by token index, 0 after the text's end
    relevancy/{tuned}/{group}/vision_kinds/{side}/mean [2]           sums, `VISION_KINDS`
    relevancy/{tuned}/{group}/text_kinds/{side}/mean [5]             sums, `TEXT_KINDS[:5]`
    relevancy/{tuned}/{group}/order/mean [1], …/variation/mean [1]   rank correlation and total variation between the
                                                                     two models' rows over the patches
    JSON relevancy.{tuned}: {normalisation, {group}: {count}, {side}: {text, texts, index_kinds: the kind at each index,
    "" where it differs by class}}; a group of count 0 has no arrays. Zero-shot's text is the paper's or the dataset's.
    Several texts of a class are one row of all their tokens, added up by token index

text_attention — Fig. 4: the EOS row's attention by token kind, averaged over classes
    text_attention/{model}/mean [L, H, 6]                            kinds in the order of `TEXT_KINDS`
    JSON text_attention.{model}: {count, texts, reduction "sum" | "mean", text: with {} for the class name}

vision_attention — Fig. 5; `{variant}` is "clip" for a model without vision prompts, else "without_prompt" and
    "with_prompt"; `{quantity}` is "distance" (pixels), "entropy" or "cls_entropy" (nats)
    vision_attention/{model}/{variant}/{quantity}/mean [L, H]
    vision_attention/{model}/{variant}/{quantity}/each [n]           mean over layers and heads of every image; NaN for
                                                                     those that were not looked at
    JSON vision_attention.{model}: {count}

similarity — Fig. 6; K pictures (every example in every rotation), S layers, maps in 0 … 1 at image size
    similarity/images [K, R, R, 3] uint8, similarity/rotations [K] degrees, similarity/layers [S]
    similarity/{tuned}/zero_shot_cls [K, S, R, R], similarity/{tuned}/cls [K, S, R, R]
    similarity/{tuned}/prompts [K, S, R, R]                          1 - min-max of the distance to the prompts
    similarity/{tuned}/rank_correlation/mean [L]                     between the last two, over the dataset
    JSON similarity.{tuned}: {count, prompt: "mean" or the prompt's number}

decomposition — Eq. 12, Fig. 1; for models with prompts in that tower; samples are images, or classes for text
    decomposition/{tuned}/{tower}/prompt_mass/mean [L, H]            attention on prompts, mean over input queries
    decomposition/{tuned}/{tower}/readout_mass/mean [L, H]           the same for the `[cls]` or EOS query
    decomposition/{tuned}/{tower}/prompt_mass/each [n]               mean over layers and heads, of every sample
    decomposition/{tuned}/{tower}/mass_by_query/mean [L, H, N]
    decomposition/{tuned}/{tower}/norm_share/mean [L]                norm of the prompt part over the sum of both norms
    decomposition/{tuned}/{tower}/constancy [L]                      share of the prompt part's mean square that its
                                                                     average over samples, token by token, explains,
                                                                     corrected for chance: it may fall below 0
    decomposition/{tuned}/{tower}/bias_likeness [L]                  the share that one vector for all tokens explains
    decomposition/{tuned}/{tower}/bias_cosine/{bias model} [L]       between that vector and the learned bias
    decomposition/{tuned}/{tower}/error/{constancy, bias_likeness, bias_cosine/{bias model}} [L]
                                                                     standard errors (`jackknife.py`), of one run alone
    JSON decomposition.{tuned}.{tower}: {count, depth, runs: texts of a class or passes over an image, over whose own
    constancies the mean is taken, constancy, bias_likeness: each {up_to_depth, beyond: mean over the layers that have
    prompts of their own, and over those after them, or null where there is none}, error: of one run the standard
    errors of the first of these two means, and of the mean over layers of each bias_cosine/{bias model}}

factorial — the causal test (`factorial.py`), for models that change a tower. n images; towers "both", "vision" and
    "text", or "both" alone where a model changes only one; K mixtures of the two runs, from the reference to the tuned
    model
    factorial/{tuned}/images [n]                                     numbers of the examples in the split
    factorial/{tuned}/correct [n, towers, K] uint8
    factorial/{tuned}/calibrated [n, towers, K]                      log-likelihood of the true class in nats, each
                                                                     mixture's logits divided by a temperature of its
                                                                     own that was fitted on other images
    factorial/{tuned}/log_likelihood [n, towers, K]                  the same without temperatures
    factorial/{tuned}:random/…                                       the same with random prompts of the trained norms
    A number is {value, low, high}, a mean over images with a 95 % bootstrap interval; a share of the gain adds {share,
    share_low, share_high}, null where the gain's interval includes 0. `{outcome}` is "accuracy" (points) or
    "calibrated" (nats)
    JSON factorial.{tuned}: {effects, towers, streams, images,
      numbers {tower: {outcome: {reference, gain: number, effects (Shapley values), interactions, corners (each mixture
      against the reference): {name: share}}}},
      temperature_alone (share of the raw gain that the reference gets from a temperature), temperatures {mixture: T},
      refitted (whether every resample has temperatures of its own),
      both_right {images, numbers, …} over images that both models get right, or null}, or {missing: why there is none}
    JSON factorial.seeds: list of {models: keys that differ in their seed alone, numbers, …}, seeds and images crossed

constants — whether a constant stands for a method (`intervention_classifier.py`), where the study has training images.
    n images, F ways to classify them: "reference", "kept:{name}" (the frozen model with it added after every block),
    "lost:{name}" (the tuned model with it subtracted) and "tuned"; `{name}` is a rung of the ladder
    (`rungs.RUNGS`) or a control: "random", "shuffled", "another seed"
    constants/{tuned}/images [n]                                     numbers of the examples in the split
    constants/{tuned}/correct [n, F] uint8, …/calibrated [n, F], …/log_likelihood [n, F]
    constants/{tuned}/{tower}/vector [L, D], constants/{tuned}/{tower}/kind [L, 2, D]
                                                                     the constant itself, in the towers that it changes;
                                                                     by kind of `[cls]` or EOS, then of all others
    JSON constants.{tuned}: {forms, images, training_images, stored {rung: numbers that it holds},
      numbers {outcome: {gain: number, kept, lost: {name: share}}}}, or {missing: why there is none}
    JSON constants.seeds: list of {models, numbers}, as of the causal test

faithfulness — perturbation (Chefer et al. 2021); `{map}` of `MAPS`, `{direction}` "positive" (most relevant patches
    go first) or "negative", `{target}` "predicted" or "true" class
    faithfulness/fractions [S]                                       share of the patches removed
    faithfulness/{model}/{map}/{direction}/{target} [S]              accuracy
    JSON faithfulness.{model}: {count, area: {map: {direction: {target: area under the curve}}}}

examples — pictures with their relevancy, target the true class
    examples/images [K, R, R, 3] uint8, examples/labels [K]
    examples/{model}/vision [K, M + V], examples/{model}/text [K, N], examples/{model}/logits [K, C]
    JSON examples: {names: K image names, {model}: {texts, tokens: K lists of the text's tokens up to but without EOS}};
    of several texts of a class the first is shown

explore — maps of K images that a reader of the report chooses among; P pairs of an image and a class: its true one, and
    those that models give it. A map is uint8 with a scale: value = q · scale / 255 (+ lowest)
    explore/images [K]                                               numbers of the examples in the split
    explore/pictures [K, S, S, 3] uint8                              at most 224 pixels wide
    explore/pairs [P, 2]                                             row of the image, 0 … K − 1, and class; true first
    explore/{model}/relevancy [P, M] uint8, …/relevancy_scale [P]    over patches
    explore/{model}/relevancy_sum [P], …/slot_relevancy [P, V]       of the row with its prompts; of vision prompts
    explore/{model}/prompt_share_from [P, L]                         of the row, on vision prompts, if only this layer
                                                                     and those after it count
    explore/{model}/text [P, N]                                      over the text's tokens
    explore/{model}/attention [K, L, M] uint8, …/attention_scale [K, L], …/slot_attention [K, L, V]
                                                                     of `[cls]`, mean over heads
    explore/{tuned}/distance [K, L, V, M] uint8, …/distance_scale [K, L, V], …/distance_lowest [K, L, V]
                                                                     from every prompt to the patches, as in Fig. 6
    explore/{model}/margin [K], …/log_likelihood [K]                 as in the causal test
    JSON explore: {names: K image names, {model}: {texts, tokens: {class: the text's tokens up to but without EOS},
    kinds: the same of `TEXT_KINDS`}}, or {missing: why there are no maps}

verdict — JSON only (`verdict.py`), what the numbers of both allow to say
    verdict.{tuned}: {label, seeds, images, missing (why there is no causal test, or ""),
      carrier {outcome: an effect, "shared", "undecided" or "no gain"},
      constant {outcome: "stands", "most", "not", "undecided" or "no gain", of two vectors per layer},
      sentences (the most important first), conclusion}
    verdict.seeds: list of the same with {models}, for methods of which there are several seeds
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import atomic_path, check_file, read_json, sha256, write_text

FORMAT = 3
ARRAYS, SCALARS = "results.npz", "results.json"
DIGEST = "sha256"  # of all the rest, so that a report never draws from a damaged file
ARRAYS_DIGEST = "arrays_sha256"  # so that it never draws from the arrays of another study

SECTIONS = (
    "predictions",
    "relevancy",
    "text_attention",
    "vision_attention",
    "similarity",
    "decomposition",
    "factorial",
    "constants",
    "faithfulness",
    "examples",
    "explore",
    "verdict",
)
VISION_KINDS = ("patches", "prompts")
GROUPS = ("corrected", "both_right", "all")
TEXT_KINDS = ("sos", "prompt", "words", "category", "dot", "eos")
CHANGES = ("wrong → right", "right → wrong", "both right", "both wrong")
EFFECTS = ("attention", "scale", "values")  # of the causal test
RANDOM = ":random"  # behind the key of a model whose prompts are a random control
MAPS = ("relevancy", "attention", "rollout", "legrad", "grad_eclip", "random")


@dataclasses.dataclass
class Findings:
    """A study's arrays and scalars, as the module's docstring lists them."""

    arrays: dict[str, np.ndarray]
    scalars: dict[str, Any]

    def under(self, prefix: str) -> Iterator[str]:
        """Names of the arrays that start with `prefix`."""
        return (name for name in self.arrays if name.startswith(prefix))


def same_but_for_seed(models: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Models (`Model.facts`) by method, options and training set, in the order in which they come."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for model in models:
        settings = model["method"], json.dumps(model["options"], sort_keys=True), model["trained_on"]
        groups.setdefault(settings, []).append(model)
    return list(groups.values())


def save_results(folder: str | os.PathLike, results: Findings) -> None:
    """Writes both files, each atomically, the arrays first. NaN is no JSON: it is written as null.

    A process that is killed between the two leaves what `load_results` refuses.
    """
    folder = Path(folder)
    save_arrays(folder / ARRAYS, results.arrays)
    content = {**plain(results.scalars), ARRAYS_DIGEST: sha256(folder / ARRAYS)}
    content = {**content, DIGEST: _digest(content)}
    write_text(folder / SCALARS, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load_results(folder: str | os.PathLike) -> Findings:
    """Reads what `save_results` wrote.

    Raises:
      ClipbiasError: the folder holds no results, or they are damaged or of another format.
    """
    folder = Path(folder)
    scalars_path, arrays_path = folder / SCALARS, folder / ARRAYS
    for path in (scalars_path, arrays_path):
        if not path.is_file():
            raise ClipbiasError(f"{folder} holds no {path.name}; run experiments/explain.py with this output folder.")
    scalars = read_json(scalars_path, dict, what="a study's results")
    if scalars.get("format") != FORMAT:
        raise ClipbiasError(
            f"{scalars_path} has format {scalars.get('format')!r}; this version reads {FORMAT}. Run the study again."
        )
    if scalars.pop(DIGEST, None) != _digest(scalars):
        raise ClipbiasError(f"{scalars_path} is not as it was written; delete it and run again.")
    if scalars.pop(ARRAYS_DIGEST, None) != sha256(arrays_path):
        raise ClipbiasError(
            f"{arrays_path} is damaged, or of another study than {scalars_path.name} beside it; run the study again."
        )
    return Findings(load_arrays(arrays_path), scalars)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def changes(arrays: Mapping[str, np.ndarray], tuned: str) -> np.ndarray:
    """What a tuned model changes of every image, numbers of `CHANGES`; -1 for an image that was not read."""
    labels, before, after = (arrays[f"predictions/{name}"] for name in ("labels", "zero_shot", tuned))
    was_right, is_right = before == labels, after == labels
    found = np.select([~was_right & is_right, was_right & ~is_right, was_right & is_right], [0, 1, 2], 3)
    return np.where((before < 0) | (after < 0), -1, found)


def save_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
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


def plain(value: Any) -> Any:
    """`value` in JSON's own types; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
