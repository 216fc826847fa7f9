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
EPOCHS = None  # passes over the training images; None makes 300 steps at least
LEARNING_RATES = (0.02, 0.5)  # larger than the paper's 0.0025, for few images; validation images choose
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
zero_shot = clipbias.fit(clip, "zero_shot", dataset)
zero_shot.evaluate(test)

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
    """The model with the learning rate that does best on validation images, and this rate."""
    best = -1.0
    for rate in LEARNING_RATES if "val" in dataset.splits else LEARNING_RATES[:1]:
        model = clipbias.fit(clip, method, dataset, shots=SHOTS, learning_rate=rate, epochs=EPOCHS, progress=False)
        score = 0.0
        if "val" in dataset.splits:
            score = model.evaluate(some(dataset.split("val"))).accuracy
        print(f"{METHODS[method]}, learning rate {rate}: {score:.1f} % of the validation images")
        if score > best:
            best, best_model, best_rate = score, model, rate
    return best_model, best_rate


tuned = {method: tune(method) for method in METHODS}

# %% [markdown]
# ## The table
#
# Accuracy on test images, which chose nothing, with the binomial standard error. With two accuracies whose errors reach
# each other, nothing has been shown; the project's own tables average over seeds and datasets (`clipbias table1`).

# %%
from clipbias.tuning import parameter_count

rows = [["zero-shot", 0, None, zero_shot.evaluate(test)]]
for method, (model, rate) in tuned.items():
    rows.append([METHODS[method], parameter_count(model.learnables)["total"], rate, model.evaluate(test)])


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


def look(model):
    """The picture, and its relevancy for the most likely class."""
    title = f"{METHODS.get(model.task.method_name, 'zero-shot')}: {model.predict([picture])}"
    return model.plot([picture], titles=[title.replace(", ", "\n")])


look(zero_shot)

# %%
look(tuned["ivlp"][0])

# %%
look(tuned["bias"][0])

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
models = [Model("zero_shot", "zero-shot", "zero_shot", zero_shot.task, {})]
for method in ("ivlp", "bias"):
    model = tuned[method][0]
    models.append(Model(method, METHODS[method], method, model.task, model.learnables, seed=1))
options = StudyOptions(image_limit=300, control_images=100, training_images=128)
study = Study(models, test, options, folder / "study", training=dataset.split("train"))
results = run_study(
    study,
    folder / "study",
    dataset=DATASET,
    sections=("factorial", "constants", "verdict"),
)
for verdict in results.verdict:
    print(verdict.label, *verdict.sentences, sep="\n  ")

# %% [markdown]
# The prompts' equivalent bias is an adapter of bias tuning, to be used as any other. Below are the frozen
# model with the prompts' constant in their place, as one vector per layer and as two, and the prompts themselves.

# %%
prompts, rate = tuned["ivlp"]
replaced = [row for row in rows if row[0] in ("zero-shot", METHODS["ivlp"])]
for form, name in (("vector", "one vector per layer"), ("kind", "two, by kind of token")):
    bias = clipbias.equivalent_bias(prompts, some(dataset.split("train"), 128), form)
    replaced.append([f"prompts as {name}", parameter_count(bias.learnables)["total"], None, bias.evaluate(test)])

table(replaced)

# %% [markdown]
# ## Take it along
#
# An adapter file holds all that was learned and what is needed to use it. A bias folds into the frozen weights, so the
# tuned model is an ordinary CLIP checkpoint, `CLIPModel.from_pretrained("first_hour/checkpoint")`, and costs nothing
# extra.

# %%
import shutil

tuned["bias"][0].save(folder / "bias.safetensors")
model = clipbias.load_adapter(folder / "bias.safetensors", clip)
shutil.rmtree(folder / "checkpoint", ignore_errors=True)
print(model.export(folder / "checkpoint"))
for path in sorted((folder / "checkpoint").iterdir()):
    print(f"{path.name:<30} {path.stat().st_size:>12,} bytes")

# %% [markdown]
# The checkpoint is a model of its own, which gives the same answers zero-shot as the frozen model with
# the bias.

# %%
folded = clipbias.load(folder / "checkpoint")
again = clipbias.fit(folded, "zero_shot", class_names=dataset.class_names).evaluate(test)
print(again.accuracy == model.evaluate(test).accuracy)

# %% [markdown]
# ## From here
#
# - `clipbias table1` makes the whole table, with seeds, datasets and intervals, and continues where it was stopped.
# - `clipbias explain` makes the report that this verdict is from, with its figures.
# - `clipbias app` opens a page to try adapters on pictures by hand.
# - A method of your own is one file: [methods](../methods.md).
