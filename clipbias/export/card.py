"""The model card of an exported adapter: its content, training, accuracy and use."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipbias.clip.checkpoint import EMBEDDED
from clipbias.clip.config import MODELS
from clipbias.clip.hub import parse
from clipbias.clip.preprocess import Preprocessing
from clipbias.clip.tokenizer import CLEAN, is_clips
from clipbias.data.few_shot import range_words
from clipbias.intervals import accuracy_words
from clipbias.sentences import counted
from clipbias.terminal import printable
from clipbias.tuning import METHODS, Task, parameter_count
from clipbias.tuning.tuned import Tuned
from clipbias.version import __version__

# Key of a distilled adapter's certificate in its notes.
NOTE = "certificate"
WHAT = {
    "adapter": "What a tuned method learned, `adapter.safetensors`, to be used with its base model in clipbias.",
    "checkpoint": "An ordinary CLIP checkpoint: what was learned is added to the weights that it changes, biases after "
    "a layer to its MLP output bias (`mlp.fc2.bias`), `x + MLP(x) + b` being the same network, or to a BERT's last "
    "LayerNorm; all other weights are the base model's. `classifier.safetensors` holds the class features.",
    "open_clip": "An ordinary CLIP checkpoint in open_clip's format: what was learned is added to the weights that it "
    "changes. `classifier.safetensors` holds the class features.",
    "head": "A classifier head, `classifier.safetensors`: one unit-length feature per class, for the image features of "
    "the base model, which tuning left as they are.",
    "peft": "An adapter of PEFT's for the base model, `adapter_config.json` and `adapter_model.safetensors`. "
    "`classifier.safetensors` holds the class features, and the scale that cosines with them are multiplied by.",
    "onnx": "The whole classifier as one ONNX file, `classifier.onnx`, from uint8 images to logits. `labels.json` has "
    "the class names.",
    "program": "The whole classifier as a StableHLO program, `classifier.stablehlo`, from uint8 images to logits. Its "
    "weights, `weights.safetensors`, are its first argument; `program.json` describes the others.",
}

NEEDS = {
    "checkpoint": "With `transformers` and PyTorch{more}:",
    "open_clip": "With `open_clip` and PyTorch (`open_clip.get_tokenizer` reads this folder too; of grey pictures of "
    "16 bits{more} open_clip's own preprocessing makes other pixels than the base model's):",
    "head": "With `transformers` and PyTorch:",
    "peft": "With `peft`, `transformers` and PyTorch:",
    "onnx": "With `pip install onnxruntime pillow`:",
    "program": "With `pip install jax flatbuffers pillow safetensors`, on a CPU, a GPU or a TPU:",
}

# The code that a card shows: complete, run from inside the exported folder, and run by the tests.
TRANSFORMERS = """\
import json
from pathlib import Path
{imports}
import numpy as np
import torch
{peft}from PIL import Image, ImageOps
from safetensors import safe_open
from transformers import AutoImageProcessor, {model_class}

base = {base}
with safe_open("classifier.safetensors", "pt") as head:
    class_names = json.loads(head.metadata()["class_names"])
    classes, scale = head.get_tensor("text_features"), head.get_tensor("logit_scale").exp()
model = {model}.float().eval()
{picture}
pixels = AutoImageProcessor.from_pretrained(base{revision})(image, return_tensors="pt")
with torch.no_grad():
    features = {features}
logits = scale * (features / features.norm(dim=-1, keepdim=True)) @ classes.T
print(class_names[int(logits.argmax())], logits.softmax(-1))
"""

OPEN_CLIP_CODE = """\
import json

import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps
from safetensors import safe_open

with safe_open("classifier.safetensors", "pt") as head:
    class_names = json.loads(head.metadata()["class_names"])
    classes, scale = head.get_tensor("text_features"), head.get_tensor("logit_scale").exp()
model, _ = open_clip.create_model_from_pretrained("local-dir:.")
{picture}
pixels = (np.asarray(image, np.float32) / 255 - {mean}) / {std}
with torch.no_grad():
    images = torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)
    features = model.eval().encode_image(images, normalize=True)
logits = scale * features @ classes.T
print(class_names[int(logits.argmax())], logits.softmax(-1))
"""

PROGRAM_CODE = """\
import json
from pathlib import Path

import jax
import jax.export
import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file

with open("program.json") as file:
    class_names = json.load(file)["class_names"]
