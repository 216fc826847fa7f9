"""Wrong methods, options and texts of classes, swapped arguments, and changes that fit no tower."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from clipbias.clip import Adaptation, encode_image, encode_text
from clipbias.tuning import Task, make_method, read_descriptions
from clipbias.tuning.registry import match_user_method
from tests import families
from tests.tuning.heads_common import LABELS, make_samples
from tests.tuning.test_registry import CLASS
from tests.wrong_inputs.place import Case, Place, case, pure, zeros

IMAGES = np.zeros((1, 16, 16, 3), np.float32)
CONTEXT = CLASS.replace("return {}", 'return {"text_context": clip.params["text"]["position_embedding"][:2]}').replace(
    "Adaptation()", "Adaptation(**learnables)"
)
OPTIONS = {"mmrl": {"tokens": 3, "blocks": 2}, "mma": {"blocks": 2}, "tcp": {"block": 2}}  # of `adapted`
NAMED = r"(?s)^(?!.*\n)(?=.*/texts\.json).*"  # in one line, with its place
SWAPPED = "params and learnables are swapped: the order is the frozen weights"

made = case(lambda place, name, **options: make_method(name, **options))
bound = case(lambda place, names, method="zero_shot", **options: place.task(method, names, **options))
lacking = case(lambda place, family, method: Task(families.load_first(family), method, families.CLASSES))
crops = case(lambda place, images: place.task("tpt", crops=11).logits(place.clip.params, {}, images))
swapped = case(lambda place, call: call(*place.learned()))


@case
def losing(place: Place, labels: Any, *, traced: bool = False) -> None:
    """The loss of two images of two classes."""
    task, params, learnables = place.learned()
    arguments = (params, learnables, np.zeros((2, 16, 16, 3), np.float32), labels)
    if traced:
        jax.eval_shape(task.loss, *arguments)
    else:
        task.loss(*arguments)


@case
def program(place: Place, text: str, inside: str = "") -> None:
    """A method of a user's own."""
    (place.tmp_path / "own.py").write_text(text)
    place.task(f"{place.tmp_path / 'own.py'}{inside}")


@case
def described(place: Place, content: str) -> None:
    """A file of texts of classes."""
    (place.tmp_path / "texts.json").write_text(content)
    descriptions = read_descriptions(place.tmp_path / "texts.json")
    place.task("zero_shot", ("cat", "maine_coon"), descriptions=descriptions)


@case
def adapted(place: Place, tower: str, method: str, change: Callable[[Adaptation], Any], **options: Any) -> None:
    """A tower under the changes that a method begins with, some of them replaced."""
    task = place.task(method, **OPTIONS.get(method, {}))
    clip = place.clip
    adaptation = task.method.adapt_in_training(zeros(task), jax.random.key(0))
    encode, inputs = (encode_text, task.tokens) if tower == "text" else (encode_image, IMAGES)
    encode(clip.params, clip.config, inputs, dataclasses.replace(adaptation, **change(adaptation)), **options)


def fewer_rates(adaptation: Adaptation) -> dict[str, Any]:
    changes = adaptation.text_weights["layers"]["qkv"]
    return {"text_weights": {"layers": {"qkv": {**changes, "rate": changes["rate"][:2]}}}}


@case
def without_an_image(place: Place, method: str) -> None:
    samples = dataclasses.replace(make_samples(place.clip), labels=np.where(LABELS == 1, 0, LABELS))
    make_method(method).support({"bias": np.zeros(3)}, samples)


