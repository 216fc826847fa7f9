"""The binary `explain` as a user runs it, on a tiny model and images of noise."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import clipbias
import experiments.evaluate
import experiments.explain
from clipbias import TunedModel, data
from clipbias.analysis.results_file import ARRAYS, load_arrays, load_results
from clipbias.analysis.sections import all_sections
from clipbias.errors import ClipbiasError
from clipbias.studies import bind_models, few_shot_split
from clipbias.tuning import Task
from clipbias.tuning.adapter import write_adapter
from clipbias.tuning.tuned import Tuned
from configs.explain import ExplainSettings
from experiments.explain import adapters_by_dataset
from experiments.inputs import find_adapter, find_adapters
from tests.end_to_end.conftest import answer_here, assert_recorded, succeed_here

SETTINGS = {"dataset": "folder", "batch_size": 4, "replacement_steps": 2}
CAUSAL = ("causal",)


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param(CAUSAL, marks=pytest.mark.ci, id="causal"),
        pytest.param(tuple(all_sections()), marks=pytest.mark.long, id="all"),
    ],
)
def test_a_study_with_its_report(sections, images, adapters, tmp_path):
    """Of one tuned model; the command of the documentation explains two.

    Of what answers the report's question, and of everything. The numbers of a section are compared in `tests/analysis`,
    its figures in `tests/report`.
    """
    whole = sections != CAUSAL
    section_names = "all" if whole else ",".join(sections)
    settings = SETTINGS | {"data_dir": str(images), "adapters": adapters[0], "sections": section_names}
    printed, _ = succeed_here(experiments.explain, settings, tmp_path)
    report = tmp_path / "report" / "report.html"
    assert str(report) in printed
    results = load_results(tmp_path)
    (method,) = results.methods
    assert method.sentence in printed and method.sentence in report.read_text("utf-8")
    assert ("Explore the images" in report.read_text("utf-8")) == whole
    assert_recorded(tmp_path, "results.json", "results.npz")
    assert [model.key for model in results.models] == ["zero_shot", "ivlp"] and method.models == ("ivlp",)
    assert set(results.sections) == {"predictions", *sections}
    test = results.sections["causal"].models["ivlp"]
    right = test.outcomes.correct[:, test.ways.index("tuned")]
    assert 100 * right.mean() == pytest.approx(results.models[1].accuracy)
    if whole:
        before = results.sections["vision_attention"]["zero_shot"].clip.distance.mean
        after = results.sections["vision_attention"]["ivlp"].without_prompt.distance.mean
        np.testing.assert_allclose(before[0], after[0], rtol=1e-5)
        assert np.abs(before[1:] - after[1:]).max() > 1e-3
    arrays = load_arrays(tmp_path / ARRAYS)
    assert all(np.isfinite(values).all() for name, values in arrays.items() if name.endswith("/mean"))


@pytest.mark.ci
def test_several_datasets_get_an_overview_and_a_second_run_finds_all_there(model, images, tmp_path):
    settings = {"datasets": ("folder",), "sections": "text_attention,vision_attention", "model": str(model)}
    settings |= {"data_dir": str(images), "batch_size": 4}
    made = []
    for _ in range(2):
        status, output = answer_here(experiments.explain, settings, tmp_path)
        assert status == 0, output
        made.append({path: path.stat().st_mtime_ns for path in (tmp_path / "folder" / "parts").glob("*.npz")})
    assert len(made[0]) == 2 and made[0] == made[1]
    assert (tmp_path / "folder" / "report" / "report.html").exists()
    assert_recorded(tmp_path, "overview.html")


def test_adapters_are_named_apart_and_studied_on_their_own_datasets(model, tmp_path):
    clip = clipbias.load(model)
    dataset = data.load("demo/digits")
    task = Task(clip, "bias", dataset.class_names)
    for name, seed in (("digits", 1), ("digits", 2), ("fashion", 1)):
        path = tmp_path / f"bias-demo_{name}-seed{seed}.safetensors"
        notes = {"seed": seed, "dataset": f"demo/{name}", "training": f"identity of that on {name}"}
        write_adapter(path, Tuned(task, task.init(), notes))
    found = find_adapters(f"{tmp_path}/bias-*,{tmp_path}")
    digits, fashion = ("demo/digits", "demo/fashion")
    by_dataset = adapters_by_dataset(ExplainSettings(), found)
    names = {name: [Path(source).stem[-5:] for _, source in group] for name, group in by_dataset.items()}
    assert names == {digits: ["seed1", "seed2"], fashion: ["seed1"]}
    assert adapters_by_dataset(ExplainSettings(datasets=(fashion,)), found) == {fashion: by_dataset[fashion]}
    with pytest.raises(ClipbiasError, match=r"none of .*adapters was trained on demo/emoji"):
        adapters_by_dataset(ExplainSettings(datasets=("demo/emoji",)), found)
    assert adapters_by_dataset(ExplainSettings(dataset=digits), found) == {digits: found}
    with pytest.raises(ClipbiasError, match=r"vpt-\* holds no adapter; give adapter files"):
        find_adapters(f"{tmp_path}/vpt-*")
    with pytest.raises(ClipbiasError, match=r"names 3 adapters, .*; this command takes one"):
        find_adapter(str(tmp_path))
    # The same images with another start are no seed of their own.
    adapter, _ = by_dataset[digits][0]
    again = dataclasses.replace(adapter.bind(clip), notes={**adapter.notes, "start_seed": 11})
    (model,) = bind_models([TunedModel.of(again)], dataset)[1:]
    assert (model.seed, model.few_shot_split) == (11, few_shot_split(adapter.notes))
