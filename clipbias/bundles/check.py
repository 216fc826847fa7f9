"""Checks a bundle: recomputes its numbers from the predictions, and compares its facts with what is published."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from clipbias import data, io
from clipbias.bundles import numbers
from clipbias.bundles.files import (
    INDEX,
    LARGEST,
    WITH_LOG_PROBS,
    Bundle,
    DatasetFile,
    Line,
    Predictions,
    hash_arrays,
)
from clipbias.clip import load as load_clip
from clipbias.clip.repository import EMBEDDED
from clipbias.data import Dataset, catalog, demo, protocols
from clipbias.data.benchmark_check import GOLDEN, GOLDEN_SHOTS
from clipbias.errors import ClipbiasError
from clipbias.report.names import draws, method_name
from clipbias.report.published import dataset_name
from clipbias.training.spec import stable_hash

POLICIES = ("none", "few-shot", "validation split")
# SHA-256 of a repository's files by name, or `None` where the hub does not answer.
Hub = Callable[[str, str | None], Mapping[str, str] | None]


@dataclasses.dataclass
class Findings:
    """What a check found, in sentences.

    Attributes:
      agrees, differs, unchecked: what is confirmed, what is wrong, and what could not be checked.
      recomputed: keys of the runs whose line is that of their predictions.
    """

    agrees: list[str] = dataclasses.field(default_factory=list)
    differs: list[str] = dataclasses.field(default_factory=list)
    unchecked: list[str] = dataclasses.field(default_factory=list)
    recomputed: set[str] = dataclasses.field(default_factory=set)

    def count(self, what: str, wrong: Sequence[str], total: int) -> None:
        """Notes how many of some facts agree, and a sentence for each that does not."""
        self.differs += wrong
        if total > len(wrong):
            self.agrees.append(f"{total - len(wrong)} of {total} {what}.")


def run_name(line: Line, evaluation: str = "test") -> str:
    """A run in words."""
    shots = f", {line['shots']} shots, seed {line['seed']}" if line["shots"] else ""
    part = "" if evaluation == "test" else f", {evaluation}"
    return f"{method_name(line['method'])} on {dataset_name(line['dataset'])}{shots}{part}"


def hub_hashes(name: str, revision: str | None) -> Mapping[str, str] | None:
    """The hashes that the hub lists for a model's large files; `None` where it does not answer."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(name.partition("@")[0], revision=revision, files_metadata=True, timeout=20)
    except Exception:  # no network, no such repository, a hub that answers otherwise
        return None
    return {file.rfilename: file.lfs.sha256 for file in found.siblings or [] if file.lfs}


def check_bundle(bundle: Bundle, folder: Path, *, data_dir: str = "", hub: Hub = hub_hashes) -> Findings:
    """Checks a bundle.

    Args:
      bundle: as it was read.
      folder: where it lies.
      data_dir: the root of the datasets, whose image lists are compared; empty where there is none.
      hub: asks for published hashes.

    Raises:
      ClipbiasError: a fact is missing or of another kind.
    """
    found = Findings()
    try:
        _check_files(bundle, folder, found)
        _check_lines(bundle, found)
        _check_seeds(bundle, found)
        _check_weights(bundle, found, hub)
        for name, file in bundle.datasets.items():
            _check_predictions(file, found, name)
            _check_summary(file, found, name)
            _check_images(file, found, name, _open(name, data_dir))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:  # whatever others have written
        raise ClipbiasError(f"{folder} lacks a fact, or has one of another kind: {error!r}.") from error
    found.unchecked.append("Whether the adapters give these predictions: a bundle holds their hashes alone.")
    return found


