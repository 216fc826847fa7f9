"""TFDS-format miniatures under the stock builders' names, features and label orders, made without tensorflow."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from tests.data.pictures import encoded, picture

Record = tuple[bytes, str, str]  # image, label name, identifier


def prepare(
    data_dir: Path,
    name: str,
    label_names: list[str],
    splits: Mapping[str, Iterable[Record]],
    *,
    id_feature: str | None,
    config: str | None = None,
    version: str = "1.0.0",
    file_format: str = "array_record",
) -> Path:
    """Writes a prepared dataset; returns its folder."""

    class Stock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version)] if config else []

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=label_names)}
            if id_feature:
                features[id_feature] = tfds.features.Text()
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(records) for split, records in splits.items()}

        def _generate_examples(self, records):
            for number, (image, label, identifier) in enumerate(records):
                example = {"image": io.BytesIO(image), "label": label}
                yield f"{number}", example | ({id_feature: identifier} if id_feature else {})

    Stock.name = name
    Stock.VERSION = tfds.core.Version(version)
    builder = Stock(data_dir=str(data_dir), file_format=file_format)
    builder.download_and_prepare()
    return Path(builder.data_dir)


def image(seed: int) -> bytes:
    return encoded(picture(seed, 8, 9), "JPEG")
