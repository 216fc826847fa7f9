"""Compares what is on disk with the catalogue: counts, split file, few-shot picks, readable images."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tabulate import tabulate

from clipbias.data import benchmark, transforms
from clipbias.data.dataset import Dataset, Split
from clipbias.data.entry import Entry
from clipbias.data.few_shot import few_shot
from clipbias.data.workers import processors
from clipbias.errors import ClipbiasError

# The published picks are those of 16 shots.
GOLDEN_SHOTS = 16
# By dataset and seed: the first 16 hex digits of sha256 over the paths of the 16-shot training and of the 4-shot
# validation picks, joined by newlines.
GOLDEN: dict[str, dict[int, tuple[str, str]]] = {
    "caltech101": {
        1: ("e60a836bd33cbba3", "53555d3fce94587d"),
        2: ("62be9f804c23dea9", "0ac3f0ace7d75ed1"),
        3: ("8c465c68bff43c6e", "bf481ac8e217d48d"),
    },
    "oxford_pets": {
        1: ("711e62ca7ba4bf69", "b75fc02100f37a51"),
        2: ("3ecc09fd23ef3845", "6d954be12352e3e9"),
        3: ("45933e694768aaab", "fb9f327e6bdd6bb5"),
    },
    "stanford_cars": {
        1: ("f7d56096c7921e7a", "edeb0808f53c4619"),
        2: ("c8392ec0f0d4a698", "831f6ef98ba7c20d"),
        3: ("d5d533f8b5c5caf8", "38ae4c6127e51931"),
    },
    "oxford_flowers": {
        1: ("ea366f552e24a82b", "3a88b427e7b187eb"),
        2: ("3966d8c7701959cc", "c14f6cff29a850b7"),
        3: ("d027071e2f771db1", "c05b4617c2ae8656"),
    },
    "dtd": {
        1: ("daf3b28e531fbc4b", "9ef81bd9b8f31885"),
        2: ("a34259006a2af32a", "82e7c16834cbe39f"),
        3: ("d4a9dc52a372cccc", "17e14a57620535f1"),
    },
    "eurosat": {
        1: ("ad260707da9107f1", "f171ab42c4e4c55c"),
        2: ("212e6c8813227418", "6741b81e637a61cd"),
        3: ("9dad8ac018414f09", "e428abf9f2933efb"),
    },
    "ucf101": {
        1: ("b88bd6d2db741f87", "6499ec117e625487"),
        2: ("a510bb0001f043a5", "6e94bbb892da9b1f"),
        3: ("6bfebd6fbe0806ac", "f08db7c0e2d6981c"),
    },
}
SHOWN_FILES = 3


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of one dataset.

    Attributes:
      entry: Its catalogue entry.
      state: "ok", "missing" (no folder), "differs" (from the catalogue) or "broken" (unusable, or images lacking).
      classes: Number of classes found.
      sizes: Images found per split.
      split_hash: First 16 hex digits of the split file's sha256, "" where there is none.
      picks: Number of seeds whose few-shot picks are the published ones, and of seeds that have published ones.
      problems: One sentence each.
    """

    entry: Entry
    state: str
    classes: int = 0
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    split_hash: str = ""
    picks: tuple[int, int] = (0, 0)
    problems: tuple[str, ...] = ()


