"""Rows of the table about a tuned model: its file, its classes, its pictures, devices and exports."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file

import clipbias
from clipbias import Task, TunedModel, data
from clipbias.clip import encode_image
from clipbias.clip.precision import DTYPES
from clipbias.export.folder import FORMS as EXPORTS
from clipbias.tuning.method import TestTimeMethod, crops_of, select_run, stack_runs
from clipbias.tuning.prompts import ClassList
from tests.relations.cases import Case, clip_of, tuned
from tests.relations.table import (
    BATCH,
    COUNT,
    LABELS,
    PICTURES,
    answer,
    close,
    evaluated,
    evaluation,
    four_devices,
    logits,
    one_device,
    relation,
    same,
    same_accuracy,
    same_tree,
    saved,
)

# What a method says for other classes than those of training, where it learned something for each class.
OF_ITS_CLASSES = r"learned something for each class|belongs? to the classes|cannot be used with other classes"


# Files.


@relation("A saved model that is loaded predicts the same.", over=("forms", "families", "options"))
def _(case: Case, folder: Path) -> None:
    loaded = saved(case, folder)
    same_tree(loaded.learnables, case.model.learnables)
    assert (loaded.identity, loaded.notes) == (case.model.identity, case.model.notes)
    # One program with the same inputs; for each option it would take too long to run it.
    task, expected = loaded.task, case.model.task
    assert (task.class_names, task.texts, task.classifier) == (
        expected.class_names,
        expected.texts,
        expected.classifier,
    )
    jax.tree.map(np.testing.assert_array_equal, (task.text, task.tokens), (expected.text, expected.tokens))
    if case.option is None:
        same(logits(loaded), answer(case))


@relation("A model that is saved twice, or loaded and saved, is the same bytes.", over=("forms", "families", "options"))
def _(case: Case, folder: Path) -> None:
    loaded = saved(case, folder)
    first = (folder / "saved.safetensors").read_bytes()
    for model in (case.model, loaded):
        model.save(folder / "again.safetensors")
        assert (folder / "again.safetensors").read_bytes() == first


@relation("A model that was one run of a group, as commands train it, is the same model, and read back as it.")
def _(case: Case, folder: Path) -> None:
    host = jax.tree.map(np.asarray, case.model.learnables)
    model = dataclasses.replace(case.model, learnables=select_run(stack_runs([host, host]), 1))
    model.save(folder / "run.safetensors")
    loaded = clipbias.load_adapter(folder / "run.safetensors", clip_of(case.family))
    assert loaded.identity == model.identity == case.model.identity


for dtype in DTYPES[1:]:

    @relation(f"Loaded for {dtype}, it predicts nearly the same.", over=(), quick=1, ci=10, refusals=("needs a .PU",))
    def _(case: Case, folder: Path, dtype: str = dtype) -> None:
        loaded = saved(case, folder, dtype=dtype)
        assert loaded.identity != case.model.identity
        close(logits(loaded), answer(case), 0.1)
        loaded.save(folder / "again.safetensors")
        again = clipbias.load_adapter(folder / "again.safetensors", clip_of(case.family), dtype="float32")
        same(logits(again), answer(case))


# Classes.


def with_classes(case: Case, names: Sequence[str]) -> TunedModel:
    return case.model.with_classes(names, **case.texts.again)


def bound(case: Case, folder: Path, names: Sequence[str]) -> TunedModel:
    """The saved model for other classes, as commands have it."""
    return saved(case, folder).with_classes(names, **case.texts.again)


ORDER = [2, 0, 1]


@relation("Classes in another order have the same logits.", refusals=(OF_ITS_CLASSES,))
def _(case: Case, folder: Path) -> None:
    names = [case.texts.classes[number] for number in ORDER]
    close(logits(with_classes(case, names)), answer(case)[:, ORDER], case.tolerance)


@relation("A loaded model for its classes in another order has the same logits.", refusals=(OF_ITS_CLASSES,))
def _(case: Case, folder: Path) -> None:
    names = [case.texts.classes[number] for number in ORDER]
    close(logits(bound(case, folder, names)), answer(case)[:, ORDER], case.tolerance)


@relation("The classes of training, given again, change nothing.")
def _(case: Case, folder: Path) -> None:
    model = with_classes(case, case.texts.classes)
    same(logits(model), answer(case))
    assert model.identity == case.model.identity


@relation("A dataset of the classes of training changes nothing.")
def _(case: Case, folder: Path) -> None:
    dataset = data.from_arrays(PICTURES, LABELS, case.texts.classes)
    assert with_same(case, dataset).identity == case.model.identity
    assert with_same(case, case.model.task).identity == case.model.identity


def with_same(case: Case, classes: ClassList) -> TunedModel:
    """The model for its own classes, which are not told again to be free texts or what their descriptions are."""
    return case.model.with_classes(classes)


@relation(
    "The classes of training with their spaces written otherwise have the same logits.",
    applies=lambda case: bool(case.texts.respelled),
)
def _(case: Case, folder: Path) -> None:
    model = with_classes(case, case.texts.respelled)
    close(logits(model), answer(case), case.tolerance)
    assert model.identity == case.model.identity


def numbers(case: Case, task: Task) -> list[np.ndarray]:
    """Learnables that are made for a task, and its logits and loss with the case's learnables."""
    side = task.clip.config.vision.image_size
    crops = crops_of(task.method)
    images = np.random.default_rng(0).normal(size=(3, *[1 + crops] * bool(crops), side, side, 3)).astype(np.float32)
    learnables, params = case.model.learnables, task.clip.params
    loss = jax.jit(task.loss)(params, learnables, images, LABELS[:3])
    logits = jax.jit(task.logits)(params, learnables, images)
    return [*map(np.asarray, jax.tree.leaves((tuned(task), logits, loss)))]