with open("classifier.stablehlo", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
weights = jax.device_put(load_file("weights.safetensors"))
{picture}
logits = jax.jit(program.call)(weights, np.asarray(image)[None])  # any number of images
print(class_names[int(logits.argmax())], jax.nn.softmax(logits))
"""

ONNX_CODE = """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

with open("labels.json") as file:
    class_names = json.load(file)["class_names"]
session = onnxruntime.InferenceSession("classifier.onnx")
{picture}
(logits,) = session.run(["logits"], {{"images": np.asarray(image)[None]}})  # any number of images
odds = np.exp(logits - logits.max())
print(class_names[int(logits.argmax())], odds / odds.sum())
"""

# The picture as a camera held it, in 8 bits.
OPENED = """\
image = ImageOps.exif_transpose(Image.open("image.png"))
if image.mode.startswith("I;16"):  # 16 bits, of which Pillow would cut off all above 255
    image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
assert image.mode not in ("I", "F"), "convert levels of 32 bits to 8 bits"
"""
SIDES = ("width", "height")
WHITE = 'image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")'

CLIPBIAS_CODE = """\
import clipbias

model = clipbias.load_adapter("adapter.safetensors"{own_methods})
print(model.predict(["image.png"]))
"""


def model_card(model: Tuned, form: str) -> str:
    """Returns a `README.md` for a `form` of `export` or "adapter": YAML front matter for the hub, then Markdown."""
    # All values of the adapter file are escaped (`_plain`, `as_code`), the numbers among them formatted.
    method, dataset, seed = model.task.method_name, _tested_on(model), model.notes.get("seed")
    title = _plain(f"{method} on {dataset}" if dataset else f"{method} for {len(model.class_names)} classes")
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(model))
    sentences = certified_sentences(model.notes)
    made = "The base model stayed frozen; only the learnable parameters above were tuned"
    if sentences:
        made = "The base model learned the predictions of another tuned model on images without labels. " + " ".join(
            map(_plain, sentences)
        ).removesuffix(".")
    elif per_class := _images_per_class(model.notes):
        made += _plain(f", on {per_class}" + (f" drawn with seed {seed}" if seed is not None else ""))
    written = "" if form == "adapter" else " This folder was written by `clipbias export`."
    return (
        f"---\n{_front_matter(model, form, title)}\n---\n\n# {title}\n\n{WHAT[form]}\n\n"
        f"| | |\n| --- | --- |\n{rows}\n\n{made}.{written}\n\n"
        f"## Use\n\n{_usage(model, form)}"
    )


def certified_sentences(notes: Mapping[str, Any]) -> list[str]:
    """Returns the sentences of a distilled model's certificate; none for other models and damaged notes."""
    certificate = notes.get(NOTE)
    sentences = certificate.get("sentences") if isinstance(certificate, Mapping) else None
    if not isinstance(sentences, list):
        return []
    return [sentence for sentence in sentences if isinstance(sentence, str)]


def _tested_on(model: Tuned) -> str | None:
    """Returns the model's dataset; `None` if it has other classes than in training."""
    return None if "training_classes" in model.notes else model.notes.get("dataset")


def _facts(model: Tuned) -> list[tuple[str, str]]:
    notes, task = model.notes, model.task
    counts = parameter_count(model.learnables)
    # A fact without a value is left out at the end: adapters of other programs have few notes.
    towers = ", ".join(f"{tower} {counts[tower]:,}" for tower in ("vision", "text", "shared") if counts[tower])
    # A search on validation images replaces options.
    used = notes.get("used_options")
    every = task.options() | (dict(used) if isinstance(used, Mapping) else {})
    options = ", ".join(f"{name}={value!r}" for name, value in every.items())
    facts = [
        ("method", as_code(task.method_name) + (_plain(f" ({options})") if options else "")),
        ("which is", _plain(_description(task))),
    ]
    if notes.get("dataset"):
        classes = notes.get("training_classes", len(model.class_names))
        facts.append(("dataset", _plain(f"{notes['dataset']}, {classes} classes")))
    if "training_classes" in notes:
        facts.append(("classes", f"{len(model.class_names)}, others than those that it was trained for"))
    facts += [(name, _plain(notes[name])) for name in ("protocol", "shots", "seed") if notes.get(name) is not None]
    if rate := _learning_rate(notes):
        facts.append(("learning rate", _plain(rate)))
    if notes.get("train_images"):
        facts.append(("training images", f"{notes['train_images']:,}, {_images_per_class(notes)}"))
    if model.calibration is not None:
        count = counted(len(model.calibration), "image")
        facts.append(("calibration", f"{count}, for prediction sets and rejection in clipbias"))
    for name, accuracy in _accuracies(notes).items():
        images = (notes.get("tested_images") or {}).get(name) if name else notes.get("images")
        words = accuracy_words(accuracy, images) if images else f"{accuracy:.2f} %"
        facts.append((_plain(f"top-1 accuracy{name and f' ({name})'}"), words))
    facts += [
        ("learnable parameters", f"{counts['total']:,}" + (f" ({towers})" if towers else "")),
        ("base model", as_code(task.clip.source)),
        ("its weights", f"SHA-256 {as_code(task.clip.fingerprint)}, as clipbias reads them"),
        ("exported with", f"clipbias {__version__}"),
    ]
    return [(name, value) for name, value in facts if value]


def _images_per_class(notes: Mapping[str, Any]) -> str:
    """Formats the number of training images of a class, "6 to 16 images per class"; empty if unknown."""
    counts = notes.get("images_per_class")
    return f"{range_words(counts)} image{'s' * (max(counts) != 1)} per class" if counts else ""


def _learning_rate(notes: Mapping[str, Any]) -> str:
    """Formats the learning rate and its selection on held-out images; empty without a rate."""
    rate = notes.get("learning_rate")
    if rate is None:
        return ""
    choice = notes.get("choice") or {}
    rates = [line.get("learning_rate") for line in choice.get("tried", ())]
    # A rate that nobody chose among others was not selected.
    candidates = [f"{rate:g}" for rate in rates if rate is not None]
    images = f" on {choice['images']} held-out images" if choice.get("images") else ""
    return f"{rate:g}" + (f", selected from {', '.join(candidates)}{images}" if len(candidates) > 1 else "")


def _plain(value: object) -> str:
    """Escapes a value of an adapter file for Markdown."""
    # Anybody may have written the file: its values must not become rows, tags, links or code of the card.
    text = printable(value)
    for letter in "\\|`<>[]":
        text = text.replace(letter, "\\" + letter)
    return text


def _accuracies(notes: Mapping[str, Any]) -> dict[str, float]:
    """Returns accuracies in percent by test set; the empty name is the dataset's test images."""
    # Runs with one test set and runs with several have different notes.
    accuracies = {"": notes.get("accuracy"), **(notes.get("accuracies") or {})}
    return {name: float(value) for name, value in accuracies.items() if value is not None}


def _description(task: Task) -> str:
    """Returns the first line of the method's file, which names the method and its paper."""
    module = inspect.getmodule(type(task.method))
    return ((module and module.__doc__) or "").strip().partition("\n")[0]


def _front_matter(model: Tuned, form: str, title: str) -> str:
    """Returns the metadata for the hub, with the library that loads the folder, and the base model if it is there."""
    from huggingface_hub import EvalResult, ModelCardData

    # The hub shows code and a widget by library and task, so these must name who loads the folder's main file.
    library = form if form in ("open_clip", "peft") else "clipbias"
    if form == "checkpoint":
        library = "transformers" if model.clip.config.family in MODELS else "open_clip"
    task = "zero-shot-image-classification" if form in ("checkpoint", "open_clip") else "image-classification"
    base = model.clip.source.partition("@")[0]
    # Only a model on the hub may be linked: the hub refuses a card whose base model does not exist.
    on_the_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", base) and not Path(model.clip.source).exists()
    dataset = _tested_on(model)
    accuracy = _accuracies(model.notes).get("")
    evaluations: list[EvalResult] = []
    if dataset and accuracy is not None:
        result = EvalResult(
            task_type="image-classification",
            dataset_type=printable(dataset),
            dataset_name=printable(dataset),
            metric_type="accuracy",
            metric_value=accuracy,
            metric_name="top-1 accuracy in percent",
        )
        evaluations.append(result)
    card: Any = ModelCardData(
        base_model=base if on_the_hub else None,
        library_name=library,
        pipeline_tag=task,
        tags=["clip", "clipbias", "few-shot"],
        model_name=title if evaluations else None,
        eval_results=evaluations or None,
    )
    return card.to_yaml()


def as_code(text: str) -> str:
    """Formats a string of unknown origin as code in Markdown: without backquotes, which would end it."""
    return "`" + printable(text).replace("`", "'").replace("|", "\\|") + "`"


def _picture_code(preprocessing: Preprocessing) -> str:
    """Returns code that computes `data.transforms.test_image` of a file."""
    resizing = preprocessing.resizing
    size = preprocessing.image_size
    resized = resizing.size or size
    is_transformers = resizing.library == "transformers"
    lines = OPENED.splitlines()
    if is_transformers:
        # transformers puts transparent pictures on white, other libraries drop the transparency.
        lines += ['image = image.convert("RGBA")', WHITE]
    resize = f"image = image.resize((width, height), Image.Resampling.{resizing.resampling.upper()})"
    if resizing.whole:
        lines.append(f"width = height = {resized}")
    else:
        lines.append(f"width, height = (side * {resized} // min(image.size) for side in image.size)")
    lines.append(resize if is_transformers else f'{resize}.convert("RGB")')
    if not resizing.whole or resized != size:
        halves = (f"({side} - {size}) // 2" if is_transformers else f"round(({side} - {size}) / 2)" for side in SIDES)
        lines.append(f"left, top = {', '.join(halves)}")
        lines.append(f"image = image.crop((left, top, left + {size}, top + {size}))")
    return "\n".join(lines)


def _other_readers(task: Task) -> str:
    """Names other classes of transformers that read a checkpoint, and their differences from the base model's code."""
    clip = task.clip
    siglip = clip.config.family == "siglip"
    tokens = f', with `padding="max_length", max_length={clip.config.text.context_length}`' if siglip else ""
    words = f" (`AutoTokenizer` reads this folder too{tokens}"
    if clip.config.family == "clip":
        words = " (`CLIPProcessor` and `AutoTokenizer` read this folder too"
    if is_clips(clip.tokenizer) or CLEAN in getattr(clip.tokenizer, "init_kwargs", {}):
        words += "; of texts with HTML entities, or with letters that were decoded wrongly, it makes other tokens"
    kinds = "" if clip.preprocessing.resizing.library == "transformers" else ", with transparency or a palette"
    return (
        f"{words}). Of a grey picture of 16 bits{kinds} the processor of transformers alone makes other pixels than "
        "the base model's own code; the lines before it make the same"
    )


def _usage(model: Tuned, form: str) -> str:
    """Returns the code blocks of a card, each with a sentence."""
    task, source, family = model.task, model.clip.source, model.clip.config.family
    preprocessing = model.clip.preprocessing
    picture = _picture_code(preprocessing)
    code = ""
    if form == "open_clip":
        code = OPEN_CLIP_CODE.format(picture=picture, mean=preprocessing.mean, std=preprocessing.std)
    elif form in ("program", "onnx"):
        code = (PROGRAM_CODE if form == "program" else ONNX_CODE).format(picture=picture)
    elif form != "adapter" and family in MODELS:
        # These folders have no weights of the base model, so the code loads it from its source.
        on_base = form in ("head", "peft")
        name = parse(source) if on_base else None
        revision = f", revision={json.dumps(name.revision)}" if name and name.revision else ""
        imports = ""
        base = '"."' if form == "checkpoint" else json.dumps(name.repository if name else source)
        if on_base and source in EMBEDDED:
            imports = "from importlib.resources import files\n"
            base = f'str(files("clipbias") / "assets" / "{source}")'
        feature = "model.vision_model(**pixels).pooler_output"
        loaded = f"{MODELS[family]}.from_pretrained(base{revision})"
        code = TRANSFORMERS.format(
            imports=imports,
            base=base,
            revision=revision,
            model=f'PeftModel.from_pretrained({loaded}, ".")' if form == "peft" else loaded,
            peft="from peft import PeftModel\n" if form == "peft" else "",
            model_class=MODELS[family],
            picture=picture,
            features=feature if family == "siglip" else f"model.visual_projection({feature})",
        )
    where = ""
    own_methods = ""
    if task.method_name not in METHODS:  # a user's method, in a program that readers of the card need
        program = Path(task.method_name.partition(":")[0]).name
        where = f", where the method's program {as_code(program)} is at hand"
        own_methods = f", own_methods=[{json.dumps(program)}]"
    more = _other_readers(task) if form == "checkpoint" else ""
    if form == "open_clip" and preprocessing.resizing.library == "transformers":
        more = ", with transparency, or where half a pixel is cut from each side"
    blocks = [(NEEDS[form].format(more=more), code)] if code else []
    blocks.append((f"With clipbias, from the adapter file{where}:", CLIPBIAS_CODE.format(own_methods=own_methods)))
    return "\n".join(f"{sentence}\n\n```python\n{block}```\n" for sentence, block in blocks)
