"""Checks datasets before they are used: readable images, and by the catalogue counts, split file and few-shot picks."""

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
GOLDEN_SHOTS = 16
# By dataset, for the seeds 1, 2 and 3: the first 16 hex digits of sha256 over the paths of the 16-shot training and of
# the 4-shot validation picks, joined by newlines.
_HASHES = """
caltech101     e60a836bd33cbba3 53555d3fce94587d 62be9f804c23dea9 0ac3f0ace7d75ed1 8c465c68bff43c6e bf481ac8e217d48d
oxford_pets    711e62ca7ba4bf69 b75fc02100f37a51 3ecc09fd23ef3845 6d954be12352e3e9 45933e694768aaab fb9f327e6bdd6bb5
stanford_cars  f7d56096c7921e7a edeb0808f53c4619 c8392ec0f0d4a698 831f6ef98ba7c20d d5d533f8b5c5caf8 38ae4c6127e51931
oxford_flowers ea366f552e24a82b 3a88b427e7b187eb 3966d8c7701959cc c14f6cff29a850b7 d027071e2f771db1 c05b4617c2ae8656
dtd            daf3b28e531fbc4b 9ef81bd9b8f31885 a34259006a2af32a 82e7c16834cbe39f d4a9dc52a372cccc 17e14a57620535f1
eurosat        ad260707da9107f1 f171ab42c4e4c55c 212e6c8813227418 6741b81e637a61cd 9dad8ac018414f09 e428abf9f2933efb
ucf101         b88bd6d2db741f87 6499ec117e625487 a510bb0001f043a5 6e94bbb892da9b1f 6bfebd6fbe0806ac f08db7c0e2d6981c
"""
GOLDEN = {
    name: dict(enumerate(zip(hashes[::2], hashes[1::2], strict=True), start=1))
    for name, *hashes in map(str.split, _HASHES.strip().splitlines())
}
SHOWN_FILES = 3


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of checking one dataset.

    The state is "ok", "missing" (no folder), "differs" (from the catalogue) or "broken" (unusable, or images lacking).
    """

    title: str
    state: str
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of "classes", and of images by split
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)  # in the catalogue; empty outside of it
    split_hash: str = ""  # first 16 hex digits of the split file's sha256
    picks: tuple[int, int] = (0, 0)  # seeds whose few-shot picks are the published ones, of those that have such
    problems: tuple[str, ...] = ()


def check(entry: CatalogEntry, data_dir: str | os.PathLike, *, decode: bool = False) -> Finding:
    """Checks one dataset of the catalogue below `data_dir`, the root of all datasets in CoOp's layout.

    With `decode`, every image is decoded too; else each file must be there and not be empty.
    """
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
    wrong = [name for name, number in expected.items() if images.counts.get(name) != number]
    if wrong:
        problems.append(f"the number of {', '.join(wrong)} is not the catalogue's; this is not the benchmark's split.")
    golden = GOLDEN.get(entry.name, {})
    matched = 0
    for seed, published in golden.items() if not wrong else ():
        splits = (dataset.split("train"), dataset.split("val"))
        picks = few_shot(*splits, shots=GOLDEN_SHOTS, seed=seed)
        names = ("\n".join(split.subset(indices).keys) for split, indices in zip(splits, picks, strict=True))
        matched += tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in names) == published
    if matched < len(golden) and not wrong:
        problems.append(
            f"the {GOLDEN_SHOTS}-shot picks of {len(golden) - matched} of {len(golden)} seeds are not the "
            f"published ones; fetch {entry.split_file} again."
        )
    split_hash = ""
    if entry.split_file:
        split_hash = hashlib.sha256((root / entry.split_file).read_bytes()).hexdigest()[:16]
    state = "differs" if problems else "ok"
    if images.problems:
        state = "broken"
    problems += images.problems
    if images.state == "missing":
        problems.append(benchmark.how_to_fetch(entry))
    return Finding(entry.title, state, images.counts, expected, split_hash, (matched, len(golden)), tuple(problems))


def check_images(dataset: Dataset, *, decode: bool = False) -> Finding:
    """Checks the images of any dataset; the state is "missing" if no image is there. `decode` is that of `check`."""
    images = {split.path(index): (split, index) for split in dataset.splits.values() for index in range(len(split))}

    def problem(path: str) -> str | None:
        split, index = images[path]
        try:
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
    """A text table of all findings, and below it a line for each problem."""
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
            cells.append(f"{count} of {number}" if count != number else str(count) if count else "-")
        picks = f"{matched}/{golden}" if golden and finding.state != "missing" else "-"
        rows.append([finding.title, finding.state, *cells, finding.split_hash or "-", picks])
    problems = [f"{finding.title}: {problem}" for finding in findings for problem in finding.problems]
    return "\n".join([tabulate(rows, header, "simple", disable_numparse=True), *problems])
