# %% [markdown]
# # The first hour
#
# Prompts that are learned for a frozen CLIP help it on a new task. *Understanding the Multi-modal Prompts of the
# Pre-trained Vision-Language Model* ([arXiv 2312.11570](https://arxiv.org/abs/2312.11570)) says why: they do little to
# which tokens attend to which, and mostly add a bias. If so, a bias that is learned outright should do as well. This
# notebook trains both, looks at what they look at, and measures how much of what prompts gain a bias accounts for.
#
# It takes about five minutes on a CPU with the embedded demo, a CLIP small enough to come with the package. The next
# cell is the only one to change for another model and dataset: nothing below knows which they are.

# %%
MODEL = "demo"  # or "openai/clip-vit-base-patch16", for which a GPU is worth having
DATASET = "demo/fashion"  # or "eurosat", "folder", … with DATA_DIR, the folder that its images are in
DATA_DIR = None
PICTURE = None  # the path of a picture of your own; None takes one of the dataset's
SHOTS = 16  # training images per class
EPOCHS = 10
LEARNING_RATES = (0.0025, 0.02, 0.1)  # the paper's, and larger ones; validation images choose
IMAGES = 1000  # at most so many validation and test images
FOLDER = "first_hour"  # for what is written

# %% [markdown]
# ## Zero-shot
#
# CLIP compares a picture with the text "a photo of a …" for each class. Nothing is trained.

# %%
from pathlib import Path

import numpy as np
from tabulate import tabulate

import clipbias
from clipbias import data
from clipbias.training.kept_programs import keep

keep()  # each program is compiled once, also for the next time
clip = clipbias.load(MODEL)
dataset = data.load(DATASET, data_dir=DATA_DIR)


def some(split, most=IMAGES):
    """At most so many images of a split, spread evenly over it."""
    return split.subset(np.linspace(0, len(split) - 1, min(most, len(split))).round().astype(int))


test = some(dataset.split("test"))
print(clip)
print(dataset)

# %%
zero_shot = clipbias.Task(clip, "zero_shot", dataset.class_names, template=dataset.template)
clipbias.evaluate(zero_shot, {}, test)

# %% [markdown]
# ## Tune prompts, tune a bias
#
# `ivlp` learns prompts in every layer of both towers; `bias` learns one vector per layer, which is added to all tokens;
# `bias_by_kind` learns two per layer, one for the token that is read out (`[cls]`, or the end of the text) and one for
# all others. Everything of CLIP itself stays frozen. Each method is trained with every learning rate, and validation
# images say which to keep; a dataset without any takes the first.

# %%
METHODS = {"ivlp": "prompts (IVLP)", "bias": "bias tuning", "bias_by_kind": "bias tuning by kind"}


def tune(method):
    """A method's task and what it learned with the learning rate that does best on validation images."""
    task = clipbias.Task(clip, method, dataset.class_names, template=dataset.template)
    best = -1.0
    for rate in LEARNING_RATES if "val" in dataset.splits else LEARNING_RATES[:1]:
        found = clipbias.fit(task, dataset, shots=SHOTS, learning_rate=rate, epochs=EPOCHS, progress=False)
        score = 0.0
        if "val" in dataset.splits:
            score = clipbias.evaluate(task, found, some(dataset.split("val"))).accuracy
        print(f"{METHODS[method]}, learning rate {rate}: {score:.1f} % of the validation images")
        if score > best:
            best, learnables, chosen = score, found, rate
    return task, learnables, chosen


tuned = {method: tune(method) for method in METHODS}

# %% [markdown]
# ## The table
#
# Accuracy on test images, which chose nothing, with the binomial standard error. With two accuracies whose errors reach
# each other, nothing has been shown; the project's own tables average over seeds and datasets (`clipbias table1`).

# %%
from clipbias.tuning import parameter_count

rows = [["zero-shot", 0, None, clipbias.evaluate(zero_shot, {}, test)]]
for method, (task, learnables, rate) in tuned.items():
    count = parameter_count(learnables)["total"]
    rows.append([METHODS[method], count, rate, clipbias.evaluate(task, learnables, test)])


def table(rows):
    """Rows with accuracies as a table that a notebook shows."""
    shown = [[*rest, f"{score.accuracy:.1f} ± {score.standard_error:.1f}"] for *rest, score in rows]
    return tabulate(shown, ["", "parameters", "learning rate", "accuracy in %"], tablefmt="html", missingval="–")


table(rows)