@relation(
    "Texts of the classes that a task does not read change nothing, and others do.",
    over=(),
    quick=1,
    ci=8,
    applies=lambda case: not case.kind.unlabelled,  # whose images zero-shot CLIP labels, before what is computed here
)
def _(case: Case, folder: Path) -> None:
    expected = numbers(case, case.task)
    descriptions = {name: [f"thing {name} of ink.", f"{name} thing"] for name in case.texts.classes}
    for name, texts in {"template": "the {} of ink.", "descriptions": descriptions}.items():
        task = case.task_of(**{name: texts})
        found = numbers(case, task)
        is_same = len(found) == len(expected) and all(map(np.array_equal, found, expected))
        assert is_same == (name in task.unread), f"{name}: {'nothing' if is_same else 'something'} changes"


# Test-time methods learn from the probabilities of all classes.
def is_of_each_class(case: Case) -> bool:
    return not isinstance(case.kind, TestTimeMethod)


@relation(
    "Where a class is taken away, the others keep their logits.",
    quick=3,
    ci=12,
    refusals=(OF_ITS_CLASSES,),
    applies=is_of_each_class,
)
def _(case: Case, folder: Path) -> None:
    names = case.texts.classes[1:]
    close(logits(with_classes(case, names)), answer(case)[:, 1:], case.tolerance)


@relation(
    "Where a class is added, the others keep their logits.",
    quick=3,
    ci=12,
    refusals=(OF_ITS_CLASSES,),
    applies=is_of_each_class,
)
def _(case: Case, folder: Path) -> None:
    found = logits(with_classes(case, case.texts.names))
    close(found[:, :3], answer(case), case.tolerance)
    assert np.isfinite(found).all()


@relation(
    "A loaded model to which a class is added keeps the others' logits.",
    quick=3,
    ci=12,
    refusals=(OF_ITS_CLASSES,),
    applies=is_of_each_class,
)
def _(case: Case, folder: Path) -> None:
    close(logits(bound(case, folder, case.texts.names))[:, :3], answer(case), case.tolerance)


def reads_texts_anew(case: Case) -> bool:
    """Whether learnables hold nothing of the texts but what the method reads of its teacher."""
    return case.form != "free_text" and case.kind.transfer is None


OTHER_TEXTS = ["a photo of the {}", "a painting of a {} in grass"]


