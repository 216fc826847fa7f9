"""Explains trained models, asks every explainer for its labels, and counts right and wrong labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

import clipbias
from clipbias import settings
from clipbias.analysis.model import Model
from clipbias.analysis.results import StudyResults, Where
from clipbias.analysis.results_file import load_results
from clipbias.analysis.run import run_study
from clipbias.analysis.study import Study, StudyOptions
from clipbias.constants import ZERO_SHOT
from clipbias.data.held_out import unlabelled_images
from clipbias.errors import ClipbiasError
from clipbias.intervals import wilson_interval
from clipbias.tuning import Task
from clipbias.tuning.tuned import Tuned
from tools.mechanisms.labels import FAMILIES, OWN, RULES, UNDECIDED, Answer, Spec, digest, explain, table
from tools.mechanisms.train import adapter_path, dataset_of, frozen_model, training_images

SECTIONS = ("predictions", "causal")
OF_PROMPTS = ("relevancy", "vision_attention")  # sections with the paper's evidence, for prompts alone
AXES = ("where", "what")
PROMPTS = [name for name, family in FAMILIES.items() if family.mechanism is not None]
PAPER = ("relevancy of patches (Fig. 3)", "distance and entropy (Fig. 5)")  # rules for prompts alone
MODEL = "model"
HASH = 12  # letters of the hash in a file of answers
# Evidence of each rule, for the page.
EVIDENCE = {
    "verdict": "attention alone; everything added, and exchanging it between images",
    "relevancy of patches (Fig. 3)": "whether patches keep the order of their relevancy over corrected images; our"
    " rule, for prompts alone",
    "distance and entropy (Fig. 5)": "whether attention's distance and entropy stay, without intervals; our rule, for"
    " prompts alone",
}


def study_model(workdir: Path, spec: Spec) -> StudyResults:
    """Studies a trained model on its dataset's test images; finished results are read."""
    folder = workdir / "studies" / spec.key
    sections = (*SECTIONS, *OF_PROMPTS) if spec.family in PROMPTS else SECTIONS
    options = StudyOptions()
    config = settings.as_json(options)
    if (folder / "results.json").exists():
        results = load_results(folder)
        if set(sections) <= set(results.sections) and results.config == config:
            return results
    clip = frozen_model(workdir, spec)
    dataset = dataset_of(workdir, spec)
    models = [Model(ZERO_SHOT, "Zero-shot", Tuned(Task(clip, ZERO_SHOT, dataset)))]
    tuned = clipbias.load_adapter(adapter_path(workdir, spec), clip, own_methods=[OWN])
    models.append(Model(MODEL, spec.key, tuned, seed=spec.seed, training=dataset.name, few_shot_split=str(spec.seed)))
    test = dataset.split("test")
    inputs = Study(
        models,
        test,
        options,
        folder,
        training=training_images(dataset, spec),
        unlabelled=unlabelled_images(dataset, test),
    )
    return run_study(inputs, folder, dataset=dataset.name, config=config, sections=sections)


def score(workdir: Path, specs: Sequence[Spec]) -> pd.DataFrame:
    """Studies the trained models that count.

    Returns:
      A row for each trained model: its name, the blocks of its frozen model, the hash of labels and rules, whether it
      counts, its true labels, and each explainer's labels. A cell is empty without a true label, and for a model that
      does not count.

    Raises:
      ClipbiasError: a model was trained under other labels or rules.
    """
    rows = []
    for spec in specs:
        path = adapter_path(workdir, spec)
        if not path.exists():
            continue
        notes = notes_of(path)
        if notes["digest"] != digest():
            raise ClipbiasError(f"{path} was trained under other labels or rules; remove it and train it again.")
        validation = notes["validation"]
        assert isinstance(validation, dict)
        counts = bool(validation["counts"])
        answers = explain(study_model(workdir, spec), MODEL) if counts else {}
        rows.append(row(spec, frozen_model(workdir, spec).config.vision.layers, counts, answers))
    return pd.DataFrame(rows)


