"""A sweep's frames and the numbers of its tables, against plain NumPy and against what is drawn anew."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from clipbias.report import read_sweep, render_tables
from clipbias.report.frames import AVERAGE, WITHIN, harmonic_error
from clipbias.report.sweep_tables import best_methods, power_words


def run(method="bias", dataset="a", shots=4, seed=1, accuracy=70.0, **others):
    row = {"method": method, "dataset": dataset, "shots": shots, "seed": seed, "accuracy": accuracy, "images": 400}
    return row | {"learning_rate": 0.1, "parameters": 9, "status": "ok"} | others


def cell(rows, dataset="a", method="bias", shots=4, measure="accuracy"):
    return read_sweep(rows).cells[measure, method, dataset, shots]


def kept(folder: Path, name: str, right: np.ndarray, images: np.ndarray | None = None) -> dict[str, str]:
    """Answers to images, in a file that a row names."""
    folder.mkdir(exist_ok=True)
    labels = np.arange(len(right)) % 5
    images = np.array([f"{i}.png" for i in range(len(right))]) if images is None else images
    predicted = np.where(right, labels, (labels + 1) % 5)
    np.savez(folder / f"{name}.npz", images=images, labels=labels, predicted=predicted)
    return {"test": name}


def test_a_tables_numbers_are_those_of_its_results_by_plain_numpy(tmp_path: Path) -> None:
    """Means, errors, averages and what is bold, recomputed from `results.jsonl` and the kept answers."""
    rng = np.random.default_rng(3)
    sizes = {"a": 150, "b": 220}
    seeds = (1, 2, 3)
    chance = {"coop": 0.5, "vpt": 0.72, "ivlp": 0.75, "bias": 0.78}
    right = {}
    for dataset, size in sizes.items():
        ease = rng.random(size)
        right["zero_shot", dataset] = (ease < 0.6)[None]
        for method, level in chance.items():
            right[method, dataset] = ease + rng.normal(0, 0.15, (3, size)) < level
    rows = [
        run(
            method,
            dataset,
            4 if len(seeds_right) > 1 else 0,
            seed,
            100 * float(seed_right.mean()),
            images=len(seed_right),
        )
        | {"predictions": kept(tmp_path / "predictions", f"{method}-{dataset}-{seed}", seed_right)}
        for (method, dataset), seeds_right in right.items()
        for seed, seed_right in zip(seeds, seeds_right, strict=False)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    text = render_tables(read_sweep(read, tmp_path / "predictions"), "markdown")

    lines = [line for line in text.splitlines() if line.startswith("|")]
    shown = {}
    for line in lines[2:7]:
        name, *texts = (text.strip() for text in line.strip("|").split("|"))
        shown[name] = [(text.startswith("**"), *map(float, re.findall(r"[\d.]+", text))) for text in texts[:3]]
    assert lines[0].split("|")[2].strip() == "a" and lines[0].split("|")[4].strip() == "Average"

    def numbers(method, dataset):
        each = 100 * right[method, dataset].mean(1)
        share = each.mean() / 100
        of_seeds = each.var(ddof=1) / len(each) if len(each) > 1 else 0.0
        return each.mean(), 1e4 * share * (1 - share) / sizes[dataset], of_seeds

    names = {"zero_shot": "Zero-shot", "coop": "CoOp", "vpt": "VPT", "ivlp": "IVLP", "bias": "Bias tuning"}
    for column, datasets in enumerate((("a",), ("b",), ("a", "b"))):
        count = len(datasets)
        means = {m: np.mean([numbers(m, d)[0] for d in datasets]) for m in names}
        best = max(means, key=lambda method: means[method])
        for method, name in names.items():
            error = np.sqrt(sum(sum(numbers(method, d)[1:]) for d in datasets)) / count
            variance = 0.0
            for d in datasets:
                apart = 100 * (right[best, d].mean(0) - right[method, d].mean(0))
                variance += apart.var(ddof=1) / sizes[d] + numbers(best, d)[2] + numbers(method, d)[2]
            bold = method == best or means[best] - means[method] <= 1.96 * np.sqrt(variance) / count
            assert shown[name][column] == (bold, round(means[method], 1), round(error, 1))
    assert {texts[0][0] for texts in shown.values()} == {True, False}  # some are told apart from the best, some not


def test_parts_of_an_error():
    assert cell([run(images=400), run(seed=2, images=300)])["images_error"] == pytest.approx(
        100 * np.sqrt(0.7 * 0.3 / 300)
    )
    assert np.isnan(cell([run(images=400), run(seed=2, images=None)])["error"])
    values = [70.0, 73.0, 71.5, 69.0]
    row = cell([run(seed=seed, accuracy=value) for seed, value in enumerate(values)])
    assert row["seeds_error"] == pytest.approx(np.std(values, ddof=1) / 2) and cell([run()])["seeds_error"] == 0
    rng = np.random.default_rng(1)
    base, new = rng.normal(80, 0.8, 200_000), rng.normal(60, 1.1, 200_000)
    assert harmonic_error(80, 60, (0.8, 1.1)) == pytest.approx(np.std(2 * base * new / (base + new)), rel=0.01)


def test_base_and_new_have_a_harmonic_mean_for_each_seed():
    accuracies = [{"base": 80.0, "new": 60.0}, {"base": 82.0, "new": 58.0}]
    rows = [
        run(seed=seed, accuracy=None, images=None, accuracies=values, tested_images={"base": 100, "new": 200})
        for seed, values in enumerate(accuracies)
    ]
    each = [2 * of_seed["base"] * of_seed["new"] / (of_seed["base"] + of_seed["new"]) for of_seed in accuracies]
    row = cell(rows, measure="H")
    assert read_sweep(rows).measures == ("base", "new", "H") and read_sweep(rows).measure == "H"
    assert row["mean"] == pytest.approx(np.mean(each))
    halves = np.sqrt(81 * 19 / 100), np.sqrt(59 * 41 / 200)
    assert row["error"] == pytest.approx(np.hypot(harmonic_error(81, 59, halves), np.std(each, ddof=1) / np.sqrt(2)))


def test_methods_that_the_error_does_not_tell_apart_from_the_best(tmp_path: Path):
    """IVLP answers like the best but for a few images: beyond the error in pairs and within it otherwise."""
    rng = np.random.default_rng(5)
    first = rng.random(400) < 0.7
    second, third = first.copy(), first.copy()
    second[np.flatnonzero(first)[:12]] = False
    third[np.flatnonzero(first)[:100]] = False
    rights = {"bias": first, "ivlp": second, "vpt": third}
    rows = [
        run(name, accuracy=100 * hits.mean(), predictions=kept(tmp_path, name, hits)) for name, hits in rights.items()
    ]

    def best(folder: Path | None = tmp_path) -> set[str]:
        return best_methods(read_sweep(rows, folder), "accuracy", "a", 4)

    assert best() == {"bias"} and best(None) == {"bias", "ivlp"}
    # Answers that are not those of the row, of other images, damaged, or outside the folder, count as not there.
    kept(tmp_path, "ivlp", third)
    assert best() == {"bias", "ivlp"}
    kept(tmp_path, "ivlp", second, np.array([f"{i}.jpg" for i in range(400)]))
    assert best() == {"bias", "ivlp"}
    (tmp_path / "ivlp.npz").write_bytes(b"PK")
    assert best() == {"bias", "ivlp"}
    kept(tmp_path, "ivlp", second)
    rows[1]["predictions"] = {"test": f"../{tmp_path.name}/ivlp"}
    assert best() == {"bias", "ivlp"}
    # Without a number of images only the best is known, and those that are equal to it.
    bare = [run("bias", images=None), run("ivlp", images=None), run("vpt", images=None, accuracy=69.9)]
    assert best_methods(read_sweep(bare), "accuracy", "a", 4) == {"bias", "ivlp"}
    assert best_methods(read_sweep(bare[:1]), "accuracy", "a", 4) == set() and WITHIN == 1.96


def test_zero_shot_is_the_same_at_every_number_of_shots_and_one_run():
    rows = [run("zero_shot", shots=None, seed=seed, accuracy=40.0) for seed in (1, 2, 3)] + [run(), run(shots=16)]
    sweep = read_sweep(rows)
    assert sweep.shots == (4, 16)
    for shots in (4, 16):
        frozen = sweep.cells["accuracy", "zero_shot", "a", shots]
        assert (frozen["mean"], frozen["seeds"]) == (40.0, 1)
    assert cell(rows[:3], method="zero_shot", shots=None)["mean"] == 40.0


def test_an_average_needs_every_dataset():
    rows = [run(dataset="b", accuracy=60.0), run("coop", "a"), run("coop", "b", accuracy=80.0)]
    sweep = read_sweep(rows)
    assert sweep.columns == ("a", "b", AVERAGE) or sweep.columns == ("b", "a", AVERAGE)
    averages = sweep.table("accuracy", 4)[AVERAGE]
    assert averages["coop"] == 75.0 and np.isnan(averages["bias"])


def test_a_failure_never_hides_a_finished_run_and_the_last_row_counts():
    lost = run(accuracy=None, status="failed", error="killed")
    for rows in ([run(accuracy=10.0), run(accuracy=55.0), lost], [lost, run(accuracy=55.0)]):
        assert read_sweep(rows).failures == [] and cell(rows)["mean"] == 55.0
    sweep = read_sweep([run(), {**lost, "seed": 2}])
    assert [row["error"] for row in sweep.failures] == ["killed"]
    assert [cell["seeds"] for cell in sweep.cells.values()] == [1]
    assert read_sweep([]).methods == () and not read_sweep([]).cells


def test_methods_and_datasets_come_in_the_papers_order():
    sweep = read_sweep([run("mine", "zzz"), run("bias", "dtd"), run("zero_shot", "imagenet", shots=None)])
    assert sweep.methods == ("zero_shot", "bias", "mine") and sweep.datasets == ("imagenet", "dtd", "zzz")


def test_several_learning_rates_on_the_same_draw_are_rows_of_their_own():
    rows = [run(seed=seed, accuracy=50 + 10 * rate, learning_rate=rate) for seed in (1, 2) for rate in (0.5, 0.25)]
    sweep = read_sweep([*rows, run("ivlp", learning_rate=0.5), run("zero_shot", shots=None, learning_rate=None)])
    assert sweep.methods == ("zero_shot", "ivlp", "bias, rate 0.5", "bias, rate 0.25")
    assert sweep.table("accuracy", 4)["a"]["bias, rate 0.25"] == 52.5
    assert read_sweep([run(learning_rate=0.5), run(dataset="b", learning_rate=0.1)]).methods == ("bias",)


def test_which_difference_could_have_been_seen():
    """By two methods of two seeds each, without their answers: 2.8 standard errors of their difference."""
    rows = [run("bias", seed=1, accuracy=60.0), run("bias", seed=2, accuracy=64.0)]
    rows += [run("ivlp", seed=1, accuracy=70.0), run("ivlp", seed=2, accuracy=71.0)]
    sweep = read_sweep(rows)
    images = [math.sqrt(p * (100 - p) / rows[0]["images"]) for p in (62.0, 70.5)]
    seeds = [np.std(pair, ddof=1) / math.sqrt(2) for pair in ((60.0, 64.0), (70.0, 71.0))]
    least = (1.959964 + 0.841621) * math.hypot(*images, *seeds)
    assert power_words(sweep, "accuracy", "a", 4) == f"A difference of {least:.1f} points on a could have been seen."
    assert power_words(read_sweep(rows[:2]), "accuracy", "a", 4) == ""
