"""Sweeps: which runs are done, in which groups, what is written, and what happens where a run fails or is stopped."""

import dataclasses
import importlib
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

import clipbias
from clipbias.data import Dataset
from clipbias.data.held_out import POLICY
from clipbias.data.images import pictures
from clipbias.errors import ClipbiasError
from clipbias.io import data_path, read_json_lines
from clipbias.report.sweep_tables import write_tables
from clipbias.settings import from_config
from clipbias.training import calibration, loop
from clipbias.training.loop import validation_images
from clipbias.training.predictions import KnownPredictions
from clipbias.training.rates import PER_CELL, PER_METHOD, Rates, select_learning_rates
from clipbias.training.run import make_job, under_policy
from clipbias.training.spec import TEST, VALIDATION, Row, RunSpec, group_key, make_groups, part_of, run_names
from clipbias.training.sweep import RESULTS, VALIDATED, parse_part
from clipbias.training.workdir import SweepPaths, open_workdir, write_json
from clipbias.tuning import Task
from clipbias.tuning.adapter import start_seed
from configs.lab import LabSettings, get_config
from configs.table1 import Table1Settings
from experiments import evaluate, lab, table1, train
from tests.training.conftest import TinySweep, colour_split, score_of
from tests.tuning.test_registry import CLASS


def test_every_run_once_and_a_failing_one_costs_no_other(clip, colours, recipe, tmp_path):
    file = tmp_path / "broken.py"
    start = CLASS.replace("trains = False", "trains = True").replace("return {}", 'return {"scale": 1.0}')
    file.write_text(start.replace("return Adaptation()", "return 1 / 0"))
    tiny = TinySweep(clip, colours, recipe, tmp_path)
    specs = tiny.specs(str(file), "zero_shot", "taskres")
    rows = tiny.run(specs)
    assert [row["status"] for row in rows] == ["failed"] * 2 + ["ok"] * 3
    assert rows[0]["error"] == "ZeroDivisionError: division by zero"
    assert rows[-1]["parameters"] == 3 * clip.config.projection_width
    assert [row["key"] for row in rows] == [spec.key for spec in specs]
    assert read_json_lines(tmp_path / RESULTS) == rows
    # Seeds side by side have equal shares of what they ran together; nothing is trained for zero-shot.
    costs = [row["training_seconds"] for row in rows[2:]]
    assert costs[0] == 0 < costs[1] == costs[2]
    facts = {specs[2].key: {"choice": {"tried": 3}}}  # today's, such as rates that were compared since
    again = TinySweep(clip, colours, recipe, tmp_path).run(specs, facts=facts)
    assert again[3:] == rows[3:] and again[0]["error"] == rows[0]["error"]
    assert again[2] == rows[2] | facts[specs[2].key] and read_json_lines(tmp_path / RESULTS) == again
    assert not [*tmp_path.glob("checkpoints/*")]
    parts = TinySweep(clip, colours, recipe, tmp_path / "parts")
    assert [row["method"] for row in parts.run(specs[2:], part=(0, 2))] == ["zero_shot"]
    both = parts.run(specs[2:], part=(1, 2))
    assert [(row["correct"], row["loss"]) for row in both] == [(row["correct"], row["loss"]) for row in rows[2:]]


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:the (tuned model|training loss)")
def test_another_start_on_the_same_images(clip, colours, recipe, tmp_path):
    """A run with a start of its own has the few-shot split of its seed, and the learnables' start of the other."""
    recipe = dataclasses.replace(recipe, learning_rate=1e-6, warmup_learning_rate=1e-6)  # close to the start
    tiny = TinySweep(clip, colours, recipe, tmp_path)
    specs = [*tiny.specs("vpt", seeds=(1, 5)), *tiny.specs("vpt", seeds=(1, 5), start_seed=5)]
    assert [spec.start_seed for spec in specs] == [None, None, 5, None]  # a seed's own start is no other run
    specs = specs[:3]
    assert len(make_groups(specs)) == 1 and len({spec.key for spec in specs}) == 3
    assert run_names(specs)[specs[2].key] == "vpt-colours-2shots-seed1-start5"
    rows = tiny.run(specs)
    drawn = [tiny.context.drawn(spec).source.split("train").digest for spec in specs]
    assert drawn[2] == drawn[0] != drawn[1] and rows[2]["learning_rate"] == rows[0]["learning_rate"]
    adapters = [tiny.adapter(spec, specs) for spec in specs]
    assert [start_seed(adapter.notes) for adapter in adapters] == [1, 5, 5]
    prompts = [adapter.learnables["vision_prompts"] for adapter in adapters]
    for prompt, seed in zip(prompts, (1, 5, 5), strict=True):
        np.testing.assert_allclose(prompt, Task(clip, "vpt", colours).init(seed)["vision_prompts"], atol=1e-3)
    assert np.abs(prompts[2] - prompts[1]).max() > 1e-7
    settings: dict[str, Any] = dict(shots=2, seed=1, start_seed=5, recipe=recipe, progress=False, mesh=tiny.mesh)
    fitted = clipbias.fit(clip, "vpt", colours, **settings)
    np.testing.assert_allclose(fitted.learnables["vision_prompts"], prompts[2], rtol=0, atol=1e-8)
    assert fitted.notes["start_seed"] == 5