CASES: list[Case] = [
    # Methods and their options.
    made("unknown method 'bais'; did you mean 'bias'", "bais"),
    made("no option 'deptth'; did you mean 'depth'", "ivlp", deptth=1),
    made("'depth' of method 'ivlp' is 0; it must be a whole number from 1 to 1,000, or None", "ivlp", depth=0),
    made("no file 'nowhere.py'", "nowhere.py"),
    made("cannot import the method's module 'no.such.module'", "no.such.module"),
    made("choose from out, fc1, fc2, norm1, norm2, outer_norms, qkv", "bitfit", only=("fc3",)),
    made("none may be empty", "plot_plus_plus", phrases=("a photo of a", "")),
    made("cannot be taken 5 at a time", "proda", sets_per_step=5),
    made("does not end with the class name", "prograd", template="{} texture."),
    ("unknown templates 'nowhere'", lambda place: make_method("tip_adapter", templates="nowhere").text("a {}.", None)),
    program("'Other' is not a subclass", CLASS, ":Other"),
    program(r"own\.py' defines no subclass of clipbias\.tuning\.Method; write one", ""),
    program("has the hook 'sampling'; derive it from tuning.FeatureMethod", f"{CLASS}    sampling = print"),
    program(r"text_context have 2 tokens, but its text\(\) keeps 0 places", CONTEXT),
    pure(r"may be x/a\.py or y/a\.py", match_user_method, "a.py", ("x/a.py", "y/a.py")),
    pure(r"may be mine/a\.py or yours/a\.py", match_user_method, "theirs/a.py", ("mine/a.py", "yours/a.py")),
    bound("'clip_lora' has nothing to learn with these options", ("cat",), "clip_lora", parts=(), first_block=2),
    bound("'ivlp' has nothing to learn with these options", ("cat",), "ivlp", text_tokens=0, vision_tokens=0),
    # Classes and their texts.
    bound("no class names", ()),
    bound("class_names is 'cat'; give a list of names", "cat"),
    bound("reads the class names 'big cat' and 'big_cat' as the same text", ("big cat", "dog", "big_cat")),
    bound("reads the class names 'cat' and 'Cat' as the same text", ("cat", "Cat")),
    bound("the class name 'cat' occurs 2 times; give each class a name of its own", ("cat", "dog", "cat")),
    bound("must contain '{}' exactly once", ("cat",), template="no place"),
    bound(
        "give them or texts of your own, not both", ("a dog",), free_text=True, descriptions={"a dog": ["It barks."]}
    ),
    bound("the class name 5 is not a text", ("a dog", 5), free_text=True),
    bound(
        "blocks 4 to 3 are to be tuned, and the vision tower has blocks 1 to 3", ("cat",), "clip_lora", first_block=4
    ),
    described(rf"{NAMED}not valid JSON", "{"),
    described(rf"{NAMED}have no texts for the class 'maine_coon'", '{"cat": ["a"], "dog": ["a"]}'),
    described(rf"{NAMED}tokens for the class 'cat'", json.dumps({"cat": ["photo " * 100], "maine coon": ["a"]})),
    *(
        lacking("features of patches, which a model with a pooling head has not", name, "plot")
        for name in ("siglip_2", "pe")
    ),
    lacking("no weight of this tower", "siglip_2", "prolip"),
    # Arguments, images and changes of a tower.
    swapped(SWAPPED, lambda task, params, learnables: task.logits(learnables, params, IMAGES)),
    swapped(SWAPPED, lambda task, params, learnables: jax.jit(task.logits)(learnables, params, IMAGES)),
    swapped(SWAPPED, lambda task, params, learnables: task.class_features(learnables, params)),
    losing(r"there are 2 images and labels of shape \[1\]; give the number of its class for each image", np.array([1])),
    losing("labels go from -1 to 1; there are 2 classes, from 0 to 1", np.array([-1, 1])),
    losing("labels have type float64 and shape", np.array([0.0, 1.0])),
    crops(r"TPT learns from 11 crops of each image.*\[B, 12, R, R, 3\]", IMAGES),
    (
        "the texts of CoCoOp depend on the image",
        lambda place: place.task("cocoop").class_features(place.clip.params, zeros(place.task("cocoop"))),
    ),
    without_an_image("class 2 of 3 has no training image", "gda"),
    adapted(
        "attention differs in size from block to block",
        "vision",
        "mmrl",
        lambda x: {"vision_readout": None},
        observe=lambda view: view.index,
    ),
    adapted(r"vision_tokens have shape \(2, 3, 16\)", "vision", "mmrl", lambda x: {"vision_tokens": x.text_tokens}),
    adapted(
        r"text_class_prompts have shape \(1, 4, 16\); expected \[2, T, 16\]",
        "text",
        "tcp",
        lambda x: {"text_class_prompts": x.text_class_prompts[:1]},
    ),
    adapted(
        r"text_adapters have 'down' of shapes \(2, 24, 32\)",
        "text",
        "mma",
        lambda x: {"text_adapters": x.vision_adapters},
    ),
    adapted(r"layers/qkv/rate of shape \(2,\); expected \(3,\)", "text", "clip_lora", fewer_rates),
]
