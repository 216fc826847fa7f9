"""Checkpoints of other trainers as adapters: CoOp, CoCoOp, VPT, IVLP, MaPLe and PromptSRC, as Dassl saves them.

Tensors are read without PyTorch, and nothing in the file is run. The tensors' names identify the method. CoOp and
CoCoOp save the prompt learner alone, the others the whole model with the frozen CLIP, which is compared with the
user's. Class names are read from the embeddings of their tokens, by the nearest rows of CLIP's table.
"""

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clipbias.clip import Clip
from clipbias.clip.formats import FLOATING, Tensor, open_torch
from clipbias.clip.tables import OPEN_CLIP
from clipbias.clip.tokenizer import encode
from clipbias.constants import WORDS
from clipbias.errors import ClipbiasError, ClipbiasWarning
from clipbias.io import shorten, user_path
from clipbias.tuning.adapter import Adapter
from clipbias.tuning.method import Options
from clipbias.tuning.prompts import Classes, ClassList, names_in_prompt, word_ids
from clipbias.tuning.task import Task
from clipbias.tuning.tuned import Tuned, match_labels

# Relative difference of frozen weights. Rounding to float16 moves them by up to 2⁻¹¹, in the file and in the user's
# CLIP. PromptSRC also averages them over epochs, in float16: by about 1e-3, where its Gaussian is wide.
ROUNDED, AVERAGED = 2**-10, 2**-9
# Names of prompts behind the first block. MaPLe counts from the second block on.
LATER = r"{}\.transformer\.resblocks\.(\d+)\.VPT_shallow"
MAPLE_LATER = r"compound_prompts_text\.(\d+)"
MAPLE_MAPS = r"compound_prompt_projections\.(\d+)\.weight"
LEARNER = "prompt_learner."
TEACHER = "ZS_image_encoder."  # PromptSRC's, plain CLIP
TRAINERS = "CoOp, CoCoOp, VPT, IVLP, MaPLe or PromptSRC"

Tensors = dict[str, Tensor]  # reading takes them out: those that remain are unknown


@dataclasses.dataclass(frozen=True)
class TrainerFile:
    # Options are read from shapes; `tokens` is the context's length.

    method: str
    options: Options
    learnables: Mapping[str, np.ndarray]
    tokens: int = 0