def test_validation_images_are_those_of_each_split(clip, colours, recipe, tmp_path):
    """Runs with one start have splits of their own, and validation images of these."""
    splits = {name: split for name, split in colours.splits.items() if name != "val"}
    tiny = TinySweep(clip, dataclasses.replace(colours, splits=splits), recipe, tmp_path)
    specs = tiny.specs("bias", seeds=(1, 2), start_seed=1, score_on=VALIDATION)
    (group,) = make_groups(specs)
    first, second = (split.keys for split in validation_images(make_job(group, tiny.context)))
    assert set(first) != set(second)


def test_a_row_and_an_evaluation_fit_one_temperature(clip, colours, recipe, tmp_path):
    """On the same images, whatever the shots, and not on those that selected a setting; both say on how many."""
    test, val = colours.split("test"), colour_split(8, 7)
    dataset = dataclasses.replace(colours, splits={**colours.splits, "val": val})
    tiny = TinySweep(clip, dataset, recipe, tmp_path)
    (spec,) = tiny.specs("bias", shots=(1,), seeds=(1,))
    (row,) = tiny.run([spec])
    assert row["calibration"]["validation_images"] == 12 and row["calibration"]["temperature"] != 1
    evaluated = score_of(tiny.adapter(spec), clip, test, validation=val)["calibration"]
    assert row["calibration"] == pytest.approx(evaluated, abs=1e-3)
    fitted = []
    for policy in ("none", POLICY):
        protocol = under_policy(tiny.context.drawn(spec), dataclasses.replace(spec, validation=policy))
        of_row = tiny.context.temperature_evaluator(protocol, protocol.evaluations[0])
        notes = {"dataset": "colours", "validation": policy, "seed": 1}
        images = calibration.temperature_images(test, evaluate.validation_images(dataset, "colours", notes))
        assert of_row is not None and images is not None and of_row.split.keys == images.keys
        fitted.append(set(images.keys))
    assert fitted[0] != fitted[1]


@pytest.mark.ci
def test_the_predictions_beside_a_row_are_those_of_its_adapter(clip, colours, recipe, tmp_path):
    tiny = TinySweep(clip, colours, recipe, tmp_path)
    specs = tiny.specs("bias")
    test = colours.split("test")
    images = clip.preprocessing.normalize(pictures(test, range(len(test)), clip.preprocessing.resizing))
    rows = tiny.run(specs)
    compute = jax.jit(tiny.adapter(specs[0]).bind(clip).task.logits)
    for row, spec in zip(rows, specs, strict=True):
        adapter = tiny.adapter(spec)
        with np.load(tmp_path / "predictions" / f"bias-colours-2shots-seed{spec.seed}-test.npz") as stored:
            predicted, labels, log_probs = stored["predicted"], stored["labels"], stored["log_probs"]
        logits = np.asarray(compute(clip.params, adapter.learnables, images), np.float64)
        total = logsumexp(logits, axis=1)
        true_logits = logits[np.arange(len(labels)), labels]
        largest = np.pad(-np.sort(-logits)[:, :5], ((0, 0), (0, 2)), constant_values=-np.inf)  # of three classes
        expected = np.c_[largest - total[:, None], true_logits - total, total]
        np.testing.assert_allclose(log_probs, expected, rtol=2e-3, atol=1e-4)
        assert 100 * np.mean(predicted == labels) == pytest.approx(row["accuracy"])
        known = KnownPredictions([tmp_path]).find(adapter.bind(clip), test)
        np.testing.assert_array_equal(known, predicted)