@relation(
    "A model that is given descriptions is that of a task with them.",
    applies=reads_texts_anew,
    refusals=(OF_ITS_CLASSES,),
)
def _(case: Case, folder: Path) -> None:
    names = case.texts.classes
    texts = {name: [text.format(name) for text in OTHER_TEXTS] for name in names}
    task = case.task_of(descriptions=texts)
    expected = TunedModel(task, task.read_classes(case.model.learnables))
    close(logits(case.model.with_classes(names, descriptions=texts)), logits(expected))


@relation(
    "A class whose only text is given twice has the same learnables, logits and loss.",
    over=(),
    applies=lambda case: case.form != "free_text",
)
def _(case: Case, folder: Path) -> None:
    once, twice = (
        case.task_of(descriptions={name: [f"the {name} of ink."] * count for name in case.texts.classes})
        for count in (1, 2)
    )
    for one, other in zip(numbers(case, once), numbers(case, twice), strict=True):
        close(one, other, case.tolerance)


# Pictures.


@relation("Pictures in another order are predicted the same.", over=("families",))
def _(case: Case, folder: Path) -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    close(logits(case.model, [PICTURES[number] for number in order]), answer(case)[order], case.tolerance)


@relation("A picture that comes twice is predicted twice the same.", over=("families",))
def _(case: Case, folder: Path) -> None:
    found = logits(case.model, [picture for picture in PICTURES[:6] for _ in range(2)])
    close(found, answer(case)[:6].repeat(2, axis=0), case.tolerance)


@relation("Batches of 1, 7 and 64 pictures are predicted the same.", over=(), quick=1, ci=10)
def _(case: Case, folder: Path) -> None:
    for size in (1, 64):
        close(logits(case.model, batch_size=size), answer(case), case.tolerance)


@relation(
    "Predictions of pictures are those of what `clip.preprocess` makes of them, by `task.logits`.",
    over=(),
    quick=1,
    ci=10,
)
def _(case: Case, folder: Path) -> None:
    if crops_of(case.task.method):
        return
    model = case.model
    ready = model.clip.preprocess(PICTURES)
    close(logits(model, ready), answer(case), case.tolerance)
    close(
        jax.jit(model.task.logits)(model.clip.params, model.learnables, ready[:BATCH]),
        answer(case)[:BATCH],
        case.tolerance,
    )