def _check_files(bundle: Bundle, folder: Path, found: Findings) -> None:
    wrong, known = [], {INDEX, *(facts["file"] for facts in bundle.facts["datasets"].values())}
    for facts in bundle.facts["datasets"].values():
        path = folder / facts["file"]
        if io.sha256(path) != facts.get("sha256"):
            wrong.append(f"{path.name} is not the file whose hash {INDEX} lists.")
        elif path.stat().st_size > LARGEST:
            wrong.append(f"{path.name} is larger than {LARGEST / 1e6:.0f} MB.")
    found.count(f"files have the hash that {INDEX} lists", wrong, len(known) - 1)
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in known)
    found.differs += [f"{name} is no part of a bundle." for name in foreign]


def _check_lines(bundle: Bundle, found: Findings) -> None:
    """Settings: keys, policies, and datasets in their own files."""
    fields, wrong, seen = bundle.facts["spec"], [], set()
    for name, file in bundle.datasets.items():
        for line in file.lines:
            if stable_hash({field: line.get(field) for field in fields}) != line["key"]:
                wrong.append(f"{run_name(line)}: the key is not the hash of the settings, which were changed.")
            elif line["key"] in seen or line["dataset"] != name:
                wrong.append(f"{run_name(line)} is listed twice, or with another dataset.")
            elif line["validation"] not in POLICIES or line["conditions"]["validation"] != line["validation"]:
                wrong.append(f"{run_name(line)} has no validation policy that is known.")
            seen.add(line["key"])
    found.count("runs have the key of their settings", wrong, len(bundle.lines))


def _check_predictions(file: DatasetFile, found: Findings, dataset: str) -> None:
    each = {
        (line["key"], evaluation): _compare(line, evaluation, file.predictions.get((line["key"], evaluation)))
        for line in file.lines
        for evaluation in line["lists"]
    }
    wrong = {key for (key, _), sentences in each.items() if sentences}
    found.recomputed |= {line["key"] for line in file.lines} - wrong
    found.differs += [sentence for sentences in each.values() for sentence in sentences]
    right = sum(not sentences for sentences in each.values())
    calibrated = sum(run.log_probs is not None for run in file.predictions.values())
    found.agrees.append(
        f"{right} of {len(each)} evaluations on {dataset_name(dataset)} have the accuracy of their predictions, "
        f"{calibrated} have log-probabilities, from which calibration errors were recomputed."
    )
    found.unchecked.append(f"{dataset_name(dataset)}: calibration at a temperature, which needs all logits.")


def _compare(line: Line, evaluation: str, run: Predictions | None) -> list[str]:
    """What of a run's line its predictions contradict."""
    name, several = run_name(line, evaluation), "accuracies" in line
    if run is None:
        return [f"{name}: the predictions are missing, or have another number of images."]
    wrong = []
    reported = line["accuracies"][evaluation] if several else line["accuracy"]
    if not math.isclose(numbers.accuracy(run), reported, abs_tol=1e-6):
        wrong.append(f"{name}: {reported:.3f} % is reported, the predictions give {numbers.accuracy(run):.3f} %.")
    if hash_arrays(run.predicted, run.log_probs) != line["sha256"].get(evaluation):
        wrong.append(f"{name}: the predictions are not those whose hash is listed.")
    if run.log_probs is None:
        return wrong + [f"{name}: the log-probabilities are missing."] * (line["shots"] in WITH_LOG_PROBS)
    if count := numbers.contradictions(run):
        wrong.append(f"{name}: classes and log-probabilities contradict each other on {count} images.")
    ece = (line["calibrations"][evaluation] if several else line["calibration"])["ece"]
    value, tolerance = numbers.calibration_error(run)
    if abs(value - ece) > tolerance + 1e-3:
        wrong.append(f"{name}: a calibration error of {ece:.2f} is reported, the predictions give {value:.2f}.")
    return wrong


def cell_number(file: DatasetFile, keys: Sequence[str], measure: str) -> numbers.Number | None:
    """The mean of some runs in one measure: "accuracy", "base", "new", their "H", or a dataset; `None` without all."""
    if measure == numbers.HARMONIC:
        base, new = ([file.predictions.get((key, half)) for key in keys] for half in (numbers.BASE, numbers.NEW))
        return None if None in [*base, *new] else numbers.harmonic(base, new)  # type: ignore[arg-type]
    runs = [file.predictions.get((key, "test" if measure == "accuracy" else measure)) for key in keys]
    return None if not runs or None in runs else numbers.mean(runs)  # type: ignore[arg-type]