def test_groups_differ_in_seed_and_rate_alone(clip, colours, recipe, tmp_path):
    tiny = TinySweep(clip, {name: dataclasses.replace(colours, name=name) for name in "ab"}, recipe, tmp_path)
    specs = tiny.specs("zero_shot", "bias", "taskres", shots=(1, 2), seeds=(1, 2, 3), learning_rates=(0.1, 0.2))
    groups = make_groups(specs)
    assert [spec for group in groups for spec in group] == specs
    assert [len(group) for group in groups] == [1, 6, 6, 6, 6] * 2
    for some in groups:
        assert len({(spec.method, spec.dataset, spec.shots) for spec in some}) == 1
    # All seeds of a rate stay together; where not even they fit, each rate is split.
    assert [len(some) for some in make_groups(specs, 4)[1:5]] == [3, 3, 3, 3]
    assert [len(some) for some in make_groups(specs, 2)[1:5]] == [2, 1, 2, 1]
    parts = [part_of(specs, (number, 3)) for number in range(3)]
    assert sorted(spec.key for part in parts for spec in part) == sorted(spec.key for spec in specs)
    assert {len(part) for part in parts} == {13, 18, 19} and make_groups(parts[1])[0] in groups
    assert len(set(run_names(specs).values())) == len(specs)
    assert run_names(specs)[specs[1].key] == "bias-a-1shots-rate0.1-seed1"
    # `None` for all images; where no image is drawn either.
    whole = tiny.specs("zero_shot", "bias", shots=(None,), seeds=(1,))
    assert [(spec.shots, spec.protocol) for spec in whole[:2]] == [(None, "few_shot"), (None, "full")]
    assert run_names(whole)[whole[1].key] == "bias-a-all-seed1"
    assert [spec.shots for spec in tiny.specs("zero_shot", shots=(4,))] == [None, None]
    assert parse_part("2/4") == (1, 4) and parse_part(None) == (0, 1)


@pytest.mark.ci
def test_learning_rates_train_side_by_side_and_fail_one_by_one(clip, colours, recipe, tmp_path, monkeypatch):
    """As rates by themselves, and they are chosen without a look at a test image."""
    sizes = []
    train = loop.train
    monkeypatch.setattr(loop, "train", lambda job, start: sizes.append(len(job.runs)) or train(job, start))

    def run(folder: str, *rates: float, dataset: Dataset = colours, **options: Any) -> list[Row]:
        tiny = TinySweep(clip, dataset, recipe, tmp_path / folder)
        return tiny.rows("taskres", learning_rates=rates, **options)

    together = run("a", 0.05, 0.01)
    assert [(row["learning_rate"], row["seed"]) for row in together] == [(0.05, 1), (0.05, 2), (0.01, 1), (0.01, 2)]
    broken = run("d", 0.05, 1e38)
    assert sizes == [4, 4, 2, 2]
    assert [(row["status"], row["learning_rate"]) for row in broken] == [("ok", 0.05)] * 2 + [("failed", 1e38)] * 2
    for joint, alone in zip(together, broken[:2], strict=False):
        assert joint["loss"] == pytest.approx(alone["loss"], rel=2e-5, abs=1e-6)
        assert joint["correct"] == alone["correct"]
    unread = {"read": lambda index: pytest.fail("a test image was read"), "contents": lambda paths: []}
    blind = {**colours.splits, "test": dataclasses.replace(colours.split("test"), **unread)}
    unseen = dataclasses.replace(colours, splits=blind)
    scored = run("e", 0.05, 0.01, dataset=unseen, score_on=VALIDATION)
    assert {(row["status"], row["validation"]) for row in scored} == {("ok", "validation split")}
    assert [row["loss"] for row in scored] == [row["loss"] for row in together]
    tiny = TinySweep(clip, colours, recipe, tmp_path / "a")
    specs = tiny.specs("taskres", learning_rates=(0.05, 0.01))
    for spec, row in zip(specs, scored, strict=True):
        score = score_of(tiny.adapter(spec, specs), clip, colours.split("val"))
        assert (score["correct"], score["images"]) == (row["validation_correct"], row["validation_images"])
    assert len(read_json_lines(tmp_path / "e" / VALIDATED)) == 4 and not (tmp_path / "e" / "adapters").exists()