@relation("Skipping what cannot be read gives what the list without it gives.", over=(), quick=1, ci=10)
def _(case: Case, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    pictures: list[Any] = [*PICTURES[:4], str(folder / "broken.png"), *PICTURES[4:]]
    found = logits(case.model, pictures, on_image_error="skip")
    assert np.isnan(found[4]).all()
    close(np.delete(found, 4, axis=0), answer(case), case.tolerance)
    labels = np.insert(LABELS, 4, 0)
    left = evaluation(case.model, pictures, labels, on_image_error="skip")
    assert (left.images, left.predicted[4]) == (COUNT, -1)
    whole = {"predicted": np.delete(left.predicted, 4), "labels": np.delete(left.labels, 4)}
    same_accuracy(dataclasses.replace(left, **whole), evaluated(case), 100 * case.tolerance)


# Ways to an accuracy.


@relation("The class that `evaluate` counts is the one that `predict` says.", over=(), quick=3)
def _(case: Case, folder: Path) -> None:
    np.testing.assert_array_equal(evaluated(case).predicted, answer(case).argmax(-1))


# Methods without a map, and why.
NO_MAP = (
    "learned anew from crops of each test image",
    "features of patches",
    "several passes",
    "Tokens are inserted inside the towers",
)


@relation("Relevancy explains the logits that the model predicts.", over=(), quick=1, ci=12, refusals=NO_MAP)
def _(case: Case, folder: Path) -> None:
    model = case.model
    every_class = np.tile(np.arange(3), (2, 1))
    images = model.clip.preprocess(PICTURES[:2])
    maps = clipbias.relevancy(model.task, model.clip.params, model.learnables, images, every_class)
    close(maps.scores, answer(case)[:2], 1e-4)
    assert np.isfinite(maps.vision).all() and np.isfinite(maps.text).all()


@relation("A model that was asked before says the same when it is asked again.", over=(), quick=3)
def _(case: Case, folder: Path) -> None:
    same(logits(case.model), answer(case))
    same_accuracy(evaluation(case.model), evaluated(case))


@relation("Learnables that are changed in place change `predict` and `evaluate` alike, or cannot be.", over=(), quick=3)
def _(case: Case, folder: Path) -> None:
    model = TunedModel(case.task, jax.tree.map(np.array, dict(case.model.learnables)))
    logits(model)
    random = np.random.default_rng(0)
    for leaf in jax.tree.leaves(model.learnables):
        if leaf.dtype.kind == "f":
            try:
                leaf += random.normal(size=leaf.shape).astype(leaf.dtype)
            except (ValueError, TypeError):  # it cannot be changed
                continue
    found = logits(model)
    same(found, logits(TunedModel(case.task, jax.tree.map(np.array, dict(model.learnables)))))
    np.testing.assert_array_equal(evaluation(model).predicted, found.argmax(-1))


@relation("A model keeps what it was given, whatever its owner does with the arrays later.", over=())
def _(case: Case, folder: Path) -> None:
    given = jax.tree.map(np.array, dict(case.model.learnables))
    model = TunedModel(case.task, given)
    for leaf in jax.tree.leaves(given):
        leaf *= 0
    same(logits(model), answer(case))


@relation("One device and four compute the same.", over=(), quick=1, ci=10)
def _(case: Case, folder: Path) -> None:
    one, four = (
        case.model.calibrate(PICTURES, LABELS, mesh=mesh).calibration for mesh in (one_device(), four_devices())
    )
    assert one is not None and four is not None
    for name, scores in one.arrays().items():
        close(four.arrays()[name], scores, case.tolerance)
    same_accuracy(evaluation(case.model, batch_size=8, mesh=four_devices()), evaluated(case), 100 * case.tolerance)


# Exports.


def exported_logits(case: Case, form: str, folder: Path) -> np.ndarray:
    """The logits that exported files give, as another program computes them."""
    model, size = case.model, case.task.clip.config.vision.image_size
    levels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    if form == "program":
        program = jax.export.deserialize(bytearray((folder / "classifier.stablehlo").read_bytes()))
        return np.asarray(program.call(load_file(folder / "weights.safetensors"), levels))
    if form == "onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(folder / "classifier.onnx").run(["logits"], {"images": levels})[0]
    base = clipbias.load(folder) if form in ("checkpoint", "open_clip") else model.clip
    head = load_file(folder / "classifier.safetensors")
    normalised = np.asarray(base.preprocessing.normalize(levels))
    features = np.asarray(ENCODE(base.params, base.config, normalised)[0])
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    found = np.exp(head["logit_scale"]) * unit @ head["text_features"].T
    return found + np.asarray(model.clip.params.get("logit_bias", 0.0))


ENCODE = jax.jit(encode_image, static_argnums=1)
NOT_EXPORTED = (
    "and exported files cannot",
    "export it as a (checkpoint|head|program)",
    "tunes another network than CLIP's",
    "has the learnables of CLIP-LoRA",
)

for form in EXPORTS:

    @relation(
        f'Exported as "{form}", it has the same logits, and the adapter beside it is the same.',
        over=("forms",),
        quick=0,
        ci=10,
        refusals=NOT_EXPORTED,
    )
    def _(case: Case, folder: Path, form: str = form) -> None:
        model, size = case.model, case.task.clip.config.vision.image_size
        model.export(folder / form, form=form)
        levels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
        expected = logits(model, levels)
        if form == "peft":
            again = clipbias.export.read_peft(folder / form, model.clip, model.class_names, **case.texts.again)
            close(logits(TunedModel.of(again), levels), expected, case.tolerance)
        else:
            close(exported_logits(case, form, folder / form), expected, 1e-4)
        beside = clipbias.load_adapter(folder / form, model.clip)
        same(logits(beside, levels), expected)