def import_adapter(
    path: str | os.PathLike,
    clip: Clip,
    classes: Sequence[str] | ClassList | None = None,
    *,
    position: str = "end",
    notes: Mapping[str, object] | None = None,
) -> Tuned:
    """Reads a checkpoint of another trainer as a tuned model, as `clipbias.import_adapter` does; `notes` are kept."""
    path = user_path(path)
    if clip.config.family != "clip":
        raise ClipbiasError(f"these trainers tune OpenAI's CLIP, and {clip.name} is a {clip.config.family}.")
    with open_torch(path, skip_objects=True) as content:
        try:
            tensors = {name.removeprefix(LEARNER): tensor for name, tensor in content.items()}
            file = read_trainer_file(tensors, clip)
            tolerance = AVERAGED if file.method == "promptsrc" else ROUNDED
            for name, ours in _frozen_weights(clip):
                theirs = _read(tensors, name, ours.shape, clip) if name in tensors else ours
                if not _is_near(theirs, ours, tolerance):
                    numbers = f"{theirs:.5g} in place of {ours:.5g}, " if name == "logit_scale" else ""
                    raise ClipbiasError(
                        f"its frozen weights are not those of {clip.name} ({numbers}see {name}); load their CLIP."
                    )
            ids = _text_ids(tensors, file, clip, tolerance)
            # Integers are buffers.
            unknown = [name for name in tensors if tensors[name].dtype in FLOATING and not name.startswith(TEACHER)]
            if unknown:
                raise ClipbiasError(
                    f"{file.method} has no place for {len(unknown)} of its tensors, the first of them "
                    f"{shorten(unknown[0])!r}; use it with its own trainer."
                )
            options = dict(file.options)
            if file.tokens:
                # Words behind a short context stay fixed: the usual ones, if the file's texts have these there.
                rest = [*word_ids(WORDS, clip)][file.tokens :]
                is_usual = ids is None or all(row[: len(rest)] == rest for row in ids)
                options["words"] = WORDS if is_usual else " ".join(["X"] * file.tokens)
            if file.method == "coop":
                options["position"] = position
            elif position != "end":
                raise ClipbiasError(f"{file.method} has class names at the end; give no position.")
            trained = None
            if ids is not None:
                # A text is the context, the fixed words, the name and a full stop.
                start = len(word_ids(options.get("words", ""), clip)[file.tokens :])
                ids = [row[start:] for row in ids]
                # Decoded: a name's last sign may share its token with the full stop.
                texts = [clip.tokenizer.decode(row).strip() for row in ids]
                if open_ended := [text for text in texts if not text.endswith(".")]:
                    raise ClipbiasError(f"its texts lack the full stop behind a name, as {shorten(open_ended[0])!r}.")
                trained = Classes(tuple(text[:-1].strip() for text in texts))
            named = trained if classes is None else Classes.of(classes)
            if named is None:
                raise ClipbiasError("it has no text of the classes; give their names or a dataset.")
            is_specific = options.get("class_specific")
            if is_specific and len(file.learnables["text_context"]) != len(named.class_names):
                raise ClipbiasError(
                    f"it has a context for each of {len(file.learnables['text_context'])} classes, and there are "
                    f"{len(named.class_names)} class names; give those of training."
                )
            task = Task(clip, file.method, named, **options)
            learnables = file.learnables
            if classes is not None and trained is not None and ids is not None:
                texts = [f"{name}." for name in names_in_prompt(named.class_names, task.prompt)]
                labels = match_labels(ids, encode(clip.tokenizer, texts))
                known = labels[labels >= 0]
                if is_specific and len(known) < len(labels):
                    name = named.class_names[int(labels.argmin())]
                    raise ClipbiasError(f"it has no context for the class {name!r}; give the class names of training.")
                if is_specific:
                    learnables = {"text_context": learnables["text_context"][labels]}
                elif labels.tolist() != [*range(len(ids))]:
                    before, now = (
                        f"{len(names)} classes ({shorten(', '.join(names))})"
                        for names in (trained.class_names, named.class_names)
                    )
                    order = "" if (np.diff(known) > 0).all() else ", in another order"
                    sentence = f"{path} was trained on {before}; it is imported for {now},"
                    sentence = f"{sentence} {len(known)} of them from its training{order}."
                    warnings.warn(sentence, ClipbiasWarning, stacklevel=3)
            model = Tuned(task, learnables, dict(notes or {}) | {"imported": path.name})
            Adapter.of(model)  # which refuses other shapes
            return model
        except ClipbiasError as error:
            raise ClipbiasError(f"{path} is not imported: {error}") from error


def read_trainer_file(tensors: Tensors, clip: Clip) -> TrainerFile:
    """The learnables of a checkpoint. Raises `ClipbiasError` for another trainer, or shapes that do not fit `clip`."""
    text, vision = clip.config.text, clip.config.vision
    # CoCoOp's and MaPLe's files have `ctx` too, and would pass for CoOp's: their own names are looked for first.
    if any(name.startswith("VPT_image_trans.") for name in tensors):
        raise ClipbiasError("it is a student of PromptKD, whose classes are the features of a teacher that it lacks.")
    if "meta_net.linear1.weight" in tensors:
        return _cocoop(tensors, clip)
    if any(name == "proj.weight" or name.startswith("compound_prompt") for name in tensors):
        return _maple(tensors, clip)
    in_image = _blocks(tensors, "vision", "image_encoder.VPT", LATER.format("image_encoder"), clip)
    in_text = _blocks(tensors, "text", "ctx", LATER.format("text_encoder"), clip)
    if not in_image and not in_text:
        raise ClipbiasError(f"it holds no prompts of {TRAINERS}.")
    if not in_image and len(in_text) > 1:
        raise ClipbiasError("it has deep prompts in the text tower alone, which no method here has.")
    if not in_image:
        is_specific = len(tensors["ctx"].shape) == 3
        context = _read(tensors, "ctx", ("C", "T", text.width) if is_specific else ("T", text.width), clip)
        tokens = context.shape[-2]
        return TrainerFile("coop", {"tokens": tokens, "class_specific": is_specific}, {"text_context": context}, tokens)
    vision_prompts = _stacked(tensors, in_image, ("V", vision.width), clip)
    depth, vision_tokens, _ = vision_prompts.shape
    if not in_text:
        return TrainerFile("vpt", {"tokens": vision_tokens, "depth": depth}, {"vision_prompts": vision_prompts})
    text_prompts = _stacked(tensors, in_text, ("T", text.width), clip)
    text_depth, tokens, _ = text_prompts.shape
    options = {"text_tokens": tokens, "vision_tokens": vision_tokens, "text_depth": text_depth, "vision_depth": depth}
    learnables = {"text_context": text_prompts[0], "text_prompts": text_prompts[1:], "vision_prompts": vision_prompts}
    # IVLP and PromptSRC learn the same tensors; only PromptSRC's file also holds its teacher's tower.
    is_src = any(name.startswith(TEACHER) for name in tensors)
    return TrainerFile("promptsrc" if is_src else "ivlp", options, learnables, tokens)


