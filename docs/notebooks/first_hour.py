# %% [markdown]
# # The first hour
#
# Prompts that are learned for a frozen CLIP help it on a new task. *Understanding the Multi-modal Prompts of the
# Pre-trained Vision-Language Model* ([arXiv 2312.11570](https://arxiv.org/abs/2312.11570)) argues that they hardly
# change where CLIP looks, and mostly add a bias. This notebook trains prompts and a bias, shows what they look at,
# measures why prompts gain, and puts a bias in their place.
#
# It takes about four minutes on two CPU cores with the embedded demo, a CLIP small enough to come with the package. The
# next cell is the only one to change for another model and dataset.

# %%
MODEL = "demo"  # or "openai/clip-vit-base-patch16", for which a GPU is worth having
DATASET = "demo/fashion"  # or "eurosat", "folder", … with DATA_DIR, the folder that its images are in
DATA_DIR = None
PICTURE = None  # the path of a picture of your own; None takes one of the dataset's
SHOTS = 16  # training images per class
EPOCHS = None  # passes over the training images; None makes 300 steps at least
# Those that validation images selected for the demo. A method that is left out compares four on images held out.
LEARNING_RATES = {"ivlp": 0.02, "bias": 2.0, "bias_by_kind": 2.0}
IMAGES = 1000  # at most so many test images
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
from clipbias.training.device import keep_programs

keep_programs()  # each program is compiled once, also for the next time
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
# all others. Everything of CLIP itself stays frozen.

# %%
METHODS = {"ivlp": "prompts (IVLP)", "bias": "bias tuning", "bias_by_kind": "bias tuning by kind"}


def tune(method):
    """The tuned model."""
    rate = LEARNING_RATES.get(method)
    return clipbias.fit(clip, method, dataset, shots=SHOTS, learning_rate=rate, epochs=EPOCHS, progress=False)


tuned = {method: tune(method) for method in METHODS}

# %% [markdown]
# ## The table
#
# Accuracy on test images with its binomial standard error. Where the errors of two accuracies reach each other, the
# difference is not sure; `clipbias table1` averages over seeds and datasets.

# %%
from clipbias.tuning import parameter_count

rows = [["zero-shot", 0, zero_shot.evaluate(test)]]
for method, model in tuned.items():
    rows.append([METHODS[method], parameter_count(model.learnables)["total"], model.evaluate(test)])


def table(rows):
    """Rows with accuracies as a table that a notebook shows."""
    shown = [[*rest, f"{score.accuracy:.1f} ± {score.standard_error:.1f}"] for *rest, score in rows]
    return tabulate(shown, ["", "parameters", "accuracy in %"], tablefmt="html")


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
    return model.plot([picture], titles=[title.replace(": ", ":\n", 1).replace("; ", "\n")])


look(zero_shot)

# %%
look(tuned["ivlp"])

# %%
look(tuned["bias"])

# %% [markdown]
# The numbers behind the maps: how much of the picture's relevancy lies on the prompts.

# %%
maps = tuned["ivlp"].relevancy([picture])
patches = clip.config.vision.patches
float(maps.vision[0, patches:].sum() / maps.vision[0].sum())

# %% [markdown]
# ## Why do they gain?
#
# The causal test runs the frozen and the tuned model side by side, with attention from either and what is added to
# tokens from either. Then it exchanges what is added between images. In brackets are 95 % intervals. `clipbias.explain`
# writes the whole report into a folder; here it does this test alone.

# %%
from clipbias.analysis import StudyOptions

folder = Path(FOLDER)
study = clipbias.explain(
    [tuned["ivlp"], tuned["bias"]],
    dataset,
    folder / "study",
    sections=("causal",),
    options=StudyOptions(image_limit=300, training_images=128),
    progress=False,
)
print(study.sentence)
print(study.labels)

# %% [markdown]
# ## What can prompts be replaced by?
#
# The mean of what prompts add is an adapter of bias tuning, to be used as any other. Below it takes the place of the
# prompts, as one vector per layer and as two. Beside it stand a bias that was trained on the same images as the
# prompts, and one that was fitted to their predictions on images without labels (`clipbias.distil`). The same accuracy
# does not mean the same decisions.

# %%
replaced = [row for row in rows if row[0] in ("zero-shot", METHODS["ivlp"])]
for form, name in (("vector", "one vector per layer"), ("kind", "two vectors per layer")):
    bias = clipbias.equivalent_bias(tuned["ivlp"], some(dataset.split("train"), 128), form)
    replaced.append([f"mean of the prompts, {name}", parameter_count(bias.learnables)["total"], bias.evaluate(test)])
replaced += [row for row in rows if row[0] in (METHODS["bias"], METHODS["bias_by_kind"])]
fitted = clipbias.distil(tuned["ivlp"], dataset, form="vector", steps=500, progress=False).model
replaced.append(
    ["fitted to the prompts, one vector per layer", parameter_count(fitted.learnables)["total"], fitted.evaluate(test)]
)

table(replaced)

# %% [markdown]
# ## Take it along
#
# An adapter file holds all that was learned and what is needed to use it. A bias folds into the frozen weights, so the
# tuned model is an ordinary CLIP checkpoint, `CLIPModel.from_pretrained("first_hour/checkpoint")`, and costs nothing
# extra.

# %%
import shutil

tuned["bias"].save(folder / "bias.safetensors")
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
# - `clipbias explain` makes the report that begins with these sentences, with its figures.
# - `clipbias app` opens a page to try adapters on pictures by hand.
# - A method of your own is one file: [methods](../methods.md).
