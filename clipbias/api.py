"""User functions besides `load`, `Task` and `relevancy`. They read files and show progress: not for `jax.jit`."""

import contextlib
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from clipbias.analysis import bias
from clipbias.checks import Count, Positive, check_value, shown
from clipbias.clip import Clip
from clipbias.clip.hub import parse
from clipbias.constants import ADAPTER_FILE
from clipbias.data import Dataset, Split
from clipbias.data import names as dataset_names
from clipbias.data.folder import is_hub_dataset
from clipbias.data.pipeline import BATCH_SIZE
from clipbias.data.sources import cautions_of_classes, open_images
from clipbias.data.user_images import Labels, Pictures, image_list, label_array, names_of_labels
from clipbias.errors import ClipbiasError, ClipbiasWarning
from clipbias.export.card import model_card
from clipbias.export.folder import CARD
from clipbias.io import reason, shorten, write_text
from clipbias.training.context import make_context
from clipbias.training.device import drop_many_programs, keep_programs
from clipbias.training.progress import Progress
from clipbias.training.run import calibrate_untrained, fit_task
from clipbias.training.select import as_options, with_given
from clipbias.training.spec import data_notes
from clipbias.tuned_model import AnyImages, TunedModel, as_clip, check_model, labelled_images
from clipbias.tuning import METHODS, Method, Recipe, Task, trainer_files
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.prompts import ClassList
from clipbias.tuning.recipe import COMMON