def _check_summary(file: DatasetFile, found: Findings, dataset: str) -> None:
    wrong, lines = [], {line["key"]: line for line in file.lines}
    parts = [("mean", one) for one in file.summary["means"]]
    parts += [("difference", one) for one in file.summary["differences"]]
    for what, one in parts:
        groups = [one["keys"]] if what == "mean" else one["keys"]
        cells = [cell_number(file, keys, one["measure"]) for keys in groups]
        name = " and ".join(method_name(lines[keys[0]]["method"]) if keys[0] in lines else keys[0] for keys in groups)
        name = f"{name} on {dataset_name(dataset)}, {one['shots']} shots, {one['measure']}"
        if None in cells:
            wrong.append(f"{name}: the {what} has no predictions behind it.")
            continue
        number = cells[0] if what == "mean" else numbers.difference(*cells)  # type: ignore[arg-type]
        given = one[what], one["error"]
        again = number.value, number.error  # type: ignore[union-attr]
        if not all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(given, again, strict=True)):
            told = [f"{value:.2f} ± {error:.2f}" for value, error in (given, again)]
            wrong.append(f"{name}: a {what} of {told[0]} is reported, the predictions give {told[1]}.")
    found.count(
        f"means and paired differences on {dataset_name(dataset)} have their standard errors", wrong, len(parts)
    )


def _open(name: str, data_dir: str) -> Dataset | None:
    if name not in demo.NAMES and not data_dir:
        return None
    try:
        return data.load(name, data_dir=data_dir or None)
    except ClipbiasError:
        return None


def _check_images(file: DatasetFile, found: Findings, name: str, dataset: Dataset | None) -> None:
    """Test images and training picks against the dataset itself, or against what is published."""
    title, wrong, compared = dataset_name(name), [], 0

    @functools.cache
    def plan(dataset: Dataset, protocol: str, shots: int, seed: int) -> protocols.EvalProtocol:
        return protocols.make_plan(protocol, name, lambda _: dataset, shots=max(shots, 1), seed=seed)

    unknown: set[str] = set()
    for line in file.lines:
        lists = {evaluation: file.lists.get(hash) for evaluation, hash in line["lists"].items()}
        across = line["protocol"] in protocols.ACROSS
        golden = GOLDEN.get(name, {}).get(line["seed"]) if line["shots"] == GOLDEN_SHOTS else None
        expected: Mapping[str, str] | None = None
        if dataset is not None and not across and line["protocol"] != "pseudo_labels":
            made = plan(dataset, line["protocol"], line["shots"], line["seed"])
            for evaluation in made.evaluations:
                split, images = evaluation.dataset.split("test"), lists.get(evaluation.name)
                same = images is not None and (images.names, tuple(images.labels), images.class_names) == (
                    *(split.keys, tuple(split.labels)),
                    evaluation.dataset.class_names,
                )
                compared += 1
                if not same:
                    wrong.append(f"{run_name(line, evaluation.name)}: names, labels or classes of images are others.")
            splits = made.source.splits
            expected = {part: splits[part].names_hash for part in ("train", "val") if part in splits}
        else:
            entry = catalog.ENTRIES.get(name)
            if entry is not None and not across:
                compared += 1
                own = [images for images in lists.values() if images is not None]
                counts = sum(len(images.names) for images in own), sum(len(images.class_names) for images in own)
                if counts != (entry.sizes["test"], entry.classes):
                    wrong.append(
                        f"{run_name(line)}: {counts[0]} test images of {counts[1]} classes, where the benchmark has "
                        f"{entry.sizes['test']} of {entry.classes}."
                    )
            unknown.add("the names and labels of test images, which need the dataset (--data_dir)")
            if golden is not None and line["protocol"] == "few_shot":
                expected = dict(zip(("train", "val"), golden, strict=True))
        if draws(line["method"]):
            if expected is None:
                unknown.add(f"the picks of {line['protocol']} at {line['shots']} shots, which are not published")
                continue
            compared += 1
            if line.get("picks") != expected:
                wrong.append(f"{run_name(line)}: the training images are not the published picks of this seed.")
    found.count(f"lists of images on {title} are the known ones", wrong, compared)
    found.unchecked += [f"{title}: {what}." for what in sorted(unknown)]


