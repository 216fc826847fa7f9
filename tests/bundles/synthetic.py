"""Work folders of sweeps that nobody ran: their predictions are random, their rows what `training` says of these."""

import functools
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import clipbias
from clipbias import data
from clipbias.bundles.files import INDEX, array_bytes
from clipbias.clip import Clip
from clipbias.data.protocols import make_plan
from clipbias.io import sha256
from clipbias.training.calibration import Outcome
from clipbias.training.evaluator import score
from clipbias.training.score import merge_scores
from clipbias.training.spec import RunSpec
from clipbias.tuning.recipe import Recipe

RECIPE = Recipe(0.05, 10, 1, 1e-5, 32, 0.9, 5e-4)
# How far the label's logit stands out.
STRENGTH = {"zero_shot": 0.6, "bias": 1.4, "ivlp": 1.45, "taskres": 2.2}


@functools.cache
def demo() -> Clip:
    return clipbias.load("demo")


def make_workdir(
    folder: Path,
    *,
    methods: Sequence[str] = ("zero_shot", "bias", "ivlp"),
    dataset: str = "demo/fashion",
    shots: Sequence[int] = (16,),
    seeds: Sequence[int] = (1, 2, 3),
    protocol: str = "few_shot",
    validation: str = "none",
    noise: int = 0,
) -> Path:
    """Writes a finished sweep; another `noise` gives other predictions with the same settings."""
    rows = []
    for name in ("predictions", "adapters"):
        (folder / name).mkdir(parents=True)
    for method in methods:
        for count in shots if method != "zero_shot" else (0,):
            for seed in seeds if method != "zero_shot" else (0,):
                rows.append(_row(folder, method, dataset, count, seed, protocol, validation, noise))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    axes = dict(methods=methods, datasets=[dataset], shots=shots, seeds=seeds, protocol=protocol)
    model = {"name": "demo", "revision": None, "fingerprint": demo().fingerprint, "resolution": 32}
    model["files"] = {path.name: sha256(path) for path in demo().files}
    environment = {"packages": {"jax": "0"}, "devices": ["cpu"], "processes": 1, "model": model}
    for name, content in {"config": axes, "environment": environment, "state": {"started": f"day {noise}"}}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _row(folder, method, dataset, shots, seed, protocol, validation, noise) -> dict:
    plan = make_plan(protocol, dataset, data.load, shots=shots or 1, seed=seed)
    trained = method != "zero_shot"
    spec = RunSpec(
        *(method, {}, dataset, protocol, (), shots, seed, RECIPE if trained else None),
        *("a photo of a {}.", "", "float32", demo().fingerprint, "", "abc"),
        validation=validation if trained else "none",
    )
    scores, files = {}, {}
    for evaluation in plan.evaluations:
        split, classes = evaluation.dataset.split("test"), evaluation.dataset.class_names
        shared = np.random.default_rng(7).normal(size=(len(split), len(classes)))  # images are hard for all methods
        name = f"{method}-{dataset.replace('/', '_')}-{shots}shots-seed{seed}-{evaluation.name}"
        stream = np.random.default_rng([noise, seed, *name.encode()])
        logits = 2.0 * (shared + 0.4 * stream.normal(size=shared.shape))
        logits[np.arange(len(split)), split.labels] += 2.0 * STRENGTH[method]
        predicted, total = logits.argmax(1), np.logaddexp.reduce(logits, axis=1)
        own = logits[np.arange(len(split)), split.labels]
        five = np.pad(-np.sort(-logits)[:, :5], ((0, 0), (0, max(0, 5 - len(classes)))), constant_values=-np.inf)
        log_probs = np.c_[five - total[:, None], own - total, total].astype(np.float16)
        doubt = np.exp(total - logits.max(1)) - 1
        scores[evaluation.name] = score(Outcome(predicted == split.labels, doubt, logits.max(1)), None)
        files[evaluation.name] = name
        arrays = dict(images=np.asarray(split.keys), labels=split.labels, class_names=np.asarray(classes))
        arrays |= dict(predicted=predicted.astype(np.int32), log_probs=log_probs)
        np.savez(folder / "predictions" / f"{name}.npz", **arrays)
    facts = {"key": spec.key, **spec.facts(), "status": "ok", "model": "demo", "parameters": 7, "predictions": files}
    if trained:
        adapter = folder / "adapters" / f"{files[evaluation.name].removesuffix(f'-{evaluation.name}')}.safetensors"
        adapter.write_text(f"{spec.key} {noise}")
        facts["picks"] = {part: plan.source.split(part).names_hash for part in ("train", "val")}
    return facts | merge_scores(scores)


def alter(folder: Path, change: Callable[[dict[str, bytes]], None], file: str = "demo_fashion.npz") -> None:
    """Changes the members of a dataset's file as a careful forger does, who lists the file's new hash."""
    with zipfile.ZipFile(folder / file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(folder / file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    index = json.loads((folder / INDEX).read_text())
    next(one for one in index["datasets"].values() if one["file"] == file)["sha256"] = sha256(folder / file)
    (folder / INDEX).write_text(json.dumps(index))


def change_lines(folder: Path, change: Callable[[list[dict]], object], file: str = "demo_fashion.npz") -> None:
    """Changes the lines of a dataset's runs in place."""

    def edit(members: dict[str, bytes]) -> None:
        lines = [json.loads(line) for line in members["cells.jsonl"].decode().splitlines()]
        change(lines)
        members["cells.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines).encode()

    alter(folder, edit, file)


def flip(members: dict[str, bytes], name: str, image: int, label: int) -> None:
    """Sets the class that is predicted for an image."""
    predicted = np.load(io.BytesIO(members[name]))
    predicted[image] = label
    members[name] = array_bytes(predicted)