def fit(  # noqa: PLR0913 (a user's options, each by keyword)
    clip: Clip | str | os.PathLike,
    method: str | Method,
    images: AnyImages | None = None,
    labels: Labels | None = None,
    *,
    class_names: Sequence[str] | ClassList | None = None,
    template: str | None = None,
    shots: int | None = None,
    seed: int = 1,
    start_seed: int | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    recipe: Recipe | str | None = None,
    validation: Split | tuple[Pictures, Labels] | None = None,
    calibrate: bool | None = None,
    mesh: Mesh | None = None,
    on_image_error: str = "raise",
    progress: bool = True,
    **options: object,
) -> TunedModel:
    """Tunes a model, with the few-shot splits, steps and numbers of `clipbias train`.

        model = clipbias.fit("demo", "ivlp", pictures, ["cat", "dog", "cat"], depth=9)

    Args:
      clip: a model from `clipbias.load`, or its argument.
      method: a name of `clipbias.list_methods()`, the file of a method of your own, or a `Method`.
      images: a dataset (`clipbias.data.load`, `data.from_arrays`) or its name, a split of a dataset, the path of a
        folder of classes or of a table, a dataset of Hugging Face with columns of images and class labels, or pictures
        as for `clip.preprocess`. A method without training (zero-shot) needs no images.
      labels: the class of each picture, by number or by name, `[n]`; a dataset has its own.
      class_names: the classes, or a dataset with them, where `images` do not say them: for a split, for labels that are
        numbers, and where a class has no picture. Names of labels are sorted.
      template: the text around a class name, with `{}` for it. Default: the dataset's.
      shots: images drawn of each class. Default: all.
      seed: seed of the few-shot split.
      start_seed: seed of the initial learnables and of the order of images. Default: `seed`.
      learning_rate: replaces the recipe's. `None` compares four on held-out images (`clipbias.data.held_out`), with a
        third of the steps each, and selects the best, unless `recipe` is a `Recipe`.
      epochs, batch_size: replace the recipe's.
      recipe: "common" or "authors" for a method that has both; or a `Recipe`. Default: the method's own, or `Recipe()`,
        the paper's, with at least 300 steps.
      validation: a split, or a pair of pictures and labels, to select settings on instead of held-out training images.
      calibrate: whether held-out images that select nothing calibrate the model, for prediction sets and "none of
        these" (`clipbias.data.held_out`). `None`: if there are ten of them; `True` raises without ten.
      mesh: devices of the computation. Default: all devices.
      on_image_error: "raise", or "skip" images that cannot be read.
      progress: whether to show progress.
      **options: the method's options; and `descriptions`, `free_text` or `dtype` as for `Task`.

    Returns:
      A model whose notes have the learning rate, its selection, and warnings.

    Raises:
      ClipbiasError: images, labels, classes or options do not fit, or the loss is not finite.

    Warns:
      UserWarning: a class has no training image, a picture is in two classes, nothing can be held out, the tuned model
        is no better than zero-shot on held-out images, or the loss ends above that of equal probabilities.
    """
    # Cheap checks come before the model is loaded and the images are opened.
    check_value("shots", shots, Positive | None)
    check_value("seed", seed, Count)
    check_value("start_seed", start_seed, Count | None)
    check_value("recipe", recipe, Recipe | str | None)
    check_value("calibrate", calibrate, bool | None)
    if isinstance(clip, Task):
        raise ClipbiasError("the first argument is a task; give the model, the method and the images.")
    if not isinstance(method, str | Method):
        raise ClipbiasError(
            f"the second argument is {shown(method)} and no method; the order is the model, the method, the images."
        )
    keep_programs()
    drop_many_programs()
    # Pictures with labels stay as they are; anything else is opened, by name or path, before weights are downloaded.
    if labels is None or is_hub_dataset(images):
        images = open_images(images)
    clip = as_clip(clip)
    settings = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size}
    given = {name: value for name, value in settings.items() if value is not None}
    labels = None if labels is None else label_array(labels)
    # "common" and "authors" are an option of the method. A `Recipe` replaces both: the method must not bring its
    # authors'.
    if isinstance(recipe, str):
        options = {"recipe": recipe, **options}
    elif isinstance(method, str):
        options = as_options(method, given | ({} if recipe is None else {"recipe": COMMON})) | options
    classes = _classes(images, labels, class_names)
    task = Task(clip, method, classes, template=template, shots=shots, **options)  # type: ignore[arg-type]
    cautions = []
    given_texts = {"template": template is not None, "descriptions": task.classes.descriptions is not None}
    if ignored := [f"the {name}" for name in task.unread if given_texts[name]]:
        cautions.append(
            f"{task.method_name} reads texts such as {task.prompt.templates[0]!r} and does not read "
            f"{' or '.join(ignored)}; only zero-shot does."
        )
    unused = [*given] + (["recipe"] if isinstance(recipe, Recipe) else [])
    if unused and not task.method.trains:
        cautions.append(
            f"{task.method_name} learns without steps of an optimiser and does not use {', '.join(unused)}."
        )
    for sentence in cautions:
        warnings.warn(sentence, ClipbiasWarning, stacklevel=2)
    # Zero-shot: nothing to train. Labelled images may still calibrate it.
    if not task.method.uses_images:
        learnables = task.init(seed if start_seed is None else start_seed)
        labelled = labels is not None or isinstance(images, Dataset | Split)
        if not (labelled if calibrate is None else calibrate):
            return TunedModel(task, learnables)
    elif len(task.class_names) < 2:
        raise ClipbiasError(f"there is a single class, {task.class_names[0]!r}; give images of two classes at least.")
    dataset = _training_dataset(task, images, labels, validation)
    for sentence in cautions_of_classes(dataset) if task.method.uses_images else ():
        warnings.warn(sentence, ClipbiasWarning, stacklevel=2)
    context = make_context(task.clip, mesh, dtype=task.classifier.dtype, on_image_error=on_image_error)
    if not task.method.uses_images:
        model = TunedModel(task, learnables)
        calibration = calibrate_untrained(model, dataset, context, seed=seed, calibrates=calibrate)
        return dataclasses.replace(model, calibration=calibration)
    compares_rates = learning_rate is None and not isinstance(recipe, Recipe)
    if not isinstance(recipe, Recipe):
        recipe = task.method.recipe_for(Recipe(), shots)
    with contextlib.closing(Progress(title=f"{task.method_name} on {dataset.name}", shown=progress)) as bar:
        fitted = fit_task(
            task,
            with_given(task.method, recipe, given, options),
            dataset,
            context,
            shots=shots,
            seed=seed,
            start_seed=start_seed,
            progress=bar,
            compares_rates=compares_rates,
            calibrates=calibrate,
        )
    # Warnings of the training appear at the caller's line; the notes keep them for the model's card.
    for sentence in fitted.notes.get("warnings", ()):
        warnings.warn(sentence, ClipbiasWarning, stacklevel=2)
    # As `train` notes them: by these, `evaluate` and others know the images that trained the model.
    protocol = "full" if shots is None else "few_shot"
    noted = data_notes(images, task.classes, protocol) if isinstance(images, Dataset) else {}
    return TunedModel.of(dataclasses.replace(fitted, notes={**fitted.notes, **noted}))


