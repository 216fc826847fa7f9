"""Writes a bundle of finished sweeps."""

import dataclasses
import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipbias import io
from clipbias.bundles.files import (
    CELLS,
    FORMAT,
    INDEX,
    LARGEST,
    SUMMARY,
    WITH_LOG_PROBS,
    ImageList,
    array_bytes,
    hash_arrays,
)
from clipbias.errors import ClipbiasError
from clipbias.report.errors import difference_error
from clipbias.report.frames import read_sweep
from clipbias.training.spec import RunSpec

# What a run's key is the hash of.
_FIELDS = (*(field.name for field in dataclasses.fields(RunSpec)), "learning_rate")
RESULTS, CROP = "results.jsonl", "shorter side to the resolution, bicubic; centre crop"


def find_sweeps(folders: Iterable[Path]) -> list[Path]:
    """The work folders of `table1` among some folders and those directly in them. Raises `ClipbiasError` for others."""
    found: list[Path] = []
    for folder in folders:
        inner = (
            [folder] if (folder / RESULTS).is_file() else sorted(path.parent for path in folder.glob(f"*/{RESULTS}"))
        )
        if not inner:
            raise ClipbiasError(f"{folder} holds no {RESULTS} of `table1` or `lab`; give a work folder that has it.")
        found += inner
    return found


def write_bundle(folders: Iterable[Path], to: Path) -> Path:
    """Writes a bundle of the runs in some work folders; the whole folder appears when it is complete.

    Raises:
      ClipbiasError: a folder is no sweep's or lacks predictions, two models meet, or a file would be too large.
    """
    sources, lines = [], []
    for number, workdir in enumerate(find_sweeps(folders)):
        sources.append(_source(workdir))
        rows = [row for row in io.read_json_lines(workdir / RESULTS) if row.get("status") == "ok"]
        lines += [(workdir, {**row, "sweep": number}) for row in rows]
    models = {source["model"].get("fingerprint"): source["model"] for source in sources}
    if len(models) > 1:
        raise ClipbiasError(f"the folders have {len(models)} models; write a bundle for each.")
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for workdir, line in lines:  # zero-shot may be in several folders
        first.setdefault(line["key"], (workdir, line))
    by_dataset: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for workdir, line in first.values():
        by_dataset.setdefault(line["dataset"], []).append((workdir, line))
    if not by_dataset:
        raise ClipbiasError("none of the runs is finished; nothing is written.")
    with io.atomic_folder(to) as temporary:
        datasets = {}
        for dataset, own in by_dataset.items():
            path = temporary / f"{dataset.replace('/', '_')}.npz"
            _write_dataset(path, own, sources)
            datasets[dataset] = {"file": path.name, "sha256": io.sha256(path), "runs": len(own)}
        index = {"format": FORMAT, "sources": sources, "model": next(iter(models.values())), "datasets": datasets}
        index["spec"] = [*_FIELDS]
        io.write_text(temporary / INDEX, json.dumps(index, indent=1, sort_keys=True) + "\n")
    return to


def _source(workdir: Path) -> dict[str, Any]:
    """What a bundle says of a work folder: its axes, versions, devices and model, and when it was made. No paths."""
    config, environment = (io.read_json(workdir / name, dict) for name in ("config.json", "environment.json"))
    if "methods" not in config or "files" not in environment.get("model", {}):
        raise ClipbiasError(f"{workdir} is not a sweep of this version; finish it with the same command first.")
    axes = {name: config[name] for name in ("methods", "datasets", "shots", "seeds", "protocol")}
    facts = {name: environment.get(name) for name in ("packages", "python", "devices", "processes", "git", "model")}
    facts["model"] = {**facts["model"], "name": _public(facts["model"]["name"])}
    return {**axes, **facts, "started": io.read_json(workdir / "state.json", dict).get("started")}


def _public(model: str) -> str:
    """A model's name; of a local folder only its last part."""
    return Path(model).name if Path(model).is_absolute() else model