# %% [markdown]
# ## What do they look at?
#
# Relevancy follows the gradient of a class's logit through the attention of all layers, and tells how much each patch,
# each prompt and each word counts for it. Beside a map, where there are prompts, a bar shows their share.

# %%
picture = PICTURE if PICTURE is not None else dataset.split("test").image(0)


def look(task, learnables):
    """The picture, and its relevancy for the most likely class."""
    title = f"{METHODS.get(task.method_name, 'zero-shot')}: {clipbias.predict(task, learnables, [picture])}"
    return clipbias.plot(task, learnables, [picture], titles=[title.replace(", ", "\n")])


look(zero_shot, {})

# %%
look(*tuned["ivlp"][:2])

# %%
look(*tuned["bias"][:2])

# %% [markdown]
# ## The equivalent bias of prompts
#
# The causal test runs the frozen and the tuned model side by side and takes attention, scale and values, each from
# either of them, in every combination. It measures what each carries of the gain. A constant, measured on training
# images, is then added to the frozen model and subtracted from the tuned one: how much of the gain does it keep, and
# how much is lost without it? Every sentence follows from a 95 % interval, and names its outcome.

# %%
from clipbias.explain import Model, Study, StudyOptions, run_study

folder = Path(FOLDER)
models = [Model("zero_shot", "zero-shot", "zero_shot", zero_shot, {})]
models += [
    Model(method, METHODS[method], method, task, learnables, seed=1)
    for method, (task, learnables, _) in tuned.items()
    if method != "bias_by_kind"
]
options = StudyOptions(images=300, control_images=100, training_images=128)
study = Study(models, test, options, folder / "study", training=dataset.split("train"))
results = run_study(
    study,
    folder / "study",
    dataset={"name": DATASET, "split": "test"},
    config={},
    sections=("factorial", "constants", "verdict"),
)
for model in study.tuned:
    print(model.label, *results.scalars["verdict"][model.key]["sentences"], sep="\n  ")

# %% [markdown]
# The prompts' equivalent bias is an adapter of bias tuning, to be used as any other. Below are the frozen
# model with the prompts' constant in their place, as one vector per layer and as two, and the prompts themselves.

# %%
task, learnables, rate = tuned["ivlp"]
folder.mkdir(exist_ok=True)
clipbias.save_adapter(folder / "prompts.safetensors", task, learnables, notes={"seed": 1})
kept = [row for row in rows if row[0] in ("zero-shot", METHODS["ivlp"])]
for kind, name in (("vector", "one vector per layer"), ("kind", "two, by kind of token")):
    constant = clipbias.equivalent_bias(
        folder / "prompts.safetensors", some(dataset.split("train"), 128), kind, clip=clip
    )
    score = clipbias.evaluate(constant.task(clip), constant.learnables, test)
    kept.append([f"prompts as {name}", parameter_count(constant.learnables)["total"], None, score])

table(kept)

# %% [markdown]
# ## Take it along
#
# An adapter file holds all that was learned and what is needed to use it. A bias folds into the frozen weights, so the
# tuned model is an ordinary CLIP checkpoint, `CLIPModel.from_pretrained("first_hour/checkpoint")`, and costs nothing
# extra.

# %%
import shutil

from clipbias import export

task, learnables, rate = tuned["bias"]
notes = {"dataset": DATASET, "shots": SHOTS, "seed": 1}
clipbias.save_adapter(folder / "bias.safetensors", task, learnables, notes=notes)
adapter = clipbias.load_adapter(folder / "bias.safetensors")
shutil.rmtree(folder / "checkpoint", ignore_errors=True)
print(export.export(adapter, clip, folder / "checkpoint"))
for path in sorted((folder / "checkpoint").iterdir()):
    print(f"{path.name:<30} {path.stat().st_size:>12,} bytes")

# %% [markdown]
# The checkpoint is a model of its own, which gives the same answers zero-shot as the frozen model with
# the bias.

# %%
folded = clipbias.load(folder / "checkpoint")
again = clipbias.evaluate(clipbias.Task(folded, "zero_shot", dataset.class_names), {}, test)
print(again.accuracy == clipbias.evaluate(task, learnables, test).accuracy)

# %% [markdown]
# ## From here
#
# - `clipbias table1` makes the whole table, with seeds, datasets and intervals, and continues where it was stopped.
# - `clipbias explain` makes the report that this verdict is from, with its figures.
# - `clipbias app` opens a page to try adapters on pictures by hand.
# - A method of your own is one file: [methods](../methods.md).