def nearest_tokens(embeddings: np.ndarray, clip: Clip, tolerance: float) -> np.ndarray:
    """The ids `[C, n]` of CLIP's token embeddings that are nearest to `embeddings [C, n, Dt]`, or else an error."""
    table = np.asarray(clip.params["text"]["token_embedding"], np.float32)
    distinct, places = np.unique(embeddings.reshape(-1, table.shape[1]), axis=0, return_inverse=True)
    # `‖t - r‖² = ‖t‖² - 2 t·r + ‖r‖²`, and the last term is the same for all rows of the table. Distinct rows only: the
    # same few tokens occur in thousands of texts.
    squares = np.square(table).sum(-1)
    ids = []
    for row in distinct:
        with np.errstate(over="ignore", invalid="ignore"):
            nearest = int((squares - 2 * table @ row).argmin())
        if not _is_near(row, table[nearest], tolerance):
            raise ClipbiasError(f"its texts have tokens that {clip.name} does not have; load their CLIP.")
        ids.append(nearest)
    return np.asarray(ids, int)[places.reshape(-1)].reshape(embeddings.shape[:2])


def _is_near(theirs: np.ndarray, ours: np.ndarray, tolerance: float) -> bool:
    # By the relative norm of the difference. float16 rounds absolutely below 2⁻¹⁴, its smallest normal number.
    with np.errstate(over="ignore", invalid="ignore"):
        smallest = 2**-14 * ours.size**0.5
        return bool(np.linalg.norm(theirs - ours) <= tolerance * max(float(np.linalg.norm(ours)), smallest))


def _blocks(tensors: Tensors, tower: str, first: str, later: str, clip: Clip, start: int = 0) -> list[str]:
    # Names of a tower's tensors, block after block; `later` holds the block's number less `start`. Methods here have
    # prompts from the first block on, without a gap.
    numbered = [(int(match[1]) + start, name) for name in tensors if (match := re.fullmatch(later, name))]
    numbered += [(0, first)] if first in tensors else []
    for place, (block, _) in enumerate(sorted(numbered)):
        if block != place:
            problem = "more than once" if block < place else f"and none in block {place}"
            raise ClipbiasError(
                f"the {tower} tower has prompts in block {shorten(str(block))} {problem}; no method here has such ones."
            )
    if len(numbered) > (layers := getattr(clip.config, tower).layers):
        raise ClipbiasError(
            f"it has prompts in {len(numbered)} blocks, and the {tower} tower of {clip.name} has {layers}; load the "
            "CLIP that it was trained on."
        )
    return [name for _, name in sorted(numbered)]


