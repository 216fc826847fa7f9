"""The model card of an exported adapter: its content, training, accuracy and use."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from clipbias.clip.checkpoint import EMBEDDED
from clipbias.clip.config import MODELS
from clipbias.clip.hub import parse
from clipbias.clip.tokenizer import CLEAN, is_clips
from clipbias.data.few_shot import range_words
from clipbias.intervals import accuracy_words
from clipbias.sentences import counted
from clipbias.terminal import printable
from clipbias.tuning import METHODS, parameter_count
from clipbias.tuning.tuned import Tuned
from clipbias.version import __version__

# Key of a distilled adapter's certificate in its notes.
NOTE = "certificate"


def model_card(model: Tuned, form: str) -> str:
    """Returns a `README.md` for a `form` of `export` or "adapter": YAML front matter for the hub, then Markdown."""
    # All values of the adapter file are escaped (`_plain`, `as_code`), the numbers among them formatted.
    notes, task, clip = model.notes, model.task, model.clip
    method, dataset, seed = task.method_name, _tested_on(model), notes.get("seed")
    title = _plain(f"{method} on {dataset}" if dataset else f"{method} for {len(model.class_names)} classes")
    sentences = certified_sentences(notes)
    made = "The base model stayed frozen; only the learnable parameters above were tuned"
    if isinstance(source := notes.get("equivalent_bias"), Mapping):
        made = "Nothing was tuned: the learnable parameters above are the mean of what another model adds to tokens, "
        made += _plain(f"{source.get('method')} on {source.get('images')} images")
    elif sentences:
        made = "The base model learned the predictions of another tuned model on images without labels. "
        made += " ".join(map(_plain, sentences)).removesuffix(".")
    elif per_class := _images_per_class(notes):
        # Without shots all images train, and nothing is drawn.
        made += _plain(
            f", on {per_class}" + (f" drawn with seed {seed}" if notes.get("shots") and seed is not None else "")
        )
    # Heads and PEFT's folders have no weights of the base model, so the code loads it from its source.
    base, revision = '"."', ""
    is_embedded = form in ("head", "peft") and clip.source in EMBEDDED
    if is_embedded:
        base = f'str(files("clipbias") / "assets" / "{clip.source}")'
    elif form in ("head", "peft"):
        name = parse(clip.source)
        base = json.dumps(name.repository if name else clip.source)
        revision = f", revision={json.dumps(name.revision)}" if name and name.revision else ""
    # A user's method is in a program that readers of the card need.
    program = "" if method in METHODS else Path(method.partition(":")[0]).name
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipbias.export"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("card.md.j2").render(
        form=form,
        clip=clip,
        title=title,
        front_matter=_front_matter(model, form, title),
        facts=_facts(model),
        made=made,
        model_class=MODELS.get(clip.config.family),
        cleans_texts=is_clips(clip.tokenizer) or CLEAN in getattr(clip.tokenizer, "init_kwargs", {}),
        base=base,
        revision=revision,
        is_embedded=is_embedded,
        own_program=as_code(program) if program else "",
        own_methods=f", own_methods=[{json.dumps(program)}]" if program else "",
    )


def certified_sentences(notes: Mapping[str, Any]) -> list[str]:
    """Returns the sentences of a distilled model's certificate; none for other models and damaged notes."""
    certificate = notes.get(NOTE)
    sentences = certificate.get("sentences") if isinstance(certificate, Mapping) else None
    return [sentence for sentence in sentences if isinstance(sentence, str)] if isinstance(sentences, list) else []


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
    if isinstance(recipe := notes.get("recipe"), Mapping) and not recipe.get("steps"):
        every.pop("steps_per_shot", None)  # given epochs, or another recipe, took its place
    options = ", ".join(f"{name}={value!r}" for name, value in every.items())
    # The first line of a method's file names it and its paper.
    module = inspect.getmodule(type(task.method))
    description = ((module and module.__doc__) or "").strip().partition("\n")[0]
    facts = [
        ("method", as_code(task.method_name) + (_plain(f" ({options})") if options else "")),
        ("which is", _plain(description)),
    ]
    if notes.get("dataset"):
        classes = notes.get("training_classes", len(model.class_names))
        facts.append(("dataset", _plain(f"{notes['dataset']}, {classes} classes")))
    if "training_classes" in notes:
        facts.append(("classes", f"{len(model.class_names)}, given after the training"))
    facts += [(name, _plain(notes[name])) for name in ("protocol", "shots", "seed") if notes.get(name) is not None]
    if rate := _learning_rate(notes):
        facts.append(("learning rate", _plain(rate)))
    if notes.get("train_images") and "equivalent_bias" not in notes:
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
    return printable(value).translate({ord(letter): f"\\{letter}" for letter in "\\|`<>[]"})


def _accuracies(notes: Mapping[str, Any]) -> dict[str, float]:
    """Returns accuracies in percent by test set; the empty name is the dataset's test images."""
    # Runs with one test set and runs with several have different notes.
    accuracies = {"": notes.get("accuracy"), **(notes.get("accuracies") or {})}
    return {name: float(value) for name, value in accuracies.items() if value is not None}


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
    result: EvalResult | None = None
    if dataset and accuracy is not None:
        result = EvalResult(
            task_type="image-classification",
            dataset_type=printable(dataset),
            dataset_name=printable(dataset),
            metric_type="accuracy",
            metric_value=accuracy,
            metric_name="top-1 accuracy in percent",
        )
    return ModelCardData(
        base_model=base if on_the_hub else None,
        library_name=library,
        pipeline_tag=task,
        tags=["clip", "clipbias", "few-shot"],
        model_name=title if result else None,
        eval_results=[result] if result else None,
    ).to_yaml()


def as_code(text: str) -> str:
    """Formats a string of unknown origin as code in Markdown: without backquotes, which would end it."""
    return "`" + printable(text).replace("`", "'").replace("|", "\\|") + "`"