def test_rates_of_a_cell_hold_for_its_shots_alone():
    rows = [
        {"method": "bias", "dataset": "a", "shots": count, "learning_rate": rate, "status": "ok"}
        | {"validation_accuracy": accuracy, "validation_loss": 1.0}
        for count, rate, accuracy in ((None, 0.1, 50.0), (None, 0.2, 60.0), (4, 0.1, 60.0), (4, 0.2, 50.0))
    ]
    rates = select_learning_rates(rows, PER_CELL)
    assert (rates.of("bias", "a", None), rates.of("bias", "a", 4), rates.of("bias", "a", 8)) == (0.2, 0.1, None)
    assert select_learning_rates(rows[:2], PER_METHOD).of("bias", "b", None) == 0.2


def test_what_the_command_line_gives_holds_for_methods_with_a_recipe_of_their_own(clip, colours, recipe, tmp_path):
    """As in Python, where the same arguments of `fit` do; an option of the method itself goes before."""
    methods = ("clap", "tip_adapter_f", "mmrl")
    own, given, both = (
        TinySweep(clip, colours, recipe, tmp_path).specs(*methods, seeds=(1,), given=given)
        for given in ((), ("epochs", "learning_rate"), ("epochs", "method_options.mmrl.epochs"))
    )
    assert [(spec.learning_rate, spec.recipe.epochs) for spec in own] == [(0.1, 300), (1e-3, 20), (1e-3, 50)]
    assert [(spec.learning_rate, spec.recipe.epochs) for spec in given] == [(0.05, 3)] * 3
    assert [(spec.learning_rate, spec.recipe.epochs) for spec in both] == [(0.1, 3), (1e-3, 3), (1e-3, 50)]
    assert given[2].options["epochs"] == 3 and given[2].recipe.warmup_epochs == own[2].recipe.warmup_epochs == 1


@pytest.mark.parametrize(
    ("protocol", "shots", "words"),
    [
        ("full", 4, "full trains on all images; give --config.shots=None"),
        ("base_to_new", None, "draws images of each class; give --"),
    ],
)
def test_a_protocol_does_not_say_other_shots_than_it_trains_on(protocol, shots, words, clip, colours, recipe, tmp_path):
    with pytest.raises(ClipbiasError, match=words):
        TinySweep(clip, colours, recipe, tmp_path, protocol=protocol).specs("bias", shots=(shots,))


def test_a_setting_that_is_given_now_is_another_than_the_one_that_was_selected(clip, colours, recipe, tmp_path):
    """A run on pictures of one's own is finished for the command that selected; a rate or option of the user is not."""
    tiny = TinySweep(clip, colours, recipe, tmp_path)
    (spec,), (other,) = (tiny.specs("bias", seeds=(1,)), tiny.specs("bias", seeds=(1,)))
    other = dataclasses.replace(other, options=other.options | {"text_tower": False})
    paths = SweepPaths(tmp_path, {}, single=True)
    row = spec.facts() | {"learning_rate": 0.4, "choice": {"options": {}}, "accuracy": 90.0, "zero_shot_accuracy": 80.0}
    row |= {"recipe": row["recipe"] | {"learning_rate": 0.4}, "validation": POLICY, "loss": 0.1, "images": 15}
    write_json(tmp_path / train.RESULT, row)
    paths.adapter(spec).touch()
    assert train.finished_row(paths, spec, tiny.context, compares_rates=True, calibrates=False) == row
    (searching,) = tiny.specs("gda", seeds=(1,))  # which makes no step
    searched = row | searching.facts() | {"validation": POLICY, "choice": {"options": {"alpha": 2.0}}}
    write_json(tmp_path / train.RESULT, searched | {"options": searching.options | {"alpha": 2.0}})
    assert train.finished_row(paths, searching, tiny.context, compares_rates=True, calibrates=False)
    write_json(tmp_path / train.RESULT, row)
    for now, compares, words in ((spec, False, "recipe, validation, learning_rate"), (other, True, "options")):
        with pytest.raises(ClipbiasError, match=f"with other settings [(]{words}[)]"):
            train.finished_row(paths, now, tiny.context, compares_rates=compares, calibrates=False)


