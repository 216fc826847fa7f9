"""What predicts how much of a method's gain two vectors per layer keep, and how much is lost without them.

    python -m tools.what_predicts --predictors=docs/images/predictors

Trains 72 IVLPs on the embedded demo: 1, 2 or 4 prompts per tower and layer; in the first layer or in all four; with 4
images per class for 100 steps, 4 for 300 or 16 for 300; on ten digits, ten kinds of clothes, and ten and sixty classes
of emoji. Then regresses the shares kept and lost on the logarithms (base 2) of these numbers and on the pictures, by
least squares over the adapters with a sure gain, each once. Intervals are percentiles of 2,000 bootstraps of them.
Writes every adapter's numbers as CSV, the coefficients as JSON, and prints them.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import app, flags

import clipbias
from clipbias.clip import Clip
from clipbias.data import Dataset, Split, protocols
from clipbias.explain.bias_adapter import raw_batches
from clipbias.explain.block_changes import reference_adaptation
from clipbias.explain.effects import KEPT, LOST, OUTCOMES, measure, summarize_replacements
from clipbias.explain.equivalent_bias import measure_equivalent_bias
from clipbias.explain.intervention_classifier import InterventionClassifier
from clipbias.explain.replacement_names import PLAIN
from clipbias.explain.uncertainty import RESAMPLES, excludes, interval
from clipbias.io import write_text
from clipbias.report.captioned import write_csv
from clipbias.tuned_model import TunedModel
from clipbias.tuning import Recipe, Task

_TO = flags.DEFINE_string("predictors", "predictors", "The files to write, without their endings.")
DATASETS = (("demo/digits", 10), ("demo/fashion", 10), ("demo/emoji", 10), ("demo/emoji", 60))
PROMPTS, DEPTHS = (1, 2, 4), (1, 4)
TRAININGS = ((4, 100), (4, 300), (16, 300))  # images per class, steps
RATE = 0.05
BATCH = 100
# What an adapter's share is regressed on, as logarithms to the base 2: a coefficient is what doubling changes.
FACTORS = ("prompts", "depth", "shots", "steps", "classes")


def adapters(clip: Clip) -> Iterator[dict[str, Any]]:
    """Trains and measures one adapter after another; those of one shape, which share their programs, in turn."""
    seed = 0
    for name, classes in DATASETS:
        dataset = clipbias.data.load(name)
        if classes < len(dataset.class_names):
            dataset = dataset.with_classes(range(0, len(dataset.class_names), len(dataset.class_names) // classes))
        for prompts, depth in itertools.product(PROMPTS, DEPTHS):
            for shots, steps in TRAININGS:
                seed += 1
                recipe = Recipe(learning_rate=RATE, steps=steps)
                model = clipbias.fit(
                    clip,
                    "ivlp",
                    dataset,
                    shots=shots,
                    seed=seed,
                    recipe=recipe,
                    progress=False,
                    text_tokens=prompts,
                    vision_tokens=prompts,
                    depth=depth,
                )
                numbers = one_adapter(model, dataset, shots=shots, seed=seed)
                place = {"dataset": name, "prompts": prompts, "depth": depth, "shots": shots, "steps": steps}
                yield place | {"classes": classes, "seed": seed, **numbers}
        jax.clear_caches()


def one_adapter(model: TunedModel, dataset: Dataset, *, shots: int, seed: int) -> dict[str, Any]:
    """The gain of a tuned model, and the shares of it that are kept and lost, in both outcomes."""
    task = model.task
    learnables = model.learnables
    train = protocols.few_shot(dataset, shots=shots, seed=seed).source.split("train")
    logits = form_logits(task, learnables, task.init(seed), train, dataset.split("test"))
    measured = measure(logits, dataset.split("test").labels)
    numbers = summarize_replacements(measured, ("reference", f"{KEPT}:{PLAIN}", f"{LOST}:{PLAIN}", "tuned"))
    numbers_of_adapter: dict[str, Any] = {}
    for outcome in OUTCOMES:
        test = numbers[outcome]
        numbers_of_adapter |= {f"{outcome} gain": test.gain.value, f"{outcome} sure": excludes(test.gain) > 0}
        for kind, number in ((KEPT, test.kept[PLAIN]), (LOST, test.lost[PLAIN])):
            numbers_of_adapter[f"{outcome} {kind}"] = None if number.share is None else number.share.value
    return numbers_of_adapter


def form_logits(task: Task, learnables: Any, initial: Any, train: Split, test: Split) -> np.ndarray:
    """Logits `[n, 4, C]` of the frozen model, with two vectors added, the tuned model without them, and as it is."""
    clip = task.clip
    resizing = clip.preprocessing.resizing
    biases, _ = measure_equivalent_bias(task, clip.params, learnables, initial, raw_batches(train, resizing, 32))
    classify = InterventionClassifier(
        task,
        clip.params,
        learnables,
        reference_adaptation(task, initial),
        {PLAIN: {tower: bias.constants(PLAIN) for tower, bias in biases.items()}},
    )
    tuned = jax.jit(task.logits)
    batches = []
    for raw, mask in raw_batches(test, resizing, BATCH):
        images = clip.preprocessing.normalize(jnp.asarray(raw))
        every = jnp.concatenate([classify(images), tuned(clip.params, learnables, images)[None]])
        batches.append(np.asarray(jnp.moveaxis(every, 0, 1))[np.asarray(mask)])
    return np.concatenate(batches)


def regress(frame: pd.DataFrame, share: str, *, seed: int = 0) -> dict[str, Any]:
    """Least squares of a share on `FACTORS` and the pictures, over the adapters whose gain is sure.

    Args:
      frame: a line for each adapter.
      share: the column of the shares, such as "calibrated kept".

    Returns:
      `adapters`: how many; `explained`: the share of variance; and by name `{value, low, high}`: what doubling a factor
      changes, or what other pictures than digits change. Shares are cut to -1 … 2, since a gain near 0 makes any.
    """
    sure = frame[frame[f"{share.split()[0]} sure"]]
    names, x, y = design(sure, share)
    fitted = np.linalg.lstsq(x, y, rcond=None)[0]
    draw = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        rows = draw.integers(0, len(y), len(y))
        draws.append(np.linalg.lstsq(x[rows], y[rows], rcond=None)[0])
    low, high = interval(np.array(draws))
    explained = 1 - ((y - x @ fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    numbers = {
        name: {"value": float(fitted[k]), "low": float(low[k]), "high": float(high[k])} for k, name in enumerate(names)
    }
    return {"adapters": len(y), "mean": float(y.mean()), "explained": float(explained), "coefficients": numbers}


def design(frame: pd.DataFrame, share: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the columns, the matrix `[n, q]` whose first column is 1, and the shares `[n]`."""
    pictures = [name for name in dict.fromkeys(frame["dataset"]) if name != DATASETS[0][0]]
    columns = [np.ones(len(frame)), *(np.log2(frame[name].to_numpy(float)) for name in FACTORS)]
    columns += [(frame["dataset"] == name).to_numpy(float) for name in pictures]
    return (
        ["constant", *FACTORS, *pictures],
        np.stack(columns, axis=1),
        frame[share].astype(float).clip(-1, 2).to_numpy(),
    )


def words(regression: Mapping[str, Any], share: str) -> str:
    """The coefficients in a few lines."""
    lines = [
        f"{share}: {regression['adapters']} adapters, mean {regression['mean']:.2f}, R² {regression['explained']:.2f}"
    ]
    for name, number in regression["coefficients"].items():
        lines.append(f"  {name:14} {number['value']:+.2f} ({number['low']:+.2f} to {number['high']:+.2f})")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Trains, measures, regresses and writes."""
    rows = []
    for row in adapters(clipbias.load("demo")):
        rows.append(row)
        print(json.dumps(row), flush=True)
    frame = pd.DataFrame(rows)
    write_csv(Path(f"{_TO.value}.csv"), frame)
    regressions = {
        f"{outcome} {kind}": regress(frame, f"{outcome} {kind}") for outcome in OUTCOMES for kind in (KEPT, LOST)
    }
    write_text(Path(f"{_TO.value}.json"), json.dumps(regressions, indent=1) + "\n")
    print("\n".join(words(numbers, share) for share, numbers in regressions.items()))


if __name__ == "__main__":
    app.run(main)