def _check_seeds(bundle: Bundle, found: Findings) -> None:
    """Runs that the settings of the sweeps ask for, and seeds that other methods have."""
    there: dict[tuple[str, str, str, int], set[int]] = {}
    wanted: dict[tuple[str, str, str, int], set[int]] = {}
    for line in bundle.lines:
        there.setdefault((line["protocol"], line["dataset"], line["method"], line["shots"]), set()).add(line["seed"])
    for source in bundle.facts["sources"]:
        for dataset in source["datasets"]:
            for method in source["methods"]:
                for shots in source["shots"] if draws(method) else (0,):
                    protocol = "full" if not shots and draws(method) else source["protocol"]
                    seeds = source["seeds"] if draws(method) else (0,)
                    wanted.setdefault((protocol, dataset, method, shots), set()).update(seeds)
    seen: dict[tuple[str, str, int], set[int]] = {}
    for (protocol, dataset, _, shots), seeds in there.items():
        seen.setdefault((protocol, dataset, shots), set()).update(seeds)
    wrong = []
    for cell in wanted.keys() | there.keys():
        protocol, dataset, method, shots = cell
        missing = (wanted.get(cell, set()) | seen.get((protocol, dataset, shots), set())) - there.get(cell, set())
        if missing:
            seeds = ", ".join(map(str, sorted(missing)))
            few = f", {shots} shots" if shots else ""
            wrong.append(
                f"{method_name(method)} on {dataset_name(dataset)}{few} ({protocol}): seed {seeds} is missing."
            )
    found.count("methods, datasets and numbers of shots have all their seeds", sorted(wrong), len(wanted | there))


def _check_weights(bundle: Bundle, found: Findings, hub: Hub) -> None:
    model = bundle.facts["model"]
    name, fingerprint = str(model["name"]), model["fingerprint"]
    others = [line for line in bundle.lines if line["weights"] != fingerprint]
    wrong = [f"{run_name(line)}: the weights are not those of the bundle's model {name}." for line in others]
    found.count(f"runs have the weights of {name}", wrong, len(bundle.lines))
    if name in EMBEDDED:
        same = load_clip(name).fingerprint == fingerprint
        told = f"The weights are {'' if same else 'not '}those of the embedded model {name}."
        (found.agrees if same else found.differs).append(told)
        return
    listed = hub(name, model.get("revision"))
    if not listed:
        found.unchecked.append(f"The weights' files of {name}: the hub lists no hashes, or does not answer.")
        return
    wrong = [
        f"{file} is not the hub's file of {name}: SHA-256 {own[:12]}…, the hub lists {str(listed.get(file))[:12]}…."
        for file, own in model["files"].items()
        if listed.get(file) != own
    ]
    found.count(f"files of weights have the hash that the hub lists for {name}", wrong, len(model["files"]))
    found.unchecked.append(f"That the fingerprint {fingerprint[:12]} is that of these files, which are not read here.")


def report(findings: Findings, most: int = 40) -> Iterable[str]:
    """The sentences of a check, line by line."""
    for title, sentences in {
        "differs": findings.differs,
        "agrees": findings.agrees,
        "cannot be checked": findings.unchecked,
    }.items():
        yield from (f"{title}: {sentence}" for sentence in sentences[:most])
        if len(sentences) > most:
            yield f"{title}: and {len(sentences) - most} more."
