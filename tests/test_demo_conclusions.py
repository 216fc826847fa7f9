"""What the documents conclude on the demo, held to the files beside their pictures."""

import csv
import re

import pandas as pd

from clipbias.explain.endpoint import holm
from tests.documents import ROOT
from tools.mechanisms import models, score
from tools.mechanisms.rules import UNDECIDED


def text_of(page: str) -> str:
    """A page of docs/ on a single line."""
    return " ".join((ROOT / f"docs/{page}.md").read_text(encoding="utf-8").split())


def benchmark_answers() -> pd.DataFrame:
    """What every explainer says of every model of the benchmark."""
    return score.read_answers(ROOT / "docs/images/mechanisms.csv")


def answers_of(explainer: str, axis: str) -> pd.DataFrame:
    """Of the models that count and have a label: `truth`, `answer`, whether it is `wrong`, and the model's facts."""
    answers = benchmark_answers()
    scored = answers[answers["counts"] & (answers[f"truth: {axis}"] != "")]
    truth, answer = (scored[f"{name}: {axis}"] for name in ("truth", explainer))
    wrong = (answer != truth) & (answer != UNDECIDED)
    family = scored["model"].str.partition("-")[0]
    return scored[["model", "layers"]].assign(family=family, truth=truth, answer=answer, wrong=wrong)


def percent_wrong(explainer: str, axis: str) -> str:
    return f"{100 * answers_of(explainer, axis)['wrong'].mean():.0f} %"