def load_adapter(
    path: str | os.PathLike,
    clip: Clip | str | os.PathLike | None = None,
    *,
    own_methods: Sequence[str] = (),
    dtype: str | None = None,
) -> TunedModel:
    """Reads a tuned model. It predicts as when it was saved.

    Args:
      path: an adapter's file; a folder with `adapter.safetensors` (a work folder, an export); or a repository of the
        Hugging Face hub with this file, "owner/name" or "owner/name@revision".
      clip: the frozen model of its training, with the same weights and tokenizer. Default: loads it, in float32; a
        model that was loaded with another `dtype` is given here, to predict as when it was saved.
      own_methods: files or modules that may hold a method of your own. No other program of an adapter is run.
      dtype: compute type, as for `Task`. Default: that of training.

    Raises:
      ClipbiasError: the file is missing, damaged, not an adapter, or of another format; it cannot be downloaded; or
        `clip` is another model.
    """
    adapter = read_adapter(path)
    base = as_clip(adapter.base if clip is None else clip)
    return TunedModel.of(adapter.bind(base, own_methods=own_methods, dtype=dtype))


def import_adapter(
    path: str | os.PathLike,
    clip: Clip | str | os.PathLike,
    classes: Sequence[str] | ClassList | None = None,
    *,
    position: str = "end",
) -> TunedModel:
    """Reads a checkpoint of another trainer: CoOp, CoCoOp, VPT, IVLP, MaPLe or PromptSRC. Nothing in it is run.

    Args:
      path: a `model.pth.tar-N`.
      clip: the CLIP of its training.
      classes: class names or a dataset. Default: the names of training, whose tokens are in the file.
      position: of the class name among CoOp's words: "end", "middle" or "front". The file does not say.

    Raises:
      ClipbiasError: the file is damaged or of another trainer; has a gap in depth, other shapes or frozen weights than
        `clip`, tensors without a place here, or values that are not finite; or has contexts of other classes.
      ClipbiasWarning: its shared context was trained on other classes than `classes`, or in another order.
    """
    return TunedModel.of(trainer_files.import_adapter(path, as_clip(clip), classes, position=position))


def equivalent_bias(
    model: TunedModel, images: Pictures | Split | None, form: str = "vector", *, batch_size: int = BATCH_SIZE
) -> TunedModel:
    """Returns the equivalent bias of a tuned model, as a model to save, fold and export.

    It is the frozen model with `c_l` after every block `l`: the mean over images of the tuned block's output minus the
    frozen block's, on the same tokens. It leaves out changes outside the blocks: pixels, embeddings, LayerNorms before
    and after the blocks, projections, class features, heads.

    Args:
      model: a model whose method changes tokens or weights inside the blocks.
      images: training images to average over, never test images: a `Split`, or pictures as for `predict`. `None` if the
        method leaves the vision tower unchanged.
      form: "vector", one per layer (method "bias"); "kind", two (method "bias_by_kind"): one for `[cls]` and one for
        patches, one for EOS and one for the other tokens of a text.
      batch_size: images at a time.

    Returns:
      A model of the same classes, with its origin in the notes.

    Raises:
      ClipbiasError: the method's texts depend on the image, it changes nothing inside the blocks, its initial texts are
        not those of bias tuning, or the images do not fit the model.
    """
    check_model(model)
    return TunedModel.of(bias.equivalent_bias(model, images, form, batch_size=batch_size))


