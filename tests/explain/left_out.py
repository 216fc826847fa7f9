"""Prompt parts of a reference run by layer, and statistics of them with each sample left out, by hand."""

import numpy as np

from tests.reference import sections, statistics


def prompt_parts(reference, saved, tower, slots):
    return [
        statistics.decomposition(reference.clip, tower, layer, block, slots)
        for layer, block in enumerate(getattr(saved, tower).blocks)
    ]


def masses(reference, saved, tower, slots, queries):
    """Of every sample: attention on prompts by layer and head, mean over queries."""
    layers = prompt_parts(reference, saved, tower, slots)
    return [np.array([layer["mass"][i][:, rows].mean(-1) for layer in layers]) for i, rows in enumerate(queries)]


def without_each(reference, saved, tower, slots, queries, bias):
    """The statistics without each sample, `[n, L]`, computed anew from all that is left."""
    by_statistic = {name: [] for name in ("constancy", "bias_likeness", "bias_cosine/bias")}
    layers = prompt_parts(reference, saved, tower, slots)
    for left_out in range(len(queries)):
        rows = {name: [] for name in by_statistic}
        for layer, of_layer in enumerate(layers):
            remaining = [i for i in range(len(queries)) if i != left_out]
            constancy = sections.constancy(
                [dict(zip(queries[i].tolist(), of_layer["prompt"][i][queries[i]], strict=True)) for i in remaining]
            )
            rows["constancy"].append(float(constancy["constancy"]))
            rows["bias_likeness"].append(float(constancy["bias_likeness"]))
            lengths = np.linalg.norm(constancy["vector"]) * np.linalg.norm(bias[layer])
            rows["bias_cosine/bias"].append(constancy["vector"] @ bias[layer] / lengths)
        for name, values in rows.items():
            by_statistic[name].append(values)
    return {name: np.array(values) for name, values in by_statistic.items()}


def jackknife_error(values):
    n = len(values)
    return np.sqrt((n - 1) / n * ((values - values.mean(0)) ** 2).sum(0))
