"""Checks of datasets: readable images; and by the catalogue, counts, split file and few-shot picks."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tabulate import tabulate

from clipbias.data import benchmark
from clipbias.data.catalog import CatalogEntry
from clipbias.data.dataset import Dataset
from clipbias.data.few_shot import few_shot
from clipbias.data.files import file_sizes
from clipbias.data.images import processors
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.io import is_remote
from clipbias.sentences import counted

# The published picks are those of 16 shots.
PICKED_SHOTS = 16
SHOWN_FILES = 3


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of checking a dataset."""

    title: str
    state: str  # "ok", "missing" (no folder), "differs" (from the catalogue), "broken" (unusable, or images missing)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of "classes", and images by split
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)  # counts of the catalogue, if it has any
    split_hash: str = ""  # first 16 hex digits of the split file's sha256
    picks: tuple[int, int] = (0, 0)  # number of seeds with the published few-shot picks, and with any published picks
    problems: tuple[str, ...] = ()


def check(entry: CatalogEntry, data_dir: str | os.PathLike, *, decode: bool = False) -> Finding:
    """Checks a dataset of the catalogue below `data_dir`, the root of all; with `decode`, every image is decoded."""
    expected = {"classes": entry.classes, **entry.sizes}
    state = "missing"
    try:
        root = benchmark.find_root(entry, data_dir)
        state = "broken"
        dataset = benchmark.load(entry, data_dir)
    except ClipbiasError as error:
        return Finding(entry.title, state, {}, expected, problems=(str(error).removeprefix(f"{entry.name}: "),))
    images = check_images(dataset, decode=decode)
    problems: list[str] = []
    # Picks are compared only if counts are right: other lists give other picks anyway.
    wrong = [name for name, number in expected.items() if images.counts.get(name) != number]
    if wrong:
        problems.append(f"the number of {', '.join(wrong)} is not the catalogue's; this is not the benchmark's split.")
    matched = 0
    for seed, published in enumerate(entry.picks, start=1) if not wrong else ():
        splits = (dataset.split("train"), dataset.split("val"))
        drawn = few_shot(*splits, shots=PICKED_SHOTS, seed=seed)
        names = ("\n".join(split.subset(indices).keys) for split, indices in zip(splits, drawn, strict=True))
        # The order counts, too: hashes of sets would miss another draw of the same images.
        matched += [hashlib.sha256(text.encode()).hexdigest()[:16] for text in names] == list(published)
    if matched < len(entry.picks) and not wrong:
        problems.append(
            f"the {PICKED_SHOTS}-shot picks of {len(entry.picks) - matched} of {len(entry.picks)} seeds are not the "
            f"published ones; fetch {entry.split_file} again."
        )
    split_hash = hashlib.sha256((root / entry.split_file).read_bytes()).hexdigest()[:16] if entry.split_file else ""
    state = "broken" if images.problems else "differs" if problems else "ok"
    problems += images.problems
    if images.state == "missing":
        problems.append(benchmark.how_to_fetch(entry))
    picks = (matched, len(entry.picks))
    return Finding(entry.title, state, images.counts, expected, split_hash, picks, tuple(problems))


def check_images(dataset: Dataset, *, decode: bool = False) -> Finding:
    """Checks the images of any dataset; the state is "missing" without any image. For `decode` see `check`."""
    # By path, since ImageNet's val and test are one list.
    images = {split.path(index): (split, index) for split in dataset.splits.values() for index in range(len(split))}

    def problem(path: str) -> str | None:
        split, index = images[path]
        try:
            # A file's size is enough to find missing and empty files, in a small part of the time of decoding.
            if decode or split.contents is not file_sizes or is_remote(path):
                split.image(index)
            elif os.stat(path).st_size == 0:
                return f"{split.keys[index]} is empty"
        except OSError as error:
            return f"{split.keys[index]} ({error.strerror})"
        except UnreadableImage as error:
            return error.reason.split(";")[0]
        return None

    with ThreadPoolExecutor(processors()) as pool:
        bad = [message for message in pool.map(problem, images, chunksize=64) if message]
    counts = {"classes": len(dataset.class_names), **{name: len(split) for name, split in dataset.splits.items()}}
    if not bad:
        return Finding(dataset.name, "ok", counts)
    more = f"; and {len(bad) - SHOWN_FILES} more" if len(bad) > SHOWN_FILES else ""
    message = f"{counted(len(bad), 'image')} missing or unreadable: {'; '.join(bad[:SHOWN_FILES])}{more}."
    return Finding(dataset.name, "missing" if len(bad) == len(images) else "broken", counts, problems=(message,))


def table(findings: Sequence[Finding]) -> str:
    """Formats all findings as a text table, followed by a line for each problem."""
    header = ("dataset", "state", "classes", "train", "val", "test", "split file", "picks")
    rows = []
    for finding in findings:
        matched, golden = finding.picks
        expected = finding.expected or finding.counts
        counts = expected if finding.state == "missing" and not finding.counts else finding.counts
        cells = []
        for name in ("classes", "train", "val", "test"):
            count = counts.get(name, 0)
            number = expected.get(name, 0)
            # A single number stands for an equal count, so that differences are seen at once.
            cells.append(f"{count} of {number}" if count != number else str(count) if count else "-")
        picks = f"{matched}/{golden}" if golden and finding.state != "missing" else "-"
        rows.append([finding.title, finding.state, *cells, finding.split_hash or "-", picks])
    problems = [f"{finding.title}: {problem}" for finding in findings for problem in finding.problems]
    return "\n".join([tabulate(rows, header, "simple", disable_numparse=True), *problems])
