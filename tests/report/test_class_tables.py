"""Tables of scores that count classes alike, against NumPy on the rows."""

import numpy as np

from clipbias.data.confusion import CLASS_MEASURES
from clipbias.report import read_sweep
from clipbias.report.class_tables import class_tables
from tests.report.test_accuracy_tables import entries, run


def scores(seed, **more):
    numbers = np.random.default_rng(seed).uniform(0, 100, 3)
    return dict(zip(CLASS_MEASURES, map(float, numbers), strict=True)) | {"worst_class": "ant"} | more


def test_means_over_seeds_and_datasets():
    runs = [(dataset, seed) for dataset in ("demo/digits", "demo/emoji") for seed in (1, 2, 3)]
    rows = [run(dataset=name, seed=seed, class_summary=scores(seed + len(name))) for name, seed in runs]
    frozen = [("demo/digits", 20), ("demo/emoji", 21)]
    rows += [
        run("zero_shot", name, None, 0, class_summary=scores(seed, untested_classes=["bee"] if seed == 20 else []))
        for name, seed in frozen
    ]
    rows.append(run("coop", "demo/digits"))  # of before
    made = class_tables(read_sweep(rows), ("macro_f1", "worst_accuracy"))
    assert [table.title for table in made] == ["Macro-F1, 16 shots", "Accuracy of the worst class, 16 shots"]
    for table, measure in zip(made, ("macro_f1", "worst_accuracy"), strict=True):
        assert table.columns == ("Method", "demo/digits", "demo/emoji", "Average")
        by_seed = np.array([[scores(seed + len(name))[measure] for seed in (1, 2, 3)] for name, _ in frozen])
        errors = by_seed.std(axis=1, ddof=1) / np.sqrt(3)
        means = [*by_seed.mean(axis=1), by_seed.mean()]
        texts = [
            f"{mean:.1f} ± {error:.1f}" for mean, error in zip(means, [*errors, np.hypot(*errors) / 2], strict=True)
        ]
        assert entries(table, "Bias tuning")[1:] == texts
        plain = [scores(seed)[measure] for _, seed in frozen]
        assert entries(table, "Zero-shot")[1:] == [f"{value:.1f}" for value in (*plain, np.mean(plain))]
        assert entries(table, "CoOp")[1:] == ["–"] * 3
        assert (
            "Left out of demo/digits: 1 class without test images (bee)." in table.note and "emoji:" not in table.note
        )
    assert class_tables(read_sweep(rows), ()) == [] and class_tables(read_sweep([run()]), CLASS_MEASURES) == []


def test_evaluations_have_columns_of_their_own():
    summaries = {"base": scores(1), "new": scores(2)}
    row = run(accuracy=None, accuracies={"base": 80.0, "new": 60.0}, class_summaries=summaries)
    (table,) = class_tables(read_sweep([row]), ("balanced_accuracy",))
    assert table.columns == ("Method", "demo/digits, base", "demo/digits, new")
    assert entries(table, "Bias tuning")[1:] == [f"{scores(seed)['balanced_accuracy']:.1f}" for seed in (1, 2)]