def test_a_rate_that_is_given_is_another_run_than_the_same_rate_that_was_selected(clip, colours, recipe, tmp_path):
    """The images that selected it may not calibrate, so that the row has other scores."""
    tiny = TinySweep(clip, colours, recipe, tmp_path)
    (spec,) = tiny.specs("bias", seeds=(1,))
    paths = SweepPaths(tmp_path, {}, single=True)
    paths.adapter(spec).touch()
    given = spec.facts() | {"accuracy": 90.0, "zero_shot_accuracy": 80.0, "loss": 0.1, "images": 15}
    for policy, compares in ((POLICY, False), ("none", True)):
        write_json(tmp_path / train.RESULT, given | {"validation": policy})
        with pytest.raises(ClipbiasError, match=r"with other settings [(]validation[)]"):
            train.finished_row(paths, spec, tiny.context, compares_rates=compares, calibrates=False)


def test_a_lab_explains_the_adapters_of_its_settings_alone(clip, colours, recipe, tmp_path):
    specs = TinySweep(clip, colours, recipe, tmp_path).specs("zero_shot", "bias")
    longer = dataclasses.replace(recipe, epochs=recipe.epochs + 1)
    others = TinySweep(clip, colours, longer, tmp_path).specs("zero_shot", "bias")
    rows = [{"key": spec.key, "status": "ok"} for spec in specs]
    assert [path and path.name for _, path in lab.adapters_of(specs, rows, tmp_path)] == [
        f"bias-colours-2shots-seed{seed}.safetensors" for seed in (1, 2)
    ]
    assert lab.adapters_of(others, rows, tmp_path) == [("colours", None)] * 2


def test_rates_that_were_chosen_are_taken(clip, colours, recipe, tmp_path):
    tiny = TinySweep(clip, colours, recipe, tmp_path)
    of_cell = {"method": "bias", "dataset": "colours", "shots": 1, "learning_rate": 0.25}
    rates = Rates(({"method": "bias", "learning_rate": 0.5}, of_cell))
    specs = tiny.specs("bias", "taskres", shots=(1, 2), seeds=(1,), rates=rates)
    assert [spec.learning_rate for spec in specs] == [0.25, 0.5, 0.05, 0.05]
    assert [spec.validation for spec in specs] == ["validation split"] * 2 + ["none"] * 2
    first, second = rates.unlisted(specs, recipe)
    assert "for taskres on colours with 1 images per class; it trains at 0.05" in first and "with 2 images" in second
    # Authors' recipes keep their rate, whether they are a method's default or were asked for.
    tiny.options = {"mma": {"recipe": "authors"}}
    rates = Rates(({"method": "mma", "learning_rate": 0.5}, {"method": "clap", "learning_rate": 0.5}))
    mma, clap = tiny.specs("mma", "clap", seeds=(1,), rates=rates)
    assert (mma.learning_rate, clap.learning_rate, mma.validation, clap.validation) == (0.0015, 0.1, "none", "none")
    assert rates.unlisted([mma, clap], recipe) == []
    # Rates that are all tested select nothing, so validation images are left to calibrate.
    both = [tiny.specs("bias", learning_rates=(0.1, 0.2), score_on=scores) for scores in (VALIDATION, TEST)]
    assert [{spec.validation for spec in specs} for specs in both] == [{"validation split"}, {"none"}]


def test_only_rates_of_the_common_recipe_are_chosen(clip, colours, recipe, tmp_path, monkeypatch):
    """A method with its authors' rate, or with none, is not run on validation images."""
    requests = []

    def noted(specs: list[RunSpec], *_: Any, **__: Any) -> list[Any]:
        requests.append([(spec.method, spec.learning_rate, spec.score_on) for spec in specs])
        return []

    monkeypatch.setattr(table1, "sweep", noted)
    context = TinySweep(clip, colours, recipe, tmp_path).context
    methods = ("zero_shot", "bias", "visual_prompting")
    axes: dict[str, Any] = dict(methods=methods, datasets=("colours",), shots=(1,), seeds=(1,))
    table1.run(Table1Settings(**axes, learning_rates=(0.1, 0.2), recipe=recipe), context, None, tmp_path)
    candidates, tested = requests
    assert candidates == [("bias", 0.1, "validation"), ("bias", 0.2, "validation")]
    assert [method for method, *_ in tested] == [*methods]