def row(spec: Spec, layers: int, counts: bool, answers: Mapping[str, Answer]) -> dict[str, object]:
    """Returns a model's row of `score`."""
    labels = {axis: getattr(spec.of_family, axis) for axis in AXES}
    truths = {f"truth: {axis}": "" if label is None else label.value for axis, label in labels.items()}
    silent = Answer("", "")
    said = {f"{name}: {axis}": getattr(answers.get(name, silent), axis) for name in RULES for axis in AXES}
    facts = {"model": spec.key, "family": spec.family, "layers": layers, "digest": digest()[:HASH], "counts": counts}
    return {**facts, **truths, **said}


def notes_of(path: Path) -> Mapping[str, object]:
    """Reads the notes on training from a model's file."""
    return clipbias.tuning.adapter.read_adapter(path).notes


def scored(answers: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Returns the models that count, have a label on the axis, and should gain."""
    has_label = answers["counts"] & (answers[f"truth: {axis}"] != "")
    return answers[has_label & (answers["truth: where"] != Where.NO_GAIN.value)]


def rates(answers: pd.DataFrame) -> pd.DataFrame:
    """Computes the percentage of models about which an explainer is right, wrong and undecided, a row for each axis.

    Models of a family are nearly copies, so intervals are Wilson's of as many cases as families. An explainer without
    any label on an axis is left out there. Models without a gain are a row of their own, *no gain*.
    """
    none = answers[answers["counts"] & (answers["truth: where"] == Where.NO_GAIN.value)]
    cases = [(axis, axis, explainer, scored(answers, axis)) for axis in AXES for explainer in RULES]
    rows = []
    for name, axis, explainer, models in [*cases, (Where.NO_GAIN.value, "where", "verdict", none)]:
        asked = models[models["family"].isin(PROMPTS)] if explainer in PAPER else models
        said = asked[f"{explainer}: {axis}"]
        # "No gain" is said by all rules at once, and is no answer of a rule about the axis.
        if said.isin((UNDECIDED, Where.NO_GAIN.value) if name == axis else ()).all():
            continue
        # A model without a gain has a wrong label where the verdict is undecided: it then finds a gain.
        decided = said != (UNDECIDED if name == axis else "")
        right = said == asked[f"truth: {axis}"]
        families = asked["family"].nunique()
        row: dict[str, object] = {"axis": name, "explainer": explainer, "models": len(said), "families": families}
        for outcome, holds in (("right", right), ("wrong", ~right & decided), ("undecided", ~decided)):
            rate = 100 * float(holds.mean())
            low, high = wilson_interval(rate, families)
            row |= {outcome: rate, f"{outcome}_low": low, f"{outcome}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def origin(answers: pd.DataFrame) -> str:
    """Says with which rule answers were made, by their hashes, and which families they lack."""
    (made,) = set(answers["digest"])
    rule = "the rule, labels and recipes of this version" if digest().startswith(made) else "an earlier rule"
    text = (
        f"Made with {rule} (hash `{made}`). {len(answers)} of {len(table())} models were run, and"
        f" {int(answers['counts'].sum())} of these count."
    )
    missing = [f"`{family}`" for family in FAMILIES if family not in set(answers["family"])]
    return f"{text} Not run yet: {', '.join(missing)}." if missing else text


def limits(answers: pd.DataFrame) -> str:
    """Says how many families have a label, and how often the verdict may be wrong about further ones."""
    verdict = rates(answers).set_index(["explainer", "axis"]).loc["verdict"]
    families, high = ([verdict.loc[axis, column] for axis in AXES] for column in ("families", "wrong_high"))
    return (
        f"{families[0]} families have a label *where* and {families[1]} a label *what*. If they were drawn at random,"
        f" the verdict could be wrong about up to {high[0]:.0f} and {high[1]:.0f} % of further families (95 %). They"
        " are made by hand, so this is no guarantee."
    )


def evidence(answers: pd.DataFrame) -> str:
    """Lists the explainers with a rate, and their evidence."""
    names = dict.fromkeys(rates(answers)["explainer"])
    return "\n".join(f"- *{name}*: {EVIDENCE[name]}." for name in names)