def _read(tensors: Tensors, name: str, shape: Sequence[int | str], clip: Clip) -> np.ndarray:
    """A tensor, float32. A letter in `shape` stands for any length but zero."""
    if name not in tensors:
        raise ClipbiasError(f"it lacks {name!r}.")
    tensor = tensors.pop(name)
    fits = len(tensor.shape) == len(shape) and all(
        size > 0 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ClipbiasError(
            f"its {name!r} is [{', '.join(map(str, tensor.shape))}], and should be [{', '.join(map(str, shape))}] for "
            f"{clip.name}; load the CLIP that it was trained on."
        )
    if tensor.dtype not in FLOATING:
        raise ClipbiasError(f"its {name!r} is {tensor.dtype}, and should be one of {', '.join(FLOATING)}.")
    # A copy: a view would keep its whole storage in memory. float64 that exceeds float32 becomes infinite, refused
    # below.
    with np.errstate(over="ignore"):
        values = np.array(tensor.read(), np.float32)
    if not np.isfinite(values).all():
        raise ClipbiasError(
            f"its {name!r} holds NaN or infinite numbers; take a checkpoint from before its training diverged."
        )
    return values


def _stacked(tensors: Tensors, names: Sequence[str], shape: Sequence[int | str], clip: Clip) -> np.ndarray:
    first = _read(tensors, names[0], shape, clip)
    return np.stack([first, *(_read(tensors, name, first.shape, clip) for name in names[1:])])


def _cocoop(tensors: Tensors, clip: Clip) -> TrainerFile:
    width, joint = clip.config.text.width, clip.config.projection_width
    # `.T`: torch stores a linear map as `[outputs, inputs]`.
    hidden = max(1, joint // 16)
    context = _read(tensors, "ctx", ("T", width), clip)
    learnables = {
        "text_context": context,
        "text_hidden_kernel": _read(tensors, "meta_net.linear1.weight", (hidden, joint), clip).T,
        "text_hidden_bias": _read(tensors, "meta_net.linear1.bias", (hidden,), clip),
        "text_output_kernel": _read(tensors, "meta_net.linear2.weight", (width, hidden), clip).T,
        "text_output_bias": _read(tensors, "meta_net.linear2.bias", (width,), clip),
    }
    return TrainerFile("cocoop", {"tokens": len(context)}, learnables, len(context))


def _maple(tensors: Tensors, clip: Clip) -> TrainerFile:
    text, vision = clip.config.text, clip.config.vision
    prompts = _blocks(tensors, "text", "ctx", MAPLE_LATER, clip, start=1)
    # torch stores a linear map as `[outputs, inputs]`; here it is `[inputs, outputs]`.
    kernels = _blocks(tensors, "vision", "proj.weight", MAPLE_MAPS, clip, start=1)
    if len(prompts) != len(kernels):
        raise ClipbiasError(f"it has text prompts in {len(prompts)} blocks and maps of them in {len(kernels)}.")
    biases = [f"{name.removesuffix('weight')}bias" for name in kernels]
    context, *rest = _stacked(tensors, prompts, ("T", text.width), clip)
    learnables = {
        "text_context": context,
        "text_prompts": np.reshape(rest, (len(rest), *context.shape)),
        "projection_kernel": _stacked(tensors, kernels, (vision.width, text.width), clip).swapaxes(1, 2),
        "projection_bias": _stacked(tensors, biases, (vision.width,), clip),
    }
    return TrainerFile("maple", {"tokens": len(context), "depth": len(kernels)}, learnables, len(context))


def _text_ids(tensors: Tensors, file: TrainerFile, clip: Clip, tolerance: float) -> list[list[int]] | None:
    """The tokens between the context and EOS in the text of each class; `None` where the file has no texts."""
    # The trainers keep the embeddings of SOS, `token_prefix`, and of all behind the context, `token_suffix`.
    config = clip.config.text
    count: int | str = len(file.learnables["text_context"]) if file.options.get("class_specific") else "C"
    ids = {}
    for name, length in (("token_prefix", 1), ("token_suffix", max(0, config.context_length - 1 - file.tokens))):
        if name in tensors:
            embeddings = _read(tensors, name, (count, length, config.width), clip)
            count = len(embeddings)
            ids[name] = nearest_tokens(embeddings, clip, tolerance)
    (first, *_), *_ = clip.tokenize([WORDS])
    if (ids.get("token_prefix", first) != first).any():
        raise ClipbiasError(f"its texts begin with another token than those of {clip.name}; load their CLIP.")
    end = config.eos_token_id
    # Padding behind EOS is no part of a name.
    rows = ids["token_suffix"].tolist() if "token_suffix" in ids else None
    return rows and [row[: row.index(end)] if end in row else row for row in rows]


def _frozen_weights(clip: Clip) -> Iterator[tuple[str, np.ndarray]]:
    """The frozen weights by the names that these trainers give them, one leaf of the tree at a time."""
    # These trainers wrap OpenAI's model, whose names are open_clip's below `image_encoder` and `text_encoder`.
    for row in OPEN_CLIP.tensors:
        tower, _, leaf = row.path.partition("/")
        if tower == "vision":
            name = f"image_encoder.{row.name.removeprefix('visual.')}"
        else:
            name = row.name if tower == "logit_scale" else f"text_encoder.{row.name}"
        value: Any = clip.params
        for part in row.path.split("/"):
            value = value[part]
        blocks = np.asarray(value, np.float32)
        if not leaf.startswith("layers/"):
            blocks = blocks[None]
        for block, weights in enumerate(blocks):
            yield name.format(block), np.asarray(row.layout.save(weights))