def test_the_conclusions_on_the_demo_are_those_of_its_files() -> None:
    page = text_of("report")

    def verdicts(name: str) -> dict[tuple[str, str, str], dict[str, str]]:
        with open(ROOT / f"docs/images/{name}_confirmed.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {(row["Model"], row["Dataset"], row["More than half of the gain"]): row for row in rows}

    first, again = verdicts("verdict"), verdicts("verdict_new_seeds")
    shown = {place for place, row in first.items() if row["Verdict"] == "shown"}
    methods = [f"{name}, 5 seeds" for name in ("VPT", "IVLP", "MaPLe")]
    expected = {(method, f"demo/{place}", "tokens alone") for method in methods for place in ("fashion", "emoji")}
    assert len(first) == 18 and shown == expected | {("IVLP, 5 seeds", "demo/digits", "constant")}
    shown_again = {place for place, row in again.items() if row["Verdict"] == "shown"}
    of_both = shown & set(again)
    largest = holm([float(again[place]["p"].removeprefix("< ")) for place in of_both]).max()
    assert len(again) == 18 and of_both == shown and len(shown) == 7 and largest < 0.05
    assert f"corrected over these seven by Holm's method, the largest p is {largest:.4f}." in page
    (lost,) = of_both - shown_again
    assert lost == ("MaPLe, 5 seeds", "demo/fashion", "tokens alone")
    assert f"with MaPLe on clothes are not shown (p = {again[lost]['p (Holm)']})" in page
    assert shown_again - of_both == {("VPT, 5 seeds", "demo/digits", "constant")}


def test_the_conclusions_with_more_layers_are_corrected_together() -> None:
    page = text_of("report")
    files = {8: "docs/images/verdict_eight_layers_confirmed.csv", 12: "docs/images/verdict_twelve_layers_confirmed.csv"}
    tests = pd.concat([pd.read_csv(ROOT / file).assign(layers=layers) for layers, file in files.items()])
    tests["Holm"] = holm(tests["p"])
    tests["method"] = tests["Model"].str.partition(",")[0]
    places = ["layers", "method", "Dataset"]
    tokens = tests[tests["More than half of the gain"] == "tokens alone"].set_index(places)["Holm"]
    constant = tests[tests["More than half of the gain"] == "constant"].set_index(places)["Holm"]
    shown = tokens[tokens < 0.05]
    assert set(shown.index) == {
        *((layers, "IVLP", f"demo/{name}") for layers in (8, 12) for name in ("digits", "fashion")),
        (8, "VPT", "demo/digits"),
        (8, "MaPLe", "demo/fashion"),
    }
    assert list(constant[constant < 0.05].index) == [(8, "VPT", "demo/digits")]
    largest = max(shown.max(), constant.min())
    assert f"corrected over all {len(tests)} confirmatory tests, the largest p is {largest:.4f} ([eight]" in page
    clothes, digits = tokens[8, "VPT", "demo/fashion"], tokens[8, "MaPLe", "demo/digits"]
    assert f"not shown for VPT on clothes (p = {clothes:.2f}) and MaPLe on digits (p = {digits:.2f})." in page


def test_models_with_more_layers_are_as_good_as_the_embedded() -> None:
    page = text_of("report")
    log = (ROOT / "tools/demo/pretraining.log").read_text(encoding="utf-8")
    names = "digits", "fashion", "emoji"

    def reached(step: int) -> list[list[str]]:
        """By training with so many steps, zero-shot accuracy on validation images."""
        by_dataset = [re.findall(rf"step {step}  demo/{name}  zero-shot (\S+) % of val", log) for name in names]
        return [list(row) for row in zip(*by_dataset, strict=True)]

    before, *_ = reached(6000)
    eight_after, twelve_after = reached(800)
    assert "{} % on digits, {} % on clothes and {} % on emoji with eight,".format(*eight_after) in page
    assert "{}, {} and {} % with twelve, after".format(*twelve_after) in page
    assert "after {}, {} and {} %.".format(*before) in page
    assert min(sum(map(float, after)) for after in (eight_after, twelve_after)) >= sum(map(float, before))


def test_what_is_said_of_known_mechanisms_is_in_their_file() -> None:
    page = text_of("mechanisms")
    answers = benchmark_answers()
    # The labels and the rules are those of the commit that the page names.
    assert set(answers["digest"]) == {"e9f4482b83d0"} and "the rules of commit `112d5115`" in page
    specs = {spec.key: spec.of_family for spec in models.table()}
    for axis in models.LABELS:
        assert list(answers[f"truth: {axis}"]) == [getattr(specs[key], axis) or "" for key in answers["model"]]

    by_rule = answers_of("relevancy and attention unchanged", "where")
    exact = by_rule[by_rule["family"].isin(["head", "projection", "last_mlp", "last_bias"])]
    assert set(exact["truth"]) == {"no attention"}
    changed = (exact["answer"] == "attention").sum()
    assert f"of {changed} of {len(exact)} heads, projections and changes behind the last attention" in page
    others = by_rule[by_rule["wrong"] & ~by_rule["family"].isin(exact["family"])]
    assert others["family"].str.startswith("planted").all()
    assert f"The other {len(others)} models that our rule is wrong about have planted prompts." in page
    for explainer in ("Shapley values", "corners with levels"):
        scored = answers_of(explainer, "where")
        assert (scored["answer"] == scored["truth"]).all()
    levels = answers_of("corners with levels", "what")
    undecided = levels[levels["answer"] == UNDECIDED]
    assert percent_wrong("constancy of the prompt part", "what") == "0 %"
    assert f"Levels are wrong about {percent_wrong('corners with levels', 'what')}, models with a map" in page
    assert f"see the map alone, and undecided about {len(undecided)} of {len(levels)}." in page
    missed = levels[levels["wrong"]]
    assert set(missed["family"]) == {"map_and_bias"} and set(missed["answer"]) == {"image"}
    assert percent_wrong("optimal ablation", "what") == percent_wrong("best replacement: share", "what")
    assert f"share that fitted constants keep are each wrong about {percent_wrong('optimal ablation', 'what')}:" in page
    maps = answers_of("best replacement: share", "what").query("family == 'map_8'")
    replaced = answers_of("best replacement", "what")
    assert set(maps["answer"]) == {"constant"} and set(replaced.loc[maps.index, "answer"]) == {"image"}
    assert f"*Best replacement*, which is wrong about {percent_wrong('best replacement', 'what')}," in page
    missed = replaced[replaced["wrong"]]
    assert set(missed["family"]) == {"map_and_bias"} and set(missed["answer"]) == {"image"}


def test_the_benchmark_has_all_its_models() -> None:
    page = text_of("mechanisms")
    answers = benchmark_answers()
    again = [spec.key for spec in models.table() if spec.seed == models.SEEDS[0] and spec.dataset != models.PLANTED]
    embedded = answers[answers["layers"] != 8]
    assert list(embedded["model"]) == [spec.key for spec in models.table()]
    assert list(answers.loc[answers["layers"] == 8, "model"]) == again
    assert f"These are {len(answers)} models." in page and f"--limit={len(again)} python" in page
    marked = answers[answers["model"].str.startswith("marked")]
    assert (len(marked), marked["counts"].sum()) == (12, 5) and "Of twelve marked models five learn the mark" in page
