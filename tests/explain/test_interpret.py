"""Adapters of all methods interpreted together."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.explain.interpret import (
    InterpretOptions,
    Learned,
    adapter_names,
    interpret,
    learned_vector,
    require_one_base,
)
from clipbias.tuning import Learnables, Task
from clipbias.tuning.adapter import Adapter, load_adapter, save_adapter
from tests.explain.models import CLASS_NAMES, tuned


def saved(folder: Path, task: Task, learnables: Learnables, method: str, **notes: Any) -> Learned:
    path = folder / f"{method}-{len(list(folder.iterdir()))}.safetensors"
    save_adapter(path, task, jax.tree.map(np.asarray, learnables), notes=notes)
    return Learned(path.stem, str(path), load_adapter(path), task)


def test_every_method(clip: Clip, tmp_path: Path) -> None:
    methods = ("zero_shot", "vpt", "ivlp", "maple", "taskres", "bias")
    learned = [saved(tmp_path, *tuned(clip, method), method, dataset="d", seed=1) for method in methods]
    told: list[str] = []
    found = interpret(clip, learned, InterpretOptions(words=2), advance=told.append)
    assert told == [one.name for one in learned]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    with_words = {entry["adapter"].partition("-")[0] for entry in found["words"]}
    assert with_words == {"ivlp", "maple"}
    assert all(len(entry["nearest"]) == 2 and entry["layer"] == 0 for entry in found["words"])
    assert {row["adapter"] for row in found["norms"]} == {one.name for one in learned[1:]}
    assert "deeper prompts of 2 adapters were not asked for" in found["remarks"][0]
    # VPT and IVLP learn vision prompts of one shape; all others stand alone.
    (pair,) = found["projections"]
    assert pair["arrays"] == "vision_prompts [3, 4, 24]"
    assert [name.partition("-")[0] for name in pair["adapters"]] == ["vpt", "ivlp"]
    assert "too few" in pair["sentence"]


def test_deeper_words_and_contexts_of_each_class(clip: Clip, tmp_path: Path) -> None:
    specific = saved(tmp_path, *tuned(clip, "coop", class_specific=True), "coop")
    deep = saved(tmp_path, *tuned(clip, "maple"), "maple")
    entries = interpret(clip, [specific, deep], InterpretOptions(words=1, deeper=True))["words"]
    of_classes = [entry for entry in entries if entry["adapter"] == specific.name]
    assert [entry["class"] for entry in of_classes] == [name for name in CLASS_NAMES for _ in range(4)]
    assert [entry["prompt"] for entry in of_classes] == [0, 1, 2, 3] * 3
    places = {(entry["layer"], entry["prompt"]) for entry in entries if entry["adapter"] == deep.name}
    assert places == {(layer, prompt) for layer in range(3) for prompt in range(2)}


def test_biases_set_apart_by_dataset_separate(clip: Clip, tmp_path: Path) -> None:
    task, rng = Task(clip, "bias", CLASS_NAMES), np.random.default_rng(0)
    shapes = {name: value.shape for name, value in task.init().items()}
    centres = {dataset: {name: rng.normal(size=shape) for name, shape in shapes.items()} for dataset in "abc"}
    learned = [
        saved(
            tmp_path,
            task,
            {name: (centre + 0.05 * rng.normal(size=centre.shape)).astype("f") for name, centre in own.items()},
            "bias",
            dataset=dataset,
            seed=seed,
        )
        for dataset, own in centres.items()
        for seed in (1, 2)
    ]
    found = interpret(clip, learned, InterpretOptions())
    assert [(p["tower"], len(p["pca"])) for p in found["projections"]] == [("vision", 6), ("text", 6)]
    for projection in found["projections"]:
        assert projection["silhouette"]["dataset"] > 0.9 > 0 > projection["silhouette"]["seed"]
        assert "6 points" in projection["sentence"]


def test_change_is_measured_from_where_the_seed_started(clip: Clip, tmp_path: Path) -> None:
    task = Task(clip, "vpt", CLASS_NAMES)
    step = 0.02 * np.ones_like(task.init(0)["vision_prompts"])
    learned = [
        saved(tmp_path, task, {"vision_prompts": task.init(seed)["vision_prompts"] + size * step}, "vpt", seed=seed)
        for seed, size in ((1, 1.0), (2, 2.0), (3, 4.0))
    ]
    (change,) = interpret(clip, learned, InterpretOptions(change=True))["projections"]
    assert change["explained"] == pytest.approx([1, 0], abs=1e-5)  # all along one line
    (values,) = interpret(clip, learned, InterpretOptions())["projections"]
    assert values["explained"][0] < 0.9


def test_maples_vision_prompts_are_derived(clip: Clip) -> None:
    task, learnables = tuned(clip, "maple")
    arrays, vector = learned_vector(task, learnables, "vision")
    assert arrays == "vision_prompts [3, 2, 24]"
    text = np.concatenate([learnables["text_context"][None], learnables["text_prompts"]])
    expected = [
        prompts @ kernel + bias
        for prompts, kernel, bias in zip(
            text, np.asarray(learnables["projection_kernel"]), np.asarray(learnables["projection_bias"]), strict=True
        )
    ]
    np.testing.assert_allclose(vector, np.ravel(expected), rtol=1e-5, atol=1e-6)


def test_adapters_of_two_base_models() -> None:
    def adapter(fingerprint: str) -> Adapter:
        return Adapter({}, "bias", {}, ("a",), "a {}.", f"model {fingerprint}", fingerprint)

    require_one_base([("x", adapter("1")), ("y", adapter("1"))])
    with pytest.raises(ClipbiasError, match=r"2 base models.*x to 'model 1', y to 'model 2'"):
        require_one_base([("x", adapter("1")), ("y", adapter("2"))])


def test_names_of_adapters() -> None:
    sources = ["a/one/adapter.safetensors", "b/bias.safetensors", "c/bias.safetensors", "one.safetensors"]
    assert adapter_names(sources, generic="adapter.safetensors") == ["one", "bias", "bias (2)", "one (2)"]
