"""The project's own array_record shards of a benchmark dataset, for machines that read from shared storage.

They are an ordinary TFDS dataset, written and read without tensorflow. They keep the benchmark's order, labels, class
names and paths, so the few-shot splits are those of the image folder.
"""

import contextlib
import functools
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from etils import epath

from clipbias import hosts
from clipbias.checks import check_text
from clipbias.data import transforms
from clipbias.data.dataset import Dataset, Split
from clipbias.data.tfds import PreparedDataset, records_path
from clipbias.errors import ClipbiasError
from clipbias.io import reason, shorten, user_path

VERSION = "1.0.0"
SUFFIX = "_coop"
FILE_BYTES = 128 << 20  # approximate size of a file of records, which is held in memory while it is written
SAMPLES = 256  # images whose sizes estimate the sum of all


def build(dataset: Dataset, out_dir: str | os.PathLike) -> epath.Path:
    """Writes `dataset` as array_record shards to `<out_dir>/<name>_coop/1.0.0`, and returns that folder.

    The folder appears when everything is written; no other file remains. Image bytes are stored as they are, in the
    dataset's order. Memory holds the images of one file of records at a time. Raises `ClipbiasError` if the folder
    exists already, an image cannot be read, or the shards cannot be written.
    """
    name = dataset.name.replace("/", "_").replace("-", "_") + SUFFIX
    out = epath.Path(user_path(out_dir))
    if (out / name / VERSION).exists():
        raise ClipbiasError(f"{out / name / VERSION} exists already; remove it to build it again.")
    # One split under two names (ImageNet's val and test) is stored once.
    stored_as: dict[str, str] = {}
    for split_name, split in dataset.splits.items():
        twins = (other for other in stored_as if dataset.splits[other].digest == split.digest)
        stored_as[split_name] = next(twins, split_name)
    new_folders = [out / name] if out.exists() else [out / name, out]
    try:
        folder = _write(dataset, name, stored_as, out)
    except (OSError, RuntimeError) as error:  # RuntimeError: raised by the writer of records on a full disk
        words = shorten(reason(error).splitlines()[0].partition("; ")[0], 200)
        raise ClipbiasError(f"cannot write shards to {out / name}: {words}; choose another folder.") from error
    finally:
        for new_folder in new_folders:
            with contextlib.suppress(OSError):
                os.rmdir(new_folder)  # after a failure; a folder that is not empty stays
    prepared = PreparedDataset(folder)
    for split_name in dict.fromkeys(stored_as.values()):
        prepared.records(split_name, "key")  # writes an index, so that opening the shards reads no image
    return folder


def _write(dataset: Dataset, name: str, stored_as: Mapping[str, str], out: epath.Path) -> epath.Path:
    """Writes every split under its name in `stored_as`, and returns the folder."""
    import tensorflow_datasets as tfds

    metadata = {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "class_ids": list(dataset.class_ids),
        "template": dataset.template,
        "stored_as": stored_as,
    }

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Does nothing: TFDS would ask the network for published shards, and leave a temporary folder."""

    # TFDS takes a builder's name and version from its class. A builder that shuffles keeps the records in memory, and
    # beyond a gigabyte needs tensorflow to store them; this one writes file after file.
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

        def _shard_iterators_per_split(self, dl_manager: object) -> dict[str, list[Callable[[], Iterator]]]:
            iterators: dict[str, list[Callable[[], Iterator]]] = {}
            for split_name in dict.fromkeys(stored_as.values()):
                split = dataset.splits[split_name]
                iterators[split_name] = [functools.partial(_examples, split, part) for part in _parts(split)]
            return iterators

    Shards.name = name
    Shards.VERSION = tfds.core.Version(VERSION)
    tfds.disable_progress_bar()
    builder = Shards(data_dir=os.fspath(out), file_format="array_record")
    with tempfile.TemporaryDirectory() as unused:  # TFDS makes folders for downloads; there are none
        builder.download_and_prepare(download_dir=unused)
    return epath.Path(builder.data_dir)


def _parts(split: Split) -> list[range]:
    """The images of each file, about `FILE_BYTES`; their size is estimated from samples."""
    count = len(split)
    samples = np.unique(np.linspace(0, count - 1, min(count, SAMPLES)).astype(np.int64)).tolist()
    total = sum(len(split.read(index)) for index in samples) / max(len(samples), 1) * count
    files = max(1, min(count, round(total / FILE_BYTES)))
    bounds = [count * number // files for number in range(files + 1)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]


def find(name: str, data_dir: str | os.PathLike) -> epath.Path | None:
    """The folder of the shards of a catalogue dataset below `data_dir`, or None."""
    folder = epath.Path(data_dir) / (name + SUFFIX) / VERSION
    return folder if (folder / "dataset_info.json").exists() else None


def load(folder: epath.PathLike, *, template: str | None = None) -> Dataset:
    """Opens shards made by `build`. Arguments and errors as for `benchmark.load`."""
    records_path(folder)
    prepared = PreparedDataset(folder)
    metadata = prepared.metadata
    stored = {}
    with prepared.explained("the description"):
        for split_name in set(metadata["stored_as"].values()):
            records = prepared.records(split_name, "key")
            split = Split(records.ids, records.labels, records.read, source=str(folder), contents=prepared.sizes)
            stored[split_name] = split.subset(records.order)
        return Dataset(
            check_text("the dataset's name", metadata["name"]),
            tuple(metadata["class_names"]),
            metadata["template"] if template is None else template,
            {split_name: stored[stored_name] for split_name, stored_name in metadata["stored_as"].items()},
            tuple(metadata["class_ids"]),
        )


def _examples(split: Split, part: range) -> Iterator[tuple[str, dict]]:
    for position in part:
        hosts.check()
        key = split.keys[position]
        encoded = split.read(position)
        transforms.check_format(encoded, key)  # shards are published: a link must not bring another file into them
        label = int(split.labels[position])
        yield key, {"image": io.BytesIO(encoded), "label": label, "key": key, "position": position}