def test_options_of_one_dataset_are_its_own(clip, colours, recipe, tmp_path):
    datasets = {name: dataclasses.replace(colours, name=name) for name in ("colours", "again")}
    options = {"taskres": {"alpha": 0.5}, "taskres@again": {"alpha": 1.0}}
    tiny = TinySweep(clip, datasets, recipe, tmp_path, options=options)
    assert [spec.make_method().alpha for spec in tiny.specs("taskres", seeds=(1,))] == [0.5, 1.0]


def test_a_run_that_was_killed_is_put_in_order(clip, colours, recipe, tmp_path):
    """`results.jsonl` is made of the files of groups anew, and checkpoints of those that are finished are removed."""
    tiny = TinySweep(clip, colours, recipe, tmp_path)
    specs = tiny.specs("zero_shot")
    rows = tiny.run(specs)
    (tmp_path / RESULTS).write_text('{"cut sh')
    for name in (*(group_key(spec) for spec in make_groups(specs)), "another"):  # of a group that is not finished
        (tmp_path / "checkpoints" / name / "3").mkdir(parents=True)
    assert tiny.run(specs) == rows and read_json_lines(tmp_path / RESULTS) == rows
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["another"]


def test_a_sweep_looks_before_each_group_whether_programs_are_many(clip, colours, recipe, tmp_path, monkeypatch):
    events: list[str] = []
    module = importlib.import_module("clipbias.training.sweep")
    monkeypatch.setattr(module, "drop_many_programs", lambda: events.append("drop"))
    monkeypatch.setattr(module, "run_group", lambda group, *_, **__: events.append(group[0].method) or [])
    monkeypatch.setattr(module, "write_group", lambda *_: None)
    tiny = TinySweep(clip, colours, recipe, tmp_path)
    tiny.run(tiny.specs("bias", "vpt"))
    assert events == ["drop", "bias", "drop", "vpt"]


@pytest.mark.ci
def test_a_work_folder_in_a_bucket(clip, colours, recipe, tmp_path, bucket, monkeypatch):
    """Rows, adapters, predictions, metrics and tables are written as whole objects. Checkpoints are orbax's affair."""

    monkeypatch.setattr(loop, "Checkpoints", lambda folder: mock.Mock(restore=lambda *_: None))
    folder = data_path("gs://bucket/run")
    rows = []
    for where in (folder, tmp_path):
        with open_workdir(where, {"methods": ["taskres"]}) as opened:
            tiny = TinySweep(clip, colours, recipe, opened)
            specs = tiny.specs("zero_shot", "taskres")
            rows.append(tiny.run(specs))
            write_tables(rows[-1], opened)
    assert [row["correct"] for row in rows[0]] == [row["correct"] for row in rows[1]]
    again = TinySweep(clip, colours, recipe, folder)
    assert again.run(specs) == rows[0] == read_json_lines(folder / RESULTS)
    assert tiny.adapter(specs[1]).notes["key"] == specs[1].key
    local = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} - {".lock"}
    assert {str(path).removeprefix("/bucket/run/") for path in bucket.find("/bucket/run")} == local


def test_the_causal_test_of_a_lab_is_of_prompts_weights_and_methods_of_ones_own(
    clip, colours, recipe, tmp_path, monkeypatch
):
    own = tmp_path / "own.py"
    own.write_text(CLASS)
    methods = ("zero_shot", "bias", "taskres", "ivlp", str(own))
    specs = TinySweep(clip, colours, recipe, tmp_path).specs(*methods, seeds=(1,))
    adapters = lab.adapters_of(specs, [{"key": spec.key, "status": "ok"} for spec in specs], tmp_path)
    names = run_names(specs)
    expected = [names[spec.key] for spec in specs if spec.method in ("bias", "ivlp", str(own))]
    assert [path.stem for _, path in adapters] == expected and len(expected) == 3
    settings = from_config(LabSettings, get_config("demo"))
    monkeypatch.setattr(lab.explain, "main", explained := mock.Mock())
    given = {"methods": methods, "datasets": ("colours",), "on_image_error": "raise"}
    lab.causal_tests(dataclasses.replace(settings, **given), adapters, tmp_path)
    assert explained.call_args.args[0].own_methods == str(own)