def push_to_hub(repository: str, model: TunedModel, *, private: bool | None = None) -> str:
    """Uploads a tuned model as an adapter with a model card, as a commit on the main branch.

        clipbias.push_to_hub("you/fashion-bias", model)

    Args:
      repository: "owner/name", created if it does not exist.
      model: the tuned model.
      private: whether a created repository is private. Default: the owner's default.

    Returns:
      "owner/name@commit", which `load_adapter` takes.

    Raises:
      ClipbiasError: the name is not a repository's, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, constants, errors

    check_model(model)
    # A revision is refused: the commit goes to the main branch.
    name = parse(repository) if isinstance(repository, str) else None
    if name is None or name.revision:
        raise ClipbiasError(f"{shorten(str(repository))!r} is no name of a repository; give 'owner/name'.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_adapter(folder / ADAPTER_FILE, model)
        write_text(folder / CARD, model_card(model, "adapter"))
        message = f"Upload a {model.task.method_name} adapter"
        try:
            api = HfApi()
            # `exist_ok`: a second upload is a new commit of the same repository.
            api.create_repo(name.repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=name.repository, folder_path=folder, commit_message=message).oid
        except Exception as error:  # the client's own, and its transport's
            status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
            if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
                raise ClipbiasError(
                    f"{constants.ENDPOINT} does not let you write {name.repository!r}; run `hf auth login` with a "
                    "token that may."
                ) from error
            words = shorten(" ".join(reason(error).split()), 200)
            raise ClipbiasError(
                f"{name.repository!r} was not uploaded to {constants.ENDPOINT} ({words}); the same call tries again."
            ) from error
    return f"{name.repository}@{commit}"


def list_methods() -> tuple[str, ...]:
    """The names of methods that `fit` takes; the path of a Python file of your own is another."""
    return tuple(METHODS)


def list_datasets() -> tuple[str, ...]:
    """The names that `clipbias.data.load` takes; "tfds/" and a builder's name is another."""
    return dataset_names()


def _classes(
    images: AnyImages | None, labels: Labels | None, class_names: Sequence[str] | ClassList | None
) -> Sequence[str] | ClassList:
    """The classes of a dataset, the given classes, or those of the labels."""
    # Labels of a dataset count by the order of its classes: other names, or another order, would rename them.
    if isinstance(images, Dataset):
        given = class_names.class_names if isinstance(class_names, ClassList) else class_names
        if given is not None and class_names is not images and tuple(images.class_names) != tuple(given):
            raise ClipbiasError(f"{images.name} has classes of its own; leave `class_names` out.")
        return images
    if class_names is not None:
        return class_names
    if images is None:
        raise ClipbiasError("there are neither images nor class names; give a dataset, or pictures and their labels.")
    if isinstance(images, Split):
        raise ClipbiasError(
            "a split has images and labels, but no template and no texts of its classes; give "
            "class_names=dataset, the dataset of this split, or the names of its classes."
        )
    if labels is None:
        raise ClipbiasError("there are images without labels; give a dataset, or labels of the images.")
    return names_of_labels(labels)


def _training_dataset(
    task: Task, images: AnyImages | None, labels: Labels | None, validation: Split | tuple[Pictures, Labels] | None
) -> Dataset:
    """The images of `fit` as a dataset with the task's classes and texts."""
    if images is None:
        raise ClipbiasError(f"{task.method_name!r} learns of images; give a dataset, or pictures and their labels.")
    source = labelled_images(images, labels, task.class_names)
    if isinstance(source, Split):
        name = "own images"
        splits = {"train": source}
    else:
        name = source.name
        splits = dict(source.splits)
    if isinstance(validation, Split):
        # Called for its error: a validation split of other classes would score other labels.
        labelled_images(validation, None, task.class_names)
        splits["val"] = validation
    elif isinstance(validation, list | tuple) and len(validation) == 2:
        # A user's numbers may follow another order than that of the names.
        if labels is not None and label_array(labels).dtype.kind == "U" != label_array(validation[1]).dtype.kind:
            raise ClipbiasError("the labels are names, and those of the validation images are numbers; give names.")
        splits["val"] = image_list(*validation, task.class_names)
    elif validation is not None:
        raise ClipbiasError(
            f"validation is of type {type(validation).__name__}; give a split, or a pair of pictures and their labels."
        )
    # The pipeline expects a test split; an empty one tests nothing.
    splits.setdefault("test", next(iter(splits.values())).subset([]))
    return Dataset(name, task.class_names, task.template, splits)