def check(entry: Entry, data_dir: str | os.PathLike, *, decode: bool = False) -> Finding:
    """Checks one dataset below the root `data_dir`.

    Args:
      entry: The catalogue entry.
      data_dir: The root of all datasets in CoOp's layout.
      decode: Decode every image too; else only that each file is there and not empty.
    """
    try:
        root = benchmark.find_root(entry, data_dir)
    except ClipbiasError as error:
        return Finding(entry, "missing", problems=(_without_name(error, entry),))
    try:
        dataset = benchmark.load(entry, data_dir)
    except ClipbiasError as error:
        return Finding(entry, "broken", problems=(_without_name(error, entry),))
    problems: list[str] = []
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    counts = {"classes": len(dataset.class_names), **sizes}
    wrong = [name for name, expected in {"classes": entry.classes, **entry.sizes}.items() if counts[name] != expected]
    if wrong:
        problems.append(f"the number of {', '.join(wrong)} is not the catalogue's; this is not the benchmark's split.")
    golden = GOLDEN.get(entry.name, {})
    matched = 0 if wrong else sum(picks(dataset, seed) == expected for seed, expected in golden.items())
    if matched < len(golden) and not wrong:
        problems.append(
            f"the {GOLDEN_SHOTS}-shot picks of {len(golden) - matched} of {len(golden)} seeds are not the "
            f"published ones; fetch {entry.split_file} again."
        )
    split_hash = ""
    if entry.split_file:
        split_hash = hashlib.sha256((root / entry.split_file).read_bytes()).hexdigest()[:16]
    images = root / entry.images
    bad = unreadable(images, dataset.splits.values(), decode=decode)
    if bad:
        shown = "; ".join(bad[:SHOWN_FILES]) + (
            f"; and {len(bad) - SHOWN_FILES} more" if len(bad) > SHOWN_FILES else ""
        )
        problems.append(f"{len(bad)} images are missing or unreadable: {shown}.")
        if len(bad) == sum(len(set(split.keys)) for split in dataset.splits.values()):
            problems.append(benchmark.how_to_fetch(entry))
    state = "broken" if bad else "differs" if problems else "ok"
    return Finding(
        entry,
        state,
        len(dataset.class_names),
        sizes,
        split_hash,
        (matched, len(golden)),
        tuple(problems),
    )


def picks(dataset: Dataset, seed: int) -> tuple[str, str]:
    """The short hashes of the 16-shot training and 4-shot validation picks."""
    train, val = dataset.split("train"), dataset.split("val")
    chosen, held_out = few_shot(train, val, shots=GOLDEN_SHOTS, seed=seed)
    return _short_hash(train, chosen), _short_hash(val, held_out)


def _short_hash(split: Split, indices: np.ndarray) -> str:
    return hashlib.sha256("\n".join(split.keys[index] for index in indices).encode()).hexdigest()[:16]


def unreadable(images: Path, splits: Iterable[Split], *, decode: bool) -> list[str]:
    """Files that are absent or empty or, with `decode`, not a whole image; each once, with the reason."""
    keys = list(dict.fromkeys(key for split in splits for key in split.keys))

    def reason(key: str) -> str | None:
        path = images / key
        try:
            if path.stat().st_size == 0:
                return f"{key} is empty"
            if decode:
                transforms.decode(path.read_bytes(), key)
        except OSError as error:
            return f"{key} ({error.strerror})"
        except ClipbiasError as error:
            return str(error).split(";")[0]
        return None

    with ThreadPoolExecutor(processors()) as pool:
        return [found for found in pool.map(reason, keys, chunksize=64) if found]


def table(findings: Sequence[Finding]) -> str:
    """A text table of all findings, and below it a line for each problem."""
    header = ("dataset", "state", "classes", "train", "val", "test", "split file", "picks")
    rows = []
    for finding in findings:
        entry, (matched, golden) = finding.entry, finding.picks
        rows.append(
            (
                entry.title,
                finding.state,
                _count(finding.classes, entry.classes, finding.state),
                *(
                    _count(finding.sizes.get(name, 0), entry.sizes.get(name, 0), finding.state)
                    for name in ("train", "val", "test")
                ),
                finding.split_hash or "-",
                f"{matched}/{golden}" if golden and finding.state != "missing" else "-",
            )
        )
    problems = [f"{finding.entry.title}: {problem}" for finding in findings for problem in finding.problems]
    return "\n".join([tabulate(rows, header, "simple", disable_numparse=True), *problems])


def _count(found: int, expected: int, state: str) -> str:
    if state == "missing" or found == expected:
        return str(expected) if expected else "-"
    return f"{found} of {expected}"


def _without_name(error: ClipbiasError, entry: Entry) -> str:
    return str(error).removeprefix(f"{entry.name}: ")