def _write_dataset(path: Path, own: Sequence[tuple[Path, dict[str, Any]]], sources: Sequence[Mapping]) -> None:
    members: dict[str, bytes] = {}
    lines = []
    for workdir, row in own:
        line = {**row, "model": _public(row["model"]), **_protocol(row, sources[row["sweep"]])}
        hashes, lists = {}, {}
        for evaluation, name in row["predictions"].items():
            images, predicted, log_probs = _predictions(workdir / "predictions" / f"{name}.npz")
            log_probs = log_probs if row["shots"] in WITH_LOG_PROBS else None
            lists[evaluation], hashes[evaluation] = images.hash, hash_arrays(predicted, log_probs)
            members[f"lists/{images.hash}.json"] = images.json().encode()
            members[f"predicted/{row['key']}-{evaluation}.npy"] = array_bytes(predicted)
            if log_probs is not None:  # column by column, which packs better
                members[f"log_probs/{row['key']}-{evaluation}.npy"] = array_bytes(np.asfortranarray(log_probs))
            adapter = workdir / "adapters" / f"{name.removesuffix(f'-{evaluation}'.replace('/', '_'))}.safetensors"
        line |= {"lists": lists, "sha256": hashes, "adapter": io.sha256(adapter) if adapter.is_file() else None}
        lines.append(line)
    members[CELLS] = "".join(json.dumps(line) + "\n" for line in lines).encode()
    members[SUMMARY] = json.dumps(_summary(own)).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):  # with a date that is always the same: equal runs make equal files
            archive.writestr(zipfile.ZipInfo(name), members[name], zipfile.ZIP_DEFLATED)
    if path.stat().st_size > LARGEST:
        raise ClipbiasError(
            f"{path.name} has {path.stat().st_size / 1e6:.0f} MB, over {LARGEST / 1e6:.0f}; give fewer runs."
        )


def _protocol(row: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's number depends on besides its method, in words that tables need."""
    recipe = "none" if not row["recipe"] else "authors'" if row.get("own_recipe") else "common"
    text = f"descriptions {row['descriptions']}" if row["descriptions"] else row["template"]
    facts = {"recipe": recipe, "zero_shot_text": text, "resolution": source["model"]["resolution"], "crop": CROP}
    return {"conditions": {"validation": row["validation"], **facts}}


def _predictions(path: Path) -> tuple[ImageList, np.ndarray, np.ndarray | None]:
    io.check_file(path, missing=f"there is no {path}; the bundle needs the predictions of all runs.")
    with np.load(path, allow_pickle=False) as stored:
        names, classes = (tuple(map(str, stored[name])) for name in ("images", "class_names"))
        images = ImageList(names, np.asarray(stored["labels"], np.int64), classes)
        log_probs = stored["log_probs"] if "log_probs" in stored.files else None
        return images, stored["predicted"].astype(np.int16), log_probs


def _summary(own: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[str, Any]:
    """Of each work folder, the means over seeds with their errors, and each method's difference to the best."""
    found: dict[str, Any] = {"means": [], "differences": []}
    for workdir in dict.fromkeys(workdir for workdir, _ in own):
        sweep = read_sweep([row for inside, row in own if inside == workdir], workdir / "predictions")
        keys: dict[tuple[str, int], list[str]] = {}
        for row in sweep.rows:
            keys.setdefault((row["method"], row["shots"]), []).append(row["key"])
        cells: dict[tuple[str, int], list[tuple[list[str], Mapping[str, Any]]]] = {}
        for (measure, method, _, shots), cell in sweep.lines.items():
            own_keys = keys.get((method, shots)) or keys[method, 0]
            number = {"mean": float(cell["mean"]), "error": float(cell["error"])}
            found["means"].append({"measure": measure, "shots": shots, "keys": own_keys, **number})
            cells.setdefault((measure, shots), []).append((own_keys, cell))
        for (measure, shots), several in cells.items():
            best = max(several, key=lambda one: one[1]["mean"])
            for own_keys, other in several:
                if own_keys != best[0] and math.isfinite(error := difference_error(best[1], other)):
                    number = {"difference": float(best[1]["mean"] - other["mean"]), "error": float(error)}
                    found["differences"].append(
                        {"measure": measure, "shots": shots, "keys": [best[0], own_keys], **number}
                    )
    return found
