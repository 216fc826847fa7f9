"""The project's own array_record shards of a benchmark dataset, for machines that read from shared storage.

They are an ordinary TFDS dataset, written and read without tensorflow, that keeps the benchmark's order, labels, class
names and paths. So the few-shot picks are those of the folder that they were made of.
"""

import contextlib
import functools
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from clipbias import hosts
from clipbias.checks import check_text
from clipbias.data import benchmark, transforms
from clipbias.data.dataset import Dataset, Split
from clipbias.data.tfds_records import PreparedDataset, records_path
from clipbias.errors import ClipbiasError
from clipbias.io import reason, shorten, user_path

VERSION = "1.0.0"
SUFFIX = "_coop"
FILE_BYTES = 128 << 20  # of images in a file of records, about; one file's are held in memory while it is written
SAMPLES = 256  # images by which the others' size is judged


def build(dataset: Dataset, out_dir: str | os.PathLike) -> epath.Path:
    """Writes `dataset` as array_record shards to `<out_dir>/<name>_coop/1.0.0`.

    The folder appears when all is written, and nothing else is left. Image bytes are stored as they are, in the
    dataset's order. No more of them is held in memory than one file of records has.

    Returns:
      The folder.

    Raises:
      ClipbiasError: it exists already, an image cannot be read, or the shards cannot be written.
    """
    import tensorflow_datasets as tfds

    name = dataset.name.replace("/", "_").replace("-", "_") + SUFFIX
    out = epath.Path(user_path(out_dir))
    if (out / name / VERSION).exists():
        raise ClipbiasError(f"{out / name / VERSION} exists already; remove it to build it again.")
    # One split under two names (ImageNet's val and test) is stored once.
    stored_as: dict[str, str] = {}
    for split_name, split in dataset.splits.items():
        same = [other for other in stored_as if dataset.splits[other].keys == split.keys]
        stored_as[split_name] = same[0] if same else split_name
    metadata = {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "class_ids": list(dataset.class_ids),
        "template": dataset.template,
        "stored_as": stored_as,
    }

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Nobody has published these shards: TFDS would ask the network, and leave a temporary folder."""

    # TFDS takes a builder's name and version from its class. One that shuffles keeps what it shuffles in memory, and
    # beyond a gigabyte in files that it needs tensorflow for; this one writes file after file.
    class Shards(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(num_classes=len(dataset.class_names)),
                "key": tfds.features.Text(),
                "position": tfds.features.Scalar(np.int64),
            }
            return Info(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(metadata),
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator]]]:
            return {
                stored: [functools.partial(_examples, split, part) for part in _parts(split)]
                for stored, split in ((stored, dataset.splits[stored]) for stored in dict.fromkeys(stored_as.values()))
            }

    Shards.name = name
    Shards.VERSION = tfds.core.Version(VERSION)
    tfds.disable_progress_bar()
    made = [out / name] if out.exists() else [out / name, out]
    try:
        builder = Shards(data_dir=os.fspath(out), file_format="array_record")
        with tempfile.TemporaryDirectory() as unused:  # TFDS makes folders for downloads that there are none of
            builder.download_and_prepare(download_dir=unused)
    except (OSError, RuntimeError) as error:  # RuntimeError: what the writer of the records makes of a full disk
        words = shorten(reason(error).splitlines()[0].partition("; ")[0], 200)
        raise ClipbiasError(f"cannot write shards to {out / name}: {words}; choose another folder.") from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # after a failure; a folder that holds something stays
    folder = epath.Path(builder.data_dir)
    prepared = PreparedDataset(folder)
    for stored in dict.fromkeys(stored_as.values()):
        prepared.records(stored, "key")  # leaves an index, so that opening the shards reads no image
    return folder


def _parts(split: Split) -> list[range]:
    """Which images each file gets, about `FILE_BYTES` of them, judged by some."""
    count = len(split)
    some = np.unique(np.linspace(0, count - 1, min(count, SAMPLES)).astype(np.int64)).tolist()
    total = sum(len(split.read(index)) for index in some) / max(len(some), 1) * count
    files = max(1, min(count, round(total / FILE_BYTES)))
    bounds = [count * number // files for number in range(files + 1)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]


def find(name: str, data_dir: str | os.PathLike) -> epath.Path | None:
    """The folder of the shards of a catalogue dataset below `data_dir`, or None."""
    folder = epath.Path(data_dir) / (name + SUFFIX) / VERSION
    return folder if (folder / "dataset_info.json").exists() else None


def load(
    folder: epath.PathLike, *, template: str | None = None, index_file: str | os.PathLike | None = None
) -> Dataset:
    """Opens shards made by `build`. Arguments and errors as for `benchmark.load`."""
    records_path(folder)
    prepared = PreparedDataset(folder)
    metadata = prepared.metadata
    stored = {}
    with prepared.explained("the description"):
        for split_name in set(metadata["stored_as"].values()):
            records = prepared.records(split_name, "key")
            stored[split_name] = Split(records.ids, records.labels, records.read).subset(records.order)
        dataset = Dataset(
            check_text("the dataset's name", metadata["name"]),
            tuple(metadata["class_names"]),
            metadata["template"] if template is None else template,
            {split_name: stored[stored_name] for split_name, stored_name in metadata["stored_as"].items()},
            tuple(metadata["class_ids"]),
        )
    return benchmark.with_index(dataset, index_file)


def _examples(split: Split, part: range) -> Iterator[tuple[str, dict]]:
    for position in part:
        hosts.check()
        key, encoded = split.keys[position], split.read(position)
        transforms.check_format(encoded, key)  # shards are passed on: no other file goes into them by way of a link
        yield (
            key,
            {"image": io.BytesIO(encoded), "label": int(split.labels[position]), "key": key, "position": position},
        )
